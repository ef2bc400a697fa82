"""The Matryoshka loss by hand, in training, resumed, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from unittest.mock import patch

import pytest
import torch
from assertions import close, one_sentence, same_clt
from builders import noise, noisy_clt, tiny_clip

from vit_clt import (
    AbsTopK,
    BatchTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
    train,
)
from vit_clt.data.images import TensorImages
from vit_clt.errors import Stopped
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training.cost import estimate
from vit_clt.training.objective import Objective
from vit_clt.training.trial import faster_backend
from vit_clt.transcoder.sparsifiers import TopKTraining
from vit_clt.transcoder.train_config import SparsifierTraining

L, D, F, T = 3, 4, 8, 11
PREFIXES = (2, 5)
TINY = CLTConfig(4, 16, 24, ReLUTopK(k=4), skip=True)


@pytest.mark.parametrize("layout", ["dense", "listed", "masked"])
@pytest.mark.parametrize(
    "sparsifier", [ReLUTopK(3), AbsTopK(3), JumpReLU(), BatchTopK(3)], ids=lambda s: s.name
)
def test_the_loss_and_its_gradients_equal_those_by_hand(sparsifier, layout):
    """In float64 but for the reconstruction error, which a step forms in float32."""
    config = CLTConfig(L, D, F, sparsifier, skip=True)
    clt = noisy_clt(config, backend="dense" if layout == "dense" else "sparse")
    dense = noisy_clt(config, backend="dense")
    x, y, weights = noise(L, T, D), noise(L, T, D, seed=2), noise(T, seed=3).exp()
    total = float(weights.sum())
    objective = Objective(clt, TrainConfig(matryoshka=PREFIXES)).train()
    with patch("vit_clt.kernels.choose._LISTED", 1.0 if layout == "listed" else -1.0):
        parts = objective(x, y, weights, total, T, 0.0, None)
    z = dense.encode_batch(x).to_dense()
    losses = []
    for m in (*PREFIXES, F):
        for l in range(L):
            y_hat = dense.b_dec[l] + x[l] @ dense.W_skip[l].T
            for s in range(l + 1):
                y_hat = y_hat + z[s][:, :m] @ dense.W_dec[s][l - s][:m]
            losses.append(((y_hat - y[l]).square().sum(-1) * weights).sum() / total)
    by_layer = torch.stack(losses).view(3, L).mean(0)
    close(parts["loss_by_layer"], by_layer, 1e-5)
    close(parts["total"], by_layer.sum(), 1e-5)
    assert (parts["fired"] == (z != 0).any(1)).all()
    pairs = zip(clt.named_parameters(), dense.parameters(), strict=True)
    for (name, mine), theirs in pairs:
        [found] = torch.autograd.grad(parts["total"], mine, retain_graph=True)
        [expected] = torch.autograd.grad(by_layer.sum(), theirs, retain_graph=True)
        assert expected.any(), name
        close(found, expected, 1e-5)


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return HookedViT(tiny_clip())


@pytest.fixture(scope="module")
def data() -> TensorImages:
    return TensorImages(torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(2)))


def trained(vit, data, config=TINY, **options) -> CrossLayerTranscoder:
    run = {
        name: options.pop(name)
        for name in ("checkpoints", "resume", "should_stop")
        if name in options
    }
    how = {"lr": 1e-2, "epochs": 20, "batch_size": 100, "log_every": 1, "checkpoint_every": 3}
    return train(vit, data, config, TrainConfig(**how | options), progress=False, **run)


def test_trained_with_them_prefixes_rebuild_more(vit, data):
    found = capture(vit, data.images)
    errors = {}
    for name, prefixes in (("plain", None), ("matryoshka", (6, 12))):
        clt = trained(vit, data, replace(TINY, skip=False), matryoshka=prefixes, seed=1)
        assert clt.config == replace(TINY, skip=False, teacher=vit.identity())
        with torch.no_grad():
            codes = clt.encode(found.x)
            part, whole = clt.decode_prefixes(codes, [6])
            close(whole, clt.decode(codes))
        errors[name] = float((part - found.y).square().sum())
    assert errors["matryoshka"] < 0.8 * errors["plain"]


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_a_resumed_run_with_prefixes_and_a_skip_ends_with_the_same_bits(
    vit, data, backend, tmp_path
):
    how = {"matryoshka": (6, 12), "backend": backend, "epochs": 2}
    whole = trained(vit, data, **how)
    assert whole.W_skip.any()
    steps: list[int] = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 4

    with pytest.raises(Stopped):
        trained(vit, data, checkpoints=tmp_path, should_stop=stop, **how)
    same_clt(trained(vit, data, checkpoints=tmp_path, resume=True, **how), whole)
    for config, changed in ((TINY, {"matryoshka": (6,)}), (replace(TINY, skip=False), {})):
        with pytest.raises(InputError, match=r"(matryoshka is|skip is False; expected True)"):
            trained(vit, data, config, checkpoints=tmp_path, resume=True, **how | changed)


def test_both_back_ends_train_the_same_clt(vit, data):
    dense, sparse = (
        trained(vit, data, matryoshka=(6, 12), backend=backend, epochs=2, lr=1e-3)
        for backend in ("dense", "sparse")
    )
    for name, tensor in dense.state_dict().items():
        close(sparse.state_dict()[name], tensor, 1e-3)


@pytest.mark.parametrize("prefixes", [(), (0, 3), (5, 2), (3, 3)])
def test_prefixes_that_do_not_ascend_are_refused(prefixes):
    with pytest.raises(InputError, match=r"matryoshka is \[.*; expected numbers of") as error:
        TrainConfig(matryoshka=prefixes)
    one_sentence(error)


def test_a_prefix_of_all_features_is_refused(vit, data):
    with pytest.raises(InputError, match=r"matryoshka is \[6, 24\]; expected .* n_features, 24"):
        trained(vit, data, matryoshka=(6, 24))


def test_they_are_read_back_from_a_file():
    settings = TrainConfig(matryoshka=(6, 12), sparsity=TopKTraining())
    values = json.loads(json.dumps(asdict(settings)))
    assert TrainConfig.from_json(values, TopKTraining) == settings
    del values["matryoshka"]  # written before the option was there
    assert TrainConfig.from_json(values, TopKTraining).matryoshka is None


def test_their_memory_and_time_are_counted():
    given = {"n_images": 100, "n_tokens": 50, "teacher_parameters": 0}
    for backend in ("dense", "sparse"):
        plain = TrainConfig(backend=backend, sparsity=SparsifierTraining())
        steps = [
            estimate(TINY, replace(plain, matryoshka=m), **given).memory["step"]
            for m in (None, (6,), (6, 12))
        ]
        assert steps == sorted(set(steps))
    with patch("vit_clt.kernels.codes.SparseCodes.between") as between:
        between.side_effect = ZeroDivisionError
        with pytest.raises(ZeroDivisionError), pytest.warns(RuntimeWarning, match="failed"):
            faster_backend(TINY, TrainConfig(matryoshka=(6,)), torch.device("cpu"), 8)
