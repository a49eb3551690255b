"""`OPDTrainer` in the tiny world: what moves it, what does not, and what it leaves behind."""
import copy
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

import tinyr2
from tinyr2 import OPDConfig, OPDTrainer
from tinyr2.data import tiny_world
from tinyr2.objective import PRESETS


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def train(world, folder, reward=tinyr2.tests_reward, teacher=None, rows=None, **settings):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 48, "temperature": 1.0,
                "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, **settings}
    student = copy.deepcopy(world.student)
    trainer = OPDTrainer(student, teacher, reward, OPDConfig(str(folder), **settings),
                         rows or world.tasks["train"], processing_class=world.tokenizer)
    trainer.train()
    return trainer


def moved(trainer, world):
    pairs = zip(trainer.model.parameters(), world.student.parameters())
    return max((a - b).abs().max().item() for a, b in pairs)


def constant_reward(completions, **columns):
    return [1.0] * len(completions)


def failing_reward(completions, **columns):
    return [None] * len(completions)


def test_a_constant_reward_alone_moves_nothing(world, tmp_path):
    assert moved(train(world, tmp_path, constant_reward, kl_coef=0.0), world) == 0


def test_the_reward_alone_moves_the_student(world, tmp_path):
    assert moved(train(world, tmp_path, kl_coef=0.0), world) > 1e-4


def test_a_teacher_equal_to_the_student_moves_nothing_at_first(world, tmp_path):
    trainer = train(world, tmp_path, constant_reward, max_steps=1)
    assert trainer.state.log_history[0]["kl"] < 1e-6


def half_failing_reward(completions, **columns):
    return [None if i % 4 == 0 else float("sum" in text) for i, text in enumerate(completions)]


def test_unscored_samples_are_masked_and_counted(world, tmp_path):
    trainer = train(world, tmp_path, half_failing_reward, kl_coef=0.0, max_steps=1)
    assert trainer.state.log_history[0]["unscored"] == 0.25


def test_a_batch_that_nobody_could_score_stops_the_run(world, tmp_path):
    with pytest.raises(RuntimeError, match="could not be scored"):
        train(world, tmp_path, failing_reward, kl_coef=0.0, max_steps=1)


def test_same_seed_same_weights(world, tmp_path):
    one, two = (train(world, tmp_path / name, teacher=world.teacher) for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))


def test_the_saved_folder_is_an_ordinary_model(world, tmp_path):
    trainer = train(world, tmp_path, max_steps=1)
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trainer.model.parameters()))
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(world.tokenizer)


def test_a_teacher_of_another_vocabulary_is_refused(world, tmp_path):
    other = copy.deepcopy(world.teacher)
    other.resize_token_embeddings(300)
    with pytest.raises(ValueError, match=r"teacher_model 0: 300 tokens, the student has \d+; .* reward_only"):
        train(world, tmp_path, teacher=other)


def apart(one, two):
    return max((a - b).abs().max().item() for a, b in zip(one.model.parameters(), two.model.parameters()))


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_sum"])
def test_accumulation_gives_the_step_of_one_large_batch(world, tmp_path, normalization):
    shared = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "normalization": normalization, "gamma": 0.5}
    whole = train(world, tmp_path / "a", teacher=world.teacher, per_device_train_batch_size=8, **shared)
    cut = train(world, tmp_path / "b", teacher=world.teacher, per_device_train_batch_size=1,
                gradient_accumulation_steps=8, **shared)
    assert moved(whole, world) > 1e-3
    assert apart(whole, cut) < 1e-6
    logs = [trainer.state.log_history[0] for trainer in (whole, cut)]
    assert logs[0]["kl"] == pytest.approx(logs[1]["kl"], rel=1e-4)
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-3, abs=1e-6)


def test_micro_batches_change_nothing_beyond_rounding(world, tmp_path):
    shared = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "teacher": world.teacher}
    assert apart(train(world, tmp_path / "a", micro_batch_rows=1, **shared),
                 train(world, tmp_path / "b", micro_batch_rows=16, **shared)) < 1e-6


def test_the_articles_reward_line_changes_no_bit(world, tmp_path):
    written = PRESETS["article_as_written"]
    kl_alone = written | {"reward_coef": 0.0}
    one, two = (train(world, tmp_path / name, teacher=world.teacher, **preset)
                for name, preset in (("a", written), ("b", kl_alone)))
    assert apart(one, two) == 0


def test_a_prompt_goes_to_the_teacher_that_its_row_names(world, tmp_path):
    rows = [row | {"teacher": 1} for row in world.tasks["train"]]
    teachers = [copy.deepcopy(world.student), world.teacher]
    alone = train(world, tmp_path / "a", teacher=world.teacher, max_steps=1)
    routed = train(world, tmp_path / "b", teacher=teachers, max_steps=1, rows=rows)
    shared = train(world, tmp_path / "c", teacher=teachers, max_steps=1)
    assert routed.state.log_history[0]["kl"] == pytest.approx(alone.state.log_history[0]["kl"], rel=1e-4)
    assert shared.state.log_history[0]["kl"] == pytest.approx(0.5 * alone.state.log_history[0]["kl"], rel=1e-3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_trains(world, tmp_path, name):
    trainer = train(world, tmp_path, teacher=world.teacher, log_completions=True, **PRESETS[name])
    assert moved(trainer, world) > 1e-5
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 4 * 4 and set(json.loads(lines[0])) == {
        "step", "prompt", "completion", "tests_reward", "reward", "advantage"}


def test_sequence_kd_learns_from_the_teachers_programs(world, tmp_path):
    theirs = train(world, tmp_path / "a", teacher=world.teacher, **PRESETS["sequence_kd"]).state.log_history
    own = train(world, tmp_path / "b", teacher=world.teacher, **PRESETS["v4_opd"]).state.log_history
    assert theirs[0]["reward"] > own[0]["reward"] + 0.1  # the tiny teacher is right more often than the student


def test_a_data_set_can_be_the_source(world, tmp_path):
    rows = [{"prompt": t["prompt"], "tests": t["tests"], "completion": t["reference"]} for t in world.tasks["train"]]
    log = train(world, tmp_path, rows=rows, off_policy_source="dataset", **PRESETS["sequence_kd"]).state.log_history
    assert log[0]["reward"] == 1.0


def test_schedules_run_from_end_to_end(world, tmp_path):
    log = train(world, tmp_path, max_steps=3, kl_coef=0.2, kl_coef_end=0.05, temperature_end=0.5).state.log_history
    assert [round(entry["kl_coef"], 3) for entry in log[:3]] == [0.2, 0.125, 0.05]
    assert [round(entry["temperature"], 3) for entry in log[:3]] == [1.0, 0.75, 0.5]


def short_reward(completions, **columns):
    return [1.0]


def nan_reward(completions, **columns):
    return [float("nan")] * len(completions)


@pytest.mark.parametrize("reward, text", [(short_reward, "expected 16 values"), (nan_reward, "finite numbers or None")])
def test_a_reward_that_returns_nonsense_is_named(world, tmp_path, reward, text):
    with pytest.raises(ValueError, match=f"reward {reward.__name__}: .*{text}"):
        train(world, tmp_path, reward, max_steps=1)


def test_wrong_settings_are_reported_together():
    with pytest.raises(ValueError) as error:
        OPDConfig("x", reward_coef=0.0, kl_coef=0.0, temperature=0.0, selection="best", gamma=1.0, lmbda=0.5)
    for name in ("reward_coef: expected one of", "temperature: expected", "selection: expected", "lmbda: expected"):
        assert name in str(error.value)


def test_a_reward_of_trl_works_here(world, tmp_path):
    reward = get_soft_overlong_punishment(max_completion_len=24, soft_punish_cache=8)
    log = train(world, tmp_path, [tinyr2.tests_reward, reward], max_steps=1).state.log_history
    assert -1 <= log[0][f"rewards/{reward.__name__}/mean"] <= 0


def test_our_reward_works_in_trl(world, tmp_path):
    rows = [{"prompt": t["prompt"] + "\n", "tests": t["tests"]} for t in world.tasks["train"][:8]]
    args = GRPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, bf16=False,
                      use_cpu=True, max_completion_length=48, disable_tqdm=True, logging_steps=1, save_strategy="no")
    student = copy.deepcopy(world.student)
    trainer = GRPOTrainer(student, tinyr2.tests_reward, args, Dataset.from_list(rows), processing_class=world.tokenizer)
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["rewards/tests_reward/mean"] <= 1
