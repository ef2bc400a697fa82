"""CLTs of others: weights that lie, configurations that ask for too much, damaged files."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from assertions import one_sentence, same_clt
from builders import noisy_clt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vit_clt import (
    BatchTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
)
from vit_clt.outputs.manifest import file_hash
from vit_clt.transcoder.checkpoints import HASH_KEY

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def build(sparsifier: Any = None) -> CrossLayerTranscoder:
    return noisy_clt(CLTConfig(3, 4, 8, sparsifier or JumpReLU(theta=0.2)), 0, torch.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build().save_pretrained(tmp_path / "clt")
    return tmp_path / "clt"


def configure(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; None of the hash leaves it out."""
    values = json.loads((folder / CONFIG).read_text()) | changes
    if values[HASH_KEY] is None:
        del values[HASH_KEY]
    (folder / CONFIG).write_text(json.dumps(values))


def load(folder: Path) -> CrossLayerTranscoder:
    return CrossLayerTranscoder.from_pretrained(folder)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    one_sentence(error)


def test_config_json_has_the_hash_that_sha256sum_prints(saved: Path) -> None:
    assert json.loads((saved / CONFIG).read_text())[HASH_KEY] == file_hash(saved / WEIGHTS)


def test_a_clt_saved_before_there_was_a_hash_loads(saved: Path) -> None:
    configure(saved, **{HASH_KEY: None})
    same_clt(load(saved), build())


@settings(max_examples=200, deadline=None)
@given(st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_of_the_weights_passes(tmp_path_factory: Any, place: int, bit: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        build().save_pretrained(folder)
    whole = (folder / WEIGHTS).read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= 1 << bit
    (folder / WEIGHTS).write_bytes(damaged)
    try:
        with pytest.raises(InputError) as error:
            load(folder)
        one_sentence(error)
    finally:
        (folder / WEIGHTS).write_bytes(whole)


@pytest.mark.parametrize("name", ["W_enc.1", "b_enc", "W_dec.0", "b_dec", "log_theta"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(saved: Path, name: str, value: float) -> None:
    configure(saved, **{HASH_KEY: None})
    tensors = load_file(saved / WEIGHTS)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, saved / WEIGHTS)
    if name == "log_theta" and value < 0:  # a threshold of 0
        assert load(saved).log_theta[-1, -1] == value
    else:
        refused(saved, f"{name} holds NaN or infinite values")


def test_a_fitted_threshold_that_is_no_number_is_named(tmp_path: Path) -> None:
    build(BatchTopK(k=3)).save_pretrained(tmp_path)
    configure(tmp_path, **{HASH_KEY: None})
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["theta"][1] = float("nan")
    save_file(tensors, tmp_path / WEIGHTS)
    refused(tmp_path, "theta holds NaN")


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.bool, torch.uint8, torch.int64, torch.complex64]
)
def test_weights_of_other_types_are_named(saved: Path, dtype: torch.dtype) -> None:
    configure(saved, **{HASH_KEY: None})
    tensors = load_file(saved / WEIGHTS)
    tensors["b_dec"] = tensors["b_dec"].to(dtype)
    save_file(tensors, saved / WEIGHTS)
    refused(saved, r"b_dec is \w+; expected F32, BF16, F16 or F64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(saved: Path, dtype: torch.dtype) -> None:
    configure(saved, **{HASH_KEY: None})
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    found = load(saved).state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.parametrize("claimed", ["I32", "U32", "F64", "F16", "BOOL", "F8_E4M3", "no type"])
def test_a_header_that_lies_about_a_type_is_refused(saved: Path, claimed: str) -> None:
    configure(saved, **{HASH_KEY: None})
    content = (saved / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["b_dec"]["dtype"] = claimed
    text = json.dumps(header).encode()
    (saved / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    refused(saved, r"b_dec is|is not a complete safetensors file")


BOMBS: dict[str, Any] = {
    "layers": {"n_layers": 10**11},
    "some layers": {"n_layers": 2000},
    "width": {"d_model": 10**7},
    "features": {"n_features": 10**7},
    "both": {"d_model": 10**7, "n_features": 10**7},
    "beyond any address": {"d_model": 10**30},
    "beyond any float": {"n_features": 10**90, "d_model": 10**90},
}


@pytest.mark.parametrize("changes", BOMBS.values(), ids=BOMBS)
def test_no_memory_is_taken_for_what_only_config_json_says(saved: Path, changes: Any) -> None:
    configure(saved, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(saved, r"config\.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


WRONG: dict[str, Any] = {
    "true layers": {"n_layers": True},
    "half a layer": {"n_layers": 2.5},
    "a text": {"cross_layer": "no"},
    "a number": {"zero_cross_init": 0},
    "true k": {"sparsifier": {"name": "relu_topk", "k": True}},
    "half a k": {"sparsifier": {"name": "relu_topk", "k": 2.5}},
    "no name": {"sparsifier": {"name": ["relu_topk"], "k": 2}},
    "negative theta": {"sparsifier": {"name": "jumprelu", "theta": -1, "bandwidth": 1}},
    "text theta": {"sparsifier": {"name": "jumprelu", "theta": "0.1", "bandwidth": 1}},
    "a teacher": {"teacher": {"model": 3}},
    "a list": {"teacher": []},
    "another hash": {HASH_KEY: "0" * 64},
    "no hash": {HASH_KEY: 7},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_fields_of_other_types_are_refused(saved: Path, changes: Any) -> None:
    configure(saved, **changes)
    refused(saved, "expected")


def test_a_header_of_very_many_tensors_is_refused(saved: Path) -> None:
    empty = torch.empty(0)
    save_file({f"W_enc.{i}": empty.clone() for i in range(20_001)}, saved / WEIGHTS)
    configure(saved, n_layers=20_000)
    refused(saved, "20,001 tensors")


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    """The weights are read, not first made."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(saved)
    assert torch.equal(torch.rand(1), expected)
    assert load(saved).W_enc[0].requires_grad
