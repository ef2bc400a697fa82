from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from assertions import one_sentence, same_clt
from builders import noisy_clt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.transcoder import checkpoints as checkpoints_module
from vit_clt.transcoder.config import TeacherIdentity

TEACHER = TeacherIdentity(
    "ViT-B-32", None, "QuickGELU", "blocks.{l}.ln2.hook_out", "blocks.{l}.hook_mlp_out", "0" * 64
)
each_sparsifier = pytest.mark.parametrize(
    "sparsifier",
    [ReLUTopK(k=3), AbsTopK(k=3), JumpReLU(theta=0.2, bandwidth=0.7)],
    ids=lambda s: s.name,
)


def build(sparsifier=None, seed: int = 0, n_features: int = 8) -> CrossLayerTranscoder:
    """It names a teacher."""
    config = CLTConfig(3, 4, n_features, sparsifier or ReLUTopK(k=3), teacher=TEACHER)
    return noisy_clt(config, seed, torch.float32)


def tokens() -> torch.Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(7))


def assert_same(found: CrossLayerTranscoder, expected: CrossLayerTranscoder) -> None:
    same_clt(found, expected)
    assert torch.equal(found(tokens()), expected(tokens()))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build().save_pretrained(tmp_path / "clt")
    return tmp_path / "clt"


@each_sparsifier
def test_a_loaded_clt_is_bit_identical(sparsifier, tmp_path):
    clt = build(sparsifier)
    clt.save_pretrained(tmp_path / "a" / "b")
    found = CrossLayerTranscoder.from_pretrained(tmp_path / "a" / "b")
    assert_same(found, clt)
    assert torch.equal(found.encode(tokens()).to_dense(), clt.encode(tokens()).to_dense())
    assert_same(CrossLayerTranscoder.from_pretrained(str(tmp_path / "a" / "b")), clt)


def test_a_loaded_clt_can_be_saved_again(saved, tmp_path):
    CrossLayerTranscoder.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_the_files_are_json_safetensors_and_a_card(saved):
    assert {f.name for f in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert set(load_file(saved / "model.safetensors")) == set(build().state_dict())
    config = json.loads((saved / "config.json").read_text())
    assert config["sparsifier"] == {"name": "relu_topk", "k": 3}
    assert config["teacher"] == dataclasses.asdict(TEACHER)
    assert [config[name] for name in ("n_layers", "d_model", "n_features")] == [3, 4, 8]


def test_saving_and_loading_use_no_pickle(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("pickle.dumps", "pickle.dump", "pickle.load", "pickle.loads"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    build().save_pretrained(tmp_path)
    assert_same(CrossLayerTranscoder.from_pretrained(tmp_path), build())


def test_transposed_weights_are_saved(tmp_path):
    clt = build()
    clt.W_enc[0] = torch.nn.Parameter(clt.W_enc[0].detach().T.contiguous().T)
    assert not clt.W_enc[0].is_contiguous()
    clt.save_pretrained(tmp_path)
    assert_same(CrossLayerTranscoder.from_pretrained(tmp_path), build())


def test_forget_teacher_is_saved(tmp_path):
    clt = build()
    clt.forget_teacher()
    clt.save_pretrained(tmp_path)
    assert CrossLayerTranscoder.from_pretrained(tmp_path).config.teacher is None


positive = st.floats(1e-6, 1e6)
sparsifiers = st.one_of(
    st.builds(ReLUTopK, k=st.integers(1, 50)),
    st.builds(AbsTopK, k=st.integers(1, 50)),
    st.builds(JumpReLU, theta=positive, bandwidth=positive),
)
teachers = st.builds(
    TeacherIdentity,
    model=st.text(),
    pretrained=st.none() | st.text(),
    activation=st.text(),
    hook_in=st.text(),
    hook_out=st.text(),
    weights_sha256=st.text(alphabet="0123456789abcdef", min_size=64, max_size=64),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.builds(
        CLTConfig,
        n_layers=st.integers(1, 30),
        d_model=st.integers(1, 2000),
        n_features=st.integers(50, 20000),
        sparsifier=sparsifiers,
        zero_cross_init=st.booleans(),
        teacher=st.none() | teachers,
    )
)
def test_configurations_survive_json(config):
    assert CLTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"sparsifier": {"name": "topk", "k": 3}},
        {"sparsifier": {"name": "relu_topk", "theta": 0.1}},
        {"sparsifier": {"k": 3}},
        {"sparsifier": None},
        {"teacher": {"model": "ViT-B-32"}},
        {"depth": 3},
    ],
)
def test_json_that_describes_no_clt_is_refused(saved, change):
    values = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json does not describe a CLT") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


@pytest.mark.parametrize("change", [{"n_layers": None}, {"n_features": "eight"}, {"teacher": 1}])
def test_json_of_other_types_is_refused(saved, change):
    values = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json does not describe a CLT"):
        CrossLayerTranscoder.from_pretrained(saved)


@pytest.mark.parametrize("missing", ["n_layers", "d_model", "n_features", "sparsifier"])
def test_json_without_a_needed_field_is_refused(saved, missing):
    values = json.loads((saved / "config.json").read_text())
    del values[missing]
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=missing):
        CrossLayerTranscoder.from_pretrained(saved)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b'{"n_layers": 3,}'])
def test_invalid_json_is_refused(saved, text):
    (saved / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json is not readable JSON") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_json_other_than_an_object_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(InputError, match="expected a JSON object") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"expected a {name} in it") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    assert str(saved) in one_sentence(error)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_refused(saved, share):
    weights = saved / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="is not a complete safetensors file") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    assert str(weights) in one_sentence(error)


def test_weights_that_are_a_pickle_are_refused(saved):
    torch.save(build().state_dict(), saved / "model.safetensors")
    with pytest.raises(InputError, match="is not a complete safetensors file"):
        CrossLayerTranscoder.from_pretrained(saved)


def test_weights_of_another_shape_are_refused(saved, tmp_path):
    build(n_features=9).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(InputError, match=r"W_dec\.0 is \(3, 9, 4\).*expects \(3, 8, 4\)") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_with_other_names_are_refused(saved, change):
    tensors = load_file(saved / "model.safetensors")
    if change == "missing":
        del tensors["b_dec"]
    else:
        tensors["log_theta"] = torch.zeros(3, 8)
    save_file(tensors, saved / "model.safetensors")
    name = "b_dec" if change == "missing" else "log_theta"
    with pytest.raises(InputError, match=f"{name} is .*no such tensor") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


def test_a_path_that_is_a_file_is_refused(saved):
    with pytest.raises(InputError, match="a file; expected a folder") as error:
        CrossLayerTranscoder.from_pretrained(saved / "config.json")
    one_sentence(error)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent; found no such folder") as error:
        CrossLayerTranscoder.from_pretrained(tmp_path / "absent")
    one_sentence(error)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a config\.json in it"):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_a_failed_save_leaves_the_earlier_files(saved, monkeypatch):
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full_disk(tensors, path, metadata=None):
        Path(path).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_file", full_disk)
    with pytest.raises(InputError, match="No space left on device") as error:
        build(AbsTopK(k=2), seed=1).save_pretrained(saved)
    assert str(saved) in one_sentence(error)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert_same(CrossLayerTranscoder.from_pretrained(saved), build())


def test_a_first_save_that_fails_leaves_no_half_clt(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_file", full_disk)
    with pytest.raises(InputError, match=r"(new|taken) cannot be written: "):
        build().save_pretrained(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_saving_into_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match=r"(new|taken) cannot be written: ") as error:
        build().save_pretrained(tmp_path / "taken")
    one_sentence(error)
    assert (tmp_path / "taken").read_text() == "mine"


def test_saving_over_an_older_clt_replaces_it_and_keeps_other_files(saved):
    (saved / "README.md").write_text("my notes")
    (saved / "train.jsonl").write_text("{}")
    newer = build(JumpReLU(), seed=1, n_features=6)
    newer.save_pretrained(saved)
    assert_same(CrossLayerTranscoder.from_pretrained(saved), newer)
    assert (saved / "README.md").read_text() == "my notes"
    names = {"config.json", "model.safetensors", "README.md", "train.jsonl"}
    assert {f.name for f in saved.iterdir()} == names


def test_what_a_killed_save_left_is_removed_by_the_next(saved):
    left = saved / ".saving-2m4q3ar9"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"part")
    build(seed=1).save_pretrained(saved)
    assert {f.name for f in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("newer", [AbsTopK(k=3), ReLUTopK(k=2)], ids=lambda s: f"{s.name}-{s.k}")
def test_a_save_killed_between_its_two_files_is_refused(saved, monkeypatch, newer):
    replace = os.replace

    def kill(source, target):
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        build(newer, seed=1).save_pretrained(saved)
    with pytest.raises(InputError, match="sparsifier") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    assert "must be of one save" in one_sentence(error)


def without_hash(folder: Path) -> None:
    """Make config.json what it was before it had the hash of the weights."""
    values = json.loads((folder / "config.json").read_text())
    del values[checkpoints_module.HASH_KEY]
    (folder / "config.json").write_text(json.dumps(values))


def test_weights_of_other_writers_that_name_no_configuration_still_load(saved):
    without_hash(saved)
    tensors = load_file(saved / "model.safetensors")
    for metadata in (None, {"format": "pt"}):
        save_file(tensors, saved / "model.safetensors", metadata=metadata)
        assert_same(CrossLayerTranscoder.from_pretrained(saved), build())


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_weights_that_name_no_readable_configuration_are_refused(saved, text):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "model.safetensors", metadata={"config": text})
    with pytest.raises(InputError, match="names no readable configuration") as error:
        CrossLayerTranscoder.from_pretrained(saved)
    one_sentence(error)


def test_a_clt_that_names_no_family_was_trained_on_open_clips_own(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    assert config["teacher"].pop("family") == "open_clip"
    path.write_text(json.dumps(config))
    assert CrossLayerTranscoder.from_pretrained(saved).config.teacher == TEACHER
