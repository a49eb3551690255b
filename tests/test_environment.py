"""Progress, the cache folder and the place of figures, in surroundings that are not the usual ones."""
import time

import pytest

from tinyr2 import environment
from tinyr2.environment import progress_bar


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
