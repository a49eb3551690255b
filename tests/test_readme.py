"""The README's own-model code and commands, run as they stand there, with small models of two other families."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, Qwen2Config

from tinyr2.tasks.tiny import tiny_world

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"vocab_size": 512, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": None}
FAMILIES = {"qwen2": Qwen2Config, "gemma": GemmaConfig}


def section() -> str:
    text = (ROOT / "README.md").read_text()
    return text.partition("## With your own model")[2].partition("## Troubleshooting")[0]


@pytest.fixture
def folder(request, tmp_path):
    """Two models of one family, of different width, and a file of tasks in the README's form."""
    world = tiny_world()
    tokens = {name: getattr(world.tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    for name, width in (("student", 64), ("teacher", 96)):
        torch.manual_seed(width)
        config = FAMILIES[request.param](**SHAPE, **tokens, hidden_size=width)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "my" / name)
        world.tokenizer.save_pretrained(tmp_path / "my" / name)
    example = json.loads(re.search(r"`` (\{.*?\}) ``", section()).group(1))
    rows = [example | {"task_id": f"a/{i}"} for i in range(8)]
    (tmp_path / "my_tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("folder", ["gemma"], indirect=True)  # a family each: test_families has them all
def test_the_code(folder):
    code = re.search(r"```python\n(.*?)```", section(), re.S).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    for name, path in (("Qwen/Qwen2.5-0.5B-Instruct", "my/student"), ("Qwen/Qwen2.5-1.5B-Instruct", "my/teacher"),
                       ("max_steps=100", "max_steps=1, max_completion_length=8")):
        assert name in code
        code = code.replace(name, path)
    run([sys.executable, "-c", code], folder)
    assert (folder / "runs/first/model.safetensors").exists() and (folder / "runs/first/README.md").exists()


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_the_commands_and_the_first_taken_up_again(folder):
    lines = re.search(r"```sh\n(.*?)```", section(), re.S).group(1).splitlines()
    short = {"--max_steps 100": "--max_steps 1 --eval_tasks none --max_completion_length 8 "
                                "--save_strategy steps --save_steps 1",
             "--num_samples 8": "--num_samples 2 --max_completion_length 8"}
    for line in [*lines[:2], lines[0] + " --resume_from_checkpoint true"]:
        for words, fewer in short.items():
            line = line.replace(words, fewer)
        name, *words = shlex.split(line)
        output = run([str(Path(sys.executable).with_name(name)), *words], folder)
        found = json.loads(output.splitlines()[-1])
    assert found["steps"] == 1
    assert "is of the last step: nothing left to do" in output
