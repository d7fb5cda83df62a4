"""Spectra of Gram operators on tensor powers, counted without building them.

Tensoring an irreducible space with the natural one follows a simple rule for these groups, so that the multiplicity
of every irreducible space in ``V (x) .. (x) V`` is a count of paths.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

Weight = tuple[int, ...]


@lru_cache(maxsize=64)
def _orthogonal_weights(n: int, order: int) -> dict[Weight, int]:
    """Highest weights of SO(n) in ``V^(x) order`` with multiplicities, ``n >= 3``."""
    rank = n // 2
    found: Counter[Weight] = Counter({(0,) * rank: 1})
    for _ in range(order):
        following: Counter[Weight] = Counter()
        for weight, count in found.items():
            for image in _times_vector(weight, n):
                following[image] += count
        found = following
    return dict(found)


def _times_vector(weight: Weight, n: int) -> Iterable[Weight]:
    """``V_l (x) V``: ``l +- e_i`` where dominant; for odd ``n`` also ``l`` itself when its last entry is positive."""
    for i in range(len(weight)):
        for step in (1, -1):
            image = (*weight[:i], weight[i] + step, *weight[i + 1 :])
            if _is_dominant(image, n):
                yield image
    if n % 2 and weight[-1] > 0:
        yield weight


def _is_dominant(weight: Weight, n: int) -> bool:
    if any(a < b for a, b in itertools.pairwise(weight)):
        return False
    if n % 2:
        return weight[-1] >= 0
    return len(weight) == 1 or weight[-2] >= abs(weight[-1])


def _rho(n: int) -> list[Fraction]:
    """Half the sum of the positive roots: ``n/2 - i``."""
    return [Fraction(n, 2) - i - 1 for i in range(n // 2)]


def _dimension(weight: Weight, n: int) -> int:
    """Weyl's formula for SO(n)."""
    rho = _rho(n)
    shifted = [w + r for w, r in zip(weight, rho, strict=True)]
    value = Fraction(1)
    for i in range(len(weight)):
        if n % 2:
            value *= shifted[i] / rho[i]
        for j in range(i + 1, len(weight)):
            value *= (shifted[i] ** 2 - shifted[j] ** 2) / (rho[i] ** 2 - rho[j] ** 2)
    return int(value)


def orthogonal_tensor_spectrum(n: int, order: int) -> dict[float, int]:
    """Casimir eigenvalues ``sum_i l_i (l_i + n - 2 i)`` of SO(n) on ``T(order)`` with their multiplicities."""
    out: Counter[float] = Counter()
    for weight, count in _orthogonal_weights(n, order).items():
        value = sum(w * (w + n - 2 * (i + 1)) for i, w in enumerate(weight))
        out[float(value)] += count * _dimension(weight, n)
    return dict(sorted(out.items()))


@lru_cache(maxsize=64)
def orthogonal_invariants(n: int, order: int) -> int:
    """Number of O(n)-invariant tensors in ``T(order)``: closed walks on the partitions of O(n).

    Tensoring an irreducible space of O(n) with the vector adds or removes a box; allowed are partitions whose first
    two columns together hold at most ``n`` boxes.
    """
    found: Counter[Weight] = Counter({(): 1})
    for _ in range(order):
        following: Counter[Weight] = Counter()
        for shape, count in found.items():
            for image in (*_without_a_box(shape), *_with_a_box(shape)):
                if sum(1 for row in image if row >= 1) + sum(1 for row in image if row >= 2) <= n:
                    following[image] += count
        found = following
    return found[()]


@lru_cache(maxsize=64)
def _permutation_shapes(n: int, order: int) -> dict[Weight, int]:
    """Partitions of ``n`` in ``(R^n)^(x) order``: tensoring moves one box (restriction to S(n-1), then induction)."""
    found: Counter[Weight] = Counter({(n,): 1})
    for _ in range(order):
        following: Counter[Weight] = Counter()
        for shape, count in found.items():
            for smaller in _without_a_box(shape):
                for image in _with_a_box(smaller):
                    following[image] += count
        found = following
    return dict(found)


def _without_a_box(shape: Weight) -> Iterable[Weight]:
    for i, row in enumerate(shape):
        if i + 1 == len(shape) or shape[i + 1] < row:
            yield tuple(r for r in (*shape[:i], row - 1, *shape[i + 1 :]) if r)


def _with_a_box(shape: Weight) -> Iterable[Weight]:
    for i, row in enumerate(shape):
        if i == 0 or shape[i - 1] > row:
            yield (*shape[:i], row + 1, *shape[i + 1 :])
    yield (*shape, 1)


def _hook_dimension(shape: Weight) -> int:
    columns = [sum(1 for row in shape if row > j) for j in range(shape[0])]
    hooks = math.prod(shape[i] - j + columns[j] - i - 1 for i in range(len(shape)) for j in range(shape[i]))
    return math.factorial(sum(shape)) // hooks


def permutation_tensor_spectrum(n: int, order: int) -> dict[float, int]:
    """Eigenvalues of ``sum_s (I - rho(s))^T (I - rho(s))`` over transpositions, on ``(R^n)^(x) order``.

    ``2 (n (n - 1) / 2 - content)``: the sum of all transpositions is the content of the partition.
    """
    out: Counter[float] = Counter()
    for shape, count in _permutation_shapes(n, order).items():
        content = sum(j - i for i, row in enumerate(shape) for j in range(row))
        out[float(n * (n - 1) - 2 * content)] += count * _hook_dimension(shape)
    return dict(sorted(out.items()))
