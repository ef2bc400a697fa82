"""The pictures of docs/concepts.md, drawn as SVG: `python scripts/concept_pictures.py`.

Each function draws one picture on a light card, which is legible on light and dark pages. The
numbers on the axis of `floors` are those of `vit-clt demo`, as the README has them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
INK, PALE, MLP = "#1c1c1c", "#666666", "#e4e4e4"
SLIGHT, ERROR = "#8c4a1e", "#b3261e"
"""Of values that are altered a little, and more."""
SOURCES = ("#0072b2", "#d55e00", "#007a5a")
"""A colour for each source layer."""


class Picture:
    """An SVG under construction; coordinates are pixels from the upper left corner."""

    def __init__(self, title: str, width: int, height: int) -> None:
        """Begin a picture whose title is read aloud in its place."""
        self.size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        self.parts = [
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#c9c9c9"/>',
        ]
        self.colours: set[str] = set()

    def text(
        self, x: float, y: float, words: str, *, size: int = 16, bold: bool = False,
        colour: str = INK, anchor: str = "middle",
    ) -> None:  # fmt: skip
        """One line of text whose baseline is at y."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}"{weight}>{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, words: str = "", *,
        fill: str = MLP, colour: str = INK, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A box around a centre, with a word in it."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
            f'height="{height:g}" rx="5" fill="{fill}" stroke="{colour}"{dash}/>'
        )
        self.text(x, y + 5, words, colour=colour)

    def arrow(
        self, x0: float, y0: float, x1: float, y1: float, *,
        colour: str = INK, dashed: bool = False, width: float = 1.6,
    ) -> None:  # fmt: skip
        """An arrow between two points."""
        self.colours.add(colour)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{colour}" '
            f'stroke-width="{width:g}" marker-end="url(#tip{colour[1:]})"{dash}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled bar from its upper left corner."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'
        )

    def features(self, x: float, y: float, colour: str, active: tuple[int, ...] = (1, 4)) -> None:
        """A row of six features, of which a few are active."""
        for i in range(6):
            fill = colour if i in active else "#ffffff"
            self.parts.append(
                f'<circle cx="{x + 13 * (i - 2.5):g}" cy="{y:g}" r="5" fill="{fill}" '
                f'stroke="{colour}"/>'
            )

    def svg(self) -> str:
        """The whole picture."""
        tips = "".join(
            f'<marker id="tip{colour[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
            for colour in sorted(self.colours)
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {self.size} '
                'font-family="system-ui, sans-serif" role="img">',
                f"<defs>{tips}</defs>",
                *self.parts,
                "</svg>\n",
            ]
        )


def wiring() -> Picture:
    """What an SAE, a per-layer transcoder and a CLT read, and what they rebuild."""
    picture = Picture("What an SAE, a per-layer transcoder and a CLT read and rebuild", 960, 370)
    heights = (270, 190, 110)
    panels = (("SAE", 190), ("per-layer transcoder", 490), ("cross-layer transcoder (CLT)", 800))
    for title, centre in panels:
        picture.text(centre, 36, title, size=19, bold=True)
        for layer, (height, colour) in enumerate(zip(heights, SOURCES, strict=True)):
            if title == "SAE" and layer != 1:
                continue
            read, written = ("y₁", "ŷ₁") if title == "SAE" else (f"x{'₀₁₂'[layer]}", "")
            picture.box(centre - 115, height, 40, 30, read)
            picture.features(centre - 25, height, colour)
            picture.arrow(centre - 93, height, centre - 66, height, colour=colour)
            picture.box(centre + 105, height, 40, 30, written or f"ŷ{'₀₁₂'[layer]}")
            last = len(heights) if title.startswith("cross") else layer + 1
            for target in range(layer, last):
                picture.arrow(centre + 14, height, centre + 83, heights[target], colour=colour)
    for layer, height in enumerate(heights):
        picture.text(25, height + 5, f"layer {layer}", size=12, colour=PALE)
    for centre, first, second in (
        (190, "reads one activation", "and rebuilds the same one"),
        (490, "reads an MLP's input and rebuilds", "that MLP's output"),
        (800, "reads an MLP's input and rebuilds", "this and all later MLPs' outputs"),
    ):
        picture.text(centre, 325, first)
        picture.text(centre, 345, second)
    return picture


def trajectories() -> Picture:
    """Teacher and stream: where the codes of a CLT come from."""
    picture = Picture("On the teacher trajectory codes come from the unaltered ViT", 960, 400)
    columns = (190, 430, 670)
    picture.text(24, 34, "Teacher trajectory", size=19, bold=True, anchor="start")
    picture.text(
        232, 34, "the ViT runs unaltered; the CLT only looks on", anchor="start", colour=PALE
    )
    picture.text(24, 224, "Stream", size=19, bold=True, anchor="start")
    words = "every MLP is replaced, and the CLT reads what its own errors have altered"
    picture.text(110, 224, words, anchor="start", colour=PALE)
    for layer, x in enumerate(columns):
        sub, colour = "₀₁₂"[layer], SOURCES[layer]
        picture.box(x - 80, 75, 44, 30, f"x{sub}")
        picture.arrow(x - 57, 75, x - 32, 75)
        picture.box(x, 75, 60, 34, f"MLP{sub}")
        picture.arrow(x + 31, 75, x + (136 if layer < 2 else 149), 75)
        picture.arrow(x - 80, 91, x - 80, 138, colour=colour)
        picture.features(x - 80, 150, colour)
        picture.arrow(x - 41, 150, x - 20, 150, colour=colour)
        picture.box(x, 150, 38, 30, f"ŷ{sub}", fill="#ffffff", colour=colour)
        picture.arrow(x, 134, x, 94, colour=PALE, dashed=True)
        error = (INK, SLIGHT, ERROR)[layer]
        mark = "" if layer == 0 else "′"
        picture.box(x - 80, 270, 44, 30, f"x{sub}{mark}", colour=error)
        picture.arrow(x - 80, 286, x - 80, 333, colour=colour)
        picture.features(x - 80, 345, colour)
        picture.arrow(x - 41, 345, x - 20, 345, colour=colour)
        picture.box(x, 345, 38, 30, f"ŷ{sub}{mark}", fill="#ffffff", colour=colour)
        picture.arrow(x, 329, x, 289, colour=colour)
        picture.box(x, 270, 60, 34, f"MLP{sub}", fill="#ffffff", colour=PALE, dashed=True)
        picture.arrow(
            x + 31, 270, x + (136 if layer < 2 else 149), 270, colour=(SLIGHT, ERROR, ERROR)[layer]
        )
    picture.box(860, 75, 80, 34, "answer")
    picture.box(860, 270, 80, 34, "answer′", colour=ERROR)
    picture.text(208, 118, "compared", size=14, colour=PALE, anchor="start")
    picture.text(208, 313, "put in its place", size=14, colour=PALE, anchor="start")
    return picture


def reads_and_acts() -> Picture:
    """The two claims of a CLT, and the ablation in the ViT that E is held against."""
    picture = Picture(
        "C says what is read, E says what acts, and an ablation is the truth", 960, 330
    )
    panels = (
        (
            160,
            "C(s→l): read",
            "Whose features is ŷ₂ decoded from?",
            "ViT unaltered; shares sum to 1",
        ),
        (
            480,
            "E(s→l): act",
            "What if features of layer 0 are silenced?",
            "in the ViT with MLPs replaced",
        ),
        (
            800,
            "the truth for “act”",
            "What if MLP₀ itself is ablated?",
            "in the ViT itself; no CLT",
        ),
    )
    heights = (230, 170, 110)
    for centre, title, question, place in panels:
        picture.text(centre, 36, title, size=19, bold=True)
        picture.text(centre, 62, question)
        picture.text(centre, 305, place, colour=PALE)
    for height, colour, share in zip(heights, SOURCES, (0.2, 0.15, 0.65), strict=True):
        picture.features(70, height, colour)
        picture.arrow(108, height, 160, 170, colour=colour, width=1 + 5 * share)
    picture.box(182, 170, 38, 30, "ŷ₂", fill="#ffffff")
    top = 110.0
    for colour, share in zip(SOURCES[::-1], (0.65, 0.15, 0.2), strict=True):
        picture.bar(225, top, 34, 130 * share, colour)
        picture.text(
            268, top + 65 * share + 5, f"{share:.2f}", size=14, anchor="start", colour=colour
        )
        top += 130 * share
    for layer, (height, colour) in enumerate(zip(heights, SOURCES, strict=True)):
        picture.features(410, height, colour, () if layer == 0 else (1, 4))
        picture.box(540, height, 38, 30, f"ŷ{'₀₁₂'[layer]}", fill="#ffffff")
        picture.arrow(448, height, 519, height, colour=colour, dashed=layer == 0)
        if layer:
            picture.arrow(448, heights[0], 519, height, colour=SOURCES[0], dashed=True)
            picture.text(566, height + 5, "changes", size=14, anchor="start", colour=ERROR)
            picture.text(866, height + 5, "changes", size=14, anchor="start", colour=ERROR)
        picture.box(760, height, 62, 32, f"MLP{'₀₁₂'[layer]}", dashed=layer == 0)
        picture.box(838, height, 38, 30, f"y{'₀₁₂'[layer]}", fill="#ffffff")
        picture.arrow(792, height, 817, height, dashed=layer == 0)
    picture.text(410, 258, "at their mean", size=14, colour=SOURCES[0])
    picture.text(760, 265, "at its mean", size=14)
    for lower, upper in ((229, 187), (169, 127)):
        picture.arrow(718, lower, 718, upper, colour=PALE)
    picture.text(694, 106, "stream", size=14, colour=PALE)
    return picture


LOSSES = {"unaltered": 0.021, "with the CLT": 0.023, "at their mean": 0.458, "at zero": 0.963}
"""Nats, of the digits model of `vit-clt demo` with every MLP at every row replaced."""


def floors() -> Picture:
    """A loss between the unaltered model and the floors."""
    picture = Picture("Where a loss stands between the unaltered model and its floors", 960, 215)
    left, scale, axis = 150, 770, 110
    picture.text(
        24, 34, "Loss with every MLP replaced, in nats", size=19, bold=True, anchor="start"
    )
    picture.arrow(left - 40, axis, 930, axis)
    at = {name: left + scale * loss for name, loss in LOSSES.items()}
    for name, x in at.items():
        colour = SOURCES[0] if name == "with the CLT" else INK
        picture.bar(x - 1.5, axis - 12, 3, 24, colour)
    picture.text(at["unaltered"] - 4, axis - 22, "unaltered 0.021", anchor="end")
    picture.text(
        at["with the CLT"] + 4, axis - 22, "with the CLT 0.023", anchor="start", colour=SOURCES[0]
    )
    picture.text(at["at their mean"], axis - 22, "floor: MLP outputs at their mean 0.458")
    picture.text(at["at zero"] + 8, axis - 22, "floor: at zero 0.963", anchor="end")
    start, end = at["with the CLT"], at["at their mean"]
    picture.arrow(end, axis + 38, start, axis + 38, colour=SOURCES[0])
    picture.text((start + end) / 2, axis + 60, "recovered by the CLT:", colour=SOURCES[0])
    share = (LOSSES["at their mean"] - LOSSES["with the CLT"]) / (
        LOSSES["at their mean"] - LOSSES["unaltered"]
    )
    words = f"(0.458 − 0.023) / (0.458 − 0.021) = {100 * share:.1f} %"
    picture.text((start + end) / 2, axis + 82, words, colour=SOURCES[0])
    return picture


PICTURES = {
    "concept_wiring": wiring,
    "concept_trajectories": trajectories,
    "concept_reads_acts": reads_and_acts,
    "concept_floors": floors,
}


def main() -> None:
    """Draw every picture into docs/images."""
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
