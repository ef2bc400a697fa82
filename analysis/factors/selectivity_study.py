"""What each feature tells of two factors of an image: one, the other, both, or their answer.

The value of a feature on an image is its code on the CLS row, or the code of largest size (signed)
over the patches, or over one half of them, on the teacher trajectory. Halves matter: a feature that
sees a digit wherever it is tells of left on the left half and of right on the right half, and of
both, additively, over all patches. It is taken apart by a two-way analysis of variance
(`vit_clt.analysis.factors.anova`): unlike mutual information this needs no bins, splits what both
factors tell into what each tells and what only both together do, and is blind to effects that leave
a cell's mean as it is. Ours.

    eta^2_g  = SS_g / SS_total,  g one of a, b, label, pair
    share_g  = (SS_g - df_g MS_within) / (SS_pair - df_pair MS_within)

A feature is called after, in this order:

    rare     active on fewer than 20 images: not tested
    none     eta^2_pair within its floor
    a, b     eta^2 of that factor above its floor, and its share above 2/3: twice all the rest
    label    the interaction above its floor, its share above 1/2, and the label's share above 1/2
    pair     the same, with the label's share at most 1/2
    mixed    anything else: both factors tell of it, most of it additively

"label" and "pair" need both factors: knowing one, or adding what each tells, gives less than half
of what both determine. Every floor is family-wise: the 95th percentile, over draws, of the largest
value over all features tested.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from vit_clt.analysis.factors.anova import Cells, Sums
from vit_clt.analysis.factors.selectivity import Selectivity
from vit_clt.analysis.stats.sparse_rows import SparseRows
from vit_clt.choices import Region
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.hooks.activations import capture
from vit_clt.hooks.rows import region_rows
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

FEWEST_ACTIVE = 20
"""Images on which a feature must be active to be tested."""
LEVEL = 0.95
ALONE, TOGETHER = 2 / 3, 1 / 2
"""Of what both factors determine, the shares above which a feature is called after one or both."""
TESTS = ("a", "b", "label", "pair", "inter")


@torch.no_grad()
def selectivity(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    *,
    factors: tuple[str, str] = ("left", "right"),
    region: Region = "cls",
    layers: int | Iterable[int] | None = None,
    draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Selectivity:
    """Take every feature apart by two factors of the images; one pass, codes kept as they are
    sparse (8 bytes an active feature and image).

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: labelled images that know both factors; the label must be a function of the two.
        factors: names among `data.factors`.
        region: rows of the codes, "cls", "patch", "left_half", "right_half" or "all".
        layers: source layers; all by default.
        draws: permutations of cells, and of signs.
        seed: of the draws.
        progress: show progress bars.

    Raises:
        InputError: an unknown factor, region or layer, a pair of values with fewer than two images
            or with two labels, fewer than 20 draws, or a CLT of another model.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    if draws < 20:
        raise InputError("draws", f"is {draws}; expected at least 20, for a 95th percentile.")
    chosen = layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)
    a, b = (factor_values(data, name) for name in factors)
    values, rates, labels = _values(vit, clt, data, region, chosen, progress)
    cells = Cells(a, b, labels, factors)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(data)) for _ in range(draws)]
    signs = [rng.choice([-1.0, 1.0], len(data)) for _ in range(draws)]
    highest = {test: np.zeros(draws) for test in TESTS}
    frames = []
    for s in Progress(chosen, "selectivity", disable=not progress):
        counts = np.diff(values[s].tocsc().indptr)
        tested = np.flatnonzero(counts >= FEWEST_ACTIVE)
        own = values[s][:, tested].astype(np.float64)
        sums = cells.sums(own)
        observed = {test: sums.ratio(test) for test in TESTS}
        above = {test: np.ones(len(tested)) for test in TESTS}
        for draw, (order, sign) in enumerate(zip(orders, signs, strict=True)):
            permuted = cells.sums(own, order)
            found = {test: permuted.ratio(test) for test in TESTS if test != "inter"}
            found["inter"] = cells.wild_interaction(own, sign)
            for test, drawn in found.items():
                above[test] += drawn >= observed[test]
                highest[test][draw] = max(highest[test][draw], drawn.max(initial=0))
        frames.append(
            _frame(s, counts / len(data), rates[s], tested, observed, above, draws, sums, cells)
        )
    frame = pd.concat(frames, ignore_index=True)
    floors = {test: float(np.quantile(highest[test], LEVEL)) for test in TESTS}
    frame["kind"] = _kinds(frame, floors, factors)
    l0 = float(np.mean([rates[s].sum() for s in chosen]))
    return Selectivity(
        frame, floors, factors, region, chosen, l0, data.name, data.split, len(data), draws, seed
    )


def factor_values(data: ImageData, name: str) -> Int[np.ndarray, " image"]:
    """A factor of the images.

    Raises:
        InputError: the data does not know it.
    """
    known = data.factors or {}
    if name not in known:
        names = ", ".join(known) or "none"
        raise InputError("factor", f'is "{name}"; {data.name} knows {names}.')
    return known[name].numpy()


def _values(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    region: Region,
    layers: list[int],
    progress: bool,
) -> tuple[dict[int, csr_array], dict[int, Float[np.ndarray, " feature"]], np.ndarray]:
    """Per layer the features' values "image feature" and rates of activity a row; the labels."""
    rows = region_rows(region, vit.cfg.rows)
    growing = {s: SparseRows(clt.config.n_features) for s in layers}
    active = {s: np.zeros(clt.config.n_features) for s in layers}
    labels: list[Tensor] = []
    with Progress(total=len(data), desc="codes", unit=" images", disable=not progress) as bar:
        for images, own in data:
            x = capture(vit, images.to(clt.b_enc.device)).x
            for s in layers:
                codes = clt.encode(x[s][:, rows], layer=s).to_dense()
                strongest = codes.abs().argmax(1, keepdim=True)
                growing[s].append(csr_array(codes.gather(1, strongest)[:, 0].cpu().numpy()))
                n_rows = codes.shape[1] * len(data)
                active[s] += codes.ne(0).sum((0, 1)).cpu().numpy() / n_rows
            labels.append(own)
            bar.update(len(images))
    return {s: growing[s].matrix() for s in layers}, active, torch.cat(labels).numpy()


def _frame(
    layer: int,
    active: np.ndarray,
    rate: np.ndarray,
    tested: np.ndarray,
    observed: dict[str, np.ndarray],
    above: dict[str, np.ndarray],
    draws: int,
    sums: Sums,
    cells: Cells,
) -> pd.DataFrame:
    frame = pd.DataFrame({"layer": layer, "feature": np.arange(len(active))})
    frame["active"], frame["rate"] = active, rate
    noise = (sums.total - sums.pair) / (len(cells.cell) - len(cells.counts))
    explained = sums.pair - cells.freedom["pair"] * noise
    for test in TESTS:
        share = np.full(len(tested), np.nan)
        part = getattr(sums, test) - cells.freedom[test] * noise
        np.divide(part, explained, out=share, where=explained > 0)
        columns = {
            "partial_inter" if test == "inter" else f"eta2_{test}": observed[test],
            f"p_{test}": above[test] / (draws + 1),
            f"share_{test}": share,
        }
        for name, column in columns.items():
            if name != "share_pair":
                frame[name] = np.nan
                frame.loc[tested, name] = column
    return frame


def _kinds(frame: pd.DataFrame, floors: dict[str, float], factors: tuple[str, str]) -> np.ndarray:
    a, b, pair = (frame[f"eta2_{t}"] > floors[t] for t in ("a", "b", "pair"))
    both = (frame["partial_inter"] > floors["inter"]) & (frame["share_inter"] > TOGETHER)
    rules = [
        (frame["eta2_pair"].isna(), "rare"),
        (~pair, "none"),
        (a & (frame["share_a"] > ALONE), factors[0]),
        (b & (frame["share_b"] > ALONE), factors[1]),
        (both & (frame["share_label"] > TOGETHER), "label"),
        (both, "pair"),
    ]
    return np.select([rule for rule, _ in rules], [name for _, name in rules], "mixed")
