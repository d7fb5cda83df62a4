"""Rounding: what float64 arithmetic may have lost, so that a certificate holds in exact arithmetic."""

from __future__ import annotations

import math

UNIT_ROUNDOFF = 2.0**-53


def gamma(k: int) -> float:
    """``k u / (1 - k u)``: the relative error of a sum or product of ``k`` terms (Higham, section 3.1)."""
    return k * UNIT_ROUNDOFF / (1 - k * UNIT_ROUNDOFF)


def up(x: float, relative: float = 4 * UNIT_ROUNDOFF) -> float:
    """The next float64 above ``x (1 + relative)``; 0 stays 0."""
    return 0.0 if x == 0 else math.nextafter(x * (1 + relative), math.inf)
