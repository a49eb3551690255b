"""One small training run in a process of its own, which may die at a named point or forget a part of its state.

Imported by a fork server, so that each of many runs starts with everything loaded.
"""
import collections
import copy
import gc
import json
import multiprocessing
import os
import random
import signal
import socket
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

import tinyr2.checkpoint as checkpoint
import tinyr2.durable as durable
import tinyr2.step as step_module
import tinyr2.trainer as trainer_module
from tinyr2 import OPDConfig, tests_reward
from tinyr2.data import load_tasks
from tinyr2.environment import load_model, load_tokenizer
from tinyr2.tasks.tiny import tiny_world
from tinyr2.trainer import OPDTrainer, Rewards

torch.set_num_threads(1)
WORLD = tiny_world()
SETTINGS = {"max_steps": 8, "num_iterations": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "num_generations": 2, "max_completion_length": 32, "temperature": 0.9, "learning_rate": 1e-3,
            "kl_coef_end": 0.05, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2,
            "log_completions": True, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": 5}


def noisy_reward(completions, **columns):
    """A reward that depends on every generator there is."""
    return [random.random() + np.random.rand() + torch.rand(()).item() for _ in completions]


def returns_reward(completions, **columns):
    """A reward that needs no sandbox, whose start is a third of so short a run."""
    return [float("return" in completion) for completion in completions]


def make(folder, settings=None, lora=False, dropout=0.1, train_rows=40, judged=False):
    student = copy.deepcopy(WORLD.student)
    student.config.attention_dropout = dropout
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = dropout
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None
    args = OPDConfig(str(folder), **SETTINGS | (settings or {}))
    rewards = [tests_reward if judged else returns_reward, noisy_reward]
    trainer = OPDTrainer(student, None if lora else WORLD.teacher, rewards, args,
                                    WORLD.tasks["train"][:train_rows], processing_class=WORLD.tokenizer,
                                    peft_config=config)
    trainer.remove_callback(PrinterCallback)
    return trainer


def smol(folder, last=None):
    """Three steps of SmolLM2-135M, saved each; `last`: die in the backward pass after that many."""
    trainer = OPDTrainer(
        load_model("smollm2-135m"), None, [tests_reward], processing_class=load_tokenizer("smollm2-135m"),
        args=OPDConfig(str(folder), max_steps=3, per_device_train_batch_size=2, num_generations=2, bf16=True,
                       max_completion_length=24, save_strategy="steps", save_steps=1, save_total_limit=1, use_cpu=True,
                       log_completions=True, report_to="none", disable_tqdm=True), train_dataset=load_tasks("train"))
    if last:
        after(trainer_module, "accumulate_gradients", last)
    trainer.train(resume_from_checkpoint=True)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner, name, count, then=die):
    """Call `then` after the count-th call of owner.name."""
    plain, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        found = plain(*args, **kwargs)
        if len(calls) == count:
            then()
        return found

    setattr(owner, name, wrapped)


class AfterOptimizer(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 4:
            die()


POINTS = {
    "rollout": (OPDTrainer, "generate", 3),
    "scoring": (Rewards, "__call__", 3),
    "the teacher": (step_module, "teacher_states", 3),
    "one part of a step": (trainer_module, "accumulate_gradients", 9),
    "backward": (trainer_module, "accumulate_gradients", 10),
    "the end of a step in mid-rollout": (OPDTrainer, "_maybe_log_save_evaluate", 5),
    "the end of a rollout's steps": (OPDTrainer, "_maybe_log_save_evaluate", 6),
    "the first save": (checkpoint, "publish_sealed", 1),
    "the second save": (checkpoint, "publish_sealed", 2),
    "saving the model": (OPDTrainer, "save_model", 2),
    "saving the state": (checkpoint, "save_file", 2),
    "all files": (OPDTrainer, "write_checkpoint", 2),
    "the hashes": (checkpoint, "_digests", 2),
    "the first sync": (durable, "sync", 1),
    "a sync": (durable, "sync", 18),
    "removal of nothing": (durable, "move_aside", 2),
    "the last save": (checkpoint, "publish_sealed", 3),
    "removal of the oldest": (checkpoint, "move_aside", 1),
}


def forget(trainer, item):
    """Put a fresh value where the checkpoint had this item."""
    kind, _, name = item.partition(".")
    plain = trainer._load_optimizer_and_scheduler

    def load(path):
        own = trainer.resumed["processes"][0]
        if kind in ("optimizer", "scheduler"):
            owner = trainer.optimizer if kind == "optimizer" else trainer.lr_scheduler
            trainer.resumed[kind] = copy.deepcopy(owner.state_dict())
        elif kind == "random":
            own["random"][name] = checkpoint.random_state()[name]
        elif kind in ("metrics", "parts"):
            own[kind] = type(own[kind])()
        for part in own["parts"] if kind in ("part", "batch") else ():
            place = part if kind == "part" else part["batch"]
            place[name] = wrong(place[name])
        plain(path)

    trainer._load_optimizer_and_scheduler = load
    if kind == "model":
        trainer._load_from_checkpoint = lambda *args: None
    if kind == "completions":
        take_up = trainer.run_folder.take_up
        trainer.run_folder.take_up = lambda chosen, size: take_up(chosen, 0)


def wrong(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, list):
        return [wrong(entry) for entry in value]
    if torch.is_tensor(value):
        return ~value if value.dtype == torch.bool else torch.zeros_like(value)
    return value + type(value)(1 if not isinstance(value, str) else "!")


def run(folder, point=None, resume=False, forgotten=None, settings=None, lora=False, judged=False):
    """Train; die at `point`; or go on from the newest checkpoint without the `forgotten` item. `judged`: by tests."""
    warnings.simplefilter("ignore")
    if point == "the optimizer step":
        pass
    elif point:
        after(*POINTS[point])
    trainer = make(folder, settings, lora, judged=judged)
    if point == "the optimizer step":
        trainer.add_callback(AfterOptimizer())
    if forgotten:
        forget(trainer, forgotten)
    trainer.train(resume_from_checkpoint=resume)
    trainer.state.save_to_json(str(Path(folder, "log.json")))


def fork_server():
    """A context whose processes start with this module loaded."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["checkpoint_run"])
    return context


def in_process(context, *args, kill_after=None, **kwargs) -> int:
    """`run` in a process of its own, killed after so many seconds; its exit status, negative for a signal."""
    process = context.Process(target=run, args=args, kwargs=kwargs)
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def ranked(environment, folder, settings, last=None, exact=False):
    """Train as one of several processes; die after step `last`. `exact`: without dropout, resumption and noise."""
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)  # the server's, if making the world needed one
    warnings.simplefilter("ignore")
    if last:
        after(OPDTrainer, "_maybe_log_save_evaluate", last)
    trainer = make(folder, settings, dropout=0.0 if exact else 0.1, judged=True)
    if exact:
        trainer.rewards.funcs = trainer.rewards.funcs[:1]
    trainer.train(resume_from_checkpoint=not exact)
    if exact:
        trainer.save_model()


def in_ranks(context, world, folder, settings, **kwargs) -> list[int]:
    """`ranked` in `world` processes that train together; their exit statuses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    ranks = [shared | {"RANK": str(i), "LOCAL_RANK": str(i)} if world > 1 else {} for i in range(world)]
    processes = [context.Process(target=ranked, args=(rank, folder, settings), kwargs=kwargs) for rank in ranks]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:  # where a test meets its limit
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def outcome(folder) -> dict:
    """All that a finished run leaves, without clocks."""
    folder = Path(folder)
    last = checkpoint.checkpoints(folder)[0]
    state = json.loads((last / "trainer_state.json").read_text())
    for entry in state["log_history"]:
        for key in [key for key in entry if "second" in key or "runtime" in key]:
            del entry[key]
    kept = json.loads((last / "state.json").read_text())
    found = {name: (last / name).read_bytes() for name in ("state.safetensors",)}
    weights = "adapter_model.safetensors" if (last / "adapter_model.safetensors").exists() else "model.safetensors"
    found |= {"weights": (last / weights).read_bytes(), "state": kept, "trainer_state": state, "step": last.name}
    found["completions"] = (folder / "completions.jsonl").read_bytes()
    found["folders"] = sorted(path.name for path in folder.iterdir() if path.name[:11] not in (".lock", "completions"))
    return collections.OrderedDict(sorted(found.items()))


gc.freeze()  # collections in forked runs need not look through what is loaded, nor copy it
