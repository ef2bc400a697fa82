"""`vit-clt study`: several studies from one pass of the ViT, with the numbers of each alone."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import random_clt
from PIL import Image

from vit_clt import CrossLayerTranscoder
from vit_clt.cli import main
from vit_clt.cli.ablate import Ablate
from vit_clt.cli.contributions import Contributions
from vit_clt.cli.loaded import loaded_once, once
from vit_clt.cli.probe import Probe
from vit_clt.cli.study import NOT_HERE, Study
from vit_clt.cli.study_pages import PAGES
from vit_clt.data import ImageData, ImageSubset
from vit_clt.forecast import trial
from vit_clt.forecast.work import PARTS
from vit_clt.hooks import HookedViT

STUDIES = {
    "contributions": [],
    "ablate": ["--fill", "resample", "--draws", "2"],
    "reconstruct": [],
    "features": ["--layers", "6,7", "--count", "4"],
    "causal": ["--linear"],
}
N = 70


def without_trial(patch: pytest.MonkeyPatch) -> None:
    """The trial that tells the time runs the ViT on a few images of its own."""
    patch.setattr(trial, "measured_rates", lambda *_: dict.fromkeys(PARTS, 1e-3))


@pytest.fixture(scope="module")
def shared(digits_clt: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """The folder of the five studies together, and the batches that the ViT ran over.

    Runs that need more than the residual stream and MLPs (of the attention layers) do not count.
    """
    runs: list[bytes] = []
    live = HookedViT._run_clean
    out = tmp_path_factory.mktemp("study") / "studies"
    with pytest.MonkeyPatch.context() as patch:

        def counted(vit: HookedViT, images: Any, names: Any) -> Any:
            if not any("attn" in name for name in names):
                runs.append(images.numpy().tobytes())
            return live(vit, images, names)

        patch.setattr(HookedViT, "_run_clean", counted)
        without_trial(patch)
        studies = [" ".join([name, *own]) for name, own in STUDIES.items()]
        assert main(["study", *studies, *of(digits_clt), "--out", str(out)]) == 0
    return out, runs


def of(clt: Path) -> list[str]:
    return ["--clt", str(clt), "--data", "digits", "--limit", str(N)]


@pytest.mark.parametrize("name", STUDIES)
def test_each_has_the_files_of_the_command_alone(
    name: str, shared: tuple[Path, list[bytes]], digits_clt: Path, tmp_path: Path
):
    assert main([name, *of(digits_clt), *STUDIES[name], "--out", str(tmp_path / "alone")]) == 0
    files = sorted(p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*.*"))
    assert len(files) > 4
    assert files == sorted(p.relative_to(shared[0] / name) for p in (shared[0] / name).rglob("*.*"))
    for file in files:
        assert filecmp.cmp(tmp_path / "alone" / file, shared[0] / name / file, shallow=False), file


def test_the_vit_runs_over_the_images_once(
    shared: tuple[Path, list[bytes]], digits_test: ImageData
):
    batches = [images.numpy().tobytes() for images, _ in ImageSubset(digits_test, range(N))]
    assert [shared[1].count(batch) for batch in batches] == [1, 1]
    assert shared[1][:2] == batches
    assert not (shared[0] / ".passes").exists()


def test_the_first_page_links_to_each(shared: tuple[Path, list[bytes]]):
    found = re.findall(r'href="(.*?)"', (shared[0] / "index.html").read_text())
    assert [page.split("/")[0] for page in found] == list(STUDIES)
    assert all((shared[0] / page).is_file() for page in found)


def test_resumed_it_makes_what_is_missing(
    shared: tuple[Path, list[bytes]], digits_clt: Path, capsys: pytest.CaptureFixture[str]
):
    out = shared[0]
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    (out / "reconstruct" / "metrics.json").unlink()
    studies = [" ".join([name, *own]) for name, own in STUDIES.items()]
    again = ["study", *studies, *of(digits_clt), "--out", str(out)]
    assert main(again) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*again, "--seed", "1", "--resume"]) == 2
    assert "--seed is 1; expected 0" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    made = [path for path, at in kept.items() if path.stat().st_mtime_ns != at]
    assert made == [out / "reconstruct" / "metrics.json"]


def test_a_clt_that_was_trained_anew_is_not_gone_on_with(
    digits_clt: Path, digits_vit: HookedViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clt = tmp_path / "clt"
    shutil.copytree(digits_clt, clt)
    args = ["study", "weights", *of(clt), "--out", str(tmp_path / "out")]
    assert main(args) == 0
    assert main([*args, "--templates", "single", "--resume"]) == 2
    assert "--templates is 'single'; expected 'ensemble'" in capsys.readouterr().err
    random_clt(digits_vit, seed=3).save_pretrained(clt)
    assert main([*args, "--resume"]) == 2
    assert "clt_sha256 is" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adding_clt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adding") / "clt"
    vit = HookedViT.load("adding")
    clt = random_clt(vit)
    clt.config = replace(clt.config, teacher=vit.identity())
    clt.save_pretrained(folder)
    return folder


def test_every_study_is_of_the_vit_of_the_clt(adding_clt: Path, tmp_path: Path):
    data = ["--data", "adding", "--limit", "40", "--train-limit", "400"]
    study = ["study", "probe --layers 1", "reconstruct", "--clt", str(adding_clt), *data]
    assert main([*study, "--out", str(tmp_path / "together")]) == 0
    alone = ["probe", "--model", "adding", "--layers", "1", *data, "--out", str(tmp_path / "alone")]
    assert main(alone) == 0
    for name in ("metrics.json", "probe.csv"):
        assert filecmp.cmp(tmp_path / "alone" / name, tmp_path / "together" / "probe" / name, False)


def test_a_study_has_its_own_defaults_for_what_is_not_given(digits_clt: Path, tmp_path: Path):
    bare = Study(clt=str(digits_clt), out=tmp_path, studies=("probe", "reconstruct"))
    commands = bare._commands()
    usual = Probe(out=tmp_path)
    assert usual.limit is not None
    assert commands["probe"].limit == usual.limit
    assert commands["probe"].train_limit == usual.train_limit
    given = replace(bare, limit=7, seed=2)._commands()["probe"]
    assert (given.limit, given.seed) == (7, 2)


def test_a_clt_of_another_vit_is_said_of_every_study(
    adding_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clt, other = CrossLayerTranscoder.from_pretrained(adding_clt), tmp_path / "other"
    assert clt.config.teacher is not None
    teacher = replace(clt.config.teacher, weights_sha256="0" * 64)
    clt.config = replace(clt.config, teacher=teacher)
    clt.save_pretrained(other)
    given = ["--clt", str(other), "--data", "adding", "--limit", "20", "--out", str(tmp_path / "o")]
    assert main(["study", "reconstruct", "contributions", *given]) == 2
    assert "weights_sha256" in capsys.readouterr().err
    assert main(["study", "reconstruct", "contributions", *given, "--any-teacher"]) == 0
    assert capsys.readouterr().out.count("WARNING: Teacher: not the one trained on") == 2
    for name in ("reconstruct", "contributions"):
        context = json.loads((tmp_path / "o" / name / "metrics.json").read_text())["context"]
        assert context["data"].startswith("adding")
        assert "not the one trained on" in context["teacher"]


def test_a_study_that_lacks_images_stops_no_other(
    digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    data = ["--clt", str(digits_clt), "--data", f"imagefolder:{folder}"]
    args = ["study", "retrieve", "weights", *data, "--out", str(tmp_path / "out")]
    assert main(args) == 2
    assert "1 of 2 studies left out: retrieve: " in capsys.readouterr().err
    assert (tmp_path / "out" / "weights" / "weights.html").is_file()


def test_what_is_kept_is_found_after_an_error(
    digits_clt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Contributions, "run", lambda self: 1 / 0)
    args = ["study", "weights", "contributions", *of(digits_clt), "--out", str(tmp_path / "out")]
    assert main(args) == 1
    assert "weights/weights.html" in (tmp_path / "out" / "index.html").read_text()
    assert not (tmp_path / "out" / ".passes").exists()


def test_what_cannot_be_made_is_left_out_and_the_others_are_there(
    digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    args = ["study", "contributions --image 90", "weights", *of(digits_clt), "--out", str(out)]
    assert main(args) == 2
    said = capsys.readouterr()
    assert "1 of 2 studies left out: contributions: image is 90" in said.err
    assert (out / "weights" / "weights.html").is_file()
    assert "left out. " in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        (["foo"], 'the studies hold "foo"; expected some of reconstruct, '),
        (["ablate", "ablate --fill mean"], "the studies hold ablate twice"),
        (["ablate 'x"], "expected closed quotes"),
        ([], "no study is named"),
        (["ablate --fil mean"], "--fil is no option of vit-clt ablate; expected --fill"),
        (["reconstruct", "ablate --target 99"], "target contains 99"),
        (["ablate --draws 0"], "draws is 0"),
        (["reconstruct --limit 3"], "--limit is given with reconstruct alone; expected it once"),
        (["reconstruct --out elsewhere"], "--out is given with reconstruct alone"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(
    studies: list[str],
    said: str,
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert main(["study", *studies, *of(digits_clt), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_passes_without_room_are_not_kept(
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("vit_clt.cli.study_pages.shutil.disk_usage", lambda path: usage)
    out = tmp_path / "out"
    assert main(["study", "reconstruct", *of(digits_clt), "--out", str(out)]) == 0
    assert "they are not kept, every study runs the ViT" in capsys.readouterr().out
    assert json.loads((out / "reconstruct" / "metrics.json").read_text())["metrics"]


def test_studies_of_other_runs_read_the_cache(
    digits_clt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = ["--cache", str(tmp_path / "cache")]
    args = ["contributions", *of(digits_clt)]
    assert main([*args, "--out", str(tmp_path / "first"), *cache]) == 0
    without_trial(monkeypatch)
    monkeypatch.setattr(HookedViT, "_run_clean", lambda *_: pytest.fail("the ViT ran"))
    assert main([*args, "--out", str(tmp_path / "second"), *cache]) == 0
    names = [p.name for p in (tmp_path / "first").iterdir()]
    assert len(names) > 4
    for name in names:
        assert filecmp.cmp(tmp_path / "first" / name, tmp_path / "second" / name, shallow=False)


def test_help_names_every_study():
    said = " ".join((Study.__doc__ or "").split())
    [listed] = re.findall(r"Studies: ([^.]*)\.", said)
    assert listed.split(", ") == [name for name in PAGES if name not in NOT_HERE]


def test_what_is_shared_depends_on_all_its_options(digits_clt: Path, digits_vit: HookedViT):
    def loaded(**options: Any) -> tuple[Any, ...]:
        made = Ablate(clt=str(digits_clt), out=Path("o"), data="digits", limit=30, **options)
        vit, clt, data = made.load_all("cpu")
        return vit, clt, data, made.classifier(vit, data, made.seed)

    with loaded_once():
        first = loaded()
        assert all(a is b for a, b in zip(first, loaded(), strict=True))
        templates = loaded(templates="single")
        assert templates[2] is first[2]
        assert templates[3] is not first[3]
        linear = loaded(readout="linear", train_limit=40)
        for more in ({"train_limit": 50}, {"seed": 1}):
            options = {"readout": "linear", "train_limit": 40} | more
            assert loaded(**options)[3] is not linear[3]
        assert loaded(split="train", readout="text")[2] is not first[2]
        names = Path(digits_clt).parent / "names.txt"
        names.write_text("\n".join(f"digit {i}" for i in range(10)))
        assert loaded(class_names=names)[2].class_names[3] == "digit 3"
        assert loaded(any_teacher=True)[1] is not first[1]


def test_once_loads_once_only_inside_its_context():
    loads: list[str] = []

    def load() -> str:
        loads.append("x")
        return "loaded"

    assert [once(load, "a"), once(load, "a")] == ["loaded"] * 2
    assert len(loads) == 2
    with loaded_once():
        once(load, "a")
        with loaded_once():
            once(load, "a")
            once(load, "b")
        once(load, "b")
        assert len(loads) == 4
    once(load, "a")
    assert len(loads) == 5
