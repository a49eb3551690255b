"""Intervals, tests and adapters against other implementations, enumeration, and simulated worlds of known truth."""
import gzip
import itertools
import json
import math
import sys

import numpy as np
import pytest
from scipy import stats

from tinyr2.tasks.tiny import tiny_world
from tinyr2.evaluation import Evaluation, branch_outcomes, by_tag, compare, evaluate, measures
from tinyr2.tasks.formats import read_any_tasks
from tinyr2.intervals import bootstrap_ci, detectable, difference_ci, mcnemar, rate_ci, tasks_needed


# --- intervals ----------------------------------------------------------------------------------------------

def covered(interval, make, truth: float, worlds: int = 600) -> float:
    bounds = [interval(make(np.random.default_rng([seed, 77]))) for seed in range(worlds)]
    return np.mean([low <= truth <= high for low, high in bounds])


def rates(tasks: int, samples: int, rate: float):
    """Per-task pass rates with Beta-distributed difficulty; a generator of its own, unlike the notebook's."""
    return lambda rng: (rng.random((tasks, samples)) < rng.beta(2 * rate, 2 - 2 * rate, (tasks, 1))).mean(1)


def gains(tasks: int, samples: int, gain: float):
    def make(rng):
        low = rng.uniform(0, 1 - gain, (tasks, 1))
        before, after = (rng.random((tasks, samples)) < p for p in (low, low + gain))
        return after.mean(1) - before.mean(1)
    return make


@pytest.mark.parametrize("interval, make, truth", [
    (rate_ci, rates(60, 8, 0.23), 0.23), (rate_ci, rates(60, 1, 0.3), 0.3), (rate_ci, rates(164, 1, 0.05), 0.05),
    (difference_ci, gains(60, 8, 0.1), 0.1), (difference_ci, gains(60, 1, 0.1), 0.1),
    (difference_ci, gains(164, 1, 0.0), 0.0)])
def test_95_percent_intervals_cover(interval, make, truth):
    noise = 2 * math.sqrt(0.05 * 0.95 / 600)
    assert 0.93 - noise < covered(interval, make, truth) < 0.97 + noise


def test_one_value_too_few_would_show():
    """The same simulation turns red for an interval that is a fifth too narrow."""
    def narrow(values):
        low, high = rate_ci(values)
        return 0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high
    assert covered(narrow, rates(60, 8, 0.23), 0.23) < 0.93 - 2 * math.sqrt(0.05 * 0.95 / 600)


def test_bootstrap_against_scipy():
    values = np.random.default_rng(0).beta(0.5, 1.5, 80)
    scipys = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1))
    widened = math.sqrt(80 / 79) * stats.t.ppf(0.975, 79) / stats.norm.ppf(0.975)  # ours is wider by this
    low, high = bootstrap_ci(values)
    wanted = scipys.confidence_interval
    assert (high - low) / (wanted.high - wanted.low) == pytest.approx(widened, rel=0.02)
    assert (low + high) / 2 == pytest.approx((wanted.low + wanted.high) / 2, abs=2e-3)


def test_degenerate_values_keep_an_interval():
    assert rate_ci([0, 0, 0, 0])[1] > 0.4 and rate_ci([1] * 4)[0] < 0.6
    low, high = difference_ci([0.0] * 30)
    assert low < 0 < high
    assert bootstrap_ci([0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="one value per task"):
        rate_ci([])


# --- tests of a difference ----------------------------------------------------------------------------------

def test_mcnemar_by_enumeration():
    for n in range(1, 9):
        outcomes = [sum(coins) for coins in itertools.product([0, 1], repeat=n)]
        for better in range(n + 1):
            extreme = sum(abs(2 * k - n) >= abs(2 * better - n) for k in outcomes)
            assert mcnemar(better, n - better) == pytest.approx(extreme / 2**n)
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(ValueError, match="counts"):
        mcnemar(-1, 3)


def test_mcnemar_is_twice_the_binomial_tail():
    """Twice the binomial tail, the textbook form of the exact test."""
    assert mcnemar(6, 16) == pytest.approx(2 * stats.binom.cdf(6, 22, 0.5))
    assert mcnemar(59, 6) == pytest.approx(2 * stats.binom.cdf(6, 65, 0.5))


def evaluation(passes: list[list[bool]]) -> Evaluation:
    scores = [[float(p) for p in row] for row in passes]
    return Evaluation([str(i) for i in range(len(passes))], passes, scores, [["x"] * len(row) for row in passes])


def test_compare_is_paired_and_names_its_power():
    rng = np.random.default_rng(0)
    before = rng.random((50, 1)) < 0.5
    after = before | (rng.random((50, 1)) < 0.3)
    change = compare(evaluation(before.tolist()), evaluation(after.tolist()))
    gained = int((after & ~before).sum())
    assert (change["better"], change["worse"], change["n"]) == (gained, 0, 50)
    assert change["p"] == pytest.approx(2 * 0.5**gained)
    up, down = (gained + 0.5) / 52, 0.5 / 52
    assert change["detectable"] == pytest.approx(2.8016 * math.sqrt((up + down - (up - down) ** 2) / 52), rel=1e-3)
    assert change["ci95"][0] < change["difference"] < change["ci95"][1]
    swapped = compare(evaluation(after.tolist()), evaluation(before.tolist()))
    assert swapped["difference"] == -change["difference"] and swapped["p"] == change["p"]


def test_a_detectable_difference_is_detected_four_times_in_five():
    make = gains(200, 4, 0.05)
    typical = float(np.mean([detectable(make(np.random.default_rng(seed))) for seed in range(200)]))
    hits = [difference_ci(gains(200, 4, typical)(np.random.default_rng([seed, 5])))[0] > 0 for seed in range(400)]
    assert 0.73 < np.mean(hits) < 0.87


def test_sample_size_of_the_articles_last_claim():
    assert tasks_needed(0.017, math.sqrt(2 * 0.8 * 0.2)) == pytest.approx(8700, rel=0.01)
    assert tasks_needed(0.034, 1.0) == pytest.approx(tasks_needed(0.017, 1.0) / 4, rel=1e-3)
    with pytest.raises(ValueError, match="other than 0"):
        tasks_needed(0.0, 1.0)


# --- evaluating ---------------------------------------------------------------------------------------------

def test_evaluate_is_deterministic_and_cached_by_what_decides(tmp_path, monkeypatch):
    world = tiny_world()
    tasks, options = world.tasks["test"][:3], {"num_samples": 2, "temperature": 1.0, "max_completion_length": 40}
    results = []
    for folder in ("a", "b"):
        monkeypatch.setenv("TINYR2_CACHE", str(tmp_path / folder))
        results.append(evaluate(world.student, world.tokenizer, tasks, **options, progress=False))
    assert results[0] == results[1]
    stored = tmp_path / "b" / "evaluations"
    (kept,) = stored.iterdir()
    changed = json.loads(kept.read_text()) | {"unscored": 7}
    kept.write_text(json.dumps(changed))  # the next call must read it, not sample again
    assert evaluate(world.student, world.tokenizer, tasks, **options, progress=False).unscored == 7
    others = ({"seed": 1}, {"temperature": 0.9}, {"num_samples": 3})
    for other in others:
        assert evaluate(world.student, world.tokenizer, tasks, **options | other, progress=False).unscored == 0
    assert evaluate(world.teacher, world.tokenizer, tasks, **options, progress=False).unscored == 0
    assert evaluate(world.student, world.tokenizer, tasks[:2], **options, progress=False).unscored == 0
    assert len(list(stored.iterdir())) == 1 + len(others) + 2


def traced_outcomes(source: str, calls: list[str]) -> int:
    """Outcomes of block `if`s reached, by line tracing: the body's first line is true, any other line false."""
    import ast
    ifs = {node.lineno: node.body[0].lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)}
    seen, last = set(), [None]

    def trace(frame, event, arg):
        if frame.f_code.co_filename != "traced":
            return None
        if last[0] in ifs and event in ("line", "return"):
            seen.add((last[0], event == "line" and frame.f_lineno == ifs[last[0]]))
        last[0] = frame.f_lineno if event == "line" else None
        return trace

    space: dict = {}
    exec(compile(source, "traced", "exec"), space)
    sys.settrace(trace)
    try:
        for call in calls:
            eval(call, space)
    finally:
        sys.settrace(None)
    return len(seen)


def test_branch_coverage_against_line_tracing():
    source = ("def f(x):\n    if x > 3:\n        x -= 3\n    if x < 0:\n        return 'low'\n    elif x == 1:\n"
              "        return 'one'\n    if x % 2:\n        return 'odd'\n")
    suites = [["f(0)"], ["f(4)"], ["f(-1)", "f(1)"], ["f(9)", "f(3)", "f(-2)"], [f"f({n})" for n in range(-2, 9)]]
    found = branch_outcomes([(source, calls) for calls in suites])
    assert [(seen, total) for _, seen, total in found] == [(traced_outcomes(source, calls), 8) for calls in suites]
    assert found[-1][1] == 8


def test_hostile_programs_leave_no_number():
    programs = ["while 1 < 2:\n    pass\n", "import os\nos._exit(0)\n", "raise SystemExit\n", "def f(:\n"]
    assert [row[0] for row in branch_outcomes([(program, ["f(1)"]) for program in programs])][-1] is False
    assert all(seen <= total for _, seen, total in branch_outcomes([(program, ["f(1)"]) for program in programs]))


def test_measures_by_tag():
    table = [{"call": "f(1)", "returns": "1"}]
    tasks = [{"task_id": str(i), "tests": table, "tags": tags, "entry_point": "f"}
             for i, tags in enumerate((["a"], ["a", "b"]))]
    texts = [["def f(x):\n    return 1 if x else 2\n", "def f("], ["def f(x):\n    return x\n"] * 2]
    found = measures(tasks, Evaluation(["0", "1"], [[True, False], [True] * 2], [[1.0, 0.0], [1.0] * 2], texts))
    assert found["parses"].tolist() == [[1, 0], [1, 1]]
    assert by_tag(tasks, found["parses"]) == {"all": (0.75, 2), "a": (0.75, 2), "b": (1.0, 1)}
    assert by_tag(tasks, found["branch coverage"]) == {"all": (0.5, 1), "a": (0.5, 1)}
    assert by_tag(tasks, found["growth"]) == {}


# --- other people's task files ------------------------------------------------------------------------------

HUMANEVAL = {"task_id": "X/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
             "test": "def check(candidate):\n    assert candidate(1) == 1\n"}
PLAIN = {"prompt": "Write `f`.", "tests": ["assert f(1) == 1", "assert f('a') == 'a', 'text'"]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_formats_become_tasks(tmp_path):
    mbpp = {"task_id": 601, "prompt": "Double it.", "code": "def g(x):\n    return 2 * x\n",
            "test_list": ["assert g(2) == 4"]}
    plain, human, other = read_any_tasks(write(tmp_path / "t.jsonl", PLAIN, HUMANEVAL, mbpp))
    assert plain["tests"][1] == {"call": "f('a')", "returns": "'a'"} and plain["entry_point"] == "f"
    assert human["check"].endswith(HUMANEVAL["test"]) and "tests" not in human
    assert (other["task_id"], other["reference"]) == ("601", mbpp["code"])
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    assert [t["prompt"] for t in read_any_tasks(packed)] == [t["prompt"] for t in (plain, human, other)]


@pytest.mark.parametrize("row, words", [
    ({"question": "?"}, "`prompt` with `tests`"),
    ([1, 2], "`prompt` with `tests`"),
    (PLAIN | {"tests": []}, "field `tests`: expected a non-empty list"),
    (PLAIN | {"tests": ["assert f(1)"]}, r"field `tests\[0\]`: expected `assert f"),
    (PLAIN | {"tests": ["assert f(1) == g(1)"]}, r"literal"),
    (PLAIN | {"tests": [{"call": "f(1)"}]}, r"tests\[0\]"),
    (PLAIN | {"tests": ["assert f(1) == 1", "assert g(1) == 1"]}, "field `entry_point`"),
    (PLAIN | {"prompt": [{"role": "system", "content": "x"}]}, "one user message"),
    (PLAIN | {"prompt": " "}, "field `prompt`"),
    (HUMANEVAL | {"entry_point": None}, "field `entry_point`: expected text"),
    (HUMANEVAL | {"test": "assert f(1) == 1"}, r"check\(candidate\)"),
    (HUMANEVAL | {"test": "def check(:"}, "expected Python source"),
    ({k: v for k, v in HUMANEVAL.items() if k != "test"} | {"base_input": [[]]}, "field `canonical_solution`"),
])
def test_bad_rows_are_named(tmp_path, row, words):
    with pytest.raises(ValueError, match=words) as error:
        read_any_tasks(write(tmp_path / "bad.jsonl", PLAIN, row))
    assert "bad.jsonl:2: " in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="that of .*:1 already"):
        read_any_tasks(write(tmp_path / "twice.jsonl", HUMANEVAL, HUMANEVAL))
    with pytest.raises(FileNotFoundError, match="train, validation, test or a file"):
        read_any_tasks(tmp_path / "absent.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(ValueError, match="expected gzip data"):
        read_any_tasks(tmp_path / "cut.jsonl.gz")
