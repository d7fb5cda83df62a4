"""Sweeps: many trials of a recipe for accuracy and error at once, by workers that share a storage.

The package ``optuna`` (extra ``sweep``) is imported by :func:`run` and :func:`status`, not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from equidial.errors import ArgumentError, explain
from equidial.sweeps._front import Select
from equidial.sweeps._recipes import SWEEPS, Measured, SweepRecipe
from equidial.sweeps._space import Choice, Range
from equidial.sweeps._sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from equidial.sweeps._status import Status


def run(sweep: Sweep, progress: Callable[[int, int, str], None] | None = None) -> Status:
    """Run a sweep, or join it, until it has its trials; the best one's folded model goes to ``best/`` of its folder.

    Several workers are processes of their own, one worker is this process. ``progress``: called with (trials that came
    to an end, trials in all, the best so far). The same call on other machines, with a storage that they share, adds
    workers. Raises ``ArgumentError`` for settings that cannot work, ``SweepError`` for a name that another sweep has,
    trials that all fail or workers that all died, ``StorageError`` for a storage that is gone or a full disk; after an
    interruption of any kind the same call goes on, and runs anew what was under way.
    """
    _need_optuna()
    from equidial.sweeps._run import run_sweep

    return run_sweep(sweep, progress)


def status(storage: str, name: str | None = None, select: Select = "knee", max_error: float | None = None) -> Status:
    """Where a sweep stands, from any machine that reaches its storage; nothing is written.

    ``name``: may be left out where the storage holds one sweep. ``select``, ``max_error``: which trial is best, as in
    :class:`Sweep`. Raises ``StorageError`` for a storage or a name that is not there.
    """
    _need_optuna()
    from equidial.sweeps._status import read_status

    return read_status(storage, name, select, max_error)


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ArgumentError(explain("optuna for sweeps", "not installed", "pip install 'equidial[sweep]'")) from error


__all__ = ["SWEEPS", "Choice", "Measured", "Range", "Sweep", "SweepRecipe", "run", "status"]
