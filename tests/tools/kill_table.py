"""Kill small runs at random moments until enough kills are counted; every run must end as if nobody had.

    kill_table.py [--kills 100] [--seed 1] [--record]

A run that goes on from an earlier kill may be killed again. --record stores the count of runs that did not, in
figures/results.json.
"""
import random
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from tqdm import tqdm

from tinyr2.environment import record


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from checkpoint_run import fork_server, in_process, outcome

    context, moments = fork_server(), random.Random(args.seed)
    kills = runs = exact = stuck = 0
    with tempfile.TemporaryDirectory() as home, tqdm(total=args.kills, desc="kills", disable=None) as bar:
        in_process(context, Path(home, "warm"))
        clock = time.perf_counter()
        in_process(context, Path(home, "whole"))
        span, expected = time.perf_counter() - clock, outcome(Path(home, "whole"))
        while kills < args.kills:
            folder, runs = Path(home, str(runs)), runs + 1
            while (status := in_process(context, folder, resume=True, kill_after=moments.uniform(0, 1.5 * span))) < 0:
                kills += 1
                bar.update()
            stuck += status > 0
            exact += status == 0 and outcome(folder) == expected
    print(f"{kills} kills in {runs} runs: {stuck} stuck, {exact} of {runs} ended as the run that nobody killed")
    if args.record:
        command = f"python tests/tools/kill_table.py --kills {args.kills} --record"
        record("resume.differing", runs - exact, n=kills, seeds=[args.seed], command=command, runs=runs, stuck=stuck)
    return int(stuck > 0 or exact < runs)


if __name__ == "__main__":
    sys.exit(main())
