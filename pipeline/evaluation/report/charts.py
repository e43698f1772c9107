"""Charts as SVG that stands in a page: its text is text, and its colors are those of the page."""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.search.page_frame import escaped

# Colors that Matplotlib is given, and the variables of the page's style that stand in their place.
_COLORS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
}
INK, _SOFT, _LINE, _ACCENT, _SECOND = _COLORS

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imgindex",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
}
_SIZE = (4.4, 2.7)  # inches
# Where the axes lie: left, bottom, width and height, as shares. To find out what fits takes long.
_AXES = (0.14, 0.19, 0.83, 0.73)


# Points of a line that have marks, at most.
_MARKED = 20


@dataclass(frozen=True)
class Point:
    """A point of a chart with a name beside it."""

    x: float
    y: float
    name: str


def line(
    x: Sequence[float],
    y: Sequence[float],
    names: tuple[str, str],
    alt: str,
    marked: float | None = None,
    log: bool = True,
) -> str:
    """A line through points, with a mark where x is `marked`; `names` are those of the axes."""

    def draw(axes: Any) -> None:
        marker = "o" if len(x) <= _MARKED else None
        axes.plot(x, y, color=_ACCENT, marker=marker, markersize=4, linewidth=1.8)
        if log:
            axes.set_xscale("log")
            # Few enough to stand side by side: what lies close to the one before has no tick of its own.
            apart = (x[-1] / x[0]) ** (1 / 8)
            ticks = [x[0]]
            for each in x[1:]:
                if each / ticks[-1] > apart:
                    ticks.append(each)
            axes.set_xticks(
                ticks, [f"{each:g}" if each < 10_000 else f"{each / 1000:.0f}k" for each in ticks]
            )
            axes.minorticks_off()
        if marked is not None:
            axes.axvline(marked, color=_SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.text(marked, 1.02, "now", color=_SECOND, ha="center", transform=axes.get_xaxis_transform())
        axes.grid(axis="y")

    return svg_of(draw, names, alt)


def histogram(values: npt.NDArray[np.floating[Any]], names: tuple[str, str], alt: str) -> str:
    """How many of `values` [n] lie in each of 40 bins."""

    def draw(axes: Any) -> None:
        axes.hist(values, bins=40, color=_ACCENT)
        axes.grid(axis="y")

    return svg_of(draw, names, alt)


def points(placed: Sequence[Point], names: tuple[str, str], alt: str) -> str:
    """Points with their names; x, which is positive, on a logarithmic scale."""

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.3)
        axes.xaxis.set_major_formatter("{x:,g}")
        for number, point in enumerate(sorted(placed, key=lambda each: each.x)):
            above = number % 2 == 0  # so that neighbors of one height do not write over each other
            axes.plot([point.x], [point.y], color=_ACCENT, marker="o", markersize=6)
            axes.annotate(
                point.name, (point.x, point.y), xytext=(0, 7 if above else -14), textcoords="offset points",
                ha="center", fontsize=8.5,
            )  # fmt: skip
        axes.grid()

    return svg_of(draw, names, alt)


def svg_of(draw: Callable[[Any], None], names: tuple[str, str], alt: str) -> str:
    """Markup of a chart; `alt` says what it shows to those who do not see it."""
    with _matplotlib() as figures:
        figure = figures.Figure(figsize=_SIZE)
        axes = figure.add_axes(_AXES)
        draw(axes)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True)
    return _inlined(written.getvalue(), alt)


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """`matplotlib.figure`, with settings of our own, whatever the user's are; they come back afterwards."""
    # Its news of a home directory that cannot be written, or of its cache of fonts, helps nobody here.
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib
            from matplotlib import figure

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update(_SETTINGS)
                yield figure
    finally:
        logger.setLevel(level)


def _inlined(svg: str, alt: str) -> str:
    """What Matplotlib wrote, as an element of a page: without what only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(r"<svg[^>]*>", "", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    # Clip paths and markers get names that other charts of the page do not have.
    prefix = f"c{_digest(svg)}"
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    # The page's font; the sizes stay. Older releases of Matplotlib write both as one property.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return f'<svg class="chart" role="img" aria-label="{escaped(alt)}" {box[0] if box else ""}>{svg}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
