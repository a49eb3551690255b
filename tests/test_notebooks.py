"""Every notebook runs from top to bottom with the small parameters of nbs/params/test.yaml."""
import pytest
from notebooks import ROOT, runnable
from run_notebooks import TIMEOUT, places, read_parameters, run_notebook

PARAMETERS = read_parameters(ROOT / "nbs" / "params" / "test.yaml")


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize("path", runnable(), ids=lambda path: path.stem)
def test_notebook(path):
    out, figures = places("test")
    _, problem = run_notebook(path, out, PARAMETERS.get(path.stem), figures)
    if problem:
        pytest.fail(f"{path.name}: {problem}", pytrace=False)
