"""circuit-tracer's CLT files: exact both ways, read again by a reader that shares no code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from assertions import one_sentence
from builders import tiny_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vit_clt import (
    AbsTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    load_data,
)
from vit_clt.cli import main
from vit_clt.hooks import HookedViT
from vit_clt.interchange import circuit_tracer as interchange_module
from vit_clt.interchange.circuit_tracer import export_circuit_tracer, import_circuit_tracer
from vit_clt.interchange.thresholds import nearest_log


def jump_clt(n: int = 3, d: int = 4, f: int = 6, seed: int = 0) -> CrossLayerTranscoder:
    """Every parameter random; some thresholds 0, which is ReLU."""
    generator = torch.Generator().manual_seed(seed)
    clt = CrossLayerTranscoder(CLTConfig(n, d, f, JumpReLU())).eval().requires_grad_(False)
    for parameter in clt.parameters():
        parameter.normal_(generator=generator)
    assert clt.log_theta is not None
    clt.log_theta.mul_(3).sub_(2)[torch.rand(n, f, generator=generator) < 0.2] = -torch.inf
    return clt


def inputs(clt: CrossLayerTranscoder, seed: int = 7) -> torch.Tensor:
    shape = (clt.config.n_layers, 9, clt.config.d_model)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_by_the_format(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and y^ in float64, from nothing but the description of the files."""
    n = len(list(folder.glob("W_enc_*.safetensors")))
    parts = [
        load_file(folder / f"W_{kind}_{i}.safetensors") for i in range(n) for kind in ("enc", "dec")
    ]
    t = {name: value.double().numpy() for part in parts for name, value in part.items()}
    y_hat = np.stack([np.tile(t[f"b_dec_{i}"], (x.shape[1], 1)) for i in range(n)])
    codes = []
    for i in range(n):
        a = x[i] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"]
        z = a * (a > t[f"threshold_{i}"]) if "threshold_0" in t else a.clip(min=0)
        codes.append(z)
        for j in range(n - i):
            y_hat[i + j] += z @ t[f"W_dec_{i}"][:, j]
    return np.stack(codes), y_hat


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_circuit_tracer(jump_clt(), tmp_path / "files")
    return tmp_path / "files"


# ---- exactness ----------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, derandomize=True)
@given(n=st.integers(1, 4), d=st.integers(1, 5), f=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_round_trip_changes_no_code_and_no_output(n: int, d: int, f: int, seed: int):
    clt = jump_clt(n, d, f, seed)
    with tempfile.TemporaryDirectory() as folder:
        export_circuit_tracer(clt, folder)
        found = import_circuit_tracer(folder)
        for name, tensor in clt.state_dict().items():
            other = found.state_dict()[name]
            if name == "log_theta":
                tensor, other = tensor.exp(), other.exp()
            assert torch.equal(tensor, other), name
        x = inputs(clt, seed)
        assert torch.equal(clt.encode(x).to_dense(), found.encode(x).to_dense())
        assert torch.equal(clt(x), found(x))


def test_another_reader_finds_the_same_codes_and_outputs(exported: Path):
    clt = jump_clt()
    x = inputs(clt)
    codes, y_hat = read_by_the_format(exported, x.double().numpy())
    dense = clt.encode(x).to_dense()
    assert 0 < dense.count_nonzero() < dense.numel()
    np.testing.assert_array_equal(codes != 0, dense.numpy() != 0)
    np.testing.assert_allclose(codes, dense.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y_hat, clt(x).numpy(), rtol=1e-5, atol=1e-5)


def test_files_hold_what_the_format_says(exported: Path):
    expected = {f"W_{kind}_{i}.safetensors" for kind in ("enc", "dec") for i in range(3)}
    assert set(files_of(exported)) == {*expected, "config.yaml"}
    assert yaml.safe_load((exported / "config.yaml").read_text()) == {
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "ln2.hook_out",
        "feature_output_hook": "hook_mlp_out",
    }
    for i in range(3):
        encoder = load_file(exported / f"W_enc_{i}.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in encoder.items()}
        names = (f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}", f"threshold_{i}")
        assert shapes == dict(zip(names, ((6, 4), (6,), (4,), (6,)), strict=True))
        decoder = load_file(exported / f"W_dec_{i}.safetensors")
        assert {name: tuple(t.shape) for name, t in decoder.items()} == {
            f"W_dec_{i}": (6, 3 - i, 4)
        }


def test_logarithms_give_thresholds_back():
    generator = torch.Generator().manual_seed(0)
    log = torch.cat([torch.empty(20_000).uniform_(-16, 6, generator=generator), torch.zeros(1)])
    # around 0 many logarithms share an exponential, below -2 not every number is one
    log = torch.cat([log, log / 1000])
    assert torch.equal(nearest_log(log.exp()).exp(), log.exp())
    any_theta = torch.empty(40_000, dtype=torch.float64).uniform_(-13.8, 13.8, generator=generator)
    theta = any_theta.exp().float()
    error = (nearest_log(theta).exp().double() / theta.double() - 1).abs()
    assert error.max() < 1e-6
    assert nearest_log(torch.zeros(1)).exp() == 0


def test_files_without_thresholds_are_relu(exported: Path):
    clt = jump_clt()
    for i in range(3):
        path = exported / f"W_enc_{i}.safetensors"
        tensors = load_file(path)
        del tensors[f"threshold_{i}"]
        save_file(tensors, path)
    found = import_circuit_tracer(exported)
    x = inputs(clt)
    # tiny pre-activations count too
    x[:, 0] *= 1e-30
    found.b_enc.data[:, 0] = 0
    for s in range(3):
        a = torch.nn.functional.linear(x[s], found.W_enc[s], found.b_enc[s])
        assert torch.equal(found.encode(x[s], layer=s).to_dense().abs(), a.relu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_float32(exported: Path, dtype: torch.dtype):
    for path in exported.glob("*.safetensors"):
        save_file({name: t.to(dtype) for name, t in load_file(path).items()}, path)
    found = import_circuit_tracer(exported)
    assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())
    for s, encoder in enumerate(jump_clt().W_enc):
        assert torch.equal(found.W_enc[s], encoder.to(dtype).float())


def test_an_imported_clt_is_an_ordinary_one(exported: Path, tiny_vit: HookedViT, tmp_path: Path):
    found = import_circuit_tracer(exported)
    assert found.config.teacher is None
    found.save_pretrained(tmp_path / "clt")
    again = CrossLayerTranscoder.from_pretrained(tmp_path / "clt")
    assert torch.equal(again(inputs(found)), found(inputs(found)))
    export_circuit_tracer(jump_clt(n=4, d=16), tmp_path / "fits")
    named = import_circuit_tracer(tmp_path / "fits", vit=tiny_vit)
    assert named.config.teacher == tiny_vit.identity()
    export_circuit_tracer(named, tmp_path / "known")
    assert import_circuit_tracer(tmp_path / "known", vit=tiny_vit).config == named.config
    other = HookedViT(tiny_clip(seed=1))
    hashes = [vit.identity().weights_sha256[:12] for vit in (tiny_vit, other)]
    with pytest.raises(InputError, match="{}.*{}; expected the model that".format(*hashes)):
        import_circuit_tracer(tmp_path / "known", vit=other)
    assert import_circuit_tracer(tmp_path / "fits", vit=other).config.teacher == other.identity()
    with pytest.raises(InputError, match="for 3 layers of width 4; expected 4 layers of width 16"):
        import_circuit_tracer(exported, vit=tiny_vit)


# ---- bad input ----------------------------------------------------------------------------------


def change(name: str, **tensors: torch.Tensor | None) -> Callable[[Path], None]:
    """Replace tensors of a file; None takes one away."""

    def apply(folder: Path) -> None:
        found = load_file(folder / name) | tensors
        save_file({key: value for key, value in found.items() if value is not None}, folder / name)

    return apply


def configure(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.yaml"
        found = yaml.safe_load(path.read_text()) | values
        path.write_text(yaml.safe_dump({k: v for k, v in found.items() if v is not None}))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


NAN = torch.full((6,), torch.nan)
BROKEN = {
    "no config": (remove("config.yaml"), "expected a config.yaml in it"),
    "yaml": (write("config.yaml", "{a: ["), "config.yaml is not readable YAML"),
    "no mapping": (write("config.yaml", "- 1"), "holds a list; expected a mapping"),
    "kind": (configure(model_kind="transcoder_set"), 'model_kind .* is "transcoder_set"; expected'),
    "no kind": (configure(model_kind=None), "model_kind of .* is missing"),
    "input": (configure(feature_input_hook="hook_resid_mid"), 'expected "ln2.hook_out" or'),
    "output": (configure(feature_output_hook="hook_x"), 'feature_output_hook .* "hook_x"'),
    "no decoder file": (remove("W_dec_1.safetensors"), "expected a W_dec_1.safetensors in it"),
    "no encoder file": (remove("W_enc_1.safetensors"), "with 3 layers; expected a W_enc_1"),
    "no last encoder file": (remove("W_enc_2.safetensors"), "with 3 layers; expected a W_enc_2"),
    "no encoders": (lambda f: [p.unlink() for p in f.glob("W_*")], "expected a W_enc_0"),
    "cut": (write("W_dec_2.safetensors", "abc"), "W_dec_2.safetensors is not a complete"),
    "first": (change("W_enc_0.safetensors", W_enc_0=None), "W_enc_0 is no such tensor; expected"),
    "tensor": (change("W_enc_1.safetensors", b_dec_1=None), "b_dec_1 is missing; expected .4,"),
    "shape": (
        change("W_dec_1.safetensors", W_dec_1=torch.zeros(2, 6, 4)),
        r"W_dec_1.safetensors: W_dec_1 is \(2, 6, 4\); expected \(6, 2, 4\), from the shape",
    ),
    "width": (change("W_enc_2.safetensors", W_enc_2=torch.zeros(6, 5)), r"expected \(6, 4\)"),
    "skip": (
        change("W_enc_0.safetensors", W_skip_0=torch.zeros(4, 4)),
        "skip weights are not read",
    ),
    "one threshold less": (
        change("W_enc_2.safetensors", threshold_2=None),
        r"threshold_2 is missing; expected \(6,\), as W_enc_0.safetensors has one",
    ),
    "one threshold more": (
        change("W_enc_0.safetensors", threshold_0=None),
        "threshold_1 is .6,.; expected no such tensor, as W_enc_0.safetensors has none",
    ),
    "negative": (
        change("W_enc_1.safetensors", threshold_1=torch.full((6,), -0.5)),
        "W_enc_1.safetensors: threshold_1 is -0.5 for a feature, .* expected at least 0",
    ),
    "nan": (change("W_enc_1.safetensors", b_enc_1=NAN), "b_enc_1 holds NaN or infinite values"),
    "type": (change("W_enc_1.safetensors", b_enc_1=torch.ones(6).long()), "b_enc_1 is I64; exp"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_one_sentence(exported: Path, case: str):
    damage, expected = BROKEN[case]
    damage(exported)
    with pytest.raises(InputError, match=expected) as error:
        import_circuit_tracer(exported)
    one_sentence(error)


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path):
    config = CLTConfig(3, 4, 6, AbsTopK(k=2))
    per_layer = replace(config, sparsifier=JumpReLU(), cross_layer=False)
    not_finite = jump_clt()
    not_finite.W_dec[1].data[0, 0, 0] = torch.nan
    for clt, expected in (
        (CrossLayerTranscoder(config), "codes may be negative"),
        (CrossLayerTranscoder(per_layer), "cross_layer is False"),
        (CrossLayerTranscoder(replace(config, sparsifier=ReLUTopK(k=2))), "vit is None; ReLU-TopK"),
        (not_finite, "W_dec.1 of the CLT holds NaN"),
    ):
        with pytest.raises(InputError, match=expected):
            export_circuit_tracer(clt, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_leftover_layers_are_refused_because_readers_count_files(exported: Path):
    before = files_of(exported)
    with pytest.raises(InputError, match=r"holds W_dec_2\.safetensors, which readers would count"):
        export_circuit_tracer(jump_clt(n=2), exported)
    assert files_of(exported) == before


def test_a_failed_export_leaves_the_earlier_one(exported: Path, monkeypatch: pytest.MonkeyPatch):
    before, written = files_of(exported), []

    def full_disk(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(interchange_module, "save_file", full_disk)
    with pytest.raises(InputError, match=r"files cannot be written: .*No space left"):
        export_circuit_tracer(jump_clt(seed=1), exported)
    assert len(written) == 4
    assert files_of(exported) == before


# ---- the commands -------------------------------------------------------------------------------


def test_commands_write_and_read_again(
    tmp_path: Path, digits_vit: HookedViT, capsys: pytest.CaptureFixture[str]
):
    vit = digits_vit
    clt = CrossLayerTranscoder(CLTConfig(8, 64, 32, ReLUTopK(k=4), teacher=vit.identity()))
    clt.save_pretrained(tmp_path / "clt")
    export = ["export", "--clt", str(tmp_path / "clt"), "--out", str(tmp_path / "files")]
    assert main([*export, "--limit", "30", "--train-limit", "40", "--templates", "single"]) == 0
    said = capsys.readouterr().out
    back = ["import", "--from", str(tmp_path / "files"), "--out", str(tmp_path / "back")]
    assert main([*back, "--model", "digits"]) == 0
    assert "fitted on digits (train), 40 images; measured on digits (test), N = 30" in said
    document = json.loads((tmp_path / "files" / "metrics.json").read_text())
    assert document["context"]["thresholds_fitted_on"] == "digits (train), 40 images"
    metrics = {metric["name"]: metric for metric in document["metrics"]}
    names = {f"{t}_{m}" for t in ("cls", "patch", "all") for m in ("l0", "r2", "top1", "loss")}
    assert names | {f"{name}_change" for name in names} <= metrics.keys()
    assert metrics["all_loss"]["floor"] is not None
    lowest, layer = metrics["cls_lowest_r2"], metrics["cls_lowest_r2_layer_after"]
    assert f"{lowest['value']:.4f} at {layer['value']}" in said
    found = CrossLayerTranscoder.from_pretrained(tmp_path / "back").requires_grad_(False)
    assert found.config.teacher == vit.identity()
    # what was measured is what was written: L0 again, from the imported CLT
    images = load_data("digits", vit=vit, split="test", limit=30)
    names = [f"blocks.{s}.ln2.hook_out" for s in range(8)]
    _, cache = vit.run_with_cache(images.batch(range(30))[0], names_filter=names)
    x = torch.stack([cache[name] for name in names])
    assert float(found.encode(x).l0().double().mean()) == pytest.approx(metrics["all_l0"]["value"])


def test_commands_refuse_before_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    CrossLayerTranscoder(CLTConfig(3, 4, 6, AbsTopK(k=2))).save_pretrained(tmp_path / "abs")
    jump_clt().save_pretrained(tmp_path / "jump")
    out = str(tmp_path / "out")
    for args, expected in (
        (["export", "--clt", "abs"], "codes may be negative"),
        (["export", "--clt", "jump", "--data", "digits"], "--data is digits; thresholds of a"),
        (["export", "--clt", "jump", "--limit", "9"], "--limit is 9; thresholds of a"),
        (["export", "--clt", "jump", "--train-limit", "9"], "--train-limit is 9; thresholds of a"),
        (["export", "--clt", "jump", "--templates", "single"], "--templates is single; thresholds"),
        (["export", "--clt", "jump", "--any-teacher"], "--any-teacher is True; thresholds of a"),
        (["import", "--from", "jump"], "expected a config.yaml in it"),
        (["import", "--from", "jump", "--pretrained", "openai"], "openai without a model"),
    ):
        args[2] = str(tmp_path / args[2])
        assert main([*args, "--out", out]) == 2
        assert expected in capsys.readouterr().err
        assert not Path(out).exists()
    assert main(["export", "--clt", str(tmp_path / "jump"), "--out", out]) == 0
    assert import_circuit_tracer(out).config.n_layers == 3
    capsys.readouterr()
    assert main(["export", "--clt", str(tmp_path / "jump"), "--out", out]) == 2
    assert "not empty" in capsys.readouterr().err
