"""A recipe whose objectives are formulas: fast, and its Pareto front is known."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from equidial.sweeps import Choice, Measured, Range, SweepRecipe


@dataclass(frozen=True)
class Toy:
    """Accuracy and error both rise with x; y and kind only harm."""

    output: Path
    x: float = 0.5
    y: float = 0.0
    steps: int = 1
    kind: str = "plain"
    seconds: float = 0.0
    widths: tuple[float, ...] = (1.0, 2.0)


def objectives(x: float, y: float, seed: int) -> tuple[float, float]:
    """The front is y = 0: accuracy sqrt(x), error x, up to the seed's share."""
    return x**0.5 - y + 0.001 * seed, x + y + 0.002 * seed


def train(toy: Toy, seed: int, folder: Path) -> Measured:
    """Sleep, and leave a folder that stands for the model."""
    time.sleep(toy.seconds)
    (folder / "model").mkdir()
    (folder / "model" / "weights.txt").write_text(f"{toy.x!r} {toy.y!r} {seed}")
    return Measured(*objectives(toy.x, toy.y, seed), folder / "model", {"steps": toy.steps})


TOY = SweepRecipe("toy", Toy, train, {"x": Range(0.0, 1.0), "y": Range(0.0, 0.5), "kind": Choice(("plain", "odd"))})
