"""The study of a DINOv2-small: its images, its steps, and what it measures by depth."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from assertions import close
from builders import random_clt, tiny_transformers
from PIL import Image

from vit_clt.analysis import reconstruction
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("dinov2_images")


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("dinov2_depth")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("dinov2_small")
    monkeypatch.setattr(module, "OUT", tmp_path)
    return module


def encoded(size: tuple[int, int], level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


def data_folder(root: Path) -> Path:
    """A folder in the layout of VIT_CLT_DATA: five small images, and a photograph of 6 x 4."""
    (root / "data/cifar10").mkdir(parents=True)
    (root / "data/coco_tiny/train2017").mkdir(parents=True)
    cells = [{"bytes": encoded((4, 4), 10 * row), "path": None} for row in range(5)]
    pd.DataFrame({"img": cells, "label": range(5)}).to_parquet(root / "data/cifar10/train.parquet")
    photograph = Image.new("RGB", (6, 4))
    for x in range(6):
        for y in range(4):
            photograph.putpixel((x, y), (x, y, 0))
    photograph.save(root / "data/coco_tiny/train2017/000000000001.jpg", "PNG")
    return root


def test_training_images_are_the_first_of_one_set_and_squares_of_the_other(
    images: ModuleType, tmp_path: Path
) -> None:
    place = images.training_images(data_folder(tmp_path), tmp_path / "made", 3)
    files = {path.name: Image.open(path) for path in (place / "train").iterdir()}
    assert len(files) == 3 + 5
    assert [files[f"cifar_{row:05d}.jpg"].getpixel((0, 0))[0] for row in range(3)] == [0, 10, 20]
    corners = {
        name.removeprefix("coco_000000000001_").removesuffix(".png"): (
            image.size,
            image.getpixel((0, 0))[:2],
        )
        for name, image in files.items()
        if name.startswith("coco")
    }
    assert corners == {
        "middle": ((4, 4), (1, 0)),
        "top_left": ((2, 2), (0, 0)),
        "top_right": ((2, 2), (4, 0)),
        "bottom_left": ((2, 2), (0, 2)),
        "bottom_right": ((2, 2), (4, 2)),
    }


def test_a_folder_of_images_that_was_not_finished_is_made_anew(
    images: ModuleType, tmp_path: Path
) -> None:
    left = tmp_path / "made.part/train/left.jpg"
    left.parent.mkdir(parents=True)
    left.touch()
    place = images.training_images(data_folder(tmp_path), tmp_path / "made", 1)
    assert len(list((place / "train").iterdir())) == 1 + 5
    assert not left.exists()
    # a finished one stays
    assert images.training_images(tmp_path, place, 4) == place
    assert len(list((place / "train").iterdir())) == 1 + 5


def test_the_linked_model_takes_images_of_the_size_asked_for(
    images: ModuleType, tmp_path: Path
) -> None:
    model = tiny_transformers("Dinov2Model")
    model.save_pretrained(tmp_path / "own")
    for pixels, n_patches in ((16, 16), (24, 36), (16, 16)):
        place = images.linked_model(tmp_path / "own", tmp_path / "linked", pixels)
        vit = HookedViT.load(f"hf:{place}")
        batch = vit.preprocess(Image.new("RGB", (30, 20), (124, 116, 104)))[None]
        assert batch.shape == (1, 3, pixels, pixels)
        assert vit.cfg.n_tokens == 1 + n_patches
        assert torch.equal(vit(batch), model(batch).pooler_output)


def test_errors_by_depth_are_those_of_the_reconstruction(depth: ModuleType) -> None:
    vit = HookedViT(tiny_transformers("Dinov2Model"))
    clt = random_clt(vit)
    data = TensorImages(torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    data.batch_size = 3
    rows = depth.measure(vit, clt, data)
    frame = reconstruction(vit, clt, data).frame.set_index(["layer", "tokens"])
    for l, layer in enumerate(rows):
        for tokens, at in (("cls", slice(1)), ("patch", slice(1, None))):
            fvu = layer.error[:, at].sum() / layer.spread[:, at].sum()
            close(fvu, torch.tensor(frame.loc[(l, tokens), "fvu"]))
    # what LayerScale scales, from the stream itself: post - mid = gamma y
    _, cache = vit.run_clean(data.images, ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"])
    mid, post = cache.values()
    close(rows[1].added, (post - mid).norm(dim=-1).double(), 1e-5)
    close(rows[1].mid, mid.norm(dim=-1), 1e-5)
    close(rows[1].post, post.norm(dim=-1), 1e-5)


def test_one_scale_for_all_channels_scales_errors_alone(depth: ModuleType) -> None:
    model = tiny_transformers("Dinov2Model")
    for block in model.encoder.layer:
        block.layer_scale2.lambda1.fill_(2.0)
    vit = HookedViT(model)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for layer in depth.measure(vit, random_clt(vit), TensorImages(images)):
        torch.testing.assert_close(layer.scaled_error, 4 * layer.error)
        torch.testing.assert_close(layer.scaled_spread, 4 * layer.spread)


def test_the_diagonal_is_read_from_the_centred_scores(depth: ModuleType, tmp_path: Path) -> None:
    shares = {0: [1.0], 1: [0.4, 0.6], 2: [0.3, 0.2, 0.5]}
    cells = [
        {"target": l, "source": s, "score": share * sign, "tokens": tokens, "kind": kind}
        for tokens, sign in (("cls", 1), ("patch", -1))
        for kind, factor in (("centred", 1), ("projection", 9))
        for l, row in shares.items()
        for s, share in [(-1, 7.0), *((s, factor * share) for s, share in enumerate(row))]
    ]
    pd.DataFrame(cells).to_csv(tmp_path / "contributions.csv")
    assert depth.diagonal_table(tmp_path / "contributions.csv").splitlines()[4:] == [
        "| 0 | 1.00 |  |  | -1.00 |  |  |",
        "| 1 | 0.60 | 0.40 | 0.40 (layer 0) | -0.60 | -0.40 | -0.40 (layer 0) |",
        "| 2 | 0.50 | 0.20 | 0.30 (layer 0) | -0.50 | -0.20 | -0.20 (layer 1) |",
    ]


def test_one_order_of_sources_is_held_against_the_effects_of_every_target(
    depth: ModuleType, tmp_path: Path
) -> None:
    last = [0.4, 0.1, 0.2, 0.3, 0.0, 0.9]
    scores = [
        {"target": l, "source": s, "score": last[s] if l == 5 else -last[s]}
        for l in range(6)
        for s in range(l + 1)
    ]
    pd.DataFrame(scores).assign(kind="centred", tokens="cls").to_csv(tmp_path / "c.csv")
    # target 3 has the order of the last one; at target 4 the two largest have changed places
    effects = {3: [9.0, 1.0, 2.0], 4: [3.0, 1.0, 2.0, 9.0], 5: [0.0, 1.0, 2.0, 3.0, 4.0]}
    rows = [
        {"path": path, "layers": str(s), "target": str(l), "measure": "y", "value": sign * value}
        for path, sign in (("direct", 1), ("total", -1))
        for l, row in effects.items()
        for s, value in enumerate(row)
    ]
    rows += [{"path": "direct", "layers": "0-5", "target": "output", "measure": "loss", "value": 1}]
    pd.DataFrame(rows).to_csv(tmp_path / "e.csv")
    assert depth.fixed_order(tmp_path / "c.csv", tmp_path / "e.csv") == pytest.approx((1 + 0.8) / 2)


def test_every_step_reads_what_an_earlier_one_made(study: ModuleType, tmp_path: Path) -> None:
    steps = study.steps(Path("/data"))
    for number, args in enumerate(steps.values()):
        made = {str(tmp_path / name) for name in list(steps)[:number]}
        read = {arg for arg in args if Path(arg).parent == tmp_path and Path(arg).name in steps}
        assert read <= made
        assert args[0] in {"train", "audit"} or "--clt" in args
    assert {"reconstruct", "contributions", "cascade", "causal", "retrieve", "audit"} <= set(steps)


def test_a_step_runs_until_it_is_finished(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@" >> calls\necho "k is 0; expected 1." && exit 2\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(study.sys, "executable", str(stand_in))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    steps = {"first": ["reconstruct"], "second": ["train", "--resume"]}
    with pytest.raises(SystemExit, match=r"step first failed: k is 0; expected 1\."):
        study.run_steps(out, steps, "hf:vit")
    with pytest.raises(SystemExit, match="step second failed"):
        study.run_steps(out, steps, "hf:vit", ["second"])
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first == f"-m vit_clt reconstruct --model hf:vit --overwrite --out {out / 'first'}"
    assert "--overwrite" not in second
    for name in steps:
        (out / name).mkdir()
        (out / name / "metrics.json").touch()
    study.run_steps(out, steps, "hf:vit")
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
