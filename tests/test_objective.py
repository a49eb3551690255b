"""The loss by value: against TRL's divergence, a hand-made RLOO gradient, and itself in other shapes."""
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.experimental.gkd import GKDTrainer

from tinyr2 import opd_loss
from tinyr2.config import OPDConfig
from tinyr2.step import OPDStep, accumulate_gradients, teacher_states
from tinyr2.engine.divergence import hidden_divergence
from tinyr2.objective import PRESETS, group_advantages, token_divergence, token_logprobs
from tinyr2.sampling import rollout
from tinyr2.tasks.tiny import tiny_world


def random(*shape, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(options.get("grad", False))


@pytest.mark.parametrize("beta", (0.0, 0.1, 0.5, 0.9, 1.0))
def test_divergence_and_its_gradient_are_trls(beta):
    ours, theirs, teacher = random(3, 5, 40, grad=True), random(3, 5, 40, grad=True), random(3, 5, 40, seed=1)
    mine = token_divergence(ours, teacher, beta).mean()
    trl = GKDTrainer.generalized_jsd_loss(theirs, teacher, beta=beta, reduction="sum") / 15
    (a,), (b,) = torch.autograd.grad(mine, ours), torch.autograd.grad(trl, theirs)
    assert torch.allclose(mine, trl, atol=1e-6) and torch.allclose(a, b, atol=1e-8)


def test_reward_only_is_rloo_by_hand():
    groups, size, length, vocabulary = 3, 4, 6, 9
    logits, ids = random(groups * size, length, vocabulary, grad=True), torch.arange(72).view(12, 6) % vocabulary
    lengths, rewards = [6, 3, 1, 5] * 3, random(groups, size, seed=2)
    mask = torch.tensor([[t < n for t in range(length)] for n in lengths])
    setting = PRESETS["reward_only"]
    loss = opd_loss(token_logprobs(logits, ids), torch.zeros(12, 6, dtype=torch.float64),
                    group_advantages(rewards, setting["baseline"]).flatten(), mask, normalization="sequence_sum",
                    reward_coef=setting["reward_coef"], kl_coef=setting["kl_coef"], gamma=setting["gamma"])
    (found,) = torch.autograd.grad(loss, logits)
    wanted = torch.zeros_like(found)
    for g, k in itertools.product(range(groups), range(size)):
        others = [rewards[g, j].item() for j in range(size) if j != k]
        advantage, row = rewards[g, k].item() - sum(others) / (size - 1), g * size + k
        for t in range(lengths[row]):
            p = logits[row, t].detach().softmax(-1)
            score = -p
            score[ids[row, t]] += 1  # gradient of log softmax at the drawn token
            wanted[row, t] = -advantage * score / (groups * size)
    assert (found - wanted).abs().max() < 1e-12


def test_padding_changes_nothing():
    logprobs, divergence, advantages = random(4, 5), random(4, 5, seed=1), random(4, seed=2)
    mask = torch.ones(4, 5)
    settings = {"gamma": 0.7, "kl_coef": torch.tensor([0.1, 0.2, 0.0, 0.4]), "imitate": torch.tensor([0.0, 1.0, 0, 0])}
    pad = (0, 3)
    wide = [torch.nn.functional.pad(x, pad, value=7.0) for x in (logprobs, divergence)]
    one = opd_loss(logprobs, divergence, advantages, mask, **settings)
    two = opd_loss(*wide, advantages, torch.nn.functional.pad(mask, pad), **settings)
    assert torch.allclose(one, two, atol=1e-14)


def test_chunks_change_nothing():
    hidden, head, other = random(50, 8), random(30, 8, seed=1), random(50, 8, seed=2)
    ids, weight = torch.arange(50) % 30, (torch.arange(50) % 3 == 0).double()
    whole, parts = (hidden_divergence(hidden, head, ids, [(other, head, weight), (hidden, head, 1 - weight)],
                                      temperature=0.8, beta=0.3, chunk=chunk) for chunk in (5000, 350))
    for a, b in zip(vars(whole).values(), vars(parts).values()):
        assert torch.allclose(a, b, atol=1e-6)
    assert whole.divergence[weight == 0].abs().max() < 1e-6 < whole.divergence[weight == 1].min()


@pytest.mark.parametrize("chunk", (1, 120, 10**6))
@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_terms_and_their_gradients_are_those_of_whole_logits(beta, chunk):
    hidden, head = random(20, 8, grad=True), random(30, 8, seed=1, grad=True)
    theirs, heads = [random(20, d, seed=d) for d in (8, 5)], [random(30, d, seed=d + 1) for d in (8, 5)]
    ids, weights, pull = torch.arange(20) % 30, torch.rand(2, 20).double(), random(2, 20, seed=9)
    logits = hidden @ head.T / 0.7
    divergence = sum(w * token_divergence(logits, h @ other.T / 0.7, beta)
                     for w, h, other in zip(weights, theirs, heads))
    terms = hidden_divergence(hidden, head, ids, list(zip(theirs, heads, weights)), temperature=0.7, beta=beta,
                              chunk=chunk)
    pairs = ((token_logprobs(logits, ids), divergence), (terms.logprobs, terms.divergence))
    want, found = (torch.autograd.grad((pull * torch.stack(pair)).sum(), (hidden, head), retain_graph=True)
                   for pair in pairs)
    for one, two in zip((*pairs[0], *want, torch.distributions.Categorical(logits=logits).entropy()),
                        (*pairs[1], *found, terms.entropy)):
        assert torch.allclose(one, two, atol=1e-11)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operator returned."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.size = max(self.size, *(x.numel() for x in tree_leaves(found) if torch.is_tensor(x)), 0)
        return found


@pytest.mark.parametrize("chunk", (2**16, None))
@pytest.mark.parametrize("beta, sampled", ((0.0, False), (0.5, False), (1.0, False), (1.0, True)))
def test_no_tensor_has_the_logits_of_all_positions(beta, sampled, chunk):
    hidden, head, theirs = (torch.randn(n, 2, requires_grad=True) for n in (64, 2**15, 64))
    options = {"beta": beta, "sampled": sampled, "chunk": chunk}
    with Largest() as forward:
        terms = hidden_divergence(hidden, head, torch.arange(64), [(theirs, head, 1.0)], **options)
    with Largest() as backward:
        (terms.logprobs + terms.divergence).sum().backward()
    assert forward.size == backward.size == (chunk or 2**19) < 64 * 2**15


def test_many_pieces_in_bf16_add_up_in_float32():
    hidden, head = torch.randn(256, 64, requires_grad=True), 0.3 * torch.randn(4096, 64)
    theirs, ids = torch.randn(256, 64), torch.arange(256)
    found = []
    for dtype, chunk in ((None, 2**30), (torch.bfloat16, 2**30), (torch.bfloat16, 256 * 8)):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            terms = hidden_divergence(hidden, head, ids, [(theirs, head, 1.0)], chunk=chunk)
        found += torch.autograd.grad((terms.logprobs + terms.divergence).sum(), hidden)
    whole, pieces = ((x - found[0]).norm() / found[0].norm() for x in found[1:])
    assert pieces < 1.3 * whole < 0.05


def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="ids: expected tokens below 30, got -100 to 3"):
        hidden_divergence(random(2, 8), random(30, 8), torch.tensor([-100, 3]))


@pytest.mark.parametrize("teachers", (0, 1))
def test_a_frozen_head_gets_no_gradient(teachers):
    hidden, head = random(20, 8, grad=True), random(30, 8, seed=1)
    guides = [(random(20, 8, seed=2), head, 1.0)] * teachers
    terms = hidden_divergence(hidden, head, torch.arange(20), guides)
    (terms.logprobs + terms.divergence).sum().backward()
    assert hidden.grad.abs().max() > 0 and head.grad is None and (terms.divergence.abs().max() > 0) == bool(teachers)


def test_equal_models_have_no_divergence_and_no_gradient():
    hidden, head = random(20, 8, grad=True), random(30, 8, seed=1)
    for beta in (0.0, 0.5, 1.0):
        terms = hidden_divergence(hidden, head, torch.arange(20), [(hidden.detach(), head, 1.0)], beta=beta)
        (gradient,) = torch.autograd.grad(terms.divergence.sum(), hidden)
        assert terms.divergence.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


def gradient(world, batch, advantages, tmp_path, keep=None, **settings):
    world.student.zero_grad()
    args = OPDConfig(str(tmp_path), temperature=1.0, **settings)
    n, keep = len(batch.completions), torch.ones(len(batch.completions), dtype=torch.bool) if keep is None else keep
    ones = torch.ones(len(batch.prompts), 1)
    guides = teacher_states([world.teacher], world.student, batch, ones, keep, args)
    step = OPDStep(batch, advantages, keep, torch.full((n,), args.kl_coef), ones, guides, 1.0)
    accumulate_gradients(world.student, step, args)
    return [p.grad.clone() for p in world.student.parameters()]


def test_batch_order_and_micro_batches_change_nothing(tmp_path):
    world = tiny_world()
    prompts = [task["prompt"] for task in world.tasks["train"][:6]]
    options = {"num_generations": 2, "max_completion_length": 32, "temperature": 1.0}
    batch = rollout(world.student, world.tokenizer, prompts, **options)
    advantages, order = torch.linspace(-1, 1, 12), torch.tensor([4, 0, 5, 2, 1, 3])
    one = gradient(world, batch, advantages, tmp_path, micro_batch_rows=12)
    two = gradient(world, batch.pick(order), advantages[batch.rows(order)], tmp_path, micro_batch_rows=5)
    for a, b in zip(one, two):
        assert torch.allclose(a, b, atol=1e-5 * a.abs().max().item() + 1e-8)


def readings(model):
    """Fills with the number of completions in each reading by the model's body; those of prompts do not count."""
    found = []
    model.get_decoder().register_forward_pre_hook(
        lambda body, ids, options: found.extend([len(ids[0])] * (options["past_key_values"].get_seq_length() > 0)),
        with_kwargs=True)
    return found


@pytest.fixture
def counted():
    """The tiny world, twelve completions of four prompts, no two of them equal, and what each model has read."""
    world = tiny_world()
    prompts = [task["prompt"] for task in world.tasks["train"][:4]]
    batch = rollout(world.student, world.tokenizer, prompts, num_generations=3, max_completion_length=16)
    batch.completion_ids = torch.arange(batch.completion_ids.numel()).view_as(batch.completion_ids) + 2
    return world, batch, [readings(model) for model in (world.teacher, world.student)]


def test_only_kept_completions_are_read(counted, tmp_path):
    world, batch, read = counted
    gradient(world, batch, torch.linspace(-1, 1, 12), tmp_path, keep=torch.arange(12) % 4 == 0)
    assert [sum(found) for found in read] == [3, 3]


def test_equal_completions_are_read_once(counted, tmp_path, monkeypatch):
    world, batch, read = counted
    first = torch.tensor([0, 0, 0, 3, 4, 3, 6, 7, 7, 9, 10, 11])
    batch.completion_ids, batch.completion_mask = batch.completion_ids[first], batch.completion_mask[first]
    once = gradient(world, batch, torch.linspace(-1, 1, 12), tmp_path)
    assert [sum(found) for found in read] == [8, 8]
    for place in ("tinyr2.step", "tinyr2.engine.reading"):
        monkeypatch.setattr(f"{place}.unique_completions", lambda batch, rows: (rows, torch.arange(len(rows))))
    every = gradient(world, batch, torch.linspace(-1, 1, 12), tmp_path)
    assert [sum(found) for found in read] == [8 + 12, 8 + 12]
    for a, b in zip(once, every):
        assert torch.allclose(a, b, atol=1e-5 * a.abs().max().item() + 1e-8)
