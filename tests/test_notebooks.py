"""Every notebook runs from top to bottom with the small parameters of nbs/params/test.yaml."""
import pytest
from notebooks import ROOT, runnable
from run_notebooks import read_parameters, run_notebook

PARAMETERS = read_parameters(ROOT / "nbs" / "params" / "test.yaml")


@pytest.mark.parametrize("path", runnable(), ids=lambda path: path.stem)
def test_notebook(path):
    out = ROOT / "_runs" / "test"
    _, problem = run_notebook(path, out, PARAMETERS.get(path.stem), out / "figures", timeout=600)
    if problem:
        pytest.fail(f"{path.name}: {problem}", pytrace=False)
