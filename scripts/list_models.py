"""Which models fit: every name of open_clip, and of timm's ViTs, for docs/models.md.

    python scripts/list_models.py          # print the tables
    python scripts/list_models.py --write  # put them into docs/models.md

No weights are made or read: models are built of tensors that have a shape alone. It takes about
three minutes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import open_clip
import timm
import torch

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.base import Tower
from vit_clt.hooks.towers.find import tower_of
from vit_clt.hooks.towers.open_clip_names import shape_of

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TIMM_MODULES = (
    *("vision_transformer", "deit", "eva", "beit", "vision_transformer_relpos"),
    *("vision_transformer_hybrid", "vitamin", "vision_transformer_sam", "naflexvit"),
)
"""timm's modules of ViTs; its other modules hold no plain ViT."""
START, END = "<!-- models: scripts/list_models.py -->", "<!-- end of models -->"


def timm_shape(name: str) -> Tower:
    """A timm model of tensors without values."""
    with torch.device("meta"):
        return tower_of(timm.create_model(name), Recorder())


def line(name: str, load: Callable[[str], Tower]) -> tuple[str, bool]:
    """The line of a model in the table, and whether it fits."""
    try:
        tower = load(name)
    except InputError as error:
        reason = str(error).removeprefix("model has ").partition(";")[0]
        return f"| {name} | no | {reason} |", False
    rows = [f"{tower.rows.grid[0]} x {tower.rows.grid[1]} patches"]
    if tower.rows.n_registers:
        rows.insert(0, f"{tower.rows.n_registers} registers")
    if tower.rows.has_cls:
        rows.insert(0, "CLS")
    shape = f"{len(tower.blocks)} layers, width {tower.d_model}, {' + '.join(rows)}"
    return f"| {name} | yes | {tower.family}: {shape} |", True


def table(title: str, names: Iterable[str], load: Callable[[str], Tower]) -> str:
    """A section with one line a model."""
    lines = [line(name, load) for name in names]
    count = Counter(fits for _, fits in lines)
    head = f"## {title}: {count[True]} of {count.total()}\n\n| name | runs | why |\n|---|---|---|\n"
    return head + "\n".join(text for text, _ in lines) + "\n"


def tables() -> str:
    """The sections of all lists."""
    parts = [
        f"Made by `python scripts/list_models.py --write`, with open_clip {open_clip.__version__} "
        f"and timm {timm.__version__}.\n",
        table("open_clip", open_clip.list_models(), shape_of),
    ]
    for module in TIMM_MODULES:
        parts.append(table(f"timm, `{module}`", timm.list_models(module=module), timm_shape))
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{START}\n\n{tables()}\n{END}{after}", encoding="utf-8")
    else:
        print(tables())
