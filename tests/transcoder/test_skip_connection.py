"""A CLT with a skip connection: its equation and gradients by hand, folding, files, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from assertions import close, one_sentence, same_clt
from builders import noise, noisy_clt
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.interchange.circuit_tracer import check_exportable
from vit_clt.transcoder.model_card import model_card

L, D, F, T = 3, 4, 8, 7
CONFIG = CLTConfig(L, D, F, ReLUTopK(k=3), skip=True)


def by_hand(clt: CrossLayerTranscoder, x: Tensor) -> Tensor:
    """y^ token by token, from the public parameters."""
    z = []
    for s in range(L):
        a = x[s] @ clt.W_enc[s].T + clt.b_enc[s]
        if clt.log_theta is None:
            z.append(torch.where(a >= a.topk(3).values[:, -1:], a.relu(), 0.0))
        else:
            z.append(torch.where(a > clt.log_theta[s].exp(), a, 0.0))
    rows = []
    for l in range(L):
        sources = range(l + 1) if clt.config.cross_layer else [l]
        terms = sum(z[s] @ clt.W_dec[s][l - s] for s in sources)
        skip = torch.stack([clt.W_skip[l] @ token for token in x[l]])
        rows.append(clt.b_dec[l] + terms + skip)
    return torch.stack(rows)


@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_outputs_and_gradients_equal_those_by_hand(backend, cross_layer):
    clt = noisy_clt(replace(CONFIG, cross_layer=cross_layer), backend=backend)
    x, weights = noise(L, T, D, seed=5).requires_grad_(), noise(L, T, D, seed=6)
    found, expected = clt(x), by_hand(clt, x)
    close(found, expected)
    inputs = [x, *clt.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        close(mine, theirs)
    codes = clt.encode(x)
    for l in range(L):
        close(clt.decode(codes, target=l, x=x[l]), expected[l])
        terms = clt.contributions(codes, target=l).sum(0)
        close(terms + clt.b_dec[l] + clt.skip_term(x[l], l), expected[l])


def test_thresholds_do_not_touch_the_skip():
    clt, x = noisy_clt(replace(CONFIG, sparsifier=JumpReLU())), noise(L, T, D, seed=5)
    close(clt(x), by_hand(clt, x))


def test_rescaling_folds_normalisation_in():
    clt, x = noisy_clt(CONFIG), noise(L, T, D, seed=5)
    of_x, of_y = (noise(L, seed=s).exp() for s in (7, 8))
    expected = clt(x * of_x[:, None, None]) / of_y[:, None, None]
    clt.rescale_(of_x, of_y)
    close(clt(x), expected)


def test_it_starts_as_the_clt_without_a_skip_and_has_d_squared_more_a_layer():
    torch.manual_seed(0)
    plain = CrossLayerTranscoder(replace(CONFIG, skip=False))
    torch.manual_seed(0)
    clt, x = CrossLayerTranscoder(CONFIG), noise(L, T, D).float()
    assert plain.W_skip is None
    assert "W_skip" not in plain.state_dict()
    assert torch.equal(clt(x), plain(x))
    assert CONFIG.n_parameters() == sum(p.numel() for p in clt.parameters())
    assert CONFIG.n_parameters() == plain.config.n_parameters() + L * D * D
    clt(x).sum().backward()
    assert clt.W_skip.grad.any()


def test_saved_and_loaded(tmp_path):
    clt = noisy_clt(CONFIG).float()
    clt.save_pretrained(tmp_path)
    same_clt(CrossLayerTranscoder.from_pretrained(tmp_path), clt)
    card = (tmp_path / "README.md").read_text()
    assert "A linear map of x_l is added to the reconstruction of y_l." in card
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"skip": False}))
    with pytest.raises(InputError, match=r"W_skip is .*; config.json expects no such tensor"):
        CrossLayerTranscoder.from_pretrained(tmp_path)
    other = {"context": {"clt": replace(CONFIG, skip=False).to_json()}, "metrics": []}
    with pytest.raises(InputError, match="skip is False; expected True"):
        model_card(CONFIG, other)


def test_a_config_from_before_the_field_has_none(tmp_path):
    clt = noisy_clt(replace(CONFIG, skip=False)).float()
    clt.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("skip") is False
    (tmp_path / "config.json").write_text(json.dumps(values))
    same_clt(CrossLayerTranscoder.from_pretrained(tmp_path), clt)


def test_what_cannot_be_is_refused():
    clt, x = noisy_clt(CONFIG), noise(L, T, D)
    codes = clt.encode(x)
    refused = {
        "x is None; expected the MLP inputs": lambda: clt.decode(codes),
        r"x has shape \(3, 4\); expected \(7, 4\)": lambda: clt.decode(codes, 1, x[1, :3]),
        "clt has no skip connection": lambda: noisy_clt(replace(CONFIG, skip=False)).skip_term(
            x[0], 0
        ),
        "skip is True; circuit-tracer's": lambda: check_exportable(CONFIG),
    }
    for sentence, attempt in refused.items():
        with pytest.raises(InputError, match=sentence) as error:
            attempt()
        one_sentence(error)
