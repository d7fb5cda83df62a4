"""What the pages of all studies share: the head, cells with their spread, colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from equidial.reporting._runs import Spread

Records = Sequence[Mapping[str, Any]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True)
class Page:
    """How the records of one study are told.

    Attributes:
        order: the fields by which records are put in order, each in the order of the settings.
        text: of settings and records, in Markdown.
        figure: of the records.
    """

    order: tuple[str, ...]
    text: Callable[[Mapping[str, Any], Records], str]
    figure: Callable[[Records], Figure]


def header(name: str, settings: Mapping[str, Any], records: Records) -> list[str]:
    """The command, its settings and what they took."""
    minutes = sum(r["seconds"] for r in records) / 60
    epochs = max(r.get("epochs", 0) for r in records)
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    return [
        f"    equidial reproduce {name} --data DATA --output FOLDER --scale {settings['scale']}",
        "",
        f"Settings: {options}.",
        f"{len(records)} trainings of {epochs} epochs, {minutes:.0f} minutes in all.",
    ]


def spread(records: Records, name: str, scale: float, digits: int) -> str:
    """A number over seeds."""
    return Spread.of([r[name] for r in records]).show(digits, scale)


def sizes(records: Records, name: str) -> str:
    """The mean size of a list of numbers, with least and largest."""
    values = [abs(v) for r in records for v in r[name]]
    if not values:
        return "-"
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}..{max(values):.3f})"
