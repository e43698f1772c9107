"""A confusion matrix as a picture that stands in a page, and what it says as rows of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.search.page_frame import escaped
from imgindex.text import counted

Counts = npt.NDArray[np.int64]

# Up to so many classes each square is large enough for its count.
_NUMBERED = 30
# Classes that are drawn at most; of more, those of the most mistakes.
MOST_CLASSES = 100
# Characters of a name that are drawn; the rest is in the tables. How wide one is, as a share of its height.
_LETTERS, _LETTER_WIDTH = 18, 0.62
# How far a narrow page shrinks the picture; then it scrolls.
_LEAST_SCALE = 0.7


@dataclass(frozen=True)
class Mistake:
    """Images of one class that are taken for another."""

    actual: int  # the number of the class
    predicted: int
    images: int
    share: float  # of the test images of the actual class


def mistakes(counts: Counts) -> list[Mistake]:
    """The pairs of classes that are confused, the most images first, in `counts` [actual, predicted]."""
    totals = counts.sum(axis=1)
    wrong = [(actual, predicted) for actual, predicted in np.argwhere(counts) if actual != predicted]
    found = [Mistake(int(i), int(j), int(counts[i, j]), float(counts[i, j] / totals[i])) for i, j in wrong]
    return sorted(found, key=lambda each: (-each.images, -each.share, each.actual, each.predicted))


def drawn_classes(counts: Counts) -> list[int]:
    """The numbers of the classes that a picture of `counts` has room for, in their order."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(axis=0) + wrong.sum(axis=1)
    return sorted(int(each) for each in np.argsort(-involved, kind="stable")[:MOST_CLASSES])


def matrix(counts: Counts, names: Sequence[str], caption: str) -> str:
    """Markup of a picture of `counts` [actual, predicted] of the classes `names`; `caption` describes it.

    A row is a class, and a column what its images are taken for. The fuller a square, the larger its share of
    the row; right ones have a color of their own. Each says in a tooltip what it counts.
    """
    side = _side(len(names))
    shown = [_shortened(name) for name in names]
    margin = round(max(map(len, shown)) * _font(side) * _LETTER_WIDTH) + 26
    size = margin + side * len(names) + 2
    label = escaped(caption)
    return (
        f'<div class="matrix" role="region" aria-label="{label}" tabindex="0">'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {size} {size}" font-size="{_font(side):g}" '
        f'style="width: {size}px; min-width: {size * _LEAST_SCALE:.0f}px">'
        f"{_axes(margin, side, len(names))}{''.join(_labels(shown, names, margin, side))}"
        f"{''.join(_squares(counts, names, margin, side))}</svg></div>"
    )


def _side(classes: int) -> int:
    """The side of a square, in pixels of the page."""
    if classes <= 6:
        return 56
    return 28 if classes <= _NUMBERED else 11


def _font(side: int) -> float:
    return 13 if side > 20 else 9.5


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def _axes(margin: int, side: int, classes: int) -> str:
    end = side * classes
    grid = "".join(
        f"M{margin} {margin + step * side}h{end}M{margin + step * side} {margin}v{end}"
        for step in range(classes + 1)
    )
    return (
        f'<path class="grid" d="{grid}"/>'
        f'<text class="side" x="{margin}" y="12">taken for</text>'
        f'<text class="side" x="{margin - 8}" y="{margin - 8}" text-anchor="end">class</text>'
    )


def _labels(shown: Sequence[str], names: Sequence[str], margin: int, side: int) -> Iterator[str]:
    for place, (text, name) in enumerate(zip(shown, names, strict=True)):
        middle = margin + (place + 0.5) * side
        title = f"<title>{escaped(name)}</title>"
        content = f"{title}{escaped(text)}"
        yield f'<text x="{margin - 6}" y="{middle:g}" dy=".35em" text-anchor="end">{content}</text>'
        yield f'<text transform="translate({middle:g} {margin - 6}) rotate(-90)" dy=".35em">{content}</text>'


def _squares(counts: Counts, names: Sequence[str], margin: int, side: int) -> Iterator[str]:
    totals = counts.sum(axis=1)
    for row, column in np.argwhere(counts):
        count = int(counts[row, column])
        share = count / int(totals[row])
        kind = "right" if row == column else "other"
        x, y = margin + int(column) * side, margin + int(row) * side
        of = counted(int(totals[row]), "image")
        said = (
            f"{count} of {of} of {names[row]}: right"
            if row == column
            else f"{count} of {of} of {names[row]}: taken for {names[column]}"
        )
        # Faint ones must be seen, too.
        opacity = 0.15 + 0.85 * share
        square = (
            f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{side - 1}" height="{side - 1}" '
            f'fill-opacity="{opacity:.2f}"/>'
        )
        number = ""
        if len(names) <= _NUMBERED:
            strong = ' class="strong"' if opacity > 0.8 else ""
            number = (
                f'<text{strong} x="{x + (side + 1) / 2:g}" y="{y + side / 2:g}" dy=".38em" '
                f'text-anchor="middle">{count}</text>'
            )
        yield f"<g><title>{escaped(said)}</title>{square}{number}</g>"


STYLE = """
.matrix { overflow-x: auto; max-width: 100%; width: fit-content; margin: 0 0 14px; padding: 12px;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.matrix svg { display: block; max-width: 100%; height: auto; }
.matrix text { fill: var(--ink); }
.matrix .side { fill: var(--soft); font-size: 12px; }
.matrix .strong { fill: var(--card); }
.matrix .grid { stroke: var(--line); stroke-width: 1; fill: none; }
.matrix .right { fill: var(--accent); }
.matrix .other { fill: var(--second); }
"""
