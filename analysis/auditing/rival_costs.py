"""What the training of the audit's rivals will take, told before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_clt.analysis.auditing.rivals import RivalRun, is_finished
from vit_clt.data.images import ImageData
from vit_clt.forecast.wording import duration
from vit_clt.hooks import HookedViT
from vit_clt.training.planned import PlannedRun


def rivals_forecast(
    vit: HookedViT,
    data: ImageData,
    runs: Sequence[RivalRun],
    folder: Path,
    device: str,
    *,
    overwrite: bool = False,
) -> Iterator[str]:
    """A line for each rival that is missing, and a line with their sum.

    Memory and disk come from formulas, time from a short trial for each rival.

    Args:
        vit: the teacher.
        data: images to train on.
        runs: trainings of the rivals.
        folder: the folder that they are trained in (`train_rivals`).
        device: torch device of the trainings.
        overwrite: finished rivals are trained again.
    """
    missing = [run for run in runs if overwrite or not is_finished(run, folder)]
    n_finished = len(runs) - len(missing)
    finished = f"; finished already: {n_finished}" if n_finished else ""
    if not missing:
        yield f"nothing is trained{finished}"
        return
    total, memory, disk = 0.0, 0, 0
    for run in missing:
        planned = PlannedRun(vit, data, run.config, run.settings, device)
        seconds, needs = planned.seconds(), planned.needs()
        yield (
            f"{run.name}: {run.config.n_features} features a layer, "
            f"{run.config.n_parameters() / 1e6:.1f} M parameters, {planned.n_steps:,} steps, about "
            f"{duration(seconds)}"
        )
        total += seconds
        memory = max(memory, sum(needs.memory.values()))
        disk += needs.disk["result"]
    yield (
        f"to train: {len(missing)}, on {data.name} ({len(data)} images), about "
        f"{duration(total)}, {memory / 2**30:.1f} GiB of memory, {disk / 2**30:.1f} GiB of "
        f"disk{finished}; then the studies, a few passes of the ViT for each layer"
    )
