"""The static decoder and `transformers` agree on models that the notebooks do not use."""
import copy
import os
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tinyr2 import sampling
from tinyr2.engine import cpu
from tinyr2.data import format_prompt, left_pad, pack_rollout, stop_token_ids
from tinyr2.engine.cpu import CompiledDecoder, SharedCache, kernels, open_decoder
from tinyr2.engine.decoder import Decoder, ForkedCache, unsupported
from tinyr2.environment import pick_device
from tinyr2.engine.gpu import RecordedLoop, _pick, recorded_loop
from tinyr2.engine.loop import Rows, draw, drawing_kernels, inverse_cdf, sample_rows
from tinyr2.sampling import rollout, sample_many
from tinyr2.tasks.tiny import tiny_tokenizer, tiny_tasks

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "eos_token_id": 0,
         "pad_token_id": 1}


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["llama", "llama-untied-bias", "one-key-head", "qwen2", "mistral", "gemma"])
def model(request, tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), **SHAPE}
    if request.param == "qwen2":
        config = Qwen2Config(**shape)  # bias on q, k and v only
    elif request.param == "mistral":
        config = MistralConfig(**shape, sliding_window=None)
    elif request.param == "gemma":
        config = GemmaConfig(**shape, head_dim=16)
    else:
        shape |= {"num_key_value_heads": 1} if request.param == "one-key-head" else {}  # six query heads: four and two
        other = request.param == "llama-untied-bias"
        config = LlamaConfig(**shape, tie_word_embeddings=not other, attention_bias=other)
    return AutoModelForCausalLM.from_config(config).eval()


needs_compiler = pytest.mark.skipif(os.environ.get("TINYR2_CPU") == "plain", reason="the compiler is taken away")


def forget_kernels():
    for function in (cpu.kernels, cpu.kernels_work, drawing_kernels):
        function.cache_clear()


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


@pytest.fixture(params=["one call", "matrix library"])
def size(request, monkeypatch):
    """Models of the tests are small; with a limit of nothing their products go to the matrix library as well."""
    if request.param == "matrix library":
        monkeypatch.setattr(cpu, "SMALL", 0)


@needs_compiler
def test_kernels_equal_plain_pytorch(model, tokenizer, size):
    assert kernels() is not None and isinstance(open_decoder(model), CompiledDecoder)
    options = {"num_generations": 3, "max_completion_length": 24, "temperature": 1.0}
    fast, plain = (rollout(model, tokenizer, prompts(5), backend=name, **options) for name in ("static", "plain"))
    assert fast.completions == plain.completions
    assert torch.allclose(fast.logprobs, plain.logprobs, atol=1e-4)


@torch.no_grad()
def given_tokens_error(model, ids, mask, kind, dtype):
    """Root mean square difference of logits from the model's own in float32, over 8 tokens that are given."""
    cache = open_decoder(model, dtype, compiled=kind is SharedCache).new_cache(len(ids), ids.shape[1], 2, 8)
    cache.add(ids, mask)
    given = torch.randint(2, 400, (2 * len(ids), 8), generator=torch.Generator().manual_seed(0))
    ours = torch.stack([cache.step(given[:, t], torch.full((len(given),), t)) for t in range(8)], 1)
    seen = torch.cat([mask.repeat_interleave(2, 0), torch.ones_like(given)], 1)
    whole = torch.cat([ids.repeat_interleave(2, 0), given], 1)
    theirs = model(whole, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0)).logits[:, -8:]
    return (ours.float() - theirs).square().mean().sqrt().item()


@needs_compiler
def test_kernels_round_no_worse_than_pytorch(model, tokenizer, size):
    ids, mask = left_pad([tokenizer(p)["input_ids"] for p in prompts(6)], tokenizer.pad_token_id)
    exact, compiled, plain = (given_tokens_error(model, ids, mask, *kind) for kind in (
        (SharedCache, torch.float32), (SharedCache, torch.bfloat16), (ForkedCache, torch.bfloat16)))
    assert exact < 1e-4 < compiled < 1.2 * plain


def test_waiting_prompts_take_free_places(model, tokenizer):
    """However few rows are written at a time, and in whatever order they end, the programs are the same."""
    options = {"num_generations": 2, "max_completion_length": 20, "temperature": 1.0, "progress": False}
    asked = prompts(9)
    whole = rollout(model, tokenizer, asked, **options).completions
    for rows in (2, 6, 10):
        for backend in ("static", "plain"):
            assert rollout(model, tokenizer, asked, max_rows=rows, backend=backend, **options).completions == whole
    many = sample_many(model, tokenizer, asked, batch_rows=4, **options)
    assert sum(many, []) == whole


@pytest.mark.parametrize("backend, kind", [pytest.param("static", SharedCache, marks=needs_compiler),
                                           ("plain", ForkedCache)])
def test_rows_that_have_finished_leave(tokenizer, monkeypatch, backend, kind):
    seen, step = [], kind.step
    monkeypatch.setattr(kind, "step", lambda self, tokens, own: seen.append(len(tokens)) or step(self, tokens, own))
    monkeypatch.setattr(sampling, "stop_token_ids", lambda tokenizer: list(range(2, 60)))
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).eval()
    batch = rollout(model, tokenizer, prompts(8), max_completion_length=24, temperature=1.0, backend=backend)
    writing = batch.completion_mask.sum(0).tolist()[1:]  # the first token comes with the prompt
    assert len(seen) == len(writing) and sum(seen) < 0.6 * 32 * len(seen)
    for rows, left in zip(seen, writing):
        assert left <= rows < left + 8 if kind is SharedCache else 0.75 * rows < left <= rows


@torch.no_grad()
@pytest.mark.parametrize("backend", ["static", "plain"])
def test_two_tokens_follow_the_distribution_of_the_model(backend):
    words = {word: i for i, word in enumerate(["<eos>", "<pad>", "\n", *"abcdefghi"])}
    special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(words, [])), **special)
    shape = SHAPE | {"vocab_size": 12, "initializer_range": 0.15}  # many pairs that are likely enough to be counted
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).eval()
    batch = rollout(model, tokenizer, ["abc"], num_generations=10_000, max_completion_length=2, temperature=0.7,
                    backend=backend)
    each = torch.cat([batch.prompt_ids.expand(12, -1), torch.arange(12)[:, None]], 1)
    first, second = (model.double()(each).logits[:, -2:] / 0.7).softmax(-1).unbind(1)
    second[0] = torch.eye(12)[1]  # padding after a stop token
    exact = 10_000 * (first[0, :, None] * second).flatten()
    seen, often = torch.bincount(batch.completion_ids @ torch.tensor([12, 1]), minlength=144), exact >= 5
    pooled = [torch.cat([x[often], x[~often].sum()[None]]) for x in (seen, exact)]
    assert chisquare(*pooled).pvalue > 1e-4


def test_two_stages_draw_as_one():
    generator = torch.Generator().manual_seed(0)
    for size in (4096, 5000, 49_152):
        probs = torch.randn(200, size, generator=generator).mul(3).softmax(-1)
        uniform = torch.rand(200, generator=generator)
        two, one = inverse_cdf(probs, uniform), inverse_cdf(probs.double(), uniform.double(), block=size)
        assert (two != one).sum() <= 1  # a draw within rounding of a boundary
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert inverse_cdf(torch.full((2, 5000), 1 / 5000), edges).tolist() == [0, 4999]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["static", "plain"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_no_numbers_are_noticed(tokenizer, backend, kind, temperature):
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).eval().to(kind)
    options = {"num_generations": 2, "max_completion_length": 4, "backend": backend, "temperature": temperature}
    for bad, rows in ((torch.nan, 300), (torch.inf, 300), (torch.nan, slice(None)), (-torch.inf, slice(None))):
        with torch.no_grad():
            model.lm_head.weight[rows, 5] = bad
        with pytest.raises(FloatingPointError, match="logits that are no numbers"):
            rollout(model, tokenizer, prompts(2), **options)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_draws_follow_the_distribution(dtype):
    """Of 50,000 rows of one distribution over 700 tokens, a third of them without any weight."""
    logits = (2 * torch.randn(1, 700, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[0, ::3] = -torch.inf
    noise = torch.rand(50_000, 1, generator=torch.Generator().manual_seed(1))
    work = Rows(noise, 0, drawing_kernels()[f"draw_{str(dtype).split('.')[1]}"])
    work.add(0, 50_000)
    tokens, done = work.draw(logits.expand(50_000, 700).contiguous(), 0.8, torch.zeros(700, dtype=torch.bool))
    exact = (logits[0].double() / 0.8).softmax(-1)
    seen, often = torch.bincount(tokens, minlength=700), exact * 50_000 > 5
    chi_square = ((seen - exact * 50_000) ** 2 / (exact * 50_000))[often].sum()
    assert done == 50_000 and seen[::3].sum() == 0 and chi_square < often.sum() + 5 * (2 * often.sum()) ** 0.5
    assert torch.allclose(work.logprobs[:-1, 0].double(), exact[tokens].log(), atol=1e-5)
    plain, _ = draw(logits.expand(50_000, 700), noise[:, 0], 0.8)
    assert (tokens != plain).sum() <= 5  # draws within rounding of a boundary


def test_the_loop_for_a_gpu_samples_the_same(model, tokenizer):
    """On a GPU as it is recorded, elsewhere by Triton's interpreter: same tokens, few rows at a time, new weights."""
    options = {"num_generations": 2, "max_completion_length": 3, "temperature": 1.0}
    texts = prompts(2)
    encoded = [tokenizer(format_prompt(tokenizer, text), add_special_tokens=False)["input_ids"] for text in texts]
    noise = sampling._noise([format_prompt(tokenizer, text) for text in texts], 2, 3, 0, 0).to(model.device)
    stop_ids, pad_id = stop_token_ids(tokenizer), tokenizer.pad_token_id
    for turn, rows in enumerate((None, 2)):
        plain = rollout(model, tokenizer, texts, backend="plain", **options)
        ids, scores = recorded_loop(model).sample(encoded, 2, noise, stop_ids, 1.0, pad_id, rows)
        width = plain.completion_ids.shape[1]
        assert torch.equal(ids[:, :width][plain.completion_mask], plain.completion_ids[plain.completion_mask])
        assert torch.allclose(scores[:, :width] * plain.completion_mask, plain.logprobs, atol=1e-4)
        if not turn:
            model = copy.deepcopy(model)
            with torch.no_grad():
                model.lm_head.weight *= 1.5


@torch.no_grad()
def test_one_loop_for_rollouts_that_differ(tokenizer, monkeypatch):
    """More samples and tokens than before, other temperatures and stop tokens, rows that leave, rows of nobody."""
    monkeypatch.setattr(RecordedLoop, "advance", lambda self, n: self.step(min(self.room["rows"], -(-n // 4) * 4)))
    shape = SHAPE | {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    decoder, loop = Decoder(model), recorded_loop(model)
    encoded = [tokenizer(text)["input_ids"] for text in prompts(4)]
    for count, length, rows, temperature, stops in ((3, 9, 4, 1.0, 40), (2, 3, None, 0.0, 1), (4, 11, 6, 2.0, 60)):
        noise = torch.rand(2 * count, length, generator=torch.Generator().manual_seed(count))
        options = (encoded[-count:], 2, noise, list(range(stops)), temperature, tokenizer.pad_token_id, rows, False)
        for ours, plain in zip(loop.sample(*options), sample_rows(decoder, *options)):
            assert torch.allclose(ours.double(), plain.double(), atol=1e-4)
    assert recorded_loop(model) is loop
    model.resize_token_embeddings(len(tokenizer) + 8)
    assert recorded_loop(model) is not loop


def test_the_loop_for_a_gpu_sees_what_is_no_number(tokenizer):
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).eval()
    model.model.norm.weight.data[0] = torch.nan
    _, scores = recorded_loop(model).sample([[3, 4]], 1, torch.rand(1, 2), [1], 1.0, tokenizer.pad_token_id)
    assert scores[0, 0].isnan()


def pick(logits, uniforms, temperature, block=4, many=4):
    """One draw of the kernel for every uniform number: tokens and scores."""
    n, device = len(uniforms), logits.device
    zeros = partial(torch.zeros, device=device)
    tokens, place, scores = zeros(n, dtype=torch.long), zeros(n, 4, dtype=torch.long), zeros(n, 1)
    settings = torch.tensor([1 / (temperature or 1.0), float(not temperature), 1, n], device=device)
    _pick[(n,)](logits.expand(n, -1).contiguous(), logits.shape[-1], settings, uniforms[:, None].contiguous(),
                zeros(logits.shape[-1], dtype=torch.int32), torch.arange(n, device=device), place, tokens,
                zeros(n, 1, dtype=torch.long), scores, 1, BLOCK=block, MANY=many)  # fmt: skip
    return tokens, scores[:, 0]


def test_the_draw_for_a_gpu_over_several_blocks():
    """Eleven tokens in blocks of four, one token and one whole block without any weight, against float64."""
    device = pick_device("auto")
    logits = torch.tensor([1.0, -torch.inf, 0.5, 2.0, *[-torch.inf] * 4, 2.0, -1.0, 0.0], device=device)
    for temperature in (1.0, 0.6):
        exact = (logits.double() / temperature).softmax(0)
        ends = exact.cumsum(0)[:-1].float()
        uniforms = torch.cat([torch.tensor([0, 1 - 2**-24], device=device), ends - 1e-5, ends + 1e-5])
        tokens, scores = pick(logits, uniforms.clamp(0, 1 - 2**-24), temperature)
        right = torch.searchsorted(exact.cumsum(0), uniforms.clamp(0).double(), right=True)
        assert torch.equal(tokens, right) and set(tokens.tolist()) == {0, 2, 3, 8, 9, 10}
        assert torch.allclose(scores.double(), exact.log()[tokens], atol=1e-5)
    tokens, scores = pick(logits, uniforms, 0.0)
    assert set(tokens.tolist()) == {3}  # the first of two equals
    assert torch.allclose(scores.double(), logits.double().log_softmax(0)[3], atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 5, 10])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_draw_for_a_gpu_notices_what_is_no_number(bad, at, temperature):
    logits = torch.randn(11, generator=torch.Generator().manual_seed(0)).to(pick_device("auto"))
    for others in (logits, torch.full_like(logits, -torch.inf)):
        others[at] = bad
        tokens, scores = pick(others, torch.rand(3, device=logits.device), temperature)
        assert scores.isnan().all() and 0 <= tokens.min() and tokens.max() < 11
    others[:] = -torch.inf
    assert pick(others, torch.rand(3, device=logits.device), temperature)[1].isnan().all()


def test_another_family_says_so(tokenizer, caplog):
    config = Qwen3Config(vocab_size=len(tokenizer), **SHAPE, head_dim=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    rollout(model, tokenizer, prompts(1), num_generations=1, max_completion_length=2)
    assert "no decoder for 'qwen3', using generate()" in caplog.text
    with pytest.raises(ValueError, match="Decoder: no decoder for 'qwen3'"):
        Decoder(model)


@needs_compiler
def test_without_a_compiler(model, tokenizer, monkeypatch, caplog):
    whole = rollout(model, tokenizer, prompts(2), num_generations=2, max_completion_length=8).completions
    monkeypatch.setenv("PATH", "/nowhere")
    forget_kernels()
    try:
        assert type(open_decoder(model)) is Decoder and "kernels: not on this machine" in caplog.text
        again = rollout(model, tokenizer, prompts(2), num_generations=2, max_completion_length=8).completions
        assert again == whole
    finally:
        monkeypatch.undo()
        forget_kernels()


@needs_compiler
def test_kernels_leave_subnormal_numbers_alone():
    assert kernels() is not None
    assert float("1e-310") * 0.5 > 0 and (torch.tensor(1e-40) * 0.5).item() > 0


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens"])
def test_adapters_outside_the_layers_are_not_forgotten(tokenizer, part):
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPE))
    assert unsupported(model) is None
    assert "head or the embedding" in unsupported(get_peft_model(model, LoraConfig(target_modules=[part])))


def test_rotary_angles(tokenizer):
    """Stretched angles (YaRN) are those of `generate`; angles that change with the length are left to it."""
    shape = {"vocab_size": len(tokenizer), **SHAPE}
    models = [AutoModelForCausalLM.from_config(LlamaConfig(**shape, rope_parameters={
        "rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32})).eval()
        for kind in ("yarn", "dynamic")]
    options = {"num_generations": 1, "max_completion_length": 24, "temperature": 0.0}
    ours, theirs = (rollout(models[0], tokenizer, prompts(3), backend=name, **options) for name in ("static", "hf"))
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert "rotary angles that change with the length (dynamic)" in unsupported(models[1])


class StandIn:
    """What tinyr2 asks of TRL's VLLMGeneration and of the engine in it; samples by the plain decoder."""

    made, synced, limit = 0, 0, 10**9

    def __init__(self, model, accelerator, tokenizer, **options):
        StandIn.made += 1
        self.model, self.llm = model, self
        self.weights = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def sync_weights(self):
        StandIn.synced += 1
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def generate(self, rows, params, use_tqdm):
        wanted = {"ignore_eos": True, "detokenize": False, "logprobs": 0}
        assert len(rows) == len(params) and all(wanted.items() <= p.items() for p in params)
        return [SimpleNamespace(outputs=[self.one(row["prompt_token_ids"], p)]) for row, p in zip(rows, params)]

    @torch.no_grad()
    def one(self, ids, p):
        generator, ids, found = torch.Generator().manual_seed(p["seed"]), list(ids), []
        while len(found) < min(p["max_tokens"], StandIn.limit) and not (found and found[-1][0] in p["stop_token_ids"]):
            logits = torch.func.functional_call(self.model, self.weights, (torch.tensor([ids]),)).logits[0, -1]
            token, logprob = draw(logits[None], torch.rand(1, generator=generator), p["temperature"])
            found.append((int(token), float(logprob)))
            ids.append(int(token))
        return SimpleNamespace(token_ids=tuple(t for t, _ in found),
                               logprobs=[{t: SimpleNamespace(logprob=x)} for t, x in found])


def test_vllm_through_trl(tokenizer, monkeypatch):
    """Our side of it: engine made once, weights given each time, every sample with a seed of its own."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).eval()
    options = {"num_generations": 2, "max_completion_length": 12, "temperature": 0.9, "backend": "vllm"}
    with pytest.raises(ImportError, match="vLLM is not installed"):
        rollout(model, tokenizer, prompts(1), **options)
    vllm = ModuleType("vllm")
    vllm.SamplingParams, vllm.__spec__ = dict, ModuleSpec("vllm", None)
    monkeypatch.setattr("trl.generation.vllm_generation.VLLMGeneration", StandIn)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with pytest.raises(ValueError, match="save this one"):
        rollout(model, tokenizer, prompts(1), **options)
    model.name_or_path = "somewhere"
    batch = rollout(model, tokenizer, prompts(3), **options)
    assert (StandIn.made, StandIn.synced) == (1, 1) and batch.completions[0] != batch.completions[1]
    assert rollout(model, tokenizer, prompts(3)[1:2], **options).completions == batch.completions[2:4]
    again = rollout(model, tokenizer, prompts(3), **options | {"temperature": 0.0, "num_generations": 1})
    greedy = rollout(model, tokenizer, prompts(3), **options | {"temperature": 0.0, "num_generations": 1,
                                                                "backend": "static"})
    assert torch.equal(again.completion_ids, greedy.completion_ids)
    assert torch.allclose(again.logprobs, greedy.logprobs, atol=1e-4)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert rollout(model, tokenizer, prompts(3), **options).completions != batch.completions
    assert (StandIn.made, StandIn.synced) == (1, 4)
    monkeypatch.setattr(StandIn, "limit", 3)
    with pytest.raises(RuntimeError, match="ended after 3 tokens without a stop token"):
        rollout(model, tokenizer, prompts(3), **options)


def test_padding_without_a_chance_is_no_fault(tokenizer):
    """`generate` scores what stands behind the end, where a model may give its padding no chance at all."""
    ids, mask = left_pad([[5, 6]], tokenizer.pad_token_id)
    stops = stop_token_ids(tokenizer)
    tokens = torch.tensor([[7, stops[0], tokenizer.pad_token_id, tokenizer.pad_token_id], [7, 8, 9, stops[0]]])
    scores = torch.tensor([[-1.0, -2.0, -torch.inf, -torch.inf], [-1.0, -1.0, -1.0, -1.0]])
    batch = pack_rollout(tokenizer, ["p"], 2, ids, mask, tokens, scores, stops)
    assert batch.logprobs.tolist() == [[-1.0, -2.0, 0.0, 0.0], [-1.0] * 4]
    scores[1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="no numbers"):
        pack_rollout(tokenizer, ["p"], 2, ids, mask, tokens, scores, stops)


def test_a_model_that_reads_both_ways_goes_to_generate():
    config = GemmaConfig(vocab_size=64, head_dim=16, **SHAPE)
    assert unsupported(AutoModelForCausalLM.from_config(config)) is None
    config.use_bidirectional_attention = True
    assert "both directions" in unsupported(AutoModelForCausalLM.from_config(config))
