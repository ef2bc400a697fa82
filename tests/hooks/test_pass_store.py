"""A kept pass has the bits of the pass that was run, or it is run again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from builders import tiny_clip, tiny_timm, tiny_transformers
from torch import Tensor

from vit_clt.data import TensorImages
from vit_clt.data.kept_passes import keep_passes
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, capture
from vit_clt.hooks.pass_store import PassStore, pass_bytes
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import ATTN_IN, BLOCK_POINTS, HOOK_IN, HOOK_OUT, RESID_MID

MODELS = {
    "clip": lambda: HookedViT(tiny_clip()),
    "layer scale": lambda: HookedViT(tiny_clip(ls_init_value=0.4)),
    "average pooling": lambda: HookedViT(tiny_clip(pool_type="avg")),
    "timm": lambda: HookedViT(tiny_timm("vit_small_patch14_reg4_dinov2")),
    "transformers": lambda: HookedViT(tiny_transformers("Dinov2Model")),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def vit(request: pytest.FixtureRequest) -> HookedViT:
    return request.param()


def pictures(vit: HookedViT, n: int = 10) -> TensorImages:
    generator = torch.Generator().manual_seed(1)
    data = TensorImages(torch.randn(n, 3, *vit.cfg.image_size, generator=generator))
    data.batch_size = 4
    return data


def count_runs(vit: HookedViT, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    runs: list[int] = []
    live = vit._run_clean
    monkeypatch.setattr(
        vit, "_run_clean", lambda images, names: runs.append(len(images)) or live(images, names)
    )
    return runs


def points(vit: HookedViT) -> list[str]:
    outside = [name for name in BLOCK_POINTS.values() if name != "attn.hook_pattern"]
    names = [f"blocks.{l}.{name}" for l in range(vit.cfg.n_layers) for name in outside]
    return [name for name in names if not name.endswith("hook_attn_out")]


def test_every_activation_is_read_bit_for_bit(
    vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(vit)
    expected = [vit.run_clean(images, points(vit)) for images, _ in data]
    runs = count_runs(vit, monkeypatch)
    kept = keep_passes(vit, data, tmp_path / "passes")
    for turn in range(2):
        for (images, _), (embeddings, cache) in zip(kept, expected, strict=True):
            found, read = vit.run_clean(images, points(vit))
            assert torch.equal(found, embeddings)
            assert all(torch.equal(read[name], cache[name]) for name in cache)
            assert all(read[name].stride() == cache[name].stride() for name in cache)
        assert runs == [4, 4, 2], f"turn {turn}"
    assert vit.pass_store is not None
    assert (vit.pass_store.n_run, vit.pass_store.n_read) == (10, 10)
    files = [path.stat().st_size for path in (tmp_path / "passes").glob("*.safetensors")]
    assert len(files) == 3
    assert 10 * pass_bytes(vit) <= sum(files) <= 10 * pass_bytes(vit) + 30_000


def test_another_process_and_another_study_read_what_is_there(
    vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(vit)
    [first] = [batch for batch in keep_passes(vit, data, tmp_path / "p")][:1]
    expected = capture(vit, first[0])
    vit.pass_store = None
    clean = CleanPass(vit, first[0], {RESID_MID: [1], ATTN_IN: [0, 2], HOOK_OUT: [2]})
    keep_passes(vit, data, tmp_path / "p")
    runs = count_runs(vit, monkeypatch)
    found = capture(vit, first[0])
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)
    again = CleanPass(vit, first[0], {RESID_MID: [1], ATTN_IN: [0, 2], HOOK_OUT: [2]})
    for point, layer in ((RESID_MID, 1), (ATTN_IN, 0), (ATTN_IN, 2), (HOOK_OUT, 2)):
        assert torch.equal(again.at(point, layer), clean.at(point, layer))
    assert torch.equal(again.embeddings, clean.embeddings)
    assert runs == []


def test_only_batches_in_turn_are_kept(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    data = keep_passes(vit, pictures(vit), tmp_path)
    for rows in ([0, 2, 5], [3], [5, 4]):
        capture(vit, data.batch(rows)[0])
    assert not list(tmp_path.glob("*.safetensors"))
    capture(vit, data.batch(range(2, 5))[0])
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_what_is_not_of_the_bits_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    capture(vit, images)
    runs = count_runs(vit, monkeypatch)
    vit.clean_cache(images, ["blocks.1.hook_attn_out"])
    with torch.autocast("cpu", torch.bfloat16):
        vit.clean_cache(images, [HOOK_IN.format(l=0)])
    vit.set_use_attn_pattern(True)
    vit.clean_cache(images, [HOOK_IN.format(l=0)])
    assert runs == [4, 4, 4]
    with pytest.raises(InputError, match="no activation"):
        vit.clean_cache(images, ["blocks.0.nope"])


def test_other_weights_have_no_store(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    keep_passes(vit, pictures(vit), tmp_path)
    assert copy.deepcopy(vit).pass_store is None
    vit.load_state_dict(vit.state_dict())
    assert vit.pass_store is None
    with pytest.raises(InputError, match=r"weights_sha256 is .* expected .* as in the passes kept"):
        keep_passes(HookedViT(tiny_clip(1)), pictures(vit), tmp_path)


@pytest.mark.parametrize("how", ["cut", "changed", "no safetensors", "no checksum"])
def test_a_damaged_file_is_run_and_written_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    expected = capture(vit, images)
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-40],
        "changed": whole[:-1000] + bytes(1000),
        "no safetensors": b"{}",
        "no checksum": whole.replace(b'blocks.3.hook_mlp_out":"', b'blocks.3.hook_mlp_ou_":"', 1),
    }[how]
    assert damaged != whole
    path.write_bytes(damaged)
    vit.pass_store = None
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    runs = count_runs(vit, monkeypatch)
    for _ in range(2):
        found = capture(vit, images)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.y, expected.y)
    assert runs == [4]
    assert path.stat().st_size == len(whole)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="which is no folder of passes"):
        PassStore(tmp_path, vit)
    with pytest.raises(InputError, match=r"mine\.txt is a file"):
        PassStore(tmp_path / "mine.txt" / "passes", vit)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_arithmetic_is_compared(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    keep_passes(vit, pictures(vit), tmp_path)
    manifest = json.loads((tmp_path / "passes.json").read_text())
    (tmp_path / "passes.json").write_text(json.dumps(manifest | {"torch": "1.0"}))
    vit.pass_store = None
    with pytest.raises(InputError, match=r"torch is .* expected '1\.0'"):
        keep_passes(vit, pictures(vit), tmp_path)


def test_room_is_checked_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    vit = MODELS["clip"]()
    free = 3 * pass_bytes(vit)
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("vit_clt.hooks.pass_store.shutil.disk_usage", lambda path: usage)
    keep_passes(vit, pictures(vit, 3), tmp_path)
    with pytest.raises(InputError, match=r"cache is .* passes of 4 images take .* are free"):
        keep_passes(vit, pictures(vit, 4), tmp_path)
