"""A run is resumed on the images that it was started with, or not at all."""

from __future__ import annotations

import pytest
import torch

from vit_clt import CLTConfig, InputError, ReLUTopK, TrainConfig
from vit_clt.data.fingerprints import sampled_fingerprint
from vit_clt.data.images import TensorImages
from vit_clt.errors import Stopped
from vit_clt.training import trainer

N = 150
BETWEEN = 71
"""A row that is none of 64 evenly spaced ones."""


def run(vit, images, folder, resume: bool) -> None:
    train_config = TrainConfig(
        batch_size=500, epochs=1, norm_images=4, checkpoint_every=1, backend="dense"
    )
    trainer.train(
        vit,
        TensorImages(images),
        CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 8, ReLUTopK(2)),
        train_config,
        checkpoints=folder,
        resume=resume,
        should_stop=lambda: not resume,
        progress=False,
    )


def test_a_changed_image_is_refused_whichever_it_is(tiny_vit, tmp_path):
    images = torch.randn(N, 3, *tiny_vit.cfg.image_size)
    with pytest.raises(Stopped):
        run(tiny_vit, images, tmp_path, resume=False)
    changed = images.clone()
    changed[BETWEEN] += 1
    with pytest.raises(InputError, match=r"^data is .*; expected .*the run that is resumed"):
        run(tiny_vit, changed, tmp_path, resume=True)
    run(tiny_vit, images, tmp_path, resume=True)


def test_a_run_of_an_earlier_version_is_resumed_by_its_own_rule(tiny_vit, tmp_path, monkeypatch):
    images = torch.randn(N, 3, *tiny_vit.cfg.image_size)
    with monkeypatch.context() as earlier:
        earlier.setattr(trainer, "data_fingerprint", sampled_fingerprint)
        with pytest.raises(Stopped):
            run(tiny_vit, images, tmp_path, resume=False)
    with pytest.raises(InputError, match=r"^data is "):
        run(tiny_vit, images + 1, tmp_path, resume=True)
    run(tiny_vit, images, tmp_path, resume=True)
