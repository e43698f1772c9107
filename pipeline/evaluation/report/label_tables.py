"""The quality of all labels as tables: the worst and the best side by side, and the others on demand."""

from collections.abc import Callable, Sequence

from imgindex.evaluation import tables
from imgindex.evaluation.report.fragments import beside, details, table
from imgindex.evaluation.results import LabelQuality, Quality
from imgindex.text import counted

# Labels that are shown at once, from each end, and those that are shown at all.
_LABELS, _MOST_LABELS = 8, 1000

# Adds columns to the rows of some labels, which stand below a row of headings.
Widen = Callable[[Sequence[LabelQuality], tables.Rows], tables.Rows]


def label_tables(quality: Quality, widen: Widen = lambda _, rows: rows) -> str:
    """Markup of the quality of the labels, the worst first. None without a wrong neighbor is a worst one."""
    ordered = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label))

    def shown(title: str, labels: Sequence[LabelQuality]) -> str:
        rows = widen(labels, tables.label_rows(labels, quality.k))
        return table([(title, *rows[0][1:]), *rows[1:]], title) if labels else ""

    if len(ordered) <= 2 * _LABELS:
        return beside(shown("label, worst first", ordered))
    worst = [each for each in ordered[:_LABELS] if each.p_at_k < 1]
    best = ordered[-_LABELS:]
    between = ordered[len(worst) : -_LABELS][:_MOST_LABELS]
    title = f"{counted(len(between), 'label')} in between"
    first = beside(shown("worst labels", worst), shown("best labels", best))
    return first + details(title, shown("label, worst first", between))
