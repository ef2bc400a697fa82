"""Interventions that check effects: measured by hand-made hooks, and their statistics by scipy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from builders import random_clt
from oracles.frozen_oracle import double_clt, double_vit
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from vit_clt import AbsTopK, InputError, JumpReLU
from vit_clt.analysis.graphs.agreement import GraphAgreement, graph_agreement
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.hooks import HookedViT


@pytest.fixture
def direction() -> Tensor:
    return torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def silenced_by_hand(sources: Sources, direction: Tensor, place: tuple[int, int, int]) -> float:
    """The logit when later codes recompute, by a replacement of the test's own."""
    clt, vit = sources.clt, sources.frozen.vit
    layer, token, feature = place
    codes: list[Tensor] = []

    def read(x: Tensor, hook: object, l: int) -> None:
        z = clt.encode(x, layer=l).to_dense()
        if l == layer:
            z[0, token, feature] = 0
        codes.append(z)

    def write(y: Tensor, hook: object, l: int) -> Tensor:
        recon = sum(codes[s] @ clt.W_dec[s][l - s] for s in range(l + 1)) + clt.b_dec[l]
        return recon + sources.errors[l]

    hooks = [(f"blocks.{l}.mlp.hook_in", partial(read, l=l)) for l in range(4)]
    hooks += [(f"blocks.{l}.hook_mlp_out", partial(write, l=l)) for l in range(4)]
    return float(F.normalize(vit.run_with_hooks(sources.image[None], fwd_hooks=hooks)) @ direction)


def test_measured_effects_are_those_of_interventions(images: Tensor, direction: Tensor) -> None:
    vit = double_vit()
    clt = double_clt(vit, JumpReLU(0.4))
    sources = Sources(vit, clt, images[0].double())
    found = graph_agreement([sources], [direction], n=12).interventions
    assert found["chosen"].tolist() == ["top"] * 6 + ["random"] * 6
    largest = sources.effects(sources.frozen.read_output(direction)).features.abs().topk(6).values
    assert found["direct"][:6].abs().tolist() == pytest.approx(largest.tolist())
    assert not found.duplicated(["layer", "token", "feature"]).any()
    clean = float(sources.logit(direction))
    for row in found.itertuples():
        place = (row.layer, row.token, row.feature)
        live = clean - silenced_by_hand(sources, direction, place)
        assert row.live == pytest.approx(live, rel=1e-7, abs=1e-12)
        # with other codes held only this feature's own terms leave the MLP outputs
        hooks = []
        for j, decoder in enumerate(clt.W_dec[row.layer]):
            y = sources.frozen.y[row.layer + j].clone()
            y[0, row.token] -= row.activation * decoder[row.feature]
            hooks.append((f"blocks.{row.layer + j}.hook_mlp_out", lambda _, hook, y=y: y))
        without = vit.run_with_hooks(sources.image[None], fwd_hooks=hooks)
        held = clean - float(F.normalize(without, dim=-1) @ direction)
        assert row.codes_held == pytest.approx(held, rel=1e-7, abs=1e-12)


def test_a_small_change_is_what_differentiated_norms_predict(
    images: Tensor, direction: Tensor
) -> None:
    # a feature of the last layer meets norms alone: shrink its effect, and the prediction is exact
    vit = double_vit()
    clt = double_clt(vit, AbsTopK(k=3))
    clt.W_dec[3].mul_(1e-6)
    found = graph_agreement([Sources(vit, clt, images[0].double())], [direction], n=200)
    last = found.interventions.query("layer == 3 and token == 0")
    assert len(last) == 3
    np.testing.assert_allclose(last["direct_norms"], last["live"], rtol=1e-3)
    np.testing.assert_allclose(last["total_norms"], last["direct_norms"], rtol=1e-9)
    assert not np.allclose(last["direct"], last["live"], rtol=0.05)


def test_statistics_are_scipys() -> None:
    rng = np.random.default_rng(0)
    direct = rng.normal(size=40)
    dots = pd.DataFrame(
        {
            **{name: range(40) for name in ("layer", "token", "feature")},
            "chosen": ["top"] * 20 + ["random"] * 20,
            "direct": direct,
            "total": rng.normal(size=40),
            "direct_norms": 0.5 * direct,
            "total_norms": rng.normal(size=40),
            "live": 0.5 * direct + rng.normal(size=40) * 0.2,
            "codes_held": 0.5 * direct,
        }
    )
    table = GraphAgreement(dots, seed=0).to_frame().set_index(["predicted", "measured", "chosen"])
    row = table.loc["direct", "live", "top"]
    top = dots[:20]
    assert row["pearson"] == pytest.approx(pearsonr(top["direct"], top["live"])[0])
    assert row["spearman"] == pytest.approx(spearmanr(top["direct"], top["live"])[0])
    slope = np.linalg.lstsq(top[["direct"]].to_numpy(), top["live"].to_numpy(), rcond=None)[0]
    assert row["slope"] == pytest.approx(slope[0])
    assert row["pearson_low"] < row["pearson"] < row["pearson_high"]
    assert 0.2 < row["pearson_floor_high"] < row["pearson"]
    exact = table.loc["direct_norms", "codes_held", "all"]
    assert exact[["pearson", "spearman", "slope", "n"]].tolist() == pytest.approx([1, 1, 1, 40])
    unrelated = table.loc["total", "live", "all"]
    assert unrelated["pearson_low"] < 0 < unrelated["pearson_high"]
    names = {m.name: m for m in GraphAgreement(dots, seed=0).metrics()}
    metric = names["direct_against_live_top_pearson"]
    assert (metric.value, metric.floor) == (row["pearson"], row["pearson_floor_high"])


def test_wrong_arguments_are_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    sources = Sources(tiny_vit, random_clt(tiny_vit), images[0])
    with pytest.raises(InputError, match="interventions is 1"):
        graph_agreement([sources], [torch.ones(12)], n=1)
    silent = Sources(tiny_vit, random_clt(tiny_vit, JumpReLU(100.0)), images[0])
    with pytest.raises(InputError, match="no active feature"):
        graph_agreement([silent], [torch.ones(12)], n=4)
    with (
        tiny_vit.hooks(fwd_hooks=[("hook_input", lambda v, hook: v)]),
        pytest.raises(InputError, match="expected none"),
    ):
        graph_agreement([sources], [torch.ones(12)], n=4)
