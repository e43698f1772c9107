"""The pictures of recall against queries a second: of a comparison, and of the ladder."""

from collections.abc import Sequence

from imgindex.evaluation.report.charts import recall_and_speed
from imgindex.evaluation.results import Candidate, Rung


def compare_chart(candidates: Sequence[Candidate]) -> str:
    """An SVG element of recall@10 against queries a second, a shape for each family; "" without figures.

    A line joins the Pareto front. Text and axes have the colors of the page, light or dark.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    front = []
    for row in candidates:
        if row.recall_at_10 is not None and row.queries_per_second is not None:
            point = (row.recall_at_10, row.queries_per_second)
            series.setdefault(row.family, []).append(point)
            if row.pareto:
                front.append(point)
    if not series:
        return ""
    front.sort()
    best = "; ".join(f"{speed:,.0f} at recall {recall:.3f}" for recall, speed in front)
    alt = f"recall@10 against queries a second of {', '.join(series)}; at best {best}"
    return recall_and_speed(series, front, alt)


def ladder_chart(rungs: Sequence[Rung]) -> str:
    """As `compare_chart`, of the ways to search that were timed."""
    series = {
        rung.method: [(rung.recall_at_10, rung.queries_per_second)]
        for rung in rungs
        if rung.recall_at_10 is not None and rung.queries_per_second is not None
    }
    alt = "; ".join(
        f"{name}: recall@10 {recall:.3f}, {speed:,.0f} queries a second"
        for name, [(recall, speed)] in series.items()
    )
    return recall_and_speed(series, (), alt) if series else ""
