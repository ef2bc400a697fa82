"""`vit-clt study`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from vit_clt.cli.command import Command, GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.options import CLTOptions, MeasuredOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_pages import (
    PAGES,
    check_resumed,
    index_page,
    is_finished,
    one_loading,
    passes_folder,
)
from vit_clt.cli.told import told_together
from vit_clt.errors import InputError
from vit_clt.outputs.staging import staged_file

NOT_HERE = ("train", "audit")
"""Commands of `PAGES` that are no study of given images alone: they train."""
_FREE = ("out", "overwrite", "resume", "png", "cache", "memory", "traceback")
"""Options that may change when studies are gone on with."""
_FOR_ALL = (
    *("clt", "any_teacher", "model", "pretrained", "gelu", "data", "split", "limit"),
    *("image_column", "label_column", "class_names", "out", "overwrite", "cache", "device"),
)
"""Options that the studies have in common, as they say what is loaded once."""


@dataclass(kw_only=True)
class Study(ReadoutOptions, CLTOptions, StudyOptions, GroupOptions, SeedOptions):
    """Several studies of one CLT and images, for which the ViT runs once: the same numbers.

    Each has a folder of its own in --out, and index.html links to their pages. A study's own
    options stand with it in quotes. Killed, the same command with --resume goes on.

    Studies: reconstruct, weights, contributions, high-norm, cascade, faithfulness, ablate,
    keep-sets, causal, heads, claims, features, feature-scores, retrieve, probe, explore.

    Example: vit-clt study contributions reconstruct "ablate --fill mean" --clt out/demo/clt
        --data digits --out out/studies
    """

    studies: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="STUDY ...")]
    """Commands; one with options of its own stands in quotes: "ablate --fill mean"."""
    resume: bool = False
    """Go on with the studies in --out; those that are finished stay."""

    def check(self) -> None:
        """Refuse commands that are no studies, and what each of them refuses."""
        super().check()
        for command in self._commands().values():
            command.check()

    def run(self) -> None:
        """Run the studies one after another, and write the page that joins them."""
        with one_loading(self.out):
            left_out = self._run()
        if left_out:
            name, reason = next(iter(left_out.items()))
            n = len(self.studies)
            raise InputError(f"{len(left_out)} of {n} studies left out: {name}: {reason}")

    def _run(self) -> dict[str, str]:
        """Run the studies; why some were left out, by their name."""
        from vit_clt.data.kept_passes import keep_passes
        from vit_clt.hooks.pass_store import PASSES
        from vit_clt.transcoder.identity import weights_sha256

        vit, clt, data = self.load_all(self.device)
        # made anew, as --model and --pretrained are known now
        commands = self._commands()
        passes = self.cache or passes_folder(vit, data, self.out)
        made_with = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FREE}
        made_with |= {"clt_sha256": weights_sha256(clt)}
        check_resumed(self.out / "studies.json", made_with, resume=self.resume)
        left = [each for each in commands.values() if not is_finished(each, resume=self.resume)]
        if passes is not None:  # what is told counts on them
            keep_passes(vit, data, passes / PASSES)
        print(told_together(left, vit, clt, data).line(), flush=True)
        links: dict[str, str] = {}
        left_out: dict[str, str] = {}
        for name, command in commands.items():
            title = PAGES[name].title
            print(f"\n== {name}: {title}", flush=True)
            if is_finished(command, resume=self.resume):
                print(f"{command.out} is finished")
            else:
                if isinstance(command, MeasuredOptions):
                    command.cache = passes
                try:
                    command.run()
                except InputError as error:
                    print(f"left out: {error}")
                    left_out[name] = str(error)
            if name not in left_out:
                links[title] = f"{name}/{PAGES[name].name}.html"
            # whatever happens to the next study, those that are there can be found
            missing = {PAGES[each].title: reason for each, reason in left_out.items()}
            with staged_file(self.out / "index.html") as place:
                place.write_text(index_page(str(self.out), links, missing), encoding="utf-8")
        if (store := vit.pass_store) is not None:
            print(f"\nclean passes of the ViT: {store.n_run:,} images run, {store.n_read:,} read")
        print(f"open {self.out / 'index.html'} in a browser")
        return left_out

    def _commands(self) -> dict[str, Any]:
        """The commands by name, in the order given."""
        commands: dict[str, Any] = {}
        for text in self.studies:
            name, command = self._command(text)
            if name in commands:
                raise InputError(f"the studies hold {name} twice; expected each once.")
            commands[name] = command
        if not commands:
            raise InputError(
                "no study is named; expected at least one, as in vit-clt study --help."
            )
        return commands

    def _command(self, text: str) -> tuple[str, Command]:
        """A command with the options that are given here and that it has too, and its own."""
        from vit_clt.cli.commands import command_class, parsed

        try:
            name, *own = shlex.split(text) or [""]
        except ValueError as error:
            raise InputError(
                f"the studies hold {text!r}: {error}; expected closed quotes."
            ) from None
        known = [each for each in PAGES if each not in NOT_HERE]
        if name not in known:
            raise InputError(f'the studies hold "{name}"; expected some of {", ".join(known)}.')
        kind = command_class(name)
        options = {field.name for field in fields(kind)}
        # what is not given has each command's own default
        mine = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        shared = {o: value for o, (value, usual) in mine.items() if o in options and value != usual}
        if "clt" not in options:
            shared["model"] = self.known_model()
        default = kind(**(shared | {"out": self.out / name, "overwrite": True}))
        command = parsed(kind, own, prog=f"vit-clt {name}", default=default)
        for option in _FOR_ALL:
            if getattr(command, option, None) != getattr(default, option, None):
                raise InputError(
                    option, f"is given with {name} alone; expected it once, for all studies."
                )
        return name, command
