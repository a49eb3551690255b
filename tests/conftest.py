"""Two processes share the tests (`pytest -n 2`), one thread each."""
import gc
import os
import re

if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):  # Triton reads it when imported: no GPU, interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CHAINED = ("08_opd_loop", "11_evaluation", "11_prompts")  # the others read what the first has trained


def group(nodeid: str) -> str:
    """What goes to one process: the tests of a file; long files are cut by test function, notebooks one by one."""
    file, name, case = re.fullmatch(r"(.*\.py)::(\w+)(.*)", nodeid, re.DOTALL).groups()
    if file.endswith("test_notebooks.py"):
        return "chained" if case.strip("[]") in CHAINED else nodeid
    return f"{file}::{name}" if file.endswith("test_checkpoint.py") else file


def pytest_xdist_make_scheduler(config, log):
    """xdist's scheduler by groups, with ours. (Its own, `loadgroup`, does nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler


def pytest_collection_finish(session):
    """Everything is imported now; later collections need not look through it, nor forked processes copy it."""
    gc.collect()
    gc.freeze()
