"""The dial: ``softness``, ``threshold`` or ``max_error``, and the threshold that each of them means.

0 is exactly symmetric, 1 (or a threshold of infinity) the untouched weight, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from equidial.errors import ArgumentError, BudgetError, explain
from equidial.filters._growth import growth_factor, trivial_bound
from equidial.filters._matrix_free import MatrixFreeSpectrum
from equidial.filters._responses import subspace_factors
from equidial.filters._spectrum import Spectrum

DialKind = Literal["softness", "threshold", "max_error"]


@dataclass(frozen=True)
class Dial:
    """One dial and its value; build it with :meth:`of`."""

    kind: DialKind
    value: float

    @classmethod
    def of(cls, softness: float | None = None, threshold: float | None = None, max_error: float | None = None) -> Dial:
        """The one dial that is given. Raises ``ArgumentError`` for none, for two, or for a value out of range."""
        given: dict[DialKind, float | None] = {"softness": softness, "threshold": threshold, "max_error": max_error}
        named: dict[DialKind, float] = {kind: value for kind, value in given.items() if value is not None}
        if len(named) != 1:
            got = " and ".join(f"{kind}={value!r}" for kind, value in named.items()) or "none of them"
            raise ArgumentError(explain("exactly one dial: softness, threshold or max_error", got, "keep one of them"))
        ((kind, raw),) = named.items()
        if isinstance(raw, bool) or not isinstance(raw, int | float) or math.isnan(raw):
            raise ArgumentError(explain(f"a number for {kind}", repr(raw), f"e.g. {kind}=0.5"))
        value = float(raw)
        if kind == "softness" and not 0 <= value <= 1:
            raise ArgumentError(
                explain(
                    "softness in [0, 1] (0: exactly symmetric, 1: untouched)",
                    repr(raw),
                    "choose it in this range",
                )
            )
        if value < 0:
            raise ArgumentError(explain(f"{kind} >= 0", repr(raw), "choose a non-negative value"))
        return cls(kind, value)

    @property
    def is_free(self) -> bool:
        """Whether the dial leaves every weight untouched."""
        return self.value == 1.0 if self.kind == "softness" else math.isinf(self.value)

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def threshold_of_softness(spectrum: Spectrum | MatrixFreeSpectrum, response: str, softness: float) -> float:
    """The smallest ``b`` whose mean response over the directions with ``sigma > 0`` is at least ``softness``.

    For ``hard`` this rounds up to whole eigenspaces. 0 at softness 0, infinite at softness 1. Raises ``ArgumentError``
    where multiplicities are unknown.
    """
    if softness == 1.0:
        return math.inf
    if isinstance(spectrum, MatrixFreeSpectrum):
        if softness == 0.0:
            return 0.0
        raise ArgumentError(
            explain(
                f"a threshold for {response!r} on {spectrum.constraint.name}, whose multiplicities are unknown",
                f"softness={softness:g}, a share of its directions",
                f"pass threshold= (singular values lie below {spectrum.constraint.scale:.4g}), or response='nearest'",
            )
        )
    weights = torch.tensor(spectrum.multiplicity, dtype=torch.float64) * (spectrum.sigma > 0)
    if softness == 0.0 or float(weights.sum()) == 0:
        return 0.0
    weights = weights / weights.sum()

    def mean(b: float) -> float:
        factors = subspace_factors(response, spectrum.sigma, torch.tensor(b, dtype=torch.float64))
        return float((factors * weights).sum())

    if response == "hard":
        return next(float(s) for s in spectrum.sigma if mean(float(s)) >= softness - 1e-12)
    low, high = 0.0, float(spectrum.sigma[-1])
    while mean(high) < softness:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if mean(middle) < softness else (low, middle)
    return high


def threshold_of_budget(
    spectrum: Spectrum | MatrixFreeSpectrum, response: str, max_error: float, radius: float
) -> float:
    """The largest threshold whose a priori bound ``phi(radius) b`` stays within ``max_error``.

    Raises ``BudgetError`` naming the smallest reachable bound where the space holds no exactly symmetric weight,
    and ``ArgumentError`` for responses whose bound depends on the weight.
    """
    if max_error >= trivial_bound(spectrum.constraint, radius):
        return math.inf
    factor = growth_factor(spectrum.constraint, radius)
    if response == "exponential":
        raise ArgumentError(
            explain(
                "a response with an a priori bound (nearest, hard, taper) for max_error",
                "response='exponential', whose error relative to the result has none",
                "choose another response, or set softness or threshold",
            )
        )
    if isinstance(spectrum, MatrixFreeSpectrum) and response == "taper":
        raise ArgumentError(
            explain(
                f"a response with an a priori bound on {spectrum.constraint.name} (nearest, hard)",
                "a Chebyshev series of response='taper', which is never exactly 0",
                "choose another response, or set threshold and certify the weight",
            )
        )
    smallest = factor * spectrum.smallest_sigma()
    if max_error < smallest:
        raise BudgetError(
            explain(
                f"max_error >= {smallest:.6g} for {spectrum.constraint.name}, which holds no invariants",
                f"max_error={max_error:g}",
                f"use max_error={smallest:.6g} or more, or leave this tensor out",
            ),
            smallest,
        )
    return max_error / factor if factor > 0 else math.inf
