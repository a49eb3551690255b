"""Preflight, health panel and trouble: names, silence, no trace, and numbers against plain computations."""
import math
import random
import types

import pytest
import torch
import torch.nn.functional as F
from notebooks import definitions

import tinyr2.checks as checks
import tinyr2.diagnostics as diagnostics
import tinyr2.reward as reward
from tinyr2.durable import fingerprint
from tinyr2.checkpoint import ResumableTrainer, random_state
from tinyr2.checks import REMEDIES, memory_estimate
from tinyr2.tasks.tiny import tiny_world
from tinyr2.diagnostics import Preflight, preflight
from tinyr2.trainer import OPDTrainer, distinct_share, is_trivial
from tinyr2.health import HealthPanel, diagnose, gradient_alarms, gradient_shares, top_tokens
from tinyr2.objective import PRESETS

trouble = definitions("injected_faults", calls=("_set",))
FAULTS, tiny_trainer = trouble.FAULTS, trouble.tiny_trainer


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def names(report) -> list[str]:
    return [check.name for check in report.faults]


def test_every_name_has_a_remedy():
    assert {fault.name for fault in FAULTS.values()} <= set(REMEDIES) and checks.FATAL < set(REMEDIES)


@pytest.mark.parametrize("fault", ["gap_in_ids", "permuted_ids", "lost_mask", "frozen_sampling", "reward_reads_ids"])
def test_an_injected_fault_has_its_name_first(world, fault):
    assert FAULTS[fault].found(world)[0] == FAULTS[fault].name


def noisy_reward(prompts, completions, tests, **columns):
    """Draws from the generators that training shares."""
    noise = 1e-3 * (random.random() + float(torch.rand(())))
    return [value + noise for value in reward.tests_reward(prompts, completions, tests)]


def test_a_healthy_trainer_is_silent_and_untouched(world):
    trainer = tiny_trainer(world, rewards=noisy_reward)
    trainer.model.train()
    trainer.model.model.layers[1].eval()  # a mode of its own, not that of the whole
    before = fingerprint(trainer.model), [module.training for module in trainer.model.modules()]
    state = random_state()
    assert names(preflight(trainer)) == []
    assert (fingerprint(trainer.model), [module.training for module in trainer.model.modules()]) == before
    after = random_state()
    assert torch.equal(state["torch"], after["torch"]) and state["python"] == after["python"]
    assert all(p.grad is None for p in trainer.model.parameters()) and not trainer.meter.values


@pytest.mark.parametrize("method", ["sequence_kd", "v4_opd"])
def test_methods_without_own_samples_or_reward_are_healthy(world, method):
    trainer = tiny_trainer(world, **PRESETS[method])
    assert names(preflight(trainer)) == [] and trainer.args.lmbda == PRESETS[method]["lmbda"]


def test_preflight_and_panel_change_no_bit(world):
    runs = []
    for looked in (False, True):
        callbacks = [HealthPanel(every=1, live=False), Preflight()] if looked else []
        trainer = tiny_trainer(world, callbacks=callbacks, max_steps=2)
        trainer.train()
        runs.append(trainer)
    assert fingerprint(runs[0].model) == fingerprint(runs[1].model)
    assert callbacks[1].report and "gradient/reward" in runs[1].state.log_history[0]


def test_all_fatal_faults_are_raised_at_once(world):
    trainer = tiny_trainer(world, max_completion_length=500, callbacks=[Preflight()])
    trainer.teachers[0].train()
    with pytest.raises(RuntimeError, match=r"(?s)lengths: .*teacher_mode: "):
        trainer.train()


def test_a_broken_sandbox_is_named(world, monkeypatch):
    def closed():
        raise OSError("Sandbox needs Linux")

    monkeypatch.setattr(checks, "shared_sandbox", closed)
    trainer = tiny_trainer(world)
    report = checks.Report(checks.check_sandbox(trainer, list(trainer.train_dataset)))
    assert names(report) == ["sandbox"] and "needs Linux" in report[0].seen


def test_a_teacher_read_in_another_way_is_seen_in_the_divergence_from_itself(world, monkeypatch):
    true = diagnostics.completion_states

    def shaken(model, *args):
        states = true(model, *args)
        return states if model.training else states * 1.5

    trainer = tiny_trainer(world)
    batch = trainer.generate(list(trainer.train_dataset)[:2])
    assert abs(diagnostics.readings(trainer, batch)[1]) < 1e-6
    monkeypatch.setattr(diagnostics, "completion_states", shaken)
    report = checks.Report(diagnostics.check_readings(trainer, batch))
    assert "self_kl" in names(report)


def test_memory_parts_are_the_bytes_of_training(world):
    trainer = tiny_trainer(world, max_steps=1)
    parts = memory_estimate(trainer.model, trainer.teachers, trainer.args, 20)
    trainer.train()
    state = trainer.optimizer.state.values()
    assert parts["adamw"] == sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in state)
    assert parts["teachers"] == sum(p.nbytes for p in world.teacher.parameters())


def test_top_tokens_and_shares_against_a_plain_forward(world):
    trainer = tiny_trainer(world, max_steps=1)
    trainer.train()
    step = trainer.parts[0].pick(torch.arange(2))
    kl, logprob_sum = torch.zeros(step.batch.completion_ids.shape), 0.0
    model, teacher = trainer.model.eval(), trainer.teachers[0]
    for i, (ids, mask) in enumerate(zip(step.batch.completion_ids, step.batch.completion_mask)):
        owner = i // step.batch.num_generations
        prompt = step.batch.prompt_ids[owner][step.batch.prompt_mask[owner].bool()]
        whole = torch.cat([prompt, ids[mask]])[None]
        own, other = (m(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model, teacher))
        kl[i, : len(own)] = F.kl_div(other, own, log_target=True, reduction="none").sum(-1).detach()
        logprob_sum = logprob_sum + step.advantages[i] * own.gather(1, ids[mask][:, None]).sum()
    found, by_position, _ = top_tokens(trainer, step, k=439)
    counts = step.batch.completion_mask.sum(0).clamp(min=1)
    assert torch.allclose(torch.tensor(by_position), kl.sum(0) / counts, atol=1e-4)
    assert found["top/overlap"] == 1 and math.isclose(found["top/mass"], 1, abs_tol=1e-5)
    grads = torch.autograd.grad(0.8 * logprob_sum / step.tokens, list(model.parameters()))
    norm = math.sqrt(sum(float(g.pow(2).sum()) for g in grads))
    assert math.isclose(gradient_shares(trainer, step)["gradient/reward"], norm, rel_tol=1e-3)


def test_alarms_do_not_depend_on_the_scale():
    calm = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.3]
    for scale in (1e-4, 1.0, 1e4):
        scores = gradient_alarms([scale * x for x in [*calm, 30.0]])
        assert max(scores[:-1]) < 6 < scores[-1]
    assert gradient_alarms([*calm, math.nan])[-1] == math.inf


def test_an_empty_or_short_log_says_nothing():
    assert diagnose([]) == [] and diagnose([{"reward": 0.1, "grad_norm": 0.3, "step": 1}]) == []


def test_trivial_and_distinct():
    assert is_trivial("def f(xs):\n    '''Sum.'''\n    return None\n") and not is_trivial("def f(xs):\n    return xs\n")
    assert not is_trivial("x = 1")
    batch = types.SimpleNamespace(num_generations=2, completions=["a", "a", "a", "b"])
    assert distinct_share(batch) == 0.75


def test_the_trainer_is_the_checkpointing_one():
    assert issubclass(OPDTrainer, ResumableTrainer)
