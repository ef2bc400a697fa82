"""`vit-clt graph`: its files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from assertions import tells_itself
from builders import random_clt

from vit_clt import CrossLayerTranscoder
from vit_clt.analysis import graph_study
from vit_clt.analysis.graphs.agreement_figure import agreement_figure
from vit_clt.analysis.graphs.files import load_graphs
from vit_clt.cli import main
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.readouts.zero_shot import ZeroShot


@pytest.fixture(scope="module")
def clt_folder(digits_vit: HookedViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clt = random_clt(digits_vit)
    for decoder in clt.W_dec:
        decoder.mul_(0.1)
    folder = tmp_path_factory.mktemp("clt")
    clt.save_pretrained(folder)
    return folder


def test_what_it_writes(
    clt_folder: Path,
    digits_vit: HookedViT,
    digits_test: ImageData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "graph"
    args = ["graph", "--clt", str(clt_folder), "--limit", "8", "--query", "5", "2", "--seed", "3"]
    args += [
        "--norms",
        "held",
        "--contrast",
        "1",
        "--max-nodes",
        "8",
        "--interventions",
        "4",
        "--templates",
        "single",
    ]
    assert main([*args, "--out", str(out)]) == 0
    zs = ZeroShot(digits_vit, digits_test.class_names, "single")
    logits = zs.logits(digits_vit(digits_test.batch([5, 2])[0]))
    wanted = (logits.max(1).values - logits[:, 1]).tolist()
    graphs = load_graphs(out / "graph.json")
    assert [g.metadata.logit for g in graphs] == pytest.approx(wanted, abs=1e-4)
    assert all(len(g.nodes) <= 10 for g in graphs)
    terms = pd.read_csv(out / "direct_effects.csv")
    sums = terms.groupby("image")["effect"].sum()
    assert [sums[5], sums[2]] == pytest.approx(wanted, abs=1e-4)
    nodes, edges = pd.read_csv(out / "nodes.csv"), pd.read_csv(out / "edges.csv")
    assert nodes.groupby("image").size()[5] == len(graphs[0].nodes)
    assert edges.groupby("image").size()[2] == len(graphs[1].edges)
    dots = pd.read_csv(out / "interventions.csv")
    assert dots.groupby("image").size().tolist() == [4, 4]
    document = json.loads((out / "metrics.json").read_text())
    context = document["context"]
    assert [context[k] for k in ("query", "seed", "trajectory", "split")] == [
        [5, 2], 3, "teacher", "test",
    ]  # fmt: skip
    named = {m["name"]: m for m in document["metrics"]}
    assert named["image_5_logit"]["value"] == pytest.approx(wanted[0], abs=1e-4)
    others = [c for c in range(10) if c != int(logits[0].argmax())]
    floor = float(logits[0, others].mean() - logits[0, 1])
    assert named["image_5_logit"]["floor"] == pytest.approx(floor, abs=1e-4)
    assert named["total_against_live_all_pearson"]["n"] == 8
    page = (out / "graph.html").read_text()
    name = digits_test.class_names[1]
    assert f"− {name}" in page
    assert "Are these effects what interventions find?" in page
    r, slope = (named[f"direct_against_live_all_{name}"]["value"] for name in ("pearson", "slope"))
    first = page[: page.index("plotly")]
    assert "norms held, against live interventions" in first
    assert f"r {r:.2f} [" in first
    assert f"slope {slope:.2f}, N = 8." in first
    assert "silencing single features, N = 8" in capsys.readouterr().out


def test_a_study_tells_itself(
    clt_folder: Path, digits_vit: HookedViT, digits_test: ImageData, tmp_path: Path
) -> None:
    clt = CrossLayerTranscoder.from_pretrained(clt_folder)
    zs = ZeroShot(digits_vit, digits_test.class_names, "single")
    study = graph_study(
        digits_vit, clt, digits_test, zs, [4], max_nodes=8, interventions=4, clt_name="a/b", seed=2
    )
    context = tells_itself(study, tmp_path)
    assert [context[key] for key in ("data", "tokens", "trajectory", "l0", "seed")] == [
        digits_test.name, "all", "teacher", study.l0, 2,
    ]  # fmt: skip
    assert (context["clt"], context["norms"], context["query"]) == ("a/b", "held", [4])
    figure = agreement_figure(study)
    assert "CLT b, L0" in figure.layout.title.text
    assert "N = 4 interventions, seed 2" in figure.layout.title.text
    table = study.agreement.to_frame().set_index(["predicted", "measured", "chosen"])
    r = table.loc["direct_norms", "codes_held", "all"]
    assert f"slope {r['slope']:.2f}" in figure.layout.annotations[3].text
    assert "predicted against measured" in study._repr_html_()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--query", "8"], "query is 8; expected images from 0 to 7"),
        (["--query", "1", "1"], "--query holds 1 twice"),
        (["--target", "whale"], 'target is "whale"'),
        (["--contrast", "10"], 'contrast is "10"'),
        (["--target", "4", "--contrast", "4"], "the target itself"),
        (["--max-nodes", "0"], "--max-nodes is 0"),
        (["--interventions", "1"], "interventions is 1"),
    ],
)
def test_what_it_refuses(
    args: list[str], said: str, clt_folder: Path, refused: Callable[..., str]
) -> None:
    complaint = refused("graph", "--clt", clt_folder, "--limit", "8", *args)
    assert said in complaint
    assert complaint.count(". ") == 0
