"""Which of several points are worth a look."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each of `points` is on the Pareto front: no other is as good in both values and better in one.

    The greater a value is, the better. Equal points are on it together.
    """
    best = float("-inf")  # of the second value, where the first is greater
    front = [False] * len(points)
    order = sorted(range(len(points)), key=lambda n: points[n], reverse=True)
    for place, number in enumerate(order):
        same = place > 0 and points[order[place - 1]] == points[number]
        front[number] = front[order[place - 1]] if same else points[number][1] > best
        best = max(best, points[number][1])
    return front
