"""Bessel functions in bulk: zeros of many derivatives at once, and tables for many arguments."""

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


class NeumannZeros:
    """The zeros of all orders, each limit solved once: the sectors of a grid share them."""

    def __init__(self) -> None:
        self._found: dict[float, list[tuple[float, int]]] = {}

    def up_to(self, limit: float) -> list[tuple[float, int]]:
        """:func:`neumann_zeros` of every order."""
        if limit not in self._found:
            self._found[limit] = neumann_zeros(range(int(limit) + 1), limit)
        return self._found[limit]


def _recurrence(x: np.ndarray) -> np.ndarray:
    """``J_m(x)``, ``m = 0, 1, ..`` beyond the largest ``x > 0``, by Miller's backward recurrence, ``[orders, points]``.

    Absolute error about 1e-15 of the largest order; orders far above a point's ``x`` stay 0.
    """
    starts = (x + 8 * np.cbrt(x) + 30).astype(int)  # J is below 1e-18 there
    table = np.zeros((int(starts.max()) + 2, len(x)))
    table[starts, np.arange(len(x))] = 1e-100
    for n in range(len(table) - 2, 0, -1):
        below = 2 * n / x * table[n] - table[n + 1]
        table[n - 1] = np.where(n <= starts, below, table[n - 1])
    return table / (table[0] + 2 * table[2::2].sum(0))


class BesselTable:
    """``J_m`` on ``[0, top]`` by Chebyshev interpolation on intervals of length 2, absolute error below 1e-15.

    Of an entire function of exponential type 1, degree 19 leaves ``2^-19 / 20! < 1e-24`` on such an interval.
    """

    def __init__(self, m: int, top: float, degree: int = 19):
        nodes = np.cos(math.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
        starts = 2.0 * np.arange(int(top / 2) + 1)
        values = scipy.special.jv(m, starts[:, None] + 1 + nodes)
        polynomials = np.cos(np.outer(np.arange(degree + 1), np.arccos(nodes)))
        polynomials[0] /= 2
        self._coefficients = (values @ polynomials.T * 2 / (degree + 1)).T.copy()  # [degree + 1, intervals]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``J_m(x)`` by Clenshaw's recurrence."""
        interval = np.minimum((x / 2).astype(int), self._coefficients.shape[1] - 1)
        t = x - 2.0 * interval - 1
        c = self._coefficients[:, interval]
        late = later = np.zeros_like(x)
        for row in c[:0:-1]:
            late, later = row + 2 * t * late - later, late
        return c[0] + t * late - later
