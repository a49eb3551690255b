"""Every notebook runs from top to bottom with the small parameters of nbs/params/test.yaml."""
import pytest
from notebooks import ROOT, runnable
from run_notebooks import read_parameters, run_notebook

LONG = ("11_rollout_speed", "02_data_filter", "09_checkpointing", "12_shapes")  # at the end one process would wait
PARAMETERS = read_parameters(ROOT / "nbs" / "params" / "test.yaml")


@pytest.mark.parametrize("path", sorted(runnable(), key=lambda path: path.stem not in LONG), ids=lambda path: path.stem)
def test_notebook(path):
    out = ROOT / "_runs" / "test"
    _, problem = run_notebook(path, out, PARAMETERS.get(path.stem), out / "figures", timeout=600)
    if problem:
        pytest.fail(f"{path.name}: {problem}", pytrace=False)
