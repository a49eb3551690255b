"""Two processes share the tests (`pytest -n 2 --dist loadgroup`), one thread each."""
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CHAINED = ("08_opd_loop", "11_evaluation")  # the second reads what the first has trained


def pytest_collection_modifyitems(items):
    """A file's tests stay together; long files are cut by test function, notebooks one by one."""
    for item in items:
        group = item.path.stem
        if group == "test_notebooks":
            group = "chained" if item.callspec.id in CHAINED else item.callspec.id
        elif group == "test_checkpoint":
            group = item.originalname
        item.add_marker(pytest.mark.xdist_group(group))
