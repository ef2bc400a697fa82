"""Progress is drawn on a terminal and written line by line into a log."""

from __future__ import annotations

import io
from unittest.mock import patch

import pytest

from vit_clt import progress as module
from vit_clt.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def counted(stream: io.StringIO, n: int, seconds: float, **options: object) -> str:
    """What is written while n steps are counted, each so many seconds long by the clock."""
    now = [0.0]
    with (
        patch.object(module.time, "monotonic", lambda: now[0]),
        Progress(total=n, desc="train", file=stream, mininterval=0, **options) as bar,
    ):
        for _ in range(n):
            now[0] += seconds
            bar.update()
    return stream.getvalue()


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    text = counted(io.StringIO(), 25, 1, unit=" images")
    assert "\r" not in text
    lines = text.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [
        "train: 10/25 images",
        "train: 20/25 images",
        "train: 25/25 images",
    ]
    assert all(lines)


def test_short_work_is_one_line() -> None:
    assert counted(io.StringIO(), 400, 0.01).startswith("train: 400/400it in ")
    assert counted(io.StringIO(), 400, 0.01).count("\n") == 1


def test_an_iterable_ends_with_one_line_and_postfixes_stand_in_it() -> None:
    stream = io.StringIO()
    bar = Progress([1, 2, 3], "epochs", file=stream)
    for i in bar:
        bar.set_postfix(loss=i)
    assert stream.getvalue().startswith("epochs: 3/3it in ")
    assert stream.getvalue().endswith("loss=3\n")
    bar.close()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    "kind", [Terminal, type("Out", (io.StringIO,), {"__module__": "ipykernel.x"})]
)
def test_terminals_and_notebooks_have_a_bar(kind: type[io.StringIO]) -> None:
    text = counted(kind(), 3, 1)
    assert text.count("\r") > 3
    assert "100%|" in text


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_nothing_is_written_when_disabled(kind: type[io.StringIO]) -> None:
    assert counted(kind(), 30, 1, disable=True) == ""
