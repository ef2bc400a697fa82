"""CLTs on the hand-set model: it is the example's, and interventions change what is found on it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from vit_clt import JumpReLU, ReLUTopK
from vit_clt.analysis.auditing.controls import shortcut_example
from vit_clt.analysis.contributions.scores import contribution_scores
from vit_clt.hooks.activations import capture
from vit_clt.training.objective import Objective
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifier_options import JumpReLUTraining
from vit_clt.transcoder.train_config import TrainConfig


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import shortcut_training

    return shortcut_training


def test_the_vit_is_the_example_and_its_clts_are_told_apart(script: ModuleType) -> None:
    case, vit = shortcut_example(), script.shortcut_vit()
    clean, altered = capture(vit, script.inputs()), script.altered_inputs(vit)
    assert torch.equal(clean.x[:, :, 0], case.x)
    assert torch.equal(clean.y[:, :, 0], case.y)
    h = torch.tensor([0, 1, 0.25]).repeat_interleave(8)
    c = case.x[0, :, 2].repeat(3)
    assert torch.equal(altered.y[1].sum((1, 2)), (h + c - 1).relu())
    for name in ("deep", "shortcut"):
        clt = getattr(case, name)
        judged = script.judge(clt, clean, altered)
        assert judged["found"] == name
        assert judged["follows"] == (name == "deep")
        scores = contribution_scores(vit, clt, script.inputs(), tokens="all", kind="centred")
        assert judged["share"] == pytest.approx(float(scores.values[1, 1]))


@pytest.mark.parametrize("sparsifier", [ReLUTopK(1), ReLUTopK(2), JumpReLU()])
def test_side_by_side_each_trains_as_if_alone(
    script: ModuleType, sparsifier: ReLUTopK | JumpReLU
) -> None:
    x, y = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    clts = [CrossLayerTranscoder(CLTConfig(2, 5, 4, sparsifier), "dense") for _ in range(3)]
    penalised = isinstance(sparsifier, JumpReLU)
    settings = TrainConfig(sparsity=JumpReLUTraining()) if penalised else TrainConfig()
    together = script.SideBySide(clts)
    every_x, every_y = (rows.repeat_interleave(3, dim=1) for rows in (x, y))
    out = Objective(together, settings)(every_x, every_y, torch.ones(18), 6.0, 6, 0.1, None)
    out["total"].backward()
    total = 0.0
    for clt in clts:
        alone = Objective(clt, settings)(x, y, torch.ones(6), 6.0, 6, 0.1, None)["total"]
        alone.backward()
        total += float(alone.detach())
    assert float(out["total"].detach()) == pytest.approx(total, rel=1e-5)
    for name, parameter in together.named_parameters():
        each = [dict(clt.named_parameters())[name].grad for clt in clts]
        axis = -2 if name.startswith("W") else -1
        torch.testing.assert_close(parameter.grad, torch.cat(each, axis), rtol=1e-4, atol=1e-5)
    for clt, again in zip(clts, together.apart(), strict=True):
        assert torch.equal(clt(x), again(x))


def test_interventions_make_the_last_layer_follow_the_first(script: ModuleType) -> None:
    vit = script.shortcut_vit()
    clean, altered = capture(vit, script.inputs()), script.altered_inputs(vit)
    errors = []
    for share in (0.0, 0.5):
        arm = script.Arm(ReLUTopK(2), 4, "centred", share)
        clts = script.train_arm(arm, vit, range(8), 400)
        judged = [script.judge(clt, clean, altered)["fvu_altered"] for clt in clts]
        errors.append(torch.tensor(judged).median())
    # the medians of 16 draws are 0.35 and 0.007
    assert errors[0] > 0.1
    assert errors[1] < 0.05
