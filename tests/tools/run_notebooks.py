"""Execute the notebooks in order with papermill, each in a kernel of its own (see forked.py).

    run_notebooks.py [NAME ...] [--params nbs/params/test.yaml] [--timeout SECONDS] [--jobs N]

Notebooks start in their order. With --jobs 2 (the default with two cores and 12 GB to spare) two run side by side,
with one thread each. The first runs alone before them and those that measure time alone after them, with all
threads; what others wait for starts early.

Without --params every notebook runs as it stands, into _runs/, and draws into figures/. With a file of
parameters (notebook name -> its parameters) copies and figures go to a folder with the file's name:
_runs/test/ and _runs/test/figures/. With TINYR2_CPU in the environment, which takes features of the processor away,
they go to a folder of its name there (_runs/avx2/, _runs/test/avx2/), and no tracked file changes.
"""
import json
import os
import re
import shutil
import sys
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml
from forked import execute
from notebooks import ROOT, code_cells, read, runnable, source

HEADLESS = {  # quiet and offline; a variable that is already set keeps its value
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "GOMP_SPINCOUNT": "10000",  # as tinyr2 itself sets it, but here before torch is imported
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, whatever else is registered
}
FIRST = ("01_environment",)  # alone: what it leaves in the cache, others read
FEWER = {  # torch and oneDNN read these when they are loaded: no instructions beyond AVX2
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
TIMEOUT = 7200  # seconds for a notebook: it ends what hangs, and leaves a slow machine its time
EARLY = ("tiny_world", "long_context", "11_trainer")  # the world, beside one without; the longest
LAST = ("step", "components", "student_and_teacher")  # alone at the end: they measure time
AFTER = {"13_evaluation": "11_trainer", "article_prompts": "11_trainer"}  # reads the model that the other has trained


def cpu_setting() -> str:
    """TINYR2_CPU, the setting under which features of the processor are not used; "" for all of them."""
    return os.environ.get("TINYR2_CPU", "")


def environment(figures: Path | None, one_thread: bool = False) -> dict[str, str]:
    """What the notebooks find in os.environ; this Python's commands come first in PATH.

    Figures go where `figures` says, else where TINYR2_FIGURES does, else to the tracked ones.
    """
    env = HEADLESS | {"TINYR2_FIGURES": str(ROOT / "figures")}
    env |= ({"OMP_NUM_THREADS": "1"} if one_thread else {}) | (FEWER if cpu_setting() else {}) | os.environ
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    return env | ({"TINYR2_FIGURES": str(figures)} if figures else {})


def places(params: str = "") -> tuple[Path, Path | None]:
    """Where executed copies go, and where figures; None for the tracked ones.

    A run with other parameters begins without records, one with fewer features of the processor with the tracked ones.
    """
    out = ROOT / "_runs" / params / cpu_setting()
    figures = out / "figures" if params or cpu_setting() else None
    if figures and not params:
        figures.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "figures" / "results.json", figures)
    return out, figures


def run_notebook(path: Path, out: Path, parameters: dict | None = None, figures: Path | None = None,
                 timeout: float = TIMEOUT, one_thread: bool = False) -> tuple[float, str]:
    """Execute one notebook into the folder `out`; return the seconds, and what went wrong or ""."""
    out.mkdir(parents=True, exist_ok=True)
    copy = out / path.name
    copy.unlink(missing_ok=True)
    start = time.monotonic()
    code, messages = execute(path, copy, parameters or {}, environment(figures, one_thread), timeout)
    if code is None:
        messages += f"\nstopped after {timeout:.0f} s, the limit of a notebook"
    return time.monotonic() - start, explain(copy, messages) if code != 0 else ""


def explain(copy: Path, messages: str, lines: int = 12) -> str:
    """The cell that failed or was running, and the end of its traceback or else of papermill's messages."""
    end = [line for line in messages.strip().splitlines() if not line.startswith("[IPKernelApp]")]
    where = []
    for number, cell in enumerate(code_cells(read(copy)) if copy.exists() else [], 1):
        if cell["metadata"].get("papermill", {}).get("status") in ("failed", "running"):
            where = [f"code cell {number} (id {cell['id']}):", source(cell), "-" * 40]
            for output in cell["outputs"]:
                if output["output_type"] == "error":
                    end = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"])).splitlines()
    return "\n".join(where + end[-lines:]) or "papermill failed without a message"


def read_parameters(file: Path | None) -> dict[str, dict]:
    """The parameters of each notebook; a run with fewer features of the processor has folders of its own."""
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8")
    if cpu_setting():
        text = text.replace(f"_runs/{file.stem}/", f"_runs/{file.stem}/{cpu_setting()}/")
    return yaml.safe_load(text) or {}


def default_jobs() -> int:
    """Two side by side where cores and memory (a training notebook takes up to 5 GB) allow it."""
    return 2 if (os.cpu_count() or 1) >= 2 and psutil.virtual_memory().available > 12e9 else 1


def run_all(notebooks: list[Path], out: Path, parameters: dict[str, dict], figures: Path | None = None,
            timeout: float = TIMEOUT, jobs: int = 1) -> list[str]:
    """Run notebooks, print a line for each, write timings.json; return the names that failed."""
    log, lock = out / "timings.json", threading.Lock()
    timings = json.loads(log.read_text()) if log.exists() else {}
    failed, started = [], {}

    def run(path: Path, one_thread: bool = False) -> None:
        if path.stem in AFTER and AFTER[path.stem] in started:
            started[AFTER[path.stem]].result()
        options = (parameters.get(path.stem), figures, timeout, one_thread)
        seconds, problem = run_notebook(path, out, *options)
        with lock:
            print(f"{path.stem:<20}{seconds:8.1f} s", flush=True)
            if problem:
                failed.append(path.stem)
                print(f"FAILED {path.name}\n    " + problem.replace("\n", "\n    "), flush=True)
            timings[path.stem] = {"seconds": round(seconds, 1), "ok": not problem}
            log.write_text(json.dumps(timings, indent=1, sort_keys=True) + "\n")

    if jobs > 1:
        notebooks = sorted(notebooks, key=lambda path: (*FIRST, *EARLY, path.stem).index(path.stem))
    last = [path for path in notebooks if path.stem in LAST and jobs > 1]
    pool = ThreadPoolExecutor(jobs)
    try:
        for path in notebooks:
            if jobs == 1 or path.stem in FIRST:
                run(path)
            elif path not in last:
                started[path.stem] = pool.submit(run, path, True)
        for future in started.values():
            future.result()
    finally:  # after Ctrl-C nothing more is begun
        pool.shutdown(cancel_futures=True)
    for path in last:
        run(path)
    return failed


def results_table(file: Path) -> str:
    """Every `key.before` of figures/results.json beside its `.after` and `.difference`."""
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    table = [f"{'':<28}{'before':>8}{'after':>8}{'change':>8}  95 % interval"]
    for key in sorted(key.removesuffix(".before") for key in records if key.endswith(".before")):
        if f"{key}.after" in records:
            before, after = records[f"{key}.before"]["value"], records[f"{key}.after"]["value"]
            change = records.get(f"{key}.difference", {})
            interval = "[{:+.3f}, {:+.3f}]".format(*change["ci95"]) if change.get("ci95") else "not recorded"
            table.append(f"{key:<28}{before:>8.3f}{after:>8.3f}{change.get('value', after - before):>+8.3f}"
                         f"  {interval}")
    return "\n".join(table) if len(table) > 1 else ""


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks to run (default: all)")
    parser.add_argument("--params", type=Path, help="YAML file: notebook name -> its parameters")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds allowed for one notebook")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="notebooks side by side")
    args = parser.parse_args()
    out, figures = places(args.params.stem if args.params else "")
    failed = run_all(runnable(names=args.names), out, read_parameters(args.params), figures, args.timeout,
                     args.jobs)
    print(f"executed copies and timings.json are in {out.relative_to(ROOT)}/")
    if failed:
        print(f"failed: {', '.join(failed)}")
    elif not args.params and (table := results_table((figures or ROOT / "figures") / "results.json")):
        print(f"\n{table}\n(results.json beside the figures has the command of every number)")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
