"""What a contestant of the quality race is given, and what is recorded of it, in any environment.

Only torch and safetensors are imported here: peers' dependencies conflict with ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

PARTS = 5
"""y^ is recorded at the end, half-way, a quarter of the way, and so on, this many times."""
RUN_FILE, WEIGHTS_FILE, CHECKED_FILE = "run.json", "weights.safetensors", "checked.safetensors"
Outputs = Callable[[Tensor], Tensor]
"""From x to y^, both "layer row d_model" in raw units."""


@dataclass(frozen=True)
class Task:
    """One training: its rows, its shape, and the optimisation of our preset."""

    batches: str
    """File with the batches x and y, "step layer row d_model" in bfloat16, raw units."""
    held_out: str
    """File with rows x that no contestant trains on, "layer row d_model"."""
    out: str
    """An empty folder for what is recorded."""
    rows: int
    """Rows of a batch."""
    seed: int
    features: int
    k: int
    """Active features a row and layer; peers that share them out get layers * k a row."""
    lr: float
    warmup: int
    """Steps of our linear warm-up."""
    decay: float
    """Share of the steps over which our learning rate falls to zero."""
    ours: dict[str, Any]
    """What our own trainer is called with: teacher, images and settings instead of batches."""


class Batches:
    """The batches of a file, by step, in float32."""

    def __init__(self, path: str):
        file = safe_open(path, "pt")
        self._x, self._y = file.get_slice("x"), file.get_slice("y")
        self.steps, self.layers, self.rows, self.d_model = self._x.get_shape()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """x and y of a step, "layer row d_model"."""
        return self._x[step].float(), self._y[step].float()


class Recorder:
    """CPU seconds of a training, those of recording left out, and y^ on the way.

    Args:
        task: what is trained.
        steps: the length of the training.
    """

    def __init__(self, task: Task, steps: int):
        self.folder, self.rows = Path(task.out), task.rows
        self.steps, self.step = steps, 0
        self.x = load_file(task.held_out)["x"]
        self.marks: dict[int, float] = {}
        """CPU seconds from the start, by the steps done."""
        self._points = {max(1, steps >> i) for i in range(PARTS)}

    def start(self) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def after_step(self, outputs: Outputs) -> None:
        """Count a step; y^ of the held-out rows is recorded at some of them."""
        self.step += 1
        if self.step in self._points:
            now = time.process_time()
            self.record(self.step, now - self._began, outputs)
            self._began += time.process_time() - now

    def record(self, step: int, cpu: float, outputs: Outputs) -> None:
        """Write y^ of the held-out rows, a batch at a time, after so many steps and CPU seconds."""
        self.marks[step] = cpu
        with torch.no_grad():
            parts = [outputs(part) for part in self.x.split(self.rows, 1)]
        y_hat = torch.cat(parts, 1).float().contiguous()
        save_file({"y_hat": y_hat}, self.folder / outputs_file(step))

    def finish(
        self, versions: dict[str, str], weights: dict[str, Tensor], checked: Outputs
    ) -> None:
        """Write the weights, y^ of some rows by the peer's own code in float64, and the marks."""
        assert self.step == self.steps, f"{self.step} steps of {self.steps}"
        save_file(
            {name: w.detach().contiguous() for name, w in weights.items()}, self._at(WEIGHTS_FILE)
        )
        x = self.x[:, : self.rows].double()
        with torch.no_grad():
            y_hat = checked(x).contiguous()
        assert y_hat.dtype == torch.float64
        save_file({"x": x.contiguous(), "y_hat": y_hat}, self._at(CHECKED_FILE))
        self.write(versions)

    def write(self, versions: dict[str, str]) -> None:
        """Write the marks; a folder with this file is complete."""
        marks = [{"step": step, "cpu": cpu} for step, cpu in sorted(self.marks.items())]
        self._at(RUN_FILE).write_text(json.dumps({**versions, "marks": marks}, indent=1) + "\n")

    def _at(self, name: str) -> Path:
        return self.folder / name


def outputs_file(step: int) -> str:
    """The name of the file with y^ after so many steps."""
    return f"outputs-{step}.safetensors"


@contextmanager
def after_every_step(call: Callable[[], None]) -> Iterator[None]:
    """A context in which `call` is called after every step of any optimiser."""
    handle = register_optimizer_step_post_hook(lambda *_: call())
    try:
        yield
    finally:
        handle.remove()


def versions(distribution: str) -> dict[str, str]:
    """The version of a package and of torch."""
    return {"version": version(distribution), "torch": torch.__version__}
