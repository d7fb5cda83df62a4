"""Input sizes at which nothing breaks the symmetry, and the arithmetic where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from equidial.adapters.diagnosis._causes import Condition

REACH = 32
"""How far from the size of the example symmetric sizes are looked for, in pixels."""


def symmetric_sizes(size: int, is_symmetric: Callable[[int], bool], count: int = 2) -> tuple[int, ...]:
    """The sizes nearest to ``size`` at which ``is_symmetric`` holds, ascending, at most ``count`` of them."""
    found: list[int] = []
    for trial in _around(size):
        if is_symmetric(trial):
            found.append(trial)
            if len(found) == count:
                break
    return tuple(sorted(found))


def contradiction(conditions: Sequence[Condition]) -> str | None:
    """Two strided windows on one grid that no size of it can satisfy, in numbers; ``None`` if there are none.

    ``n = r1 (mod s1)`` and ``n = r2 (mod s2)`` have a common solution iff ``r1 = r2 (mod gcd(s1, s2))``.
    """
    for number, a in enumerate(conditions):
        for b in conditions[:number]:
            common = math.gcd(a.stride, b.stride)
            if a.grid == b.grid and common > 1 and (a.remainder - b.remainder) % common:
                first, second = sorted((a, b), key=lambda c: -c.stride)
                return (
                    f"{first.module} needs a grid n = {first.remainder} (mod {first.stride}) and {second.module} "
                    f"n = {second.remainder} (mod {second.stride}) of the same grid, here {a.grid}: "
                    "no n is both, so no input size is symmetric"
                )
    return None


def _around(base: int) -> Iterator[int]:
    for distance in range(1, REACH + 1):
        yield base + distance
        if base > distance:
            yield base - distance
