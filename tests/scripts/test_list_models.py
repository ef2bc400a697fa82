"""The page of models counts what its tables say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from vit_clt.hooks.towers.open_clip_names import shape_of

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("list_models")


def test_the_counts_are_those_of_the_tables() -> None:
    tables = DOCS.read_text(encoding="utf-8").partition("<!-- models:")[2]
    sections = re.split(r"^## ", tables, flags=re.MULTILINE)[1:]
    readme = (DOCS.parents[1] / "README.md").read_text(encoding="utf-8")
    fits = {}
    for section in sections:
        title, n_fit, n = re.match(r"(.*): (\d+) of (\d+)\n", section).groups()
        answers = re.findall(r"^\| [^|]+ \| (yes|no) \|", section, flags=re.MULTILINE)
        assert (answers.count("yes"), len(answers)) == (int(n_fit), int(n))
        fits[title] = int(n_fit), int(n)
    of_open_clip = fits.pop("open_clip")
    assert "of open_clip {} of {} names".format(*of_open_clip) in readme
    assert f"timm {sum(n_fit for n_fit, _ in fits.values())} (" in readme


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EVA02-B-16", "yes | timm: 12 layers, width 768, CLS + 14 x 14 patches"),
        ("ViT-B-16-SigLIP", "yes | timm: 12 layers, width 768, 14 x 14 patches"),
        ("convnext_base", "no | a vision tower of class ConvNeXt"),
    ],
)
def test_a_line_tells_shape_or_reason(name: str, expected: str, script: ModuleType) -> None:
    text, fits = script.line(name, shape_of)
    assert text == f"| {name} | {expected} |"
    assert fits == expected.startswith("yes")
    assert text in DOCS.read_text(encoding="utf-8")
