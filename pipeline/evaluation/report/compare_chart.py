"""The picture of a comparison: recall against queries a second."""

from collections.abc import Sequence
from typing import Any

from imgindex.evaluation.report.charts import INK, svg_of
from imgindex.evaluation.results import Candidate

# The colors of Okabe and Ito, which people with any color vision tell apart (Color Universal Design, 2008),
# without black and yellow, of which a dark or a light page would hide one. Shapes differ, too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = "osD^vPX*<>h"
# Room for the names at the right; inches, and shares of the picture.
_SIZE = (5.4, 3.6)
_AXES = (0.13, 0.14, 0.61, 0.82)


def compare_chart(candidates: Sequence[Candidate]) -> str:
    """An SVG element of recall@10 against queries a second, a shape for each family; "" without figures.

    A line joins the Pareto front. Text and axes have the colors of the page, light or dark.
    """
    measured = [
        (row, row.recall_at_10, row.queries_per_second)
        for row in candidates
        if row.recall_at_10 is not None and row.queries_per_second is not None
    ]
    if not measured:
        return ""
    families = list(dict.fromkeys(row.family for row, _, _ in measured))
    front = sorted((recall, speed) for row, recall, speed in measured if row.pareto)

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(*_SIZE)
        axes.set_position(_AXES)
        axes.set_yscale("log")
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=1, label="Pareto front")
        for number, family in enumerate(families):
            mine = [(recall, speed) for row, recall, speed in measured if row.family == family]
            axes.plot(
                *zip(*mine, strict=True),
                color=_COLORS[number % len(_COLORS)],
                marker=_SHAPES[number % len(_SHAPES)],
                linestyle="",
                markersize=6,
                label=family,
            )
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    best = "; ".join(f"{speed:,.0f} at recall {recall:.3f}" for recall, speed in front)
    alt = f"recall@10 against queries a second of {', '.join(families)}; at best {best}"
    return svg_of(draw, ("recall@10", "queries a second"), alt)
