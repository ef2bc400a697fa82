"""The peer race runs without peers, refuses bad ones, and notices a step that is not the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import bench_peers
    import measure
    from bench_step import Size

    monkeypatch.setattr(measure.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    tiny = Size(layers=2, d_model=8, features=32, k=4, tokens=16)
    monkeypatch.setitem(bench_peers.SIZES, "tiny", tiny)
    return bench_peers


def test_without_peers_only_ours_runs_and_every_peer_is_named(bench, tmp_path, capsys):
    out = tmp_path / "out" / "peers.json"
    with pytest.raises(SystemExit) as ended:
        bench.main(["--sizes", "tiny", "--rounds", "2", "--out", str(out)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, peer in bench.PEERS.items():
        [line] = [each for each in printed.splitlines() if each.startswith(f"{name}: skipped")]
        assert peer.requirement.split()[0] in line
    [row] = json.loads(out.read_text())["races"][0]["rows"]
    assert (row["step"], row["ratio"], len(row["cpu"])) == ("ours", 1.0, 2)
    # a round that does not count, then two: each a step of training
    assert row["losses"] == sorted(row["losses"], reverse=True)
    assert len(set(row["losses"])) == 3


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("nobody=python", "NAME=PYTHON"),
        ("decode-clt=/no/such/python", "no executable file"),
        # this environment has an interpreter but not the package
        (f"decode-clt={sys.executable}", "No module named 'clt'"),
    ],
)
def test_a_peer_that_cannot_run_ends_the_race_with_a_sentence(bench, tmp_path, capsys, pair, words):
    out = tmp_path / "peers.json"
    with pytest.raises(SystemExit) as ended:
        bench.main(["--sizes", "tiny", "--peers", pair, "--out", str(out)])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_other_losses_are_not_the_same_step(bench):
    mine = [32.18, 32.09, 31.97]
    assert bench.same_losses(mine, mine)
    assert bench.same_losses(mine, [32.18, 32.088, 31.97])
    assert not bench.same_losses(mine, [32.15, 32.05, 31.93])  # other outputs
    assert not bench.same_losses(mine, [32.18, 32.18, 32.18])  # no gradient


def test_every_entry_is_a_contestant_that_can_be_built(bench):
    from peer_step import CONTESTANTS

    assert {*bench.ENTRIES, bench.OURS} == {*CONTESTANTS}
