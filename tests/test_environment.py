"""Progress, the cache folder and the place of figures, in surroundings that are not the usual ones."""
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from pathlib import Path

import forked
import pytest
import run_notebooks
from notebooks import write

from tinyr2 import environment
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
