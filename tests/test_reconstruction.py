"""Reconstruction measures against numpy in float64 and scikit-learn's R^2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_clt, tiny_clip
from sklearn.metrics import r2_score
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import reconstruction
from vit_clt.data import TensorImages
from vit_clt.hooks import HookedViT

ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]


@dataclass(frozen=True)
class Toy:
    vit: HookedViT
    images: Tensor
    x: Tensor
    """"layer image token d_model"."""
    y: Tensor


@pytest.fixture(scope="module")
def toy() -> Toy:
    vit = HookedViT(tiny_clip())
    images = torch.randn(11, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    _, cache = vit.run_with_cache(images)
    x, y = (
        torch.stack([cache[f"blocks.{l}.{point}"] for l in range(4)])
        for point in ("ln2.hook_out", "hook_mlp_out")
    )
    return Toy(vit, images, x, y)


def in_batches(images: Tensor, batch_size: int) -> TensorImages:
    data = TensorImages(images, name="toy")
    data.batch_size = batch_size
    return data


def row_of(frame: pd.DataFrame, layer: int, tokens: str) -> pd.Series:
    (row,) = (r for _, r in frame.iterrows() if (r.layer, r.tokens) == (layer, tokens))
    return row


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_measures_equal_float64_recomputation(toy: Toy, tokens: str, sparsifier: object) -> None:
    clt = random_clt(toy.vit, sparsifier, n_features=40)
    clt.b_enc.data[:, :3] = 0
    for encoder in clt.W_enc:
        encoder.data[:3] = 0  # three features that are always silent
    frame = reconstruction(toy.vit, clt, in_batches(toy.images, 4)).frame
    codes = clt.encode(toy.x)
    z, y_hat = codes.to_dense().numpy(), clt.decode(codes).double().numpy()
    for l in range(4):
        y, y_l = toy.y[l, :, ROWS[tokens]].double().numpy(), y_hat[l][:, ROWS[tokens]]
        flat, flat_hat = y.reshape(-1, 16), y_l.reshape(-1, 16)
        sse = np.square(y - y_l).sum()
        norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(flat_hat, axis=1)
        expected = {
            "cosine": ((flat * flat_hat).sum(1) / norms).mean(),
            "mse": np.square(flat - flat_hat).mean(),
            "r2": r2_score(flat, flat_hat, multioutput="variance_weighted"),
            "r2_position": 1 - sse / np.square(y - y.mean(0)).sum(),
            "fvu": sse / np.square(flat - flat.mean(0)).sum(),
            "l0": (z[l][:, ROWS[tokens]] != 0).sum(-1).mean(),
            "dead": (z[l] == 0).all((0, 1)).mean(),
        }
        row = row_of(frame, l, tokens)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        assert row.n_images == 11
        assert row.dead >= 3 / 40


def test_one_row_for_each_layer_and_token_kind(toy: Toy) -> None:
    result = reconstruction(toy.vit, random_clt(toy.vit), in_batches(toy.images, 64))
    pairs = list(zip(result.frame["layer"], result.frame["tokens"], strict=True))
    assert sorted(pairs) == sorted((l, t) for l in range(4) for t in ROWS)
    assert result.data == "toy"
    for tokens in ROWS:
        rows = result.frame[result.frame["tokens"] == tokens]
        assert result.mean(tokens) == pytest.approx(rows["r2"].mean())
        assert result.mean(tokens, "l0") == pytest.approx(rows["l0"].mean())


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batch_size_and_order_change_nothing(toy: Toy, batch_size: int) -> None:
    clt = random_clt(toy.vit)
    whole = reconstruction(toy.vit, clt, in_batches(toy.images, 64)).frame
    for images in (toy.images, toy.images.flip(0)):
        parts = reconstruction(toy.vit, clt, in_batches(images, batch_size)).frame
        pd.testing.assert_frame_equal(parts, whole, rtol=1e-5, atol=1e-9)


class Oracle(CrossLayerTranscoder):
    """Returns what it was given instead of a reconstruction."""

    def __init__(self, vit: HookedViT, y: Tensor):
        super().__init__(CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 8, ReLUTopK(k=2)))
        self.y = y

    def decode(self, codes: object, target: int | None = None) -> Tensor:
        return self.y if target is None else self.y[target]


def test_oracle_has_r2_one(toy: Toy) -> None:
    frame = reconstruction(toy.vit, Oracle(toy.vit, toy.y), toy.images).frame
    for column, value in (("r2", 1), ("r2_position", 1), ("fvu", 0), ("mse", 0), ("cosine", 1)):
        assert frame[column].tolist() == pytest.approx([value] * 12, abs=1e-12), column


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_predicting_the_mean_has_r2_zero(toy: Toy, tokens: str) -> None:
    pooled = toy.y[:, :, ROWS[tokens]].double().mean((1, 2), keepdim=True).expand_as(toy.y)
    position = toy.y.double().mean(1, keepdim=True).expand_as(toy.y)
    for mean, zero, other in ((pooled, "r2", "r2_position"), (position, "r2_position", "r2")):
        frame = reconstruction(toy.vit, Oracle(toy.vit, mean), toy.images).frame
        for l in range(4):
            row = row_of(frame, l, tokens)
            assert row[zero] == pytest.approx(0, abs=1e-9)
            if tokens != "cls":  # one position: both means are the same
                assert abs(row[other]) > 1e-3


def test_mean_written_into_the_bias_has_r2_zero(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    for decoder in clt.W_dec:
        decoder.data.zero_()
    clt.b_dec.data = toy.y.mean((1, 2))
    frame = reconstruction(toy.vit, clt, toy.images).frame
    rows = frame[frame["tokens"] == "all"]
    assert rows["r2"].tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert rows["fvu"].tolist() == pytest.approx([1] * 4, abs=1e-6)


def test_hooks_on_the_model_change_nothing(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    plain = reconstruction(toy.vit, clt, toy.images).frame
    with toy.vit.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda y, hook: 0 * y)]):
        hooked = reconstruction(toy.vit, clt, toy.images).frame
    pd.testing.assert_frame_equal(hooked, plain, check_exact=True)


def test_clt_of_another_shape_is_refused(toy: Toy) -> None:
    other = CrossLayerTranscoder(CLTConfig(4, 8, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="width 8"):
        reconstruction(toy.vit, other, toy.images)


def test_no_images_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="empty"):
        reconstruction(toy.vit, random_clt(toy.vit), torch.zeros(0, 3, 12, 12))
