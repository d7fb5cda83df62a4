"""Medians, spread and growth: what the numbers of a benchmark are reduced to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.stats

from equidial.errors import ArgumentError, explain


@dataclass(frozen=True)
class Summary:
    """Median, quartiles (linear interpolation) and range of ``count`` samples."""

    median: float
    q1: float
    q3: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Reduce at least one finite sample."""
        if not samples or not all(math.isfinite(sample) for sample in samples):
            raise ArgumentError(explain("at least one sample, all finite", list(samples), "measure again"))
        q1, median, q3 = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
        return cls(median, q1, q3, float(min(samples)), float(max(samples)), len(samples))

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        middle, low, high = (number(value) for value in (self.median, self.q1, self.q3))
        return f"{middle} [{low}..{high}; {number(self.low)}..{number(self.high)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent between 1e-4 and 1e6."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


@dataclass(frozen=True)
class PowerLaw:
    """``value = scale * size^exponent``, least squares in logarithms, with the errors of the fit.

    ``exponent_error`` is the standard error of the slope: the scatter about the line, not systematic curvature.
    """

    exponent: float
    exponent_error: float
    scale: float
    sizes: tuple[float, ...]
    deviation: float

    @classmethod
    def fit(cls, sizes: Sequence[float], values: Sequence[float]) -> PowerLaw:
        """Fit at least three positive points at three sizes or more."""
        if len(sizes) != len(values) or len(set(sizes)) < 3 or min(*sizes, *values) <= 0:
            raise ArgumentError(
                explain(
                    "one positive value for each of at least three positive sizes",
                    f"sizes {list(sizes)}, values {list(values)}",
                    "measure more sizes",
                )
            )
        x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
        spread = float(((x - x.mean()) ** 2).sum())
        exponent = float((x - x.mean()) @ (y - y.mean())) / spread
        intercept = float(y.mean() - exponent * x.mean())
        rest = y - intercept - exponent * x
        deviation = math.sqrt(float(rest @ rest) / (len(x) - 2))
        return cls(exponent, deviation / math.sqrt(spread), math.exp(intercept), tuple(map(float, sizes)), deviation)

    def at(self, size: float) -> float:
        """The value on the line."""
        return self.scale * size**self.exponent

    def interval(self, size: float) -> tuple[float, float]:
        """The 95 % prediction interval of one value at ``size``, provided that the law goes on."""
        x = np.log(self.sizes)
        distance = (math.log(size) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        width = self.deviation * math.sqrt(1 + 1 / len(x) + distance)
        factor = math.exp(float(scipy.stats.t.ppf(0.975, len(x) - 2)) * width)
        return self.at(size) / factor, self.at(size) * factor

    def to_dict(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)
