"""The Pareto front of accuracy and error, and which of its points is the best one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from equidial.errors import ArgumentError, explain

Select = Literal["knee", "accuracy"]
Point = tuple[float, float]
"""(accuracy, error)."""


def dominates(one: Point, other: Point) -> bool:
    """Whether ``one`` is at least as good in both and better in one."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other one dominates, by rising error. Of equal points all are there."""
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][0] > points[kept[-1]][0] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def choose(points: Sequence[Point], select: Select = "knee", max_error: float | None = None) -> int:
    """The place of the best point.

    ``max_error``: the highest accuracy among the errors up to it. Else ``accuracy``: the highest accuracy; ``knee``:
    the point of the front furthest above the straight line between its ends, both objectives scaled to [0, 1] over
    the front. Of equally good ones the least error, then the first. Raises ``ArgumentError`` where no error is small
    enough, or there is no point.
    """
    if not points:
        raise ArgumentError(explain("a finished trial", "none", "let the sweep go on"))
    if max_error is not None:
        allowed = [i for i, point in enumerate(points) if point[1] <= max_error]
        if not allowed:
            least = min(point[1] for point in points)
            got = f"a smallest error of {least:.6g}"
            raise ArgumentError(explain(f"a trial with error at most {max_error:g}", got, "allow a larger --max-error"))
        return min(allowed, key=lambda i: (-points[i][0], points[i][1], i))
    ends = front(points)
    first, last = points[ends[0]], points[ends[-1]]
    rise, width = last[0] - first[0], last[1] - first[1]
    if select == "accuracy" or rise <= 0 or width <= 0:
        return min(range(len(points)), key=lambda i: (-points[i][0], points[i][1], i))

    def above(i: int) -> float:
        accuracy, error = points[i]
        return (accuracy - first[0]) / rise - (error - first[1]) / width

    return max(ends, key=lambda i: (above(i), -points[i][1], -i))
