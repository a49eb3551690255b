"""`OPDTrainer` in the tiny world: what moves it, what does not, and what it leaves behind."""
import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import tinyr2
from tinyr2 import OPDConfig, OPDTrainer
from tinyr2.data import tiny_world


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def train(world, folder, reward=tinyr2.tests_reward, teacher=None, **settings):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 48, "temperature": 1.0,
                "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, **settings}
    student = copy.deepcopy(world.student)
    trainer = OPDTrainer(student, teacher, reward, OPDConfig(str(folder), **settings), world.tasks["train"],
                         processing_class=world.tokenizer)
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
    with pytest.raises(ValueError, match="teacher_model: expected the student's"):
        train(world, tmp_path, teacher=other)


def test_our_reward_works_in_trl(world, tmp_path):
    rows = [{"prompt": t["prompt"] + "\n", "tests": t["tests"]} for t in world.tasks["train"][:8]]
    args = GRPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, bf16=False,
                      use_cpu=True, max_completion_length=48, disable_tqdm=True, logging_steps=1, save_strategy="no")
    student = copy.deepcopy(world.student)
    trainer = GRPOTrainer(student, tinyr2.tests_reward, args, Dataset.from_list(rows), processing_class=world.tokenizer)
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["rewards/tests_reward/mean"] <= 1
