"""One contestant of the peer race, run inside the interpreter of the package it belongs to.

    PYTHON benchmarks/peer_step.py CONTESTANT '{"layers": 3, "d_model": 8, ...}'

Builds the contestant from seeded weights and data, says "ready" on standard output as a line of
JSON, then answers every line of standard input with one training step (forward, backward, AdamW)
and its loss and seconds. Only torch is imported here: peers' dependencies conflict with ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LEARNING_RATE = 2e-4
# the parameters to train and a function that gives the loss of the batch
Contestant = tuple[Iterable[Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Problem:
    """Shape of a step, and the same weights and data for every contestant of that shape."""

    layers: int
    d_model: int
    features: int
    k: int
    tokens: int

    def weights(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        """W_enc[s] "feature d_model" and W_dec[s][l - s] "feature d_model"."""
        random = torch.Generator().manual_seed(0)
        shape = (self.features, self.d_model)

        def uniform(bound: float) -> Tensor:
            return torch.empty(shape).uniform_(-bound, bound, generator=random)

        encoders = [uniform(self.features**-0.5) for _ in range(self.layers)]
        bound = (self.layers * self.d_model) ** -0.5
        decoders = [[uniform(bound) for _ in range(s, self.layers)] for s in range(self.layers)]
        return encoders, decoders

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y of unit scale, both "layer token d_model"."""
        random = torch.Generator().manual_seed(1)
        shape = (self.layers, self.tokens, self.d_model)
        return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


def ours(problem: Problem) -> Contestant:
    """This package."""
    from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK

    sparsifier = ReLUTopK(problem.k)
    clt = CrossLayerTranscoder(
        CLTConfig(problem.layers, problem.d_model, problem.features, sparsifier)
    )
    encoders, decoders = problem.weights()
    with torch.no_grad():
        for s in range(problem.layers):
            clt.W_enc[s].copy_(encoders[s])
            clt.W_dec[s].copy_(torch.stack(decoders[s]))
    x, y = problem.batch()
    return clt.parameters(), lambda: (clt(x) - y).square().sum(-1).mean()


def _lm_saes(problem: Problem, *, csr: bool) -> Contestant:
    from llamascopium import CLTConfig, CrossLayerTranscoder

    names_in = [f"in.{l}" for l in range(problem.layers)]
    names_out = [f"out.{l}" for l in range(problem.layers)]
    config = CLTConfig(
        d_model=problem.d_model,
        expansion_factor=problem.features / problem.d_model,
        hook_points_in=names_in,
        hook_points_out=names_out,
        act_fn="topk",
        top_k=problem.k,
        sparsity_include_decoder_norm=False,
        norm_activation="inference",
        decode_with_csr=csr,
        device="cpu",
        dtype=torch.float32,
    )
    clt = CrossLayerTranscoder(config)
    encoders, decoders = problem.weights()
    with torch.no_grad():
        for s in range(problem.layers):
            clt.W_E[s].copy_(encoders[s].T)
            clt.b_E[s].zero_()
            clt.b_D[s].zero_()
            for j, block in enumerate(decoders[s]):
                clt.W_D[s + j][s].copy_(block)
    x, y = problem.batch()
    batch = dict(zip(names_in, x, strict=True)) | dict(zip(names_out, y, strict=True))
    # its loss is the mean over layers and tokens of the squared distance, as ours is here
    return clt.parameters(), lambda: clt.compute_loss(batch, return_aux_data=False)


def lm_saes_dense(problem: Problem) -> Contestant:
    """OpenMOSS Language-Model-SAEs, its default decoder: one batched matmul a target."""
    return _lm_saes(problem, csr=False)


def lm_saes_csr(problem: Problem) -> Contestant:
    """The same with `decode_with_csr`: dense codes turned into CSR, one product a pair."""
    return _lm_saes(problem, csr=True)


def _decode_clt(problem: Problem, k: int) -> Any:
    from clt.config import CLTConfig
    from clt.models.clt import CrossLayerTranscoder

    config = CLTConfig(
        num_features=problem.features,
        num_layers=problem.layers,
        d_model=problem.d_model,
        activation_fn="topk",
        topk_k=k,
        clt_dtype="float32",
    )
    clt = CrossLayerTranscoder(config, process_group=None, device=torch.device("cpu"))
    encoders, decoders = problem.weights()
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.zero_()
        for s in range(problem.layers):
            clt.encoder_module.encoders[s].weight.copy_(encoders[s])
            for j, block in enumerate(decoders[s]):
                clt.decoder_module.decoders[f"{s}->{s + j}"].weight.copy_(block.T)
    return clt


def _squares(outputs: dict[int, Tensor], y: Tensor) -> Tensor:
    """Mean over layers and tokens of the squared distance, from mean squares a layer."""
    errors = [functional.mse_loss(outputs[l], y[l]) for l in range(len(y))]
    return torch.stack(errors).sum() * (y.shape[-1] / len(y))


def decode_clt_global(problem: Problem) -> Contestant:
    """curt-tigges/crosslayer-coding, its own forward: top L k of all layers' features together."""
    clt = _decode_clt(problem, problem.layers * problem.k)
    x, y = problem.batch()
    return clt.parameters(), lambda: _squares(clt(dict(enumerate(x))), y)


def decode_clt_layered(problem: Problem) -> Contestant:
    """Its encoder, top-k function and decoders, put together with k features a layer."""
    from clt.models.activations import TokenTopK

    clt = _decode_clt(problem, problem.k)
    x, y = problem.batch()

    def loss() -> Tensor:
        codes = {
            s: TokenTopK.apply(clt.get_preactivations(x[s], s), problem.k, True, None).relu()
            for s in range(problem.layers)
        }
        outputs = {
            l: clt.decode({s: codes[s] for s in range(l + 1)}, l) for l in range(problem.layers)
        }
        return _squares(outputs, y)

    return clt.parameters(), loss


# contestant: how it is built, and the distribution whose version is reported
CONTESTANTS: dict[str, tuple[Callable[[Problem], Contestant], str]] = {
    "ours": (ours, "vit-clt"),
    "lm-saes, dense": (lm_saes_dense, "llamascopium"),
    "lm-saes, CSR": (lm_saes_csr, "llamascopium"),
    "decode-clt, global top-k": (decode_clt_global, "decode-clt"),
    "decode-clt, top-k a layer": (decode_clt_layered, "decode-clt"),
}


def step(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> dict[str, float]:
    """One training step: its loss, and seconds of all of it and of AdamW alone."""
    cpu, wall = time.process_time(), time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    before = time.process_time()
    optimiser.step()
    end = time.process_time()
    wall = time.perf_counter() - wall
    return {"loss": value.item(), "cpu": end - cpu, "wall": wall, "adamw": end - before}


def main() -> None:
    """Serve steps until standard input ends."""
    # packages print; only this channel carries answers
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    make, distribution = CONTESTANTS[sys.argv[1]]
    parameters, loss = make(Problem(**json.loads(sys.argv[2])))
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    ready = {"version": version(distribution), "torch": torch.__version__}
    print(json.dumps(ready), file=channel, flush=True)
    for _ in sys.stdin:
        print(json.dumps(step(optimiser, loss)), file=channel, flush=True)


if __name__ == "__main__":
    main()
