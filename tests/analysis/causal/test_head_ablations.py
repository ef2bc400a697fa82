"""Ablations of single heads, against whole float64 passes written out, and `causal --site head`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from assertions import one_sentence, tells_itself
from builders import random_clt
from oracles.frozen_oracle import double_vit
from torch import Tensor

from vit_clt import InputError
from vit_clt.analysis import head_ablations
from vit_clt.analysis.causal.head_ablations import random_turn
from vit_clt.analysis.causal.head_result import HEAD_PATHS
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.cli import main
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.readouts.base import Classifier

N_IMAGES = 7


class Columns(Classifier):
    """Logits of three classes from a matrix."""

    name = "columns"
    class_names = ["a", "b", "c"]  # noqa: RUF012
    device = torch.device("cpu")

    def logits(self, embeddings: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, 3 * 12, dtype=torch.float64).view(12, 3).sin()
        return F.normalize(embeddings.double(), dim=-1) @ weights * 9


def some_images() -> TensorImages:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(N_IMAGES, 3, 12, 12, dtype=torch.float64, generator=generator)
    data = TensorImages(images, torch.arange(N_IMAGES) % 3, class_names=Columns.class_names)
    data.batch_size = 4
    return data


def whole_passes(
    vit: HookedViT, images: Tensor, fill: str, layer: int, head: int, path: str = "total"
) -> Tensor:
    """Embeddings with one head overwritten by its weights' own columns, hook by hook."""
    seen: list[Tensor] = []
    attn: Any = vit.blocks[layer].native.attn
    x = vit.clean_cache(images, [f"blocks.{layer}.ln1.hook_out"])[f"blocks.{layer}.ln1.hook_out"]
    with attn.out_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        vit.blocks[layer].unfused_attention(x)
    columns = slice(8 * head, 8 * head + 8)
    z = seen[0][..., columns]
    donors = donor_cycle(len(images), 5)
    value = {"zero": 0 * z, "mean": z.mean(0).expand_as(z), "resample": z[donors]}[fill]
    moved = (value - z) @ attn.out_proj.weight[:, columns].T
    if path == "random":
        rng = np.random.default_rng((5, layer, head))
        q, r = np.linalg.qr(rng.standard_normal((16, 16)))
        moved = moved @ torch.from_numpy(q * np.sign(np.diag(r)))
    # only the final norm and the pooling see a direct change
    place = "blocks.3.hook_resid_post" if path == "direct" else f"blocks.{layer}.hook_attn_out"
    return vit.run_with_hooks(images, fwd_hooks=[(place, lambda out, hook: out + moved)])


@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_effects_are_those_of_whole_passes(fill: Any) -> None:
    vit, data, classifier = double_vit(), some_images(), Columns()
    found = head_ablations(vit, data, classifier, fill=fill, seed=5)
    images, labels = data.batch(range(N_IMAGES))
    for l, h in ((0, 1), (3, 0)):
        logits = classifier.logits(whole_passes(vit, images, fill, l, h))
        clean = classifier.logits(vit(images))
        loss = F.cross_entropy(logits, labels) - F.cross_entropy(clean, labels)
        assert found.changes("total", "loss")[l, h] == pytest.approx(float(loss), abs=1e-6)
        own = torch.arange(N_IMAGES)
        contrast = (logits - clean)[own, labels] - (logits - clean).mean(1)
        np.testing.assert_allclose(
            found.logit_changes("total")[:, 2 * l + h], contrast.numpy(), atol=1e-9
        )
        top1 = (logits.argmax(1) == labels).double().mean()
        assert found.readings[f"total {l}.{h}"].top1 == pytest.approx(float(top1))
        assert found.changes("total", "logit")[l, h] == pytest.approx(float(contrast.mean()))
        for path in ("direct", "random"):
            logits = classifier.logits(whole_passes(vit, images, fill, l, h, path))
            contrast = (logits - clean)[own, labels] - (logits - clean).mean(1)
            np.testing.assert_allclose(
                found.logit_changes(path)[:, 2 * l + h], contrast.numpy(), atol=1e-9
            )
    sizes = [np.abs(found.logit_changes(path)).mean() for path in HEAD_PATHS]
    assert min(sizes) > 1e-4
    frame = found.to_frame().query("measure == 'loss'")
    assert frame.query("path != 'total'")["floor"].isna().all()
    floor = frame.query("path == 'total'")["floor"].unique()
    assert floor.tolist() == [pytest.approx(found.readings["every head"].loss)]


def test_a_random_turn_keeps_sizes_and_means() -> None:
    turn = random_turn(12, (0, 1, 2))
    torch.testing.assert_close(turn @ turn.T, torch.eye(12, dtype=turn.dtype))
    assert torch.equal(turn, random_turn(12, (0, 1, 2)))
    assert not torch.allclose(turn, random_turn(12, (0, 1, 3)))


def test_batches_do_not_matter_and_a_study_tells_itself(tmp_path: Path) -> None:
    vit, data = double_vit(), some_images()
    found = head_ablations(vit, data, Columns())
    data.batch_size = 7
    at_once = head_ablations(vit, data, Columns())
    np.testing.assert_allclose(found.contrasts, at_once.contrasts, atol=1e-10)
    context = tells_itself(found, tmp_path)
    assert [context[key] for key in ("site", "fill", "ablated", "seed")] == [
        "head", "mean", "all", 0,
    ]  # fmt: skip
    frame = pd.read_csv(tmp_path / "head_ablations.csv")
    assert len(frame) == 3 * 8 * 5
    low, high = frame["low"], frame["high"]
    assert (low <= frame["value"] + 1e-12).all()
    assert (frame["value"] <= high + 1e-12).all()
    assert found.shown()["head"].tolist()[:2] == ["none (unaltered)", "every head (floor)"]


def test_wrong_arguments_are_refused() -> None:
    vit, data = double_vit(), some_images()
    with pytest.raises(InputError, match="register") as error:
        head_ablations(vit, data, Columns(), ablated="register")
    one_sentence(error)
    one = TensorImages(data.images[:1], torch.tensor([0]), class_names=Columns.class_names)
    with pytest.raises(InputError, match="has 1 image"):
        head_ablations(vit, one, Columns())
    bad = TensorImages(data.images, torch.full((N_IMAGES,), 3), class_names=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="labels"):
        head_ablations(vit, bad, Columns())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heads"
    args = ["causal", "--site", "head", "--limit", "6", "--fill", "resample", "--out", str(out)]
    assert main(args) == 0
    frame = pd.read_csv(out / "head_ablations.csv")
    assert set(frame["path"]) == set(HEAD_PATHS)
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["site"] == "head"
    assert document["context"]["fill"] == "resample"
    assert "every head (floor)" in capsys.readouterr().out
    page = (out / "head_ablations.html").read_text()
    assert "Single attention heads ablated" in page


def test_a_clt_is_refused_with_heads(
    digits_vit: HookedViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_clt(digits_vit).save_pretrained(tmp_path / "clt")
    args = ["causal", "--site", "head", "--clt", str(tmp_path / "clt")]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    assert "--clt is given with --site head" in capsys.readouterr().err
