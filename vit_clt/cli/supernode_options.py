"""Options of commands that draw attribution graphs: which nodes are drawn as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vit_clt.choices import GroupRule
from vit_clt.cli.command import Checked
from vit_clt.errors import InputError


@dataclass(kw_only=True)
class SupernodeOptions(Checked):
    """How nodes of a graph are grouped."""

    group: str | None = None
    """Draw nodes as one: "decoder" (features that write alike), "name" (features of one name), or a
    JSON file that names groups, {"stripes": ["7:76", "4:12@3"]}, such as the explorer's page of a
    graph saves."""
    group_cosine: float = 0.5
    """With --group decoder, the least mean cosine of the decoders in a group (average linkage)."""

    def check(self) -> None:
        """Refuse a file that is not there or holds no groups, and a cosine out of its range."""
        if not 0 < self.group_cosine <= 1:
            value = f"{self.group_cosine:g}"
            raise InputError("group_cosine", f"is {value}; expected above 0 and at most 1.")
        self.node_groups()
        super().check()

    def node_groups(self) -> Mapping[str, Sequence[str]] | GroupRule | None:
        """The groups of the file, the name of a rule, or None."""
        rules: dict[str, GroupRule] = {rule: rule for rule in get_args(GroupRule)}
        if self.group is None or self.group in rules:
            return None if self.group is None else rules[self.group]
        from vit_clt.analysis.graphs.group_file import read_groups

        if not Path(self.group).is_file():
            text = (
                f'is "{self.group}"; expected decoder, name, or a JSON file, which was not found.'
            )
            raise InputError("group", text)
        return read_groups(self.group)
