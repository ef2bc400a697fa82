"""A kept pass has the bits of the pass that was run, or it is run again."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from builders import tiny_clip, tiny_timm, tiny_transformers
from safetensors import safe_open
from safetensors.torch import load_file, save

from vit_clt.data import TensorImages
from vit_clt.data.kept_passes import keep_passes
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, capture
from vit_clt.hooks.pass_store import LEFT_FREE, PassStore, pass_bytes
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


def kept_files(folder: Path) -> list[Path]:
    return list(folder.glob("*/*.safetensors"))


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
    files = [path.stat().st_size for path in kept_files(tmp_path / "passes")]
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


def test_only_batches_in_turn_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = MODELS["clip"]()
    data = keep_passes(vit, pictures(vit, 9), tmp_path)
    for rows in ([0, 2, 5], [3], [5, 4], [1, 2, 3]):
        capture(vit, data.batch(rows)[0])
    assert not kept_files(tmp_path)
    capture(vit, data.batch(range(2, 5))[0])
    assert len(kept_files(tmp_path)) == 1
    runs = count_runs(vit, monkeypatch)
    spaced = data.evenly_spaced(5)
    assert (len(spaced), spaced.batch_size, spaced.name) == (5, 4, data.name)
    assert data.evenly_spaced(9) is not spaced
    for _ in range(2):
        for images, _ in (*data, *spaced):
            capture(vit, images)
    # the last batch of both is the last image
    assert runs == [4, 4, 1, 4]


def test_kept_images_are_those_given(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    given = pictures(vit, 5)
    given.left_out, given.remarks, given.split = 3, ["3 images have no box"], "val"
    kept = keep_passes(vit, given, tmp_path)
    for name in ("name", "split", "class_names", "batch_size", "left_out", "remarks", "transform"):
        assert getattr(kept, name) == getattr(given, name)
    assert kept.contents([4, 0]) == given.contents([4, 0])
    assert keep_passes(vit, given, tmp_path) is not kept


def test_a_study_that_alters_what_it_reads_alters_nothing_else(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    name = RESID_MID.format(l=2)
    first = vit.clean_cache(images, [name])[name].clone()
    vit.clean_cache(images, [name])[name].zero_()
    assert torch.equal(vit.clean_cache(images, [name])[name], first)


def test_what_is_not_of_the_bits_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    capture(vit, images)
    runs = count_runs(vit, monkeypatch)
    vit.clean_cache(images, ["blocks.1.hook_attn_out"])
    with torch.autocast("cpu", torch.bfloat16):
        vit.clean_cache(images, [HOOK_IN.format(l=0)])
    vit.run_clean(images.clone().requires_grad_(True), [HOOK_IN.format(l=0)])
    assert runs == [4, 4, 4]
    with torch.no_grad():
        vit.run_clean(images.clone().requires_grad_(True), [HOOK_IN.format(l=0)])
    assert runs == [4, 4, 4]
    vit.set_use_attn_pattern(True)
    vit.clean_cache(images, [HOOK_IN.format(l=0)])
    assert runs == [4, 4, 4, 4]
    with pytest.raises(InputError, match="no activation"):
        vit.clean_cache(images, ["blocks.0.nope"])


def test_a_copy_and_other_weights_have_no_store(tmp_path: Path) -> None:
    vit = MODELS["clip"]()
    keep_passes(vit, pictures(vit), tmp_path)
    assert copy.deepcopy(vit).pass_store is None
    vit.load_state_dict(vit.state_dict())
    assert vit.pass_store is None


def test_passes_of_other_weights_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        vit = HookedViT(tiny_clip(seed))
        images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
        runs = count_runs(vit, monkeypatch)
        found = [capture(vit, images).y for _ in range(2)]
        assert torch.equal(*found)
        assert runs == [4]
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("*/passes.json")]
    assert len({manifest["weights_sha256"] for manifest in manifests}) == 2
    assert len(kept_files(tmp_path)) == 2


@pytest.mark.parametrize("change", ["threads", "one_dnn", "matmul_precision"])
def test_another_arithmetic_is_another_pass(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    capture(vit, images)
    runs = count_runs(vit, monkeypatch)
    n_threads = torch.get_num_threads()
    with ExitStack() as stack:
        if change == "threads":
            stack.callback(torch.set_num_threads, n_threads)
            torch.set_num_threads(n_threads + 1)
        elif change == "one_dnn":
            stack.callback(torch._C._set_mkldnn_enabled, True)
            torch._C._set_mkldnn_enabled(False)
        else:
            stack.callback(torch.set_float32_matmul_precision, "highest")
            torch.set_float32_matmul_precision("high")
        capture(vit, images)
        assert runs == [4]
        vit.pass_store = None
        kept, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
        for _ in range(2):
            capture(vit, kept)
        assert runs == [4, 4]
    assert len(list(tmp_path.glob("*/passes.json"))) == 2


@pytest.mark.parametrize(
    "how", ["cut", "changed", "no safetensors", "no checksum", "no metadata", "other shapes"]
)
def test_a_damaged_file_is_run_and_written_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))
    expected = capture(vit, images)
    [path] = kept_files(tmp_path)
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-40],
        "changed": whole[:-1000] + bytes(1000),
        "no safetensors": b"{}",
        "no checksum": whole.replace(b'blocks.3.hook_mlp_out":"', b'blocks.3.hook_mlp_ou_":"', 1),
        "no metadata": save(load_file(path)),
        "other shapes": _reshaped(path),
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


def _reshaped(path: Path) -> bytes:
    with safe_open(path, "pt") as file:
        return save({n: t.mT.contiguous() for n, t in load_file(path).items()}, file.metadata())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt is a file"):
        PassStore(tmp_path / "mine.txt" / "passes", MODELS["clip"]())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_stops_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = MODELS["clip"]()
    data = keep_passes(vit, pictures(vit), tmp_path)
    usage = type("Usage", (), {"free": LEFT_FREE + 4 * pass_bytes(vit)})
    monkeypatch.setattr("vit_clt.hooks.pass_store.shutil.disk_usage", lambda path: usage)
    batches = [images for images, _ in data]
    capture(vit, batches[0])
    usage.free -= 1
    with pytest.warns(RuntimeWarning, match="no further passes of the ViT are kept") as warned:
        found = [capture(vit, images) for images in batches]
    assert len(warned) == 1
    assert len(kept_files(tmp_path)) == 1
    vit.pass_store = None
    assert all(torch.equal(f.y, capture(vit, b).y) for f, b in zip(found, batches, strict=True))


def test_a_pass_that_cannot_be_written_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = MODELS["clip"]()
    images, _ = keep_passes(vit, pictures(vit), tmp_path).batch(range(4))

    def refuse(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_clt.hooks.pass_store.save_file", refuse)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        capture(vit, images)
    assert [path.name for path in tmp_path.glob("*/*")] == ["passes.json"]
