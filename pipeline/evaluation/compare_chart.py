"""The picture of a comparison: recall against queries a second."""

import io
from collections.abc import Sequence

from imgindex.evaluation.results import Candidate

# The colors of Okabe and Ito, which people with any color vision tell apart (Color Universal Design, 2008),
# without black and yellow, which one of a dark and a light page hides. Shapes differ, too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = "osD^vPX*<>h"
# Stands for the page's own color of text until Matplotlib, which knows no such color, has drawn.
_TEXT = "#010203"


def compare_chart(candidates: Sequence[Candidate]) -> str:
    """An SVG element of recall@10 against queries a second, a shape for each family; "" without figures.

    A line joins the Pareto front. Text and axes have the color of the text around the picture.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measured = [
        (row, row.recall_at_10, row.queries_per_second)
        for row in candidates
        if row.recall_at_10 is not None and row.queries_per_second is not None
    ]
    if not measured:
        return ""
    names = list(dict.fromkeys(row.family for row, _, _ in measured))
    settings = {"svg.fonttype": "none", "svg.hashsalt": "imgindex", "text.color": _TEXT} | {
        f"{part}color": _TEXT for part in ("axes.edge", "axes.label", "xtick.", "ytick.")
    }
    with rc_context(settings):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            mine = [(recall, speed) for row, recall, speed in measured if row.family == name]
            axes.scatter(
                *zip(*mine, strict=True),
                label=name,
                color=_COLORS[number % len(_COLORS)],
                marker=_SHAPES[number % len(_SHAPES)],
                zorder=3,
            )
        front = sorted((recall, speed) for row, recall, speed in measured if row.pareto)
        axes.plot(*zip(*front, strict=True), color=_TEXT, linewidth=1, label="Pareto front", zorder=2)
        axes.set_yscale("log")
        axes.set_xlabel("recall@10")
        axes.set_ylabel("queries a second, one thread")
        axes.grid(alpha=0.25, color=_TEXT)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    described = '<svg role="img" aria-label="recall@10 against queries a second, by kind of index"'
    return svg[svg.index("<svg") :].replace("<svg", described, 1).replace(_TEXT, "currentColor")
