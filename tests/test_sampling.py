"""The static decoder and `transformers` agree on models that the notebooks do not use."""
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tinyr2.sampling import draw, rollout
from tinyr2.tiny import tiny_tokenizer, tiny_tasks

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "eos_token_id": 0,
         "pad_token_id": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["llama", "llama-untied-bias", "qwen2"])
def model(request, tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), **SHAPE}
    if request.param == "qwen2":
        config = Qwen2Config(**shape)  # bias on q, k and v only
    else:
        other = request.param != "llama"
        config = LlamaConfig(**shape, tie_word_embeddings=not other, attention_bias=other)
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(n):
    return [task["prompt"] for task in tiny_tasks(0)["train"][:n]]


def test_greedy_tokens_equal_generate(model, tokenizer):
    options = {"num_generations": 1, "max_completion_length": 24, "temperature": 0.0}
    ours = rollout(model, tokenizer, prompts(5), backend="static", **options)
    theirs = rollout(model, tokenizer, prompts(5), backend="hf", **options)
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_kept_logprobs_equal_a_forward_pass(model, tokenizer):
    batch = rollout(model, tokenizer, prompts(4), num_generations=3, max_completion_length=16, temperature=0.8)
    ids = torch.cat([batch.prompt_ids.repeat_interleave(3, 0), batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask.repeat_interleave(3, 0), batch.completion_mask.long()], 1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    width = batch.completion_ids.shape[1]
    expected = (logits[:, -width - 1:-1] / 0.8).log_softmax(-1).gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    assert torch.allclose(expected * batch.completion_mask, batch.logprobs, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(model, tokenizer):
    options = {"num_generations": 2, "max_completion_length": 16, "temperature": 1.0, "seed": 3, "step": 5}
    together = rollout(model, tokenizer, prompts(6), **options).completions
    assert together[4:6] == rollout(model, tokenizer, prompts(6)[2:3], **options).completions


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).expand(50_000, 40)
    tokens, _ = draw(logits, torch.rand(50_000, generator=torch.Generator().manual_seed(1)), 0.7)
    expected = (logits[0] / 0.7).softmax(-1) * 50_000
    seen = torch.bincount(tokens, minlength=40)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 39 + 5 * (2 * 39) ** 0.5


def test_a_prompt_that_comes_twice_is_sampled_anew(tokenizer, model):
    prompt, other = (task["prompt"] for task in tiny_tasks()["train"][:2])
    options = {"num_generations": 2, "max_completion_length": 12, "temperature": 1.0}
    once = rollout(model, tokenizer, [other, prompt], **options).completions
    twice = rollout(model, tokenizer, [prompt, other, prompt], **options).completions
    assert twice[:2] == once[2:] and twice[4:] != twice[:2]
