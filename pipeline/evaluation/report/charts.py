"""Charts as SVG that stands in a page: its text is text, and its colors are those of the page."""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    # The colors of Okabe and Ito, which people with any color vision tell apart (Color Universal Design,
    # 2008), without black and yellow, of which a dark or a light page would hide one.
    "#060606": "var(--h1)",
    "#070707": "var(--h2)",
    "#080808": "var(--h3)",
    "#090909": "var(--h4)",
    "#0a0a0a": "var(--h5)",
    "#0b0b0b": "var(--h6)",
}
_INK, _SOFT, _LINE, _ACCENT, _SECOND, *_HUES = _COLORS
_SHAPES = "osD^vPX*<>h"

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
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
}
_SIZE = (4.4, 2.7)  # inches
# Where the axes lie: left, bottom, width and height, as shares. To find out what fits takes long.
_AXES = (0.17, 0.19, 0.79, 0.71)
# Of a chart with a legend at its right.
_WIDE, _WIDE_AXES = (5.6, 3.2), (0.15, 0.16, 0.56, 0.78)


# Points of a line that have marks, at most.
_MARKED = 20


def line(
    x: Sequence[float],
    y: Sequence[float],
    names: tuple[str, str],
    alt: str,
    *,
    top: float,
    marked: float | None = None,
    log: bool = True,
) -> str:
    """A line through points, with a mark where x is `marked`.

    `names` are those of the axes, and `top` is the most that y can be.
    """

    def draw(axes: Any) -> None:
        marker = "o" if len(x) <= _MARKED else None
        axes.plot(x, y, color=_ACCENT, marker=marker, markersize=4, linewidth=1.8, clip_on=False)
        low = min(y)
        axes.set_ylim(low - 0.05 * (top - low) if low < top else 0, top)
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
            axes.text(marked, 1.05, "now", color=_SECOND, ha="center", transform=axes.get_xaxis_transform())
        axes.grid(axis="y")

    return svg_of(draw, names, alt)


def by_epoch(
    series: Mapping[str, Sequence[float]], name: str, alt: str, *, best: int, percent: bool = False
) -> str:
    """A line for each of at most two `series`, whose value i belongs to epoch i + 1; a line marks the `best`.

    `name` is that of the vertical axis, which ends at 100 if the values are `percent`, and begins at 0.
    """

    def draw(axes: Any) -> None:
        epochs = max(map(len, series.values()))
        marker = "o" if epochs <= _MARKED else None
        styles = zip((_ACCENT, _SECOND), ("-", (0, (5, 2))), strict=True)
        for (of, values), (color, style) in zip(series.items(), styles, strict=False):
            axes.plot(
                range(1, len(values) + 1), values, label=of, color=color, linestyle=style, marker=marker,
                markersize=3.5, linewidth=1.8, clip_on=False,
            )  # fmt: skip
        axes.set_ylim(0, 100 if percent else None)
        axes.set_xlim(0.5, epochs + 0.5)
        axes.xaxis.set_major_locator(_whole_ticks())
        axes.axvline(best, color=_SOFT, linewidth=1, linestyle=(0, (1, 2)))
        axes.text(best, 1.03, "best", color=_SOFT, ha="center", transform=axes.get_xaxis_transform())
        axes.grid(axis="y")
        axes.legend(loc="best", frameon=False)

    return svg_of(draw, ("epoch", name), alt)


def by_group(groups: Mapping[str, Sequence[float]], name: str, alt: str, *, top: float | None) -> str:
    """A dot for each value, which are percentages, group beside group, and a bar at the mean of each group.

    A line marks `top`, the most that a value can be, where that is not 100.
    """

    def draw(axes: Any) -> None:
        for place, values in enumerate(groups.values()):
            axes.plot([place - 0.28, place + 0.28], [np.mean(values)] * 2, color=_ACCENT, linewidth=2.4)
            # Beside each other, for equal ones would hide each other.
            apart = (np.arange(len(values)) - (len(values) - 1) / 2) * min(0.16, 0.5 / len(values))
            axes.plot(place + apart, values, color=_SECOND, marker="o", markersize=4, linestyle="", zorder=3)
        if top is not None:
            axes.axhline(top, color=_SOFT, linewidth=1, linestyle=(0, (1, 2)))
            axes.text(-0.45, top, "at most", color=_SOFT, va="bottom")
        axes.set_ylim(0, 100 if top is None else min(100, 1.2 * top))
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.grid(axis="y")

    return svg_of(draw, ("", name), alt)


def cosines(values: npt.NDArray[np.floating[Any]], names: tuple[str, str], alt: str) -> str:
    """How many of the cosines `values` [n] lie in each of 40 bins, the last of which ends at 1."""

    def draw(axes: Any) -> None:
        low = min(float(values.min()), 0.95)
        axes.hist(np.minimum(values, 1), bins=40, range=(low, 1), color=_ACCENT)
        axes.set_xlim(low, 1)
        axes.grid(axis="y")

    return svg_of(draw, names, alt)


def recall_and_speed(
    series: Mapping[str, Sequence[tuple[float, float]]], front: Sequence[tuple[float, float]], alt: str
) -> str:
    """Points of recall@10 and queries a second, a color and a shape for each of `series`, with their names.

    A line joins the points of the Pareto `front`. The scale of recall is stretched near 1, where a small
    difference counts: it is that of the logarithm of what is missed.
    """

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(*_WIDE)
        axes.set_position(_WIDE_AXES)
        axes.set_yscale("log")
        axes.set_xscale("function", functions=(_stretched, _shrunk))
        low = min(recall for points in series.values() for recall, _ in points)
        first = max([0.0, *(tick for tick in _RECALLS if tick < low)])
        axes.set_xlim(first, 1)
        shown = [tick for tick in _RECALLS if tick >= first]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
        if front:
            axes.plot(*zip(*front, strict=True), color=_INK, linewidth=1, label="Pareto front")
        for number, (name, points) in enumerate(series.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=_HUES[number % len(_HUES)],
                marker=_SHAPES[number % len(_SHAPES)],
                linestyle="",
                markersize=6,
                label=name,
                clip_on=False,
            )
        speeds = [speed for points in series.values() for _, speed in points]
        axes.set_ylim(min(speeds) / 1.5, max(speeds) * 1.5)
        axes.yaxis.set_major_locator(_ticks_of_speed())
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)

    return svg_of(draw, ("recall@10", "queries a second"), alt)


# Where recall has ticks.
_RECALLS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
# What is missed is shown as at least this much, so that there is a place for a recall of 1.
_LEAST_MISSED = 0.003


def _stretched(recall: Any) -> Any:
    return -np.log10(np.maximum(1 + _LEAST_MISSED - np.asarray(recall, float), 1e-6))


def _shrunk(place: Any) -> Any:
    return 1 + _LEAST_MISSED - 10 ** -np.asarray(place, float)


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


def _ticks_of_speed() -> Any:
    from matplotlib import ticker

    return ticker.LogLocator(subs=(1, 2, 5))


def _whole_ticks() -> Any:
    from matplotlib import ticker

    return ticker.MaxNLocator(8, integer=True)


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
