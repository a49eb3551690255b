"""What depends on the machine is chosen by measurement and tried before it is trusted; a lack is never an exception."""
import json
import os
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tinyr2 import hardware
from tinyr2.engine import backends, cpu, loop as sampling_loop, reading
from tinyr2.bench import step as speed
from tinyr2.console import console_words, env_cli
from tinyr2.engine.cpu import open_decoder
from tinyr2.engine.decoder import Decoder, Matrix
from tinyr2.config import OPDConfig, with_dtype
from tinyr2.hardware import choose_dtype, cpu_capabilities, cpu_features, fast_bf16, packs
from tinyr2.reward import tests_reward as passed_tests
from tinyr2.sampling import rollout
from tinyr2.tasks.tiny import tiny_world
from tinyr2.trainer import OPDTrainer
from transformers import LlamaConfig, LlamaForCausalLM

CACHED = (cpu.kernels, cpu.kernels_work, cpu._temporary_folder, sampling_loop.drawing_kernels,
          hardware._say_slow)


def forget():
    """As in a new process: nothing has been tried."""
    hardware.FINDINGS.clear()
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def afresh(monkeypatch):
    """Nothing has been tried before the test, and nothing of it is left after it."""
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.fixture
def slow_bf16(afresh):
    """A processor that imitates bfloat16."""
    afresh.setattr(hardware, "bf16_gain", lambda: (0.4, 0.02, 0.3))
    afresh.setattr(hardware, "cpu_features", lambda: "avx2")
    return afresh


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def programs(world, **options):
    prompts = [task["prompt"] for task in world.tasks["train"][:3]]
    options = {"num_generations": 2, "max_completion_length": 16, "temperature": 1.0} | options
    return rollout(world.student, world.tokenizer, prompts, **options).completions


# --- packed weights -------------------------------------------------------------------------------------------------

def refuse(*args, **kwargs):
    raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw")


@pytest.mark.parametrize("name, broken", [("pack", refuse), ("packed_linear", refuse),
                                          ("packed_linear", lambda x, *_: torch.ones(len(x), 96)),
                                          ("packed_linear", lambda x, *_: torch.full((len(x), 96), torch.nan))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_that_fail_or_differ_are_not_used(afresh, caplog, name, broken, dtype):
    afresh.setattr(hardware, name, broken)
    weight, x = torch.randn(300, 300, dtype=dtype), torch.randn(4, 300, dtype=dtype)
    for _ in range(2):
        product = Matrix(weight, packed=True)
        assert not product.packed and torch.equal(product(x), F.linear(x, weight))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and told[0].startswith(f"packed {str(dtype)[6:]} weights: not on this machine, plain PyTorch")


def test_packed_weights_are_used_where_they_work(afresh):
    if os.environ.get("TINYR2_CPU") == "plain" or not torch.backends.mkldnn.is_available():
        pytest.skip("there are no packed weights here")
    assert packs(torch.float32) and Matrix(torch.randn(300, 300), packed=True).packed
    assert not Matrix(torch.randn(300, 300, device="meta"), packed=True).packed


# --- compiled kernels -----------------------------------------------------------------------------------------------

def compiler_that(folder: Path, edit: str) -> str:
    """A folder for PATH with a `c++` that runs `edit` (shell, on "$@") before the real compiler."""
    if not (real := shutil.which("c++")):
        pytest.skip("no compiler to be disguised")
    script = folder / "c++"
    script.write_text(f"#!/bin/sh\n{edit}\nexec {real} \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


BREAK = 'for word in "$@"; do case "$word" in *.cpp) sed -i "s/{}/{}/" "$word";; esac; done'


@pytest.mark.skipif(os.environ.get("TINYR2_CPU") == "plain", reason="the compiler is taken away")
@pytest.mark.parametrize("kernel, was, becomes", [
    ("decoder kernels, float32", "1 \\/ std::sqrt", "1.1f \\/ std::sqrt"),  # the norm
    ("decoder kernels, float32", "g \\/ (1 + e)", "g \\/ (2 + e)"),  # the gate
    ("decoder kernels, float32", "std::copy_n(w\\[0\\] + tokens\\[r\\]", "std::copy_n(w[0] + tokens[0]"),  # small step
    ("drawing kernels", "double goal = u \\* total", "double goal = 0.5 * u * total"),
])  # fmt: skip
def test_kernels_that_compute_otherwise_are_not_used(afresh, tmp_path, caplog, world, kernel, was, becomes):
    if cpu.kernels() is None:
        pytest.skip("nothing can be compiled here")
    wanted = programs(world, backend="plain")
    forget()
    afresh.setenv("TINYR2_CACHE", str(tmp_path / "cache"))
    afresh.setenv("PATH", compiler_that(tmp_path, BREAK.format(was, becomes)))
    assert programs(world) == wanted
    assert hardware.FINDINGS[kernel].startswith("ArithmeticError")
    assert f"{kernel}: not on this machine, plain PyTorch instead" in caplog.text


@pytest.mark.skipif(os.environ.get("TINYR2_CPU") == "plain", reason="the compiler is taken away")
def test_a_compiler_that_does_not_know_the_processor(afresh, tmp_path, world):
    """It refuses every -march and -mcpu, as an old one does; what it builds without them works."""
    wanted = programs(world, backend="plain")
    afresh.delenv("TINYR2_CPU", raising=False)
    afresh.setenv("TINYR2_CACHE", str(tmp_path / "cache"))
    afresh.setenv("PATH", compiler_that(tmp_path, 'case "$*" in *-march*|*-mcpu*) exit 1;; esac'))
    forget()
    assert programs(world) == wanted
    assert hardware.FINDINGS["decoder kernels, float32"] == "works"


@pytest.mark.parametrize("path, message", [("/nowhere", "no C++ compiler"), (None, "disk full")])
def test_without_a_compiler_or_with_one_that_fails(afresh, tmp_path, caplog, world, path, message):
    wanted = programs(world, backend="plain")
    forget()
    afresh.setenv("TINYR2_CACHE", str(tmp_path / "cache"))
    afresh.setenv("PATH", path or compiler_that(tmp_path, 'case "$*" in *.cpp*) echo disk full >&2; exit 1;; esac'))
    if os.environ.get("TINYR2_CPU") == "plain":
        message = "no C++ compiler"
    assert programs(world) == wanted and type(open_decoder(world.student)) is Decoder
    assert message in hardware.FINDINGS["kernels"] and message in caplog.text
    assert not [file for file in tmp_path.rglob("*") if file.suffix == ".so"]


@pytest.mark.skipif(os.environ.get("TINYR2_CPU") == "plain", reason="the compiler is taken away")
def test_kernels_are_built_elsewhere_when_the_cache_cannot_be_written(afresh, tmp_path, world):
    wanted = programs(world, backend="plain")
    (tmp_path / "file").touch()
    afresh.setenv("TINYR2_CACHE", str(tmp_path / "file" / "cache"))  # no folder can be made there, not even by root
    forget()
    assert programs(world) == wanted
    assert hardware.FINDINGS["decoder kernels, float32"] == "works"


@pytest.mark.parametrize("flags, word", [
    ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, "amx_bf16"),
    ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "l2_cache_size": 1}, "avx512_bf16"),
    ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "avx512"), ({"avx2": True}, "avx2"),
    ({"neon": True, "bf16": True}, "neon_bf16"), ({"neon": True, "bf16": False}, "neon")])
def test_processors_have_names(monkeypatch, flags, word):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.delenv("TINYR2_CPU", raising=False)
    assert cpu_features() == word
    monkeypatch.setenv("TINYR2_CPU", "avx2")
    assert cpu_features() == word.removesuffix("_bf16").replace("avx512", "avx2").replace("amx", "avx2")


def test_nothing_tells_what_the_processor_can(afresh, world):
    wanted = programs(world)
    afresh.setattr(torch.cpu, "get_capabilities", None)
    afresh.delattr(torch.cpu, "get_capabilities")
    afresh.setattr(hardware, "Path", lambda name: Path("/nowhere"))
    forget()
    assert (cpu_capabilities(), cpu_features()) == (set(), "unknown")
    assert programs(world) == wanted


# --- number types ---------------------------------------------------------------------------------------------------

def large_model():
    """A model above the size that counts as small, of one layer."""
    config = LlamaConfig(vocab_size=439, hidden_size=512, intermediate_size=1024, num_hidden_layers=1,
                         num_attention_heads=8, num_key_value_heads=4)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("features, gain, fast", [
    ("avx512_bf16", (0.1, 0.1, 0.1), True), ("amx_bf16", (0.1, 0.1, 0.1), True), ("neon_bf16", (0.1, 0.1, 0.1), True),
    ("avx512", (9, 9, 9), False), ("avx2", (9, 9, 9), False), ("neon", (9, 9, 9), False),  # a busy machine measures so
    ("unknown", (3.2, 3.0, 3.1), True), ("unknown", (0.4, 0.02, 0.3), False), ("unknown", (3.0, 0.9, 3.0), False)])
def test_auto_asks_for_instructions_and_measures_where_none_are_listed(afresh, features, gain, fast):
    afresh.setattr(hardware, "bf16_gain", lambda: gain)
    afresh.setattr(hardware, "cpu_features", lambda: features)
    assert fast_bf16() is fast
    assert choose_dtype("auto") is (torch.bfloat16 if fast else torch.float32)
    assert choose_dtype("auto", parameters=hardware.SMALL) is torch.float32
    model = large_model()
    asked = OPDConfig("unused", report_to="none", use_cpu=True)
    decided = with_dtype(asked, model)
    assert (asked.bf16, decided.bf16) == (None, fast)
    assert Decoder(model, "auto").dtype is choose_dtype("auto")


@pytest.mark.parametrize("generation, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_is_asked_by_its_generation(monkeypatch, generation, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    assert choose_dtype("auto", "cuda") is dtype


def test_bf16_on_a_processor_that_imitates_it(slow_bf16, caplog, world):
    """It works, it is said once to be slow, and the programs are those of plain PyTorch in bfloat16."""
    batches = [programs(world, dtype=torch.bfloat16, backend=backend, max_completion_length=24)
               for backend in ("auto", "plain")]
    assert batches[0] == batches[1]
    assert type(open_decoder(large_model(), torch.bfloat16)) is Decoder
    assert with_dtype(OPDConfig("unused", bf16=True, report_to="none", use_cpu=True), large_model()).bf16
    told = [record.getMessage() for record in caplog.records if "slow" in record.getMessage()]
    assert told == ["bfloat16 is slow on this CPU (products at 0.02 times float32's rate); float32 is faster here"]


def test_bf16_needs_no_word_about_the_cpu(monkeypatch):
    """transformers alone raises: "Your setup doesn't support bf16/gpu. You need to assign use_cpu"."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = OPDConfig("unused", bf16=True, report_to="none")
    assert args.use_cpu and args.bf16 and args.device.type == "cpu"


def test_wrong_types_are_refused():
    with pytest.raises(ValueError, match='dtype: expected "auto", a torch.dtype or None'):
        choose_dtype("half")


@pytest.mark.parametrize("setting, capability", [("avx2", "AVX2"), ("plain", "AVX2"), ("avx512", "expected")])
def test_features_are_taken_away_before_pytorch_looks(setting, capability):
    if capability == "AVX2" and "avx2" not in cpu_capabilities():
        pytest.skip("the processor has no AVX2 to fall back on")
    code = ("import torch, tinyr2.hardware as h; print(torch.backends.cpu.get_cpu_capability(), h.cpu_features(), "
            "h.packs(torch.bfloat16), h.packs(torch.float32))")
    env = {name: value for name, value in os.environ.items() if "CPU_" not in name} | {"TINYR2_CPU": setting}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if capability == "AVX2":
        assert done.stdout.split() == ["AVX2", "avx2", "False", str(setting == "avx2")]
    else:
        assert capability in done.stderr


# --- other fast paths -----------------------------------------------------------------------------------------------

def on_a_gpu(monkeypatch):
    """A stand-in for a model on a GPU; without one, the trial runs on the CPU, in Triton's interpreter."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    real = backends._try_gpu_loop
    monkeypatch.setattr(backends, "_try_gpu_loop", lambda _, dtype: real(device, dtype))
    return SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float32)


class OtherLoop:
    """A recorded loop that samples other tokens."""

    def __init__(self, model, dtype):
        pass

    def sample(self, encoded, groups, noise, *options):
        return torch.ones(noise.shape, dtype=torch.long), torch.zeros(noise.shape)


def no_graph(model, dtype):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


@pytest.mark.parametrize("loop, reason", [(OtherLoop, "it samples"), (no_graph, "not permitted when stream"),
                                          (None, "No module named")])
def test_a_recorded_loop_that_fails_or_differs_is_not_used(afresh, caplog, loop, reason):
    gpu = pytest.importorskip("tinyr2.engine.gpu")
    model = on_a_gpu(afresh)
    if loop is None:
        afresh.setitem(sys.modules, "tinyr2.engine.gpu", None)
        reason = "import of tinyr2.engine.gpu halted"
    else:
        afresh.setattr(gpu, "recorded_loop", loop)
    for _ in range(2):
        assert backends.gpu_loop(model, None) is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and reason in told[0] and "operators one by one instead" in told[0]


def test_a_recorded_loop_that_agrees_is_used(afresh):
    gpu = pytest.importorskip("tinyr2.engine.gpu")
    model = on_a_gpu(afresh)
    backends._try_gpu_loop(None, torch.float32)  # the trial itself, with the real loop
    real = gpu.recorded_loop
    afresh.setattr(gpu, "recorded_loop", lambda asked, dtype: "the loop" if asked is model else real(asked, dtype))
    assert backends.gpu_loop(model, None) == "the loop"


def test_attention_over_texts_in_a_row_without_its_kernel(afresh, caplog):
    """varlen_attn is missing, raises (as on a CPU), or computes something else: one text after the other."""
    query = torch.randn(1, 4, 7, 8)
    starts = torch.tensor([0, 3, 7], dtype=torch.int32)
    wanted, _ = speed.varlen_attention(None, query, query, query, None, cu_seq_lens_q=starts, max_length_q=4)
    for number, broken in enumerate((refuse, lambda q, *_: torch.zeros_like(q))):
        afresh.setattr(speed, "_flash", broken)
        trial = partial(speed._try_flash, torch.device("cpu"), torch.float32)
        assert not hardware.works(f"varlen_attn {number}", trial, instead="one text after the other")
    assert caplog.text.count("one text after the other instead") == 2
    afresh.setitem(sys.modules, "torch.nn.attention.varlen", None)
    again, _ = speed.varlen_attention(None, query, query, query, None, cu_seq_lens_q=starts, max_length_q=4)
    assert torch.equal(again, wanted)


@pytest.mark.skipif(os.environ.get("TINYR2_CPU") == "plain", reason="the compiler is taken away")
def test_a_full_cache_that_is_read_only_is_enough(afresh, tmp_path, world):
    wanted = programs(world)
    filled = Path(cpu._build(cpu.kernel_source()))
    (tmp_path / "cache").mkdir()
    shutil.copy(filled, tmp_path / "cache")
    afresh.setenv("TINYR2_CACHE", str(tmp_path / "cache"))
    real = cpu.cache_dir
    afresh.setattr(cpu, "cache_dir", lambda write=True: refuse_to_write() if write else real(write=False))
    forget()
    assert programs(world) == wanted
    assert hardware.FINDINGS["decoder kernels, float32"] == "works"
    assert cpu._build(cpu.kernel_source()).parent == tmp_path / "cache"


def refuse_to_write():
    raise PermissionError("read-only")


# --- tinyr2-env and settings ----------------------------------------------------------------------------------------

def test_the_report_without_linux_and_without_a_compiler(afresh, capsys):
    """It is needed most where something is missing."""
    afresh.setattr(sys, "platform", "darwin")
    afresh.setenv("PATH", "/nowhere")
    report = env_cli([])
    assert "Sandbox needs Linux" in report and "no C++ compiler" in report and "dtype:" in report


def test_one_setting_for_models_of_two_sizes(afresh, world, tmp_path):
    """bf16 is decided for each, and the user's own settings stay as they are."""
    afresh.setattr(hardware, "cpu_features", lambda: "avx512_bf16")
    asked = OPDConfig(str(tmp_path), report_to="none", use_cpu=True, max_steps=1)
    rows = world.tasks["train"][:4]
    small, large = (OPDTrainer(model, None, passed_tests, asked, rows, processing_class=world.tokenizer)
                    for model in (world.student, large_model()))
    assert (asked.bf16, small.args.bf16, large.args.bf16) == (None, False, True)


@pytest.mark.parametrize("words, wanted", [
    ("--bf16", "--bf16 true"), ("--bf16 --seed 1", "--bf16 true --seed 1"), ("--no_bf16", "--bf16 false"),
    ("--bf16 false", "--bf16 false"), ("--bf16=true", "--bf16=true")])
def test_bf16_alone_is_true(words, wanted):
    assert console_words(words.split()) == wanted.split()


def test_settings_of_the_sandbox_add_up(tmp_path):
    (tmp_path / "x.yaml").write_text("sandbox: {timeout: 5, allow_weak: true}\n")
    words = ["--config", str(tmp_path / "x.yaml"), "--sandbox", '{"memory_mb": 512}', "--sandbox.timeout=9"]
    assert json.loads(console_words(words)[-1]) == {"timeout": 9, "allow_weak": True, "memory_mb": 512}
    with pytest.raises(ValueError, match="expected one value"):
        console_words(["--sandbox.timeout", "5", "7"])


@pytest.mark.parametrize("given, message", [
    ({"timout": 5}, "did you mean timeout"), ({"timeout": "abc"}, "expected seconds"), ("[5]", "expected settings"),
    ("{", "not valid JSON")])
def test_wrong_settings_of_the_sandbox_are_refused_before_a_model_is_loaded(given, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig("unused", report_to="none", sandbox=given)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_handed_over_by_its_name(name):
    """transformers 5.24 calls it `cache`; 5.40 knows the old name no more."""
    scope: dict = {}
    exec(f"def forward(self, input_ids, {name}=None, use_cache=None): pass", scope)
    body = type("Body", (), {"forward": scope["forward"]})()
    assert reading._cache_argument(body, "keys") == {name: "keys", "use_cache": True}
