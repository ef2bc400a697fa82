"""Groups of nodes in a file: {"NAME": ["7:76", "7:76@3", "error-3@5", "patch@4", "bias"], ...}.

"7:76@3" is feature 76 of layer 7 on token row 3, "7:76" that feature on every row, "error-3@5" the
error node of layer 3 on row 5, and "patch@4" the patch embedding of row 4. The explorer's page of a
graph writes such files. This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vit_clt.errors import InputError
from vit_clt.inputs import read_json

NodeGroups = Mapping[str, Sequence[str]]
"""Names of groups, with the ids of their nodes."""
_ID = re.compile(r"\d{1,9}:\d{1,9}(@\d{1,9})?|error-\d{1,9}@\d{1,9}|patch@\d{1,9}|bias", re.ASCII)


def read_groups(path: Path | str) -> dict[str, list[str]]:
    """The groups of a file.

    Raises:
        InputError: the file is not there or holds no JSON object, or a group is not a list of ids.
    """
    groups = read_json(path)
    check_ids(groups, str(path))
    return groups


def check_ids(groups: object, subject: str) -> None:
    """Refuse what is no mapping of names to lists of ids.

    Args:
        groups: what should be such a mapping.
        subject: what it is called in the sentence.

    Raises:
        InputError: as said; or an empty name, or an id twice.
    """
    if not isinstance(groups, Mapping) or not groups:
        raise InputError("group", f"is {subject}, which holds no groups; expected at least one.")
    known: set[str] = set()
    for name, ids in groups.items():
        if not isinstance(name, str) or not name.strip():
            raise InputError("group", f"is {subject}, with a group without a name.")
        if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids:
            raise InputError(
                "group", f'is {subject}, where "{name[:40]}" is no list; expected ids of nodes.'
            )
        for node in ids:
            if not isinstance(node, str) or _ID.fullmatch(node) is None:
                raise InputError(
                    "group",
                    f'is {subject}, where "{name[:40]}" holds {str(node)[:40]!r}; expected 7:76, '
                    "7:76@3, error-3@5, patch@4 or bias.",
                )
            if node in known:
                raise InputError("group", f'is {subject}, which has the node "{node}" twice.')
            known.add(node)
