"""Bessel functions in bulk: zeros of many derivatives at once, and tables for many arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import scipy.special


def neumann_zeros(orders: Iterable[int], limit: float) -> list[tuple[float, int]]:
    """``(z, m)`` for all zeros ``0 <= z <= limit`` of ``J_m'``, ``m`` in ``orders``; 0 counts for ``m = 0``.

    Zeros of one ``J_m'`` lie more than 2 apart and beyond ``m``, so that signs on a grid of step 1 bracket each of
    them; Newton's method on Bessel's equation, kept inside the brackets, finds all at once to rounding.
    """
    m = np.fromiter(orders, dtype=float)
    found = [(0.0, 0)] if 0 in m else []
    grid = np.arange(0.5, limit + 1.5)
    row, column = np.nonzero(grid[None, :] > m[:, None] - 1)
    values = np.full((len(m), len(grid)), np.nan)
    values[row, column] = _slope(m[row], grid[column])
    row, column = np.nonzero(values[:, :-1] * values[:, 1:] < 0)
    order, low, high = m[row], grid[column], grid[column + 1]
    before, after = values[row, column], values[row, column + 1]
    z = low - before * (high - low) / (after - before)
    for _ in range(8):
        slope = _slope(order, z)
        # z^2 J'' + z J' + (z^2 - m^2) J = 0
        curvature = -slope / z - (1 - (order / z) ** 2) * scipy.special.jv(order, z)
        following = z - slope / curvature
        following = np.where((following > low) & (following < high), following, (low + high) / 2)
        done = bool((np.abs(following - z) <= 2e-15 * z).all())
        z = following
        if done:
            break
    return found + [(float(x), int(k)) for x, k in zip(z, order, strict=True) if x <= limit]


def _slope(m: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``J_m'(x) = (J_(m-1)(x) - J_(m+1)(x)) / 2``."""
    return (scipy.special.jv(m - 1, x) - scipy.special.jv(m + 1, x)) / 2


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
