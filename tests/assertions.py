"""What tests assert in many places."""

from __future__ import annotations

import html
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vit_clt import CrossLayerTranscoder
from vit_clt.analysis.reporting.study import Study, study_files, write_study
from vit_clt.outputs import OutputFolder


def close(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Assert that two computations of the same numbers agree, in values and in dtype.

    Args:
        found: computed by the package, with or without a graph.
        expected: computed in another way or in another order.
        tolerance: absolute and relative; 1e-10 for float64 and 1e-5 otherwise unless given.
    """
    if tolerance is None:
        tolerance = 1e-10 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which must be one sentence."""
    text = str(error.value)
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def same_clt(found: CrossLayerTranscoder, expected: CrossLayerTranscoder) -> None:
    """Assert that two CLTs have the same configuration and the same bits."""
    assert found.config == expected.config
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def tells_itself(study: Study, place: Path) -> dict[str, Any]:
    """The context of metrics.json, once files and a notebook's cell are what `Study` promises.

    Args:
        study: a result.
        place: a folder for its files, absent or empty.
    """
    told = (study, *study.companions())
    declared = set(study_files(*map(type, told)))
    folder = OutputFolder(place, sorted(declared)).open()
    write_study(folder, study, "a test")
    pictures = {f"{each.name}.png" for each in told}
    written = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
    # a name may hold wildcards
    assert not [name for name in written if not any(fnmatch(name, each) for each in declared)]
    assert not [each for each in declared - pictures if not any(fnmatch(n, each) for n in written)]
    for each in told:
        cell = each._repr_html_()
        assert f"<p>{html.escape(each.caption())}</p>" in cell
        assert "Plotly.newPlot" in cell
        tables = (each.printed(), *each.further_tables().values())
        assert cell.count("<tr") == sum(1 + len(table) for table in tables)
        assert each.caption() in (place / f"{each.name}.md").read_text()
    document = json.loads((place / "metrics.json").read_text())
    assert len(document["metrics"]) == len(study.metrics())
    context: dict[str, Any] = document["context"]
    return context
