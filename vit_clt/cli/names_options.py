"""The option of commands that call features by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class NamesOptions:
    """Names that were found before."""

    names: Path | None = None
    """Folder of vit-clt features or explore whose names features have. It may also be the file of
    names itself (feature_names.json); both must be of this CLT."""

    def check(self) -> None:
        """Refuse names that are not there."""
        from vit_clt.analysis.features.names_file import names_path

        if self.names is not None:
            names_path(self.names)
        super().check()  # type: ignore[misc]

    def texts_of(self, clt: CrossLayerTranscoder) -> dict[tuple[int, int], str]:
        """The names of the features of `clt`; none without the option.

        Raises:
            InputError: names of another CLT, or a file that holds no names.
        """
        from vit_clt.analysis.features.names_file import read_names

        return {} if self.names is None else read_names(self.names, clt)
