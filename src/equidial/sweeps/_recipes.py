"""What one trial runs: a dataclass, its space, a function that trains one seed, and where the folded model lies."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from equidial.errors import ArgumentError, explain, nearest_names
from equidial.recipes import Adapt, Demo, mnist
from equidial.recipes.adapt import run as run_adapt
from equidial.sweeps._space import RESERVED, Choice, Range, Space


@dataclass(frozen=True)
class Measured:
    """What one seed of a trial reached.

    Attributes:
        accuracy, error: the two objectives; the first is to be large, the second small.
        model: folder with the folded model, kept for the trials of the Pareto front; ``None`` where there is none.
        more: further numbers, kept beside.
    """

    accuracy: float
    error: float
    model: Path | None = None
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepRecipe:
    """A recipe that can be swept.

    Attributes:
        name: on the command line.
        made: its dataclass; a field ``output`` gets the folder of the seed, a field ``seeds`` the seed alone.
        train: called with (an instance of ``made``, the seed, an empty folder) for each seed of a trial.
        space: what is varied unless the caller says otherwise.
        fixed: values that differ from the defaults of the dataclass.
        objectives: what accuracy and error are called.
    """

    name: str
    made: type
    train: Callable[[Any, int, Path], Measured]
    space: Space
    fixed: Mapping[str, Any] = field(default_factory=dict)
    objectives: tuple[str, str] = ("accuracy", "error")


def _adapt(configuration: Adapt, seed: int, folder: Path) -> Measured:
    """One fine-tuning of :mod:`equidial.recipes.adapt`, the data and the model loaded anew."""
    (outcome,) = run_adapt(configuration)
    model = folder / f"softness-{outcome.softness:g}-seed-{seed}"
    tuned = outcome.tuned
    return Measured(tuned.cAcc, tuned.iErr, model, {"Acc": tuned.Acc, "bound": float(outcome.certificate.bound)})


def _mnist(configuration: mnist.MnistTraining, seed: int, folder: Path) -> Measured:
    """One training from scratch of :mod:`equidial.recipes.mnist`."""
    record = mnist.train_one(configuration, seed, folder)
    return Measured(record["cAcc"], record["iErr"], folder, {"Acc": record["Acc"], "bound": record["bound"]})


def _demo_values() -> dict[str, Any]:
    """The demo's settings where they are not those of ``Adapt``; epsilon, no objective, is not measured."""
    demo, plain = Demo().adaptation(), Adapt(model="demo", data="demo", output=Path())
    values = {f.name: getattr(demo, f.name) for f in fields(Adapt) if f.name not in (*RESERVED, "softness")}
    return {k: v for k, v in values.items() if k in ("model", "data") or v != getattr(plain, k)} | {"epsilon_images": 0}


_FINE_TUNING: Space = {
    "softness": Range(0.0, 1.0),
    "response": Choice(("nearest", "taper")),
    "learning_rate": Range(1e-5, 1e-3, log=True),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "augment": Choice(("none", "turn")),
}
_DEMO: Space = {**_FINE_TUNING, "learning_rate": Range(1e-4, 1e-2, log=True), "augment": Choice(("none", "group"))}
_MNIST: Space = {
    "softness": Range(0.0, 1.0),
    "response": Choice(("nearest", "taper")),
    "learning_rate": Range(3e-4, 1e-2, log=True),
}

SWEEPS: dict[str, SweepRecipe] = {
    recipe.name: recipe
    for recipe in (
        SweepRecipe("adapt", Adapt, _adapt, _FINE_TUNING, {"epsilon_images": 0}, ("cAcc", "iErr")),
        SweepRecipe("demo", Adapt, _adapt, _DEMO, _demo_values(), ("cAcc", "iErr")),
        SweepRecipe("mnist", mnist.MnistTraining, _mnist, _MNIST, {}, ("cAcc", "iErr")),
    )
}
"""Recipes by their names on the command line."""


def sweep_recipe(specification: str) -> SweepRecipe:
    """The recipe that a name, or ``FILE.py:NAME`` (runs the code of that file), stands for.

    Raises ``ArgumentError`` for an unknown name, a missing file, an object that is no :class:`SweepRecipe`.
    """
    if specification in SWEEPS:
        return SWEEPS[specification]
    file, separator, name = specification.rpartition(":")
    if not (separator and file.endswith(".py")):
        known = f"one of {', '.join(SWEEPS)}, or FILE.py:NAME"
        raise ArgumentError(explain(known, repr(specification), f"closest: {nearest_names(specification, SWEEPS)}"))
    path = Path(file)
    if not path.is_file():
        raise ArgumentError(explain("an existing Python file", str(path), "check the path"))
    spec = importlib.util.spec_from_file_location(f"_sweep_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # type hints of dataclasses are resolved in the module of that name
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    recipe = getattr(module, name, None)
    if not isinstance(recipe, SweepRecipe):
        raise ArgumentError(
            explain(f"a SweepRecipe {name!r} in {path.name}", type(recipe).__name__, "define it at the top of the file")
        )
    return recipe


def source_of(specification: str) -> str | None:
    """A digest of the file of a ``FILE.py:NAME`` recipe; ``None`` for those of the library, which has a version."""
    if specification in SWEEPS:
        return None
    return hashlib.sha256(Path(specification.rpartition(":")[0]).read_bytes()).hexdigest()[:16]
