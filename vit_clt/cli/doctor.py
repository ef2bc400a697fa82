"""`vit-clt doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vit_clt.cli.command import BaseCommand


@dataclass(kw_only=True)
class Doctor(BaseCommand):
    """What this machine has, and what is missing or slow: packages, devices, memory, disk, Hub.

    Nothing is fetched or written. A line that begins with ! says in a sentence what to do.

    Example: vit-clt doctor --out out
    """

    imports: ClassVar = ()

    out: Path = Path("out")
    """Folder that results will be written to, of whose disk the room is told."""

    def run(self) -> None:
        """Look at the machine, and print a table."""
        from vit_clt.cli.machine import findings

        found = list(findings(self.out))
        width = max(len(finding.what) for finding in found) + 2
        for finding in found:
            print(f"{'!' if finding.advice else ' '} {finding.what:{width}}{finding.state}")
        advice = [finding for finding in found if finding.advice]
        print()
        for finding in advice:
            print(f"! {finding.what}: {finding.advice}")
        if not advice:
            print("Nothing is missing, and no setting is known to be slow.")
