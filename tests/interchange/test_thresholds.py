"""Thresholds in place of top-k, against dense sorts of every pre-activation."""

from __future__ import annotations

import pytest
import torch
from builders import random_clt

from vit_clt import InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import reconstruction, threshold_cost
from vit_clt.data.images import ImageData, ImageSubset, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps, token_rows
from vit_clt.interchange import thresholds
from vit_clt.interchange.thresholds import with_thresholds
from vit_clt.readouts.zero_shot import ZeroShot


def layer_inputs(vit: HookedViT, images: torch.Tensor) -> torch.Tensor:
    names = [f"blocks.{s}.ln2.hook_out" for s in range(vit.cfg.n_layers)]
    _, cache = vit.run_with_cache(images, names_filter=names)
    return torch.stack([cache[name].flatten(0, 1) for name in names])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_feature_fires_as_often_as_under_top_k(tiny_vit: HookedViT, batch_size: int):
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    clt = random_clt(tiny_vit, ReLUTopK(k=3), n_features=20)
    # one feature that never fires, one that fires on every row, one never positive
    clt.b_enc.data[:, 0] -= 3
    clt.b_enc.data[:, 1] += 50
    clt.b_enc.data[:, 2] -= 100
    data = TensorImages(images)
    data.batch_size = batch_size
    twin = with_thresholds(tiny_vit, clt, data)
    assert isinstance(twin.config.sparsifier, JumpReLU)
    assert twin.config.n_features == 20
    assert all(a is b for a, b in zip(twin.W_dec, clt.W_dec, strict=True))
    assert all(a is b for a, b in zip(twin.W_enc, clt.W_enc, strict=True))
    x = layer_inputs(tiny_vit, images)
    for s in range(4):
        a = x[s].double() @ clt.W_enc[s].double().T + clt.b_enc[s].double()
        kth = a.sort(dim=1, descending=True).values[:, 2:3]
        counts = ((a >= kth) & (a > 0)).sum(0)
        assert counts[1] == len(a)
        assert counts[2] == 0
        theta = twin.log_theta[s].exp().double()
        ordered = a.sort(dim=0, descending=True).values
        for feature, n in enumerate(counts.tolist()):
            column = ordered[:, feature]
            silent = max(float(column[n]), 0.0) if n < len(column) else 0.0
            if n:
                expected = (float(column[n - 1]) + silent) / 2
                assert float(theta[feature]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
            else:
                assert float(theta[feature]) >= silent
                assert float(theta[feature]) == pytest.approx(silent, rel=1e-3)
        # what is asked for, of the CLT itself
        codes = twin.encode(x[s], layer=s)
        assert torch.equal(codes.to_dense().ne(0).sum(0), counts)
        assert codes.l0().sum() == clt.encode(x[s], layer=s).l0().sum()


def test_layers_in_passes_of_their_own_have_the_same_thresholds(
    tiny_vit: HookedViT, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    passes: list[int] = []
    captured = thresholds.capture
    monkeypatch.setattr(thresholds, "capture", lambda *a: passes.append(1) or captured(*a))
    clt = random_clt(tiny_vit)
    together = with_thresholds(tiny_vit, clt, images)
    assert len(passes) == 2
    alone = with_thresholds(tiny_vit, clt, images, kept_bytes=0)
    assert len(passes) == 2 + 1 + 4
    assert torch.equal(alone.log_theta, together.log_theta)


def test_other_sparsifiers_are_refused(tiny_vit: HookedViT, images: torch.Tensor):
    with pytest.raises(InputError, match="sparsifier is jumprelu; expected relu_topk"):
        with_thresholds(tiny_vit, random_clt(tiny_vit, JumpReLU()), images)


def test_costs_are_those_of_the_replaced_model(digits_vit: HookedViT, digits_test: ImageData):
    clt = random_clt(digits_vit, ReLUTopK(k=4), n_features=32)
    twin = with_thresholds(digits_vit, clt, ImageSubset(digits_test, range(100, 130)))
    data = ImageSubset(digits_test, range(40))
    zs = ZeroShot(digits_vit, data.class_names, "single")
    cost = threshold_cost(digits_vit, clt, twin, data, zs)
    images, labels = data.batch(range(40))
    x = layer_inputs(digits_vit, images).unflatten(1, (40, -1))
    frame = cost.frame.set_index("tokens")
    for kind, row in frame.iterrows():
        for name, each in (("before", clt), ("after", twin)):
            with replace_mlps(digits_vit, each, layers=range(8), tokens=kind):
                found = zs.read(digits_vit(images), labels)
            assert row[f"top1_{name}"] == pytest.approx(float(found.correct.double().mean()))
            assert row[f"loss_{name}"] == pytest.approx(float(found.loss.mean()), rel=1e-4)
            l0 = each.encode(x[:, :, token_rows(kind)]).l0().double().mean()
            assert row[f"l0_{name}"] == pytest.approx(float(l0))
        assert row["loss_change"] == pytest.approx(row["loss_after"] - row["loss_before"])
        assert row["loss_change_low"] <= row["loss_change"] <= row["loss_change_high"]
        assert row["loss_change"] != 0
    metrics = {metric.name: metric for metric in cost.metrics()}
    for name, each in (("before", clt), ("after", twin)):
        fit = reconstruction(digits_vit, each, data).frame.query("tokens == 'cls'")
        r2 = fit["r2"].to_numpy()
        assert frame.loc["cls", f"lowest_r2_{name}"] == pytest.approx(r2.min())
        assert metrics[f"cls_lowest_r2_layer_{name}"].value == r2.argmin()
    assert metrics["cls_lowest_r2"].value == frame.loc["cls", "lowest_r2_after"]
    assert metrics["cls_lowest_r2"].baseline == frame.loc["cls", "lowest_r2_before"]
    assert metrics["patch_loss"].floor == frame.loc["patch", "loss_floor_mean"]
    assert metrics["patch_loss"].baseline == frame.loc["patch", "loss_before"]
    assert metrics["all_r2"].floor == 0
    assert metrics["all_fvu"].value == pytest.approx(1 - metrics["all_r2"].value)
    assert metrics["cls_loss_change"].low == frame.loc["cls", "loss_change_low"]
