"""The studies of a CLT that one command runs together, and the page that joins theirs."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_clt.cli.loaded import loaded_once
from vit_clt.inputs import read_json
from vit_clt.outputs import check_same
from vit_clt.outputs.staging import staged_file

if TYPE_CHECKING:
    from vit_clt.cli.command import Command
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT

_OWN_PASSES = ".passes"


class Page(NamedTuple):
    """The page of a study."""

    title: str
    name: str
    """Its file, without the ending."""


PAGES = {
    "train": Page("How the training went", "training"),
    "reconstruct": Page("How well each layer is rebuilt", "reconstruction"),
    "weights": Page("Decoder norms", "weights"),
    "contributions": Page("From which depth each layer can be read", "contributions"),
    "high-norm": Page("Patch rows of outlying norms", "high_norm"),
    "cascade": Page("The model with its MLPs replaced", "cascade"),
    "faithfulness": Page("How closely it answers as the model does", "faithfulness"),
    "ablate": Page("Keeping and dropping source layers", "ablation"),
    "keep-sets": Page("All sets of source layers", "keep_sets"),
    "causal": Page("What ablating the ViT's own layers does", "causal"),
    "heads": Page("What attention heads add beside the MLPs", "heads"),
    "claims": Page("Do the scores hold?", "claims"),
    "features": Page("What features fire on, write and do", "index"),
    "feature-scores": Page("Are the features any good?", "feature_scores"),
    "retrieve": Page("Images alike in the codes of each layer", "retrieval"),
    "probe": Page("At which depth can the class be read?", "probe"),
    "audit": Page("Audit", "audit"),
    "explore": Page("Explorer: heatmap, features, images, graphs", "index"),
}
"""Commands that can be run together, in the order in which `run` runs those that it has."""


@contextmanager
def one_loading(out: Path) -> Iterator[None]:
    """A context in which commands load the ViT, the CLT and images once.

    At its end, also after an error, the main process removes the passes of `passes_folder`.
    """
    from vit_clt.training.processes import is_main

    try:
        with loaded_once():
            yield
    finally:
        if is_main():
            shutil.rmtree(out / _OWN_PASSES, ignore_errors=True)


def passes_folder(vit: HookedViT, data: ImageData, out: Path) -> Path | None:
    """A folder for the passes that the studies of `out` share; one resumed after a kill goes on.

    Where they would take more than half of what is free on the disk this is said, and None is
    returned: every study runs the ViT.
    """
    from vit_clt.analysis.fit.gate import N_IMAGES
    from vit_clt.forecast.wording import byte_size
    from vit_clt.hooks.pass_store import pass_bytes

    # the fit is measured on evenly spaced images, which are batches of their own
    needed = (len(data) + min(len(data), N_IMAGES)) * pass_bytes(vit)
    free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
    if needed > free // 2:
        print(
            f"passes of the ViT over {len(data):,} images would take {byte_size(needed)} of the "
            f"{byte_size(free)} that are free: they are not kept, every study runs the ViT"
        )
        return None
    return out / _OWN_PASSES


def check_resumed(path: Path, options: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to go on with studies of other options; else keep those that they are made with.

    Args:
        path: the file that keeps them.
        options: by name, as JSON values.
        resume: whether studies are gone on with.

    Raises:
        InputError: an option differs, with both values.
    """
    if resume and path.is_file():
        check_same(options, read_json(path), str(path))
    with staged_file(path) as place:
        place.write_text(json.dumps(options, indent=1, default=str) + "\n", encoding="utf-8")


def is_finished(command: Command, *, resume: bool) -> bool:
    """Whether an earlier run that is gone on with has finished this study."""
    return resume and (command.out / "metrics.json").is_file()


def index_page(title: str, links: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    """A page that lists the pages of all studies.

    Args:
        title: its heading.
        links: addresses of the pages, by what they are about.
        left_out: why a study was not made, by what it is about.
    """
    shown = "".join(
        f'<li><a href="{html.escape(page, quote=True)}">{html.escape(text)}</a></li>\n'
        for text, page in links.items()
    )
    missing = "".join(
        f"<li>{html.escape(text)}: left out. {html.escape(reason)}</li>\n"
        for text, reason in left_out.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body { font: 16px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; "
        "padding: 0 1rem; }</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<ul>\n{shown}{missing}</ul></body></html>\n"
    )
