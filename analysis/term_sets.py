"""Read a model whose MLP output at one layer is rebuilt from chosen terms of its reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.readings import Readings, gather_readings
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, TokenKind, check_fits, overwrite_mlp_hooks, token_rows
from vit_clt.hooks.hooked_vit import HOOK_IN, HOOK_OUT
from vit_clt.transcoder import CrossLayerTranscoder
from vit_clt.zero_shot import Outcome, ZeroShot

Fill = Literal["zero", "mean", "resample"]
REFERENCES = ("original", "full", "bias_only", "floor_zero", "floor_mean")


@dataclass(frozen=True)
class _Batch:
    terms: Float[Tensor, "source image row d_model"]
    y: Float[Tensor, "image row d_model"]
    l0: Float[Tensor, " source"]
    resid: Float[Tensor, "image token d_model"]


@dataclass(frozen=True)
class TermSets:
    """One target layer, one token kind, one fill; `read` gives accuracy and loss of kept sets.

    Everything is measured on `data`: terms (teacher trajectory), their means, the floors.
    """

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: ImageData
    zs: ZeroShot
    target: int
    tokens: TokenKind
    fill: Fill
    seed: int
    progress: bool = False

    def __post_init__(self) -> None:
        check_fits(self.vit, self.clt)
        if self.fill == "resample" and len(self.data) < 2:
            raise InputError('data has 1 image; fill "resample" needs another one to draw from.')

    @property
    def no_op(self) -> bool:
        """Whether these rows cannot reach the output."""
        last = self.target == self.vit.cfg.n_layers - 1
        return self.tokens == "patch" and last and self.vit.cfg.pools_cls

    @torch.no_grad()
    def read(self, plans: Mapping[str, Iterable[int]]) -> Readings:
        """Readings of each set of kept sources, and of the five references."""
        mean_terms, mean_y, _ = self._means
        outcomes: dict[str, list[Outcome]] = {name: [] for name in (*REFERENCES, *plans)}
        for chosen in self._chunks(f"ablate ({self.tokens})"):
            _, labels = self.data.batch(chosen)
            batch = self._batch(chosen)
            if self.fill == "zero":
                fills = torch.zeros_like(batch.terms)
            elif self.fill == "mean":
                fills = mean_terms[:, None].expand_as(batch.terms)
            else:
                fills = self._batch([self._donors[i] for i in chosen]).terms
            bias = self.clt.b_dec[self.target].expand_as(batch.y)
            values: dict[str, Tensor | None] = {
                "original": None,
                "full": bias + batch.terms.sum(0),
                "bias_only": bias,
                "floor_zero": torch.zeros_like(bias),
                "floor_mean": mean_y.expand_as(bias),
            }
            for name, kept in plans.items():
                mask = torch.zeros(len(fills), 1, 1, 1, dtype=torch.bool, device=fills.device)
                mask[list(kept)] = True
                values[name] = bias + torch.where(mask, batch.terms, fills).sum(0)
            for name, value in values.items():
                outcomes[name].append(self.zs.read(self._run(batch.resid, value), labels))
        return gather_readings(outcomes, self.seed, self.data.label_sets)

    def l0(self) -> float:
        """Active features a token and layer, on these rows, over the target's sources."""
        return float(self._means[2].mean())

    def _run(self, resid: Tensor, value: Tensor | None) -> Tensor:
        written = {self.target: value} if value is not None else {}
        hooks = overwrite_mlp_hooks(list(written), self.tokens, written)
        return self.vit.run_with_hooks(resid, start_at_layer=self.target, fwd_hooks=hooks)

    def _batch(self, chosen: Iterable[int]) -> _Batch:
        # the stream before the target's block is kept: only that block and what follows runs again
        rows = token_rows(self.tokens, self.vit.cfg.has_cls)
        entry, out = f"blocks.{self.target}.hook_resid_pre", HOOK_OUT.format(l=self.target)
        names = [HOOK_IN.format(l=s) for s in range(self.target + 1)]
        images, _ = self.data.batch(list(chosen))
        cache = self.vit.clean_cache(images.to(self.clt.b_dec.device), [*names, entry, out])
        codes = [self.clt.encode(cache[name][:, rows], layer=s) for s, name in enumerate(names)]
        return _Batch(
            terms=self.clt.contributions(codes, target=self.target),
            y=cache[out][:, rows],
            l0=torch.stack([c.l0().float().mean() for c in codes]),
            resid=cache[entry],
        )

    def _chunks(self, title: str) -> Iterator[range]:
        size = self.data.batch_size
        starts = range(0, len(self.data), size)
        for start in tqdm(starts, title, disable=not self.progress):
            yield range(start, min(start + size, len(self.data)))

    @cached_property
    @torch.no_grad()
    def _means(self) -> tuple[Tensor, Tensor, Tensor]:
        # over the images, per row: terms "source row d_model", y "row d_model", L0 "source"
        totals: list[Tensor] = []
        for chosen in self._chunks(f"means ({self.tokens})"):
            batch = self._batch(chosen)
            found = (batch.terms.double().sum(1), batch.y.double().sum(0), batch.l0 * len(chosen))
            totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else [*found]
        terms, y, l0 = (total / len(self.data) for total in totals)
        return terms.float(), y.float(), l0

    @cached_property
    def _donors(self) -> list[int]:
        # one random cycle through all images: every image is another one's donor, never its own
        cycle = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed))
        donors = torch.empty_like(cycle)
        donors[cycle] = cycle.roll(-1)
        return donors.tolist()
