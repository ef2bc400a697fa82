"""What the audit trains: sizes that are equal where they say so, resumed and reused."""

from dataclasses import replace

import pytest
import torch

from vit_clt import (
    AbsTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
)
from vit_clt.analysis.auditing.rivals import (
    given_rivals,
    is_finished,
    planned_rivals,
    shuffled_weights,
    train_rivals,
)
from vit_clt.data.images import TensorImages

SETTINGS = TrainConfig(epochs=1, batch_size=32, seed=5, checkpoint_every=0)


def named(runs):
    return {run.name: run for run in runs}


@pytest.mark.parametrize("n_layers", [4, 7, 12])
def test_per_layer_rivals_are_equal_in_what_they_say(n_layers):
    config = CLTConfig(n_layers, 16, 240, ReLUTopK(k=5))
    runs = named(planned_rivals(config, SETTINGS, 5))
    rivals = [run.config for run in runs.values() if run.role == "per_layer"]
    assert all(not each.cross_layer and each.sparsifier.k == 5 for each in rivals)
    assert runs["per-layer, equal features"].config.n_features == 240
    # sources a target reads times features, as a mean over targets
    read = sum((l + 1) * 240 for l in range(n_layers)) / n_layers
    assert runs["per-layer, equal features a target"].config.n_features == pytest.approx(
        read, abs=1
    )
    same = runs["per-layer, equal parameters"].config.n_parameters()
    # of 16 numbers a feature here, biases are some; at real widths they are nothing
    assert same == pytest.approx(config.n_parameters(), rel=0.03)


def test_variants_by_default_and_in_full():
    config = CLTConfig(4, 16, 2048, ReLUTopK(k=5))
    small = [r for r in planned_rivals(config, SETTINGS, 5) if r.role == "variants"]
    assert [r.settings.seed for r in small] == [6, 7, 8, 6, 6, 6]
    assert {r.config.n_features for r in small} == {1024}
    kinds = [type(r.config.sparsifier) for r in small]
    assert kinds == [ReLUTopK, ReLUTopK, ReLUTopK, AbsTopK, JumpReLU, ReLUTopK]
    assert [r.settings.sparsity.l0_target for r in small] == [None, None, None, None, 5, None]
    assert [r.config.zero_cross_init for r in small] == [False] * 5 + [True]
    full = [r for r in planned_rivals(config, SETTINGS, 5, full=True) if r.role == "variants"]
    assert len({r.name for r in full}) == len(full) == 18
    assert {r.config.n_features for r in full} == {2048}


def test_a_number_of_active_features_that_does_not_fit():
    with pytest.raises(InputError, match="k is 0; expected at least 1 and at most 24 features"):
        planned_rivals(CLTConfig(4, 16, 24, ReLUTopK(k=5)), SETTINGS, 0)


def test_shuffled_weights_keep_their_values_and_lose_their_places(tiny_vit, images):
    shuffled = shuffled_weights(tiny_vit)
    before, after = tiny_vit.state_dict(), shuffled.state_dict()
    for name, value in before.items():
        assert torch.equal(value.flatten().sort().values, after[name].flatten().sort().values)
        if "visual." not in name:
            assert torch.equal(value, after[name]), name
    assert not torch.equal(tiny_vit(images), shuffled(images))
    assert torch.equal(shuffled(images), shuffled_weights(tiny_vit)(images))


def test_rivals_are_trained_once_and_reused(tiny_vit, tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = TensorImages(torch.randn(24, 3, 12, 12, generator=generator), name="noise")
    config = CLTConfig(4, 16, 24, ReLUTopK(k=3))
    runs = [r for r in planned_rivals(config, SETTINGS, 3) if r.role != "variants"]
    first = train_rivals(tiny_vit, data, runs, tmp_path)
    assert [name for name, _ in first.per_layer] == [r.name for r in runs if r.role == "per_layer"]
    ((_, model, clt),) = first.untrained
    assert clt.config.teacher.weights_sha256 == model.identity().weights_sha256
    assert clt.config.teacher.weights_sha256 != tiny_vit.identity().weights_sha256
    assert first.trained_on == "noise, 24 images, 1 epochs of 32 rows a step, lr 0.0002"
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/model.safetensors")}
    assert len(written) == len(runs)
    again = train_rivals(tiny_vit, data, runs, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/model.safetensors")} == written
    for (_, one), (_, other) in zip(first.per_layer, again.per_layer, strict=True):
        assert torch.equal(one.b_dec, other.b_dec)
    # started anew, they come out the same, to the bit
    before = [clt.state_dict() for _, clt in first.per_layer]
    fresh = train_rivals(tiny_vit, data, runs, tmp_path / "anew")
    for state, (_, clt) in zip(before, fresh.per_layer, strict=True):
        assert all(torch.equal(state[name], value) for name, value in clt.state_dict().items())
    # one that is damaged is trained again
    place = tmp_path / "shuffled-weights"
    weights = place / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert not is_finished(runs[-1], tmp_path)
    train_rivals(tiny_vit, data, runs, tmp_path)
    assert weights.read_bytes() == whole
    # one that a kill left with its checkpoints is not, but these are removed
    (place / "manifest.json").unlink()
    (place / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert not is_finished(runs[-1], tmp_path)
    saved = weights.stat().st_mtime_ns
    train_rivals(tiny_vit, data, runs, tmp_path)
    assert weights.stat().st_mtime_ns == saved
    assert not (place / "checkpoints").exists()
    assert is_finished(runs[-1], tmp_path)


def test_rivals_trained_otherwise_are_not_taken_for_these(tiny_vit, tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = TensorImages(torch.randn(24, 3, 12, 12, generator=generator), name="noise")
    config = CLTConfig(4, 16, 24, ReLUTopK(k=3))

    def first_of(settings, config=config):
        return [r for r in planned_rivals(config, settings, 3) if r.role == "per_layer"][:1]

    train_rivals(tiny_vit, data, first_of(SETTINGS), tmp_path)
    for runs, images, sentence in (
        (first_of(replace(SETTINGS, seed=77)), data, "seed is 77; expected 5, as in the run in"),
        (first_of(replace(SETTINGS, lr=1.0)), data, "lr is 1.0; expected 0.0002, as in"),
        (first_of(SETTINGS, replace(config, n_features=48)), data, "n_features is 48; expected 24"),
        (
            first_of(SETTINGS),
            TensorImages(data.images[:20], name="fewer"),
            "data is '.*; expected '",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            train_rivals(tiny_vit, images, runs, tmp_path)


def test_given_rivals_are_of_this_vit_unless_any_teacher_will_do(tiny_vit, tmp_path):
    clt = CrossLayerTranscoder(
        CLTConfig(4, 16, 24, ReLUTopK(k=3), teacher=shuffled_weights(tiny_vit).identity())
    )
    clt.save_pretrained(tmp_path / "other")
    given = {"per_layer": (), "variants": (str(tmp_path / "other"),)}
    with pytest.raises(InputError, match="weights"):
        given_rivals(tiny_vit, given)
    found = given_rivals(tiny_vit, given, any_teacher=True)
    assert list(found) == ["variants"]
    ((name, loaded),) = found["variants"]
    assert (name, loaded.config.teacher) == ("other", None)
    with pytest.raises(InputError, match=r"^per_layer names other, which"):
        given_rivals(tiny_vit, {"per_layer": given["variants"]}, any_teacher=True)
    with pytest.raises(InputError, match=r"^variants names one folder"):
        given_rivals(tiny_vit, {"variants": 2 * given["variants"]})


def test_a_per_layer_transcoder_has_no_such_rivals():
    config = CLTConfig(4, 16, 24, ReLUTopK(k=3), cross_layer=False)
    with pytest.raises(InputError, match="clt is a per-layer transcoder; expected one that reads"):
        planned_rivals(config, SETTINGS, 3)
