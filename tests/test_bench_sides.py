"""What the peers of `bench_step` train on: TRL by itself, and with our patch that takes the best of four."""
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import DistillationTrainer, GRPOTrainer

from tinyr2.bench import step as speed
from tinyr2.tasks.tiny import tiny_tokenizer


@pytest.fixture
def side(tmp_path, monkeypatch):
    """Runs one step of a side; the trainer, what its loss saw, and the prompts' tests and completions it had scored.
    Sample i of group g has reward 1 where i is g modulo 4, else 0."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, eos_token_id=0, pad_token_id=1, bos_token_id=None)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    def run(name, kind):
        scored, found, loss = [], [], kind.compute_loss

        def tests_reward(prompts, completions, tests, **columns):
            scored.extend(zip(map(str, tests), completions))
            return [float(i % 4 == i // 4 % 4) for i in range(len(completions))]

        def compute_loss(self, model, inputs, *args, **kwargs):
            found.append((self, inputs))
            return loss(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(speed, "tests_reward", tests_reward)
        monkeypatch.setattr(kind, "compute_loss", compute_loss)
        speed.run_side(name, steps=1, model=str(tmp_path), tokens=8)
        ((trainer, inputs),) = found
        return trainer, inputs, scored

    return run


def test_trl_distillation_trains_on_the_best_of_four(side):
    trainer, inputs, scored = side("TRL Distillation, best of 4", DistillationTrainer)
    decode = trainer.processing_class.batch_decode
    prompts, texts = (decode(inputs[name], skip_special_tokens=True) for name in ("prompt_ids", "completion_ids"))
    tests = {row["prompt"]: str(row["tests"]) for row in trainer.train_dataset}
    best = [scored[4 * g + g % 4] for g in range(8)]
    assert sorted(zip([tests[prompt] for prompt in prompts], texts)) == sorted(best)
    assert len(scored) == 32 and len({*scored}) > 28  # so that other rows would be noticed
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
    assert trainer.teacher_model is not trainer.model


def test_trl_grpo_samples_four_and_keeps_to_its_start(side):
    trainer, inputs, scored = side("TRL GRPO", GRPOTrainer)
    assert len(scored) == len(inputs["completion_ids"]) == 32
    tests = [str(row["tests"]) for row in trainer.train_dataset]
    assert sorted(pair[0] for pair in scored) == sorted(4 * tests)
    assert trainer.beta == 0.05 and inputs["ref_per_token_logps"].shape == inputs["completion_ids"].shape
