"""The script that trains the adding CLIP: what it draws, and that it goes on where it was."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vit_clt.data.digits import digits_arrays


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    module = importlib.import_module("train_adding_clip")
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(module, "report", lambda out, form: None)
    monkeypatch.setattr(module, "accuracy", lambda *args: 0.0)
    return module


def test_a_killed_training_goes_on_to_the_same_weights(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loss, seen = script.class_loss, []

    def killed_at_the_fourth(*args: object) -> torch.Tensor:
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return loss(*args)

    def run(name: str) -> None:
        where = ["--out", str(tmp_path / name), "--checkpoint", str(tmp_path / f"{name}.pt")]
        monkeypatch.setattr(sys, "argv", ["train", *where, "--steps", "5"])
        script.main()

    run("whole")
    monkeypatch.setattr(script, "class_loss", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (tmp_path / "killed").exists()
    run("killed")
    assert len(seen) == 4 + 3  # two steps lay in the checkpoint
    files = [tmp_path / name / "open_clip_model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_pairs_are_of_training_digits_and_small_ones_first(script: ModuleType) -> None:
    script.BATCH = 2000
    pairs = script.Pairs(seed=0)
    assert np.array_equal(pairs.digits.numpy(), digits_arrays("train")[0])
    images, even = pairs.batch(0, slope=0.0)
    assert images.shape == (2000, 3, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.bincount(even, minlength=10).min() > 150
    _, small = pairs.batch(0, slope=1.0)
    # sums of two geometric draws: P(0) = (1 - e^-1)^2 = 0.40
    assert small.eq(0).float().mean() == pytest.approx(0.40, abs=0.05)
    assert torch.equal(pairs.batch(3, slope=0.0)[0], pairs.batch(3, slope=0.0)[0])
