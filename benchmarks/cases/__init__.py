"""The registry of construction benchmarks: every module of this folder adds its cases.

A case is a generator of :class:`~benchmarks._contract.Row` and :class:`~benchmarks._contract.Finding` objects:

    @case("taper", "non-normal 14x14 -> 14x14, Chebyshev")
    def taper(settings: Settings) -> Iterator[Row | Finding]:
        timings = settings.measure([Rival("ours", {"build": ..., "apply": ...}), Rival("dense", {...})])
        yield Row("taper", "ours", "14x14", 196, "float64", timings.summaries("ours"))

A case that cannot run (a rival is not installed, no reference is given) yields a ``Finding`` that says so.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._contract import Finding, Rival, Row, Timings, measure


@dataclass(frozen=True)
class Settings:
    """What a case may use of the command line."""

    rounds: int = 9
    warmup: int = 1
    budget_s: float = 60.0
    threads: int = 1
    seed: int = 0
    sizes: tuple[int, ...] = (7, 10, 14, 16)
    dense_sizes: tuple[int, ...] = (3, 4, 5, 6, 7)
    reference: Path | None = None
    memory: bool = True

    def measure(self, rivals: Sequence[Rival]) -> Timings:
        """Time rivals against one another under these settings."""
        return measure(rivals, self.rounds, self.warmup, self.budget_s)

    def weight(self, *shape: int) -> torch.Tensor:
        """A standard normal float64 weight, the same for every rival."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


Case = Callable[[Settings], Iterator[Row | Finding]]


@dataclass(frozen=True)
class Entry:
    """A registered case: its function and the line printed above its rows."""

    title: str
    run: Case


CASES: dict[str, Entry] = {}
"""Cases by name, in the order in which their modules are imported (alphabetical)."""


def case(name: str, title: str) -> Callable[[Case], Case]:
    """Register a case under ``name``."""

    def add(run: Case) -> Case:
        CASES[name] = Entry(title, run)
        return run

    return add


def load_cases() -> dict[str, Entry]:
    """Import every module of this folder and return the registry."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return CASES
