"""The summary of a training run: metrics, one line to print, and the page of curves."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_clt.transcoder.train_config import TrainConfig

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.transcoder.config import CLTConfig


def training_summary(
    log: Path, data: ImageData, config: CLTConfig, settings: TrainConfig, device: str
) -> tuple[list[Any], dict[str, Any], str]:
    """Metrics, facts (l0, steps, the line to print) and the page of curves, from a run's log."""
    from vit_clt.analysis.reporting.training_page import read_log, training_report
    from vit_clt.metrics import Metric
    from vit_clt.training.cost import duration

    records = read_log(log)
    steps = [r for r in records if "event" not in r]
    held_out = [r for r in records if r.get("event") == "validation"]
    end = next(r for r in reversed(records) if r.get("event") == "end")
    # the last batch of an epoch may be too small to have a variance
    kinds = ("fvu", "fvu_cls", "fvu_patch")
    last = next((r for r in reversed(steps) if None not in map(r.get, kinds)), steps[-1])
    metrics = [
        *(
            Metric(f"last_batch_{name}", last[name], "fraction", last["tokens"], floor=1.0)
            for name in kinds
        ),
        Metric("last_batch_l0", last["l0"], "count", last["tokens"]),
        Metric("dead", last["dead"], "fraction", len(data)),
        Metric("skipped_images", last["skipped"], "count", len(data)),
        Metric("seconds", end["seconds"], "seconds", len(data)),
        Metric("tokens_per_second", end["tokens_per_second"], "tokens/s", len(data)),
        Metric("peak_memory", _peak_memory(device), "bytes", len(data)),
    ]
    fvu_by_kind = {"CLS": last["fvu_cls"], "patches": last["fvu_patch"]}
    measured_on = "last batch"
    if held_out:
        final, measured_on = held_out[-1], f"{held_out[-1]['n_images']} held-out images"
        fvu_by_kind = {}
        for kind, label in (("cls", "CLS"), ("patch", "patches")):
            values = final[f"fvu_{kind}_by_layer"]
            mean = None if values is None else sum(values) / len(values)
            fvu_by_kind[label] = mean
            metrics.append(
                Metric(f"held_out_fvu_{kind}", mean, "fraction", final["n_images"], floor=1.0)
            )
    target = config.sparsifier.expected_l0 or settings.sparsity.l0_target
    facts = {
        "Data": f"{data.name}, {len(data)} images",
        kind_of(config): f"{config.n_features} features a layer, {config.sparsifier.name}",
        "Seed": str(settings.seed),
        **({"L0 target": str(target)} if target else {}),
    }
    title = f"Training a {kind_of(config)} on {data.name}"
    page = training_report(records, title=title, facts=facts)
    fvu = ", ".join(
        f"{label} {'undefined' if value is None else f'{value:.3f}'}"
        for label, value in fvu_by_kind.items()
    )
    line = (
        f"{measured_on}: FVU {fvu}; L0 {last['l0']:.1f}, dead {last['dead']:.1%}; "
        f"{duration(end['seconds'])}, {end['tokens_per_second']:.0f} tokens/s"
    )
    return metrics, {"l0": last["l0"], "line": line, "steps": end["step"]}, page


def kind_of(config: CLTConfig) -> str:
    """The kind of transcoder, in words."""
    return "CLT" if config.cross_layer else "per-layer transcoder"


def _peak_memory(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
