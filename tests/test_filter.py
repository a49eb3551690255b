"""The filter's parts against independent oracles, and the command killed at random."""
import ast
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyr2.corpus.files import Journal, clean, overlap_index, read_source, remember
from tinyr2.filter import FilterConfig, cluster, filter_cli, filter_corpus, quality, rewrites
from tinyr2.corpus.rater import EndpointLLM, expected_rating, rating_tokens
from tinyr2.corpus.rewrites import Codemods, ast_change, ast_labels, check_rewrites, public_names, touched

FLAT = {"max_examples": 60, "deadline": None, "database": None, "derandomize": True}
STDLIB = Path(ast.__file__).parent


def program(number: int) -> str:
    """A file that is like no other: 12 functions with names of its own."""
    rng = random.Random(number)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(40)]
    return "\n\n".join(f"def {w}({v}):\n    return {v} * {rng.randrange(9)} + {u}"
                       for u, v, w in zip(words, words[13:], words[26:]))


# --- AST change ----------------------------------------------------------------------------------------------

names = st.sampled_from("abc")
expressions = st.recursive(st.one_of(names, st.integers(0, 2).map(str), st.sampled_from(["f(a)(b)", "f(a, b)", "'a'"])),
                           lambda e: st.builds("({} {} {})".format, e, st.sampled_from(["+", "or", "<"]), e),
                           max_leaves=3)
lines = st.lists(st.one_of(st.builds("{} = {}".format, names, expressions), expressions), min_size=1, max_size=3)
programs = st.builds(lambda doc, head, inside, after: "\n".join(
    [f"def f({head}):", *([f'    """{doc}"""'] if doc else []), f"    if {head}:", *(f"        {x}" for x in inside),
     *(f"    {x}" for x in after)]), st.sampled_from(["", "Say a.", "Say  a.", "Say a b."]), names, lines, lines)


def longest_common(a: list, b: list) -> int:
    """The textbook table."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous, row = row, [0]
        for j, y in enumerate(b):
            row.append(previous[j] + 1 if x == y else max(previous[j + 1], row[j]))
    return row[-1]


@settings(**FLAT)
@given(programs, programs)
def test_change_is_the_textbook_lcs_and_symmetric(a, b):
    one, two = ast_labels(a), ast_labels(b)
    expected = 1 - 2 * longest_common(one, two) / (len(one) + len(two))
    assert ast_change(a, b) == pytest.approx(expected, abs=1e-12)
    for scope in ("file", "touched"):
        assert 0 <= ast_change(a, b, scope=scope) <= 1
        assert ast_change(a, b, scope=scope) == ast_change(b, a, scope=scope)
        assert ast_change(a, a, scope=scope) == 0


@settings(**FLAT)
@given(programs, programs)
def test_labels_determine_the_tree(a, b):
    trees = [ast.dump(ast.parse(source.replace("Say  a", "Say a"))) for source in (a, b)]
    assert (ast_change(a, b) == 0) == (trees[0] == trees[1])


@settings(**FLAT)
@given(programs)
def test_formatting_is_no_change(a):
    printed = ast.unparse(ast.parse(a)).replace("\n", "  # note\n\n") + "\n# end"
    assert ast_change(a, printed) == ast_change(a, printed, scope="touched") == 0


def test_a_line_that_moves_into_a_block_is_a_change():
    assert ast_change("if a: b\nc", "if a:\n    b\n    c") > 0
    assert ast_change("f(a)(b)", "f(a, b)") > 0


def test_docstring_modes_and_touched_scope():
    bare, said = "def f(x):\n    return x\n", 'def f(x):\n    """One two three."""\n    return x\n'
    assert ast_change(bare, said, "ignore") == 0 < ast_change(bare, said, "node") < ast_change(bare, said, "words")
    many = "".join(f"def g{i}():\n    return {i}\n" for i in range(30))
    assert ast_change(many + bare, said + many, scope="touched") == pytest.approx(
        ast_change("", "") + 1 - 2 * len(ast_labels(bare)[1:]) / (2 * len(ast_labels(bare)[1:]) + 3))
    assert touched(many, many) == [[], []]
    for wrong in ({"docstrings": "none"}, {"scope": "all"}):
        with pytest.raises(ValueError, match="expected"):
            ast_change(bare, said, **wrong)


def test_rewrites_that_break_something_are_named():
    source = ('class A:\n    def f(self, x):\n        """\n        >>> A().f(2)\n        3\n        """\n'
              '        return x + 1\n')
    texts = {"docstring": source.replace("x + 1", "1 + x"), "wrong": source.replace("x + 1", "x - 1"),
             "torn": source + "(",
             "renamed": source.replace("f(self, x)", "f(self, x, y=0)"), "same": source + "# c", "none": ""}
    why = {row["kind"]: row["why"] for row in check_rewrites(source, texts)}
    assert why == {"docstring": "", "wrong": "doctests broken", "torn": "does not parse",
                   "renamed": "public names changed", "same": "unchanged", "none": "no answer"}
    assert public_names("class A:\n    def _f(self): ...\n    def g(self, *, k): ...\nif 1:\n    def h(): ...\n") == [
        "A", "A.g(self, k)", "h()"]


def test_codemods_keep_names_and_say_who_made_them():
    texts = [(STDLIB / f"{name}.py").read_text() for name in ("bisect", "shlex", "cmd")]
    for text, found in zip(texts, Codemods().rewrite(texts)):
        assert {"refactor", "optimize", "docstring"} == set(found)
        assert public_names(text) == public_names(found["docstring"])
    rows = [{"sha256": str(i), "text": text} for i, text in enumerate(texts)]
    for row, why in rewrites(rows, Codemods(), doctests=None):
        assert bool(row["rewrites"]) == (why == "")
        assert all(r["by"] == "codemod" and 0.15 <= r["change"] <= 0.45 for r in row["rewrites"])


# --- ratings -------------------------------------------------------------------------------------------------

@settings(**FLAT)
@given(st.integers(0, 10**6), st.integers(2, 10))
def test_expected_rating_is_the_sum_over_the_tree_of_answers(seed, scale):
    torch.manual_seed(seed)
    first, second = torch.randn(1, 14, dtype=torch.float64) * 3, torch.randn(1, 14, dtype=torch.float64) * 3
    tokens = [[r] for r in range(1, 10)] + [[1, 0]]
    p, q = np.exp(first[0].numpy()), np.exp(second[0].numpy())
    p, q = p / p.sum(), q / q.sum()
    weight = {r: p[r] for r in range(2, min(scale, 9) + 1)}
    weight[1] = p[1] * sum(q[t] for t in range(14) if t or scale < 10)
    if scale == 10:
        weight[10] = p[1] * q[0]
    expected = sum(r * w for r, w in weight.items()) / sum(weight.values())
    assert expected_rating(first, second, tokens[:scale]).item() == pytest.approx(expected, abs=1e-4)


class Letters:
    """A tokenizer of one token a character, or one that joins a space with the digit after it."""

    def __init__(self, joins: bool):
        self.joins = joins

    def encode(self, text, add_special_tokens):
        merged = text.replace(" 7", "\u0107") if self.joins else text
        return [ord(c) for c in merged]


def test_a_tokenizer_that_joins_the_number_is_refused():
    assert rating_tokens(Letters(False), "R: ", 10)[-1] == [ord("1"), ord("0")]
    with pytest.raises(ValueError, match="rating 7"):
        rating_tokens(Letters(True), "R: ", 10)


class Endpoint(BaseHTTPRequestHandler):
    """Answers as told by the server's list: a status, a text, or log-probabilities."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.times.append(time.monotonic())
        say = self.server.answers.pop(0)
        body = {"error": {"message": "busy"}}
        if not isinstance(say, int):
            text, top = say if isinstance(say, tuple) else (say, None)
            probs = top and {"content": [{"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": [
                {"token": t, "logprob": float(np.log(p)), "bytes": None} for t, p in top.items()]}]}
            choice = {"index": 0, "finish_reason": "stop", "logprobs": probs,
                      "message": {"role": "assistant", "content": text}}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.send_response(say if isinstance(say, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.times = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_endpoint_retries_spaces_its_calls_and_reads_ratings(endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    endpoint.answers = [429, 500, ("7", {"7": 0.5, "9": 0.25, "x": 0.25}), "It is a 6.5.", "no idea", "99"]
    llm = EndpointLLM(url, "m", requests_per_minute=600)
    rated = llm.rate(["x = 1"] * 4)
    assert rated == [pytest.approx((7 * 0.5 + 9 * 0.25) / 0.75, abs=1e-3), 6.5, None, None]
    spaces = np.diff(endpoint.times[3:])  # the first answer came by a retry of the client, at its own time
    assert spaces.min() > 0.08  # 600 a minute; a bound from below cannot be missed by a slow machine


def test_endpoint_gives_up_with_the_servers_error(endpoint):
    import openai

    endpoint.answers = [500] * 3
    with pytest.raises(openai.InternalServerError):
        EndpointLLM(f"http://127.0.0.1:{endpoint.server_port}/v1", "m", max_retries=1).complete(["hi"])
    assert len(endpoint.times) == 2


# --- source, journal, clean ----------------------------------------------------------------------------------

def test_files_in_odd_encodings(tmp_path):
    (tmp_path / "a.py").write_bytes("\ufeffx = 'é'\r\n".encode())
    (tmp_path / "b.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "c.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "d.py").write_bytes(b"# coding: nonsense\n")
    rows = {row["path"]: row["text"] for row in read_source(tmp_path)}
    assert rows == {"a.py": "x = 'é'\n", "b.py": "# coding: latin-1\nx = 'é'\n", "c.py": None, "d.py": None}


def test_bad_sources_name_place_and_remedy(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "x"}\n[1]\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: expected an object, got list"):
        list(read_source(tmp_path / "x.jsonl"))
    (tmp_path / "y.jsonl").write_text('{"text": "x"\n')
    with pytest.raises(ValueError, match=r"y\.jsonl:1: not JSON"):
        list(read_source(tmp_path / "y.jsonl"))
    with pytest.raises(ValueError, match="row 1: no text"):
        list(read_source([{"blob_id": "1"}]))
    with pytest.raises(FileNotFoundError, match="source"):
        filter_cli(["--source", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")])


def test_journal_cut_at_every_byte_of_its_last_line(tmp_path):
    rows = [{"sha256": hashlib.sha256(b"%d" % i).hexdigest(), "n": str(i)} for i in range(4)]
    asked = []

    def work(batch):
        asked.append(len(batch))
        return [{"m": row["n"]} for row in batch]

    journal = tmp_path / "j"
    list(remember(rows, work, Journal(journal), window=2))
    whole = journal.read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        journal.write_bytes(whole[:cut])
        asked.clear()
        found = list(remember(rows, work, Journal(journal), window=2))
        assert [r["m"] for r in found] == list("0123") and journal.read_bytes() == whole and asked == [2]
    journal.write_bytes(b"{}\n" + whole)
    with pytest.raises(ValueError, match="j:1: damaged line"):
        Journal(journal)


def test_clean_counts_each_reason():
    one = program(1)
    near = one.replace("return", "return  ", 1) + "\n# end"
    texts = {"one": one, "exact": one, "near": near, "two": program(2), "short": "x = 1\n",
             "long": one * 20, "torn": one + "(", "exam": program(3) + "\n# " + " ".join(program(9).split())}
    rows = [row | {"path": p} for p, row in zip(texts, read_source([{"text": t} for t in texts.values()]))]
    rows.append(rows[0] | {"path": "bytes", "text": None, "sha256": "0" * 64})
    why = {row["path"]: why for row, why in clean(rows, overlap_index([program(9)]), max_chars=5000)}
    assert why == {"one": "", "exact": "exact copy", "near": "near copy", "two": "", "short": "too short",
                   "long": "too long", "torn": "does not parse", "exam": "evaluation overlap", "bytes": "not text"}


def test_memory_does_not_follow_the_corpus(tmp_path):
    def peak(count):
        rows = ({"sha256": hashlib.sha256(b"%d" % i).hexdigest(), "text": str(i) * 5000} for i in range(count))
        journal = Journal(tmp_path / str(count))
        tracemalloc.start()
        assert sum(1 for _ in remember(rows, lambda batch: [{}] * len(batch), journal, window=16)) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small, large = peak(200), peak(2000)  # 1800 more texts are 30 MB
    assert large - small < 1800 * 400


# --- rounds --------------------------------------------------------------------------------------------------

class Fixed:
    window, id = 2, "fixed"

    def rate(self, texts):
        return [None if t == "none" else float(t) for t in texts]


def test_quality_by_value_by_quantile_and_by_lint():
    rows = [{"sha256": str(i), "text": t, "lint": float(i)} for i, t in enumerate(["3", "9", "none", "8.5", "5"])]
    why = [w for _, w in quality(rows, Fixed(), threshold=8.5)]
    assert why == ["low rating", "", "no rating", "", "low rating"]
    kept = [row["text"] for row, w in quality(rows, Fixed(), quantile=0.5) if not w]
    assert kept == ["9", "8.5"]
    unrated = [(row["text"], w) for row, w in quality(rows, Fixed(), quantile=0.0, lint_quantile=0.5) if w]
    assert unrated == [("3", "low lint score"), ("9", "low lint score"), ("none", "no rating")]


def test_cluster_keeps_the_best_of_each():
    rng = np.random.default_rng(0)
    rows = [{"sha256": f"{i:03}", "text": f"x = {i}", "rating": float(rng.integers(5)), "lint": 1.0} for i in range(40)]

    def embed(texts):
        return np.array([[int(t[4:]) % 3 * 10.0, rng.random()] for t in texts], dtype=np.float32)

    found = list(cluster(rows, embed, clusters=3, per_cluster=4))
    groups = {}
    for row, why in found:
        groups.setdefault(int(row["text"][4:]) % 3, []).append((row, why))
    for members in groups.values():
        assert len({row["cluster"] for row, _ in members}) == 1
        best = sorted((row["rating"], row["lint"], row["sha256"]) for row, _ in members)[-4:]
        assert sorted((row["rating"], row["lint"], row["sha256"]) for row, why in members if not why) == best
    assert list(cluster([], embed)) == []


# --- the command ---------------------------------------------------------------------------------------------

def journal_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.journal"))


def test_killed_five_times_gives_the_same_bytes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(STDLIB.glob("*.py"))[:45]:
        (source / path.name).write_bytes(path.read_bytes())
    flags = {"source": str(source), "rater": "lint", "quantile": 0.5, "clusters": 4}
    whole = filter_corpus(FilterConfig(output_dir=str(tmp_path / "whole"), **flags))
    assert whole[-1]["out"] > 0
    total, cut = journal_bytes(tmp_path / "whole"), tmp_path / "cut"
    command = [sys.executable, "-c", "from tinyr2.filter import filter_cli; filter_cli()", "--output_dir", str(cut)]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    points = sorted(random.Random(5).sample(range(5, 95), 5))
    kills = 0
    for point in points:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
        while run.poll() is None and journal_bytes(cut) < total * point / 100:
            time.sleep(0.002)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            kills += 1
        run.wait()
    assert kills == 5
    subprocess.run(command, check=True, capture_output=True)
    for name in [path.name for path in (tmp_path / "whole").iterdir() if path.name != "seconds.jsonl"]:
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    before = journal_bytes(cut), (cut / "seconds.jsonl").read_bytes()
    subprocess.run(command, check=True, capture_output=True)
    assert (journal_bytes(cut), (cut / "seconds.jsonl").read_bytes()) == before
