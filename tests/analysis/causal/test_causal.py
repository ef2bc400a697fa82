"""Causal effects against whole passes in float64, and on models whose causes are known."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from assertions import tells_itself
from builders import noisy_digits, tiny_clip
from PIL import Image
from torch import Tensor

from vit_clt import InputError, ZeroShot, load_data
from vit_clt.analysis import causal_effects
from vit_clt.analysis.causal.effects import CausalEffects
from vit_clt.analysis.causal.targets import PATHS, READS
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.intervals import Interval, bootstrap_means, mean_intervals
from vit_clt.analysis.stats.names import layer_sets, layers_text
from vit_clt.cli import main
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, OverwrittenPass, token_rows

N, N_IMAGES = 4, 14
POINTS = {"mlp": "hook_mlp_out", "attn": "hook_attn_out"}


def some_images(n: int = N_IMAGES) -> TensorImages:
    data = TensorImages(torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(2)))
    data.batch_size = 5
    return data


def by_hand(
    vit: HookedViT, data: TensorImages, site: str, fill: str, ablated: str, tokens: str, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Total and direct effects on y and x from whole float64 passes of the model."""
    vit = HookedViT(copy.deepcopy(tiny_clip())).double()
    images, rows, scored = data.images.double(), token_rows(ablated), token_rows(tokens)
    _, clean = vit.run_with_cache(images)
    out = {l: clean[f"blocks.{l}.{POINTS[site]}"] for l in range(N)}
    donors = torch.tensor(donor_cycle(len(images), seed))
    value = {
        l: {"zero": 0 * o, "mean": o.mean(0).expand_as(o), "resample": o[donors]}[fill][:, rows]
        for l, o in out.items()
    }
    read = {"y": "blocks.{}.hook_mlp_out", "x": "blocks.{}.mlp.hook_in"}
    found = {(p, r): np.full((N, N), np.nan) for p in PATHS for r in READS}

    def effect(altered: Tensor, kept: Tensor) -> float:
        altered, kept = altered[:, scored], kept[:, scored]
        moved = (altered - kept).square().sum()
        return float(moved / (kept - kept.mean(0)).square().sum())

    for s in range(N):

        def overwrite(o: Tensor, hook: object, s: int = s) -> Tensor:
            o = o.clone()
            o[:, rows] = value[s]
            return o

        with vit.hooks(fwd_hooks=[(f"blocks.{s}.{POINTS[site]}", overwrite)]):
            _, total = vit.run_with_cache(images)
        for l in range(s + (site == "mlp"), N):
            mid = clean["resid_mid", l].clone()
            mid[:, rows] += value[s] - out[s][:, rows]
            x = vit.blocks[l].ln2(mid)
            direct = {"x": x, "y": vit.blocks[l].mlp(x)}
            for r, name in read.items():
                kept = clean[name.format(l)]
                found["total", r][l, s] = effect(total[name.format(l)], kept)
                found["direct", r][l, s] = effect(direct[r], kept)
    return found


@pytest.mark.parametrize("fill", ["mean", "resample", "zero"])
@pytest.mark.parametrize(
    ("site", "ablated", "tokens"),
    [
        ("mlp", "all", "cls"),
        ("mlp", "patch", "all"),
        ("attn", "all", "cls"),
        ("attn", "cls", "cls"),
    ],
)
@torch.no_grad()
def test_effects_on_targets_by_hand(
    tiny_vit: HookedViT, fill: str, site: str, ablated: str, tokens: str
) -> None:
    data = some_images()
    options = {"site": site, "fill": fill, "ablated": ablated, "tokens": tokens, "seed": 3}
    found = causal_effects(tiny_vit, data, **options)
    expected = by_hand(tiny_vit, data, **options)
    for path in PATHS:
        for read in READS:
            matrix = found.matrix(path, read)
            np.testing.assert_allclose(matrix, expected[path, read], rtol=1e-4)
            sources = np.arange(N) if site == "attn" else np.arange(N) + 1
            assert (np.isfinite(matrix) == (np.arange(N)[:, None] >= sources)).all()
    assert found.readings is None


def chain() -> HookedViT:
    """No attention; MLP_0 reads the image, MLP_1 only what MLP_0 wrote, MLP_2 only MLP_1's.

    Dimensions 0-1, 2-3, 4-5 of the stream are empty until MLP_0, MLP_1, MLP_2 write there: opposite
    values to the two, and their difference is what the next one reads, so that LayerNorm's mean
    cancels. The rest of the stream is large: LayerNorm's scale hardly moves.
    """
    clip = tiny_clip()
    visual = clip.visual
    with torch.no_grad():
        visual.ln_pre.weight[:6] = 0
        visual.ln_pre.bias[:6] = 0
        visual.ln_pre.bias[6:11], visual.ln_pre.bias[11:] = 8, -8
        for l, block in enumerate(visual.transformer.resblocks):
            block.attn.out_proj.weight.zero_()
            block.attn.out_proj.bias.zero_()
            reads, writes = block.mlp.c_fc.weight, block.mlp.c_proj.weight
            if l > 0:
                weight = 20 * reads[:, 0]
                reads.zero_()
                reads[:, 2 * l - 2], reads[:, 2 * l - 1] = weight, -weight
            weight = writes[0].clone()
            writes.zero_()
            block.mlp.c_proj.bias.zero_()
            if l < 3:
                writes[2 * l], writes[2 * l + 1] = weight, -weight
    return HookedViT(clip)


@pytest.mark.parametrize("fill", ["mean", "resample"])
def test_a_planted_chain_is_found(fill: str) -> None:
    effects = causal_effects(chain(), some_images(), tokens="all", fill=fill)
    total, direct = effects.matrix("total"), effects.matrix("direct")
    assert direct[1, 0] == pytest.approx(total[1, 0], rel=1e-4)
    assert direct[2, 1] == pytest.approx(total[2, 1], rel=1e-4)
    assert direct[1, 0] > 0.5
    assert direct[2, 1] > 0.5
    # MLP_0 reaches MLP_2 through MLP_1 alone
    assert total[2, 0] > 0.5
    assert direct[2, 0] < 0.01 * total[2, 0]
    # MLP_3 writes nothing: its output does not vary, and no effect on it is defined
    assert np.isnan(total[3]).all()
    assert np.isnan(effects.draws()[:, 3]).all()
    assert np.isfinite(effects.matrix("total", "x")[3, :3]).all()


@pytest.mark.parametrize("fill", ["mean", "resample", "zero"])
def test_only_the_mlp_that_writes_has_an_effect(fill: str) -> None:
    clip = tiny_clip()
    with torch.no_grad():
        for l in (0, 2, 3):
            clip.visual.transformer.resblocks[l].mlp.c_proj.weight.zero_()
            clip.visual.transformer.resblocks[l].mlp.c_proj.bias.zero_()
    effects = causal_effects(HookedViT(clip), some_images(), fill=fill)
    for path in PATHS:
        x = effects.matrix(path, "x")
        assert (x[2:, 1] > 1e-3).all()
        assert x[1, 0] == x[2, 0] == x[3, 0] == x[3, 2] == 0


# ---- the output ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(digits_test: ImageData) -> TensorImages:
    return noisy_digits(digits_test, 30, 16)


@pytest.fixture(scope="module")
def zs(digits_vit: HookedViT, noisy: TensorImages) -> ZeroShot:
    return ZeroShot(digits_vit, noisy.class_names, "single")


@pytest.fixture(scope="module")
def effects(digits_vit: HookedViT, noisy: TensorImages, zs: ZeroShot) -> CausalEffects:
    return causal_effects(digits_vit, noisy, zs, sets=[[2, 5], range(6, 8), [-1]], seed=1)


@torch.no_grad()
def test_readings_by_hand(
    digits_vit: HookedViT, noisy: TensorImages, zs: ZeroShot, effects: CausalEffects
) -> None:
    assert effects.layer_sets == [*((s,) for s in range(8)), (2, 5), (6, 7), tuple(range(8))]
    frame = effects.to_frame().set_index(["path", "layers", "target", "measure"])
    _, cache = digits_vit.run_with_cache(noisy.images)
    original = zs.read(digits_vit(noisy.images), noisy.labels)
    everything = frame.loc[("total", "0-7", "output", "loss"), "value"]
    for layers in effects.layer_sets:

        def at_mean(y: Tensor, hook: object) -> Tensor:
            return cache[hook.name].mean(0).expand_as(y)

        hooks = [(f"blocks.{l}.hook_mlp_out", at_mean) for l in layers]
        y = {l: cache["mlp_out", l] for l in layers}
        end = cache["resid_post", 7] + sum(v.mean(0) - v for v in y.values())
        altered = {
            "total": digits_vit.run_with_hooks(noisy.images, fwd_hooks=hooks),
            "direct": digits_vit(end, start_at_layer=8),
        }
        for path, embeddings in altered.items():
            outcome = zs.read(embeddings, noisy.labels)
            at = (path, layers_text(layers), "output")
            assert frame.loc[(*at, "top1"), "value"] == outcome.correct.double().mean()
            loss = frame.loc[(*at, "loss")]
            assert loss["value"] == pytest.approx(float(outcome.loss.mean()), rel=1e-4)
            assert loss["baseline"] == pytest.approx(float(original.loss.mean()), rel=1e-6)
            assert loss["floor"] == everything
            rise = (outcome.loss - original.loss).double().numpy()
            row = frame.loc[(*at, "delta_loss")]
            assert row["value"] == pytest.approx(rise.mean(), rel=1e-3, abs=1e-5)
            [mean] = mean_intervals(rise[:, None], 1)
            assert (row["low"], row["high"]) == pytest.approx(
                (mean.low, mean.high), rel=1e-3, abs=1e-5
            )
    rise, draws = effects.loss_rise("direct")
    assert rise.tolist() == [
        frame.loc[("direct", str(s), "output", "delta_loss"), "value"] for s in range(8)
    ]
    assert (
        Interval.of(rise[3], draws[:, 3]).high
        == frame.loc[("direct", "3", "output", "delta_loss"), "high"]
    )


def test_without_a_classifier_the_output_is_not_read(
    digits_vit: HookedViT, noisy: TensorImages, effects: CausalEffects, monkeypatch
) -> None:
    def unread(*_: object) -> Tensor:
        raise AssertionError("nothing reads this")

    monkeypatch.setattr(OverwrittenPass, "direct_on_output", unread)
    found = causal_effects(digits_vit, noisy, seed=1)
    assert found.readings is None
    for key in effects.on_targets:
        np.testing.assert_array_equal(found.matrix(*key), effects.matrix(*key))


@pytest.mark.parametrize("names", [[], ["--class-names"]])
def test_images_without_labels_have_effects_on_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    (tmp_path / "images/test").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (8, 8), 90 * i).save(tmp_path / f"images/test/{i}.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = [*names, str(tmp_path / "names.txt")] if names else []
    data = ["--data", f"imagefolder:{tmp_path}/images", *options]
    assert main(["causal", *data, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err


def test_the_table_of_targets(effects: CausalEffects) -> None:
    frame = effects.to_frame()
    on_targets = frame[frame["target"] != "output"]
    assert len(on_targets) == 2 * 2 * 28
    assert ((on_targets["low"] < on_targets["value"]) & (on_targets["value"] < on_targets["high"]))[
        on_targets["value"] > 0
    ].all()
    row = on_targets.query("path == 'total' and layers == '2' and target == '5' and measure == 'y'")
    sums = effects.on_targets["total", "y"]
    moved, spread = sums.moved[:, 5, 2], sums.spread[:, 5]
    assert row["value"].item() == pytest.approx(moved.sum() / spread.sum())
    both = bootstrap_means(np.stack([moved, spread], axis=1), 1)
    ratio = Interval.of(row["value"].item(), both[:, 0] / both[:, 1])
    assert (row["low"].item(), row["high"].item()) == pytest.approx((ratio.low, ratio.high))
    named = {m.name: m for m in effects.metrics()}
    assert len(named) == len(frame)
    assert named["total_2_to_5_y"].value == row["value"].item()
    assert named["total_2_to_5_y"].floor is None
    assert named["direct_6-7_to_output_loss"].floor == named["total_0-7_to_output_loss"].value


def test_batches_do_not_matter(digits_vit: HookedViT, noisy: TensorImages, zs: ZeroShot) -> None:
    whole = TensorImages(noisy.images, noisy.labels, noisy.class_names, noisy.name)
    options = {"fill": "resample", "sets": [], "seed": 5}
    a = causal_effects(digits_vit, noisy, zs, **options)
    b = causal_effects(digits_vit, whole, zs, **options)
    for key in a.on_targets:
        np.testing.assert_allclose(a.matrix(*key), b.matrix(*key), rtol=1e-4)
    np.testing.assert_allclose(a.readings.means["loss"], b.readings.means["loss"], rtol=1e-4)


def test_figure_holds_the_numbers(effects: CausalEffects) -> None:
    figure = effects.figure()
    text = figure.layout.title.text
    for part in ("noisy digits", "N = 30", "CLS rows", "all rows ablated", "mean", "seed 1"):
        assert part in text
    total, direct = figure.data[:2]
    shown = np.array(total.z, dtype=float)
    np.testing.assert_array_equal(shown, effects.matrix("total"))
    np.testing.assert_array_equal(np.array(direct.z, dtype=float), effects.matrix("direct"))
    bars = {b.name: b for b in figure.data if b.type == "bar"}
    rise, _ = effects.loss_rise()
    assert list(bars["total effect of one layer"].y) == pytest.approx(rise.tolist())
    lines = [t for t in figure.data if t.name == "total effect of layers s to the last"]
    # of the ranges s..7 only these were asked for
    assert [list(line.x) for line in lines] == [[0, 6, 7]] * 2


def test_effects_tell_themselves(
    effects: CausalEffects, tiny_vit: HookedViT, tmp_path: Path
) -> None:
    context = tells_itself(effects, tmp_path / "read")
    assert context["data"] == "noisy digits"
    assert (context["tokens"], context["trajectory"], context["l0"]) == ("cls", "teacher", None)
    assert (context["seed"], context["model"], context["clt"]) == (1, "digits", None)
    # without a classifier every effect on a target stands in the table
    alone = causal_effects(tiny_vit, some_images(3))
    assert tells_itself(alone, tmp_path / "targets")["readout"] is None
    assert len(alone.shown()) == len(alone.to_frame())
    assert "Sets of layers" not in alone.page()


# ---- names and choices --------------------------------------------------------------------------


def test_layer_sets() -> None:
    sets = layer_sets(4)
    assert len(sets) == len(set(sets)) == 4 + 3 + 2
    assert {(2,), (2, 3), (1, 2, 3), (0, 1, 2, 3), (0, 1), (0, 1, 2)} <= set(sets)
    assert set(layer_sets(4, pairs=True)) - set(sets) == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert [layers_text(s) for s in ([3], range(4, 8), (5, 1), (2, 1))] == [
        "3", "4-7", "1+5", "1-2",
    ]  # fmt: skip


@pytest.mark.parametrize("n", [2, 3, 50])
def test_donors_are_one_cycle_through_all_images(n: int) -> None:
    donors, at, seen = donor_cycle(n, 4), 0, []
    for _ in range(n):
        at = donors[at]
        seen.append(at)
    assert sorted(seen) == list(range(n))
    assert seen[-1] == 0
    assert donors == donor_cycle(n, 4)


def test_bad_input(tiny_vit: HookedViT, digits_vit: HookedViT, zs: ZeroShot, monkeypatch) -> None:
    data = some_images(3)
    with pytest.raises(InputError, match="data has 1 image"):
        causal_effects(tiny_vit, some_images(1))
    with pytest.raises(InputError, match="needs another one"):
        donor_cycle(1)
    with pytest.raises(InputError, match="sets is given without a classifier"):
        causal_effects(tiny_vit, data, sets=[[0]])
    with pytest.raises(InputError, match="layers contains 9"):
        causal_effects(digits_vit, data, zs, sets=[[9]])
    with pytest.raises(InputError, match="hold no readings"):
        causal_effects(tiny_vit, data).loss_rise()
    broken = some_images(3)
    broken.images[1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"blocks\.0\..* holds NaN"):
        causal_effects(tiny_vit, broken)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, wrong in (("fill", "foam"), ("site", "neuron"), ("tokens", "words")):
        with pytest.raises(InputError, match=f'{name} is "{wrong}"'):
            causal_effects(tiny_vit, data, **{name: wrong})
    with pytest.raises(InputError, match='tokens is "words"'):
        causal_effects(tiny_vit, data, ablated="words")


# ---- a real model whose layers are known to matter ---------------------------------------------


@pytest.mark.skipif("VIT_CLT_DATA" not in os.environ, reason="VIT_CLT_DATA names no data folder")
@pytest.mark.usefixtures("offline_datasets")
def test_the_layers_that_add() -> None:
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    vit = HookedViT.from_open_clip(f"local-dir:{root}/teachers/adding")
    data = load_data(f"parquet:{root}/data/adding/test.parquet", vit=vit, limit=150)
    zs = ZeroShot(vit, data.class_names, "ensemble")

    patch = causal_effects(vit, data, zs, ablated="patch", sets=[]).readings
    loss = {s: patch.difference(f"total {s}", "original", "loss") for s in range(8)}
    # layer 0, then layer 1, and no other alone
    assert loss[0].low > 2 > loss[1].high
    assert loss[1].low > 0
    assert max(loss[s].high for s in range(2, 8)) < loss[1]
    assert patch["total 0-7"].top1 < 0.2 < patch["total 0"].top1 + 0.1

    cls = causal_effects(vit, data, zs, ablated="cls", sets=[range(4, 8), range(6, 8)]).readings
    # on CLS rows no layer alone; 4 and 5 where 6 and 7 are gone too
    assert max(cls.difference(f"total {s}", "original", "loss") for s in range(8)) < 0.02
    assert cls.difference("total 4-7", "total 6-7", "loss").low > 0.05
    assert cls.difference("total 6-7", "original", "loss").low < 0.02
