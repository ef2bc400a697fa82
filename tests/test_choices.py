"""Every value that an option takes is declared once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from vit_clt import choices
from vit_clt.analysis.features.choice import RULES
from vit_clt.analysis.reproduction.cells import BACKBONES
from vit_clt.choices import check_choice
from vit_clt.data.prompts import TEMPLATE_SETS
from vit_clt.errors import InputError
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.transcoder.train_config import PRESETS

ROOT = Path(choices.__file__).parents[1]
DECLARED = {n: v for n, v in vars(choices).items() if get_origin(v) is Literal}


@pytest.mark.parametrize(
    ("table", "declared"),
    [
        (PRESETS, choices.Preset),
        (SPARSIFIERS, choices.SparsifierName),
        (TEMPLATE_SETS, choices.Templates),
        (BACKBONES, choices.Backbone),
        (RULES, choices.Rule),
    ],
)
def test_tables_hold_the_declared_names(table: dict[str, Any], declared: Any):
    assert set(table) == set(get_args(declared))


def test_the_command_line_declares_no_values_of_its_own():
    for path in (ROOT / "vit_clt" / "cli").glob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert "Literal" not in names, path


def test_a_choice_is_refused_with_all_that_are_known():
    check_choice("site", "mlp", get_args(choices.Site))
    with pytest.raises(InputError) as caught:
        check_choice("site", "moon", get_args(choices.Site))
    assert str(caught.value) == 'site is "moon"; expected one of "mlp", "attn".'
    assert caught.value.field == "site"


def test_the_list_is_free_of_torch():
    lazy = "import sys, vit_clt.choices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lazy]).returncode == 0
