"""Options of a command that measures a ViT, and a CLT of it where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from vit_clt.cli.options import CLTOptions, MeasuredOptions, check_clts
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class OptionalCLT(MeasuredOptions):
    """Options that name the ViT and the images, and a CLT of the ViT or none."""

    of_clt: ClassVar[tuple[str, ...]] = ("any_teacher",)
    """Options that say nothing without a CLT."""

    clt: str | None = None
    """Folder or Hub id of a CLT that is measured beside the ViT; without it, the ViT alone."""
    any_teacher: bool = False
    """Accept a CLT that was trained on another model."""

    def __post_init__(self) -> None:
        self._warnings: Sequence[str] = ()

    def warnings(self) -> Sequence[str]:
        """That the CLT is attached to a ViT that it was not trained on."""
        return self._warnings

    def known_model(self) -> str | None:
        """The name of the ViT: --model, or the one that the CLT says."""
        return super().known_model() if self.clt is None else self._clt_options().known_model()

    def check(self) -> None:
        """Refuse options of a CLT without one, and a CLT that is not there."""
        if self.clt is None:
            for name in self.of_clt:
                if getattr(self, name):
                    raise InputError(name, "is given without a CLT; expected --clt beside it.")
        else:
            check_clts("clt", [self.clt])
        super().check()

    def load_with_clt(
        self, device: str
    ) -> tuple[HookedViT, CrossLayerTranscoder | None, ImageData]:
        """Load the ViT, its CLT if one is given (checked against each other), and the images."""
        if self.clt is not None:
            options = self._clt_options()
            loaded = options.load_all(device)
            self._warnings = options.warnings()
            return loaded
        vit = self.load_vit(device)
        return vit, None, self.load_measured(vit)

    def _clt_options(self) -> CLTOptions:
        assert self.clt is not None
        shared = {field.name: getattr(self, field.name) for field in fields(MeasuredOptions)}
        return CLTOptions(**shared, clt=self.clt, any_teacher=self.any_teacher)
