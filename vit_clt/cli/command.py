"""What every command is: how it is checked, its output folder, how it reports a study."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from vit_clt.choices import KEPT_BYTES, MAX_GROUPS
from vit_clt.cli.fits import print_fit
from vit_clt.cli.printed_table import print_table
from vit_clt.errors import InputError
from vit_clt.outputs.folder import check_place

if TYPE_CHECKING:
    from vit_clt.analysis.fit.gate import Fit
    from vit_clt.analysis.reporting.study import Study
    from vit_clt.data.images import ImageData
    from vit_clt.forecast.work import Scope, Work
    from vit_clt.hooks import HookedViT
    from vit_clt.outputs import OutputFolder
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Checked:
    """Options that are checked before any slow library is imported."""

    uncommon: ClassVar[tuple[str, ...]] = ()
    """Options that --help leaves out for this command, beside those of `help_text.UNCOMMON`."""

    def check(self) -> None:
        """Refuse values that contradict one another, and names and files that are not there.

        A subclass checks its own options beside calling `super().check()`. Nothing here imports
        torch. What needs the contents of files is refused by the library, when it reads them.

        Raises:
            InputError: one sentence, with the option.
        """

    def warnings(self) -> Sequence[str]:
        """What every result of the command must say, as whole sentences."""
        return ()


@dataclass(kw_only=True)
class BaseCommand(Checked, ABC):
    """What all commands have, also those that write nothing."""

    other_names: ClassVar[Mapping[str, str]] = {"clt.forget_teacher()": "any_teacher"}
    """Names of options, by the name of the same argument in the library where that differs."""

    imports: ClassVar[tuple[str, ...]] = ("vit_clt.hooks.hooked_vit",)
    """Modules imported before the command runs, because they import the slowest libraries: a hooked
    ViT imports torch, open_clip and transformer_lens."""

    traceback: bool = False
    """Show the traceback of an error."""

    @classmethod
    def command_name(cls) -> str:
        """Name of the command: that of its class, in small letters and with hyphens."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Any:
        """The options' defaults, for a command in which some of `args` decide others' defaults."""
        return tyro.MISSING_NONPROP

    @abstractmethod
    def run(self) -> None:
        """Do the work, write its files, and print a summary."""

    def refuse_both(self, **options: object) -> None:
        """Refuse two options, given by name with their values, if both are set."""
        if all(options.values()):
            named = " and ".join(f"--{name.replace('_', '-')}" for name in options)
            raise InputError(f"{named} are both set; expected one of them.")


@dataclass(kw_only=True)
class Command(BaseCommand):
    """Options of a command that writes a folder of results."""

    begun: ClassVar[str | None] = None
    """Name of the file that a run which can be resumed writes first, if the command has such."""

    out: Path
    """Output folder: absent or empty, unless --overwrite."""
    overwrite: bool = False
    """Replace the output of an earlier run once the new one is whole; only files that its
    manifest.json lists are removed."""
    device: str = "cpu"
    """Torch device, e.g. cpu or cuda."""

    def check(self) -> None:
        """Refuse an output folder that is in use by its name alone, and pictures that need more."""
        super().check()
        check_place(self.out, self.overwrite, self.begun, resume=getattr(self, "resume", False))
        if self.pictures:
            from vit_clt.analysis.reporting.study import check_png

            check_png()

    @property
    def pictures(self) -> bool:
        """Whether figures are also written as pictures."""
        return False

    def folder_of(
        self,
        *studies: type[Study],
        more: Sequence[str] = (),
        begun: str | None = None,
        resume: bool = False,
    ) -> OutputFolder:
        """The output folder of these studies, checked before anything is loaded.

        Args:
            *studies: classes of the studies.
            more: further files that the command writes.
            begun: the file that a study which can be resumed writes first (`OutputFolder`).
            resume: go on with the study in the folder, if it has one.
        """
        from vit_clt.analysis.reporting.study import study_files
        from vit_clt.outputs import OutputFolder

        return OutputFolder(
            self.out,
            [*study_files(*studies, png=self.pictures), *more],
            self.overwrite,
            begun=begun,
            resume=resume,
            command=self.command_name(),
        )

    def work(self, of: Scope) -> Work:
        """What the command does once all is loaded, in the units of `vit_clt.forecast.work`."""
        from vit_clt.forecast.work import Work

        return Work()

    def read_beside(self, vit: HookedViT, data: ImageData) -> ImageData | None:
        """Images that the command reads beside those that it measures; None for none."""
        return None

    def tell(
        self,
        vit: HookedViT,
        data: ImageData,
        clts: Sequence[CrossLayerTranscoder] = (),
        train: ImageData | None = None,
    ) -> None:
        """Print how long the command will take on this machine, and how much memory.

        Nothing is told where one of the first images cannot be read: the command may not need it.

        Args:
            vit: the ViT.
            data: the images that are measured.
            clts: its transcoders; none where only the ViT is measured.
            train: other images that are read too.
        """
        from vit_clt.cli.study_work import REPORT
        from vit_clt.cli.told import told
        from vit_clt.data.images import UnreadableImage
        from vit_clt.forecast.work import Scope

        with suppress(UnreadableImage):
            work = self.work(Scope.of(vit, data, clts, train)) + REPORT
            print(told(vit, clts, data, work).line(), flush=True)

    def report(
        self,
        folder: OutputFolder,
        study: Study,
        command: str,
        last_line: str | None = None,
        *,
        fits: Sequence[Fit] = (),
        tables: bool = True,
        finish: bool = True,
    ) -> None:
        """Write the files of a study, and print its caption, tables and notes.

        Args:
            folder: the output folder.
            study: the study.
            command: name of the command in metrics.json.
            last_line: line printed at the end; by default it names the folder.
            fits: how well each CLT of the study fits the ViT, for pages and metrics.json; where it
                is worse than the mean this is printed again.
            tables: print more than the last line.
            finish: the command writes nothing after this study.
        """
        from vit_clt.analysis.reporting.study import write_study

        notices = [fit.notice() for fit in fits]
        write_study(
            folder.open(),
            study,
            command,
            fits=notices,
            teacher=" ".join(self.warnings()),
            png=self.pictures,
            finish=finish,
        )
        if tables:
            print(study.caption())
            print_table(study.printed())
            for heading, table in study.further_tables().items():
                print(f"\n{heading}")
                print_table(table)
            for note in study.notes():
                print(note)
            for text in (*self.warnings(), *study.warnings()):
                print(f"WARNING: {text}")
            for fit in fits:
                if fit.worse_than_mean():
                    print_fit(fit)
        print(last_line or f"written to {folder.path}", flush=True)


@dataclass(kw_only=True)
class StudyOptions(Command):
    """Options of a command that draws a figure."""

    png: bool = False
    """Also write the figure as PNG; this needs the extra "png" and Chrome or Chromium."""

    @property
    def pictures(self) -> bool:
        """Whether figures are also written as pictures."""
        return self.png


@dataclass(kw_only=True)
class SeedOptions:
    """Option of a command that draws at random."""

    seed: int = 0
    """Seed of everything that is drawn at random."""


@dataclass(kw_only=True)
class MemoryOptions(Checked):
    """Option of a command that keeps codes or terms of images between its passes over them."""

    memory: float = KEPT_BYTES / 1e9
    """GB that codes and terms of images may take; those of further images are computed again in
    every pass, with the same numbers."""

    def check(self) -> None:
        """Refuse a negative size."""
        super().check()
        if self.memory < 0:
            raise InputError("memory", f"is {self.memory:g} GB; expected at least 0.")

    @property
    def kept_bytes(self) -> int:
        """The same in bytes."""
        return round(self.memory * 1e9)


@dataclass(kw_only=True)
class GroupOptions(MemoryOptions):
    """Options of a command that keeps sums of every image."""

    max_groups: int = MAX_GROUPS
    """More images than this are added up in this many random groups, which bounds memory; intervals
    are then a bootstrap over groups."""
