"""Small models every test can afford. Nothing here is downloaded."""

from __future__ import annotations

import copy
import os
from typing import no_type_check

# before torch is imported: small models gain nothing from threads, and lose much to busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import open_clip
import pytest
import torch

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK, load_data
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
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

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 12, "layers": 4, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}


def tiny_clip(seed: int = 0, **vision: object) -> torch.nn.Module:
    """A random CLIP: 4 layers, width 16, 9 patches of 4x4 on 12x12 images."""
    config = copy.deepcopy(TINY)
    config["vision_cfg"].update(vision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config).eval()
        # random weights alone give MLP outputs near zero; make the blocks matter
        for name, parameter in clip.named_parameters():
            if "visual" in name and parameter.ndim >= 2:
                parameter.data.mul_(2.0)
            elif "visual" in name and name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return clip


def random_clt(
    vit: HookedViT, sparsifier: object = None, n_features: int = 24, seed: int = 0
) -> CrossLayerTranscoder:
    """An untrained CLT with biases, so that no term of the equations vanishes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clt = CrossLayerTranscoder(
            CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, n_features, sparsifier or ReLUTopK(k=5))
        )
        for bias in (clt.b_enc, clt.b_dec):
            bias.data.normal_(std=0.3)
    return clt.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert what float64 computations in another order agree to."""
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-10, atol=1e-10)


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    """The message, which must be one sentence."""
    text = str(error.value)
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "\n" not in text
    return text


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


@pytest.fixture(scope="session")
def digits_vit() -> HookedViT:
    return HookedViT.from_open_clip("digits")


@pytest.fixture(scope="session")
def digits_test(digits_vit: HookedViT) -> ImageData:
    return load_data("digits", vit=digits_vit, split="test")
