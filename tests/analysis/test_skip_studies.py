"""What studies say of a CLT with a skip connection, against plain float64 recomputation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from assertions import close, one_sentence, tells_itself
from builders import noise, random_clt, tiny_clip
from oracles.frozen_oracle import Held
from oracles.score_oracle import numpy_score, numpy_terms
from torch import Tensor, nn

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK
from vit_clt.analysis import contribution_moments, direct_effects, keep_sources, score
from vit_clt.analysis.contributions.scores import ALL_SCORES
from vit_clt.analysis.contributions.study import score_study
from vit_clt.analysis.features.effects import contrast_effects, contrast_weights
from vit_clt.analysis.fit.reconstruction_study import reconstruction
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, overwrite_mlp_hooks
from vit_clt.readouts.base import Classifier
from vit_clt.readouts.zero_shot import ZeroShot

N = 4
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}


class Directions(Classifier):
    """Logits along two directions of the embedding."""

    name, class_names, device = "two directions", ["a", "b"], torch.device("cpu")

    def logits(self, embeddings: Tensor) -> Tensor:
        return embeddings @ noise(12, 2, seed=4).to(embeddings)


@dataclass(frozen=True)
class Case:
    vit: HookedViT
    plain: CrossLayerTranscoder
    clt: CrossLayerTranscoder
    """`plain` with a skip connection beside its codes."""
    data: TensorImages
    terms: list[np.ndarray]
    """By target, the terms of its sources, then that of the skip."""
    y: np.ndarray


@pytest.fixture(scope="module")
def case() -> Case:
    vit = HookedViT(tiny_clip())
    plain = random_clt(vit)
    clt = with_skip(plain, 0.3 * noise(N, 16, 16, seed=9).float())
    images = torch.randn(10, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    data = TensorImages(images, torch.arange(10) % 2, ["a", "b"])
    data.batch_size = 4
    terms, _, y = numpy_terms(vit, clt, images)
    names = [f"blocks.{l}.ln2.hook_out" for l in range(N)]
    x = vit.clean_cache(images, names)
    for l, name in enumerate(names):
        skip = x[name].double().numpy() @ clt.W_skip[l].double().numpy().T
        terms[l] = np.concatenate([terms[l], skip[None]])
    return Case(vit, plain, clt, data, terms, y)


def with_skip(clt: CrossLayerTranscoder, weights: Tensor) -> CrossLayerTranscoder:
    config = CLTConfig(N, 16, 24, ReLUTopK(k=5), skip=True)
    found = CrossLayerTranscoder(config)
    found.load_state_dict({"W_skip": weights, **clt.state_dict()})
    return found.eval().requires_grad_(False)


# ---- contributions ------------------------------------------------------------------------------


def test_scores_of_the_skip_equal_float64_recomputation_and_sums_stay(case: Case) -> None:
    moments = contribution_moments(case.vit, case.clt, case.data)
    for kind, reduce in ALL_SCORES:
        for tokens, rows in ROWS.items():
            found = score(moments, tokens=tokens, kind=kind, reduce=reduce)
            for l in range(N):
                b = case.clt.b_dec[l].double().numpy()
                terms, y = case.terms[l][:, :, rows], case.y[l][:, rows]
                shares, bias = numpy_score(terms, b, y, kind, reduce)
                expected = [*shares[:-1], *[np.nan] * (N - 1 - l), shares[-1], bias]
                np.testing.assert_allclose(found.values[l], expected, rtol=2e-5, atol=2e-6)
            if kind in ("projection", "centred", "norm"):
                counted = found.values if kind == "projection" else found.values[:, :-1]
                ones = torch.ones(N, dtype=torch.float64)
                torch.testing.assert_close(counted.nansum(1), ones, rtol=1e-10, atol=1e-10)


def test_the_skip_has_its_column_in_table_figure_and_json(case: Case, tmp_path) -> None:
    study = score_study(case.vit, {"plain": case.plain, "skip": case.clt}, case.data)
    tells_itself(study, tmp_path)
    scores = study.drawn("skip", "cls", "centred")
    assert scores.columns == ["0", "1", "2", "3", "skip", "bias"]
    assert (scores.low[:, 4] < scores.high[:, 4]).all()
    # numbers of the table, the figure, the metrics and the differences
    share = float(scores.skip[-1])
    assert abs(share) > 0.01
    table = study.shown().set_index("source layer")["skip"]
    assert table["skip, CLS rows, centred"] == f"{share:.3f}"
    assert table["plain, CLS rows, centred"] == "-"
    drawn = [trace for trace in study.figure().data if "skip" in trace.x]
    assert len(drawn) == 4
    assert all(trace.x[-2:] == ("skip", "bias") for trace in drawn)
    named = {metric.name: metric for metric in study.metrics()}
    assert named["skip_centred_cls_skip_to_3"].value == pytest.approx(share)
    difference = named["plain_less_skip_centred_cls_skip_to_3"]
    assert difference.value == pytest.approx(-share)
    assert (difference.low, difference.high) == pytest.approx(
        (-float(scores.high[3, 4]), -float(scores.low[3, 4]))
    )
    biases = [study.drawn(name, "cls", "projection").bias for name in ("plain", "skip")]
    matrix = study.difference.drawn("skip", "cls", "projection").matrix
    close(matrix[:, -1], biases[0] - biases[1])
    frame = study.difference.to_frame().query("target == 3 and kind == 'centred'")
    assert frame.query("tokens == 'cls'")["source"].tolist() == [0, 1, 2, 3, -2, -1]
    assert study.difference.shown().iloc[-2, 0] == "skip"


def test_a_plain_clt_has_no_such_column(case: Case) -> None:
    study = score_study(case.vit, {"plain": case.plain}, case.data)
    assert study.first.columns == ["0", "1", "2", "3", "bias"]
    assert list(study.shown()) == ["source layer", "0", "1", "2", "3"]
    assert not [metric for metric in study.metrics() if "skip" in metric.name]


# ---- reconstruction and ablation ----------------------------------------------------------------


def linear_vit() -> HookedViT:
    vit = HookedViT(tiny_clip())
    for block in vit.model.visual.transformer.resblocks:
        block.mlp.gelu = nn.Identity()
    return vit


def test_linear_mlps_are_rebuilt_by_the_skip_alone(case: Case) -> None:
    vit = linear_vit()
    mlps = [block.mlp for block in vit.model.visual.transformer.resblocks]
    weights = torch.stack([mlp.c_proj.weight @ mlp.c_fc.weight for mlp in mlps])
    clt = with_skip(case.plain, weights.detach())
    clt.b_enc.fill_(-1e4)  # every feature is silent
    for l, mlp in enumerate(mlps):
        clt.b_dec[l] = (mlp.c_proj.weight @ mlp.c_fc.bias + mlp.c_proj.bias).detach()
    fit = reconstruction(vit, clt, case.data).frame
    assert fit["fvu"].abs().max() < 1e-9
    assert fit["l0"].max() == 0
    assert fit["cross_layer"].abs().max() < 1e-6
    centred = score(contribution_moments(vit, clt, case.data), kind="centred", tokens="all")
    close(centred.skip, torch.ones(N, dtype=torch.float64), 1e-6)
    assert centred.matrix.nan_to_num().abs().max() < 1e-6


def test_the_cross_layer_share_is_that_of_earlier_features(case: Case) -> None:
    fit = reconstruction(case.vit, case.clt, case.data).frame
    moments = contribution_moments(case.vit, case.clt, case.data)
    for tokens in ("cls", "patch"):
        centred = score(moments, kind="centred", tokens=tokens)
        expected = 1 - centred.matrix.diagonal() - centred.skip
        found = torch.tensor(fit[fit["tokens"] == tokens]["cross_layer"].to_numpy())
        close(found, expected, 1e-5)


def test_every_set_of_sources_keeps_the_skip(case: Case) -> None:
    """Against the model with the target's rows overwritten by sums made by hand."""
    target = 2
    images, labels = case.data.batch(range(10))
    bias = case.clt.b_dec[target].double().numpy()
    for fill in ("zero", "mean"):
        for kept in ([], [0, 2], [0, 1, 2]):
            terms = case.terms[target]
            rows = bias + terms[-1] + terms[kept].sum(0)
            if fill == "mean":
                dropped = [s for s in range(3) if s not in kept]
                rows = rows + terms[dropped].mean(1).sum(0)
            hooks = overwrite_mlp_hooks([target], "all", {target: torch.from_numpy(rows).float()})
            embeddings = case.vit.run_with_hooks(images, fwd_hooks=hooks)
            expected = Directions().read(embeddings, labels).loss.mean()
            study = keep_sources(
                case.vit,
                case.clt,
                case.data,
                Directions(),
                sources=kept,
                target=target,
                tokens="all",
                fill=fill,
            )
            assert float(study.loss) == pytest.approx(float(expected), rel=1e-5)
            assert "the term of the skip connection stays in every set" in study.notes()[-1]
            if not kept and fill == "zero":
                assert float(study.bias_only.loss) == pytest.approx(float(expected), rel=1e-5)
            if len(kept) == 3:
                assert float(study.full.loss) == pytest.approx(float(expected), rel=1e-5)


# ---- effects ------------------------------------------------------------------------------------


def test_effects_run_through_the_skip(digits_test: ImageData) -> None:
    """Of every feature on a contrast, by autograd of another implementation, attention held."""
    vit = HookedViT.from_open_clip("digits").double()
    zs = ZeroShot(vit, digits_test.class_names, "single")
    n, d = vit.cfg.n_layers, vit.cfg.d_model
    plain = random_clt(vit).double()
    clt = CrossLayerTranscoder(CLTConfig(n, d, 24, ReLUTopK(k=5), skip=True)).double()
    clt.load_state_dict({"W_skip": 0.1 * noise(n, d, d, seed=9), **plain.state_dict()})
    clt.requires_grad_(False)
    images = digits_test.batch(range(3))[0].double()
    held, names = Held(vit, images), [f"blocks.{l}.ln2.hook_out" for l in range(n)]
    clean = vit.clean_cache(images, names)
    pushed = torch.zeros(n, *clean[names[0]].shape, dtype=torch.float64, requires_grad=True)
    y: list[Tensor] = []
    for l in range(n):
        x = held.run(held.patches, y, read=l, norms=False)
        y.append(held.y[l] + pushed[l] + (x - x.detach()) @ clt.W_skip[l].T)
    direction = contrast_weights(zs, 7).double()
    output = (held.run(held.patches, y, norms=False) @ direction).sum()
    [gradients] = torch.autograd.grad(output, pushed)
    found, _ = contrast_effects(vit, clt, TensorImages(images), zs, 7, "all", False)
    for s in range(n):
        z = clt.encode(clean[names[s]], layer=s).to_dense()
        at_z = sum(gradients[l] @ clt.decoder(s, l).T for l in range(s, n))
        expected = (z * at_z).sum((0, 1)) / 3
        np.testing.assert_allclose(found[s], expected, rtol=1e-8, atol=1e-10)
    without, _ = contrast_effects(vit, plain, TensorImages(images), zs, 7, "all", False)
    assert np.abs(found - without).max() > 1e-3 * np.abs(without).max()


def test_graphs_are_refused(case: Case) -> None:
    with pytest.raises(InputError, match="clt has a skip connection") as error:
        direct_effects(case.vit, case.clt, case.data.batch([0])[0], torch.ones(12))
    one_sentence(error)
