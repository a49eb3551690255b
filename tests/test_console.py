"""What the commands say about mistakes: one line, the remedy in it, and nothing expensive before it."""
import json
import shutil
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, HfArgumentParser, LlamaConfig

from tinyr2 import console, environment
from tinyr2.console import eval_cli, train_cli
from tinyr2.filter import filter_cli
from tinyr2.bench.methods import methods_cli
from tinyr2.objective import PRESETS
from tinyr2.tasks.records import records_cli
from tinyr2.tasks.tiny import tiny_world

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass
class Arguments:
    steps: int = 1
    other: bool = False


def outcome(entry, capsys, monkeypatch, *words):
    """Status and stderr of an entry that is started from the console with these words."""
    monkeypatch.setattr(sys, "argv", ["x", *words])
    with pytest.raises(SystemExit) as stopped:
        entry()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error, status, told", [
    (ValueError("steps: expected 1 or more, got 0"), 2, "x: steps: expected 1 or more, got 0\n"),
    (OSError("no disk"), 2, "x: no disk\n"), (RuntimeError("no GPU"), 2, "x: no GPU\n"),
    (ImportError("no peft"), 2, "x: no peft\n"), (FloatingPointError("nan"), 2, "x: nan\n"),
    (ValueError(), 2, "x: ValueError\n"), (KeyboardInterrupt(), 130, "x: stopped\n")], ids=repr)
def test_a_mistake_is_one_line_at_the_console_and_raises_from_python(error, status, told, capsys, monkeypatch):
    @environment.command("x", Arguments)
    def entry(argv=None):
        raise error

    monkeypatch.delenv("TINYR2_TRACEBACK", raising=False)
    assert outcome(entry, capsys, monkeypatch) == (status, told)
    with pytest.raises(type(error)):
        entry([])
    monkeypatch.setenv("TINYR2_TRACEBACK", "1")
    with pytest.raises(type(error)):
        entry()


def test_a_fault_of_the_program_keeps_its_traceback():
    @environment.command("x", Arguments)
    def entry(argv=None):
        return {}["key"]

    with pytest.raises(KeyError):
        entry()


@pytest.mark.parametrize("words, told", [
    (["--stepz", "3"], "unknown flag --stepz; did you mean --steps?"), (["--stepz=3"], "did you mean --steps?"),
    (["--zzzzzz", "3"], "unknown flag --zzzzzz; --help lists all"), (["word"], "unexpected word 'word'")])
def test_an_unknown_flag_is_answered_with_the_nearest(words, told):
    @environment.command("x", Arguments)
    def entry(argv=None):
        return HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)

    assert entry(["--steps", "3"])[0].steps == 3
    with pytest.raises(ValueError) as raised:
        entry(words)
    assert told in str(raised.value)


@pytest.mark.parametrize("entry, name", [
    (train_cli, "tinyr2-train"), (eval_cli, "tinyr2-eval"), (records_cli, "tinyr2-records"),
    (methods_cli, "tinyr2-methods"), (filter_cli, "tinyr2-filter")])
def test_every_command_answers_so(entry, name, capsys, monkeypatch):
    status, told = outcome(entry, capsys, monkeypatch, "--seedz", "1")
    assert status == 2 and told.startswith(f"{name}: unknown flag --seedz; did you mean --seed")
    assert told.count("\n") == 1


# --- what is refused before anything expensive ------------------------------------------------------------------

@pytest.fixture
def early(monkeypatch, tmp_path):
    """An empty folder; whoever loads a model or a tokenizer now has failed."""
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(console, name, lambda *args, **kwargs: pytest.fail("a model was loaded"))
    monkeypatch.setenv("TINYR2_FIGURES", str(tmp_path / "figures"))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("entry, words, told", [
    (train_cli, "--num_samples 0", "num_samples: expected 1 or more, got 0"),
    (train_cli, "--max_steps 0", "max_steps: expected 1 or more, or -1 for num_train_epochs, got 0"),
    (train_cli, "--max_steps -2", "max_steps: expected 1 or more"),
    (train_cli, "--seed -1", "seed: expected 0 or more, got -1"),
    (train_cli, "--save_total_limit -1", "save_total_limit: expected 1 or more, or None"),
    (train_cli, "--save_total_limit 0", "save_total_limit: expected 1 or more, or None"),
    (train_cli, "--record_as a..b", "record key 'a..b': expected words joined by dots"),
    (train_cli, "--rewards speed_reward", "rewards: ['speed_reward'] not among"),
    (train_cli, "--preset=dpo", "preset: expected one of"), (train_cli, "--preset", "preset: expected one of"),
    (train_cli, "--pres dpo", "unknown flag --pres; did you mean --preset?"),
    (train_cli, "--output_dir file", "output_dir: file is no folder that can be written to (File exists)"),
    (train_cli, "--output_dir file/run", "output_dir: file/run is no folder that can be written to"),
    (train_cli, "--config none.yaml", "none.yaml"),
    (eval_cli, "--num_samples 0", "num_samples: expected 1 or more, got 0"),
    (eval_cli, "--limit 0", "limit: expected 1 or more, got 0"),
    (eval_cli, "--limit -3", "limit: expected 1 or more, got -3"),
    (eval_cli, "--seed -1", "seed: expected 0 or more, got -1"),
    (eval_cli, "--record_as .", "record key '.': expected words joined by dots"),
    (eval_cli, "--output figures", "output: figures is a folder, expected a file"),
    (eval_cli, "--output file/out.json", "output: file is no folder that can be written to")])
def test_refused_before_a_model_is_loaded(early, entry, words, told):
    (early / "figures").mkdir()
    words = words.split() + (["--output_dir", "run"] if entry is train_cli and "--output_dir" not in words else [])
    with pytest.raises((ValueError, OSError)) as raised:
        entry(words)
    assert told in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
@pytest.mark.parametrize("entry, words", [(train_cli, ["--output_dir", "run"]), (eval_cli, [])])
def test_a_damaged_file_of_results_is_found_before_a_model_is_loaded(early, entry, words, text):
    (early / "figures").mkdir()
    (early / "figures" / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="results.json: .*restore it from git or delete it"):
        entry([*words, "--record_as", "mine"])


def test_a_run_is_taken_up_by_its_checkpoints(early):
    """What `--resume_from_checkpoint` may be is known before a model is loaded."""
    for step in (9, 10):
        (early / "run" / f"checkpoint-{step}").mkdir(parents=True)
    words = ["--output_dir", "run", "--resume_from_checkpoint"]
    with pytest.raises(ValueError, match=r"run is the folder of a run; give one of its checkpoints \(checkpoint-10, "):
        train_cli([*words, "run"])
    for word in ("false", "no", "0", "False"):
        with pytest.raises(FileExistsError, match="checkpoint-10 of an earlier run"):
            train_cli([*words, word])
    for word, asked in (("true", True), ("yes", True), ("1", True), ("run/checkpoint-9", "run/checkpoint-9")):
        assert console._train_arguments([*words, word])[1].resume_from_checkpoint == asked


# --- presets ---------------------------------------------------------------------------------------------------

def settings(*words):
    args, config = console._train_arguments([*words, "--output_dir", "run", "--use_cpu", "true"])
    return args.preset, {name: getattr(config, name) for name in ("kl_coef", "reward_coef", "gamma")}


def test_a_preset_counts_however_it_is_written(early):
    name = "reward_only"
    plain, expected = settings()[1], settings("--preset", name)
    assert expected[0] == name and expected[1] != plain
    assert expected[1] == {**plain, **{k: v for k, v in PRESETS[name].items() if k in plain}}
    (early / "a.yaml").write_text(f"preset: {name}\n")
    assert settings(f"--preset={name}") == settings("--config", "a.yaml") == settings("--config=a.yaml") == expected
    (early / "b.yaml").write_text(f"preset: {name}\nkl_coef: 0.125\n")
    assert settings("--config", "b.yaml") == (name, expected[1] | {"kl_coef": 0.125})
    assert settings("--config", "a.yaml", "--kl_coef", "0.5") == (name, expected[1] | {"kl_coef": 0.5})
    for text, told in (("preset: dpo\n", "preset: expected one of"), ("a: [\n", "c.yaml is not valid YAML"),
                       ("kl_coeff: 1\n", "unknown flag --kl_coeff; did you mean --kl_coef?"), ("- a\n", "mapping")):
        (early / "c.yaml").write_text(text)
        with pytest.raises(ValueError) as raised:
            train_cli(["--config", "c.yaml", "--output_dir", "run"])
        assert told in str(raised.value)


# --- folders of models -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def without(name):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(name)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return change


def cut(name, size=100):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-size])


def as_a_run(folder):
    for path in folder.iterdir():
        path.unlink()
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()


def of_another_shape(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))


@pytest.mark.parametrize("change, told", [
    (without("model.norm.weight"), "tensor model.norm.weight is missing in its files and would be random; copy"),
    (without("lm_head.weight"), "tensor lm_head.weight is missing"),
    (cut("model.safetensors"), "model.safetensors cannot be read (Error"),
    (cut("config.json"), "config.json cannot be read ("),
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing; expected a folder made by"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    (as_a_run, "a folder made by save_pretrained; it holds checkpoint-9, checkpoint-10: give one of them"),
    (of_another_shape, "tensor model.layers.0.mlp.down_proj.weight is (32, 48) in its files, (32, 64) by its config"),
])
def test_a_damaged_model_is_named_with_its_file(whole, tmp_path, change, told):
    folder = shutil.copytree(whole, tmp_path / "model")
    environment.load_model(str(folder))
    change(folder)
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as raised:
        environment.load_model(str(folder))
    assert str(raised.value).startswith(f"model '{folder}': ") and told in str(raised.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_body_without_a_head_is_no_language_model(tmp_path):
    config = BertConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is missing in its files and would be random, and 5 more"):
        environment.load_model(str(tmp_path))


def test_a_tied_head_is_not_missing(tmp_path):
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    head = environment.load_model(str(tmp_path)).lm_head.weight
    assert torch.equal(head, load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"])


def test_a_damaged_tokenizer_is_named_with_its_file(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    with pytest.raises(ValueError, match="it has no tokenizer; tokenizer.save_pretrained"):
        environment.load_tokenizer(str(folder))
    tiny_world().tokenizer.save_pretrained(folder)
    environment.load_tokenizer(str(folder))
    cut("tokenizer.json")(folder)
    with pytest.raises(ValueError, match=r"model '.*': tokenizer.json cannot be read \(.*; copy the folder again"):
        environment.load_tokenizer(str(folder))


# --- what a command says it did --------------------------------------------------------------------------------

class Trained:
    """A trainer that makes seven steps, whatever it is told."""

    def __init__(self, model, teacher, rewards, args, **kwargs):
        self.args, self.state = args, SimpleNamespace(global_step=0, log_history=[])

    def train(self, asked):
        self.state.global_step = 7

    def save_model(self):
        pass


def test_steps_are_those_that_were_made(early, monkeypatch):
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(console, name, lambda *args, **kwargs: MagicMock())
    monkeypatch.setattr(console, "OPDTrainer", Trained)
    assert train_cli("--eval_tasks none --num_train_epochs 1 --use_cpu true --output_dir run".split())["steps"] == 7
    assert json.loads((early / "run" / "results.json").read_text())["steps"] == 7
