"""Fixtures that tests of several rooms share. Nothing here is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import no_type_check

# before torch is imported: small models gain nothing from threads, and lose much to busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
from builders import random_clt, tiny_clip

from vit_clt import CLTConfig, CrossLayerTranscoder, load_data
from vit_clt.cli import main, printed_table
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.blocks import HookedBlock, Recorder
from vit_clt.kernels import choose as backends

# half of all calls, in innermost loops; their annotations name no shape, and mypy proves the rest
for innermost in (
    Recorder.__call__,
    HookedBlock.forward,
    HookedBlock.add_mlp,
    HookedBlock._idle,
    HookedViT._check_names,
    CLTConfig.targets,
    CrossLayerTranscoder._is_sparse,
    CrossLayerTranscoder._writes_to,
    backends.choose,
):
    no_type_check(innermost)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no printed table wraps; tests of wrapping set a width of their own."""
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    monkeypatch.setattr(printed_table, "_COLUMNS", 400)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """What a test draws without a seed of its own is the same in any order and on any worker."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit() -> HookedViT:
    return HookedViT(tiny_clip())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def offline_datasets(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face datasets without the Hub, and without files left in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused before it writes anything; returns its one sentence."""

    def run(*args: str | Path) -> str:
        out = tmp_path / "refused"
        given = [str(arg) for arg in args]
        if given[1:] and "--out" not in given:
            given += ["--out", str(out)]
        capsys.readouterr()
        assert main(given) == 2
        complaint = capsys.readouterr().err
        sentence: str = complaint.strip().splitlines()[-1]
        assert "Traceback" not in complaint
        assert len(sentence) < 300
        assert not out.exists()
        return sentence

    return run


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the run-time check of annotations, so that a wrong choice reaches the package's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def digits_vit() -> HookedViT:
    return HookedViT.from_open_clip("digits")


@pytest.fixture(scope="session")
def digits_test(digits_vit: HookedViT) -> ImageData:
    return load_data("digits", vit=digits_vit, split="test")


@pytest.fixture(scope="session")
def digits_clt(digits_vit: HookedViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved, untrained CLT of the digits' ViT; what reads it only must use it."""
    folder = tmp_path_factory.mktemp("digits") / "clt"
    random_clt(digits_vit).save_pretrained(folder)
    return folder
