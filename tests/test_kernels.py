"""The C++ kernels, compiled for other processors than this one, against PyTorch in float64.

A slow test cross-compiles them for 64-bit ARM and runs them in an emulator; on Debian it needs
`apt-get install g++-aarch64-linux-gnu qemu-user`.
"""
import contextlib
import ctypes
import math
import os
import platform
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tinyr2.engine import cpu

SOURCES = {"kernels": cpu.kernel_source()}
TARGET = ("-march", "-mcpu", "-mtune", "-mprefer-vector-width")
FLAGS = [flag for flag in cpu._FLAGS if not flag.startswith(TARGET)]
FEATURES = {"x86-64": "sse2", "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe"}
TARGETS = [pytest.param(("c++", "x86-64"), id="baseline"), pytest.param(("c++", "x86-64-v3"), id="avx2"),
           pytest.param(("clang++", "x86-64-v3"), id="clang", marks=pytest.mark.slow),
           pytest.param(("aarch64-linux-gnu-g++", "armv8-a"), id="arm", marks=pytest.mark.slow)]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5


def reason_to_skip(compiler: str, level: str, folder: Path) -> str | None:
    found = ""
    with contextlib.suppress(OSError):
        found = Path("/proc/cpuinfo").read_text()
    if not shutil.which(compiler):
        return f"no {compiler}"
    command = [compiler, "-fopenmp", "-x", "c++", "-", "-o", str(folder / "empty")]
    linked = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
    if linked.returncode:
        return f"{compiler} has no OpenMP"
    if compiler.startswith("aarch64"):
        return None if shutil.which("qemu-aarch64") else "no qemu-aarch64"
    if platform.machine() != "x86_64" or not set(FEATURES[level].split()) <= set(found.split()):
        return f"this processor is not {level}"
    return None


def table_of(tensors: list) -> torch.Tensor:
    return torch.tensor([0 if x is None else x.data_ptr() for x in tensors])


def in_this_process(parts: list[Path], folder: Path, compiler: str):
    """A function that calls a kernel of the object files `parts` by its name."""
    libraries = []
    for part in parts:
        path = folder / f"{part.stem}.so"
        subprocess.run([compiler, *cpu._LINK, str(part), "-o", str(path)], check=True)
        libraries.append(ctypes.CDLL(str(path)))

    def call(name: str, *arguments):
        function = libraries[0][name]
        function.restype = ctypes.c_long
        given = [table_of(a) if type(a) is list else a for a in arguments]
        kinds = {torch.Tensor: lambda a: ctypes.c_void_p(a.data_ptr()), float: ctypes.c_float, int: ctypes.c_long}
        return function(*(kinds[type(a)](a) for a in given))

    return call


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def in_a_program(parts: list[Path], folder: Path, compiler: str):
    """The same by a program of its own, through files: emulated, or because clang's OpenMP is not that of PyTorch."""
    emulator, static = (["qemu-aarch64"], ["-static"]) if compiler.startswith("aarch64") else ([], [])
    program, driver = folder / "driver", Path(__file__).with_name("kernels_driver.cpp")
    link = [flag for flag in cpu._LINK if flag != "-shared"]
    command = [compiler, *link, "-std=c++17", *static, str(driver), *map(str, parts), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)  # a static OpenMP warns of its use of dlopen

    def call(name: str, *arguments):
        wholes, reals, arrays = ([a for a in arguments if type(a) is kind] for kind in (int, float, torch.Tensor))
        table = [x for a in arguments if type(a) is list for x in a]
        counts = [len(wholes), len(reals), len(arrays), len(table)]
        sent = [torch.tensor(counts + wholes), torch.tensor(reals, dtype=torch.float32)]
        for array in arrays + table:
            array = torch.empty(0) if array is None else array
            sent += [torch.tensor([array.nbytes]), array]
        (folder / "input").write_bytes(b"".join(bytes_of(part) for part in sent))
        command = [*emulator, str(program), name, str(folder / "input"), str(folder / "output")]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
        back = bytearray((folder / "output").read_bytes())
        for array in arrays:
            array.copy_(torch.frombuffer(back[: array.nbytes], dtype=array.dtype).view(array.shape))
            del back[: array.nbytes]
        return int.from_bytes(back[-8:], "little", signed=True)

    return call


@pytest.fixture(scope="module", params=TARGETS)
def call(request, tmp_path_factory):
    """Calls a kernel, compiled for one processor; arrays are changed where they are."""
    compiler, level = request.param
    folder, wide = tmp_path_factory.mktemp("kernels"), ["-mprefer-vector-width=512"] * level.startswith("x86")
    if reason := reason_to_skip(compiler, level, folder):
        pytest.skip(reason)
    parts = [folder / f"{name}.o" for name in SOURCES]
    for part, source in zip(parts, SOURCES.values()):
        part.with_suffix(".cpp").write_text(source)
        command = [compiler, *FLAGS, f"-march={level}", *wide, str(part.with_suffix(".cpp")), "-o", str(part)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return (in_this_process if compiler == "c++" else in_a_program)(parts, folder, compiler)


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", SOURCES)
def test_no_vector_is_wider_than_the_registers(name, level, tmp_path):
    source = tmp_path / "kernels.cpp"
    source.write_text(SOURCES[name])
    command = ["g++", *FLAGS, f"-march={level}", "-Wvector-operation-performance", str(source), "-o", os.devnull]
    if platform.machine() != "x86_64" or not shutil.which("g++"):
        pytest.skip("no g++ for x86-64")
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0
    assert "Wvector-operation-performance" not in compiled.stderr, "the compiler splits vectors, which is slow"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).split(".")[1]


def numbers(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def roomy(x: torch.Tensor) -> torch.Tensor:
    """The same with 16 numbers after it that are none: kernels read whole vectors, and must not use what is there."""
    return torch.cat([x.flatten(), torch.full((16,), torch.nan, dtype=x.dtype)])[: x.numel()].view(x.shape)


def close(got: torch.Tensor, wanted: torch.Tensor, roundings: int = 1) -> bool:
    """Whether `got` is `wanted` (float64) but for so many roundings to its type (of the sums too, in float32)."""
    share = roundings * {torch.float32: 1e-5, torch.bfloat16: 2**-8 * 1.05}[got.dtype]
    return torch.allclose(got.double(), wanted, rtol=share, atol=share / 4)


@pytest.fixture(params=range(4))
def rng(request) -> random.Random:
    """For shapes; PyTorch's own generator has the same seed."""
    torch.manual_seed(request.param)
    return random.Random(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_norm(call, rng, dtype):
    rows, d = rng.randint(1, 9), rng.choice([8, 33, 96, 200])
    x, weight, out = numbers(rows, d, dtype=dtype), numbers(d, dtype=dtype), torch.empty(rows, d, dtype=dtype)
    call(f"norm_{name_of(dtype)}", x, weight, out, rows, d, EPS)
    assert close(out, F.rms_norm(x.double(), (d,), weight.double(), EPS), roundings=2)


def test_subnormal_numbers_stay(call):
    """Neither a kernel nor the loading of its library sets them to 0, as -ffast-math would in the linker's command."""
    x, out = torch.full((1, 16), 1e-40), torch.empty(1, 16)
    call("norm_float32", x, torch.ones(16), out, 1, 16, 1e-30)
    assert torch.allclose(out, x * 1e15, rtol=1e-4, atol=0) and float("1e-310") * 0.5 > 0


@pytest.mark.parametrize("gelu", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gate(call, rng, dtype, gelu):
    rows, d = rng.randint(1, 9), rng.choice([8, 33, 96, 200])
    x, out = 3 * numbers(rows, 2 * d, dtype=dtype), torch.empty(rows, d, dtype=dtype)
    x[0, :4] = torch.tensor([-1000.0, -90.0, 90.0, 1000.0])  # where e to their power is no finite number
    call(f"gate_{name_of(dtype)}", x, out, rows, d, gelu)
    gate, up = x.double().chunk(2, -1)
    assert close(out, (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up)


class Memory:
    """Keys and values of some rows after prompts that they share, in the order of the kernels and in the plain one."""

    def __init__(self, rng: random.Random, rows: int, kv: int, h: int, layers: int, dtype: torch.dtype):
        prompts, length, room = rng.randint(1, 3), rng.choice([16, 32, 48]), rng.choice([16, 32])
        lengths = [rng.randint(1, length) for _ in range(prompts)]
        slots = rng.sample(range(rows + 2), rows)
        self.place = [(slot := rng.randrange(prompts), lengths[slot], own, rng.randrange(room)) for own in slots]
        self.shape, self.sizes = (prompts, rows + 2), (length, room)
        self.keys, self.values = (numbers(layers, prompts, kv, length, h, dtype=dtype) for _ in range(2))
        self.own_keys, self.own_values = (numbers(layers, rows + 2, kv, room, h, dtype=dtype) for _ in range(2))
        for slot, n in enumerate(lengths):  # what no token has written yet must not matter
            self.keys[:, slot, :, n:] = self.values[:, slot, :, n:] = torch.nan
        for _, _, own, n in self.place:
            self.own_keys[:, own, :, n:] = self.own_values[:, own, :, n:] = torch.nan
        angles = torch.rand(length + room, h // 2).mul(6).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def given(self) -> list[torch.Tensor]:
        """Keys in blocks of 16 tokens and values; of prompts, then of rows."""
        blocks = [keys.unflatten(3, (-1, 16)).transpose(-1, -2) for keys in (self.keys, self.own_keys)]
        return [roomy(x) for x in (blocks[0], self.values, blocks[1], self.own_values)]

    def attended(self, qkv: torch.Tensor, layer: int, heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What each row sees `[rows, heads * h]` in float64, and the keys and values as they are then."""
        kv, h = self.keys.shape[2], self.keys.shape[-1]
        own_keys, own_values, seen = self.own_keys[layer].clone(), self.own_values[layer].clone(), []
        for row, (slot, n, own, m) in zip(qkv.double().view(len(qkv), -1, h), self.place):
            turn, value = row.split([heads + kv, kv])
            half = torch.cat([-turn[:, h // 2 :], turn[:, : h // 2]], -1)
            turn = (turn * self.cos[n + m] + half * self.sin[n + m]).to(dtype)
            own_keys[own, :, m], own_values[own, :, m] = turn[heads:], value
            keys, values = (torch.cat([shared[layer, slot, :, :n], mine[own, :, : m + 1]], 1).double()
                            for shared, mine in ((self.keys, own_keys), (self.values, own_values)))  # fmt: skip
            query = turn[:heads].double().view(kv, heads // kv, h)
            seen.append(F.scaled_dot_product_attention(query, keys, values).flatten())
        return torch.stack(seen), own_keys, own_values


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_attend(call, rng, dtype):
    rows, kv, groups, h = rng.randint(1, 7), rng.randint(1, 3), rng.choice([1, 2, 3, 4, 7]), rng.choice([8, 16, 24, 64])
    heads, memory = groups * kv, Memory(rng, rows, kv, h, 1, dtype)
    qkv, out = numbers(rows, (heads + 2 * kv) * h, dtype=dtype), torch.empty(rows, heads * h, dtype=dtype)
    parts = memory.given()
    call(f"attend_{name_of(dtype)}", qkv, memory.cos, memory.sin, *parts[:2], memory.sizes[0], *parts[2:],
         memory.sizes[1], out, torch.tensor(memory.place), rows, heads, kv, h)  # fmt: skip
    wanted, keys, values = memory.attended(qkv, 0, heads, dtype)
    assert close(out, wanted, roundings=2)
    assert torch.equal(parts[3][0].nan_to_num(7.0), values.nan_to_num(7.0))
    got, keys = (x.double().nan_to_num(7.0) for x in (parts[2][0].transpose(-1, -2).flatten(2, 3), keys))
    assert close(got.to(dtype), keys)


class Model:
    """A random model with biases, its step in float64, and its weights in the kernel's order."""

    def __init__(self, rng: random.Random, dtype: torch.dtype):
        self.kv, self.h, self.layers, self.dtype = rng.randint(1, 2), rng.choice([8, 16, 24]), 2, dtype
        self.heads, self.width, self.inner = self.kv * rng.choice([1, 3, 4]), rng.choice([24, 64]), rng.choice([33, 80])
        self.words, self.gelu, mixed = rng.choice([50, 97]), rng.randint(0, 1), self.heads * self.h
        self.embedding, self.norm = numbers(self.words, self.width, dtype=dtype), self.weight(self.width)
        sizes = [(mixed + 2 * self.kv * self.h, self.width), (self.width, mixed), (2 * self.inner, self.width),
                 (self.width, self.inner)]  # fmt: skip
        self.parts = [[(self.weight(*size), self.weight(size[0])) for size in sizes] for _ in range(self.layers)]
        self.norms = [[self.weight(self.width) for _ in range(2)] for _ in range(self.layers)]
        self.head = self.weight(self.words, self.width)

    def weight(self, *shape: int) -> torch.Tensor:
        return (numbers(*shape) / math.sqrt(shape[-1]) + (len(shape) == 1)).to(self.dtype)

    def table(self) -> list[torch.Tensor | None]:
        found = [self.embedding]
        for norms, parts in zip(self.norms, self.parts):
            for i, (weight, bias) in enumerate(parts):
                found += [norms[i // 2]] * (i % 2 == 0) + [self.turned(weight), bias]
        return found + [self.norm, self.turned(self.head), None]

    def turned(self, weight: torch.Tensor) -> torch.Tensor:
        return F.pad(weight.T, (0, -len(weight) % 16)).contiguous()

    def step(self, tokens: torch.Tensor, memory: Memory) -> torch.Tensor:
        x = self.embedding[tokens].double()
        for layer, (norms, parts) in enumerate(zip(self.norms, self.parts)):
            qkv, o, both, down = ([part.double() for part in pair] for pair in parts)
            normed = F.rms_norm(x, (self.width,), norms[0].double(), EPS)
            x = x + F.linear(memory.attended(F.linear(normed, *qkv), layer, self.heads, torch.float64)[0], *o)
            gate, up = F.linear(F.rms_norm(x, (self.width,), norms[1].double(), EPS), *both).chunk(2, -1)
            x = x + F.linear((F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)) * up, *down)
        return F.linear(F.rms_norm(x, (self.width,), self.norm.double(), EPS), self.head.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_step(call, rng, dtype):
    model, rows = Model(rng, dtype), rng.choice([1, 3, 4, 7, 8, 13])
    memory = Memory(rng, rows, model.kv, model.h, model.layers, dtype)
    tokens, logits = torch.randint(model.words, (rows,)), torch.empty(rows, model.words, dtype=dtype)
    per_row = 2 * model.width + 2 * (model.heads + model.kv) * model.h + 3 * model.inner
    space = torch.empty(rows * per_row, dtype=dtype)
    shape = torch.tensor([model.layers, model.width, model.inner, model.heads, model.kv, model.h, model.words,
                          model.gelu, *memory.shape])  # fmt: skip
    parts = memory.given()
    call(f"step_{name_of(dtype)}", model.table(), shape, EPS, tokens, memory.cos, memory.sin, *parts[:2],
         memory.sizes[0], *parts[2:], memory.sizes[1], torch.tensor(memory.place), space, logits, rows)  # fmt: skip
    wanted = model.step(tokens, memory)
    error = (logits.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]


def drawn(call, logits: torch.Tensor, temperature: float, uniform: torch.Tensor, stop: torch.Tensor, finished=()):
    """Tokens, scores, which rows go on, and how many ended, of one draw per row, the first in a row of two."""
    n, size = logits.shape
    rows, own, tokens = torch.arange(n), torch.arange(n) % 2, torch.full((n,), -1)
    rows[list(finished)] = n
    noise, out, scores = torch.zeros(n + 1, 2), torch.full((n + 1, 2), -1), torch.full((n + 1, 2), 7.0)
    noise[torch.arange(n), own] = uniform
    done = call(f"draw_{name_of(logits.dtype)}", roomy(logits), size, temperature, noise, stop, rows, own, tokens, out,
                scores, n, n, 2)  # fmt: skip
    return tokens, out, scores, rows, done


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_draw(call, rng, dtype, temperature):
    n, size = rng.randint(2, 40), rng.choice([5, 256, 700])
    logits, uniform, stop = (2 * numbers(n, size)).to(dtype), torch.rand(n), torch.rand(size) < 0.3
    logits[:, ::3] = -torch.inf
    tokens, out, scores, rows, done = drawn(call, logits, temperature, uniform, stop, finished=[1])
    probs = (logits.double() / (temperature or 1.0)).softmax(-1)
    chosen = [row for row in range(n) if row != 1]
    p, to = (x.gather(1, tokens.clamp(min=0)[:, None])[chosen, 0] for x in (probs, probs.cumsum(-1)))
    if temperature:
        assert (p > 0).all() and (to - p - 1e-5 < uniform[chosen]).all() and (uniform[chosen] < to + 1e-5).all()
    else:
        assert torch.equal(tokens[chosen], logits.float().argmax(-1)[chosen])
    at = torch.arange(n) % 2
    assert torch.equal(out[torch.arange(n), at], tokens) and tokens[1] == -1 and (scores[1] == 7).all()
    assert torch.allclose(scores[torch.arange(n), at][chosen].double(), p.log(), atol=1e-5)
    ended = stop[tokens.clamp(min=0)] | (at == 1)
    assert torch.equal(rows, torch.arange(n).masked_fill(ended, n)) and done == ended[chosen].sum()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_draw_notices_what_is_no_number(call, dtype, temperature):
    """-ffast-math lets the compiler assume that there is none."""
    negative = torch.tensor([-4194304], dtype=torch.int32).view(torch.float32).item()  # NaN with its sign set
    bad = [torch.nan, negative, torch.inf]
    logits = numbers(3 * len(bad) + 3, 700, dtype=dtype)
    for i, value in enumerate(bad):
        for j, place in enumerate((0, 350, 699)):
            logits[3 * i + j, place] = value
    logits[-3], logits[-2], logits[-1, 1:] = torch.nan, -torch.inf, -torch.inf
    uniform, never = torch.rand(len(logits)), torch.zeros(700, dtype=torch.bool)
    tokens, _, scores, _, _ = drawn(call, logits, temperature, uniform, never)
    scores = scores[torch.arange(len(logits)), torch.arange(len(logits)) % 2]
    assert not scores[:-1].isfinite().any() and scores[-1].abs() < 1e-6 and tokens[-1] == 0
    assert ((tokens >= 0) & (tokens < 700)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_draw_of_equal_subnormal_numbers(call, dtype):
    logits, uniform = torch.full((8, 512), 1e-40).to(dtype), (torch.arange(8) + 0.5) / 8
    tokens, _, scores, _, _ = drawn(call, logits, 1.0, uniform, torch.zeros(512, dtype=torch.bool))
    assert torch.equal(tokens, torch.arange(32, 512, 64))
    assert torch.allclose(scores[torch.arange(8), torch.arange(8) % 2], torch.tensor(1 / 512).log())
