"""A training step at paper size on a GPU: back ends, precisions, token counts, and where time goes.

    python benchmarks/bench_gpu.py [--tokens 4096,8192,16384] [--k 128,32] [--out FILE]
    python benchmarks/bench_gpu.py --device cpu --shape 2,32,128 --tokens 64 --k 8   # a dry run

Forward, loss and backward of one step (`vit_clt.training.objective`), and fused AdamW beside it.
Matmul work is counted from the shape: 2 F d flops a token for each product. A dense step has two a
layer for the encoder (x needs no gradient) and three a (source, target) pair, a sparse step one a
layer.
The share of the peak is against a bf16 matmul of the same run, 8192 x 8192 x 8192 random numbers.
`auto` is what the trial before a training run would choose (`vit_clt.training.trial`).
A case that does not fit the GPU, or that it has no compiler for, is named and left out.
Exits 1 where the GPU was not this process's alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from measure import machine

from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK
from vit_clt.choices import Precision
from vit_clt.errors import InputError
from vit_clt.kernels.jump import fusion
from vit_clt.kernels.topk import top_k
from vit_clt.training.engine import matmul_precision
from vit_clt.training.objective import Objective
from vit_clt.training.trial import faster_backend
from vit_clt.transcoder.sparsifiers import JumpReLUTraining
from vit_clt.transcoder.train_config import SparsifierTraining, TrainConfig

GIB = 2**30
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One step that is timed."""

    sparsifier: Literal["relu_topk", "jumprelu"]
    k: int
    tokens: int
    backend: Literal["dense", "sparse"]
    precision: Precision
    compile: bool = False

    def settings(self) -> TrainConfig:
        """As training would have them."""
        return TrainConfig(
            batch_size=self.tokens,
            backend=self.backend,
            precision=self.precision,
            sparsity=JumpReLUTraining(compile=True) if self.compile else SparsifierTraining(),
        )


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Of each run, after two that do not count."""
    taken = []
    for turn in range(rounds + 2):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        if turn >= 2:
            taken.append(time.perf_counter() - began)
    return taken


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, size: int) -> float:
    """FLOP/s of a bf16 matmul of random numbers."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16).unbind()
    out = torch.empty_like(a)
    taken = seconds_of(lambda: torch.mm(a, b, out=out), device, 10)
    return 2 * size**3 / statistics.median(taken)


def matmul_flops(config: CLTConfig, backend: str) -> int:
    """Of one token row's step."""
    product = 2 * config.n_features * config.d_model
    if backend == "sparse":
        return product * config.n_layers
    return product * (2 * config.n_layers + 3 * config.n_decoders())


def measure(case: Case, shape: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """Times, memory and the largest parts of one case."""
    layers, d, features = shape
    sparsifier = ReLUTopK(case.k) if case.sparsifier == "relu_topk" else JumpReLU()
    config = CLTConfig(layers, d, features, sparsifier)
    torch.manual_seed(0)
    with torch.device(device):
        clt = CrossLayerTranscoder(config, backend=case.backend)
        x, y = torch.randn(2, layers, case.tokens, d).unbind()
        weights = torch.ones(case.tokens)
    objective = Objective(clt, case.settings())
    optimiser = torch.optim.AdamW(clt.parameters(), fused=True)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")

    def step() -> None:
        optimiser.zero_grad()
        with bf16:
            found = objective(x, y, weights, float(case.tokens), case.tokens, 1e-3, None)
        found["total"].backward()

    with ExitStack() as stack:
        stack.enter_context(matmul_precision(case.precision))
        stack.enter_context(fusion(case.compile))
        taken = seconds_of(step, device, ROUNDS)
        peak = above = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step()
            synchronise(device)
            peak = torch.cuda.max_memory_allocated(device)
            above = peak - 2 * 4 * config.n_parameters()  # weights and gradients, float32
        parts = largest_parts(step, device)
        optimising = seconds_of(optimiser.step, device, ROUNDS)
    median = statistics.median(taken)
    flops = matmul_flops(config, case.backend) * case.tokens / median
    return {
        "sparsifier": case.sparsifier,
        "k": case.k if case.sparsifier == "relu_topk" else None,
        "tokens": case.tokens,
        "backend": case.backend,
        "precision": case.precision,
        "compile": case.compile,
        "ms": [1e3 * each for each in taken],
        "adamw_ms": 1e3 * statistics.median(optimising),
        "tokens_per_second": case.tokens / median,
        "with_adamw": case.tokens / (median + statistics.median(optimising)),
        "matmul_flops_per_second": flops,
        "peak_bytes": peak,
        "above_weights_and_gradients": above,
        "parts": parts,
    }


def largest_parts(step: Callable[[], None], device: torch.device) -> list[dict[str, Any]]:
    """The kernels that one step spends most of its time in."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profile:
        step()
        synchronise(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))[:12]
    return [
        {"name": event.key[:80], "ms": getattr(event, key) / 1e3, "calls": event.count}
        for event in events
    ]


def selection(
    device: torch.device, n_tokens: int, d_model: int, features: int, k: int
) -> dict[str, float]:
    """Milliseconds of one layer's encoder product and its top-k, by precision.

    What bf16 saves is what `vit_clt.kernels.screening` could, before candidates are summed again.
    """
    x = torch.randn(n_tokens, d_model, device=device)
    weight = torch.randn(features, d_model, device=device)
    found = {}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        inputs, table = x.to(dtype), weight.to(dtype).T
        times = []
        with matmul_precision(precision):
            for _ in range(ROUNDS + 1):
                synchronise(device)
                began = time.perf_counter()
                top_k(inputs @ table, k)
                synchronise(device)
                times.append(1e3 * (time.perf_counter() - began))
        found[precision] = statistics.median(times[1:])
    return found


def cases(options: argparse.Namespace) -> list[Case]:
    """Top-k by back end, precision and size; JumpReLU with and without compilation."""
    found = [
        Case("relu_topk", k, n, backend, precision)
        for precision in options.precisions.split(",")
        for k in map(int, options.k.split(","))
        for n in map(int, options.tokens.split(","))
        for backend in ("dense", "sparse")
    ]
    n = int(options.tokens.split(",")[0])
    return found + [Case("jumprelu", 0, n, "dense", "bf16", compile) for compile in (False, True)]


def show(row: dict[str, Any], peak: float) -> None:
    """One line of the table."""
    name = row["sparsifier"] if row["k"] is None else f"{row['sparsifier']} k {row['k']}"
    compiled = ", compiled" if row["compile"] else ""
    print(
        f"| {name} | {row['tokens']} | {row['backend']}{compiled} | {row['precision']} "
        f"| {statistics.median(row['ms']):.1f} ({min(row['ms']):.1f} to {max(row['ms']):.1f}) "
        f"| {row['tokens_per_second']:,.0f} | {row['with_adamw']:,.0f} "
        f"| {row['matmul_flops_per_second'] / peak:.0%} | {row['peak_bytes'] / GIB:.2f} "
        f"| {row['above_weights_and_gradients'] / GIB:.2f} |",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", default="12,768,12288", help="layers, d_model, features")
    parser.add_argument("--tokens", default="4096,8192,16384")
    parser.add_argument("--k", default="128,32")
    parser.add_argument("--precisions", default="bf16,tf32")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matmul of the peak")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    layers, d, features = map(int, options.shape.split(","))
    shape = layers, d, features
    result: dict[str, Any] = {"machine": machine(), "shape": shape, "rows": []}
    result |= {"auto": [], "selection": []}
    others = 0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        result["machine"]["gpu"] = torch.cuda.get_device_name(device)
    peak = matmul_peak(device, options.matmul)
    result["matmul_peak"] = peak
    print(f"{result['machine']}\nbf16 matmul {peak / 1e12:.0f} TFLOP/s; shape {shape}\n")
    print(
        "| codes | tokens | back end | precision | step ms | tokens/s | with AdamW "
        "| of matmul peak | peak GiB | above weights + gradients |\n" + "|---" * 10 + "|"
    )
    for case in cases(options):
        try:
            row = measure(case, shape, device)
        except (torch.OutOfMemoryError, InputError) as error:
            # smaller GPUs, or no compiler: the other rows are still worth having
            print(f"{case}: {error}", file=sys.stderr)
            continue
        result["rows"].append(row)
        show(row, peak)
        write(result, options.out)
    for k in map(int, options.k.split(",")):
        n = int(options.tokens.split(",")[0])
        config = CLTConfig(*shape, ReLUTopK(k))
        chosen = faster_backend(
            config, Case("relu_topk", k, n, "dense", "bf16").settings(), device, n
        )
        result["auto"].append({"k": k, "tokens": n, "chosen": chosen})
        print(f"auto at k {k}, {n} tokens, bf16: {chosen}")
        result["selection"].append({"k": k, "tokens": n, "ms": selection(device, n, *shape[1:], k)})
        print(f"encoder and top-k of one layer, ms: {result['selection'][-1]['ms']}")
    shared = others > GIB
    result["shared"] = shared
    write(result, options.out)
    if shared:
        print(
            f"SHARED: others held {others / GIB:.1f} GiB of this GPU; do not publish these figures"
        )
    sys.exit(1 if shared else 0)


def write(result: dict[str, Any], out: Path | None) -> None:
    """What there is so far: a run that is cut short leaves its rows."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
