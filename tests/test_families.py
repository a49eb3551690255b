"""Small random models of other families: the trainer's gradient is that of a plain forward, and a step runs."""
import copy
from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tinyr2 import OPDConfig, opd_loss, rollout
from tinyr2.trainer import OPDTrainer
from tinyr2.objective import token_divergence, token_logprobs
from tinyr2.step import OPDStep, accumulate_gradients, teacher_states
from tinyr2.tasks.tiny import tiny_world

SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma": GemmaConfig,
            "mistral": partial(MistralConfig, sliding_window=8),  # a window shorter than the prompts
            "tied": partial(LlamaConfig, tie_word_embeddings=True)}


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def random_model(family: str, seed: int, world):
    torch.manual_seed(seed)
    tokens = {name: getattr(world.tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    return AutoModelForCausalLM.from_config(FAMILIES[family](**SHAPE, **tokens, bos_token_id=None)).eval()


def completion_logits(model, batch):
    g = batch.num_generations
    ids = torch.cat([batch.prompt_ids.repeat_interleave(g, 0), batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask.repeat_interleave(g, 0), batch.completion_mask.long()], 1)
    logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    return logits[:, -batch.completion_ids.shape[1] - 1 : -1] / 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_that_of_a_plain_forward(world, family, tmp_path):
    model, teacher = random_model(family, 0, world), random_model(family, 1, world)
    prompts = [task["prompt"] for task in world.tasks["train"][:3]]
    batch = rollout(model, world.tokenizer, prompts, num_generations=2, max_completion_length=12, temperature=0.7)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 0.0])
    logits, theirs = completion_logits(model, batch), completion_logits(teacher, batch).detach()
    opd_loss(token_logprobs(logits, batch.completion_ids), token_divergence(logits, theirs), advantages,
             batch.completion_mask).backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    every, ones, kept = torch.ones(6, dtype=torch.bool), torch.ones(3, 1), None
    for again in (False, True):  # two micro-batches; the second time layers are computed again, to the same bits
        args = OPDConfig(str(tmp_path), temperature=0.7, micro_batch_rows=4, recompute=again)
        guides = teacher_states([teacher], model, batch, ones, every, args)
        model.zero_grad()
        step = OPDStep(batch, advantages, every, torch.full((6,), 0.2), ones, guides, 0.7)
        accumulate_gradients(model, step, args)
        for want, parameter in zip(expected, model.parameters()):
            assert (want is None) == (parameter.grad is None)
            assert want is None or (want - parameter.grad).abs().max() < 1e-4 * want.abs().max() + 1e-7
        accumulate_gradients(model, step, args)  # once more, on what is there
        found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        kept = found if kept is None else kept
        assert all(a is b or torch.equal(a, b) for a, b in zip(kept, found))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "tied"])
def test_a_users_own_models_in_folders(world, family, tmp_path):
    folders = [tmp_path / name for name in ("student", "teacher")]
    for seed, folder in enumerate(folders):
        random_model(family, seed, world).save_pretrained(folder)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    args = OPDConfig(str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, max_completion_length=12,
                     learning_rate=1e-3, use_cpu=True, disable_tqdm=True)
    start = copy.deepcopy(student)
    trainer = OPDTrainer(student, teacher, args=args, train_dataset=world.tasks["train"],
                         processing_class=world.tokenizer)
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), trainer.model.parameters()))
    assert trainer.state.log_history[0]["kl"] > 0


def test_a_family_that_bends_its_logits_is_refused(world, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, final_logit_softcapping=0.1)).eval()
    with pytest.raises(ValueError, match="model: its logits are not its head"):
        OPDTrainer(model, args=OPDConfig(str(tmp_path), use_cpu=True), train_dataset=world.tasks["train"],
                   processing_class=world.tokenizer)
