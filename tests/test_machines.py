"""This machine as a smaller one (TINYR2_CPU): the equality tests, notebooks, a step of SmolLM2, and `tinyr2-eval`.

`TINYR2_CPU=avx2 make run` and `make test` do all of it in this way.
"""
import json
import os
import re
import subprocess
import sys

import pytest
from notebooks import ROOT

from tinyr2.hardware import cpu_capabilities, cpu_features

SETTINGS = ("avx2", "plain")
pytestmark = pytest.mark.skipif("avx2" not in cpu_capabilities(), reason="the processor has no AVX2 to fall back on")
AVX2 = pytest.param("avx2", marks=pytest.mark.skipif(cpu_features() == "avx2", reason="this processor is one"))
NOTEBOOKS = {  # of the way from model to evaluation, those whose arithmetic depends on the processor
    "avx2": "hardware 02_init 04_collator 07_objective decoder 08_rollout 09_opd_loop 11_trainer 13_evaluation",
    "plain": "hardware decoder 08_rollout 09_opd_loop 11_trainer",
}


def environment(setting: str) -> dict[str, str]:
    """What a Python on the smaller machine finds in os.environ; nothing of the test run that has started it."""
    not_theirs = ("PYTEST_", "TINYR2_CPU", "TINYR2_STORE_SECONDS")
    own = {name: value for name, value in os.environ.items() if not name.startswith(not_theirs)}
    return own | {"TINYR2_CPU": setting, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def run(setting: str, *command: str, **options) -> str:
    """What a command prints on the smaller machine; the test fails with its last lines where it does not end well."""
    done = subprocess.run(command, env=environment(setting), cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} with TINYR2_CPU={setting}:\n{(done.stdout + done.stderr)[-4000:]}", False)
    return done.stdout


@pytest.mark.parametrize("setting", [AVX2, "plain"])
def test_equality(setting):
    files = ["tests/test_sampling.py", "tests/test_families.py", "-k", "not gpu and not vllm"]
    said = run(setting, sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files)
    passed = int(re.search(r"(\d+) passed", said)[1])
    assert passed >= 50  # not most of them skipped; without a compiler some are


@pytest.mark.parametrize("setting", [AVX2, "plain"])
def test_notebooks(setting):
    tool = ["tests/tools/run_notebooks.py", "--params", "nbs/params/test.yaml", "--jobs", "1"]
    run(setting, sys.executable, *tool, *NOTEBOOKS[setting].split())


def command(name: str) -> list[str]:
    """A console command of the package, in this Python."""
    module, entry = {"train": ("console", "train_cli"), "eval": ("console", "eval_cli")}[name]
    return [sys.executable, "-c", f"from tinyr2.{module} import {entry}; raise SystemExit({entry}())"]


@pytest.mark.parametrize("setting", [AVX2, "plain"])
def test_a_step_of_smollm2(setting, tmp_path):
    """What `auto` takes there is float32."""
    words = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--num_generations", "2", "--eval_tasks", "none",
             "--max_completion_length", "8", "--report_to", "none", "--output_dir", str(tmp_path / "run")]  # fmt: skip
    found = json.loads(run(setting, *command("train"), *words).splitlines()[-1])
    assert (found["steps"], found["dtype"]) == (1, "float32")


@pytest.mark.parametrize("setting", [AVX2, "plain"])
def test_bf16_of_smollm2(setting):
    """By its name bfloat16 is slow there, and gives the tokens of plain PyTorch in bfloat16."""
    code = """if True:
        import torch
        from tinyr2 import load_model, load_tokenizer, rollout
        model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
        options = {"num_generations": 2, "max_completion_length": 4, "dtype": torch.bfloat16}
        ids = [rollout(model, tokenizer, ["Write f(x)."], backend=name, **options).completion_ids.tolist()
               for name in ("auto", "plain")]
        assert ids[0] == ids[1], ids
    """
    run(setting, sys.executable, "-c", code)


def test_eval():
    """Both settings pass the same programs, in float32."""
    words = ["--tasks", "validation", "--limit", "2", "--num_samples", "2", "--max_completion_length", "32"]
    found = [json.loads(run(setting, *command("eval"), *words).splitlines()[-1]) for setting in SETTINGS]
    assert found[0] == found[1] and found[0]["dtype"] == "float32"
