"""The GPU's kernels: exact in triton's interpreter, and compiled for real architectures.

The interpreter runs a kernel's program on CPU tensors; no GPU is needed. What it cannot show is
speed, and the order of a sum within a tile.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from assertions import close
from builders import KINDS, noise, noisy_clt_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles.pretend_gpu import pretend_gpu
from torch import Tensor

from vit_clt.kernels import bags
from vit_clt.kernels.bags import add_bag_sums_, bag_sums, feature_order

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver
from triton.runtime.interpreter import InterpretedFunction

from vit_clt.kernels import gpu as gpu_products
from vit_clt.kernels.gpu import Tile

KERNELS = ("_add_bag_sums", "_feature_products", "_segment_totals")
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture
def on_kernels(monkeypatch):
    """CPU tensors take the GPU's path, its kernels interpreted."""
    for name in KERNELS:
        kernel = InterpretedFunction(getattr(gpu_products, name).fn)
        monkeypatch.setattr(gpu_products, name, kernel)
    # a kernel of triton's own library, and so not the interpreter's
    monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
    monkeypatch.setattr(bags, "has_kernels", lambda table: True)


examples = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sizes = given(
    L=st.integers(1, 3),
    d=st.integers(1, 9),
    counts=st.lists(st.integers(0, 6), max_size=6),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)


def ragged(counts: list[int], F: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and values, some of them 0, of tokens with these many entries, and their offsets."""
    draw = torch.Generator().manual_seed(seed)
    indices = [torch.randperm(F, generator=draw)[:n] for n in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    flat = torch.cat([torch.empty(0, dtype=torch.long), *indices])
    values = noise(len(flat), seed=seed) * (noise(len(flat), seed=seed + 1) > -1)
    return flat, values, offsets


def written_out(indices: Tensor, values: Tensor, offsets: Tensor, F: int) -> Tensor:
    dense = torch.zeros(len(offsets) - 1, F, dtype=torch.float64)
    for token, (lo, hi) in enumerate(pairwise(offsets.tolist())):
        dense[token, indices[lo:hi]] = values[lo:hi].double()
    return dense


def close_in(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    exact = dtype == torch.float64
    assert found.dtype == (torch.float64 if exact else torch.float32)
    close(found.double(), expected, 1e-12 if exact else 3e-6)


@examples
@sizes
def test_decoding_adds_the_dense_products(on_kernels, L, d, counts, dtype, seed):
    F, n = 7, len(counts)
    indices, values, offsets = ragged(counts, F, seed)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    tables, values = noise(L, F, d, seed=seed + 2).to(dtype), values.to(accumulator)
    start = noise(L, n, d, seed=seed + 3).to(accumulator)
    out = start.clone()
    add_bag_sums_(out, tables, indices, offsets, values)
    z = written_out(indices, values, offsets, F)
    close_in(out, start.double() + torch.einsum("nf,jfd->jnd", z, tables.double()), dtype)
    if dtype != torch.bfloat16:
        one = bag_sums(tables[0], indices, offsets, values)
        close_in(one, z @ tables[0].double(), dtype)


@pytest.mark.parametrize("wanted", [("dots", "sums"), ("dots",), ("sums",)])
@examples
@sizes
def test_backward_products_equal_the_dense(on_kernels, wanted, L, d, counts, dtype, seed):
    F, n = 7, len(counts)
    indices, values, offsets = ragged(counts, F, seed)
    order = feature_order(indices, offsets, F)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    values = values.to(accumulator)
    grads = noise(L, n, d, seed=seed + 2).to(dtype)
    tables = noise(L, F, d, seed=seed + 3).to(dtype)
    dots, sums = bags.feature_products(
        grads,
        order,
        tables if "dots" in wanted else None,
        order.sort(values) if "sums" in wanted else None,
    )
    assert (dots is None, sums is None) == ("dots" not in wanted, "sums" not in wanted)
    if sums is not None:
        z = written_out(indices, values, offsets, F)
        close_in(sums, torch.einsum("nf,jnd->jfd", z, grads.double()), dtype)
    if dots is not None:
        dz = torch.einsum("jnd,jfd->nf", grads.double(), tables.double())
        of_token = torch.arange(n).repeat_interleave(offsets.diff())
        close_in(order.unsort(dots), dz[of_token, indices], dtype)


@examples
@sizes
def test_totals_of_features(on_kernels, L, d, counts, dtype, seed):
    F = 7
    indices, values, offsets = ragged([n * L % (F + 1) for n in counts], F, seed)
    values = values.to(torch.float64 if dtype == torch.float64 else torch.float32)
    found = bags.feature_totals(feature_order(indices, offsets, F), values)
    close_in(found, written_out(indices, values, offsets, F).sum(0), dtype)


def test_more_entries_than_a_tile_holds(on_kernels):
    # one feature on every token, others on none: several tiles with a rest, and empty ones
    n, F, d = 300, 3, 5
    indices, values = torch.ones(n, dtype=torch.long), noise(n)
    order = feature_order(indices, torch.arange(n + 1), F)
    grads, tables = noise(1, n, d, seed=2), noise(1, F, d, seed=3)
    dots, sums = bags.feature_products(grads, order, tables, order.sort(values))
    close_in(dots, grads[0] @ tables[0, 1], torch.float64)
    close_in(sums[0, 1], values @ grads[0], torch.float64)
    assert not sums[0, [0, 2]].any()
    totals = bags.feature_totals(order, values)
    close_in(totals, torch.stack([values.sum() * 0, values.sum(), values.sum() * 0]), torch.float64)
    bag = bag_sums(grads[0], torch.arange(n), torch.tensor([0, 0, n]), values)
    close_in(bag, torch.stack([values[:1] @ grads[0, :1] * 0, values @ grads[0]]), torch.float64)


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [("relu_topk", 1.0), ("abs_topk", 1.0), ("jumprelu", 1.0), ("jumprelu", 0.02)],
    ids=["relu_topk", "abs_topk", "jumprelu banded", "jumprelu listed"],
)
def test_a_whole_step_through_the_kernels_equals_the_cpus(request, kind, bandwidth):
    found = [step(kind, bandwidth)]
    request.getfixturevalue("on_kernels")
    found += [step(kind, bandwidth), step(kind, bandwidth)]
    for cpu, gpu, again in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-12, atol=1e-12)
        assert torch.equal(gpu, again)


def step(kind: str, bandwidth: float, device: torch.device | str = "cpu") -> list[Tensor]:
    clt = noisy_clt_of(kind, L=3, d=5, F=10, k=3, bandwidth=bandwidth).to(device)
    x = noise(3, 6, 5).to(device).requires_grad_()
    y_hat = clt(x)
    y_hat.square().sum().backward()
    return [y_hat.detach(), x.grad, *(parameter.grad for parameter in clt.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_kernels_are_launched_on_tensors_that_lie_there(on_kernels, monkeypatch, kind):
    launched: set[str] = set()

    class Launched:
        """An interpreted kernel, given the CPU values of tensors on the pretend GPU."""

        def __init__(self, name: str):
            self.name, self.kernel = name, getattr(gpu_products, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*args: object, **options: object) -> None:
                tensors = [each for each in args if isinstance(each, Tensor)]
                assert {each.device.type for each in tensors} == {"cuda"}
                launched.add(self.name)
                plain = [getattr(each, "inner", each) for each in args]
                self.kernel[grid](*plain, **options)

            return launch

    expected = step(kind, 1.0)
    for name in KERNELS:
        monkeypatch.setattr(gpu_products, name, Launched(name))
    # as it is where triton is installed
    monkeypatch.setattr(bags, "has_kernels", lambda table: table.device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    assert not launched
    with pretend_gpu() as device:
        found = [value.cpu() for value in step(kind, 1.0, device)]
    assert launched == set(KERNELS)
    for gpu, cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sources", [[0], [1, 2]])
def test_one_target_and_only_some_sources(request, sources):
    def decoded() -> list[Tensor]:
        clt = noisy_clt_of(L=3, d=5, F=10, k=3)
        codes = clt.encode(noise(3, 6, 5))
        y = clt.decode({s: codes[s] for s in sources}, target=2)
        y.square().sum().backward()
        return [y.detach(), *(p.grad for p in clt.parameters() if p.grad is not None)]

    cpu = decoded()
    request.getfixturevalue("on_kernels")
    for gpu, expected in zip(decoded(), cpu, strict=True):
        torch.testing.assert_close(gpu, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(on_kernels, kind):
    clt, x = noisy_clt_of(kind), noise(3, 0, 4).requires_grad_()
    clt(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not any(parameter.grad.any() for parameter in clt.parameters())


def test_under_autocast_rows_are_read_in_bfloat16_and_summed_in_float32(on_kernels):
    clt = noisy_clt_of(L=2, d=6, F=12, k=4).float()
    with torch.no_grad():
        codes = clt.encode(noise(2, 9, 6).float())
    codes.values.requires_grad_()
    dy = noise(2, 9, 6, seed=8).float()
    with torch.autocast("cpu", torch.bfloat16):
        y_hat = clt.decode(codes)
    y_hat.backward(dy)
    z, near = (
        codes.to_dense().detach().double(),
        [w.detach().bfloat16().double() for w in clt.W_dec],
    )
    expected = clt.b_dec.detach().double()[:, None] + torch.stack(
        [z[0] @ near[0][0], z[0] @ near[0][1] + z[1] @ near[1][0]]
    )
    close_in(y_hat, expected, torch.float32)
    # the reading was rounded indeed
    exact = clt.decode(codes).detach().double()
    assert not torch.allclose(expected, exact, rtol=1e-5, atol=1e-5)
    read = dy.bfloat16().double()
    close_in(clt.W_dec[0].grad, torch.stack([z[0].T @ read[0], z[0].T @ read[1]]), torch.float32)
    close_in(clt.W_dec[1].grad, (z[1].T @ read[1])[None], torch.float32)
    dz = torch.stack([read[0] @ near[0][0].T + read[1] @ near[0][1].T, read[1] @ near[1][0].T])
    close_in(codes.values.grad, codes.read(dz), torch.float32)
    close_in(clt.b_dec.grad, dy.double().sum(1), torch.float32)


def test_kernels_are_for_cuda_and_need_triton(monkeypatch):
    # no tensor can be made there
    on_cuda = type("OnCuda", (), {"device": torch.device("cuda", 0)})()
    has_kernels = inspect.unwrap(bags.has_kernels)
    assert has_kernels(on_cuda)
    assert not has_kernels(noise(1))
    monkeypatch.setitem(sys.modules, "triton", None)
    bags.has_triton.cache_clear()
    try:
        assert not has_kernels(on_cuda)
    finally:
        bags.has_triton.cache_clear()


class Offline:
    """A driver that names a GPU, for which triton compiles; nothing can be launched on it."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that, when launched, is compiled for that launch's arguments and kept."""

    def __init__(self, kernel: JITFunction):
        self.kernel = kernel
        self.found: list[CompiledKernel] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.found.append(
            self.kernel.warmup(*args, grid=grid, **options)
        )


@pytest.fixture
def compiled(request, monkeypatch, tmp_path):
    """The kernels by name; products compile them for the GPU given, from an empty cache."""
    pytest.importorskip("triton.backends.nvidia.compiler", reason="no CUDA back end")
    try:
        _ = triton.knobs.nvidia.ptxas  # looks for it
    except RuntimeError:
        pytest.skip("triton's ptxas is not installed")
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(bags, "has_kernels", lambda table: True)
    kernels = {name: Compiled(getattr(gpu_products, name)) for name in KERNELS}
    for name, each in kernels.items():
        monkeypatch.setattr(each.kernel, "device_caches", defaultdict(each.kernel.create_binder))
        monkeypatch.setattr(gpu_products, name, each)
    before = dict(vars(driver))
    driver.set_active(Offline(request.param))
    yield kernels
    # its own reset would look for a GPU
    vars(driver).update(before)


@pytest.mark.parametrize("compiled", [80, 90], indirect=True)
def test_each_launch_compiles_for_real_gpus(compiled):
    d = 768
    for F in (8, 11):
        indices, values, offsets = ragged([4, F, 0], F, seed=F)
        values, order = values.float(), feature_order(indices, offsets, F)
        tables, grads = torch.zeros(2, F, d).bfloat16(), torch.zeros(2, 3, d).bfloat16()
        add_bag_sums_(torch.zeros(2, 3, d), tables, indices, offsets, values)
        bags.feature_products(grads, order, tables, values)
        bags.feature_products(grads, order, None, values)
        bags.feature_totals(order, values)
    for name, each in compiled.items():
        half = len(each.found) // 2
        for first, again in zip(each.found[:half], each.found[half:], strict=True):
            assert first.asm["cubin"].startswith(b"\x7fELF")
            # numbers of tokens, entries and features cost no further compilation
            assert again is first
            # rows come in loads of 16 bytes
            assert ("ld.global.v4" in first.asm["ptx"]) == (name != "_segment_totals")


@pytest.mark.parametrize("d", [1, 7, 192, 384, 768, 1024, 5000])
@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64])
def test_tiles_hold_a_row_and_fit_in_registers(d, accumulator):
    tile = Tile.of(d, accumulator)
    assert d <= tile.columns < 2 * d
    assert tile.columns & (tile.columns - 1) == tile.entries & (tile.entries - 1) == 0
    if d <= 4096:
        held = tile.columns * tile.entries * accumulator.itemsize
        assert held <= 256 * 32 * tile.warps
