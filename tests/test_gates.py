"""Every gate is green on a good repository and red on one with a planted fault."""
import json
import shutil
import subprocess

import pytest
from gates import GATES, nbdev, nbdev_input
from notebooks import ROOT, read, write
from outputs import lock

FIRST = ["#| default_exp first", "#| export\ndef double(x: int) -> int:\n    return 2 * x", "steps: int = 4",
         "double(steps)"]
SECOND = ["#| default_exp second", "#| export\nfrom tinyr2.first import double",
          "#| export\ndef quadruple(x: int) -> int:\n    return double(double(x))", "quadruple(1)"]

THIRD = ["from tinyr2.second import quadruple", "quadruple(3)"]
ORDER = ("spine:\n  00_first: {en: one, zh: 一}\n  01_second: {en: two, zh: 二}\n"
         "studies:\n  third: {en: three, zh: 三}\n")


def code(number: int, text: str) -> dict:
    tags = {"tags": ["parameters"]} if text.startswith("steps") else {}
    return {"cell_type": "code", "id": f"cell{number}", "metadata": tags, "outputs": [],
            "source": text.splitlines(keepends=True), "execution_count": None}


def git(root, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "core.hooksPath=/dev/null"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A repository with two notebooks, their package, stored outputs and parameters, all committed."""
    root = tmp_path_factory.mktemp("good")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "nbs" / "params").mkdir(parents=True)
    (root / "nbs" / "params" / "test.yaml").write_text("00_first:\n  steps: 2\n")
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    (root / "nbs" / "studies").mkdir()
    for name, cells in {"00_first": FIRST, "01_second": SECOND, "studies/third": THIRD}.items():
        write(root / "nbs" / f"{name}.ipynb", {"cells": [code(i, text) for i, text in enumerate(cells)],
                                               "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    (root / "nbs" / "order.yaml").write_text(ORDER)
    lock(root, {"00_first": 1.0, "01_second": 1.0, "third": 1.0})
    (root / "tinyr2" / "tasks").mkdir(parents=True)
    (root / "tinyr2" / "tasks" / "train.jsonl").write_text("{}\n")
    for name, content in nbdev("nbdev_export", nbdev_input(root)).items():
        (root / name).write_bytes(content)
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "good")
    return root


def new_file(name, text="x = 1\n"):
    return lambda root: (root / name).write_text(text)


def cell_fault(number, **changes):
    """Change a cell of the second notebook."""
    def plant(root):
        path = root / "nbs" / "01_second.ipynb"
        notebook = read(path)
        notebook["cells"][number] |= changes
        write(path, notebook)
    return plant


def output(kind, **content):
    return cell_fault(3, outputs=[{"output_type": kind, **content}])


def notebook_fault(**changes):
    def plant(root):
        path = root / "nbs" / "01_second.ipynb"
        write(path, read(path) | changes)
    return plant


def later_import(root):
    path = root / "nbs" / "00_first.ipynb"
    notebook = read(path)
    notebook["cells"][3]["source"] = "from tinyr2.second import quadruple"
    write(path, notebook)


def circle(root):
    """On a shelf, where the order of notebooks does not forbid it."""
    (root / "nbs" / "shelf").mkdir()
    for name in ("00_first", "01_second"):
        (root / "nbs" / f"{name}.ipynb").rename(root / "nbs" / "shelf" / f"{name}.ipynb")
    (root / "nbs" / "order.yaml").write_text(ORDER.replace("spine", "spine: {}\nshelf"))
    path = root / "nbs" / "shelf" / "00_first.ipynb"
    notebook = read(path)
    text = "".join(notebook["cells"][1]["source"])
    notebook["cells"][1]["source"] = f"#| export\nfrom tinyr2.second import quadruple\n{text}"
    write(path, notebook)


def stale_readme(root):
    """An index notebook and its results, without the README that they make."""
    shutil.copy(root / "nbs" / "00_first.ipynb", root / "nbs" / "index.ipynb")
    (root / "figures").mkdir()
    (root / "figures" / "results.json").write_text("{}")
    (root / "README.zh.md").write_text("")


FAULTS = [  # the gate, what to plant, what the gate must say
    ("tree_clean", new_file("left_behind.txt"), "left_behind.txt"),
    ("tree_clean", lambda root: shutil.rmtree(root / ".git"), "not a git repository"),
    ("readme", stale_readme, "README.md is not up to date"),
    ("notebooks_clean", cell_fault(3, metadata={"scrolled": True}), "01_second"),
    ("notebooks_clean", cell_fault(3, execution_count=7), "01_second"),
    ("package_in_step", new_file("tinyr2/orphan.py"), "orphan.py: no notebook exports it"),
    ("package_in_step", lambda root: (root / "tinyr2" / "second.py").unlink(), "second.py: missing"),
    ("package_in_step", new_file("tinyr2/second.py"), "second.py: differs"),
    ("cell_size", cell_fault(2, source="#| export\ndef f():\n" + "    a = 1\n" * 31), "f has 32 lines, at most 30"),
    ("cell_size", cell_fault(2, source="#| export\nclass A:\n" + "    a = 1\n" * 120), "A has 121 lines, at most 120"),
    ("classes_whole", cell_fault(2, source="#| export\nclass A:\n    pass\nA.x = 1\n"), "A.x is set after the class"),
    ("private_names", cell_fault(1, source="#| export\nfrom tinyr2.first import _x"), "which is private"),
    ("cell_size", cell_fault(3, source="a = 1\n" * 41), "the cell has 41 lines, at most 40"),
    ("cell_size", cell_fault(3, source=f"a = '{'x' * 120}'"), "characters in a line"),
    ("notebook_size", output("stream", name="stdout", text=["x" * 400_000]), "KB"),
    ("metadata", notebook_fault(metadata={"kernelspec": {"name": "python3"}}), "kernelspec"),
    ("metadata", cell_fault(3, execution_count=1), "execution count"),
    ("machine_paths", cell_fault(3, source="open('/home/me/notes')"), "/home/me"),
    ("machine_paths", output("stream", name="stdout", text=["see /tmp/x"]), "/tmp/x"),
    ("machine_paths", output("display_data", data={"text/plain": ["lib/site-packages/x.py"]}), "site-packages"),
    ("outputs_sound", output("error", ename="ValueError", evalue="no", traceback=[]), "ValueError: no"),
    ("outputs_sound", output("stream", name="stderr", text=["a warning"]), "a warning"),
    ("outputs_fresh", cell_fault(3, source="quadruple(2)"), "make outputs ONLY=01_second"),
    ("outputs_fresh", new_file("nbs/.outputs.json", "{}"), "make outputs ONLY=00_first"),
    ("outputs_fresh", new_file("nbs/order.yaml", "spine: {00_first: {}}\n"), "01_second is no notebook"),
    ("exports_used", cell_fault(2, source="#| export\ndef lonely(x):\n    return 4 * x"), "lonely is exported"),
    ("imports", cell_fault(3, source="from tinyr2.second import quadruple"), "it makes itself"),
    ("imports", cell_fault(3, source="from tinyr2 import quadruple"), "it makes itself"),
    ("imports", later_import, "which 01_second makes; the spine imports what comes earlier"),
    ("imports", circle, "modules import in a circle"),
    ("imports", cell_fault(3, source="import tinyr2.nowhere"), "no notebook makes"),
    ("order", new_file("nbs/order.yaml", "spine: {00_first: {}}\n"), "01_second.ipynb: not in nbs/order.yaml"),
    ("order", new_file("nbs/order.yaml", ORDER + "  02_lost: {}\n"), "02_lost.ipynb: in nbs/order.yaml, but not there"),
    ("order", new_file("nbs/order.yaml", ORDER + "more:\n  spine: {}\n"), "spine stands there 2 times"),
    ("parameters", cell_fault(3, source="rate: float = 0.1"), "rate without a parameters tag"),
    ("parameters", cell_fault(3, source="x = f()", metadata={"tags": ["parameters"]}), "plain constants"),
    ("parameters", new_file("nbs/params/test.yaml", "00_first: {stepz: 1}"), "no parameter stepz"),
    ("parameters", new_file("nbs/params/test.yaml", "00_first: {steps: 1e1}"), "'1e1'"),
    ("parameters", new_file("nbs/params/test.yaml", "07_lost: {steps: 1}"), "07_lost is no notebook"),
    ("ruff", new_file("tinyr2/second.py", "import os\n"), "F401"),
]


@pytest.mark.parametrize("gate", GATES)
def test_good_repository_is_green(gate, good):
    assert GATES[gate](good) == []


@pytest.mark.parametrize(("gate", "plant", "message"), FAULTS,
                         ids=[f"{gate}-{number}" for number, (gate, _, _) in enumerate(FAULTS)])
def test_planted_fault_is_found(gate, plant, message, good, tmp_path):
    root = shutil.copytree(good, tmp_path / "repository")
    plant(root)
    assert message in "\n".join(GATES[gate](root))


def test_every_gate_has_a_planted_fault():
    assert {gate for gate, _, _ in FAULTS} == set(GATES)


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate != "tree_clean"])
def test_this_repository_is_green(gate):
    assert GATES[gate](ROOT) == []


def test_lock_keeps_the_seconds_of_unchanged_code(good, tmp_path):
    root = shutil.copytree(good, tmp_path / "repository")
    lock(root, {"00_first": 99.0})
    assert json.loads((root / "nbs" / ".outputs.json").read_text())["00_first"]["seconds"] == 1
