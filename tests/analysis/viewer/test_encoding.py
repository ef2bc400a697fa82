"""How data are written for the front end, and its pages in one file."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from IPython.display import HTML

from vit_clt.analysis.reporting import style
from vit_clt.analysis.reporting.notice import SLOT
from vit_clt.analysis.viewer.encoding import STEPS, map_text, number, script, script_value
from vit_clt.analysis.viewer.front_end import PALETTE, SCRIPTS, front_end, part
from vit_clt.analysis.viewer.inline import inline_frame, inline_page


def unfolded(text: str, n: int) -> list[int]:
    """The steps of a map, read as the front end reads them."""
    found = []
    for piece in re.findall(r"\d+|[A-Za-z]", text):
        if piece.isdigit():
            found += [0] * int(piece)
        else:
            found.append(ord(piece) - 64 if piece.isupper() else 96 - ord(piece))
    return found + [0] * (n - len(found))


@given(arrays(float, (3, 4), elements=st.integers(-999, 999)))
def test_a_map_keeps_signs_and_sizes(values: np.ndarray):
    scale = float(np.abs(values).max())
    steps = np.array(unfolded(map_text(values, scale), 12)).reshape(3, 4)
    assert ((steps != 0) == (values != 0)).all()
    assert (np.sign(steps) == np.sign(values)).all()
    if scale:
        assert np.abs(steps / STEPS * scale - values).max() <= scale / STEPS
        assert np.abs(steps).max() == STEPS


def test_a_silent_map_is_empty_and_runs_are_counted():
    assert map_text(np.zeros((7, 7)), 0.0) == ""
    values = np.zeros((4, 4))
    values[0, 2], values[3, 3] = 1.0, -1e-6
    assert map_text(values, 1.0) == "2Z12a"


def test_numbers_and_scripts():
    assert number(math.nan) is None
    assert number(0.123456) == 0.1235
    text = script("layers[3]", {"a": [1, None]})
    assert text == 'EXPLORER.layers[3] = {"a":[1,null]};\n'
    assert script_value(text) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        script("pages[0]", math.inf)


def test_every_script_is_loaded_in_order_and_colours_are_those_of_figures():
    page = part("index.html")
    assert SLOT in page
    assert re.findall(r'<script src="(.*?)">', page) == ["data.js", *SCRIPTS]
    assert set(PALETTE.values()) <= {v for v in vars(style).values() if isinstance(v, str)}
    # no colour of a chart is written into the scripts
    assert not [name for name in SCRIPTS if re.search(r"#[0-9A-Fa-f]{6}", part(name))]


def test_one_page_holds_everything_and_no_text_ends_a_script():
    document = {"title": "</script><b>", "layers": {}}
    files = [
        ("images/sheet-001.png", b"png"),
        ("layers/layer-00.js", script("layers[0]", "</script> & <!--")),
        *front_end(document),
    ]
    page = inline_page(files)
    assert "src=" not in page
    assert "href=" not in page.split("<script>")[0].replace('href="data:,"', "").replace(
        'href="#/', ""
    )
    assert page.count("</script>") == 3 + len(SCRIPTS)
    assert page.index("window.EXPLORER") < page.index("EXPLORER.layers[0]") < page.index("showList")
    assert json.dumps({"1": "data:image/png;base64,cG5n"}, separators=(",", ":")) in page
    frame = inline_frame(files, 'a "title"')
    assert frame.startswith('<div><iframe title="a &quot;title&quot;"')
    assert "<script>" not in frame
    HTML(frame)  # without the warning that IPython has for a bare frame
