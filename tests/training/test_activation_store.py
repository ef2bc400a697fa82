from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from assertions import one_sentence
from builders import tiny_clip
from oracles.run_train import forked
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vit_clt import InputError, progress
from vit_clt.data.fingerprints import sampled_fingerprint
from vit_clt.data.images import TensorImages, UnreadableImage
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training import store as module
from vit_clt.training.store import ActivationStore, store_bytes

PER_IMAGE = 2 * 2 * 4 * 10 * 16  # x and y, two bytes, 4 layers, 10 tokens, width 16
N = 7


class CountedImages(TensorImages):
    """Counts the images it is asked for; `broken` rows cannot be read."""

    def __init__(self, images, broken=(), **kwargs):
        super().__init__(images, **kwargs)
        self.broken = set(broken)
        self.asked: list[int] = []

    def batch(self, rows):
        for row in rows:
            if row in self.broken:
                raise UnreadableImage(f"row {row} holds an image that cannot be read: cut short.")
        self.asked.extend(rows)
        return super().batch(rows)


def pixels(n: int = N, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def build(folder: Path, vit: HookedViT, data=None, **kwargs) -> ActivationStore:
    return ActivationStore(folder, vit, data or TensorImages(pixels()), progress=False, **kwargs)


def expected(vit: HookedViT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a store of these images must hold, captured three at a time as the shards are."""
    found = [capture(vit, part) for part in images.split(3)]
    x, y = torch.cat([f.x for f in found], 1), torch.cat([f.y for f in found], 1)
    return x.to(torch.bfloat16).float(), y.to(torch.bfloat16).float()


def assert_right(cache: ActivationStore, vit: HookedViT, images=None) -> None:
    images = pixels() if images is None else images
    x, y = expected(vit, images)
    found = cache.read(range(len(images)))
    assert torch.equal(found.x, x)
    assert torch.equal(found.y, y)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> time and content of everything in the folder."""
    return {
        str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


@pytest.fixture(autouse=True)
def three_images_a_shard(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 3 * PER_IMAGE + 1)


SHARDS = [f"shard-{i:05d}.safetensors" for i in range(3)]  # 3 + 3 + 1 images


# ---- values ---------------------------------------------------------------------------------


def test_values_are_the_captured_ones_in_bfloat16_bit_for_bit(tiny_vit, tmp_path):
    cache = build(tmp_path / "a" / "cache", tiny_vit)
    assert_right(cache, tiny_vit)
    found = cache.read(range(N))
    assert found.x.dtype == found.y.dtype == torch.float32
    raw = capture(tiny_vit, pixels())
    for have, true in ((found.x, raw.x), (found.y, raw.y)):
        error = ((have - true) / true).abs().max()
        assert 2**-9 < error <= 2**-8 + 1e-4  # the last: capture in one pass, not three
    assert cache.unreadable == frozenset()


@pytest.mark.parametrize("rows", [[6, 0, 3], [2, 2, 5, 2], [4], [], range(5, 1, -1)])
def test_rows_are_read_in_the_order_asked_for(tiny_vit, tmp_path, rows):
    cache = build(tmp_path, tiny_vit)
    x, y = expected(tiny_vit, pixels())
    found = cache.read(rows)
    assert torch.equal(found.x, x[:, list(rows)])
    assert torch.equal(found.y, y[:, list(rows)])


@pytest.mark.parametrize("row", [-1, N])
def test_rows_that_do_not_exist_are_refused(tiny_vit, tmp_path, row):
    cache = build(tmp_path, tiny_vit)
    with pytest.raises(InputError) as error:
        cache.read([0, row])
    assert f"rows hold {row}; expected 0 to {N - 1}" in one_sentence(error)


def test_a_shard_larger_than_one_pass_is_right(tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 10 * PER_IMAGE)
    monkeypatch.setattr(module, "IMAGES_PER_PASS", 3)
    assert_right(build(tmp_path, tiny_vit), tiny_vit)
    assert len(list(tmp_path.glob("shard-*"))) == 1


def test_the_layout_on_disk(tiny_vit, tmp_path):
    cache = build(tmp_path, tiny_vit)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cache.json", *SHARDS]
    x, y = expected(tiny_vit, pixels())
    for i, name in enumerate(SHARDS):
        found = load_file(tmp_path / name)
        rows = range(3 * i, min(3 * i + 3, N))
        assert set(found) == {"x", "y"}
        assert found["x"].dtype == found["y"].dtype == torch.bfloat16
        assert torch.equal(found["x"].float(), x[:, rows].transpose(0, 1))
        assert torch.equal(found["y"].float(), y[:, rows].transpose(0, 1))
        header = os.stat(tmp_path / name).st_size - store_bytes(len(rows), 4, 10, 16)
        assert 0 < header < 1000
        # whoever may read the manifest may read the shards
        assert os.stat(tmp_path / name).st_mode == os.stat(tmp_path / "cache.json").st_mode
    manifest = json.loads((tmp_path / "cache.json").read_text())
    identity = tiny_vit.identity()
    assert manifest["weights_sha256"] == identity.weights_sha256
    assert (manifest["hook_in"], manifest["hook_out"]) == (identity.hook_in, identity.hook_out)
    assert (manifest["n_images"], manifest["images_per_shard"]) == (N, 3)
    assert f"{N} images of {PER_IMAGE / 1000:.3g} kB" in cache.description
    assert f"{PER_IMAGE * N / 1000:.3g} kB in all, in {tmp_path}" in cache.description
    assert "\n" not in cache.description


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(512, "512 bytes"), (34_816, "34.8 kB"), (999_600, "1 MB"), (2_400_000_000_000, "2.4 TB")],
)
def test_sizes_are_written_for_people(n_bytes, text):
    assert module._size(n_bytes) == text


def test_bytes_and_the_size_of_a_shard(tiny_vit, tmp_path, monkeypatch):
    assert store_bytes(1, 12, 197, 768) == 7_262_208
    assert store_bytes(N, 4, 10, 16) == N * PER_IMAGE
    monkeypatch.setattr(module, "SHARD_BYTES", PER_IMAGE - 1)
    build(tmp_path, tiny_vit)
    assert len(list(tmp_path.glob("shard-*"))) == N


# ---- opening again --------------------------------------------------------------------------


def test_a_whole_cache_is_opened_without_work(tiny_vit, tmp_path):
    build(tmp_path, tiny_vit)
    before = files(tmp_path)
    data = CountedImages(pixels(), name="from elsewhere")
    # the same weights under another name are the same teacher
    cache = build(tmp_path, HookedViT(tiny_clip(), model="renamed"), data)
    assert data.asked == list(range(N))  # the fingerprint alone
    assert files(tmp_path) == before
    assert_right(cache, tiny_vit)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    save_file({n: t[:, :3].contiguous() for n, t in load_file(path).items()}, path)


def other_cache(path: Path) -> None:
    # right in every shape, but nothing says whose it is
    save_file(load_file(path), path, metadata={"unreadable": "[]"})


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, other_shape, other_cache, flipped])
def test_a_damaged_shard_is_built_again(tiny_vit, tmp_path, damage):
    build(tmp_path, tiny_vit)
    before = files(tmp_path)
    damage(tmp_path / SHARDS[1])
    data = CountedImages(pixels())
    cache = build(tmp_path, tiny_vit, data)
    assert data.asked[N:] == [3, 4, 5]
    after = files(tmp_path)
    for name in ("cache.json", SHARDS[0], SHARDS[2]):
        assert after[name] == before[name]
    assert_right(cache, tiny_vit)


@pytest.mark.parametrize("place", range(20))
def test_one_flipped_bit_anywhere_is_mended(tiny_vit, tmp_path, place):
    build(tmp_path, tiny_vit)
    path = tmp_path / SHARDS[1]
    content = bytearray(path.read_bytes())
    content[place * len(content) // 20] ^= 1 << place % 8
    path.write_bytes(content)
    assert_right(build(tmp_path, tiny_vit), tiny_vit)


def test_a_changed_image_is_seen_whichever_it_is(tiny_vit, tmp_path):
    images = pixels(150)
    build(tmp_path, tiny_vit, TensorImages(images))
    images[71] += 1  # none of the 64 that a sample would take
    with pytest.raises(InputError, match="data_sha256"):
        build(tmp_path, tiny_vit, TensorImages(images))


def test_a_store_of_an_earlier_version_is_read_as_it_is(tiny_vit, tmp_path, monkeypatch):
    images = pixels(150)
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "fingerprint_as", lambda recorded, data: sampled_fingerprint(data))
        build(tmp_path, tiny_vit, TensorImages(images))
    for path in tmp_path.glob("shard-*"):  # shards without a checksum
        with safe_open(path, "pt") as file:
            metadata = {n: v for n, v in file.metadata().items() if n != "crc32"}
        save_file(load_file(path), path, metadata=metadata)
    before = files(tmp_path)
    assert_right(build(tmp_path, tiny_vit, TensorImages(images)), tiny_vit, images)
    assert files(tmp_path) == before
    with pytest.raises(InputError, match="data_sha256"):
        build(tmp_path, tiny_vit, TensorImages(images + 1))


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty])
@pytest.mark.parametrize("used_before", [True, False])
def test_a_shard_damaged_in_use_is_one_sentence(tiny_vit, tmp_path, damage, used_before):
    cache = build(tmp_path, tiny_vit)
    if used_before:
        cache.read([4])
    damage(tmp_path / SHARDS[1])
    with pytest.raises(InputError) as error:
        cache.read([0, 4])
    text = one_sentence(error)
    assert SHARDS[1] in text
    assert "running again" in text
    x, _ = expected(tiny_vit, pixels())
    assert torch.equal(cache.read([0, 6]).x, x[:, [0, 6]])  # the others still can be read


# ---- refusals -------------------------------------------------------------------------------


def gelu_vit() -> HookedViT:
    vit = HookedViT(tiny_clip())
    vit.cfg = replace(vit.cfg, activation="GELU")
    return vit


@pytest.mark.parametrize(
    ("vit", "data", "reason"),
    [
        (lambda: HookedViT(tiny_clip(seed=1)), pixels, "weights_sha256 is '"),
        (lambda: HookedViT(tiny_clip(layers=3)), pixels, "weights_sha256 is '"),
        (
            gelu_vit,
            pixels,
            "activation is 'GELU' (of the model); expected 'QuickGELU', as in activation store",
        ),
        (None, lambda: pixels(seed=6), "(of the images, preprocessed); expected '"),
        (None, lambda: pixels().flip(0), "(of the images, preprocessed); expected '"),
        (None, lambda: pixels() * 2, "(of the images, preprocessed); expected '"),
        (None, lambda: pixels(8), "n_images is 8; expected 7, as in activation store"),
    ],
    ids=["weights", "layers", "activation", "data", "order", "preprocessing", "rows"],
)
def test_anothers_cache_is_refused_and_left_alone(tiny_vit, tmp_path, vit, data, reason):
    build(tmp_path, tiny_vit)
    (tmp_path / SHARDS[0]).unlink()
    before = files(tmp_path)
    with pytest.raises(InputError) as error:
        build(tmp_path, vit() if vit else tiny_vit, TensorImages(data()))
    assert reason in one_sentence(error)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("{}", "format is 1; expected None"),
    ],
)
def test_a_broken_manifest_is_refused(tiny_vit, tmp_path, content, reason):
    build(tmp_path, tiny_vit)
    (tmp_path / "cache.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"cache\.json|activation store") as error:
        build(tmp_path, tiny_vit)
    assert reason in one_sentence(error)
    assert files(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "y"])
def test_activations_that_are_no_numbers_are_named(tiny_vit, tmp_path, name, value):
    build(tmp_path, tiny_vit)
    path = tmp_path / SHARDS[0]
    tensors = load_file(path)
    tensors[name][0, 1, 2, 3] = value
    with safe_open(path, "pt") as shard:
        metadata = shard.metadata()
    metadata.pop("crc32", None)  # a shard of before there was one
    save_file(tensors, path, metadata=metadata)
    store = build(tmp_path, tiny_vit)
    with pytest.raises(InputError, match=f"{name} holds NaN or infinite values") as error:
        store.read([1, 0])
    assert str(tmp_path) in one_sentence(error)
    store.read([1])


@pytest.mark.parametrize("listed", ["", "{}", "[7]", "[-1]", '["0"]', "[true]", "[" * 5000])
def test_a_shard_that_lists_no_images_is_built_again(tiny_vit, tmp_path, listed):
    build(tmp_path, tiny_vit)
    path = tmp_path / SHARDS[0]
    with safe_open(path, "pt") as shard:
        metadata = shard.metadata() | {"unreadable": listed}
    save_file(load_file(path), path, metadata=metadata)
    assert_right(build(tmp_path, tiny_vit, unreadable="skip"), tiny_vit)


def test_a_folder_of_other_things_is_refused(tiny_vit, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError) as error:
        build(tmp_path, tiny_vit)
    assert "holds thesis.tex and no cache.json" in one_sentence(error)
    with pytest.raises(InputError) as error:
        build(tmp_path / "thesis.tex" / "cache", tiny_vit)
    assert "thesis.tex is a file, expected a folder" in one_sentence(error)
    assert list(files(tmp_path)) == ["thesis.tex"]


def free(monkeypatch, n_bytes: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=n_bytes)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)


def test_a_full_disk_is_told_before_anything_is_written(tiny_vit, tmp_path, monkeypatch):
    free(monkeypatch, N * PER_IMAGE - 1)
    with pytest.raises(InputError) as error:
        build(tmp_path / "cache", tiny_vit)
    assert "needs 17.9 kB for 3 missing shards; found 17.9 kB free" in one_sentence(error)
    assert list(tmp_path.iterdir()) == []
    free(monkeypatch, N * PER_IMAGE)
    build(tmp_path / "cache", tiny_vit)


def test_only_missing_shards_need_room(tiny_vit, tmp_path, monkeypatch):
    build(tmp_path, tiny_vit)
    (tmp_path / SHARDS[2]).unlink()  # one image
    free(monkeypatch, PER_IMAGE - 1)
    with pytest.raises(InputError, match=r"needs 2\.56 kB for 1 missing shards"):
        build(tmp_path, tiny_vit)
    free(monkeypatch, PER_IMAGE)
    build(tmp_path, tiny_vit)
    free(monkeypatch, 0)
    build(tmp_path, tiny_vit)


# ---- writes that fail, kills, two builders --------------------------------------------------


def test_a_failed_write_leaves_nothing_partial(tiny_vit, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        if len(tensors["x"]) == 1:
            Path(path).write_bytes(b"some of it")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(InputError) as error:
            build(tmp_path, tiny_vit)
    assert f"{tmp_path} cannot be written" in one_sentence(error)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cache.json", *SHARDS[:2]]
    assert_right(build(tmp_path, tiny_vit), tiny_vit)


def test_a_write_the_system_refuses_leaves_nothing_partial(tiny_vit, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PER_IMAGE, hard))
    try:
        with pytest.raises(InputError) as error:
            build(tmp_path, tiny_vit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path} cannot be written" in one_sentence(error)
    assert [f.name for f in tmp_path.iterdir()] == ["cache.json"]
    assert_right(build(tmp_path, tiny_vit), tiny_vit)


def build_until_the_third_shard(folder: Path, said: Connection) -> None:
    """In a process of its own: stops, for ever, between writing a file and moving it."""

    def slow(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if len(list(folder.glob("shard-*"))) == 2:
            said.send("writing the third")
            time.sleep(600)

    module.SHARD_BYTES = 3 * PER_IMAGE + 1
    module.save_file = slow
    build(folder, HookedViT(tiny_clip()))


def test_a_killed_build_goes_on_with_the_next_shard(tiny_vit, tmp_path):
    listens, says = multiprocessing.Pipe(duplex=False)
    process = forked(build_until_the_third_shard, tmp_path, says)
    process.start()
    try:
        assert listens.poll(60)
        assert listens.recv() == "writing the third"
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [f.name for f in tmp_path.iterdir() if f.name.startswith(module.STAGING)]
    assert len(left) == 1
    before = files(tmp_path)
    assert SHARDS[2] not in before

    data = CountedImages(pixels())
    cache = build(tmp_path, tiny_vit, data)
    assert data.asked[N:] == [6]
    after = files(tmp_path)
    for name in ("cache.json", *SHARDS[:2]):
        assert after[name] == before[name]
    assert set(after) == {"cache.json", *SHARDS}
    assert_right(cache, tiny_vit)


def test_a_kill_before_the_manifest_leaves_a_folder_that_can_be_used(tiny_vit, tmp_path):
    (tmp_path / f"{module.STAGING}abc").mkdir()
    (tmp_path / f"{module.STAGING}abc" / "cache.json").write_text("{")
    assert_right(build(tmp_path, tiny_vit), tiny_vit)
    assert set(files(tmp_path)) == {"cache.json", *SHARDS}


def test_two_builders_at_once_do_no_harm(tiny_vit, tmp_path, monkeypatch):
    others: list[ActivationStore] = []

    def with_another(tensors, path, metadata):
        if not others:
            others.append(None)
            # a second process builds everything, and tidies, in the middle of this one's write
            others[0] = build(tmp_path, HookedViT(tiny_clip()))
            assert not Path(path).parent.exists()
        save_file(tensors, path, metadata)

    monkeypatch.setattr(module, "save_file", with_another)
    cache = build(tmp_path, tiny_vit)
    assert_right(cache, tiny_vit)
    assert_right(others[0], tiny_vit)
    assert set(files(tmp_path)) == {"cache.json", *SHARDS}


# ---- images that cannot be read -------------------------------------------------------------


def test_skipped_images_are_zero_and_named(tiny_vit, tmp_path):
    broken = [0, 4, 6]  # 6 is a shard of its own: nothing of it can be read
    data = CountedImages(pixels(), broken)
    for _ in range(2):  # built, then opened
        cache = build(tmp_path, tiny_vit, data, unreadable="skip")
        assert cache.unreadable == frozenset(broken)
        good = [row for row in range(N) if row not in broken]
        found, raw = cache.read(range(N)), capture(tiny_vit, pixels()[good])
        assert not found.x[:, broken].any()
        assert not found.y[:, broken].any()
        torch.testing.assert_close(found.x[:, good], raw.x, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(found.y[:, good], raw.y, rtol=2**-8, atol=1e-4)


def test_stop_stops_and_keeps_what_is_finished(tiny_vit, tmp_path):
    data = CountedImages(pixels(), [4])
    with pytest.raises(UnreadableImage, match="row 4 holds an image"):
        build(tmp_path, tiny_vit, data)
    assert set(files(tmp_path)) == {"cache.json", SHARDS[0]}
    before = files(tmp_path)
    assert build(tmp_path, tiny_vit, data, unreadable="skip").unreadable == {4}
    # "stop" does not take over what "skip" left out
    with pytest.raises(UnreadableImage, match="row 4 holds an image"):
        build(tmp_path, tiny_vit, data)
    after = files(tmp_path)
    assert set(after) == {"cache.json", *SHARDS}
    assert {name: after[name] for name in before} == before


# ---- the progress line ----------------------------------------------------------------------


def test_the_progress_line_counts_images_from_where_the_build_stands(
    tiny_vit, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "_draws_over", lambda stream: True)
    build(tmp_path, tiny_vit)
    assert capsys.readouterr().err == ""
    (tmp_path / SHARDS[1]).unlink()
    ActivationStore(tmp_path, tiny_vit, TensorImages(pixels()))
    shown = capsys.readouterr().err
    assert f"4/{N}" in shown
    assert f"{N}/{N}" in shown
    ActivationStore(tmp_path, tiny_vit, TensorImages(pixels()))
    assert capsys.readouterr().err == ""
