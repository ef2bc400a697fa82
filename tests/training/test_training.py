from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_clip
from torch import Tensor

from vit_clt import (
    AbsTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
    train,
)
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training.trainer import as_context, resolved
from vit_clt.transcoder.sparsifiers import JumpReLUTraining
from vit_clt.transcoder.train_config import SparsifierTraining

N_IMAGES, N_TOKENS = 40, 10
ALL = N_IMAGES * N_TOKENS
SMALL = CLTConfig(4, 16, 24, ReLUTopK(k=4))
DEFAULTS = SparsifierTraining()
LOG_KEYS = {
    "step",
    "tokens",
    "epoch",
    "loss",
    "fvu",
    "fvu_cls",
    "fvu_patch",
    "l0",
    "dead",
    "sparsity",
    "lr",
    "loss_by_layer",
    "l0_by_layer",
    "dead_by_layer",
    "grad_norm",
    "aux",
    "backend",
    "tokens_per_second",
    "waits",
    "skipped",
}


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    clip = tiny_clip()
    for block, factor in zip(clip.visual.transformer.resblocks, (0.5, 4.0, 1.0, 2.0), strict=True):
        block.ln_2.weight.data.mul_(factor)  # norms of x and y far from normalised ones
    return HookedViT(clip, model="tiny")


@pytest.fixture(scope="module")
def data() -> TensorImages:
    return TensorImages(torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(2)))


@pytest.fixture
def fit(vit, data) -> Callable[..., tuple[CrossLayerTranscoder, list[dict]]]:
    """Train with one batch an epoch and a record a step, unless told otherwise."""

    def run(config=SMALL, sparsity=DEFAULTS, **settings):
        records: list[dict] = []
        settings = {"lr": 1e-2, "epochs": 3, "batch_size": ALL, "log_every": 1} | settings
        how = TrainConfig(sparsity=sparsity, **settings)
        clt = train(vit, data, config, how, on_log=records.append, progress=False)
        return clt, steps(records)

    return run


@pytest.fixture(scope="module")
def trained(vit, data) -> SimpleNamespace:
    """A CLT after 60 steps, its records, and the activations it was trained on."""
    records: list[dict] = []
    config = CLTConfig(4, 16, 64, ReLUTopK(k=8))
    settings = TrainConfig(lr=1e-2, epochs=60, batch_size=ALL, log_every=1, seed=5)
    clt = train(vit, data, config, settings, on_log=records.append, progress=False)
    found = capture(vit, data.images)
    return SimpleNamespace(
        clt=clt,
        config=config,
        records=steps(records),
        x=found.x.flatten(1, 2),
        y=found.y.flatten(1, 2),
    )


def steps(records: list[dict]) -> list[dict]:
    """Records of steps, without events."""
    return [record for record in records if "event" not in record]


def fvu(y_hat: Tensor, y: Tensor) -> float:
    """Mean over layers of the squared error as a share of the spread around the mean token."""
    shares = []
    for l in range(len(y)):
        spread = ((y[l] - y[l].mean(0)) ** 2).sum()
        shares.append(float(((y_hat[l] - y[l]) ** 2).sum() / spread))
    return sum(shares) / len(shares)


# ---- training ---------------------------------------------------------------------------------


def test_training_lowers_fvu_far_below_the_untrained(trained):
    with torch.no_grad():
        after = fvu(trained.clt(trained.x), trained.y)
        before = fvu(CrossLayerTranscoder(trained.config)(trained.x), trained.y)
    assert after < 0.3
    assert after < 0.4 * before
    assert trained.records[-1]["fvu"] < 0.3 * trained.records[0]["fvu"]


def test_the_returned_clt_is_in_raw_units(trained):
    for values in (trained.x, trained.y):
        norms = values.norm(dim=-1).mean(1)
        assert norms.max() > 2 * norms.min()
    with torch.no_grad():
        r2 = 1 - fvu(trained.clt(trained.x), trained.y)
    assert r2 == pytest.approx(1 - trained.records[-1]["fvu"], abs=0.01)


def test_the_returned_clt_names_its_teacher_and_is_in_eval_mode(trained, vit):
    assert trained.clt.config.teacher == vit.identity()
    assert trained.clt.config.teacher.model == "tiny"
    assert trained.config.teacher is None
    assert not trained.clt.training


@pytest.mark.parametrize(
    "sparsifier", [ReLUTopK(k=4), AbsTopK(k=4), JumpReLU()], ids=lambda s: s.name
)
def test_the_first_record_is_that_of_the_initial_clt(sparsifier, fit, vit, data):
    config = CLTConfig(4, 16, 24, sparsifier)
    _, records = fit(config, epochs=1, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clt = CrossLayerTranscoder(config)
    found = capture(vit, data.images)
    x, y = (4.0 * v / v.norm(dim=-1).mean((1, 2))[:, None, None, None] for v in (found.x, found.y))
    with torch.no_grad():
        codes = clt.encode(x)
        y_hat = clt.decode(codes)
    z = codes.to_dense()
    expected = {
        "loss": float(((y_hat - y) ** 2).sum()) / ALL,
        "fvu": fvu(y_hat.flatten(1, 2), y.flatten(1, 2)),
        "fvu_cls": fvu(y_hat[:, :, 0], y[:, :, 0]),
        "fvu_patch": fvu(y_hat[:, :, 1:].flatten(1, 2), y[:, :, 1:].flatten(1, 2)),
        "l0": float((z != 0).sum()) / (4 * ALL),
        "dead": float(((z != 0).sum((1, 2)) == 0).float().mean()),
    }
    assert {name: records[0][name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_records_have_the_documented_keys_and_are_finite(fit):
    _, records = fit(epochs=7, log_every=3)
    assert [r["step"] for r in records] == [3, 6, 7]
    assert [r["epoch"] for r in records] == [2, 5, 6]
    for record in records:
        assert set(record) == LOG_KEYS
        assert record["backend"] in ("dense", "sparse")
        numbers = [value for value in record.values() if isinstance(value, float | int)]
        assert all(math.isfinite(value) for value in numbers)
        assert record["aux"] is record["sparsity"] is None
        for name in ("loss", "l0", "dead"):
            total = record[name] * (1 if name == "loss" else 4)
            assert sum(record[f"{name}_by_layer"]) == pytest.approx(total, rel=1e-5)
        assert sum(record["waits"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sparsifier", "sparse"),
    [(ReLUTopK(k=4), "sparse"), (JumpReLU(bandwidth=0.02), "sparse"), (JumpReLU(), "banded")],
)
def test_every_back_end_trains_the_same_clt(fit, sparsifier, sparse):
    found = {}
    for backend, name in (("dense", "dense"), ("sparse", sparse)):
        clt, records = fit(replace(SMALL, sparsifier=sparsifier), epochs=2, backend=backend)
        assert {record["backend"] for record in records} == {name}
        found[backend] = clt
    for name, tensor in found["dense"].state_dict().items():
        torch.testing.assert_close(found["sparse"].state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_context_names_the_back_end_that_was_chosen():
    settings = resolved(TrainConfig(), SMALL, "cpu")
    assert as_context(SMALL, settings)["backend"] == "sparse"
    assert as_context(SMALL, resolved(TrainConfig(backend="dense"), SMALL, "cpu"))["backend"] == (
        "dense"
    )
    assert (settings.shards, settings.workers) == (1, 0)


def test_the_seed_decides_the_result(fit):
    (first, _), (again, _), (other, _) = (fit(batch_size=96, seed=s) for s in (0, 0, 1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert not torch.equal(other.state_dict()[name], tensor)


def test_the_seed_decides_the_order_of_images_which_changes_every_epoch(vit, data):
    class Watched(TensorImages):
        def batch(self, rows):
            visits.append(tuple(rows))
            return super().batch(rows)

    orders = []
    for seed in (0, 0, 1):
        visits: list[tuple[int, ...]] = []
        settings = TrainConfig(epochs=2, batch_size=ALL, seed=seed)
        train(vit, Watched(data.images), SMALL, settings, progress=False)
        orders.append(visits[-2:])
    assert orders[0] == orders[1] != orders[2]
    assert len({*orders[0], *orders[2]}) == 4
    assert all(sorted(order) == list(range(N_IMAGES)) for order in orders[0])


def test_training_does_not_depend_on_the_global_seed_nor_change_it(fit):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = torch.get_rng_state()
        first, _ = fit(epochs=1)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(12)
        second, _ = fit(epochs=1)
    assert torch.equal(first.W_enc[0], second.W_enc[0])


def test_training_leaves_the_vit_alone(tiny_vit, data):
    before = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
    tiny_vit.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 0)
    expected = tiny_vit(data.images[:2])
    points = list(tiny_vit.hook_dict)
    train(tiny_vit, data, SMALL, TrainConfig(epochs=1), progress=False)
    assert list(tiny_vit.hook_dict) == points
    attached = [name for name, point in tiny_vit.hook_dict.items() if point.fwd_hooks]
    assert attached == ["blocks.1.hook_mlp_out"]
    assert torch.equal(tiny_vit(data.images[:2]), expected)
    for name, tensor in tiny_vit.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and not p.requires_grad for p in tiny_vit.parameters())


def test_learning_rate_rises_stays_and_falls(fit):
    _, records = fit(epochs=60, lr=2e-3)
    rates = [r["lr"] for r in records]
    assert 0 < rates[0] < 2e-3
    assert max(rates) == rates[3] == pytest.approx(2e-3)
    assert rates[5:46] == pytest.approx([2e-3] * 41)
    falls = [a - b for a, b in pairwise(rates[49:])]
    assert falls == pytest.approx([2e-3 / 12] * 10)
    assert rates[-1] <= 2e-3 / 12 * 1.001


def test_warm_up_steps_and_decay_share_are_obeyed(fit):
    _, records = fit(epochs=60, lr=2e-3, warmup_steps=0, decay_fraction=0.5)
    rates = [r["lr"] for r in records]
    assert rates[:28] == pytest.approx([2e-3] * 28)
    assert rates[44] == pytest.approx(1e-3, rel=0.07)


# ---- sparsity ---------------------------------------------------------------------------------


def test_an_l0_target_steers_jumprelu(fit):
    config = CLTConfig(4, 16, 64, JumpReLU())
    low, high, free = (
        fit(config, JumpReLUTraining(l0=l0, sparsity=0.3), epochs=60)[1] for l0 in (3.0, 15.0, None)
    )
    assert free[0]["l0"] == low[0]["l0"] == high[0]["l0"] > 25
    assert abs(low[-1]["l0"] - 3) < abs(free[-1]["l0"] - 3)
    assert low[-1]["l0"] < 6 < high[-1]["l0"] < 20
    for target, records in ((3, low), (15, high)):
        for before, after in pairwise(records):
            assert (after["sparsity"] > before["sparsity"]) == (before["l0"] > target)


def test_without_a_target_lambda_rises_in_a_line(fit):
    _, records = fit(CLTConfig(4, 16, 24, JumpReLU()), JumpReLUTraining(sparsity=0.4), epochs=8)
    assert [r["sparsity"] for r in records] == pytest.approx([0.05 * i for i in range(8)])


def test_more_sparsity_gives_a_lower_l0(fit):
    config = CLTConfig(4, 16, 64, JumpReLU())
    l0 = [fit(config, JumpReLUTraining(sparsity=s), epochs=15)[1][-1]["l0"] for s in (0.0, 5.0)]
    assert l0[1] < 0.7 * l0[0]


def test_a_larger_scale_counts_small_codes_as_large_ones(fit):
    config = CLTConfig(4, 16, 24, JumpReLU())
    options = [JumpReLUTraining(sparsity=5.0, sparsity_scale=c) for c in (0.0, 4.0)]
    l0 = [fit(config, each, epochs=15)[1][-1]["l0"] for each in options]
    assert l0[1] < l0[0]


# ---- loss -------------------------------------------------------------------------------------


def test_cls_weight_weighs_cls_rows(fit):
    loss = {w: fit(epochs=1, cls_weight=w)[1][0]["loss"] for w in (1.0, 6.0, 1e9)}
    cls, patches = N_IMAGES, ALL - N_IMAGES
    per_cls = loss[1e9]
    per_patch = (loss[1.0] * ALL - per_cls * cls) / patches
    expected = (per_patch * patches + 6 * per_cls * cls) / (patches + 6 * cls)
    assert loss[6.0] == pytest.approx(expected, rel=1e-4)
    assert abs(loss[6.0] - loss[1.0]) > 0.01 * loss[1.0]


def test_balance_multiplies_the_errors_of_cls_rows_alone(fit, vit, data):
    one, far = (
        torch.tensor(fit(epochs=1, cls_weight=w)[1][0]["loss_by_layer"]) for w in (1.0, 1e9)
    )
    cls = N_IMAGES
    y = capture(vit, data.batch(range(N_IMAGES))[0]).y
    spread = [
        (rows - rows.mean((1, 2), keepdim=True)).square().sum(-1).mean((1, 2))
        for rows in (y[:, :, 1:], y[:, :, :1])
    ]
    found = torch.tensor(fit(epochs=1, cls_balance=True)[1][0]["loss_by_layer"])
    expected = (one * ALL - far * cls + spread[0] / spread[1] * far * cls) / ALL
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found - one).abs().min() > 0.01 * float(one.min())


# ---- activations ------------------------------------------------------------------------------


def test_capture_gives_what_the_mlps_read_and_write(vit, images):
    found = capture(vit, images)
    _, cache = vit.run_with_cache(images)
    assert found.x.shape == found.y.shape == (4, 6, N_TOKENS, 16)
    for l in range(4):
        assert torch.equal(found.x[l], cache[f"blocks.{l}.ln2.hook_out"])
        assert torch.equal(found.y[l], cache[f"blocks.{l}.hook_mlp_out"])
        assert torch.equal(vit.blocks[l].mlp(found.x[l]), found.y[l])


def test_capture_is_clean_whatever_hooks_are_attached(vit, images):
    clean = capture(vit, images)
    with vit.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]):
        hooked = capture(vit, images)
    assert torch.equal(hooked.x, clean.x)
    assert torch.equal(hooked.y, clean.y)


@pytest.mark.parametrize(
    ("place", "hook"),
    [("ln_2", r"blocks\.0\.ln2\.hook_out"), ("mlp.c_proj", r"blocks\.3\.hook_mlp_out")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_capture_names_the_hook_that_is_not_finite(place, hook, value, tiny_vit, images):
    block = tiny_vit.blocks[0 if place == "ln_2" else 3].native
    block.get_submodule(place).bias.data[0] = value
    with pytest.raises(InputError, match=f"{hook} holds NaN or infinite"):
        capture(tiny_vit, images)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16), (4, 12)])
def test_a_config_that_does_not_fit_is_refused(shape, vit, data):
    config = CLTConfig(*shape, 24, ReLUTopK(k=4))
    with pytest.raises(InputError, match="expected 4 layers of width 16"):
        train(vit, data, config, progress=False)


@pytest.mark.parametrize("sparsifier", [ReLUTopK(k=4), AbsTopK(k=4)], ids=lambda s: s.name)
def test_an_l0_target_is_refused_for_topk(sparsifier, vit, data):
    config = CLTConfig(4, 16, 24, sparsifier)
    how = TrainConfig(sparsity=JumpReLUTraining(l0=5.0))
    with pytest.raises(InputError, match="sparsity is a JumpReLUTraining; expected TopKTraining"):
        train(vit, data, config, how, progress=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -1e-3),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("epochs", 0),
        ("batch_size", 0),
        ("cls_weight", 0.0),
        ("buffer_batches", 0),
        ("log_every", 0),
        ("warmup_steps", -1),
        ("decay_fraction", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError, match=f"{field} is {value}; expected"):
        TrainConfig(**{field: value})


def test_a_loss_that_explodes_is_refused(fit):
    with pytest.raises(InputError, match="lower lr"):
        fit(lr=1e30, epochs=6)


def test_training_on_no_images_is_refused(vit):
    with pytest.raises(InputError, match="images is empty"):
        train(vit, TensorImages(torch.zeros(0, 3, 12, 12)), SMALL, progress=False)


def test_a_last_batch_without_variance_logs_null(tiny_vit: HookedViT):
    images = TensorImages(torch.randn(4, 3, 12, 12))
    records: list[dict] = []
    settings = TrainConfig(epochs=1, batch_size=13, log_every=1, norm_images=4)
    config = CLTConfig(tiny_vit.cfg.n_layers, tiny_vit.cfg.d_model, 24, ReLUTopK(k=4))
    train(tiny_vit, images, config, settings, on_log=records.append, progress=False)
    records = steps(records)
    # 40 tokens in batches of 13 leave a last one of a single row
    assert records[-1]["fvu"] is None
    assert records[0]["fvu"] > 0
    assert records[-1]["lr"] > 0
