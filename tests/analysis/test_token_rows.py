"""Studies on models with registers and without a class token: sums are over the right rows."""

from __future__ import annotations

import pytest
import torch
from builders import noise, random_clt, tiny_timm
from torch import Tensor

from vit_clt import ReLUTopK, TrainConfig, train
from vit_clt.analysis import feature_statistics, reconstruction
from vit_clt.analysis.contributions.moments import contribution_moments
from vit_clt.analysis.contributions.scores import score
from vit_clt.analysis.contributions.study import score_study
from vit_clt.data.images import TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import Edit, HookedViT, overwrite_mlp_hooks, replace_mlps, steer
from vit_clt.hooks.activations import capture
from vit_clt.transcoder.config import CLTConfig

# the rows of every kind, counted by hand
ROWS = {
    "vit_base_patch16_siglip_224": {"patch": slice(0, 16), "all": slice(0, 16)},
    "vit_small_patch14_reg4_dinov2": {
        "cls": slice(0, 1),
        "register": slice(1, 5),
        "patch": slice(5, 21),
        "all": slice(0, 21),
    },
    "vit_wee_patch16_reg1_gap_256": {
        "register": slice(0, 1),
        "patch": slice(1, 17),
        "all": slice(0, 17),
    },
}


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def vit(name: str) -> HookedViT:
    return HookedViT(tiny_timm(name))


@pytest.fixture
def images() -> Tensor:
    return noise(5, 3, 16, 16).float()


def test_reconstruction_has_every_kind_of_row(name: str, vit: HookedViT, images: Tensor) -> None:
    clt, found = random_clt(vit), capture(vit, images)
    result = reconstruction(vit, clt, images)
    assert result.frame["tokens"].unique().tolist() == list(ROWS[name])
    codes = {s: clt.encode(found.x[s], layer=s) for s in range(3)}
    for kind, rows in ROWS[name].items():
        for l in range(3):
            y = found.y[l][:, rows].double()
            y_hat = clt.decode({s: codes[s] for s in range(l + 1)}, target=l)[:, rows].double()
            spread = (y - y.mean((0, 1))).square().sum()
            expected = 1 - (y - y_hat).square().sum() / spread
            at = (result.frame["tokens"] == kind) & (result.frame["layer"] == l)
            row = result.frame[at]
            assert row["r2"].item() == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    table = result.shown()
    assert ("R2 CLS" in table) == ("cls" in ROWS[name])
    assert len(result.figure().layout.annotations) == 3 * (len(ROWS[name]) + 1)


def test_contributions_are_means_over_the_rows_of_a_kind(
    name: str, vit: HookedViT, images: Tensor
) -> None:
    clt, found = random_clt(vit), capture(vit, images)
    moments = contribution_moments(vit, clt, images)
    codes = {s: clt.encode(found.x[s], layer=s) for s in range(3)}
    terms = torch.stack([clt.contributions({s: codes[s]}, 2)[0] for s in range(3)]).double()
    y_hat = terms.sum(0) + clt.b_dec[2]
    ratios = (terms * y_hat).sum(-1) / y_hat.square().sum(-1)
    for kind, rows in ROWS[name].items():
        scores = score(moments, tokens=kind, kind="projection", reduce="mean_of_ratios")
        expected = ratios[:, :, rows].mean((1, 2)).numpy()
        assert scores.matrix[2] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    study = score_study(vit, {"CLT": clt}, TensorImages(images))
    assert len(study.shown()) > 0
    assert study.tokens == [kind for kind in ("cls", "patch") if kind in ROWS[name]]


def test_features_are_counted_by_kind(name: str, vit: HookedViT, images: Tensor) -> None:
    clt, found = random_clt(vit), capture(vit, images)
    frame = feature_statistics(vit, clt, images, layers=[1]).to_frame()
    active = clt.encode(found.x[1], layer=1).to_dense() != 0
    for kind in ("cls", "patch"):
        rates = frame[f"{kind}_rate"].to_numpy()
        if kind in ROWS[name]:
            assert rates == pytest.approx(active[:, ROWS[name][kind]].double().mean((0, 1)).numpy())
        else:
            assert bool((rates != rates).all())


def test_hooks_reach_the_rows_of_a_kind(name: str, vit: HookedViT, images: Tensor) -> None:
    clt, point = random_clt(vit), "blocks.1.hook_mlp_out"
    _, clean = vit.run_with_cache(images)
    with replace_mlps(vit, clt, layers=[1]):
        _, whole = vit.run_with_cache(images)
    for kind, rows in ROWS[name].items():
        with vit.hooks(fwd_hooks=overwrite_mlp_hooks([1], kind)):
            _, zeroed = vit.run_with_cache(images)
        with replace_mlps(vit, clt, layers=[1], tokens=kind):
            _, replaced = vit.run_with_cache(images)
        for altered, inside in ((zeroed, torch.zeros_like(clean[point])), (replaced, whole[point])):
            expected = clean[point].clone()
            expected[:, rows] = inside[:, rows]
            torch.testing.assert_close(altered[point], expected)


def test_steering_edits_the_rows_of_a_kind(name: str, vit: HookedViT, images: Tensor) -> None:
    clt, kept = random_clt(vit), []
    for kind, rows in ROWS[name].items():
        with steer(vit, clt, Edit(1, 3, "clamp", 7.0, tokens=kind)):
            see = ("clt.1.hook_codes", lambda z, hook: kept.append(z[..., 3].clone()))
            vit.run_with_hooks(images, fwd_hooks=[see])
        inside = torch.zeros(vit.cfg.n_tokens, dtype=torch.bool)
        inside[rows] = True
        assert bool((kept[-1][:, inside] == 7).all())
        assert not bool((kept[-1][:, ~inside] == 7).any())


def test_kinds_that_a_model_lacks_are_refused(name: str, vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(vit)
    for kind in {"cls", "register"} - ROWS[name].keys():
        with (
            pytest.raises(InputError, match="this model has no"),
            replace_mlps(vit, clt, layers=[1], tokens=kind),
        ):
            pass
        with (
            pytest.raises(InputError, match="this model has no"),
            vit.hooks(fwd_hooks=overwrite_mlp_hooks([1], kind)),
        ):
            vit(images)
        with (
            pytest.raises(InputError, match="this model has no"),
            steer(vit, clt, Edit(1, 3, "clamp", 7.0, tokens=kind)),
        ):
            pass


def test_a_clt_is_trained_and_names_its_family(name: str, vit: HookedViT, images: Tensor) -> None:
    config = CLTConfig(3, 16, 32, ReLUTopK(k=4))
    settings = TrainConfig(lr=1e-3, batch_size=32, epochs=1)
    clt = train(vit, TensorImages(images), config, settings, progress=False)
    assert clt.config.teacher == vit.identity()
    assert clt.config.teacher.family == "timm"
