"""``equidial sweep RECIPE``: run or join a sweep, or print where it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import tyro

from equidial.errors import ArgumentError, explain
from equidial.sweeps import Sweep, run, status


@dataclass(frozen=True)
class SweepCommand(Sweep):
    """Search a recipe's settings for accuracy and error at once; the same command elsewhere adds workers.

    Stopped in any way, the same command goes on. Data and model of adapt are fixed values: --fixed model=hf:NAME
    data=images.npz.
    """

    recipe: tyro.conf.Positional[str] = ""
    """demo | adapt | mnist | FILE.py:NAME, a SweepRecipe (runs the code of that file); not needed for --status."""
    status: bool = False
    """Print where the sweep stands, from any machine, and end."""


def sweep(command: SweepCommand, progress: Callable[[int, int, str], None]) -> None:
    """Run a sweep and write its page, or print its status."""
    if not command.recipe and not (command.status and (command.storage or command.output or command.name)):
        raise ArgumentError(explain("a recipe to sweep", "none", "e.g. equidial sweep demo --trials 20"))
    with contextlib.suppress(ImportError):  # its absence is told by what needs it
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = Sweep(**{f.name: getattr(command, f.name) for f in fields(Sweep)})
    if command.status:
        name = command.name or (made.title if command.recipe else None)
        print(status(made.where, name, command.select, command.max_error))
        return
    # drawn at the end, after hours: what is missing is told now
    from equidial.reporting import write_sweep

    found = run(made, progress)
    print(found)
    if found.best is None and command.max_error is not None:
        print(f"note: no trial has an error up to {command.max_error:g}, so none is exported")
    elif found.best is not None and not (made.folder / "best" / "trial.json").is_file():
        print(f"note: the best trial lies on the machine of {found.best.worker}: {found.best.folder}")
    print(f"results: {write_sweep(made, found)}")
