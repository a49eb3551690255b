"""Runs killed everywhere and taken up again: the same to the last bit; and what must be refused or survived."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

import checkpoint_run
from checkpoint_run import POINTS, outcome
from tinyr2.checkpoint import checkpoints, damage, newest_whole, publish_sealed

MOMENTS = int(os.environ.get("TINYR2_KILLS", "8"))


@pytest.fixture(scope="module")
def fork():
    """Start `run` in a process of its own; its exit status."""
    return partial(checkpoint_run.in_process, checkpoint_run.fork_server())


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory):
    """What a run leaves that nobody interrupts."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    assert fork(one) == fork(two) == 0
    assert same(two, outcome(one)) == []
    return outcome(one)


def same(folder, expected):
    found = outcome(folder)
    return [name for name in expected if found[name] != expected[name]]


@pytest.mark.parametrize("point", [*POINTS, "the optimizer step"])
def test_killed_after(fork, whole, tmp_path, point):
    assert fork(tmp_path, point) == -signal.SIGKILL
    assert fork(tmp_path, resume=True) == 0
    assert same(tmp_path, whole) == []


def test_killed_at_random_moments(fork, tmp_path):
    """TINYR2_KILLS moments, any of which may also kill a run that goes on from an earlier kill; judged by tests."""
    for name in ("first", "whole"):  # the first waits for the fork server
        start = time.perf_counter()
        assert fork(tmp_path / name, judged=True) == 0
    seconds, expected = time.perf_counter() - start, outcome(tmp_path / "whole")
    moments, killed, run = random.Random(0), 0, 0
    while killed < MOMENTS:
        folder, run = tmp_path / str(run), run + 1
        while fork(folder, resume=True, judged=True, kill_after=moments.uniform(0, 1.5 * seconds)) != 0:
            killed += 1
        assert same(folder, expected) == [], f"run {run}, after {killed} kills"
    print(f"{killed} kills, {run} runs")


LORA = {"num_iterations": 1, "kl_coef": 0.3}


def test_adapters_are_taken_up_again(fork, tmp_path):
    for name, point in (("whole", None), ("cut", "backward")):
        fork(tmp_path / name, point, lora=True, settings=LORA, judged=True)
    assert fork(tmp_path / "cut", resume=True, lora=True, settings=LORA, judged=True) == 0
    assert same(tmp_path / "cut", outcome(tmp_path / "whole")) == []


PART = ("advantages", "selected", "kl_coef", "teacher_weights", "teacher_hidden", "temperature", "sampled_logprobs",
        "tokens", "sequences")
BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_generations")
ITEMS = ["model", "optimizer", "scheduler", "random.python", "random.numpy", "random.torch", "parts",
         "completions", "metrics", *[f"part.{name}" for name in PART], *[f"batch.{name}" for name in BATCH]]


@pytest.fixture(scope="module")
def cut(fork, tmp_path_factory):
    """What a run leaves that was killed after its first save, and after its second."""
    folders = {point: tmp_path_factory.mktemp("cut") for point in ("the first save", "the second save")}
    for point, folder in folders.items():
        assert fork(folder, point) == -signal.SIGKILL
    return folders


def test_a_copy_of_a_killed_run_goes_on(fork, whole, cut, tmp_path):
    """The control of the test below: nothing is forgotten."""
    for number, folder in enumerate(cut.values()):
        copy = shutil.copytree(folder, tmp_path / str(number))
        assert fork(copy, resume=True) == 0 and same(copy, whole) == []


@pytest.mark.parametrize("item", ITEMS)
def test_every_saved_item_is_needed(fork, whole, cut, tmp_path, item):
    """Resume in the middle of a rollout and of a logging window, without one item: the run ends elsewhere."""
    point = "the second save" if item == "random.torch" else "the first save"
    folder = shutil.copytree(cut[point], tmp_path / "run")
    assert fork(folder, resume=True, forgotten=item) != 0 or same(folder, whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    checkpoint_run.make(folder).train()
    return folder


@pytest.fixture
def saved(finished, tmp_path):
    """The folder of a run of 8 steps, saved at 3 and 6 and at its end."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_single_bits_are_found(saved):
    bits, folder = random.Random(0), checkpoints(saved)[0]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for _ in range(200):
        path = bits.choice(files)
        kept = path.read_bytes()
        data = bytearray(kept)
        data[bits.randrange(len(data))] ^= 1 << bits.randrange(8)
        path.write_bytes(data)
        fault = damage(folder)
        assert fault and (path.name in fault or path.name == "MANIFEST.json") or (
            path.name == "MANIFEST.json" and json.loads(path.read_text()) == manifest)
        path.write_bytes(kept)
    assert damage(folder) is None


def shorten(path):
    path.write_bytes(path.read_bytes()[:-7])


def zero_tail(path):
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


@pytest.mark.parametrize("harm", (shorten, zero_tail, Path.unlink))
@pytest.mark.parametrize("name", ("model.safetensors", "state.safetensors", "state.json", "trainer_state.json"))
def test_a_damaged_checkpoint_is_skipped_by_name(saved, capsys, harm, name):
    newest, older = checkpoints(saved)
    harm(newest / name)
    whole, (fault,) = newest_whole(saved)
    assert whole == older and fault.startswith(f"{newest.name}/{name}: ")
    with pytest.raises(ValueError, match=f"{newest.name}/{name}: "):
        checkpoint_run.make(saved).train(resume_from_checkpoint=str(newest))
    harm(older / name)
    with pytest.raises(RuntimeError, match="no checkpoint is whole"):
        checkpoint_run.make(saved).train(resume_from_checkpoint=True)
    assert f"{newest.name}/{name}" in capsys.readouterr().out


@pytest.mark.parametrize("name, value", (("seed", 6), ("kl_coef", 0.1), ("num_generations", 4), ("max_steps", 9)))
def test_other_settings_are_refused(saved, name, value):
    with pytest.raises(ValueError, match=rf"{name}: checkpoint \S+, now {value}"):
        checkpoint_run.make(saved, {name: value}).train(resume_from_checkpoint=True)
    if name == "kl_coef":
        trainer = checkpoint_run.make(saved, {name: value, "ignore_changes": True})
        assert trainer.train(resume_from_checkpoint=True).global_step == 8


def test_other_models_data_and_rewards_are_refused(saved, monkeypatch):
    with pytest.raises(ValueError, match="train_dataset: checkpoint"):
        checkpoint_run.make(saved, train_rows=39).train(resume_from_checkpoint=True)
    trainer = checkpoint_run.make(saved)
    trainer.teachers = [checkpoint_run.WORLD.student]
    with pytest.raises(ValueError, match="teacher 0: checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer = checkpoint_run.make(saved)
    trainer.rewards.funcs = trainer.rewards.funcs[:1] + [lambda completions, **columns: [0.0] * len(completions)]
    with pytest.raises(ValueError, match="reward 1: checkpoint noisy_reward"):
        trainer.train(resume_from_checkpoint=True)
    trainer = checkpoint_run.make(saved)
    trainer.processing_class.chat_template = "{{ messages }}"
    try:
        with pytest.raises(ValueError, match="tokenizer: checkpoint"):
            trainer.train(resume_from_checkpoint=True)
    finally:
        trainer.processing_class.chat_template = None


def test_a_new_run_does_not_mix_with_an_old_one(saved):
    with pytest.raises(FileExistsError, match="checkpoint-8 of an earlier run"):
        checkpoint_run.make(saved).train()
    for path in checkpoints(saved):
        path.rename(saved / f"old-{path.name}")
    lines = (saved / "completions.jsonl").read_bytes()
    checkpoint_run.make(saved).train()
    assert (saved / "completions-1.jsonl").read_bytes() == lines


def test_a_full_disk_costs_the_checkpoint_not_the_run(tmp_path, capsys, monkeypatch):
    plain, calls = checkpoint_run.checkpoint._digests, []

    def full(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return plain(folder)

    monkeypatch.setattr(checkpoint_run.checkpoint, "_digests", full)
    trainer = checkpoint_run.make(tmp_path)
    assert trainer.train().global_step == 8
    said = capsys.readouterr().out
    assert "checkpoint-6 was not saved: [Errno 28] No space left on device. The run goes on; checkpoint-3 is" in said
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")) == [
        "checkpoint-3", "checkpoint-8", "completions.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(fork, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", tmp_path]).returncode:
        pytest.skip("cannot mount here")
    try:
        (tmp_path / "ballast").write_bytes(bytes(2**20 * 7))
        assert fork(tmp_path, settings={"log_completions": False}) == 0
        assert checkpoints(tmp_path) == [] and not list(tmp_path.glob(".tmp-*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_saves_and_exits_with_zero(whole, tmp_path, fork, number):
    code = f"import checkpoint_run, sys; checkpoint_run.run({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    while not (tmp_path / "completions.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 0
    assert "asked to stop: saving after this step" in said and "Go on with train(resume_from_checkpoint=True)" in said
    assert damage(checkpoints(tmp_path)[0]) is None and checkpoints(tmp_path)[0].name != "checkpoint-8"
    assert fork(tmp_path, resume=True) == 0
    kept = outcome(tmp_path)
    assert [name for name in whole if kept[name] != whole[name]] in ([], ["folders"])


@pytest.mark.skipif("TINYR2_SLOW" not in os.environ, reason="two minutes of SmolLM2; set TINYR2_SLOW=1")
def test_smollm2_killed_and_taken_up_again(fork, tmp_path):
    def start(name, last):
        code = f"import checkpoint_run as c; c.smol({str(tmp_path / name)!r}, {last})"
        return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode

    assert start("whole", None) == 0
    assert start("cut", 3) == -signal.SIGKILL
    assert newest_whole(tmp_path / "cut")[0].name == "checkpoint-2"
    assert start("cut", None) == 0
    assert same(tmp_path / "cut", outcome(tmp_path / "whole")) == []


def test_an_unknown_format_is_named(tmp_path):
    publish_sealed(tmp_path / "checkpoint-1", lambda folder: (folder / "x").write_text("x"))
    manifest = tmp_path / "checkpoint-1/MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 0'))
    assert damage(tmp_path / "checkpoint-1") == "MANIFEST.json: format 0, this version reads 2"


def test_going_back_leaves_the_later_ones_aside(saved, whole):
    older = next(path for path in checkpoints(saved) if path.name == "checkpoint-6")
    checkpoint_run.make(saved).train(resume_from_checkpoint=str(older))
    names = sorted(path.name for path in saved.iterdir() if path.is_dir())
    assert names == ["checkpoint-6", "checkpoint-8", "left-checkpoint-8"]
    assert damage(saved / "checkpoint-8") is None


def test_a_checkpoint_of_another_run_needs_a_folder_of_its_own(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    checkpoint_run.make(other, {"max_steps": 3}).train()
    with pytest.raises(FileExistsError, match="holds checkpoints of its own"):
        checkpoint_run.make(saved).train(resume_from_checkpoint=str(checkpoints(other)[0]))


@pytest.mark.parametrize("error", (OSError(28, "No space left"), Exception("No space left"), RuntimeError("disk")))
def test_whatever_a_library_raises_the_run_goes_on(tmp_path, capsys, monkeypatch, error):
    trainer = checkpoint_run.make(tmp_path)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(trainer, "save_model", full)
    assert trainer.train().global_step == 8
    assert capsys.readouterr().out.count("was not saved") == 3 and checkpoints(tmp_path) == []


def test_a_stop_that_could_not_be_saved_is_not_called_saved(tmp_path, monkeypatch):
    trainer = checkpoint_run.make(tmp_path)
    monkeypatch.setattr(trainer, "save_model", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full")))
    monkeypatch.setattr(checkpoint_run.trainer_module, "accumulate_gradients",
                        checkpoint_run.trainer_module.accumulate_gradients)  # put back afterwards
    checkpoint_run.after(checkpoint_run.trainer_module, "accumulate_gradients", 3,
                         then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="could not be saved"):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_run.trainer_module, "accumulate_gradients",
                        checkpoint_run.trainer_module.accumulate_gradients)  # put back afterwards
    checkpoint_run.after(checkpoint_run.trainer_module, "accumulate_gradients", 16,
                         then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert checkpoint_run.make(tmp_path, {"save_strategy": "no"}).train().global_step == 8


def test_completions_survive_a_resume_that_does_not_log_them(saved):
    lines = (saved / "completions.jsonl").read_bytes()
    checkpoint_run.make(saved, {"log_completions": False}).train(resume_from_checkpoint=str(saved / "checkpoint-6"))
    kept = (saved / "completions.jsonl").read_bytes()
    assert lines.startswith(kept) and len(kept) > len(lines) / 2


def test_an_unreadable_file_is_skipped(saved, monkeypatch):
    newest, older = checkpoints(saved)
    plain = Path.open

    def bad_sector(path, *args, **kwargs):
        if path == newest / "model.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", bad_sector)
    whole, (fault,) = newest_whole(saved)
    assert whole == older and "model.safetensors: Input/output error" in fault


@pytest.mark.parametrize("files", (5, {"x": None}, {"x": [1]}))
def test_a_strange_manifest_is_damage(tmp_path, files):
    publish_sealed(tmp_path / "checkpoint-1", lambda folder: (folder / "x").write_text("x"))
    manifest = tmp_path / "checkpoint-1/MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": files}))
    assert "no readable manifest" in damage(tmp_path / "checkpoint-1")


def scaled(completions, scale=1.0, **columns):
    return [scale] * len(completions)


def test_what_a_reward_holds_is_part_of_it():
    def make(scale):
        return lambda completions, **columns: [scale] * len(completions)

    fingerprint = checkpoint_run.durable.fingerprint
    assert fingerprint(partial(scaled, scale=1.0)) == fingerprint(partial(scaled, scale=1.0))
    assert fingerprint(partial(scaled, scale=1.0)) != fingerprint(partial(scaled, scale=-5.0))
    assert fingerprint(make(1.0)) != fingerprint(make(-5.0))


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_limit_that_keeps_nothing_removes_nothing(saved, limit):
    kept = checkpoints(saved)
    for settings in ({}, {"max_steps": 16, "ignore_changes": True}):
        with pytest.raises(ValueError, match="save_total_limit: expected 1 or more, or None to keep all"):
            checkpoint_run.make(saved, {"save_total_limit": limit, **settings}).train(resume_from_checkpoint=True)
    assert kept and checkpoints(saved) == kept and damage(kept[0]) is None


def test_a_run_is_not_one_of_its_checkpoints(saved, tmp_path_factory):
    for folder in (saved, tmp_path_factory.mktemp("new")):
        with pytest.raises(ValueError, match=r"is the folder of a run; give one of its checkpoints \(checkpoint-8, "):
            checkpoint_run.make(folder).train(resume_from_checkpoint=str(saved))


def test_two_runs_in_one_folder(tmp_path):
    with checkpoint_run.checkpoint.RunFolder(tmp_path).alone():
        with pytest.raises(RuntimeError, match="another run is writing here"):
            checkpoint_run.make(tmp_path).train()


def in_processes(folder, world, **settings):
    """Run `settings` in `world` processes; the completions of every step, and the final weights."""
    settings |= {"num_iterations": 1, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "logging_steps": 1,
                 "lr_scheduler_type": "constant", **({"ddp_backend": "gloo"} if world > 1 else {})}
    server = checkpoint_run.fork_server()
    assert checkpoint_run.in_ranks(server, world, folder, settings, exact=True) == [0] * world
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    log = json.loads((checkpoints(folder)[0] / "trainer_state.json").read_text())["log_history"]
    return sorted((r["step"], r["prompt"], r["completion"], r["reward"]) for r in lines), load_file(
        folder / "model.safetensors"), log


def test_processes_and_accumulation_change_nothing_but_rounding(tmp_path):
    one, weights, log = in_processes(tmp_path / "one", 1, per_device_train_batch_size=8,
                                     gradient_accumulation_steps=1)
    assert {row[0] for row in one} == {0, 1, 2} and len(one) == 48
    for name, world, size, parts in (("two", 2, 4, 1), ("parts", 1, 4, 2), ("both", 2, 2, 2)):
        found, others, other_log = in_processes(tmp_path / name, world, per_device_train_batch_size=size,
                                                gradient_accumulation_steps=parts)
        assert found == one, name
        assert max((weights[key] - others[key]).abs().max().item() for key in weights) < 1e-6, name
        for a, b in zip(log, other_log):
            assert [a[key] for key in ("reward", "kl", "loss")] == pytest.approx(
                [b[key] for key in ("reward", "kl", "loss")], rel=1e-3, abs=1e-5), name


def test_two_processes_are_taken_up_again(tmp_path):
    rows, settings = {}, {"max_steps": 4, "ddp_backend": "gloo", "save_steps": 1, "logging_steps": 1}
    for name in ("whole", "cut"):
        for last in (None,) if name == "whole" else (3, None):
            codes = checkpoint_run.in_ranks(checkpoint_run.fork_server(), 2, tmp_path / name, settings, last=last)
            assert codes == [-signal.SIGKILL if last else 0] * 2
        rows[name] = outcome(tmp_path / name)
    assert [key for key in rows["whole"] if rows["whole"][key] != rows["cut"][key]] == []


def test_no_pickle_is_written(saved):
    names = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".safetensors", ".md", ".lock", ""}, names


def test_a_failure_while_publishing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        publish_sealed(tmp_path / "checkpoint-1", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_running(fork, tmp_path):
    def running():
        """Our descendants, and sandboxes that have lost their parent."""
        found = {process.pid for process in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter(["ppid", "cmdline"]):
            if process.info["ppid"] == 1 and "--serve" in (process.info["cmdline"] or ()):
                found.add(process.pid)
        return found

    assert fork(tmp_path / "first", "rollout", judged=True) == -signal.SIGKILL  # the fork server is there now
    before = running()
    assert fork(tmp_path / "second", "scoring", judged=True) == -signal.SIGKILL
    while running() - before:  # for ever, if something stays: the limit of a test ends it
        time.sleep(0.1)
