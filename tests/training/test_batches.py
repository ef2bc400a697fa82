"""Token batches by value, exact resumption, and images or processes that fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from assertions import one_sentence
from builders import digits_parquet, tiny_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from vit_clt import CLTConfig, InputError, ReLUTopK, TrainConfig, load_data, train
from vit_clt.data.images import DecodedImages, ImageData, TensorImages, UnreadableImage
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.hooks.rows import TokenRows
from vit_clt.training import batches as module
from vit_clt.training.batches import (
    GroupActivations,
    Stopwatch,
    StoreReader,
    TokenBatch,
    ViTReader,
    epoch_batches,
)
from vit_clt.training.order import ShardPlan, in_groups
from vit_clt.training.store import ActivationStore

N, TOKENS = 14, 10
CPU = torch.device("cpu")
# newer Pythons warn of what torch's loader does
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@contextmanager
def passes_of(n_images: int) -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("order", "batches", "store"):
            stack.enter_context(patch(f"vit_clt.training.{name}.IMAGES_PER_PASS", n_images))
        yield


@pytest.fixture(autouse=True)
def _four_images_a_pass() -> Iterator[None]:
    with passes_of(4):
        yield


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return HookedViT(tiny_clip())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(N, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def with_broken(pixels: Tensor, *broken: int) -> ImageData:
    """Decoded as files are, in rows that cannot be decoded too."""

    # an image's only pixel says which row it is
    def fetch(rows: list[int]) -> tuple[list[Image.Image], list[int]]:
        return [Image.new("L", (1, 1), row) for row in rows], [0] * len(rows)

    def transform(image: Image.Image) -> Tensor:
        row = image.getpixel((0, 0))
        if row in broken:
            raise OSError("image file is truncated")
        return pixels[row]

    return DecodedImages(fetch, len(pixels), transform, [], "photos")


def planned(n_images=N, n_shards=1, n_tokens=TOKENS, batch_rows=24, buffer_rows=60, epoch=1):
    return [
        ShardPlan(3, epoch, shard, n_shards, range(n_images), n_tokens, batch_rows, buffer_rows)
        for shard in range(n_shards)
    ]


def recomputed(vit, data, workers=0, skip=False) -> ViTReader:
    return ViTReader(vit, data, workers, skip, Stopwatch())


def rows_of(n_tokens: int) -> TokenRows:
    """A class token and patches."""
    return TokenRows(True, 0, (1, n_tokens - 1))


def rows_by_batch(plan: ShardPlan) -> list[list[tuple[int, int]]]:
    """(row of the data set, token) of every row of every batch."""
    images = [image for group in plan.groups() for image in group]
    return [
        [(images[row // plan.n_tokens], row % plan.n_tokens) for row in f.rows[chosen].tolist()]
        for f in plan.loads()
        for chosen in f.batches
    ]


def assert_planned(batches, plans, direct: Activations, without=frozenset()) -> None:
    for batch, *parts in zip(batches, *map(rows_by_batch, plans), strict=True):
        kept = [row for part in parts for row in part if row[0] not in without]
        images, tokens = (torch.tensor(each) for each in zip(*kept, strict=True))
        torch.testing.assert_close(batch.x, direct.x[:, images, tokens], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.y, direct.y[:, images, tokens], rtol=1e-4, atol=1e-5)
        assert batch.group.tolist() == (tokens != 0).long().tolist()
        assert len(batch) == len(kept)


def assert_same_bits(found: Sequence[TokenBatch], expected: Sequence[TokenBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.group, other.group)


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shards", [1, 3])
def test_batches_hold_the_planned_rows_of_a_direct_capture(vit, pixels, n_shards):
    plans = planned(n_shards=n_shards)
    batches = list(
        epoch_batches(plans, recomputed(vit, TensorImages(pixels)), rows=rows_of(TOKENS))
    )
    assert len(batches) == plans[0].n_batches > 1
    assert_planned(batches, plans, capture(vit, pixels))


def test_rows_are_in_the_groups_of_the_model(vit, pixels):
    reader, plan = recomputed(vit, TensorImages(pixels)), planned()[0]
    rows = TokenRows(False, 2, (1, TOKENS - 2))
    for batch, named in zip(
        epoch_batches([plan], reader, rows=rows), rows_by_batch(plan), strict=True
    ):
        assert batch.group.tolist() == [2 if token < 2 else 1 for _, token in named]


class Named:
    """A reader whose values tell the row, the token and the company they were read in."""

    def __init__(self, n_tokens: int):
        self.n_tokens = n_tokens
        self.skipped: set[int] = set()
        self.groups: list[tuple[int, ...]] = []

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        for rows in groups:
            self.groups.append(tuple(rows))
            company = hash(tuple(rows)) % 1000
            x = torch.tensor(rows)[:, None] * self.n_tokens + torch.arange(self.n_tokens)
            x = x.float()[None, :, :, None]
            yield GroupActivations(
                x, torch.full_like(x, company), torch.ones(len(rows), dtype=torch.bool)
            )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    n_images=st.integers(3, 40),
    n_shards=st.integers(1, 3),
    n_tokens=st.integers(1, 4),
    batch_rows=st.integers(1, 30),
    buffer_rows=st.integers(1, 90),
    per_pass=st.integers(1, 7),
    share=st.floats(0, 1),
)
def test_skipping_batches_changes_none_of_the_rest(
    n_images, n_shards, n_tokens, batch_rows, buffer_rows, per_pass, share
):
    with passes_of(per_pass):
        plans = planned(n_images, n_shards, n_tokens, batch_rows, buffer_rows)
        whole = list(epoch_batches(plans, Named(n_tokens), rows=rows_of(n_tokens)))
        skip = round(share * len(whole))
        reader = Named(n_tokens)
        assert_same_bits(
            list(epoch_batches(plans, reader, rows=rows_of(n_tokens), skip=skip)), whole[skip:]
        )
        needed = {image for plan in plans for b in rows_by_batch(plan)[skip:] for image, _ in b}
        # a group is read once at most, and only where the load that goes on holds some of it
        assert len(set(reader.groups)) == len(reader.groups)
        read = {image for group in reader.groups for image in group}
        assert needed <= read
        if skip == len(whole):
            assert not read


def test_skipping_is_exact_on_a_real_vit(vit, pixels):
    plans = planned(n_shards=2, batch_rows=12, buffer_rows=30)
    reader = recomputed(vit, TensorImages(pixels))
    whole = list(epoch_batches(plans, reader, rows=rows_of(TOKENS)))
    assert len(whole) == 6
    for skip in range(7):
        rest = epoch_batches(plans, reader, rows=rows_of(TOKENS), skip=skip)
        assert_same_bits(list(rest), whole[skip:])


def test_groups_without_a_row_to_come_are_not_read_again():
    (plan,) = planned(n_images=40, n_tokens=2, batch_rows=8, buffer_rows=16)
    last = len(list(epoch_batches([plan], Named(2), rows=rows_of(2)))) - 1
    reader = Named(2)
    list(epoch_batches([plan], reader, rows=rows_of(2), skip=last))
    assert 1 <= len(reader.groups) <= 3 < len(plan.groups())


# ---- images that cannot be read -----------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=forks)])
def test_rows_of_unreadable_images_are_left_out_and_counted(vit, pixels, workers):
    broken = {0, 5, 6}
    plans = planned(n_shards=2)
    reader = recomputed(vit, with_broken(pixels, *broken), workers, skip=True)
    batches = list(epoch_batches(plans, reader, rows=rows_of(TOKENS)))
    assert reader.skipped == broken
    assert_planned(batches, plans, capture(vit, pixels), without=broken)
    assert sum(map(len, batches)) == (N - 3) * TOKENS


def test_a_batch_without_a_readable_image_is_empty(vit, pixels):
    reader = recomputed(vit, with_broken(pixels, *range(N)), skip=True)
    batches = list(epoch_batches(planned(), reader, rows=rows_of(TOKENS)))
    assert len(batches) == planned()[0].n_batches
    assert not any(map(len, batches))


def test_a_shard_without_a_readable_image_leaves_the_batch_to_the_others(vit, pixels):
    plans = planned(n_shards=2)
    broken = [image for group in plans[1].groups() for image in group]
    reader = recomputed(vit, with_broken(pixels, *broken), skip=True)
    batches = list(epoch_batches(plans, reader, rows=rows_of(TOKENS)))
    assert sum(map(len, batches)) == (N - len(broken)) * TOKENS


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=forks)])
def test_stopping_names_the_row(vit, pixels, workers):
    reader = recomputed(vit, with_broken(pixels, 9, 12), workers)
    with pytest.raises(UnreadableImage) as error:
        list(reader.read(in_groups(range(N))))
    assert "photos: row 9 holds an image that cannot be read" in one_sentence(error)
    assert not reader.skipped


# ---- worker processes -------------------------------------------------------------------------


@forks
def test_workers_give_the_same_batches_and_leave_random_numbers_alone(vit, pixels):
    data, plans = TensorImages(pixels), planned(n_shards=2)
    expected = list(epoch_batches(plans, recomputed(vit, data), rows=rows_of(TOKENS)))
    before = torch.get_rng_state()
    found = list(epoch_batches(plans, recomputed(vit, data, workers=2), rows=rows_of(TOKENS)))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_bits(found, expected)


class Failing(TensorImages):
    """Fails at row 9, in a worker."""

    def __init__(self, images: Tensor, how: str):
        super().__init__(images)
        self.how = how

    def batch(self, rows):
        if 9 in rows and get_worker_info() is not None:
            if self.how == "InputError":
                raise InputError("labels of photos hold None; expected class numbers.")
            if self.how == "RuntimeError":
                raise RuntimeError("stack expects each tensor to be equal size")
            time.sleep(0.5 if self.how == "killed later" else 0)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows)


@forks
@pytest.mark.parametrize("form", ["digits", "imagefolder:{}", "parquet:{}/test.parquet"])
def test_workers_of_every_start_method_give_the_same_images(monkeypatch, tmp_path, form):
    digits_parquet(tmp_path / "test.parquet")
    for i in range(4):
        (tmp_path / "test").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 50 * i).save(tmp_path / f"test/{i}.png")
    vit = HookedViT.from_open_clip("digits")
    data = load_data(form.format(tmp_path), vit=vit, limit=3)
    expected = data.batch([0, 1, 2])[0]
    monkeypatch.setattr(module, "_START_METHOD", "spawn")  # as on Windows
    loaded = [images for images, _ in module._loaded(data, [[0, 1], [2]], 1, False, False)]
    assert torch.equal(torch.cat(loaded), expected)


def test_an_input_error_of_a_worker_arrives_as_its_sentence(vit, pixels):
    reader = recomputed(vit, Failing(pixels, "InputError"), workers=2)
    with pytest.raises(InputError) as error:
        list(reader.read(in_groups(range(N))))
    assert one_sentence(error) == "labels of photos hold None; expected class numbers."


@forks
def test_a_killed_worker_is_named_as_such(vit, pixels):
    reader = recomputed(vit, Failing(pixels, "killed"), workers=2)
    with pytest.raises(InputError) as error:
        list(reader.read(in_groups(range(N))))
    assert "a process that decodes images was lost" in one_sentence(error)


@forks
def test_a_worker_killed_while_a_step_is_at_work_is_named_as_such(vit, pixels):
    # torch raises wherever the main process is when the signal arrives: mostly in a step
    def busy() -> bool:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            pass
        return False

    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 8, ReLUTopK(2))
    settings = TrainConfig(epochs=1, batch_size=24, buffer_batches=1, workers=2)
    with pytest.raises(InputError) as error:
        train(
            vit,
            Failing(pixels, "killed later"),
            config,
            settings,
            should_stop=busy,
            progress=False,
        )
    assert "a process that decodes images was lost" in one_sentence(error)


@forks
def test_a_fault_of_the_data_in_a_worker_is_not_called_a_lost_process(vit, pixels):
    reader = recomputed(vit, Failing(pixels, "RuntimeError"), workers=2)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        list(reader.read(in_groups(range(N))))


# ---- store ------------------------------------------------------------------------------------


def test_a_cache_gives_the_recomputed_values_in_bfloat16(vit, pixels, tmp_path):
    data = with_broken(pixels, 5)
    store = ActivationStore(tmp_path, vit, data, unreadable="skip", progress=False)
    groups = in_groups(range(N))  # those of the build: its kernels round alike
    reader, direct = StoreReader(store, CPU, Stopwatch()), recomputed(vit, data, skip=True)
    assert reader.skipped == {5}
    for found, true in zip(reader.read(groups), direct.read(groups), strict=True):
        assert torch.equal(found.x, true.x.bfloat16().float())
        assert torch.equal(found.y, true.y.bfloat16().float())
        assert torch.equal(found.readable, true.readable)
        assert found.x.dtype == torch.float32
    in_order = torch.cat([group.y for group in reader.read(groups)], 1)
    shuffled = torch.cat([group.y for group in reader.read([[8, 3], [5, 0, 13]])], 1)
    assert torch.equal(shuffled, in_order[:, [8, 3, 5, 0, 13]])


# ---- stopwatch ----------------------------------------------------------------------------------


def test_shares_of_time_sum_to_one_and_start_afresh(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    stopwatch = Stopwatch(since=100.0)
    now[0] = 103.0
    stopwatch.add("images", 102.0)
    stopwatch.add("images", 102.5)
    now[0] = 110.0
    stopwatch.add("vit", 108.0)
    assert stopwatch.shares() == pytest.approx({"images": 0.15, "vit": 0.2, "step": 0.65})
    now[0] = 112.0
    assert stopwatch.shares() == pytest.approx({"images": 0.0, "vit": 0.0, "step": 1.0})
    assert sum(stopwatch.shares().values()) == pytest.approx(1)  # no time at all has passed


def test_sources_book_their_time(vit, pixels, tmp_path):
    data = TensorImages(pixels)
    reader = recomputed(vit, data)
    list(reader.read(in_groups(range(N))))
    assert min(reader.stopwatch.seconds["images"], reader.stopwatch.seconds["vit"]) > 0
    cached = StoreReader(ActivationStore(tmp_path, vit, data, progress=False), CPU, Stopwatch())
    list(cached.read(in_groups(range(N))))
    assert cached.stopwatch.seconds["images"] > cached.stopwatch.seconds["vit"] == 0
    assert sum(cached.stopwatch.shares().values()) == pytest.approx(1)
