"""Which ViT and which CLT a study is of, for its page and for metrics.json."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.hooks import HookedViT
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class Subject:
    """Name and size of a teacher and of its transcoder."""

    model: str
    n_layers: int
    d_model: int
    clt: str
    """Name of the CLT: its folder or Hub id, where it has one."""
    n_features: int
    """Number of features of a layer."""

    @classmethod
    def of(cls, vit: HookedViT, clt: CrossLayerTranscoder, name: str) -> Subject:
        """The subject of a study of `clt`, called `name`, on `vit`."""
        cfg = vit.cfg
        return cls(cfg.model, cfg.n_layers, cfg.d_model, name, clt.config.n_features)

    @property
    def short_name(self) -> str:
        """The last part of the CLT's folder or Hub id."""
        return self.clt.rstrip("/").rsplit("/", 1)[-1]

    def facts(self) -> dict[str, str]:
        """Model and CLT in words, as facts of a `Section`."""
        return {
            "Model": f"{self.model}, {self.n_layers} layers of width {self.d_model}",
            "CLT": f"{self.clt}, {self.n_features} features a layer",
        }
