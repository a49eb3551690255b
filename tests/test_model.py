"""Shapes, crops, positions and the V4 family, against transformers and invariances rather than our own formulas."""
import copy

import pytest
import torch
from notebooks import definitions
from transformers import AutoModelForCausalLM, DeepseekV4Config, LlamaConfig, Qwen2Config, Qwen3Config

from tinyr2 import OPDConfig, rollout
from tinyr2.trainer import OPDTrainer
from tinyr2.data import encode_prompt
from tinyr2.tasks.tiny import tiny_tasks, tiny_tokenizer
from tinyr2.engine.reading import read_whole, shares_prompt
from tinyr2.model import count_parameters, crop_from_teacher, shrink

context, depth, mend = definitions("long_context"), definitions("wide_or_deep"), definitions("crop_and_mend")
shapes, v4 = definitions("other_shapes"), definitions("deepseek_v4")

SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2}


def build(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(96, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [True, False])
def test_a_shrunk_config_counts_what_its_model_has(family, tied):
    config = family(**SHAPE, tie_word_embeddings=tied, head_dim=16)
    smaller = shrink(config)
    assert (smaller.hidden_size, smaller.head_dim, smaller.intermediate_size) == (32, 8, 40)
    assert smaller.num_key_value_heads == 2
    model = build(smaller)
    assert count_parameters(smaller) == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_a_crop_that_only_reorders_is_the_teacher(family, ids):
    config = family(**SHAPE, tie_word_embeddings=False)
    teacher = build(config)
    order = torch.randperm(64), [torch.randperm(112) for _ in range(3)]
    assert not torch.equal(order[1][0], order[1][1])
    with torch.no_grad():
        for layer in teacher.model.layers:  # norms of one would hide a wrong axis
            layer.input_layernorm.weight.uniform_(0.5, 2)
        expected = teacher(ids).logits
        student = crop_from_teacher(teacher, shrink(config, 1, 1), *order)
        assert torch.allclose(student(ids).logits, expected, atol=1e-5)
        for new, old, neurons in zip(student.model.layers, teacher.model.layers, order[1]):
            assert torch.equal(new.mlp.up_proj.weight, old.mlp.up_proj.weight[neurons][:, order[0]])


def test_the_choice_of_a_crop_has_the_right_sizes_and_follows_the_text(ids):
    teacher = build(LlamaConfig(**SHAPE))
    kept = mend.keep_by_activation(teacher, ids, shrink(teacher.config))
    assert len(kept["hidden"]) == 32 and [len(x) for x in kept["ffn"]] == [40] * 3
    other = mend.keep_by_activation(teacher, torch.zeros_like(ids), shrink(teacher.config))
    assert kept["hidden"].tolist() != other["hidden"].tolist()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_distillation_comes_nearer_and_leaves_the_teacher_alone(ids):
    teacher, student = build(LlamaConfig(**SHAPE), 0), build(shrink(LlamaConfig(**SHAPE)), 1)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(20)  # something to learn
    before = copy.deepcopy(teacher.state_dict())
    losses = mend.token_distillation(student, teacher, [ids] * 20, lr=3e-3)
    with torch.no_grad():
        p, q = teacher(ids).logits.softmax(-1), student(ids).logits.log_softmax(-1)
        kl = (p * (p.log() - q)).sum(-1).mean().item()
    assert losses[-1] < 0.7 * losses[0] and abs(kl - losses[-1]) < 0.2 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_residual_stream_is_transformers_own(ids):
    model = build(LlamaConfig(**SHAPE))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    mine = definitions("02_init").activation_rms(model, ids)
    assert len(mine) == 4
    assert torch.allclose(torch.tensor(mine[:-1]), torch.stack([s.pow(2).mean().sqrt() for s in states[:-1]]))


@pytest.mark.parametrize("head, length, factor", [(32, 64, 4.0), (64, 2048, 16.0), (128, 4096, 1.0), (16, 128, 2.5)])
def test_yarn_is_that_of_transformers(head, length, factor):
    config = LlamaConfig(**SHAPE | {"hidden_size": 4 * head}, max_position_embeddings=length)
    rotary = build(context.extend_context(config, factor)).model.rotary_emb
    frequencies, scale = context.yarn_frequencies(head, length, factor)
    assert torch.allclose(rotary.inv_freq, frequencies, rtol=1e-5) and abs(rotary.attention_scaling - scale) < 1e-6


@pytest.mark.parametrize("layers", [1, 2, 8, 12])
def test_depth_is_traded_at_equal_parameters(layers):
    for config in (LlamaConfig(**SHAPE), Qwen2Config(**SHAPE | {"hidden_size": 128, "intermediate_size": 320})):
        other = depth.with_layers(config, layers)
        assert other.num_hidden_layers == layers and type(other) is type(config)
        assert abs(depth.body_parameters(other) / depth.body_parameters(config) - 1) < 0.01


def test_the_v4_miniature_counts_and_remembers_what_the_model_does():
    config = v4.mini_v4(96)
    total, active = v4.active_parameters(config)
    model = v4.fill_hash_tables_(build(config))
    assert total == sum(p.numel() for p in model.parameters())
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    assert total - active == config.num_hidden_layers * (8 - 2) * expert
    text = torch.randint(2, 96, (1, 45))
    with torch.no_grad():
        layers = model(text, use_cache=True).past_key_values.layers
    held = [t for layer in layers for t in (layer.keys, *getattr(layer, "compressed_kv", {}).values())]
    assert v4.cache_numbers(config, 45) == sum(t.numel() for t in held)
    tables = [module.tid2eid for module in model.modules() if hasattr(module, "tid2eid")]
    assert len(tables) == 1 and all(len(set(row)) == 2 for row in tables[0].tolist())


def test_the_trainer_takes_a_step_with_v4(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = shapes.same_length_prompts(tokenizer, tiny_tasks()["train"][:8], 24)
    assert {len(encode_prompt(tokenizer, row["prompt"])) for row in rows} == {24}
    student, teacher = (v4.fill_hash_tables_(build(v4.mini_v4(len(tokenizer)), seed)) for seed in (0, 1))
    prompts = [row["prompt"] for row in rows[:2]]
    batch = rollout(student, tokenizer, prompts, backend="hf", max_completion_length=20, temperature=1.0)
    assert not shares_prompt(student, batch)
    with torch.no_grad():
        states = read_whole(student.get_decoder(), batch, torch.arange(8), batch.completion_ids.shape[1])
        logps = student.get_output_embeddings()(states).log_softmax(-1)
    logps = logps.gather(-1, batch.completion_ids[..., None]).squeeze(-1) * batch.completion_mask
    assert torch.allclose(logps, batch.logprobs, atol=1e-4)
    start = copy.deepcopy(student)
    args = OPDConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, max_completion_length=12,
                     learning_rate=1e-3, use_cpu=True, disable_tqdm=True, report_to="none")
    trainer = OPDTrainer(student, teacher, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] > 0
    still = {name for (name, a), b in zip(start.named_parameters(), student.parameters()) if torch.equal(a, b)}
    assert still and all(".indexer." in name for name in still)


def test_real_v4_sizes():
    assert v4.active_parameters(DeepseekV4Config()) == (284_325_869_015, 13_793_261_015)
