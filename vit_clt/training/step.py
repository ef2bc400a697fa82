"""One optimiser step on a token batch, which may be spread over several parts and processes.

`VarianceSums` adds up, batch by batch, what the fraction of variance unexplained of each layer
needs: FVU = sum ||y - y^||^2 / sum ||y - mean||^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_clt.choices import TokenKind
from vit_clt.errors import InputError
from vit_clt.hooks.rows import ROW_GROUPS
from vit_clt.training.engine import Engine, gradient_norm, set_learning_rate
from vit_clt.training.objective import BACKENDS
from vit_clt.transcoder.train_config import TrainConfig


@dataclass
class StepResult:
    """Loss and counts of one optimiser step, over the whole batch."""

    n_tokens: int
    loss: Float[Tensor, " layer"]
    aux: Float[Tensor, ""]
    active: Int[Tensor, " layer"]
    """Number of nonzero codes, summed over token rows."""
    fired: Bool[Tensor, "layer feature"]
    grad_norm: float
    backend: str
    variance: VarianceSums | None
    """Sums for the FVU of the reconstruction; None unless it was measured."""


class Stepper:
    """Takes optimiser steps on token batches.

    Args:
        objective: an `Objective`, as the processes share it.
        optimiser: its optimiser.
        settings: the settings of the run.
        engine: the processes.
        shape: layers, features a layer and width of the CLT.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: TrainConfig,
        engine: Engine,
        shape: tuple[int, int, int],
    ):
        self.objective, self.optimiser = objective, optimiser
        self.settings, self.engine = settings, engine
        self.n_layers, self.n_features, self.d_model = shape
        self.parameters = list(objective.named_parameters())

    def step(
        self,
        x: Float[Tensor, "layer token d_model"],
        y: Float[Tensor, "layer token d_model"],
        group: Int[Tensor, " token"],
        *,
        cls_weights: Float[Tensor, " layer"],
        lr: float,
        sparsity: float,
        dead: Bool[Tensor, "layer feature"] | None,
        measure: bool,
        where: str,
    ) -> StepResult | None:
        """Take one step on a batch, of which every process has a part of the rows.

        Args:
            x, y: normalised MLP inputs and outputs.
            group: the group of every row, a number of `ROW_GROUPS`.
            cls_weights: the weight of a CLS row in the loss of each layer.
            lr: learning rate.
            sparsity: lambda, the weight of the sparsity penalty.
            dead: dead features, which rebuild the reconstruction error (AuxK); None for none.
            measure: whether to measure the FVU.
            where: the place in the run, for the error message.

        Returns:
            The result of the step, or None if no process has a row and nothing is learned.

        Raises:
            InputError: the loss or a gradient is not finite; the weights are unchanged.
        """
        settings, engine = self.settings, self.engine
        is_cls = group == CLS
        weights = torch.where(is_cls, cls_weights[:, None], 1.0)
        # balance multiplies errors alone, so that other rows count as they would without it
        total = torch.where(is_cls, float(settings.cls_weight), 1.0).sum()
        sums = torch.tensor([float(total), float(len(group))], dtype=torch.float64)
        weight, n_tokens = engine.total(sums.to(engine.device)).tolist()
        if n_tokens == 0:
            return None
        set_learning_rate(self.optimiser, lr)
        self.optimiser.zero_grad()
        device = engine.device
        loss, aux = torch.zeros(self.n_layers, device=device), torch.zeros((), device=device)
        active = torch.zeros(self.n_layers, dtype=torch.long, device=device)
        fired = torch.zeros(self.n_layers, self.n_features, dtype=torch.int, device=device)
        variance = VarianceSums(self.n_layers, self.d_model, device) if measure else None
        backend = ""
        parts = torch.arange(len(group), device=device).chunk(settings.accumulate)
        for i, rows in enumerate(parts):
            whole = len(parts) == 1
            part = (x, y, weights) if whole else (x[:, rows], y[:, rows], weights[:, rows])
            with engine.unsynchronised(self.objective, last=i == len(parts) - 1):
                losses = self.objective(*part, weight, int(n_tokens), sparsity, dead)
                # the processes average their gradients, but each loss is a share of a sum
                engine.accelerator.backward(losses["total"] * engine.n_processes)
            loss += losses["loss_by_layer"].detach()
            aux += losses["aux"].detach()
            active += losses["active"]
            fired += losses["fired"]
            backend = BACKENDS[int(losses["backend"])]
            if variance is not None:
                variance.add(part[1], losses["y_hat"], group[rows])
        loss = engine.total(loss)
        norm = gradient_norm([p for _, p in self.parameters], settings.clip)
        self._check_finite(loss, norm, where)
        self.optimiser.step()
        if variance is not None:
            variance.reduce(engine.total)
        return StepResult(
            int(n_tokens),
            loss,
            engine.total(aux),
            engine.total(active),
            engine.total(fired) > 0,
            norm,
            backend,
            variance,
        )

    def _check_finite(self, loss: Tensor, norm: float, where: str) -> None:
        expected = f"{where}; expected finite values: lower lr ({self.settings.lr})"
        if not loss.isfinite().all():
            layer = int((~loss.isfinite()).nonzero()[0])
            raise InputError(f"loss of layer {layer} is {float(loss[layer])} {expected}.")
        if norm != norm or norm == float("inf"):
            # a norm may overflow though every gradient is finite
            names = (
                name.removeprefix("module.").removeprefix("clt.")
                for name, p in self.parameters
                if p.grad is not None and not bool(p.grad.isfinite().all())
            )
            raise InputError(f"the gradient of {next(names, 'the CLT')} is {norm} {expected}.")


KINDS: tuple[TokenKind, ...] = ("all", "cls", "patch")
CLS = ROW_GROUPS["cls"][0]


class VarianceSums:
    """Sums over token rows, in float64, that give the FVU of each layer and kind of rows."""

    def __init__(self, n_layers: int, d_model: int, device: torch.device):
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        n_groups = len(ROW_GROUPS["all"])
        self.count = zeros(n_groups)
        self.error = zeros(n_groups, n_layers)
        self.power = zeros(n_groups, n_layers)
        self.total = zeros(n_groups, n_layers, d_model)

    def add(
        self,
        y: Float[Tensor, "layer token d_model"],
        y_hat: Float[Tensor, "layer token d_model"],
        group: Int[Tensor, " token"],
    ) -> None:
        """Add these rows to the sums."""
        for i in range(len(self.count)):
            rows = group == i
            true = y[:, rows].double()
            self.count[i] += true.shape[1]
            self.error[i] += (true - y_hat[:, rows].double()).square().sum((1, 2))
            self.power[i] += true.square().sum((1, 2))
            self.total[i] += true.sum(1)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each sum by `total` of it, its sum over processes."""
        self.count, self.error, self.power, self.total = map(
            total, (self.count, self.error, self.power, self.total)
        )

    def by_layer(self) -> dict[str, list[float] | None]:
        """FVU per layer of "all", "cls" and "patch" rows; None for a kind that does not vary."""
        fvu: dict[str, list[float] | None] = {}
        for kind in KINDS:
            part = ROW_GROUPS[kind]
            count = float(self.count[part].sum())
            power, mean = self.power[part].sum(0), self.total[part].sum(0) / max(count, 1.0)
            spread = power - count * mean.square().sum(-1)
            # fewer than two rows (the end of an epoch) have no variance to explain
            varied = count > 1 and bool((spread > 1e-12 * power).all())
            fvu[kind] = (self.error[part].sum(0) / spread).tolist() if varied else None
        return fvu
