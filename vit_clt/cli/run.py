"""`vit-clt run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vit_clt.choices import Readout
from vit_clt.cli.ablate import Ablate
from vit_clt.cli.audit import Audit
from vit_clt.cli.cascade import Cascade
from vit_clt.cli.causal import Causal
from vit_clt.cli.claims import Claims
from vit_clt.cli.command import Command
from vit_clt.cli.contributions import Contributions
from vit_clt.cli.explore import Explore
from vit_clt.cli.feature_scores import FeatureScores
from vit_clt.cli.heads import Heads
from vit_clt.cli.high_norm import HighNorm
from vit_clt.cli.options import check_held_out
from vit_clt.cli.reconstruct import Reconstruct
from vit_clt.cli.retrieve import Retrieve
from vit_clt.cli.study_pages import (
    PAGES,
    check_resumed,
    index_page,
    is_finished,
    one_loading,
    passes_folder,
)
from vit_clt.cli.told import told_together
from vit_clt.cli.train import Train
from vit_clt.cli.weights import Weights
from vit_clt.data.form_names import check_form
from vit_clt.errors import InputError, renamed
from vit_clt.outputs.staging import staged_file

STUDIES: tuple[type[Command], ...] = (
    *(Train, Reconstruct, Weights, Contributions, HighNorm, Cascade, Ablate, Causal, Heads, Claims),
    *(FeatureScores, Retrieve, Audit),
)
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

    def __post_init__(self) -> None:
        self._passes: Path | None = None

    def check(self) -> None:
        """Refuse images to measure that are not there."""
        if self.eval_data is not None:
            with renamed(data="eval_data"):
                check_form(self.eval_data, None)
        super().check()

    def run(self) -> None:
        """Train, run the studies, and write the pages that join them."""
        with one_loading(self.out):
            self._run()

    def _run(self) -> None:
        from vit_clt.training.processes import is_main

        self._check_held_out()
        options = {name: getattr(self, name) for name in _OF_STUDIES}
        check_resumed(self.out / "studies.json", options, resume=self.resume)
        train = self._made(Train, out=self.out / "clt")
        if is_main():
            self._tell_all(train)
        train.run()
        if not is_main():
            return
        left_out: dict[str, str] = {}
        made: list[type[Command]] = [Train]
        for study in STUDIES:
            if study is Train or (study is Audit and not self.full_audit):
                continue
            title = PAGES[study.command_name()].title
            print(f"\n== {study.command_name()}: {title}", flush=True)
            if reason := self._left_out(study):
                left_out[title] = reason
            else:
                made.append(study)
        links = {PAGES[study.command_name()].title: _address(study) for study in made}
        print("\n== explore", flush=True)
        if reason := self._left_out(Explore, {t: f"../{page}" for t, page in links.items()}, made):
            left_out["Explorer"] = reason
        else:
            links = {PAGES["explore"].title: "explore/index.html"} | links
        with staged_file(self.out / "index.html") as place:
            place.write_text(index_page(str(self.out), links, left_out), encoding="utf-8")
        print(f"\nopen {self.out / 'index.html'} in a browser; the CLT is in {self.out / 'clt'}")

    def _tell_all(self, train: Train) -> None:
        """Print what training and all studies will take together."""
        from vit_clt.transcoder.model import CrossLayerTranscoder

        plan = train._planned()
        finished = is_finished(train, resume=self.resume)
        if not finished:  # what cannot be trained is refused before anything large is made
            plan.check_resources(train.out)
        seconds = 0.0 if finished else plan.seconds()
        memory = 0 if finished else sum(plan.needs().memory.values())
        # an audit tells itself what its trainings take
        trained = (Train, Audit)
        studies: tuple[type[Command], ...] = (*STUDIES, Explore)
        commands = [self._study(each) for each in studies if each not in trained]
        left = [each for each in commands if not is_finished(each, resume=self.resume)]
        clt = CrossLayerTranscoder(plan.config).to(self.device).eval()
        data = self._study(Reconstruct).load_images(plan.vit)
        told = told_together(left, plan.vit, clt, data)
        print(told.beside_training(seconds, memory), flush=True)

    def _check_held_out(self) -> None:
        """Refuse to measure on the images that are trained on, before any work is done."""
        vit = self.load_vit(self.device)
        measured = self._study(Reconstruct).load_images(vit)
        with renamed(data="eval_data"):
            check_held_out(self.load_images(vit, "train"), measured)
        self._passes = passes_folder(vit, measured, self.out)

    def _left_out(
        self,
        study: type[Any],
        links: Mapping[str, str] | None = None,
        made: Sequence[type[Any]] = (),
    ) -> str | None:
        """Run a study, if it is not finished; returns why it cannot be run."""
        command = self._study(study)
        if study is Explore:
            command.audit = self._audited(made)
        if is_finished(command, resume=self.resume) and not self._newer(command, made):
            print(f"{command.out} is finished")
            return None
        try:
            command.check()
            if study is Explore:
                command.write(links)
            else:
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
            "cache": self._passes,
            "resume": study is Audit,
            "overwrite": study is not Audit,
            "k": None,
            "corpus": self.data if self.eval_data else None,
            "corpus_limit": self.limit,
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

    def _newer(self, command: Command, made: Sequence[type[Command]]) -> bool:
        """Whether one of these studies was finished after the pages that link to it."""
        at = (command.out / "metrics.json").stat().st_mtime_ns
        others = [self.out / _folder(study) / "metrics.json" for study in made]
        return any(path.stat().st_mtime_ns > at for path in others)

    def _audited(self, made: Sequence[type[Command]]) -> Path | None:
        """The folder of the audit, or of the claims, whichever was made."""
        found = [study for study in (Audit, Claims) if study in made]
        return self.out / _folder(found[0]) if found else None


_OF_STUDIES = ("data", "eval_data", "eval_limit", "readout", "graphs")
"""Options that all studies of one run share."""


def _folder(study: type[Command]) -> str:
    """The folder of a study in that of the run."""
    return "clt" if study is Train else study.command_name()


def _address(study: type[Command]) -> str:
    """The page of a study, from the folder of the run."""
    return f"{_folder(study)}/{PAGES[study.command_name()].name}.html"
