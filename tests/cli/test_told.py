"""What commands tell of their work before they start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import random_clt

from vit_clt import analysis
from vit_clt.analysis.auditing import surrogate_check
from vit_clt.analysis.contributions.moments import contribution_moments
from vit_clt.analysis.fit import faithfulness_study, gate
from vit_clt.analysis.fit.reconstruction_study import reconstructions
from vit_clt.analysis.naming.study import name_features
from vit_clt.cli import feature_work, study_work
from vit_clt.cli.commands import COMMANDS, command_class, parse
from vit_clt.cli.told import told, told_together
from vit_clt.data.images import DecodedImages, TensorImages
from vit_clt.forecast import trial
from vit_clt.forecast.work import PARTS, Scope, Work
from vit_clt.hooks import HookedViT
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

N = 6


class Counted(TensorImages):
    """Images that count how often they are read."""

    read = 0

    def batch(self, numbers: Sequence[int]):
        """The images, counted."""
        self.read += len(numbers)
        return super().batch(numbers)


class Columns(Classifier):
    """Columns of the embedding as logits."""

    name = "columns"
    class_names = ("a", "b", "c")
    device = torch.device("cpu")

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The first three columns."""
        return embeddings[:, :3]


@pytest.fixture
def data(images: torch.Tensor) -> Counted:
    return Counted(images, torch.arange(N) % 3, class_names=["a", "b", "c"])


@pytest.fixture
def clt(tiny_vit: HookedViT) -> CrossLayerTranscoder:
    return random_clt(tiny_vit)


Study = Callable[[HookedViT, CrossLayerTranscoder, Counted, Classifier], object]
ROOM = 10**9
STUDIES: dict[str, tuple[Study, Callable[[Scope], Work]]] = {
    "reconstructions": (
        lambda vit, clt, data, zs: reconstructions(vit, {"CLT": clt}, data),
        lambda of: study_work.reconstruction_work(of, N),
    ),
    "codes kept": (
        lambda vit, clt, data, zs: contribution_moments(vit, clt, data),
        lambda of: study_work.contribution_work(of, N, ROOM),
    ),
    "no codes kept": (
        lambda vit, clt, data, zs: contribution_moments(vit, clt, data, kept_bytes=0),
        lambda of: study_work.contribution_work(of, N, 0),
    ),
    "effects": (
        lambda vit, clt, data, zs: analysis.effect_scores(vit, clt, data, zs),
        lambda of: study_work.effect_work(of, N),
    ),
    "cascade": (
        lambda vit, clt, data, zs: analysis.cascade(vit, clt, data, zs),
        lambda of: study_work.cascade_work(of, N, range(of.layers), ["cls"]),
    ),
    "causal": (
        lambda vit, clt, data, zs: analysis.causal_effects(vit, data, zs),
        lambda of: study_work.causal_work(of, N),
    ),
    "terms kept": (
        lambda vit, clt, data, zs: analysis.keep_sources(vit, clt, data, zs, sources=[1]),
        lambda of: study_work.term_work(of, N, "cls", [of.layers - 1], 6, ROOM),
    ),
    "no terms kept": (
        lambda vit, clt, data, zs: analysis.keep_sources(
            vit, clt, data, zs, sources=[1], kept_bytes=0
        ),
        lambda of: study_work.term_work(of, N, "cls", [of.layers - 1], 6, 0),
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_work_reads_as_many_images_as_the_study(
    name: str, tiny_vit: HookedViT, clt: CrossLayerTranscoder, data: Counted
) -> None:
    study, work = STUDIES[name]
    zs = Columns()
    of = Scope.of(tiny_vit, data, [clt])
    data.read = 0
    study(tiny_vit, clt, data, zs)
    assert data.read == pytest.approx(work(of).of("read"))


def test_less_memory_for_codes_is_more_passes(tiny_vit: HookedViT, data: Counted) -> None:
    of = Scope.of(tiny_vit, data, [random_clt(tiny_vit)])
    codes = study_work.code_bytes(of)
    half, all_kept, none = (
        study_work.contribution_work(of, N, room) for room in (3 * codes, 10 * N * codes, 0)
    )
    assert (all_kept.of("pass"), half.of("pass"), none.of("pass")) == (N, 1.5 * N, 2 * N)
    assert half.memory - none.memory == pytest.approx(3 * codes)
    assert all_kept.memory - none.memory == pytest.approx(N * codes)


LINES = {
    "reconstruct": "",
    "high-norm": "",
    "contributions": "--kind effect",
    "ablate": "--target all",
    "keep-sets": "",
    "cascade": "",
    "faithfulness": "",
    "causal": "--every-intervention",
    "claims": "",
    "retrieve": "--untrained",
    "features": "",
    "feature-scores": "",
    "heads": "",
    "graph": "",
    "steer": "--feature 1:1",
    "explore": "",
    "export": "",
    "probe": "",
}


@pytest.mark.parametrize("name", LINES)
def test_more_images_are_never_less_work(name: str, digits_clt: Path, tmp_path: Path) -> None:
    clt = [] if name == "probe" else ["--clt", str(digits_clt)]
    line = [name, *clt, "--data", "digits", "--out", str(tmp_path / "out")]
    command = parse([*line, *LINES[name].split()])

    def work(n: int) -> Work:
        sizes = {"layers": 8, "tokens": 17, "width": 64, "heads": 4, "classes": 10}
        codes = {"clts": 1, "features": 512, "active": 16.0}
        return command.work(
            Scope(n, **sizes, kinds=("cls", "patch", "all"), **codes, batch=64, train=n)
        )

    small, large = work(100), work(3000)
    assert large.memory >= small.memory > 0
    assert all(large.of(part) >= small.of(part) for part in PARTS)
    assert large.of("read") > 0


def test_every_command_that_reads_images_states_its_work() -> None:
    stated = {name for name in COMMANDS if "work" in vars(command_class(name))}
    assert stated == {*LINES, "fidelity", "demo"}
    # these add up the work of others, tell what a training takes, or read no images
    assert set(COMMANDS) - stated == {
        *("run", "study", "train", "audit", "reproduce"),
        *("doctor", "weights", "import"),
    }


@pytest.mark.parametrize("name", sorted({*LINES, "fidelity", "demo"}))
def test_every_command_tells_what_it_states(name: str) -> None:
    source = inspect.getsource(command_class(name))
    assert "self.tell(" in source or "self._tell_all(" in source


def test_an_image_that_cannot_be_read_is_for_the_command_to_refuse(
    tiny_vit: HookedViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(indices: list[int]) -> tuple[list[Any], list[Any]]:
        raise OSError("no image")

    data = DecodedImages(fetch, 5, lambda image: torch.zeros(3, 12, 12), [], "broken")
    parse(["graph", "--clt", str(tmp_path), "--out", "o"]).tell(tiny_vit, data)
    assert capsys.readouterr().out == ""


def test_several_commands_tell_the_sum_of_what_each_tells(
    tiny_vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: Counted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "measured_rates", lambda *_: dict.fromkeys(PARTS, 60.0))
    args = ["--clt", "missing", "--data", "digits", "--out", "o"]
    commands = [parse([name, *args]) for name in ("reconstruct", "cascade", "contributions")]
    seconds = []
    for command in commands:
        work = command.work(Scope.of(tiny_vit, data, [clt])) + study_work.REPORT
        alone = told(tiny_vit, [clt], data, work)
        command.tell(tiny_vit, data, [clt])
        assert capsys.readouterr().out.startswith(alone.line().partition(";")[0])
        seconds.append(alone.seconds)
    together = told_together(commands, tiny_vit, clt, data)
    assert together.seconds == pytest.approx(sum(seconds))
    # probes need other images, of which these data have none: it says so when it is its turn
    probe = parse(["probe", "--data", "digits", "--out", "o", "--train-data", "parquet:missing"])
    assert told_together([*commands, probe], tiny_vit, clt, data).seconds == together.seconds


def test_limits_that_works_repeat_are_those_of_the_studies() -> None:
    assert study_work.FIT_IMAGES == gate.N_IMAGES
    assert study_work.SIMILARITY_IMAGES == faithfulness_study.SIMILARITY_IMAGES
    assert study_work.CLAIM_IMAGES == surrogate_check.MOST_IMAGES
    assert signature(name_features).parameters["n_images"].default == feature_work.NAME_IMAGES
