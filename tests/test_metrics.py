"""metrics.json."""

from __future__ import annotations

import json
import math

import pytest

from vit_clt.metrics import Metric, metrics_json

CONTEXT = {
    "command": "ablate",
    "data": "digits (test)",
    "tokens": "cls",
    "trajectory": "teacher",
    "l0": 7.5,
    "fill": "zero",
    "split": "test",
    "seed": 3,
}
METRIC_KEYS = {"name", "value", "low", "high", "unit", "n", "floor", "baseline"}


def test_document_holds_context_and_metrics() -> None:
    full = Metric("keep_4_top1", 0.75, "fraction", 360, 0.7, 0.8, 0.1, 0.9)
    bare = Metric("seconds", 12.5, "seconds", 360)
    document = json.loads(metrics_json([full, bare], **CONTEXT, templates="single"))
    assert set(document) == {"context", "metrics"}
    versions = document["context"].pop("versions")
    assert document["context"] == {**CONTEXT, "templates": "single"}
    assert {"python", "vit-clt", "torch", "transformer_lens", "open_clip_torch"} == set(versions)
    assert all(versions.values())
    assert all(set(metric) == METRIC_KEYS for metric in document["metrics"])
    assert document["metrics"][0] == {
        "name": "keep_4_top1",
        "value": 0.75,
        "low": 0.7,
        "high": 0.8,
        "unit": "fraction",
        "n": 360,
        "floor": 0.1,
        "baseline": 0.9,
    }
    assert [document["metrics"][1][key] for key in ("low", "high", "floor", "baseline")] == [
        None
    ] * 4


def test_context_that_does_not_apply_is_null() -> None:
    document = json.loads(metrics_json([], command="reconstruct"))
    assert set(document["context"]) == {*CONTEXT, "versions"}
    assert document["context"]["command"] == "reconstruct"
    assert document["context"]["fill"] is None
    assert document["metrics"] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_null(value: float) -> None:
    text = metrics_json([Metric("recovered", value, "fraction", 10, value, 1.0, floor=value)])
    (metric,) = json.loads(text, parse_constant=pytest.fail)["metrics"]
    assert [metric[key] for key in ("value", "low", "high", "floor")] == [None, None, 1.0, None]


def test_context_that_is_not_finite_is_null():
    context = json.loads(metrics_json([], l0={"cls": float("nan"), "patch": 2.0}))["context"]
    assert context["l0"] == {"cls": None, "patch": 2.0}
