"""Bessel functions in bulk: zeros of many derivatives at once, and tables for many orders and arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import scipy.special


def neumann_zeros(orders: Iterable[int], limit: float) -> list[tuple[float, int]]:
    """``(z, m)`` for all zeros ``0 <= z <= limit`` of ``J_m'``, ``m`` in ``orders``; 0 counts for ``m = 0``.

    Zeros of one ``J_m'`` lie more than 2 apart and beyond ``m``, so that signs on a grid of step 1 bracket each of
    them; Halley's method with the derivatives of Bessel's equation, kept inside the brackets, finds all at once to
    rounding.
    """
    m = np.fromiter(orders, dtype=int)
    found = [(0.0, 0)] if 0 in m else []
    grid = np.arange(0.5, limit + 1.5)
    table = _recurrence(grid)
    m = m[m + 1 < len(table)]
    slopes = (table[np.abs(m - 1)] * np.where(m == 0, -1.0, 1.0)[:, None] - table[m + 1]) / 2
    slopes[grid[None, :] <= m[:, None] - 1] = np.nan  # no zeros there, and only rounding to see
    row, column = np.nonzero(slopes[:, :-1] * slopes[:, 1:] < 0)
    order, low, high = m[row], grid[column], grid[column + 1]
    before, after = slopes[row, column], slopes[row, column + 1]
    z = low - before * (high - low) / (after - before)
    square = order.astype(float) ** 2
    for _ in range(8):
        value = scipy.special.jv(order, z)
        slope = order / z * value - scipy.special.jv(order + 1, z)
        # z^2 J'' + z J' + (z^2 - m^2) J = 0, and its derivative
        second = -slope / z - (1 - square / z**2) * value
        third = -(3 * z * second + (z**2 + 1 - square) * slope + 2 * z * value) / z**2
        following = z - 2 * slope * second / (2 * second**2 - slope * third)
        inside = (following > low) & (following < high)
        following = np.where(inside, following, (low + high) / 2)
        # the next error is about the cube of this step
        done = bool((inside & (np.abs(following - z) <= 1e-6)).all())
        z = following
        if done:
            break
    return found + [(float(x), int(k)) for x, k in zip(z, order, strict=True) if x <= limit]


def _recurrence(x: np.ndarray) -> np.ndarray:
    """``J_m(x)``, ``m = 0, 1, ..`` beyond the largest ``x > 0``, by Miller's backward recurrence, ``[orders, points]``.

    ``x`` ascending. Absolute error about 1e-15; orders far above a point's ``x`` stay 0.
    """
    starts = (x + 8 * np.cbrt(x) + 30).astype(int)  # J is below 1e-18 there
    table = np.zeros((int(starts[-1]) + 2, len(x)))
    table[starts, np.arange(len(x))] = 1e-100
    twice = 2 / x
    first = np.searchsorted(starts, np.arange(len(table)))  # the points that have begun at each order
    for n in range(len(table) - 2, 0, -1):
        k = first[n]
        table[n - 1, k:] = n * twice[k:] * table[n, k:] - table[n + 1, k:]
    return table / (table[0] + 2 * table[2::2].sum(0))


class BesselTables:
    """``J_m`` on ``[0, top]`` by Chebyshev interpolation on intervals of length 2, every ``m``; absolute error 1e-15.

    Of an entire function of exponential type 1, degree 19 leaves ``2^-19 / 20! < 1e-24`` on such an interval. One
    recurrence over all nodes makes the tables of all orders; memory 80 top^2 bytes.
    """

    def __init__(self, top: float, degree: int = 19):
        nodes = -np.cos(math.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))  # ascending
        points = 2.0 * np.arange(int(top / 2) + 1)[:, None] + 1 + nodes
        polynomials = np.cos(np.outer(np.arange(degree + 1), np.arccos(nodes)))
        polynomials[0] /= 2
        values = _recurrence(points.ravel()).reshape(-1, *points.shape)
        table = values @ (polynomials.T * 2 / (degree + 1))
        self._coefficients = np.moveaxis(table, -1, 0).copy()  # [degree + 1, orders, intervals]

    def __call__(self, m: np.ndarray, x: np.ndarray) -> np.ndarray:
        """``J_m(x)`` for ``m`` ``[count]`` and ``x`` ``[count, n]``."""
        _, orders, intervals = self._coefficients.shape
        interval = np.minimum((x / 2).astype(int), intervals - 1)
        known = np.minimum(m, orders - 1)  # far beyond every x all orders vanish alike
        return _clenshaw(self._coefficients[:, known[:, None], interval], x - 2.0 * interval - 1)


def _clenshaw(c: np.ndarray, t: np.ndarray) -> np.ndarray:
    """``sum_k c_k T_k(t)``."""
    late = later = np.zeros_like(t)
    for row in c[:0:-1]:
        late, later = row + 2 * t * late - later, late
    return c[0] + t * late - later


class BesselCache:
    """Zeros and tables that the sectors of one grid share, each limit solved once."""

    def __init__(self) -> None:
        self._zeros: dict[float, list[tuple[float, int]]] = {}
        self._tables: dict[float, BesselTables] = {}

    def zeros(self, limit: float) -> list[tuple[float, int]]:
        """:func:`neumann_zeros` of every order."""
        if limit not in self._zeros:
            self._zeros[limit] = neumann_zeros(range(int(limit) + 1), limit)
        return self._zeros[limit]

    def tables(self, top: float) -> BesselTables:
        """Tables up to ``top``."""
        if top not in self._tables:
            self._tables[top] = BesselTables(top)
        return self._tables[top]
