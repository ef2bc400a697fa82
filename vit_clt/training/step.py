"""One optimiser step on a token batch, whatever parts and processes it is spread over.

`VarianceSums` gathers the fraction of variance unexplained by layer as batches go by:
FVU = sum ||y - y^||^2 / sum ||y - mean||^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.training.engine import Engine, gradient_norm, set_learning_rate
from vit_clt.training.objective import BACKENDS
from vit_clt.transcoder.train_config import TrainConfig


@dataclass
class Stepped:
    """What was counted on the whole batch."""

    n_tokens: int
    loss: Float[Tensor, " layer"]
    aux: Float[Tensor, ""]
    active: Int[Tensor, " layer"]
    """Nonzero codes, summed over rows."""
    fired: Bool[Tensor, "layer feature"]
    grad_norm: float
    backend: str
    variance: VarianceSums | None
    """Of the reconstruction, where it was asked for."""


class Stepper:
    """Takes steps.

    Args:
        objective: an `Objective`, as the processes share it.
        optimiser: its optimiser.
        settings: of the run.
        engine: the processes.
        shape: layers, features and width of the CLT.
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
        is_cls: Bool[Tensor, " token"],
        *,
        lr: float,
        sparsity: float,
        dead: Bool[Tensor, "layer feature"] | None,
        measure: bool,
        where: str,
    ) -> Stepped | None:
        """Lower the loss on these rows, of which every process holds a part.

        Args:
            x, y: normalised MLP inputs and outputs.
            is_cls: which rows are CLS.
            lr: learning rate.
            sparsity: lambda.
            dead: features that rebuild what is left over; None for none.
            measure: whether to measure the variance explained.
            where: place in the run, for the sentence below.

        Returns:
            None if no process has a row: nothing is learned then.

        Raises:
            InputError: loss or gradient is not finite; the weights are as they were.
        """
        settings, engine = self.settings, self.engine
        weights = torch.where(is_cls, float(settings.cls_weight), 1.0)
        counted = torch.tensor([float(weights.sum()), float(len(is_cls))], dtype=torch.float64)
        weight, n_tokens = engine.total(counted.to(engine.device)).tolist()
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
        parts = torch.arange(len(is_cls), device=device).chunk(settings.accumulate)
        for i, rows in enumerate(parts):
            whole = len(parts) == 1
            part = (x, y, weights) if whole else (x[:, rows], y[:, rows], weights[rows])
            with engine.unsynchronised(self.objective, last=i == len(parts) - 1):
                found = self.objective(*part, weight, int(n_tokens), sparsity, dead)
                # processes average their gradients, the loss is already a share of the whole
                engine.accelerator.backward(found["total"] * engine.n_processes)
            loss += found["loss_by_layer"].detach()
            aux += found["aux"].detach()
            active += found["active"]
            fired += found["fired"]
            backend = BACKENDS[int(found["backend"])]
            if variance is not None:
                variance.add(part[1], found["y_hat"], is_cls[rows])
        loss = engine.total(loss)
        norm = gradient_norm([p for _, p in self.parameters], settings.clip)
        self._check_finite(loss, norm, where)
        self.optimiser.step()
        if variance is not None:
            variance.reduce(engine.total)
        return Stepped(
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


KINDS = ("all", "cls", "patch")


class VarianceSums:
    """Sums in float64 over token rows; the mean is taken over all rows of a kind."""

    def __init__(self, n_layers: int, d_model: int, device: torch.device):
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count = zeros(2)
        self.error = zeros(2, n_layers)
        self.power = zeros(2, n_layers)
        self.total = zeros(2, n_layers, d_model)

    def add(
        self,
        y: Float[Tensor, "layer token d_model"],
        y_hat: Float[Tensor, "layer token d_model"],
        is_cls: Bool[Tensor, " token"],
    ) -> None:
        """Count these rows."""
        for i, chosen in enumerate((is_cls, ~is_cls)):
            true = y[:, chosen].double()
            self.count[i] += true.shape[1]
            self.error[i] += (true - y_hat[:, chosen].double()).square().sum((1, 2))
            self.power[i] += true.square().sum((1, 2))
            self.total[i] += true.sum(1)

    def reduce(self, over: Callable[[Tensor], Tensor]) -> None:
        """Add up what several processes counted."""
        self.count, self.error, self.power, self.total = map(
            over, (self.count, self.error, self.power, self.total)
        )

    def by_layer(self) -> dict[str, list[float] | None]:
        """FVU per layer of "all", "cls" and "patch" rows; None where they do not vary."""
        found: dict[str, list[float] | None] = {}
        for kind, chosen in zip(KINDS, (slice(None), slice(0, 1), slice(1, 2)), strict=True):
            count = float(self.count[chosen].sum())
            power, mean = self.power[chosen].sum(0), self.total[chosen].sum(0) / max(count, 1.0)
            spread = power - count * mean.square().sum(-1)
            # fewer than two rows (the end of an epoch) have no variance to explain
            varied = count > 1 and bool((spread > 1e-12 * power).all())
            found[kind] = (self.error[chosen].sum(0) / spread).tolist() if varied else None
        return found
