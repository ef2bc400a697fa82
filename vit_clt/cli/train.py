"""`vit-clt train`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vit_clt.cli.options import ModelOptions, OutputOptions
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.config import CLTConfig
    from vit_clt.training import TrainConfig

FILES = ("config.json", "model.safetensors", "README.md", "train.jsonl", "metrics.json")


@dataclass(kw_only=True)
class Train(ModelOptions, OutputOptions):
    """Train a CLT on a frozen ViT; the output folder is itself a --clt.

    Example: vit-clt train --model digits --data digits --n-features 512 --k 16 --out out/clt
    """

    preset: Literal["paper", "small", "demo"] = "small"
    """Hyperparameters to start from; the options below override them."""
    sparsifier: Literal["relu_topk", "abs_topk", "jumprelu"] = "relu_topk"
    """How codes are made sparse."""
    k: int | None = None
    """Active features a token and layer (JumpReLU: the L0 it is steered to). Default: 128 for the
    paper preset, else a quarter of the width, at most 32."""
    n_features: int | None = None
    """Features per layer; default: 16 times the width."""
    epochs: int | None = None
    """Passes over the images."""
    batch_size: int | None = None
    """Token rows a step."""
    lr: float | None = None
    """Peak learning rate."""
    cls_weight: float | None = None
    """Weight of CLS rows in the loss."""
    backend: Literal["auto", "dense", "sparse"] = "auto"
    """How steps are computed; all are exact, auto chooses from the shape."""

    def run(self) -> None:
        """Train, save, and report."""
        from vit_clt.activations import capture
        from vit_clt.metrics import Metric, metrics_json
        from vit_clt.outputs import OutputFolder
        from vit_clt.training import as_context, train

        folder = OutputFolder(self.out, FILES, self.overwrite)
        if self.k is not None and self.k < 1:
            raise InputError(f"k is {self.k}; expected at least 1.")
        self._settings(k=self.k or 1)
        vit = self.load_vit(self.device)
        k = self.k or (128 if self.preset == "paper" else min(32, vit.cfg.d_model // 4))
        settings = self._settings(k)
        config = self._config(vit.cfg.n_layers, vit.cfg.d_model, k)
        data = self.load_images(vit, "train")
        # a first look, so that broken weights or images are refused before anything is written
        capture(vit, data.batch(range(min(8, len(data))))[0].to(self.device))
        print(
            f"{vit.cfg.model}: {vit.cfg.n_layers} layers, width {vit.cfg.d_model}, "
            f"{vit.cfg.n_tokens} tokens; {data.name}: {len(data)} images; "
            f"CLT: {config.n_features} features a layer, {config.n_parameters() / 1e6:.1f} M "
            "parameters"
        )
        folder.open()
        started = time.perf_counter()
        records = []
        with folder.stream("train.jsonl") as log:
            log.write(json.dumps({"event": "start", "step": 0}) + "\n")

            def on_log(record: dict) -> None:
                records.append(record)
                log.write(json.dumps(record) + "\n")

            clt = train(vit, data, config, settings, on_log=on_log)
        seconds = time.perf_counter() - started
        clt.save_pretrained(folder.path)
        # the last batch of an epoch may be too small to have a variance
        last = next((r for r in reversed(records) if None not in r.values()), records[-1])
        metrics = [
            *(
                Metric(f"last_batch_{name}", last[name], "fraction", last["tokens"], floor=1.0)
                for name in ("fvu", "fvu_cls", "fvu_patch")
            ),
            Metric("last_batch_l0", last["l0"], "count", last["tokens"]),
            Metric("dead", last["dead"], "fraction", len(data)),
            Metric("seconds", seconds, "seconds", len(data)),
        ]
        context = {
            "command": "train",
            "data": data.name,
            "split": data.split,
            "tokens": "all",
            "trajectory": "teacher",
            "l0": last["l0"],
            "seed": self.seed,
            **as_context(clt, settings),
        }
        folder.write("metrics.json", metrics_json(metrics, **context))
        print(
            f"last batch: FVU {_shown(last['fvu'])} (CLS {_shown(last['fvu_cls'])}, patches "
            f"{_shown(last['fvu_patch'])}), L0 {last['l0']:.1f}, dead {last['dead']:.1%}; "
            f"{seconds:.0f} s; saved to {folder.path}"
        )

    def _settings(self, k: int) -> TrainConfig:
        from vit_clt.training import PRESETS

        names = ("epochs", "batch_size", "lr", "cls_weight")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.sparsifier == "jumprelu":
            given["l0"] = float(k)
        return replace(PRESETS[self.preset], seed=self.seed, backend=self.backend, **given)

    def _config(self, n_layers: int, d_model: int, k: int) -> CLTConfig:
        from vit_clt.config import CLTConfig
        from vit_clt.sparsifiers import AbsTopK, JumpReLU, ReLUTopK, Sparsifier

        n_features = 16 * d_model if self.n_features is None else self.n_features
        sparsifiers: dict[str, Sparsifier] = {
            "relu_topk": ReLUTopK(k),
            "abs_topk": AbsTopK(k),
            "jumprelu": JumpReLU(),
        }
        return CLTConfig(n_layers, d_model, n_features, sparsifiers[self.sparsifier])


def _shown(fvu: float | None) -> str:
    return "undefined" if fvu is None else f"{fvu:.3f}"
