"""Settings: every bad value is refused in one sentence that names it."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import get_args

import pytest
from assertions import one_sentence

from vit_clt import InputError, TrainConfig
from vit_clt.choices import Backend, LrSchedule, Optimiser, Precision, Unreadable
from vit_clt.transcoder.train_config import PRESETS, idle

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
    "l0": float,
    "k_start": int,
    "dead_tokens": int,
    "log_every": int,
    "keep_checkpoints": int,
}
ZERO_OR_MORE = {
    "warmup_steps": int,
    "decay_fraction": float,
    "val_images": int,
    "sparsity": float,
    "sparsity_scale": float,
    "sparsity_ramp": float,
    "k_ramp": float,
    "aux_k": int,
    "aux_weight": float,
    "workers": int,
    "checkpoint_every": int,
}
CHOICES = {
    "lr_schedule": LrSchedule,
    "optimiser": Optimiser,
    "precision": Precision,
    "unreadable": Unreadable,
    "backend": Backend,
}
OPTIONAL = ("clip", "shards", "l0", "k_start", "dead_tokens", "workers")


def refused(**settings: object) -> str:
    with pytest.raises(InputError) as error:
        TrainConfig(**settings)
    text = one_sentence(error)
    assert text.count("; expected ") == 1
    return text


def test_every_field_but_the_seed_and_a_flag_is_checked_here():
    checked = ABOVE_ZERO.keys() | ZERO_OR_MORE.keys() | CHOICES.keys()
    assert {field.name for field in fields(TrainConfig)} == checked | {"seed", "compile"}


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
    assert TrainConfig(**asdict(config)) == config


def test_presets_are_valid_and_the_default_is_the_papers():
    assert PRESETS["paper"] == TrainConfig()
    assert (TrainConfig().lr, TrainConfig().epochs) == (2e-4, 10)
    assert len({tuple(asdict(p).items()) for p in PRESETS.values()}) == len(PRESETS)


def test_what_a_run_makes_no_use_of():
    off, on = asdict(TrainConfig()), asdict(TrainConfig(k_start=300, aux_k=8))
    assert {"l0", "sparsity", "compile", "k_ramp", "aux_weight"} <= idle(off, "relu_topk")
    assert not {"k_start", "k_ramp", "aux_k", "aux_weight"} & idle(on, "abs_topk")
    assert idle(off, "jumprelu") == {"k_start", "k_ramp", "aux_k", "aux_weight"}
