"""Where a sweep stands, read from its storage by anybody at any time."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from equidial.sweeps._front import Select, choose, front
from equidial.sweeps._lease import host_of, known_dead, lease_folder, lease_path
from equidial.sweeps._storage import reaching, shown
from equidial.sweeps._study import SETTINGS, is_lost, loaded, slot_of

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: in the study.
        state: finished, stopped early, failed, lost (its worker died), running, waiting.
        values: what was varied.
        accuracy, error: means over the seeds that were run; NaN before the first.
        deviations: standard deviations over the seeds of (accuracy, error); ``None`` of fewer than two.
        more: means of the further numbers.
        seconds: of training; ``None`` while it runs.
        worker: ``host:pid``.
        silent: seconds since the last sign of life of a running one, by this machine's clock.
        dead: whether its worker is known to be dead.
        retry_of: number of the trial that it repeats.
        folder, model: where its seeds lie on its host, and below it the folded model of the first seed.
        message: of a failed one.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    accuracy: float = math.nan
    error: float = math.nan
    deviations: tuple[float, float] | None = None
    more: Mapping[str, float] | None = None
    seconds: float | None = None
    worker: str | None = None
    silent: float | None = None
    dead: bool = False
    retry_of: int | None = None
    folder: str | None = None
    model: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Status:
    """A sweep as it stands.

    Attributes:
        name, storage: what ``--name`` and ``--storage`` say; no password.
        settings: what its workers agree on.
        trials: all of them, in order.
        front: the finished ones that no other one dominates, by rising error.
        best: the one chosen; ``None`` where none is finished, or none has an error that is small enough.
        per_hour: trials that came to an end, over the time from the first start to the last end.
    """

    name: str
    storage: str
    settings: Mapping[str, Any]
    trials: tuple[TrialRow, ...]
    front: tuple[TrialRow, ...]
    best: TrialRow | None
    per_hour: float | None

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return dict(Counter(row.state for row in self.trials))

    @property
    def workers(self) -> tuple[str, ...]:
        """Those with a trial under way that are not known to be dead."""
        return tuple(sorted(str(row.worker) for row in self.trials if row.state == "running" and not row.dead))

    @property
    def objectives(self) -> tuple[str, str]:
        """What accuracy and error are called."""
        accuracy, error = self.settings["objectives"]
        return accuracy, error

    def __str__(self) -> str:
        accuracy, error = self.objectives
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items())) or "none"
        lines = [
            f"sweep {self.name!r} of {self.settings['recipe']} in {self.storage}",
            f"trials: {counts}" + ("" if self.per_hour is None else f"; {self.per_hour:,.0f} an hour"),
            f"workers: {len(self.workers)} alive" + "".join(f", {worker}" for worker in self.workers),
        ]
        for row in self.trials:
            if row.state == "running":
                sign = "dead" if row.dead else "" if row.silent is None else f"heard of {max(row.silent, 0):.0f} s ago"
                lines.append(f"  trial {row.number} on {row.worker or 'unknown'} {sign}".rstrip())
        if self.front:
            names = list(self.settings["space"])
            widths = [max(len(name), 9) for name in names]
            heads = [f"{name:>{w}}" for name, w in zip(names, widths, strict=True)]
            lines += ["front, best marked *:", f"  {'trial':>5} {accuracy:>9} {error:>9} " + " ".join(heads)]
            for row in self.front:
                cells = [f"{_short(row.values.get(n)):>{w}}" for n, w in zip(names, widths, strict=True)]
                mark = "*" if self.best is not None and row.number == self.best.number else " "
                lines.append(f"{mark} {row.number:>5} {row.accuracy:>9.4f} {row.error:>9.4f} " + " ".join(cells))
        return "\n".join(lines)


def read_status(
    storage: str, name: str | None = None, select: Select = "knee", max_error: float | None = None
) -> Status:
    """Read it; nothing is written. Raises ``StorageError`` for a storage or a name that is not there."""
    with loaded(storage, name) as study, reaching(storage):
        return status_of(study, storage, select, max_error)


def status_of(study: optuna.Study, storage: str, select: Select = "knee", max_error: float | None = None) -> Status:
    """The status of a study that is open."""
    trials = [t for t in study.get_trials(deepcopy=False) if "surplus" not in t.user_attrs]
    rows = tuple(_row(t, storage) for t in trials)
    done = [row for row in rows if row.state == "finished"]
    on_front = tuple(done[i] for i in front([(row.accuracy, row.error) for row in done]))
    best = _best(done, select, max_error)
    settings = study.user_attrs.get(SETTINGS) or {"recipe": "?", "objectives": ["accuracy", "error"], "space": {}}
    return Status(study.study_name, shown(storage), settings, rows, on_front, best, _per_hour(trials))


def best_of(trials: Sequence[FrozenTrial], storage: str, select: Select, max_error: float | None) -> TrialRow | None:
    """The best of the finished trials, if there is one."""
    return _best([_row(t, storage) for t in trials if t.state == TrialState.COMPLETE], select, max_error)


def _best(done: list[TrialRow], select: Select, max_error: float | None) -> TrialRow | None:
    points = [(row.accuracy, row.error) for row in done]
    if not points or (max_error is not None and min(error for _, error in points) > max_error):
        return None
    return done[choose(points, select, max_error)]


def _row(trial: FrozenTrial, storage: str) -> TrialRow:
    attributes = trial.user_attrs
    state = _STATES.get(trial.state) or ("lost" if is_lost(trial) else "failed")
    record = attributes.get("seeds") or {"pairs": [], "more": [], "model": None}
    columns = list(zip(*record["pairs"], strict=True))
    means = [statistics.fmean(column) for column in columns] or [math.nan, math.nan]
    worker, running = attributes.get("worker"), state == "running"
    return TrialRow(
        number=trial.number,
        state=state,
        values=dict(trial.params),
        accuracy=means[0],
        error=means[1],
        deviations=(statistics.stdev(columns[0]), statistics.stdev(columns[1])) if len(record["pairs"]) > 1 else None,
        more={key: statistics.fmean(m[key] for m in record["more"]) for key in (record["more"] or [{}])[0]},
        seconds=None if running else record.get("seconds"),
        worker=None if worker is None else host_of(worker),
        silent=_silent(trial, storage) if running and worker else None,
        dead=bool(running and worker) and known_dead(lease_folder(storage), str(worker)),
        retry_of=slot_of(trial) if "retry_of" in attributes else None,
        folder=record.get("folder"),
        model=record["model"],
        message=attributes.get("error"),
    )


def _silent(trial: FrozenTrial, storage: str) -> float | None:
    signs = [float(trial.user_attrs["pulse"])] if "pulse" in trial.user_attrs else []
    lease = lease_path(lease_folder(storage), trial.user_attrs["worker"])
    if lease.is_file():
        signs.append(lease.stat().st_mtime)
    return time.time() - max(signs) if signs else None


def _per_hour(trials: list[FrozenTrial]) -> float | None:
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    starts = [t.datetime_start for t in trials if t.datetime_start is not None]
    ends = [t.datetime_complete for t in ended if t.datetime_complete is not None]
    if not ends:
        return None
    span = (_naive(max(ends)) - _naive(min(starts))).total_seconds()
    return 3600 * len(ended) / span if span > 0 else None


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
