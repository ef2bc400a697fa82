"""How a CLT starts: what is measured, against numpy in float64, and what the start does with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from assertions import one_sentence
from builders import tiny_clip, tiny_timm
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, load_data
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.hooks.rows import TokenRows
from vit_clt.training.batches import GroupActivations
from vit_clt.training.start import (
    MOST_BALANCE,
    Moments,
    centre_,
    cls_feature_,
    moments,
    start_,
    unit_encoders_,
)
from vit_clt.training.trainer import train
from vit_clt.transcoder.train_config import TrainConfig

LAYERS, TOKENS, WIDTH = 2, 5, 6
ROWS = TokenRows(True, 0, (2, 2))


def groups(has_cls: bool = True) -> list[GroupActivations]:
    """Three groups of images, some of them unreadable, whose means are far from zero."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in (4, 3, 2):
        x = torch.randn(LAYERS, n, TOKENS, WIDTH, generator=generator) + torch.arange(6.0)
        y = 3 * torch.randn(LAYERS, n, TOKENS, WIDTH, generator=generator) - 1
        if has_cls:
            x[:, :, 0] += 20
            y[:, :, 0] -= 5
        readable = torch.arange(n) != 1
        x[:, ~readable], y[:, ~readable] = 0, 0
        made.append(GroupActivations(x, y, readable))
    return made


def joined(found: list[GroupActivations]) -> Activations:
    x, y = (
        torch.cat([getattr(group, name)[:, group.readable] for group in found], 1).double()
        for name in ("x", "y")
    )
    return Activations(x, y)


def tensors(signed: bool = False) -> tuple[CrossLayerTranscoder, dict[str, Tensor]]:
    torch.manual_seed(0)
    sparsifier = AbsTopK(3) if signed else ReLUTopK(3)
    clt = CrossLayerTranscoder(CLTConfig(LAYERS, WIDTH, 64, sparsifier), backend="dense")
    return clt, {name: value.detach() for name, value in clt.named_parameters()}


@pytest.mark.parametrize("has_cls", [True, False])
def test_moments_are_those_of_all_readable_rows(has_cls):
    found = moments(groups(), TokenRows(has_cls, 0, (1, TOKENS - has_cls)))
    true = joined(groups())
    first = int(has_cls)
    for name, values in (("x", true.x), ("y", true.y)):
        scale = WIDTH**0.5 / values.square().sum(-1).sqrt().mean((1, 2))
        torch.testing.assert_close(getattr(found, f"scale_{name}"), scale.float())
        mean = values[:, :, first:].mean((1, 2))
        torch.testing.assert_close(getattr(found, f"mean_{name}"), mean.float())
        cls = values[:, :, 0].mean(1) if has_cls else mean
        torch.testing.assert_close(getattr(found, f"cls_{name}"), cls.float())


def test_a_layer_of_zeros_is_named():
    silent = groups()
    for group in silent:
        group.y[1] = 0
    with pytest.raises(InputError) as error:
        moments(silent, ROWS)
    assert "blocks.1.hook_mlp_out is zero on every token" in one_sentence(error)


@pytest.mark.parametrize("n", [0, 1])
def test_moments_need_an_image(n):
    group = groups()[0]
    unreadable = GroupActivations(group.x * 0, group.y * 0, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(InputError) as error:
        moments([unreadable] * n, ROWS)
    assert "none of the images can be read" in one_sentence(error)


def test_unit_encoders_leave_what_a_feature_writes():
    clt, held = tensors()
    x = torch.randn(LAYERS, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    before = clt(x)
    unit_encoders_(held)
    for s in range(LAYERS):
        torch.testing.assert_close(clt.W_enc[s].norm(dim=1), torch.ones(64))
    # rows were of nearly one norm, so that mostly the same features win
    assert (clt(x) - before).norm() < 0.9 * before.norm()
    assert 0.5 < clt(x).norm() / before.norm() < 2


def test_centred_biases_see_no_constant():
    clt, held = tensors()
    measured = moments(groups(), ROWS)
    centre_(held, measured)
    x = measured.mean_x * measured.scale_x[:, None]
    for s in range(LAYERS):
        a = clt.W_enc[s] @ x[s] + clt.b_enc[s]
        assert a.abs().max() < 1e-4 * (clt.W_enc[s] @ x[s]).abs().max()
    torch.testing.assert_close(clt.b_dec.detach(), measured.mean_y * measured.scale_y[:, None])


@pytest.mark.parametrize("signed", [False, True])
def test_the_cls_feature_writes_what_sets_cls_rows_apart(signed):
    clt, held = tensors(signed)
    measured = moments(groups(), ROWS)
    centre_(held, measured)
    cls_feature_(held, measured, signed=signed)
    size, sx, sy = WIDTH**0.5, measured.scale_x[:, None], measured.scale_y[:, None]
    for rows, code in ((measured.cls_x, size), (measured.mean_x, 0.0 if signed else -size)):
        for s in range(LAYERS):
            a = clt.W_enc[s] @ (rows * sx)[s] + clt.b_enc[s]
            torch.testing.assert_close(a[0].detach(), torch.tensor(code), rtol=0, atol=1e-3)
    # that feature alone turns the mean of other rows into the mean of CLS rows, at its own layer
    for s in range(LAYERS):
        own = clt.b_dec[s] + size * clt.W_dec[s][0, 0]
        torch.testing.assert_close(own.detach(), (measured.cls_y * sy)[s], rtol=1e-4, atol=1e-4)
        assert not clt.W_dec[s][1:, 0].any()


def test_without_cls_rows_no_feature_is_set():
    measured = moments(groups(False), TokenRows(False, 0, (1, TOKENS)))
    held, plain = tensors()[1], tensors()[1]
    start_(held, measured, signed=False)
    unit_encoders_(plain)
    centre_(plain, measured)
    for name, value in plain.items():
        assert torch.equal(held[name], value), name


def test_more_features_win_on_real_rows():
    vit = HookedViT.from_open_clip("digits")
    images = load_data("digits", split="train", limit=200, vit=vit).batch(range(200))[0]
    true = capture(vit, images)
    group = GroupActivations(true.x, true.y, torch.ones(200, dtype=torch.bool))
    measured = moments([group], vit.cfg.rows)
    rows = true.x.flatten(1, 2) * measured.scale_x[:, None, None]
    shares = []
    for centred in (False, True):
        torch.manual_seed(0)
        config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 1024, ReLUTopK(16))
        clt = CrossLayerTranscoder(config)
        if centred:
            held = {name: value.detach() for name, value in clt.named_parameters()}
            start_(held, measured, signed=False)
        with torch.no_grad():
            codes = clt.encode(rows)
        shares.append([float((each.to_dense() > 0).any(0).float().mean()) for each in codes])
    drawn, centred_shares = shares
    assert all(a < b for a, b in zip(drawn, centred_shares, strict=True)), (drawn, centred_shares)
    assert sum(centred_shares) - sum(drawn) > 0.05 * vit.cfg.n_layers


@pytest.mark.parametrize("model", ["clip", "no class token"])
def test_a_run_starts_where_its_settings_say(model):
    """After one step at a rate of nearly 0 the CLT is its start, in raw units."""
    vit = HookedViT(tiny_clip() if model == "clip" else tiny_timm("vit_base_patch16_siglip_224"))
    images = torch.randn(6, 3, *vit.cfg.image_size, generator=torch.Generator().manual_seed(3))
    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 32, ReLUTopK(4))
    settings = TrainConfig(lr=1e-12, epochs=1, batch_size=8, start="centred")
    clt = train(vit, TensorImages(images), config, settings, progress=False)
    true = capture(vit, images)
    others = slice(int(vit.cfg.rows.has_cls), None)
    for l in range(vit.cfg.n_layers):
        x, y = (v[l][:, others].flatten(0, 1).mean(0) for v in (true.x, true.y))
        torch.testing.assert_close(clt.b_dec[l].detach(), y, rtol=1e-4, atol=1e-4)
        a = (clt.W_enc[l] @ x + clt.b_enc[l])[1:]
        assert a.abs().max() < 1e-3 * (clt.W_enc[l] @ x).abs().max()


def test_balance_weighs_cls_rows_by_the_spreads_of_y():
    measured, y = moments(groups(), ROWS), joined(groups()).y
    spreads = []
    for rows in (y[:, :, 1:], y[:, :, :1]):
        centred = rows - rows.mean((1, 2), keepdim=True)
        spreads.append(centred.square().sum(-1).mean((1, 2)).float())
    torch.testing.assert_close(measured.spread_y, spreads[0])
    torch.testing.assert_close(measured.cls_spread_y, spreads[1])
    balanced = measured.cls_weights(4, balance=True)
    torch.testing.assert_close(balanced, 4 * spreads[0] / spreads[1])
    assert measured.cls_weights(4, balance=False).tolist() == [4.0, 4.0]
    nothing = torch.zeros(LAYERS)
    constant = replace(measured, cls_spread_y=nothing)
    assert constant.cls_weights(4, balance=True).tolist() == [4.0 * MOST_BALANCE] * 2
    neither = replace(constant, spread_y=nothing)
    assert neither.cls_weights(4, balance=True).tolist() == [4.0, 4.0]


def test_moments_map_every_part():
    measured = moments(groups(), ROWS)
    doubled = measured.map(lambda value: 2 * value)
    assert isinstance(doubled, Moments)
    assert torch.equal(doubled.cls_y, 2 * measured.cls_y)
