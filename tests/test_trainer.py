"""`OPDTrainer` in the tiny world: what moves it, what does not, and what it leaves behind."""
import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

import tinyr2
from tinyr2 import OPDConfig
from tinyr2.engine import memory
from tinyr2.environment import load_model
from tinyr2.objective import PRESETS
from tinyr2.tasks.tiny import tiny_world
from tinyr2.trainer import OPDTrainer, head_faults


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def train(world, folder, reward=tinyr2.tests_reward, teacher=None, rows=None, peft_config=None, theirs=None,
          **settings):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 48, "temperature": 1.0,
                "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, **settings}
    student = copy.deepcopy(world.student)
    trainer = OPDTrainer(student, teacher, reward, OPDConfig(str(folder), **settings),
                         rows or world.tasks["train"], processing_class=world.tokenizer, peft_config=peft_config,
                         teacher_processing_class=theirs)
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


def test_rows_of_padding_in_the_teachers_head_change_nothing(world, tmp_path):
    padded = copy.deepcopy(world.teacher)
    padded.resize_token_embeddings(world.teacher.config.vocab_size + 64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[-64:] = 3.0
    plain = train(world, tmp_path / "a", teacher=world.teacher)
    cut = train(world, tmp_path / "b", teacher=padded, theirs=world.tokenizer)
    assert apart(plain, cut) == 0


def test_a_teacher_with_other_tokens_is_refused(world, tmp_path):
    other = copy.deepcopy(world.tokenizer)
    other.add_tokens(["<another>"])
    with pytest.raises(ValueError, match=r"teacher_processing_class: expected the student's tokens.*'<another>'"):
        train(world, tmp_path, teacher=world.teacher, theirs=other)


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
    assert OPDConfig("x").optim == "adamw_torch_fused"


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


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=8)


def test_lora_starts_as_its_own_teacher_and_trains_only_adapters(world, tmp_path):
    trainer = train(world, tmp_path, peft_config=LORA, kl_coef=0.5, learning_rate=1e-2, max_steps=4)
    log = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert trainer.teachers == [trainer.model] and log[0] < 1e-6 < log[-1]
    for name, parameter in trainer.model.named_parameters():
        original = dict(world.student.named_parameters()).get(name.removeprefix("base_model.model.").replace(
            ".base_layer", ""))
        assert parameter.requires_grad == ("lora_" in name)
        assert original is None or torch.equal(parameter, original)


def test_lora_samples_what_it_is(world, tmp_path):
    trainer = train(world, tmp_path, peft_config=LORA, learning_rate=3e-2, max_steps=3)
    prompts = [task["prompt"] for task in world.tasks["test"][:4]]
    ours = tinyr2.rollout(trainer.model, world.tokenizer, prompts, temperature=1.0, backend="static")
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    theirs = tinyr2.rollout(merged, world.tokenizer, prompts, temperature=1.0, backend="static")
    base = tinyr2.rollout(world.student, world.tokenizer, prompts, temperature=1.0, backend="static")
    assert ours.completions == theirs.completions
    assert torch.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert ours.completions != base.completions or (ours.logprobs - base.logprobs).abs().max() > 1e-2


def test_a_saved_adapter_loads_and_answers_the_same(world, tmp_path):
    trainer = train(world, tmp_path / "lora", peft_config=LORA, learning_rate=3e-2)
    trainer.save_model()
    world.student.save_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    ids = torch.arange(2, 12)[None]
    assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)


def test_gradient_checkpointing_gives_the_same_step(world, tmp_path):
    settings = {"teacher": world.teacher, "max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0}
    one = train(world, tmp_path, **settings)
    two = train(world, tmp_path, gradient_checkpointing=True, **settings)
    for a, b in zip(one.model.parameters(), two.model.parameters()):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"bf16": True, "micro_batch_rows": 3}, {"num_iterations": 2}])
def test_a_large_model_saves_memory_and_keeps_its_bits(world, tmp_path, monkeypatch, settings):
    small = train(world, tmp_path / "small", **settings)
    monkeypatch.setattr(memory, "LARGE", 1)
    large = train(world, tmp_path / "large", **settings)
    assert large.teachers[0] in memory._FILES and small.teachers[0] not in memory._FILES
    assert all(map(torch.equal, small.model.parameters(), large.model.parameters()))
    assert all(map(torch.equal, small.teachers[0].parameters(), large.teachers[0].parameters()))
    again = copy.deepcopy(large.teachers[0])  # an ordinary model to others
    memory.give_back(large.teachers)
    assert all(map(torch.equal, again.state_dict().values(), large.teachers[0].state_dict().values()))


def test_a_teacher_that_finds_no_room_stays_in_memory(world, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(memory.tempfile, "TemporaryFile", full)
    with pytest.warns(UserWarning, match="teacher kept in memory.*No space left"):
        found = memory.frozen_copy(world.student)
    assert found not in memory._FILES
    assert all(map(torch.equal, found.parameters(), world.student.parameters()))


def test_iterations_reuse_a_rollout_with_weights(world, tmp_path):
    trainer = train(world, tmp_path, num_iterations=2, max_steps=4, log_completions=True)
    log = [entry for entry in trainer.state.log_history if "importance" in entry]
    assert [("reward" in entry) for entry in log] == [True, False, True, False]
    assert [entry["importance"] == 1.0 for entry in log] == [True, False, True, False]
    assert all(0.3 < entry["importance"] < 2 for entry in log)
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 16 and {json.loads(line)["step"] for line in lines} == {0, 2}


def test_kl_on_the_best_only(world, tmp_path):
    settings = {"teacher": world.teacher, "max_steps": 1}
    every, best = train(world, tmp_path, **settings), train(world, tmp_path, kl_on="best", **settings)
    assert moved(best, world) > 0
    assert any(not torch.equal(a, b) for a, b in zip(every.model.parameters(), best.model.parameters()))


def test_the_model_card_says_what_made_the_model(world, tmp_path):
    train(world, tmp_path, kl_coef=0.125).save_model()
    card = (tmp_path / "README.md").read_text()
    assert "| `kl_coef` | 0.125 |" in card and "tests_reward" in card and "library_name: transformers" in card
    assert "/root" not in card and "/home" not in card


def test_a_model_trained_in_bf16_may_teach(world, tmp_path):
    """Training leaves its forward under autocast, so its logits are rounded; that is not softcapping."""
    model = load_model("smollm2-135m")
    plain = model.forward
    model.forward = lambda *args, **kwargs: torch.autocast("cpu", torch.bfloat16)(plain)(*args, **kwargs)
    assert head_faults([("model", model)]) == []


def test_a_frozen_student_is_refused(world, tmp_path):
    frozen = copy.deepcopy(world.student).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        OPDTrainer(frozen, args=OPDConfig(str(tmp_path), use_cpu=True), train_dataset=world.tasks["train"],
                   processing_class=world.tokenizer)


@pytest.mark.parametrize("peft_config", (None, LORA))
def test_a_model_may_be_named_as_its_own_teacher(world, tmp_path, peft_config):
    student = copy.deepcopy(world.student)
    args = OPDConfig(str(tmp_path), max_steps=3, max_completion_length=48, per_device_train_batch_size=4,
                     learning_rate=1e-2, use_cpu=True, disable_tqdm=True)
    trainer = OPDTrainer(student, student, args=args, train_dataset=world.tasks["train"],
                         processing_class=world.tokenizer, peft_config=peft_config)
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] < 1e-6 < kl[-1]


def test_a_teacher_is_not_frozen_for_good(world, tmp_path):
    train(world, tmp_path, teacher=world.teacher, max_steps=1)
    assert all(parameter.requires_grad for parameter in world.teacher.parameters())


def test_an_adapter_that_was_trained_before_is_the_start(world, tmp_path):
    first = train(world, tmp_path, peft_config=LORA, learning_rate=3e-2, max_steps=3).model
    args = OPDConfig(str(tmp_path), max_steps=1, max_completion_length=48, use_cpu=True, disable_tqdm=True)
    trainer = OPDTrainer(first, args=args, train_dataset=world.tasks["train"], processing_class=world.tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] < 1e-6


def test_the_teachers_samples_are_those_without_the_adapter(world, tmp_path):
    settings = PRESETS["sequence_kd"] | {"learning_rate": 3e-2, "max_steps": 3, "log_completions": True}
    trainer = train(world, tmp_path, peft_config=LORA, **settings)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["step"] == 2]
    prompts = [prompt.removesuffix("\n") for prompt in dict.fromkeys(row["prompt"] for row in last)]
    options = {"temperature": 1.0, "max_completion_length": 48, "seed": trainer.args.seed, "step": 2}
    start = tinyr2.rollout(world.student, world.tokenizer, prompts, **options)
    now = tinyr2.rollout(trainer.model, world.tokenizer, prompts, **options)
    assert [row["completion"] for row in last] == start.completions != now.completions


def test_adapters_on_the_head_are_refused(world, tmp_path):
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    for part in ({"target_modules": ["q_proj", "lm_head"]}, saved):
        with pytest.raises(ValueError, match="head and the embedding cannot be adapted"):
            train(world, tmp_path, peft_config=LoraConfig(r=2, **part))


def test_two_rewards_of_one_name_both_count(world, tmp_path):
    trainer = train(world, tmp_path, [constant_reward, constant_reward], max_steps=1, reward_weights=[1.0, 5.0])
    entry = trainer.state.log_history[0]
    assert entry["reward"] == 6.0 and "rewards/constant_reward_2/mean" in entry


def test_a_column_that_some_rows_lack_is_none_there(world, tmp_path):
    seen = []

    def looking_reward(completions, prompts, bonus, **columns):
        seen.extend(zip(prompts, bonus))
        return [1.0] * len(completions)

    rows = [dict(row) for row in world.tasks["train"][:4]]
    rows[2]["bonus"] = 7
    train(world, tmp_path, looking_reward, rows=rows, max_steps=1)
    assert len(seen) == 16 and all((value == 7) == (prompt == rows[2]["prompt"]) for prompt, value in seen)


def test_checkpointing_left_on_in_the_model_is_noticed(world, tmp_path):
    student = copy.deepcopy(world.student)
    student.gradient_checkpointing_enable()
    args = OPDConfig(str(tmp_path), max_steps=1, max_completion_length=48, use_cpu=True, disable_tqdm=True)
    OPDTrainer(student, args=args, train_dataset=world.tasks["train"], processing_class=world.tokenizer).train()


def test_iterations_need_a_whole_step_of_rows(world, tmp_path):
    with pytest.raises(ValueError, match="at least 4 rows"):
        train(world, tmp_path, rows=world.tasks["train"][:3], num_iterations=2)


@pytest.mark.parametrize("settings, text", [({"teacher_weights": [2.0, -1.0]}, "teacher_weights: expected numbers"),
                                            ({"fp16": True}, "fp16: expected False"),
                                            ({"kl_coef_end": -1.0}, "kl_coef_end"),
                                            ({"temperature_end": 0.0}, "temperature_end")])
def test_more_wrong_settings(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        OPDConfig(str(tmp_path), use_cpu=True, **settings)


def test_several_teachers_cannot_all_be_sampled(world, tmp_path):
    with pytest.raises(ValueError, match="lmbda: expected 1 with 2 teachers"):
        train(world, tmp_path, teacher=[world.teacher, copy.deepcopy(world.teacher)], **PRESETS["token_kd"])
