"""`vit-clt study`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from vit_clt.cli.command import Command, GroupOptions, SeedOptions, StudyOptions
from vit_clt.cli.options import CLTOptions, MeasuredOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_pages import PAGES, index_page, one_loading, passes_folder
from vit_clt.cli.told import told_together
from vit_clt.errors import InputError
from vit_clt.inputs import read_json
from vit_clt.outputs import check_same
from vit_clt.outputs.staging import staged_file

NOT_HERE = ("train", "audit")
"""Commands of `PAGES` that are no study of given images alone: they train."""
_OF_STUDIES = ("studies", "clt", "data", "split", "limit", "readout", "seed")


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
        commands = self._commands()
        left_out: dict[str, str] = {}
        with one_loading(self.out):
            vit, clt, data = self.load_all(self.device)
            passes = self.cache or passes_folder(vit, data, self.out)
            self._check_resumed()
            left = [each for each in commands.values() if not self._is_finished(each)]
            print(told_together(left, vit, clt, data).line(), flush=True)
            for name, command in commands.items():
                print(f"\n== {name}: {PAGES[name].title}", flush=True)
                if self._is_finished(command):
                    print(f"{command.out} is finished")
                    continue
                if isinstance(command, MeasuredOptions):
                    command.cache = passes
                try:
                    command.run()
                except InputError as error:
                    print(f"left out: {error}")
                    left_out[name] = str(error)
            store = vit.pass_store
        links = {
            PAGES[name].title: f"{name}/{PAGES[name].name}.html"
            for name in commands
            if name not in left_out
        }
        missing = {PAGES[name].title: reason for name, reason in left_out.items()}
        with staged_file(self.out / "index.html") as place:
            place.write_text(index_page(str(self.out), links, missing), encoding="utf-8")
        if store is not None:
            print(f"\nclean passes of the ViT: {store.n_run:,} images run, {store.n_read:,} read")
        print(f"open {self.out / 'index.html'} in a browser")
        if left_out:
            name, reason = next(iter(left_out.items()))
            raise InputError(
                f"{len(left_out)} of {len(commands)} studies left out: {name}: {reason}"
            )

    def _is_finished(self, command: Command) -> bool:
        """Whether an earlier run that is gone on with has finished this study."""
        return self.resume and (command.out / "metrics.json").is_file()

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
        """A command with the options of this one that it has too, and its own."""
        from vit_clt.cli.commands import command_class, parsed

        try:
            name, *own = shlex.split(text) or [""]
        except ValueError as error:
            raise InputError(
                "studies", f"hold {text!r}: {error}; expected closed quotes."
            ) from None
        known = [each for each in PAGES if each not in NOT_HERE]
        if name not in known:
            raise InputError(f'the studies hold "{name}"; expected some of {", ".join(known)}.')
        kind = command_class(name)
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        shared = {field.name for field in fields(kind)} & mine.keys()
        options = {each: mine[each] for each in shared}
        default = kind(**(options | {"out": self.out / name, "overwrite": True}))
        return name, parsed(kind, own, prog=f"vit-clt {name}", default=default)

    def _check_resumed(self) -> None:
        """Refuse to go on with studies of other options; else keep what they are made with."""
        path = self.out / "studies.json"
        options = {name: getattr(self, name) for name in _OF_STUDIES}
        if self.resume and path.is_file():
            check_same(options, read_json(path), str(path))
        with staged_file(path) as place:
            place.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
