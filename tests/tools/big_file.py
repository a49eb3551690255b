"""Check, index and iterate a large file of OPD records in a process of its own; report its memory.

    big_file.py [--gigabytes 1.0] [--folder DIR] [--record]

One row in a thousand is bad, in four ways, and is skipped. The file is written to DIR (default: the temporary
folder) and deleted afterwards. Prints JSON; --record stores it in figures/results.json.
"""
import json
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPOIL = (lambda text: text[:-20], lambda text: text.replace("0.5", "NaN"), lambda text: text.replace("[0.5, ", "["),
         lambda text: text.replace('"prompt": "', '"prompt": null, "was": "'))


def write_file(path: Path, size: int) -> dict:
    """Write rows until there are `size` bytes; count the good ones, the bad ones and the characters of good replies."""
    counts = {"rows": 0, "refused": 0, "replies": 0}
    body = "    total = 0\n" + "".join(f"    total += xs[{i}] * {i}  # term {i}\n" for i in range(20))
    written = number = 0
    with open(path, "w", newline="\n") as file:
        while written < size:
            replies = [f"def f_{number}(xs):\n{body}    return total + {k}\n" for k in range(2)]
            row = {"prompt": f"Write f_{number}.", "teacher_responses": replies, "rewards": [0.5, number % 7]}
            text = json.dumps(row)
            if number % 1000 == 999:
                text = SPOIL[counts["refused"] % len(SPOIL)](text)
                counts["refused"] += 1
            else:
                counts["rows"] += 1
                counts["replies"] += sum(map(len, replies))
            written += file.write(text + "\n")
            number += 1
    return counts


def measure(path: str) -> dict:
    """Check, index and iterate; seconds, counts and the highest resident memory of this process (VmHWM)."""
    import warnings

    from tinyr2.dataset import OPDDataset

    def peak_mb() -> float:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6

    before, start = peak_mb(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = OPDDataset(path, on_bad_row="skip")
    indexed = time.perf_counter()
    replies = sum(len(text) for row in dataset for text in row["teacher_responses"])
    return {"rows": len(dataset), "refused": dataset.rejected, "replies": replies, "peak_mb": round(peak_mb(), 1),
            "start_mb": round(before, 1), "index_seconds": round(indexed - start, 1),
            "iterate_seconds": round(time.perf_counter() - indexed, 1)}


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--measure", help="used by itself: measure this file")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "records.jsonl"
        wrote = write_file(path, round(args.gigabytes * 1e9))
        size = path.stat().st_size
        child = subprocess.run([sys.executable, __file__, "--measure", path], cwd=ROOT, check=True, text=True,
                               stdout=subprocess.PIPE)
    found = {"gigabytes": round(size / 1e9, 3)} | json.loads(child.stdout)
    print(json.dumps(found))
    complete = all(found[name] == count for name, count in wrote.items())
    if args.record and complete:
        from tinyr2.environment import record

        command = f"python tests/tools/big_file.py --gigabytes {args.gigabytes:g} --record"
        for name in found.keys() - {"replies"}:
            record(f"data.big_file.{name}", found[name], command=command)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
