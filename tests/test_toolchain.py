"""The pins agree with each other, and the tools are the ones that are pinned."""
import ast
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import conftest
import forked
import gates
import run_notebooks
import yaml
from notebooks import ROOT, paths, write
from packaging.requirements import Requirement

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]
PINS = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
SCRIPTS = SETTINGS["console_scripts"].split()


def test_nbdev_is_the_last_that_reads_settings_ini():
    assert version("nbdev") == "2.4.14", (
        f"nbdev {version('nbdev')} is installed, this project needs 2.4.14: make setup (see CONTRIBUTING.md)")


@pytest.mark.parametrize("extra", ["", "data_", "lora_", "eval_", "dev_"])
def test_constraints_satisfy_settings(extra):
    for requirement in map(Requirement, SETTINGS[f"{extra}requirements"].split()):
        assert requirement.name in PINS, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(PINS[requirement.name]), (
            f"constraints.txt pins {PINS[requirement.name]}, settings.ini asks for {requirement}")


def test_constraints_are_exact_and_fit_every_platform():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(PINS) == sum(not line.startswith("#") for line in lines), "want NAME==VERSION on every line"
    for name, pin in PINS.items():
        assert re.fullmatch(r"[\d.]+(post\d+)?", pin), f"{name}=={pin}: no local tag, please"
        assert not name.startswith("nvidia"), f"{name}: torch chooses its own CUDA packages"


def test_setup_installs_the_pinned_versions():
    for name, pin in re.findall(r"([\w-]+)==([\d.]+)", (ROOT / "tests" / "tools" / "setup.sh").read_text()):
        assert PINS[name] == pin, f"setup.sh installs {name} {pin}, constraints.txt has {PINS[name]}"


@pytest.mark.parametrize("answer, yes, written", [("", "", False), ("n\n", "", False), ("y\n", "", True),
                                                  ("", "1", True)])
def test_hooks_ask_before_they_write_outside(answer, yes, written, tmp_path):
    tools, home = tmp_path / "repository" / "tests" / "tools", tmp_path / "home"
    tools.mkdir(parents=True)
    home.mkdir()
    shutil.copy(ROOT / "tests" / "tools" / "hooks.sh", tools)
    subprocess.run(["git", "init", "-q", tmp_path / "repository"], check=True)
    env = os.environ | {"HOME": str(home), "YES": yes, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", tools / "hooks.sh"], input=answer, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "~/.jupyter" in done.stdout, done.stderr
    files = {path.name for path in home.glob(".jupyter/*")}
    assert files == ({"jupyter_notebook_config.py", "jupyter_server_config.py"} if written else set())
    assert (tmp_path / "repository" / ".gitconfig").exists() == written


def test_setup_writes_in_the_repository_only():
    """Its caches aside, which are the installers' own."""
    text = (ROOT / "tests" / "tools" / "setup.sh").read_text()
    assert not re.search(r"nbdev_install_hooks|\.jupyter|\$HOME|~/", text)


def test_the_clean_tree_is_not_asked_for_without_git(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gates.py", "tree_clean"])
    assert not gates.main() and "skip tree_clean" in capsys.readouterr().out
    (tmp_path / ".git").mkdir()
    assert gates.main() and "not a git repository" in capsys.readouterr().out


DOCKERFILE = (ROOT / "Dockerfile").read_text()
SELF_TEST = re.search(r'-c "(from tinyr2[^"]+)"', DOCKERFILE).group(1)


def test_the_health_check_is_the_sandbox_test():
    done = subprocess.run([sys.executable, "-c", SELF_TEST], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "'self-test': 'passed'" in done.stdout, done.stderr


def test_the_container_files_agree():
    devcontainer = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    build = devcontainer["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).samefile(ROOT / "Dockerfile")
    assert (ROOT / ".devcontainer" / build["context"]).samefile(ROOT)
    assert f" AS {build['target']}\n" in DOCKERFILE
    assert f"useradd --create-home {devcontainer['remoteUser']} " in DOCKERFILE
    assert f"USER {devcontainer['remoteUser']}\n" in DOCKERFILE, "a container of notebooks does not run as root"
    assert SELF_TEST in devcontainer["postCreateCommand"]
    assert all(f"--port={port}" in DOCKERFILE for port in devcontainer["forwardPorts"])
    here = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if "nbs" not in line}
    not_copied = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()}
    assert here | {".git"} == not_copied, ".dockerignore is .gitignore and .git"


def test_the_workflow_names_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [word for step in steps for word in step.get("run", "").split()]
    assert ".ci/run" in commands and os.access(ROOT / ".ci" / "run", os.X_OK)
    for word in commands:
        assert not word.startswith("tests/") or (ROOT / word).exists(), word
    extras = re.search(r"\.\[([\w,]+)\]", " ".join(commands)).group(1).split(",")
    assert all(f"{extra}_requirements" in SETTINGS for extra in extras)
    assert all(job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.split("=")[0])
def test_console_script_is_there(script):
    module, function = script.split("=")[1].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_package_does_not_import_its_build_tools():
    for path in (ROOT / "tinyr2").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"nbdev", "fastcore", "execnb"}, path.name


def test_notebooks_side_by_side(monkeypatch, tmp_path):
    spans = {}

    def fake(path, out, parameters, figures, timeout, one_thread):
        start = time.monotonic()
        time.sleep(0.02 if path.stem != "11_trainer" else 0.6)
        spans[path.stem] = (start, time.monotonic(), one_thread)
        return 0.0, "broken" if path.stem == "06_reward" else ""

    monkeypatch.setattr(run_notebooks, "run_notebook", fake)
    notebooks = [Path(f"{path.stem}.ipynb") for path in paths(ROOT)]
    assert run_notebooks.run_all(notebooks, tmp_path, {}, jobs=2) == ["06_reward"]
    assert set(spans) == {path.stem for path in notebooks}
    for stem, (start, end, one_thread) in spans.items():
        beside = [other for other, span in spans.items() if other != stem and span[0] < end and start < span[1]]
        assert sum(span[0] <= start < span[1] for span in spans.values()) <= 2
        assert one_thread != (stem in run_notebooks.FIRST + run_notebooks.LAST)
        assert one_thread or not beside, stem
    for stem, before in run_notebooks.AFTER.items():
        assert spans[stem][0] >= spans[before][1]
    assert any(a[0] < b[1] and b[0] < a[1] for a, b in itertools.pairwise(spans.values()))


def test_a_file_stays_in_one_process():
    """`conftest.group` names what is not cut; two cases of one test, or two tests of one file, have the same name."""
    trainer, checkpoint, notebooks = (f"tests/test_{name}.py::test_" for name in ("trainer", "checkpoint", "notebooks"))
    assert conftest.group(f"{trainer}one[a::b]") == conftest.group(f"{trainer}two")
    assert conftest.group(f"{checkpoint}one[a]") == conftest.group(f"{checkpoint}one[b]") != \
        conftest.group(f"{checkpoint}two")
    names = [conftest.group(f"{notebooks}notebook[{name}]") for name in ("11_trainer", "13_evaluation", "06_reward")]
    assert names[0] == names[1] != names[2]


@pytest.fixture
def run(tmp_path):
    """Run a notebook of one cell; its seconds and problem."""
    def run(code, timeout=run_notebooks.TIMEOUT, **options):
        cell = {"cell_type": "code", "execution_count": None, "id": "only", "metadata": {}, "outputs": [],
                "source": code.splitlines(keepends=True)}
        kernel = {"display_name": "python3", "language": "python", "name": "python3"}
        notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        write(tmp_path / "nb" / "one.ipynb", notebook)
        return run_notebooks.run_notebook(tmp_path / "nb" / "one.ipynb", tmp_path / "out", None,
                                          tmp_path / "figures", timeout, **options)[1]
    (tmp_path / "nb").mkdir()
    return run


STATE = """import json, os, random, sys, matplotlib, numpy, torch
json.dump({"folder": os.getcwd(), "path": sys.path, "threads": torch.get_num_threads(), "main": __name__,
           "draws": [random.random(), float(numpy.random.rand()), float(torch.rand(()))], "pid": os.getpid(),
           "tinyr2": "tinyr2" in sys.modules, "pyplot": "matplotlib.pyplot" in sys.modules,
           "backend": matplotlib.rcParams["backend"], "figures": os.environ["TINYR2_FIGURES"],
           "group": os.getpgrp()}, open("state.json", "w"))
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, is_in_notebook
assert is_in_notebook() and DEFAULT_PROGRESS_CALLBACK.__name__ == "NotebookProgressCallback" """


def test_a_forked_kernel_is_as_fresh_as_any(run, tmp_path):
    states = []
    for one_thread in (True, False, True):
        assert run(STATE, one_thread=one_thread) == ""
        states.append(json.loads((tmp_path / "nb" / "state.json").read_text()))
        assert not psutil.pid_exists(states[-1]["pid"])
    for state in states:
        assert state["folder"] == str(tmp_path / "nb") and state["figures"] == str(tmp_path / "figures")
        assert not any(Path(path).is_relative_to(ROOT / "tests") for path in state["path"])
        assert state["main"] == "__main__" and state["group"] == state["pid"]
        assert not state["tinyr2"] and not state["pyplot"] and "inline" in state["backend"]
    for draws in zip(*(state["draws"] for state in states)):
        assert len(set(draws)) == 3, "a seed was inherited"
    assert states[0]["threads"] == states[2]["threads"] == 1


def test_a_notebook_that_fails_hangs_or_dies_says_where(run, tmp_path):
    assert "code cell 1 (id only)" in (said := run("x = 1\n1 / 0")) and "ZeroDivisionError" in said
    note = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    assert "stopped after 5 s" in run(note + "time.sleep(600)", timeout=5)
    noted = tmp_path / "nb" / "pid"
    while noted.exists() and psutil.pid_exists(int(noted.read_text())):  # on a slow machine it may not have begun
        time.sleep(0.2)
    assert "died" in run(note + "os._exit(3)")
    path = tmp_path / "nb" / "one.ipynb"
    path.write_text("no notebook")
    env = run_notebooks.environment(None)
    code, said = forked.execute(path, tmp_path / "copy.ipynb", {}, env, run_notebooks.TIMEOUT)
    assert code == 1 and "JSON" in said
    assert run("print(1)") == ""  # the server goes on
