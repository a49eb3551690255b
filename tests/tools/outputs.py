"""Store the outputs of a default run in nbs/, for people who read the notebooks on the web.

    outputs.py [NAME ...] [--from-runs]

Runs the notebooks, copies the outputs back by cell id (nothing else of a notebook changes), cleans with
nbdev_clean, and notes in nbs/.outputs.json which code the outputs belong to. --from-runs takes the executed
copies in _runs/ if they are complete and have the same code; it does not see a change in an earlier notebook.
"""
import json
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from notebooks import ROOT, bad_outputs, code_cells, code_hash, paths, read, runnable, write
from run_notebooks import cpu_setting, run_all


def is_complete(notebook: Path, copy: Path) -> bool:
    """Did the executed copy run to its end, with the code that the notebook has now?"""
    if not copy.exists() or code_hash(read(copy)) != code_hash(read(notebook)):
        return False
    return all(cell["execution_count"] for cell in code_cells(read(copy)))


def merge_streams(outputs: list[dict]) -> list[dict]:
    """Join neighbouring pieces of printed text: where the kernel cuts it depends on timing."""
    merged = []
    for output in outputs:
        if merged and output["output_type"] == merged[-1]["output_type"] == "stream":
            text = "".join(merged.pop()["text"]) + "".join(output["text"])
            output = output | {"text": text.splitlines(keepends=True)}
        merged.append(output)
    return merged


def copy_outputs(notebook: dict, executed: dict) -> dict:
    """The notebook with the outputs of its executed copy."""
    outputs = {cell["id"]: merge_streams(cell["outputs"]) for cell in code_cells(executed)}
    cells = [cell | {"outputs": outputs.get(cell["id"], [])} if cell["cell_type"] == "code" else cell
             for cell in notebook["cells"]]
    return notebook | {"cells": cells}


def lock(root: Path, seconds: dict[str, float]) -> None:
    """Note in nbs/.outputs.json the code that stored outputs belong to, and how long it took at first."""
    file = root / "nbs" / ".outputs.json"
    entries = json.loads(file.read_text()) if file.exists() else {}
    hashes = {path.stem: code_hash(read(path)) for path in paths(root)}
    for stem in seconds:
        if entries.get(stem, {}).get("code") != hashes[stem]:
            entries[stem] = {"code": hashes[stem], "seconds": round(seconds[stem])}
    entries = {stem: entry for stem, entry in entries.items() if stem in hashes}
    file.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks to refresh (default: all)")
    parser.add_argument("--from-runs", action="store_true", help="reuse executed copies of unchanged code")
    args = parser.parse_args()
    if cpu_setting():
        parser.error("TINYR2_CPU is set; stored outputs are those of a processor with all its features, unset it")
    runs, notebooks = ROOT / "_runs", runnable(names=args.names)
    done = [path for path in notebooks if args.from_runs and is_complete(path, runs / path.name)]
    run_all([path for path in notebooks if path not in done], runs, {}, ROOT / "figures")
    timings = json.loads((runs / "timings.json").read_text())
    refused, seconds = [], {}
    for path in notebooks:
        copy = runs / path.name
        if problems := bad_outputs(read(copy)) if is_complete(path, copy) else ["did not run to its end"]:
            refused += [f"{path.name}: {problem}" for problem in problems]
        else:
            write(path, copy_outputs(read(path), read(copy)))
            seconds[path.stem] = timings[path.stem]["seconds"]
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=ROOT, check=True)
    lock(ROOT, seconds)
    print("outputs stored:", ", ".join(seconds) or "none")
    if refused:
        print("not stored:", *refused, sep="\n    ")
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
