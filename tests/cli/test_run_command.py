"""`vit-clt run`: one command trains, studies and joins the pages; it goes on where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vit_clt.analysis.viewer.encoding import script_value
from vit_clt.cli import main
from vit_clt.cli.audit import Audit
from vit_clt.cli.claims import Claims
from vit_clt.cli.explore import Explore
from vit_clt.cli.run import STUDIES, Run, Train
from vit_clt.cli.study_pages import PAGES, index_page

ARGS = [
    *("run", "--model", "digits", "--data", "digits", "--n-features", "64", "--k", "8"),
    *("--limit", "120", "--epochs", "1", "--eval-limit", "24", "--graphs", "1"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a & b"
    assert main([*ARGS, "--out", str(out)]) == 0
    return out


def test_every_study_has_a_page_that_the_first_page_and_the_explorer_link_to(out: Path):
    index = (out / "index.html").read_text()
    assert "<h1>" in index
    assert "a &amp; b</h1>" in index
    found = re.findall(r'href="(.*?)"', index)
    assert all((out / page).is_file() for page in found)
    expected = {
        f"{'clt' if study is Train else name}/{PAGES[name].name}.html"
        for study in STUDIES
        if (name := study.command_name()) != "audit"
    }
    assert set(found) == expected | {"explore/index.html"}
    document = script_value((out / "explore" / "data.js").read_text())
    links = document["links"]
    assert {f"../{page}" for page in expected} | {"names.html"} == set(links.values())
    # what was claimed of this CLT stands in the explorer
    claims = json.loads((out / "claims" / "metrics.json").read_text())["context"]
    audit = next(each for each in document["bar"] if each["name"] == "Audit")
    assert all(claim in audit["text"] for claim in claims["claims"])
    for name in ("claims", "contributions"):
        context = json.loads((out / name / "metrics.json").read_text())
        assert {metric["n"] for metric in context["metrics"]} <= {24, 12}


def test_resumed_it_repeats_only_what_is_missing(out: Path, capsys: pytest.CaptureFixture[str]):
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    (out / "cascade" / "metrics.json").unlink()
    assert main([*ARGS, "--out", str(out), "--resume"]) == 0
    assert (out / "cascade" / "metrics.json").is_file()
    again = {path for path, at in kept.items() if path.stat().st_mtime_ns != at}
    # the explorer shows the new study
    assert again == {out / name / "metrics.json" for name in ("cascade", "explore")}
    assert "is finished" in capsys.readouterr().out


def test_other_images_are_not_mixed_in(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*ARGS, "--eval-limit", "30", "--out", str(out), "--resume"]) == 2
    assert "--eval-limit is 30; expected 24" in capsys.readouterr().err


def test_images_trained_on_are_not_measured_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    data = f"imagefolder:{folder}"
    args = ["run", "--model", "digits", "--data", data, "--n-features", "64", "--k", "8"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    assert "--eval-data is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_audit_of_before_is_not_taken(out: Path, tmp_path: Path):
    again = tmp_path / "again"
    shutil.copytree(out, again)
    shutil.copytree(out / "claims", again / "audit")
    command = Run(out=again, model="digits", data="digits", eval_limit=24)
    assert command._audited([Train, Claims]) == again / "claims"
    assert command._audited([Train, Claims, Audit]) == again / "audit"
    assert command._audited([Train]) is None
    # what was made after the explorer is not in it yet
    explore = Explore(clt="", out=again / "explore")
    assert not command._newer(explore, [Train, Claims])
    (again / "audit" / "metrics.json").touch()
    assert command._newer(explore, [Train, Claims, Audit])


def test_a_folder_that_holds_something_is_refused(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*ARGS, "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_study_that_is_not_possible_is_left_out_with_its_reason(
    out: Path, monkeypatch: pytest.MonkeyPatch
):
    from vit_clt.cli.cascade import Cascade
    from vit_clt.errors import InputError

    def refuse(self: Cascade) -> None:
        raise InputError("tokens", "is <b>; expected another.")

    monkeypatch.setattr(Cascade, "run", refuse)
    command = Run(out=out, model="digits", data="digits", eval_limit=24)
    assert command._left_out(Cascade) == "tokens is <b>; expected another."
    page = index_page("t", {}, {"C": "tokens is <b>; expected."})
    assert "left out. tokens is &lt;b&gt;" in page
