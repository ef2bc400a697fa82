"""Direct effects: sums to the logit, and each term by another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from assertions import tells_itself
from builders import random_clt, tiny_clip
from oracles.frozen_oracle import Held, double_clt, double_vit
from torch import Tensor

from vit_clt import AbsTopK, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import direct_effects
from vit_clt.analysis.graphs.effects import class_direction
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.hooks import FrozenPass, HookedViT
from vit_clt.readouts.zero_shot import ZeroShot

SPARSIFIERS = {"relu_topk": ReLUTopK(k=5), "abs_topk": AbsTopK(k=4), "jumprelu": JumpReLU(0.1)}


@pytest.fixture
def directions() -> Tensor:
    return torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", [*SPARSIFIERS, "per layer", "layer scale"])
def test_terms_sum_to_the_logit(kind: str, images: Tensor, directions: Tensor) -> None:
    vit = double_vit(**({"ls_init_value": 0.7} if kind == "layer scale" else {}))
    clt = double_clt(vit, SPARSIFIERS.get(kind), per_layer=kind == "per layer")
    two = images[:2].double()
    found = direct_effects(vit, clt, two, directions)
    logits = (F.normalize(vit(two), dim=-1) * directions).sum(-1)
    torch.testing.assert_close(found.logit, logits)
    frame = found.to_frame()
    sums = frame.groupby("image")["effect"].sum()
    assert sums.tolist() == pytest.approx(logits.tolist(), rel=1e-10, abs=1e-11)
    # the features one by one are the terms, whose decoding takes another path
    by_place = found.features.groupby(["image", "layer", "token"])["effect"].sum()
    written = found.terms.sum(1)
    for (i, s, t), effect in by_place.items():
        assert effect == pytest.approx(float(written[i, s, t]), rel=1e-9, abs=1e-12)
    active = [int(clt.encode(x).l0().sum()) for x in FrozenPass(vit, two).x.unbind(1)]
    assert found.features.groupby("image").size().tolist() == active
    torch.testing.assert_close(found.by_source, written.sum(2))
    if kind == "per layer":
        off_diagonal = ~torch.eye(4, dtype=torch.bool)
        assert not found.terms[:, off_diagonal].any()


def test_direct_effects_tell_themselves(images: Tensor, directions: Tensor, tmp_path: Path) -> None:
    vit = double_vit()
    clt = double_clt(vit)
    effects = direct_effects(vit, clt, images[:2].double(), directions)
    context = tells_itself(effects, tmp_path)
    assert (context["tokens"], context["norms"]) == ("all", "held")
    x = FrozenPass(vit, images[:2].double()).x
    codes = [clt.encode(x[s], layer=s).l0().double().mean() for s in range(vit.cfg.n_layers)]
    assert context["l0"] == pytest.approx(float(torch.stack(codes).mean()))
    parts = effects.summary().set_index("image")
    assert parts.loc[1, ["features", "errors", "patches", "bias"]].sum() == pytest.approx(
        float(effects.logit[1])
    )
    table = effects.to_frame()
    by_kind = table[table["image"] == 1].groupby("kind")["effect"].sum()
    assert by_kind["error"] == pytest.approx(parts.loc[1, "errors"])
    assert by_kind["source"] == pytest.approx(parts.loc[1, "features"])


def test_an_effect_is_what_is_lost_when_everything_else_is_held(
    images: Tensor, directions: Tensor
) -> None:
    vit = double_vit()
    clt, image = double_clt(vit), images[:1].double()
    held = Held(vit, image)
    found = direct_effects(vit, clt, image, directions[0])
    clean = held.run(held.patches, held.y) @ directions[0]
    for row in found.features.sample(12, random_state=0).itertuples():
        # decoders of this feature alone, taken from the MLP outputs of its row
        y = [each.clone() for each in held.y]
        for j, decoder in enumerate(clt.W_dec[row.layer]):
            y[row.layer + j][0, row.token] -= row.activation * decoder[row.feature]
        lost = clean - held.run(held.patches, y) @ directions[0]
        assert row.effect == pytest.approx(float(lost), rel=1e-8, abs=1e-11)
    for p in (0, 5):
        patches = held.patches.clone()
        patches[:, p] = 0
        lost = clean - held.run(patches, held.y) @ directions[0]
        assert float(found.patches[0, p]) == pytest.approx(float(lost), rel=1e-8, abs=1e-11)


def test_total_effects_are_autograds_of_the_linear_replacement(
    images: Tensor, directions: Tensor
) -> None:
    # a forward of its own, features linear where they are active, and autograd of it
    vit = double_vit()
    clt, image = double_clt(vit, AbsTopK(k=4)), images[:1].double()
    held, sources = Held(vit, image), Sources(vit, clt, image[0])
    errors = sources.errors.clone().requires_grad_()
    masks = [codes.to_dense() != 0 for codes in sources.codes]
    codes: list[Tensor] = []
    y: list[Tensor] = []
    for l in range(4):
        x = held.run(held.patches, [*y, *held.y[l:]], read=l)[0]
        codes.append((x @ clt.W_enc[l].T + clt.b_enc[l]) * masks[l])
        codes[l].requires_grad_()
        recon = clt.b_dec[l] + sum(codes[s] @ clt.W_dec[s][l - s] for s in range(l + 1))
        y.append((recon + errors[l])[None])
    logit = (held.run(held.patches, y) @ directions[0])[0]
    assert float(logit.detach()) == pytest.approx(float(sources.logit(directions[0])), rel=1e-10)
    (gradient,) = torch.autograd.grad(logit, [errors], retain_graph=True)
    readout = sources.total_readout(directions[0])
    torch.testing.assert_close(readout.y[:, 0], gradient, rtol=1e-9, atol=1e-12)
    by_feature = torch.autograd.grad(logit, codes)
    units = sources.effects(readout).features / sources.activation
    wanted = torch.stack(list(by_feature))[sources.layer, sources.token, sources.feature]
    torch.testing.assert_close(units, wanted, rtol=1e-9, atol=1e-12)
    # what is no feature sums to the logit, once features have been followed to what drives them
    parts = sources.effects(readout)
    leaves = parts.errors.sum() + parts.patches.sum() + parts.bias
    constant = clt.b_enc[sources.layer, sources.feature]
    torch.testing.assert_close(
        leaves + (units * constant).sum(), logit.detach(), rtol=1e-10, atol=1e-11
    )


def test_single_precision_is_close(tiny_vit: HookedViT, images: Tensor) -> None:
    found = direct_effects(tiny_vit, random_clt(tiny_vit), images[:2], torch.ones(12))
    sums = found.to_frame().groupby("image")["effect"].sum()
    assert sums.tolist() == pytest.approx(found.logit.tolist(), rel=1e-5, abs=1e-5)


def test_directions_of_classes(digits_vit: HookedViT) -> None:
    zs = ZeroShot(digits_vit, ["zero", "one"], "single")
    unit = F.normalize(
        torch.randn(1, zs.weights.shape[0], generator=torch.Generator().manual_seed(0)), dim=-1
    )
    logits = zs.logits(unit)[0]
    torch.testing.assert_close(unit[0] @ class_direction(zs, 1), logits[1])
    torch.testing.assert_close(unit[0] @ class_direction(zs, 1, 0), logits[1] - logits[0])
    with pytest.raises(InputError, match="target is class 2; expected one from 0 to 1"):
        class_direction(zs, 2)
    with pytest.raises(InputError, match="contrast is class -1"):
        class_direction(zs, 0, -1)
    with pytest.raises(InputError, match="the target itself"):
        class_direction(zs, 1, 1)


def test_wrong_arguments_are_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    with pytest.raises(InputError, match="one an image"):
        direct_effects(tiny_vit, clt, images, torch.zeros(2, 12))
    with pytest.raises(InputError, match="images is empty"):
        direct_effects(tiny_vit, clt, images[:0], torch.zeros(12))
    with pytest.raises(InputError, match="4 layers"):
        direct_effects(HookedViT(tiny_clip(layers=2)), clt, images, torch.zeros(12))
