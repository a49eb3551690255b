"""Kill small runs at random moments until enough kills are counted; every run must end as if nobody had.

    kill_table.py [--kills 100] [--seed 1] [--record]

A run that goes on from an earlier kill may be killed again. --record stores the counts in figures/results.json.
"""
import multiprocessing
import os
import random
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from tqdm import tqdm

from tinyr2.environment import record

TESTS = Path(__file__).resolve().parents[1]


def start(context, folder: Path, seconds: float | None) -> int:
    """Train or go on training in `folder`, killed after `seconds`; the exit status."""
    import checkpoint_run

    process = context.Process(target=checkpoint_run.run, args=(folder,), kwargs={"resume": True})
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    from checkpoint_run import outcome

    context, moments = multiprocessing.get_context("forkserver"), random.Random(args.seed)
    context.set_forkserver_preload(["checkpoint_run"])
    kills = runs = exact = stuck = 0
    with tempfile.TemporaryDirectory() as home, tqdm(total=args.kills, desc="kills", disable=None) as bar:
        start(context, Path(home, "warm"), None)
        clock = time.perf_counter()
        start(context, Path(home, "whole"), None)
        span, expected = time.perf_counter() - clock, outcome(Path(home, "whole"))
        while kills < args.kills:
            folder, runs, tries = Path(home, str(runs)), runs + 1, 0
            while (status := start(context, folder, moments.uniform(0, 1.5 * span))) < 0:
                kills, tries = kills + 1, tries + 1
                bar.update()
            stuck += status > 0
            exact += status == 0 and outcome(folder) == expected
    print(f"{kills} kills in {runs} runs: {stuck} stuck, {exact} of {runs} ended as the run that nobody killed")
    if args.record:
        command = f"python tests/tools/kill_table.py --kills {args.kills} --record"
        for name, value in (("kills", kills), ("runs", runs), ("stuck", stuck), ("exact", exact)):
            record(f"resume.{name}", value, n=kills, seeds=[args.seed], command=command)
    return int(stuck > 0 or exact < runs)


if __name__ == "__main__":
    sys.exit(main())
