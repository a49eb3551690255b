"""Rows that are broken in every way we could think of, and a batch that has to score like its rows."""
import json
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tinyr2.tasks import tiny
from tinyr2.data import DataCollatorForOPD, OPDDataset, encode_completion, encode_prompt, read_tasks
from tinyr2.environment import load_tokenizer
from tinyr2.dataset import MAX_LINE_BYTES
from tinyr2.tasks.tiny import tiny_tokenizer, tiny_world

ROOT = Path(__file__).resolve().parents[1]
TASK = {"task_id": "a/1", "prompt": "Write f.", "entry_point": "f", "reference": None, "tags": [],
        "tests": [{"call": "f(1)", "returns": "2"}]}
RECORD = {"prompt": "Write g.", "teacher_responses": ["def g(): ...\n", "g = 1\n"], "rewards": [0.5, 0]}
ALWAYS = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
GOOD = [json.dumps(TASK).encode(), json.dumps(RECORD).encode()]


def with_(row: dict, **changes) -> bytes:
    return json.dumps(row | changes).encode()


def without(row: dict, field: str) -> bytes:
    return json.dumps({key: value for key, value in row.items() if key != field}).encode()


def raw(row: dict, old: str, new: str | bytes) -> bytes:
    """The row's text with one piece replaced, to write what json.dumps would not."""
    text, piece = json.dumps(row).encode(), old.encode()
    assert text.count(piece) == 1
    return text.replace(piece, new if isinstance(new, bytes) else new.encode())


TEST = TASK["tests"][0]
BAD_LINES = {  # the line, and what its message must say beside FILE:LINE
    "truncated JSON": (GOOD[0][:50], "not JSON"),
    "nothing but a brace": (b"{", "not JSON"),
    "two objects in a line": (GOOD[0] + b" " + GOOD[1], "Extra data"),
    "single quotes": (GOOD[0].replace(b'"', b"'"), "not JSON"),
    "trailing comma": (GOOD[0][:-1] + b",}", "not JSON"),
    "empty line": (b"", "empty line"),
    "blank line": (b" \t", "empty line"),
    "list instead of object": (b'["a", "b"]', "field `(row)`: expected a JSON object"),
    "number instead of object": (b"7", "field `(row)`: expected a JSON object"),
    "null instead of object": (b"null", "field `(row)`: expected a JSON object"),
    "a line of 10 MB": (with_(RECORD, prompt="x" * 10_000_000), "bytes in one line"),
    "BOM in the middle of the file": (b"\xef\xbb\xbf" + GOOD[0], "BOM"),
    "invalid UTF-8": (raw(TASK, "Write f.", b"caf\xe9"), "is not UTF-8"),
    "UTF-16": (GOOD[0].decode().encode("utf-16-le"), "not JSON"),
    "NUL byte": (raw(TASK, "Write f.", "a\0b"), "control character"),
    "NUL as an escape": (with_(TASK, prompt="a\0b"), "field `prompt`: expected text without NUL"),
    "lone surrogate": (raw(TASK, "Write f.", "a\\ud800b"), "field `prompt`: expected text without NUL and lone surr"),
    "lone surrogate in a reply": (with_(RECORD, teacher_responses=["x", "\udc80"]), "field `teacher_responses[1]`"),
    "duplicate key": (raw(TASK, '"prompt"', '"prompt": "other", "prompt"'), "field `prompt` occurs twice"),
    "duplicate key inside": (raw(TASK, '"call"', '"call": "f(0)", "call"'), "field `call` occurs twice"),
    "deeply nested JSON": (raw(TASK, '"tags": []', '"tags": ' + "[" * 50_000 + "]" * 50_000), "recursion"),
    "nested to the parser's limit": (raw(TASK, '"tags": []', '"tags": [' + "[" * 800 + "]" * 800 + "]"), "`tags[0]`"),
    "an integer of 5,000 digits": (raw(RECORD, "0.5", "1" + "0" * 5000), "digits"),
    "an integer of 400 digits": (raw(RECORD, "0.5", "1" + "0" * 400), "field `rewards[0]`: expected a finite"),
    "NaN": (raw(RECORD, "0.5", "NaN"), "NaN is not JSON"),
    "infinity": (raw(RECORD, "0.5", "-Infinity"), "Infinity is not JSON"),
    "infinity by overflow": (raw(RECORD, "0.5", "1e999"), "field `rewards[0]`: expected a finite number, got inf"),
    "too large for float32": (raw(RECORD, "0.5", "1e39"), "field `rewards[0]`"),
    "bool reward": (with_(RECORD, rewards=[0.5, True]), "field `rewards[1]`: expected a finite number, got True"),
    "string reward": (with_(RECORD, rewards=["0.5", 1]), "field `rewards[0]`: expected a finite number, got '0.5'"),
    "null reward": (with_(RECORD, rewards=[0.5, None]), "field `rewards[1]`: expected a finite number, got None"),
    "nested reward": (with_(RECORD, rewards=[[0.5], 1]), "field `rewards[0]`"),
    "rewards shorter than replies": (with_(RECORD, rewards=[0.5]), "field `rewards`: expected 2 numbers"),
    "rewards longer than replies": (with_(RECORD, rewards=[0.5, 1, 1]), "field `rewards`: expected 2 numbers"),
    "one reward, no list": (with_(RECORD, rewards=0.5), "field `rewards`: expected a list"),
    "rewards missing": (without(RECORD, "rewards"), "field `rewards`: expected a value"),
    "replies missing": (without(RECORD, "teacher_responses"), "field `teacher_responses`: expected a value"),
    "no replies": (with_(RECORD, teacher_responses=[], rewards=[]), "field `teacher_responses`: expected a non-empty"),
    "one reply, no list": (with_(RECORD, teacher_responses="g"), "field `teacher_responses`"),
    "empty reply": (with_(RECORD, teacher_responses=["g", ""]), "field `teacher_responses[1]`: expected a non-empty"),
    "blank reply": (with_(RECORD, teacher_responses=[" \n", "g"]), "field `teacher_responses[0]`"),
    "null reply": (with_(RECORD, teacher_responses=[None, "g"]), "field `teacher_responses[0]`"),
    "empty prompt": (with_(TASK, prompt=""), "field `prompt`: expected a non-empty string"),
    "blank prompt": (with_(RECORD, prompt=" \n"), "field `prompt`: expected a non-empty string"),
    "null prompt": (with_(TASK, prompt=None), "field `prompt`: expected a non-empty string, got None"),
    "number as prompt": (with_(TASK, prompt=3), "field `prompt`: expected a non-empty string, got 3"),
    "chat messages as prompt": (with_(TASK, prompt=[{"role": "user", "content": "x"}]), "field `prompt`"),
    "nested nulls": (with_(TASK, tests=[{"call": None, "returns": {"a": [None]}}]), "field `tests[0].call`"),
    "renamed field": (raw(TASK, '"prompt"', '"promt"'), "field `promt`: expected one of"),
    "unknown field": (with_(RECORD, hours=3), "field `hours`: expected one of"),
    "singular field": (with_(RECORD, reward=1.0), "did you mean rewards?"),
    "missing field": (without(TASK, "tests"), "field `tests`: expected a value"),
    "no tests": (with_(TASK, tests=[]), "field `tests`: expected a non-empty list"),
    "a test that is text": (with_(TASK, tests=["assert f(1)"]), "field `tests[0]`"),
    "a test with a typo": (with_(TASK, tests=[{"call": "f(1)", "return": "2"}]), "field `tests[0]`"),
    "a call that is no Python": (with_(TASK, tests=[TEST, TEST | {"call": "f("}]), "field `tests[1].call`"),
    "a call nested too deep": (with_(TASK, tests=[TEST | {"call": "-" * 90_000 + "1"}]), "field `tests[0].call`"),
    "a result that is no literal": (with_(TASK, tests=[TEST | {"returns": "1 + x"}]), "field `tests[0].returns`"),
    "a result of another type": (with_(TASK, tests=[TEST | {"returns": 2}]), "field `tests[0].returns`"),
    "entry point that is no name": (with_(TASK, entry_point="f()"), "field `entry_point`: expected a Python name"),
    "tags that are no list": (with_(TASK, tags="easy"), "field `tags`: expected a list"),
    "task_id twice": (with_(TASK, prompt="Write h."), "field `task_id`: expected a value of its own, got 'a/1'"),
    "prompt twice": (with_(RECORD, rewards=[1, 1]), "field `prompt`: expected a value of its own, got 'Write g.'"),
}
UNFINISHED = {"half last line": GOOD[0][:-9], "half a character": raw(TASK, "Write f.", b"caf\xc3")[:35]}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_bad_line(kind, ending, tmp_path):
    """Between good lines: refused with its place, or set aside whole while the good rows stay."""
    bad, message = BAD_LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ending.join([*GOOD, bad, with_(TASK, task_id="a/2"), b""]))
    with pytest.raises(ValueError) as caught:
        OPDDataset(path)
    assert str(caught.value).startswith(f"{path}:3: ") and message in str(caught.value)
    assert str(caught.value).isascii() and len(str(caught.value)) < 800
    with pytest.warns(UserWarning, match="1 rows refused"):
        dataset = OPDDataset(path, on_bad_row="skip")
    assert list(dataset) == [TASK, RECORD, TASK | {"task_id": "a/2"}] and dataset.rejected == 1
    [reject] = map(json.loads, dataset.rejects.read_text().splitlines())
    assert (reject["where"], reject["error"]) == (f"{path}:3", str(caught.value))
    assert reject["bytes"] == len(bad + ending)
    assert reject["text"].encode("utf-8", "surrogateescape") == (bad + ending)[:MAX_LINE_BYTES + 1]


def test_there_are_25_kinds():
    assert len(BAD_LINES) + len(UNFINISHED) >= 25


@pytest.mark.parametrize("kind", UNFINISHED)
def test_unfinished_last_line(kind, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*GOOD, UNFINISHED[kind]]))
    with pytest.raises(ValueError, match="rows.jsonl:3: .*(last line is cut off|not UTF-8)"):
        OPDDataset(path)
    with pytest.warns(UserWarning):
        assert len(OPDDataset(path, on_bad_row="skip")) == 2


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize(("name", "content", "error", "message"), [
    ("missing.jsonl", None, FileNotFoundError, "there is none"),
    ("", None, IsADirectoryError, "got a folder"),
    ("empty.jsonl", b"", ValueError, "the file is empty"),
    ("bom.jsonl", b"\xef\xbb\xbf" + GOOD[0], ValueError, ":1: the file starts with a byte order mark"),
    ("utf16.jsonl", GOOD[0].decode().encode("utf-16"), ValueError, "byte order mark"),
])
def test_bad_file(name, content, error, message, mode, tmp_path):
    """Faults of a whole file stop in both modes, and leave nothing behind."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        OPDDataset(path, on_bad_row=mode, rejects=tmp_path / "rejects.jsonl")
    assert set(tmp_path.iterdir()) == before


def test_no_good_row_raises_in_both_modes_and_keeps_the_rejects(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n\n{}\n")
    with pytest.raises(ValueError, match="rows.jsonl:1: empty line"):
        OPDDataset(path)
    with pytest.raises(ValueError, match="at least one good row, got none; 3 were refused"), pytest.warns(UserWarning):
        OPDDataset(path, on_bad_row="skip", rejects=tmp_path / "r.jsonl")
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3


def test_good_file_in_skip_mode_warns_of_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(GOOD))  # the last line needs no end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = OPDDataset(path, on_bad_row="skip")
    assert (dataset.rejected, dataset.rejects.read_text()) == (0, "")


@pytest.mark.parametrize("options", [{"on_bad_row": "ignore"}, {"on_bad_row": "skip", "rejects": "rows.jsonl"},
                                     {"on_bad_row": "skip", "rejects": "no/such/folder/x"}])
def test_bad_options(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(GOOD[0])
    with pytest.raises(ValueError, match="expected"):
        OPDDataset("rows.jsonl", **options)
    assert Path("rows.jsonl").read_bytes() == GOOD[0]


def test_extra_fields_are_kept_when_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(with_(TASK, hours=3))
    assert OPDDataset(path, extra_fields=["hours"])[0]["hours"] == 3
    assert read_tasks(path, extra_fields=None)[0]["hours"] == 3
    with pytest.raises(ValueError, match="rows.jsonl:1: field `hours`"):
        read_tasks(path)


@settings(max_examples=40, **ALWAYS)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_crash(tmp_path_factory, data):
    """Whatever a line holds, what comes is a ValueError with the place, and skipping loses no byte."""
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(GOOD[0] + b"\n" + data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = OPDDataset(path, on_bad_row="skip")
    kept = "".join(json.loads(text)["text"] for text in dataset.rejects.read_text().splitlines())
    assert list(dataset) == [TASK] and kept.encode("utf-8", "surrogateescape") == data


def test_rows_by_index(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [TASK | {"task_id": f"é/{i}"} for i in range(50)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), newline="")
    dataset = OPDDataset(path)
    assert [dataset[i] for i in range(-50, 50)] == rows * 2 and list(dataset) == rows
    for index in (50, -51):
        with pytest.raises(IndexError):
            dataset[index]
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=7, num_workers=workers, collate_fn=list)
        assert [row for batch in loader for row in batch] == rows
    assert list(pickle.loads(pickle.dumps(dataset))) == rows
    path.write_text(json.dumps(TASK))
    with pytest.raises(ValueError, match="has changed since its rows were checked"):
        dataset[0]


def test_memory_grows_by_the_index_only(tmp_path):
    """Four times the rows: less than 100 bytes more for each, though a row has 2,000."""
    peaks = []
    for count in (500, 2000):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(with_(RECORD, prompt=f"{i} " + "x" * 2000) + b"\n" for i in range(count)))
        tracemalloc.start()
        assert len(list(map(len, OPDDataset(path)))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 100 * 1500


def test_big_file_tool():
    command = [sys.executable, ROOT / "tests" / "tools" / "big_file.py", "--gigabytes", "0.005"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert found["refused"] == 3 and found["rows"] > 3000 and found["peak_mb"] < 200


# --- the collator -------------------------------------------------------------------------------------------

TEXT = st.text(alphabet="abf(xs):=+ 12\n\té→", max_size=30)
FEATURES = st.lists(st.one_of(
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.integers(1, 3).flatmap(lambda n: st.fixed_dictionaries({
        "prompt": TEXT.map(lambda text: text + "p"),
        "teacher_responses": st.lists(TEXT.map(lambda text: text + "r"), min_size=n, max_size=n),
        "rewards": st.lists(st.floats(-5, 5, width=32), min_size=n, max_size=n)}))), min_size=1, max_size=4)


def rows_of(features: list[dict]) -> list[tuple[str, str, int, float | None]]:
    """(prompt, reply, group, reward) of each row, in order."""
    return [(feature["prompt"], text, group, reward) for group, feature in enumerate(features)
            for text, reward in zip(feature.get("teacher_responses", [feature.get("completion")]),
                                    feature.get("rewards", [None]), strict=True)]


@pytest.fixture(scope="module", params=["tiny student", "random llama with smollm2's tokenizer"])
def scorer(request):
    """A model and its tokenizer: one trained, one with random weights, a chat template and pad = EOS."""
    if request.param == "tiny student":
        world = tiny_world()
        return world.student, world.tokenizer
    tokenizer = load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "initializer_range": 0.1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval(), tokenizer


def log_probs(model, ids, mask=None) -> torch.Tensor:
    """log p of each token but the first, [N, T - 1]; positions are the library's own without a mask."""
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


@settings(max_examples=25, **ALWAYS)
@given(features=FEATURES)
def test_batch_scores_like_its_rows(scorer, features):
    """Both layouts give each reply token the log-probability that the row has alone, without padding.

    To 1e-5 in float32; a log-probability of -30 has a step of 2e-6 there, hence 1e-6 of its size besides.
    """
    model, tokenizer = scorer
    batch = DataCollatorForOPD(tokenizer)(features)
    right = log_probs(model, batch["input_ids"], batch["attention_mask"])
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    both = log_probs(model, ids, mask)[:, batch["prompt_ids"].shape[1] - 1:]
    for row, (prompt, reply, _, _) in enumerate(rows_of(features)):
        start, end = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, reply)
        alone = log_probs(model, torch.tensor([start + end]))[0, len(start) - 1:]
        kept = batch["labels"][row, 1:] != -100
        torch.testing.assert_close(right[row][kept], alone, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(both[row][batch["completion_mask"][row] == 1], alone, atol=1e-5, rtol=1e-6)


@settings(max_examples=40, **ALWAYS)
@given(features=FEATURES)
def test_every_token_once(scorer, features):
    """Taken apart by its masks, the batch is exactly the rows, in order; all else is padding."""
    _, tokenizer = scorer
    batch, rows = DataCollatorForOPD(tokenizer)(features), rows_of(features)
    assert batch["group"].tolist() == [group for _, _, group, _ in rows]
    for ids, name in (("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask"),
                      ("input_ids", "attention_mask")):
        assert batch[name].shape == batch[ids].shape and batch[name].dtype == batch[ids].dtype == torch.int64
        assert (batch[ids][batch[name] == 0] == tokenizer.pad_token_id).all()
    assert not (batch["prompt_mask"].diff(dim=1) < 0).any()  # pads, then the prompt
    assert not (batch["completion_mask"].diff(dim=1) > 0).any() and not (batch["attention_mask"].diff(dim=1) > 0).any()
    for row, (prompt, reply, _, reward) in enumerate(rows):
        start, end = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, reply)
        assert batch["prompt_ids"][row][batch["prompt_mask"][row] == 1].tolist() == start
        assert batch["completion_ids"][row][batch["completion_mask"][row] == 1].tolist() == end
        width = batch["input_ids"].shape[1] - len(start + end)
        assert batch["input_ids"][row].tolist() == start + end + [tokenizer.pad_token_id] * width
        assert batch["labels"][row].tolist() == [-100] * len(start) + end + [-100] * width
        assert batch["rewards"][row].isnan() if reward is None else batch["rewards"][row] == reward


@settings(max_examples=60, **ALWAYS)
@given(reply=TEXT)
def test_one_eos_and_no_bos(reply):
    """A tokenizer that adds BOS by itself: none in a row; EOS last and once, whether or not the reply spells it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    for text in (reply, reply + "<eos>"):
        ids = DataCollatorForOPD(tokenizer)([{"prompt": "p", "completion": text}])["input_ids"][0].tolist()
        assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id), ids[-1]) == (0, 1, 0)


def test_rows_without_any_reply():
    batch = DataCollatorForOPD(tiny_tokenizer())([TASK, {"prompt": "q"}])
    assert batch["completion_ids"].shape == (2, 0) and batch["completion_ids"].dtype == torch.int64
    assert (batch["labels"] == -100).all() and batch["rewards"].isnan().all()


@pytest.mark.parametrize(("feature", "message"), [
    ({}, "`prompt`: expected a string, got NoneType"),
    ({"prompt": 3}, "`prompt`: expected a string"),
    ({"prompt": "p", "completion": ["x"]}, "`completion`: expected a string, got list"),
    ({"prompt": "p", "completion": "x", "reward": float("nan")}, "`reward`: expected a finite number"),
    ({"prompt": "p", "completion": "x", "reward": True}, "`reward`: expected a finite number"),
    ({"prompt": "a <eos> b"}, "`prompt`: spells the special token <eos>"),
    ({"prompt": "p", "completion": "x <pad> y"}, "`completion`: spells the special token <pad>"),
    ({"prompt": "p", "completion": "x <eos> y"}, "`completion`: spells the special token <eos>"),
    ({"prompt": "x" * 600}, "`prompt`: expected at most 512 tokens"),
    ({"prompt": "p", "completion": "x" * 600}, "`completion`: expected at most 512 tokens"),
    (RECORD | {"rewards": [1.0]}, "`rewards`: expected 2 numbers"),
])
def test_bad_features(feature, message):
    with pytest.raises(ValueError, match=f"feature 1: field {message}"):
        DataCollatorForOPD(tiny_tokenizer())([{"prompt": "p"}, feature])


def test_budget_is_checked_against_the_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 100
    with pytest.raises(ValueError, match=r"expected at most 100, got 64 \+ 64 = 128"):
        DataCollatorForOPD(tokenizer, 64, 64)
    assert DataCollatorForOPD(tokenizer, 64, 36) and DataCollatorForOPD(tokenizer, 64, 64, max_length=128)


def test_over_budget_rows_are_dropped_and_counted():
    collator = DataCollatorForOPD(tiny_tokenizer(), max_completion_length=8, overflow="drop")
    batch = collator([{"prompt": "p", "completion": "x" * n} for n in (1, 20, 2)])
    assert (batch["group"].tolist(), collator.dropped) == ([0, 2], 1)
    with pytest.raises(ValueError, match="at least one row within budget"):
        collator([{"prompt": "p", "completion": "x" * 20}])


# --- the tiny world's cache ---------------------------------------------------------------------------------

def key(**changes) -> str:
    tokenizer = tiny_tokenizer()
    plans = tiny._plans(tokenizer, **{"seed": 0, "teacher_steps": 120, "student_steps": 400} | changes)
    return tiny._key(tokenizer, plans, changes.get("seed", 0))


def test_a_world_is_made_again_only_when_its_training_changes(monkeypatch):
    before = key()
    assert before == key() and len({before, key(seed=1), key(teacher_steps=121), key(student_steps=1)}) == 4
    monkeypatch.setattr(tiny, "confusions", lambda seed=0: {"sum": "first"})
    assert key() != before
    monkeypatch.undo()
    monkeypatch.setattr(tiny, "DataCollatorForOPD", lambda tokenizer: lambda rows: {
        name: torch.zeros(1, 1) for name in ("input_ids", "labels")})
    assert key() != before


def test_comments_and_docstrings_do_not_change_the_code_that_is_hashed(tmp_path, monkeypatch):
    bodies = ('"""One."""\n    return x + 1', '"""Two."""\n    # a remark\n    return (x + 1)',
              '"""One."""\n    return x')
    dumps = []
    for number, body in enumerate(bodies):
        (tmp_path / f"cell_{number}.py").write_text(f"def f(x):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        dumps.append(tiny._plain_code(__import__(f"cell_{number}").f))
    assert dumps[0] == dumps[1] != dumps[2]
