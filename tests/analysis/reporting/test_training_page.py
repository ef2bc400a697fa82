"""training.html: which records of a log count, and that the page draws just those."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from plotly.colors import unlabel_rgb

from vit_clt.analysis.reporting.training_page import MOST_POINTS, read_log, training_report
from vit_clt.errors import InputError

FACTS = {"Model": "digits", "L0 target": "8"}


def step_record(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step // 100,
        "loss": 600 / step,
        "fvu_cls": None if step % 100 == 0 else 1 / (1 + step),
        "fvu_patch": 1 / (2 + step),
        "l0": 10.0,
        "dead": 0.2,
        "sparsity": 1e-3,
        "lr": 1e-4,
        "grad_norm": 2.0,
        "tokens_per_second": 1000.0 + step,
        "waits": {"images": 0.1, "vit": 0.2, "step": 0.7},
        "loss_by_layer": [100 / step, 200 / step, 300 / step],
        "l0_by_layer": [9.0, 10.0, 11.0],
        "dead_by_layer": [0.1, 0.2, 0.3],
        "aux": None,
        "skipped": 2,
    }


def validation(step: int) -> dict[str, Any]:
    return {
        "event": "validation",
        "step": step,
        "n_images": 360,
        "fvu_cls_by_layer": [50 / step, 40 / step, 30 / step],
        "fvu_patch_by_layer": [20 / step, None, 10 / step],
        "l0_by_layer": [8.5, 8.25, 8.0],
    }


def start(step: int) -> dict[str, Any]:
    return {"event": "start", "step": step}


def figures(page: str) -> dict[str, tuple[list[dict], dict]]:
    """Traces and layout of every figure, by the first line of its caption."""
    found = {}
    captions = re.findall(r"<figcaption><strong>(.*?)</strong>", page)
    plots = re.finditer(r'Plotly\.newPlot\(\s*"figure-\d+",\s*', page)
    for caption, match in zip(captions, plots, strict=True):
        traces, end = json.JSONDecoder().raw_decode(page, match.end())
        at = re.compile(r"\s*,\s*").match(page, end)
        assert at is not None
        layout, _ = json.JSONDecoder().raw_decode(page, at.end())
        found[html.unescape(caption)] = (traces, layout)
    return found


def curves(traces: list[dict], name: str) -> list[dict[int, float]]:
    """The curves of that name, one for each panel that has it."""
    return [dict(zip(t["x"], t["y"], strict=True)) for t in traces if t["name"] == name]


def panels(layout: dict) -> list[str]:
    return [note["text"] for note in layout["annotations"]]


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text("".join(texts))
    return path


def test_a_resumed_process_supersedes_later_records(tmp_path: Path):
    redone = {**step_record(30), "loss": 7.0}
    log = write(
        tmp_path / "train.jsonl",
        start(0),
        *map(step_record, (10, 20, 30, 40)),
        validation(40),
        start(20),
        redone,
    )
    kept = [start(0), step_record(10), step_record(20), start(20), redone]
    assert read_log(log) == kept
    # what is resumed from the very beginning leaves nothing standing
    write(log, start(0), step_record(10), {"event": "end"}, start(0))
    assert [r for r in read_log(log) if "step" in r] == [start(0), start(0)]


@pytest.mark.parametrize("cut", [1, 5, 40, -2])
@pytest.mark.parametrize("newline", ["\n", ""])
def test_a_torn_line_is_dropped_and_the_start_behind_it_is_not(
    tmp_path: Path, cut: int, newline: str
):
    torn = json.dumps(step_record(30))[:cut] + newline
    log = write(
        tmp_path / "train.jsonl",
        *(start(0), step_record(10), step_record(20), torn, start(10), step_record(11)),
    )
    assert read_log(log) == [start(0), step_record(10), start(10), step_record(11)]


def test_a_line_torn_inside_a_character_or_by_zeros_is_dropped(tmp_path: Path):
    log = tmp_path / "train.jsonl"
    whole = json.dumps(step_record(10)).encode() + b"\n"
    log.write_bytes(whole + b'{"event": "note", "text": "\xce\n' + b"\0\0\0\n" + b"17\n")
    assert read_log(log) == [step_record(10)]


def test_a_log_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"log is .*No such file"):
        read_log(tmp_path / "train.jsonl")


def test_held_out_fvu_is_drawn_per_layer():
    records = [start(0), *map(step_record, (100, 200)), validation(100), validation(200)]
    page = training_report(records, title="T", facts=FACTS)
    traces, layout = figures(page)["Held-out FVU per layer"]
    assert panels(layout) == ["CLS rows", "patch rows"]
    assert "360 images that are not trained on</figcaption>" in page
    assert curves(traces, "layer 0") == [{100: 0.5, 200: 0.25}, {100: 0.2, 200: 0.1}]
    # undefined in the patches, so only the CLS panel holds it
    assert curves(traces, "layer 1") == [{100: 0.4, 200: 0.2}]
    assert layout["yaxis"]["type"] == layout["yaxis2"]["type"] == "log"
    floors = curves(traces, "FVU = 1: predicting<br>the mean")
    assert floors == [{100: 1.0, 200: 1.0}] * 2
    hover = next(t for t in traces if t["name"] == "layer 2")["hovertemplate"]
    assert hover.startswith("layer 2, step %{x:d}: %{y")
    # one legend entry a layer, from dark to light
    shown = [t for t in traces if t["showlegend"] and t["name"].startswith("layer")]
    assert [t["name"] for t in shown] == ["layer 0", "layer 1", "layer 2"]
    light = [sum(unlabel_rgb(t["line"]["color"])) for t in shown]
    assert light == sorted(light)


def test_without_validation_the_training_batches_stand_in_and_say_so():
    page = training_report(list(map(step_record, (50, 100, 150))), title="T", facts={})
    assert "Held-out FVU per layer" not in figures(page)
    traces, _ = figures(page)["FVU of the training batches"]
    cls, patch = curves(traces, "mean over layers")
    assert cls == pytest.approx({50: 1 / 51, 150: 1 / 151}, rel=1e-4)
    assert patch == pytest.approx({50: 1 / 52, 100: 1 / 102, 150: 1 / 152}, rel=1e-4)
    assert "Nothing was validated. " in page


def test_loss_sparsity_and_speed():
    drawn = figures(training_report(list(map(step_record, (100, 200))), title="T", facts=FACTS))
    traces, layout = drawn["Loss of the training batches"]
    assert curves(traces, "layer 2") == [{100: 3.0, 200: 1.5}]
    assert curves(traces, "sum over layers") == [{100: 6.0, 200: 3.0}]
    assert curves(traces, "auxiliary term") == []
    assert layout["yaxis"]["type"] == "log"
    traces, _ = drawn["Active and dead features"]
    assert curves(traces, "layer 0") == [{100: 9.0, 200: 9.0}, {100: 10.0, 200: 10.0}]
    assert curves(traces, "mean") == [{100: 10.0, 200: 10.0}, {100: 20.0, 200: 20.0}]
    assert curves(traces, "target 8") == [{100: 8.0, 200: 8.0}]
    traces, _ = drawn["Speed and where the time goes"]
    shares = {t["name"]: t["y"] for t in traces if t.get("stackgroup")}
    assert shares == {
        "waiting for images": [10.0, 10.0],
        "ViT forward": [20.0, 20.0],
        "CLT step": [70.0, 70.0],
    }
    assert panels(drawn["Learning rate, λ and gradient"][1]) == ["learning rate", "λ", "gradient"]


def test_an_auxiliary_term_is_drawn_where_there_is_one():
    records = [{**step_record(10), "aux": 0.5}, {**step_record(20), "aux": 0.25}]
    traces, _ = figures(training_report(records, title="T", facts={}))[
        "Loss of the training batches"
    ]
    assert curves(traces, "auxiliary term") == [{10: 0.5, 20: 0.25}]


def test_panels_an_older_log_cannot_fill_are_left_out():
    records = [{"step": s, "loss": 1.0, "lr": 1e-3, "l0": 4.0, "dead": 0.0} for s in (1, 2)]
    page = training_report(records, title="T", facts={"L0 target": "about 4"})
    found = {name: panels(layout) for name, (_, layout) in figures(page).items()}
    assert found == {
        "Loss of the training batches": ["all layers"],
        "Active and dead features": ["active features (L0)", "dead features"],
        "Learning rate, λ and gradient": ["learning rate"],
    }
    assert "<table" not in page
    only_patches = {**validation(2), "fvu_cls_by_layer": None}
    page = training_report([only_patches], title="T", facts={})
    assert panels(figures(page)["Held-out FVU per layer"][1]) == ["patch rows"]


@pytest.mark.parametrize("n", [MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, 3 * MOST_POINTS + 2])
def test_long_lines_are_thinned_and_keep_both_ends(n: int):
    records = [{"step": s, "loss": float(s)} for s in range(1, n + 1)]
    page = training_report(records, title="T", facts={})
    (curve,) = curves(figures(page)["Loss of the training batches"][0], "sum over layers")
    assert MOST_POINTS / 2 <= len(curve) <= MOST_POINTS
    assert (min(curve), max(curve)) == (1, n)
    assert curve == pytest.approx({s: s for s in curve}, rel=1e-4)
    assert ("thinned" in page) == (n > MOST_POINTS)


def test_interruptions_are_named():
    records = [
        start(0),
        start(0),
        *map(step_record, (100, 200, 300)),
        start(300),
        *map(step_record, (400, 900)),
        start(900),
        start(900),
        {"event": "end", "step": 900},
    ]
    page = training_report(records, title="T", facts={})
    assert "resumed at steps 300, 900<" in page
    assert "2 skipped" in page
    assert "900, in epoch 10" in page
    _, layout = figures(page)["Loss of the training batches"]
    assert sorted({line["x0"] for line in layout["shapes"]}) == [300, 900]
    assert "Interruptions" not in training_report(records[:5], title="T", facts={})


def test_the_table_holds_the_last_values():
    records = [validation(100), step_record(150), validation(200), step_record(250)]
    page = training_report(records, title="T", facts=FACTS)
    table = page[page.index("<table") : page.index("</table>")]
    rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in table.split("</tr>")]
    assert [row for row in rows if row] == [
        ["layer", "FVU CLS", "FVU patches", "L0", "dead"],
        ["0", "0.250", "0.100", "8.5", "10.0%"],
        ["1", "0.200", "undefined", "8.2", "20.0%"],
        ["2", "0.150", "0.050", "8.0", "30.0%"],
    ]
    assert "validation at step 200. Dead: training, step 250." in page


@pytest.mark.parametrize("records", [[], [start(0)], [start(0), {"event": "end"}]])
def test_a_log_without_records_gives_a_page_that_says_so(records: list[dict[str, Any]]):
    page = training_report(records, title="T & U", facts=FACTS)
    assert "Nothing has been logged yet" in page
    assert "T &amp; U" in page
    assert "digits" in page
    assert figures(page) == {}
