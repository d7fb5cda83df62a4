"""A sweep as an Optuna study: joining it, what its trials stand for, and giving lost ones to others.

A trial's slot is its number, or that of the trial which it repeats (attribute ``retry_of``). A sweep of ``n`` trials is
``n`` slots, each with one trial that came to an end. What became of a trial is told by its state and one attribute: a
failed trial with ``error`` failed by itself; with ``surplus`` two workers took one slot and this one gave way; failed
without either, it was lost with its worker. So nothing depends on two writes being made together: a worker that dies
between them leaves a trial that the others find, and begin again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from equidial.errors import StorageError, SweepError, explain
from equidial.sweeps._lease import Watch, bury
from equidial.sweeps._space import Choice, field_kind
from equidial.sweeps._storage import close_storage, open_storage, reaching, shown
from equidial.sweeps._sweep import Sweep, differences

SETTINGS = "equidial"
OPEN = (TrialState.RUNNING, TrialState.WAITING)


@contextmanager
def joined(sweep: Sweep, settings: dict[str, Any]) -> Iterator[optuna.Study]:
    """The study of a sweep, made if there is none of its name. Raises ``SweepError`` where another has that name."""
    storage = open_storage(sweep.where)
    try:
        with reaching(sweep.where):
            directions = ("maximize", "minimize")
            with suppress(DuplicatedStudyError):
                optuna.create_study(storage=storage, study_name=sweep.title, directions=directions)
            study = optuna.load_study(storage=storage, study_name=sweep.title)
            if SETTINGS not in study.user_attrs and not study.get_trials(deepcopy=False):
                study.set_user_attr(SETTINGS, settings)
            agree(study, settings, sweep)
        yield study
    finally:
        close_storage(storage)


def agree(study: optuna.Study, settings: dict[str, Any], sweep: Sweep) -> None:
    """Raise ``SweepError`` unless the study has these settings. Asked before each trial: of two sweeps that made their
    study at the same moment, the settings of one stand, and the other is told here."""
    found = study.user_attrs.get(SETTINGS)
    if not isinstance(found, dict):
        got = f"{sweep.title!r} in {shown(sweep.where)}, which something else made"
        raise SweepError(explain("a new name, or that of a sweep", got, "choose another --name"))
    lines = differences(settings, found)
    if lines:
        got = f"{sweep.title!r} in {shown(sweep.where)} has others:\n    " + "\n    ".join(lines)
        todo = "choose another --name for another sweep, or the same settings and version to join this one"
        raise SweepError(explain("the settings of the sweep of that name", got, todo))


@contextmanager
def loaded(storage: str, name: str | None) -> Iterator[optuna.Study]:
    """A study that is there, by its name, or the only one. Raises ``StorageError`` without it."""
    opened = open_storage(storage, create=False)
    try:
        with reaching(storage):
            names = optuna.get_all_study_names(opened)
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                known = ", ".join(map(repr, names)) or "none"
                got = f"{'no name' if name is None else repr(name)} in {shown(storage)}, which holds {known}"
                raise StorageError(explain("the name of a sweep", got, "give one of these as --name"))
            study = optuna.load_study(storage=opened, study_name=name)
        yield study
    finally:
        close_storage(opened)


def suggest(sweep: Sweep, trial: optuna.Trial) -> dict[str, Any]:
    """Values for a trial, from the sampler of its study or, of a trial that is run again, those it had."""
    found: dict[str, Any] = {}
    for name, part in sweep.varied.items():
        if isinstance(part, Choice):
            found[name] = trial.suggest_categorical(name, part.values)
        elif field_kind(sweep.made_of.made, name) is int:
            step = int(part.step or 1)
            found[name] = trial.suggest_int(name, int(part.low), int(part.high), log=part.log, step=step)
        else:
            found[name] = trial.suggest_float(name, part.low, part.high, log=part.log, step=part.step)
    return found


def slot_of(trial: FrozenTrial) -> int:
    """The number of the trial that this one is, or repeats."""
    return int(trial.user_attrs.get("retry_of", trial.number))


def is_lost(trial: FrozenTrial) -> bool:
    """Whether it ended with its worker, not by itself."""
    return trial.state == TrialState.FAIL and not {"error", "surplus"} & trial.user_attrs.keys()


def is_surplus(trial: FrozenTrial, trials: Sequence[FrozenTrial], total: int) -> bool:
    """Whether earlier trials fill its place: two workers that ask at once may both be given one slot."""
    earlier = [t for t in trials if t.number < trial.number and "surplus" not in t.user_attrs]
    if "retry_of" in trial.user_attrs:
        return any(slot_of(t) == slot_of(trial) and not is_lost(t) for t in earlier)
    return sum("retry_of" not in t.user_attrs for t in earlier) >= total


@dataclass(frozen=True)
class Slots:
    """Where a sweep stands.

    Attributes:
        begun: slots with a trial.
        waiting, running: trials that nobody has taken yet, and under way.
        lost: of each slot that nobody has under way, the last trial, which its worker left.
        ended: slots that came to an end, those given up included.
        given_up: slots whose every attempt was lost.
    """

    begun: int
    waiting: list[FrozenTrial]
    running: list[FrozenTrial]
    lost: list[FrozenTrial]
    ended: int
    given_up: int


def slots(trials: Sequence[FrozenTrial], retries: int, total: int) -> Slots:
    """Sort trials into the first ``total`` slots; attempts that were interrupted do not count as retries."""
    grouped: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if "surplus" not in trial.user_attrs:
            grouped.setdefault(slot_of(trial), []).append(trial)
    grouped = {number: grouped[number] for number in sorted(grouped)[:total]}
    lost, ended, given_up = [], 0, 0
    for attempts in grouped.values():
        if any(not is_lost(t) and t.state not in OPEN for t in attempts):
            ended += 1
        elif all(is_lost(t) for t in attempts):
            if sum("interrupted" not in t.user_attrs for t in attempts) > retries:
                given_up, ended = given_up + 1, ended + 1
            else:
                lost.append(attempts[-1])
    taken = [t for group in grouped.values() for t in group]
    waiting = [t for t in taken if t.state == TrialState.WAITING]
    running = [t for t in taken if t.state == TrialState.RUNNING]
    return Slots(len(grouped), waiting, running, lost, ended, given_up)


def recover(study: optuna.Study, watch: Watch, sweep: Sweep, mine: str) -> tuple[Slots, list[FrozenTrial]]:
    """Fail the trials of dead workers, put every lost one in line again with its parameters.

    Returns where the sweep stands, and its trials.
    """

    def now() -> tuple[Slots, list[FrozenTrial]]:
        trials = study.get_trials(deepcopy=False)
        return slots(trials, sweep.retries, sweep.trials), trials

    state, trials = now()
    silent = [t for t in state.running if _is_silent(t, watch, mine)]
    for trial in silent:
        fail(study, trial.number)
        bury(watch.folder, str(trial.user_attrs.get("worker")))
    if silent:
        state, trials = now()
    for trial in state.lost:
        study.enqueue_trial(dict(trial.params), user_attrs={"retry_of": slot_of(trial)})
    return now() if state.lost else (state, trials)


def _is_silent(trial: FrozenTrial, watch: Watch, mine: str) -> bool:
    worker = trial.user_attrs.get("worker")
    return worker != mine and watch.lost(trial.number, worker, trial.user_attrs.get("pulse"))


def fail(study: optuna.Study, number: int) -> None:
    """Fail a trial unless somebody else ended it."""
    with suppress(UpdateFinishedTrialError):
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
