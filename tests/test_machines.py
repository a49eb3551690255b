"""This machine as a smaller one (TINYR2_CPU): the equality tests, notebooks, a step of SmolLM2, and `tinyr2-eval`."""
import json
import os
import subprocess
import sys

import pytest
from notebooks import ROOT

SETTINGS = ("avx2", "plain")
NOTEBOOKS = ("00_environment 00_hardware 01_init 02_ask_llm 03_collator 05_reward 06_objective 07_decoder 07_rollout "
             "08_gradient 08_opd_loop 09_checkpointing 10_diagnostics 11_evaluation 11_train_and_eval").split()


def environment(setting: str) -> dict[str, str]:
    """What a Python on the smaller machine finds in os.environ; nothing of the test run that has started it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TINYR2_CPU"))}
    return own | {"TINYR2_CPU": setting, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def run(setting: str, *command: str, **options) -> str:
    """What a command prints on the smaller machine; the test fails with its last lines where it does not end well."""
    done = subprocess.run(command, env=environment(setting), cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} with TINYR2_CPU={setting}:\n{(done.stdout + done.stderr)[-4000:]}", False)
    return done.stdout


@pytest.mark.parametrize("setting", SETTINGS)
def test_equality(setting):
    files = ["tests/test_sampling.py", "tests/test_families.py", "tests/test_hardware.py"]
    said = run(setting, sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files)
    assert " passed" in said


@pytest.mark.parametrize("setting", SETTINGS)
def test_notebooks(setting):
    tool = ["tests/tools/run_notebooks.py", "--params", "nbs/params/test.yaml", "--jobs", "1"]
    run(setting, sys.executable, *tool, *NOTEBOOKS)


def command(name: str) -> list[str]:
    """A console command of the package, in this Python."""
    module, entry = {"train": ("console", "train_cli"), "eval": ("console", "eval_cli")}[name]
    return [sys.executable, "-c", f"from tinyr2.{module} import {entry}; raise SystemExit({entry}())"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("bf16", ["auto", "true"])
def test_a_step_of_smollm2(setting, bf16, tmp_path):
    """What `auto` takes there is float32; bfloat16 by its name is slow, and works."""
    words = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--num_generations", "2", "--eval_tasks", "none",
             "--max_completion_length", "8", "--report_to", "none", "--output_dir", str(tmp_path / "run")]  # fmt: skip
    said = run(setting, *command("train"), *words, *([] if bf16 == "auto" else ["--bf16", bf16]))
    assert json.loads(said.splitlines()[-1])["steps"] == 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_eval(setting):
    words = ["--tasks", "validation", "--limit", "1", "--num_samples", "2", "--max_completion_length", "16"]
    said = run(setting, *command("eval"), *words)
    assert 0 <= json.loads(said.splitlines()[-1])["pass@1"]["value"] <= 1
