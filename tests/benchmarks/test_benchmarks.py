"""The benchmarks' contestants compute the same step, and a loaded machine is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from builders import random_clt

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import bench_step

    return bench_step


def test_all_contestants_give_the_same_gradients(bench):
    # `contestants` compares them before it returns
    runs = bench.contestants(bench.Size(layers=3, d_model=8, features=32, k=4, tokens=16))
    assert {"ours, dense", "ours, sparse", "ours, auto", "dense per pair"} <= set(runs)


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_a_shared_prefix_gives_what_a_pass_a_range_gives(bench, digits_vit, tokens):
    import bench_cascade
    import torch

    images = torch.randn(3, 3, *digits_vit.cfg.image_size)
    with torch.inference_mode():
        runs = bench_cascade.contestants(digits_vit, random_clt(digits_vit), images, tokens)
        outputs = {name: run() for name, run in runs.items()}
    assert len(outputs["full passes"]) == 8
    for ours, whole in zip(outputs["shared prefix"], outputs["a pass a range"], strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)


def test_keep_sets_read_at_once_are_those_of_a_pass_a_set(bench, digits_vit):
    import bench_keep_sets
    import torch

    images = torch.randn(5, 3, *digits_vit.cfg.image_size)
    data = bench_keep_sets.TensorImages(images, torch.arange(5), list("abcdefghij"))
    with torch.inference_mode():
        runs = bench_keep_sets.contestants(digits_vit, random_clt(digits_vit), data, n_passes=4)
        at_once, each = (run() for run in runs.values())
    assert (len(at_once), len(each)) == (70, 4)
    torch.testing.assert_close(at_once[:4], each, rtol=1e-4, atol=1e-5)


def test_a_table_made_under_load_is_marked_and_fails(bench, monkeypatch, tmp_path, capsys):
    import measure

    for load, code in ((0.0, 0), (64.0, 1)):
        monkeypatch.setattr(measure.os, "getloadavg", lambda load=load: (load, load, load))
        monkeypatch.setattr(measure.os, "cpu_count", lambda: 2)
        with pytest.raises(SystemExit) as ended:
            measure.finish({"rows": []}, measure.LoadWatch(), tmp_path / "out" / "table.json")
        assert ended.value.code == code
        assert ("LOADED" in capsys.readouterr().out) == bool(code)
        written = json.loads((tmp_path / "out" / "table.json").read_text())
        assert written["load"]["loaded"] == bool(code)
        assert written["machine"]["torch"]


def test_ratios_are_taken_within_rounds(bench):
    import measure

    timings = {"slow": measure.Timing([2.0, 9.0]), "fast": measure.Timing([1.0, 3.0])}
    assert measure.ratios(timings, "fast", "slow") == (2.5, 2.0, 3.0)
    timings["slow"].wall, timings["fast"].wall = [1.0], [2.0]
    assert measure.ratios(timings, "fast", "slow", clock="wall") == (0.5, 0.5, 0.5)
    turns = []
    runs = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    timings = measure.interleave(runs, rounds=2)
    assert turns == list("ababab")
    assert len(timings["a"].cpu) == 2


def test_screening_and_threads_are_raced_on_the_same_step(bench, monkeypatch, capsys):
    import bench_screening
    import bench_threads
    import torch

    from vit_clt.kernels import sparse

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no oneDNN products in bfloat16")
    size, rule = bench.Size(layers=1, d_model=32, features=1024, k=4, tokens=64), sparse.screens
    monkeypatch.setitem(bench_screening.SIZES, "mid", size)
    rows = bench_screening.race("mid", rounds=1)["rows"]
    assert [row["what"] for row in rows] == ["encode", "encode, signed", "step"]
    rows = bench_threads.race("mid", torch.get_num_threads(), rounds=1)["rows"]
    assert rows[0]["what"] == "step"
    assert all(row["ratio"] > 0 for row in rows)
    assert sparse.screens is rule
    assert "screening decides" in capsys.readouterr().out


@pytest.mark.parametrize("bandwidth", [1.0, 0.1])
def test_a_jump_relu_step_fires_as_often_as_it_says(bench, bandwidth):
    import bench_jump
    import torch

    size = bench.Size(layers=2, d_model=32, features=256, k=4, tokens=512)
    torch.manual_seed(0)
    clt = bench_jump.firing_clt(size, bandwidth, 0.05)
    with torch.no_grad():
        density = clt.encode(size.inputs()[0]).density()
    assert density == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("zipf", [False, True])
def test_every_search_finds_the_same_neighbours(bench, zipf):
    import bench_retrieval
    import numpy as np

    corpus, queries = (
        bench_retrieval.random_codes(n, 300, 20, seed, zipf) for seed, n in enumerate((150, 9))
    )
    assert (np.diff(corpus.indptr) == 20).all()
    runs = bench_retrieval.contestants(queries, corpus)
    assert {"dense", "exact"} <= set(runs)
    for run in runs.values():
        np.testing.assert_array_equal(run(), runs["dense"]())


def test_gathered_codes_take_eight_bytes_an_entry(bench):
    import bench_retrieval

    found = bench_retrieval.build(200, 300, 20)
    assert found["rows"] == 200
    assert found["matrix"] * 2**20 == 200 * 20 * 8 + 201 * 4


@pytest.mark.parametrize("cross_layer", [True, False])
def test_matmul_work_is_what_a_dense_step_does(bench, cross_layer):
    import bench_gpu
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK

    config = CLTConfig(3, 8, 32, ReLUTopK(4), cross_layer=cross_layer)
    clt = CrossLayerTranscoder(config, backend="dense")
    counter = FlopCounterMode(display=False)
    with counter:
        clt(torch.randn(3, 10, 8)).square().sum().backward()
    assert counter.get_total_flops() == 10 * bench_gpu.matmul_flops(config, "dense")


def test_the_gpu_bench_runs_dry(bench, capsys):
    import bench_gpu
    import torch

    case = bench_gpu.Case("relu_topk", 4, 16, "sparse", "bf16")
    row = bench_gpu.measure(case, (2, 8, 32), torch.device("cpu"))
    assert len(row["ms"]) == bench_gpu.ROUNDS
    assert row["parts"]
    assert row["tokens_per_second"] > row["with_adamw"] > 0
    bench_gpu.show(row, 1e12)
    assert "| relu_topk k 4 | 16 | sparse | bf16 |" in capsys.readouterr().out


def test_a_case_that_does_not_fit_leaves_the_others(bench, capsys, monkeypatch, tmp_path):
    import bench_gpu
    import torch

    measure = bench_gpu.measure

    def small_gpu(case, shape, device):
        if case.sparsifier == "jumprelu" or case.backend == "dense":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(case, shape, device)

    monkeypatch.setattr(bench_gpu, "measure", small_gpu)
    out = tmp_path / "gpu.json"
    options = "--device cpu --shape 2,8,32 --tokens 16 --k 4 --precisions fp32 --matmul 64"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *options.split(), "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        bench_gpu.main()
    assert left.value.code == 0
    found = json.loads(out.read_text())
    assert [row["backend"] for row in found["rows"]] == ["sparse"]
    assert len(found["auto"]) == 1
    assert capsys.readouterr().err.count("CUDA out of memory") == 3
