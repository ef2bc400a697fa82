"""Settings: every bad value is refused in one sentence that names it."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import get_args

import pytest
from assertions import one_sentence
from hypothesis import given
from hypothesis import strategies as st

from vit_clt import InputError, TrainConfig
from vit_clt.choices import Backend, LrSchedule, Optimiser, Precision, Start, Unreadable
from vit_clt.cli.training_options import preset_in
from vit_clt.transcoder.sparsifier_options import OPTIONS, every_option
from vit_clt.transcoder.sparsifiers import SPARSIFIERS, JumpReLUTraining, TopKTraining
from vit_clt.transcoder.train_config import PRESETS, SparsifierTraining, preset

ABOVE_ZERO = {
    "lr": float,
    "epochs": int,
    "batch_size": int,
    "accumulate": int,
    "cls_weight": float,
    "clip": float,
    "buffer_batches": int,
    "shards": int,
    "norm_images": int,
    "dead_tokens": int,
    "log_every": int,
    "keep_checkpoints": int,
}
ZERO_OR_MORE = {
    "warmup_steps": int,
    "decay_fraction": float,
    "stream_share": float,
    "interventions": float,
    "val_images": int,
    "workers": int,
    "checkpoint_every": int,
}
CHOICES = {
    "start": Start,
    "lr_schedule": LrSchedule,
    "optimiser": Optimiser,
    "precision": Precision,
    "unreadable": Unreadable,
    "backend": Backend,
}
OPTIONAL = ("epochs", "clip", "shards", "dead_tokens", "workers")


def refused(**settings: object) -> str:
    with pytest.raises(InputError) as error:
        TrainConfig(**settings)
    text = one_sentence(error)
    assert text.count("; expected ") == 1
    return text


def test_every_field_but_the_seed_and_the_sparsifiers_is_checked_here():
    checked = ABOVE_ZERO.keys() | ZERO_OR_MORE.keys() | CHOICES.keys()
    assert {field.name for field in fields(TrainConfig)} == checked | {
        "seed",
        "sparsity",
        "matryoshka",
        "cls_balance",
    }


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_zero_and_less_are_refused(name):
    kind = ABOVE_ZERO[name]
    for value in (kind(0), kind(-1)):
        assert refused(**{name: value}) == f"{name} is {value}; expected a value above 0."
    assert getattr(TrainConfig(**{name: kind(1)}), name) == 1


@pytest.mark.parametrize("name", ZERO_OR_MORE)
def test_less_than_zero_is_refused(name):
    kind = ZERO_OR_MORE[name]
    assert refused(**{name: kind(-1)}) == f"{name} is {kind(-1)}; expected 0 or more."
    assert getattr(TrainConfig(**{name: kind(0)}), name) == 0


@pytest.mark.parametrize("name", [n for n, t in (ABOVE_ZERO | ZERO_OR_MORE).items() if t is float])
def test_what_is_no_number_is_refused(name):
    assert refused(**{name: math.nan}).startswith(f"{name} is nan; expected ")


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_is_a_value_where_it_is_documented(name):
    assert getattr(TrainConfig(**{name: None}), name) is None


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_names_are_refused_with_the_known_ones(name):
    known = get_args(CHOICES[name])
    for value in known:
        assert getattr(TrainConfig(**{name: value}), name) == value
    # not through the constructor's annotations, which the tests enforce and users' Pythons do not
    config = TrainConfig()
    object.__setattr__(config, name, "other")
    with pytest.raises(InputError) as error:
        config.__post_init__()
    text = one_sentence(error)
    assert text.startswith(f'{name} is "other"; expected ')
    assert all(f'"{value}"' in text for value in known)


def test_settings_are_frozen_and_checked_again_when_replaced():
    config = TrainConfig()
    with pytest.raises(FrozenInstanceError):
        config.lr = 1.0
    with pytest.raises(InputError, match="lr is 0; expected a value above 0"):
        replace(config, lr=0)
    for options in (SparsifierTraining(), TopKTraining(aux_k=3), JumpReLUTraining(l0=2.0)):
        written = json.loads(json.dumps(asdict(replace(config, sparsity=options))))
        assert TrainConfig.from_json(written, type(options)).sparsity == options


def test_presets_are_valid_and_the_default_is_the_papers():
    assert PRESETS["paper"] == TrainConfig()
    assert (TrainConfig().lr, TrainConfig().epochs) == (2e-4, 10)
    assert len(set(PRESETS.values())) == len(PRESETS)


@given(st.integers(1, 10**7), st.integers(1, 300), st.integers(1, 10**4), st.integers(0, 300))
def test_epochs_follow_the_amount_of_data(n: int, n_tokens: int, batch_size: int, held_out: int):
    settings = TrainConfig(epochs=None, batch_size=batch_size, val_images=held_out)
    epochs = settings.n_epochs(n, n_tokens)
    steps = settings.n_steps(n, n_tokens)
    assert steps == replace(settings, epochs=epochs).n_steps(n, n_tokens)
    assert epochs >= 3
    assert steps >= 500
    if epochs > 3:  # no more than are needed
        assert steps // epochs * (epochs - 1) < 500


def test_given_epochs_win_over_the_amount_of_data():
    assert replace(PRESETS["small"], epochs=2).n_epochs(10, 17) == 2
    assert PRESETS["small"].n_epochs(1437, 17) == 23  # the digits: 22 steps a pass
    assert PRESETS["small"].n_epochs(50_000, 65) == 3


def test_abs_topk_learns_more_slowly_but_as_the_paper_says_in_its_preset():
    for name, settings in PRESETS.items():
        assert preset(name, "relu_topk") == preset(name, "jumprelu") == settings
        slower = settings if name == "paper" else replace(settings, lr=1e-3)
        assert preset(name, "abs_topk") == slower
    assert preset_in(["--sparsifier", "abs_topk"]).lr == 1e-3
    assert preset_in(["--sparsifier=abs_topk", "--preset", "paper"]).lr == PRESETS["paper"].lr
    assert preset_in([]).lr == PRESETS["small"].lr


OF_SPARSIFIERS = {
    (TopKTraining, "k_start"): int,
    (TopKTraining, "k_ramp"): float,
    (TopKTraining, "aux_k"): int,
    (TopKTraining, "aux_weight"): float,
    (JumpReLUTraining, "l0"): float,
    (JumpReLUTraining, "sparsity"): float,
    (JumpReLUTraining, "sparsity_scale"): float,
    (JumpReLUTraining, "sparsity_ramp"): float,
}


@pytest.mark.parametrize(("kind", "name"), OF_SPARSIFIERS)
def test_options_of_a_sparsifier_are_checked(kind, name):
    number = OF_SPARSIFIERS[kind, name]
    least = "a value above 0" if name in ("k_start", "l0") else "0 or more"
    with pytest.raises(InputError, match=rf"^{name} is {number(-1)}; expected {least}.$"):
        kind(**{name: number(-1)})
    if name.endswith("_ramp"):
        with pytest.raises(InputError, match=rf"^{name} is 1.5; expected a share of the run"):
            kind(**{name: 1.5})


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match=r"^sparsity is 0 with an l0 target; expected"):
        JumpReLUTraining(l0=3.0, sparsity=0)
    with pytest.raises(InputError, match=r"^ramp is True with an l0 target; expected"):
        JumpReLUTraining(l0=3.0, ramp=True)


def test_no_two_kinds_of_options_share_a_name_with_training_or_each_other():
    kinds = {kind.training for kind in SPARSIFIERS.values()}
    names = [field.name for kind in kinds for field in fields(kind)]
    general = {field.name for field in fields(TrainConfig)} - {"sparsity"}
    assert len(set(names)) == len(names)
    assert not set(names) & general


@pytest.mark.parametrize("kind", SPARSIFIERS.values(), ids=lambda kind: kind.name)
def test_a_sparsifier_takes_its_own_options_and_no_others(kind):
    sparsifier = kind()
    for options in (SparsifierTraining(), kind.training(), every_option(SparsifierTraining())):
        found = sparsifier.with_options(TrainConfig(sparsity=options))
        assert found == TrainConfig(sparsity=kind.training())
    other = next(each.training for each in SPARSIFIERS.values() if each.training != kind.training)
    with pytest.raises(InputError) as error:
        sparsifier.with_options(TrainConfig(sparsity=other()))
    assert str(error.value) == (
        f"sparsity is a {other.__name__}; expected {kind.training.__name__}, "
        f"the options of {kind.name}."
    )


def test_options_of_several_kinds_keep_those_given():
    every = every_option(TopKTraining(aux_k=5))
    assert every.options_of(TopKTraining) == TopKTraining(aux_k=5)
    assert every.options_of(JumpReLUTraining) == JumpReLUTraining()


def test_what_a_run_makes_no_use_of():
    assert TopKTraining().in_use().keys() == {"k_start", "aux_k"}
    assert TopKTraining(k_start=300, aux_k=8).in_use().keys() == (
        {"k_start", "k_ramp", "aux_k", "aux_weight"}
    )


@pytest.mark.parametrize("written", [{"lr": 1e-3, "aux_k": 4}, {"sparsity": 0.001}])
def test_settings_of_another_version_are_refused_in_one_sentence(written):
    with pytest.raises(InputError, match=r"^training settings are those of another version"):
        TrainConfig.from_json(written, TopKTraining)


def test_every_sparsifier_has_its_options_listed():
    listed = {name: (kind.training, kind.settings) for name, kind in OPTIONS.items()}
    assert listed == {name: (kind.training, kind.settings) for name, kind in SPARSIFIERS.items()}
