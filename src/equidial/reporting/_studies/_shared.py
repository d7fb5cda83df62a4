"""What the pages of all studies share: the head, cells with their spread, colours."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from equidial.recipes import STUDIES
from equidial.reporting._runs import Spread

Records = Sequence[Mapping[str, Any]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CHANCE = 0.05
"""p-values below it are called differences."""


@dataclass(frozen=True)
class Page:
    """How the records of one study are told.

    Attributes:
        name: of the study on the command line.
        order: the fields by which records are put in order, each in the order of the settings.
        text: of settings and records, in Markdown.
        figure: of the records.
    """

    name: str
    order: tuple[str, ...]
    text: Callable[[Mapping[str, Any], Records], str]
    figure: Callable[[Records], Figure]


def command(name: str, settings: Mapping[str, Any]) -> str:
    """What was typed, up to paths: options that are not the defaults of the study."""
    words = [f"equidial reproduce {name}"]
    for field in fields(STUDIES[name][0]):
        option, value = f"--{field.name.replace('_', '-')}", settings.get(field.name)
        if field.name in ("data", "output"):
            words.append(f"{option} {'DATA' if field.name == 'data' else 'FOLDER'}")
        elif field.name == "weights":
            if not str(settings.get("model")).startswith(("hf:", "timm:")):
                words.append(f"{option} WEIGHTS")
        elif field.name == "scale" or (field.name in settings and _plain(value) != _plain(field.default)):
            values = value if isinstance(value, list | tuple) else (value,)
            words.append(" ".join([option, *(shlex.quote(str(one)) for one in values if one is not True)]))
    return f"    {' '.join(words)}"


def _plain(value: Any) -> Any:
    """As it comes back from a file."""
    return list(value) if isinstance(value, tuple) else value


def header(name: str, settings: Mapping[str, Any], records: Records, epochs: str = "") -> list[str]:
    """The command, its settings and what they took; ``epochs`` in words, default the largest number."""
    minutes = sum(r["seconds"] for r in records) / 60
    epochs = epochs or str(max(r.get("epochs", 0) for r in records))
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    return [
        command(name, settings),
        "",
        f"Settings: {options}.",
        f"{len(records)} trainings of {epochs} epochs, {minutes:.0f} minutes in all, added up over them.",
    ]


def spread(records: Records, name: str, scale: float, digits: int) -> str:
    """A number over seeds."""
    return Spread.of([r[name] for r in records]).show(digits, scale)


def is_above(one: Spread, other: Spread) -> bool:
    """Whether the means differ by more than the root of the summed variances over seeds."""
    return one.mean - other.mean > (one.deviation**2 + other.deviation**2) ** 0.5


def sizes(records: Records, name: str) -> str:
    """The mean size of a list of numbers, with least and largest."""
    values = [abs(v) for r in records for v in r[name]]
    if not values:
        return "-"
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def pairs(records: Records, others: Records, *fields: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Records of two settings that agree in these fields, the seed for one; those without a partner are left out."""
    partner = {tuple(r[name] for name in fields): r for r in others}
    found = [(r, partner.get(tuple(r[name] for name in fields))) for r in records]
    return [(one, other) for one, other in found if other is not None]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its standard deviation, 95 % interval and two-sided p-value by Student's t.

    NaN where they are not defined: for fewer than two pairs, and p for differences that are all 0.
    """

    mean: float
    deviation: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> Difference:
        """Of ``values - others``, at least one."""
        gaps = [a - b for a, b in zip(values, others, strict=True)]
        centre, count = mean(gaps), len(gaps)
        if count < 2:
            return cls(centre, math.nan, math.nan, math.nan, math.nan)
        deviation = stdev(gaps)
        error = deviation / math.sqrt(count)
        reach = error * float(student.ppf(0.975, count - 1))
        none = math.nan if centre == 0 else 0.0
        p = float(2 * student.sf(abs(centre) / error, count - 1)) if error > 0 else none
        return cls(centre, deviation, centre - reach, centre + reach, p)


@dataclass(frozen=True)
class Point:
    """One setting over its seeds: invariance error, combined accuracy, certified bound."""

    error: Spread
    accuracy: Spread
    bound: Spread | None

    @classmethod
    def of(cls, records: Records) -> Point:
        """Of the records of one setting; without a bound where they have none."""
        bounds = [r["bound"] for r in records if r.get("bound") is not None]
        error, accuracy = (Spread.of([r[name] for r in records]) for name in ("iErr", "cAcc"))
        return cls(error, accuracy, Spread.of(bounds) if bounds else None)

    def beats(self, other: Point) -> bool:
        """At least as accurate on the mean with no larger error, and better in one of them."""
        gain, saving = self.accuracy.mean - other.accuracy.mean, other.error.mean - self.error.mean
        return gain >= 0 and saving >= 0 and gain + saving > 0


def trade_off_figure(
    panels: Mapping[str, tuple[Mapping[str, Sequence[Point]], Mapping[str, Point]]], linear_below: float | None = None
) -> Figure:
    """One row per panel: cAcc against iErr, and the certified bound against it; (curves, single points) by name.

    ``linear_below``: iErr is logarithmic above this.
    """
    figure = Figure(figsize=(10, 3.6 * max(len(panels), 1)), layout="constrained")
    rows = figure.subplots(max(len(panels), 1), 2, squeeze=False)
    for (scores, bounds), (title, (curves, singles)) in zip(rows, panels.items(), strict=False):
        lines = [(name, points, "o-") for name, points in curves.items()]
        lines += [(name, [point], "s") for name, point in singles.items()]
        for place, (name, points, style) in enumerate(lines):
            colour = COLOURS[place % len(COLOURS)]
            _curve(scores, [(p.error, p.accuracy) for p in points], style, colour, name)
            _curve(bounds, [(p.error, p.bound) for p in points if p.bound is not None], style, colour, name)
        scores.set(title=title, ylabel="combined accuracy cAcc")
        bounds.set(ylabel="certified bound, worst tensor", ylim=(-0.05, 1.05 * bounds.get_ylim()[1]))
        for axes in (scores, bounds):
            axes.set_xlabel("invariance error iErr (nats)")
            if linear_below is not None:
                axes.set_xscale("symlog", linthresh=linear_below)
            left, right = axes.get_xlim()
            axes.set_xlim(left=max(left, -0.03 * right if linear_below is None else -linear_below / 2))  # none is < 0
            axes.grid(alpha=0.25)
        scores.legend(fontsize=8)
    return figure


def _curve(axes: Axes, points: Sequence[tuple[Spread, Spread]], style: str, colour: str, name: str) -> None:
    xs, ys = ([s.mean for s in column] for column in zip(*points, strict=True)) if points else ([], [])
    errors = [[s.deviation for s in column] for column in zip(*points, strict=True)] if points else [[], []]
    axes.errorbar(xs, ys, xerr=errors[0], yerr=errors[1], fmt=style, color=colour, ms=4, lw=1.2, label=name)
