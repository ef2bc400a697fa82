"""`vit-clt retrieve`: what it writes, an index kept and reused, and what bad input gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from vit_clt.cli import main

FEW = ["--limit", "12", "--corpus-limit", "30", "--layers", "0,7", "--top", "2", "--query", "3"]


def read(out: Path) -> tuple[dict, dict, pd.DataFrame]:
    document = json.loads((out / "metrics.json").read_text())
    named = {m["name"]: m for m in document["metrics"]}
    return document["context"], named, pd.read_csv(out / "retrieval.csv")


def test_writes_and_keeps_its_index(digits_clt: Path, tmp_path: Path, capsys, monkeypatch):
    kept, out = tmp_path / "index", tmp_path / "out"
    args = ["retrieve", "--clt", str(digits_clt), *FEW, "--index", str(kept)]
    assert main([*args, "--untrained", "--out", str(out)]) == 0
    context, named, frame = read(out)
    assert (context["corpus"], context["n_corpus"]) == ("digits (train)", 30)
    assert (context["trajectory"], context["l0"], context["tokens"]) == ("teacher", 5, "cls patch")
    assert frame[["tokens", "layer"]].to_numpy().tolist() == [
        ["cls", 0], ["cls", 7], ["patch", 0], ["patch", 7],
    ]  # fmt: skip
    row = frame.query("tokens == 'patch' and layer == 7").iloc[0]
    metric = named["consistency_patch_7"]
    assert metric["value"] == pytest.approx(row["codes"])
    assert (metric["floor"], metric["baseline"]) == pytest.approx((row["chance"], row["inputs"]))
    assert "consistency_cls_0_minus_untrained" in named
    near = pd.read_csv(out / "neighbours.csv")
    assert near[["query", "rank", "row"]].max().tolist() <= [3, 2, 29]
    assert len(near) == 2 * 2 * 2
    page = (out / "retrieval.html").read_text()
    figures = "".join(page.split("Plotly.newPlot")[-3:])  # what is before is plotly's own script
    assert figures.count("base64,iVBOR") == 2 * 5
    assert "untrained CLT" in page
    assert "none is taken from the corpus" in page
    assert "CLS rows, layer 7" in capsys.readouterr().out

    # the second run finds the index, and fewer rows in it: its own images are read, no corpus'
    again = tmp_path / "again"
    monkeypatch.setattr("vit_clt.analysis.RetrievalIndex.build", None)
    assert main([*args, "--tokens", "patch", "--layers", "7", "--out", str(again)]) == 0
    table = read(again)[2]
    pd.testing.assert_frame_equal(
        table.filter(regex="codes|inputs|chance|active"),
        frame.query("tokens == 'patch' and layer == 7")
        .filter(regex="^(codes|inputs|chance|active)(?!.*untrained)")
        .reset_index(drop=True),
    )


def test_queries_from_the_corpus_leave_their_own_row_out(digits_clt: Path, tmp_path: Path):
    out = tmp_path / "out"
    args = ["--data", "digits", "--split", "train", "--tokens", "cls", *FEW]
    assert main(["retrieve", "--clt", str(digits_clt), *args, "--out", str(out)]) == 0
    context, _, _ = read(out)
    assert "left out of its own neighbours" in context["own_rows"]
    near = pd.read_csv(out / "neighbours.csv")
    assert (near["query"] == 3).all()
    assert (near["row"] != 3).all()


def test_refused(digits_clt: Path, refused: Callable[..., str], tmp_path: Path, monkeypatch):
    start = ["retrieve", "--clt", digits_clt]
    assert "query is 12; expected images from 0 to 11" in refused(
        *start, "--limit", "12", "--query", "0", "12"
    )
    assert "--top is 0; expected at least 1" in refused(*start, *FEW, "--top", "0")
    assert "--top is 31" in refused(*start, "--limit", "4", *FEW[2:], "--top", "31")
    assert "layers contains 8" in refused(*start, *FEW, "--layers", "8")
    kept = [*map(str, start), *FEW, "--index", str(tmp_path / "index")]
    assert main([*kept, "--out", str(tmp_path / "out")]) == 0
    sentence = refused(*kept, "--corpus-limit", "31")
    assert "the index holds 30 images of digits (train); found 31" in sentence
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "vit-clt[faiss]" in refused(*start, "--search", "faiss")


def test_a_file_that_is_its_own_split_needs_a_corpus(
    digits_clt: Path, refused: Callable[..., str], tmp_path: Path, offline_datasets: None
):
    import datasets
    from PIL import Image

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    images = [Image.new("L", (8, 8), 40 * i) for i in range(4)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)
    file = tmp_path / "images.parquet"
    table.to_parquet(str(file))
    args = ["retrieve", "--clt", digits_clt, "--data", f"parquet:{file}", "--query", "0"]
    assert "corpus is missing" in refused(*args)
    assert "classes that are not the 2" in refused(*args, "--corpus", "digits")
