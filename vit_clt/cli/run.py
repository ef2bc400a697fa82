"""`vit-clt run`."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from vit_clt.choices import Readout
from vit_clt.cli.ablate import Ablate
from vit_clt.cli.audit import Audit
from vit_clt.cli.cascade import Cascade
from vit_clt.cli.causal import Causal
from vit_clt.cli.claims import Claims
from vit_clt.cli.command import Command
from vit_clt.cli.contributions import Contributions
from vit_clt.cli.explore import Explore
from vit_clt.cli.reconstruct import Reconstruct
from vit_clt.cli.retrieve import Retrieve
from vit_clt.cli.train import Train
from vit_clt.cli.weights import Weights
from vit_clt.data.form_names import check_form
from vit_clt.errors import InputError, renamed
from vit_clt.outputs.staging import staged_file


class Page(NamedTuple):
    """The page of a study."""

    title: str
    name: str
    """Its file, without the ending."""


STUDIES: dict[type[Command], Page] = {
    Train: Page("How the training went", "training"),
    Reconstruct: Page("How well each layer is rebuilt", "reconstruction"),
    Weights: Page("Decoder norms", "weights"),
    Contributions: Page("From which depth each layer can be read", "contributions"),
    Cascade: Page("The model with its MLPs replaced", "cascade"),
    Ablate: Page("Keeping and dropping source layers", "ablation"),
    Causal: Page("What ablating the ViT's own layers does", "causal"),
    Claims: Page("Do the scores hold?", "claims"),
    Retrieve: Page("Images alike in the codes of each layer", "retrieval"),
    Audit: Page("Audit", "audit"),
}
"""The studies, in the order in which they run."""


@dataclass(kw_only=True)
class Run(Train):
    """Train a CLT, run every study of it, and put all of them behind one page, index.html.

    Each study has a folder of its own in --out. A study that the model or the images do not allow
    is left out, with its reason. Killed, the same command with --resume goes on.

    Example: vit-clt run --model digits --data digits --n-features 512 --k 16 --out out/run
    """

    begun = None
    uncommon = ("skip", "cross_layer", "lr", "batch_size", "pretrained")

    eval_data: str | None = None
    """Images that studies measure, a form as in --data; default: the held-out split of --data."""
    eval_limit: int = 1000
    """Number of first images of them that are used."""
    readout: Readout | None = None
    """How classes are read, as in the studies; "linear" is fitted on --data."""
    graphs: int = 12
    """Number of images that have a graph and steering in the explorer."""
    full_audit: bool = False
    """Also run vit-clt audit, which trains transcoders to compare with and takes longest."""

    def check(self) -> None:
        """Refuse images to measure that are not there."""
        if self.eval_data is not None:
            with renamed(data="eval_data"):
                check_form(self.eval_data, None)
        super().check()

    def run(self) -> None:
        """Train, run the studies, and write the pages that join them."""
        from vit_clt.training.processes import is_main

        train = self._made(Train, out=self.out / "clt")
        train.run()
        if not is_main():
            return
        left_out: dict[str, str] = {}
        for study, page in STUDIES.items():
            if study is Train or (study is Audit and not self.full_audit):
                continue
            name = study.command_name()
            print(f"\n== {name}: {page.title}", flush=True)
            if reason := self._left_out(study):
                left_out[page.title] = reason
        links = dict(self._links())
        print("\n== explore", flush=True)
        explore = self._study(Explore, graphs=self.graphs, audit=self._audited())
        if not self._is_finished(explore):
            explore.write({title: f"../{page}" for title, page in links.items()})
        with staged_file(self.out / "index.html") as place:
            place.write_text(_index(str(self.out), links, left_out), encoding="utf-8")
        print(f"\nopen {self.out / 'index.html'} in a browser; the CLT is in {self.out / 'clt'}")

    def _left_out(self, study: type[Command]) -> str | None:
        """Run a study, if it is not finished; returns why it cannot be run."""
        command = self._study(study)
        if self._is_finished(command):
            print(f"{command.out} is finished")
            return None
        try:
            command.check()
            command.run()
        except InputError as error:
            print(f"left out: {error}")
            return str(error)
        return None

    def _study(self, study: type[Any], **more: Any) -> Any:
        """A study of the CLT, with the options that it shares with this command."""
        evaluation = {
            "clt": str(self.out / "clt"),
            "out": self.out / study.command_name(),
            "data": self.eval_data or self.data,
            "limit": self.eval_limit,
            "split": None,
            "resume": study is Audit,
            "overwrite": study is not Audit,
            "k": None,
            "corpus": self.data if self.eval_data else None,
            "readout": self.readout,
            "train_data": self.data if self.eval_data and self._fits(study) else None,
        }
        return self._made(study, **(evaluation | more))

    def _fits(self, study: type[Command]) -> bool:
        """Whether the study fits something on other images than those that it measures."""
        return self.readout == "linear" or study is Audit

    def _made(self, command: type[Any], **values: Any) -> Any:
        """A command with the options of this one that it has too, some of them replaced."""
        known = {field.name for field in fields(command)}
        shared = {field.name: getattr(self, field.name) for field in fields(self)}
        if command is not Train:
            # rivals of an audit keep the settings of their own preset
            shared.pop("training")
        return command(**{name: v for name, v in (shared | values).items() if name in known})

    def _is_finished(self, command: Command) -> bool:
        """Whether a study with this output was finished by an earlier run that is gone on with."""
        return self.resume and (command.out / "metrics.json").is_file()

    def _audited(self) -> Path | None:
        """The folder of the audit, or of the claims, whichever there is."""
        for study in (Audit, Claims):
            folder = self.out / study.command_name()
            if (folder / "metrics.json").is_file():
                return folder
        return None

    def _links(self) -> Iterator[tuple[str, str]]:
        """The pages that there are: title, and address from --out."""
        for study, page in STUDIES.items():
            folder = "clt" if study is Train else study.command_name()
            address = f"{folder}/{page.name}.html"
            if (self.out / address).is_file():
                yield page.title, address


def _index(title: str, links: dict[str, str], left_out: dict[str, str]) -> str:
    """A page that leads on to the explorer, and lists the pages of all studies."""
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
        f"<body><h1>{html.escape(title)}</h1>\n"
        '<p><a href="explore/index.html">Explorer</a>: heatmap, features, images, graphs, steering'
        ".</p>\n"
        f"<ul>\n{shown}{missing}</ul></body></html>\n"
    )
