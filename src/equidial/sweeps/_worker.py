"""A worker: takes a trial, trains its seeds, tells the objectives, until the sweep has its number."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from equidial.errors import StorageError, SweepError, explain
from equidial.sweeps._front import front
from equidial.sweeps._lease import Lease, Watch, lease_folder
from equidial.sweeps._pruning import dominated_by_margin
from equidial.sweeps._recipes import Measured
from equidial.sweeps._storage import disk_is_full, full_disk, is_database, reaching
from equidial.sweeps._study import Slots, agree, fail, is_surplus, joined, recover, suggest
from equidial.sweeps._sweep import Sweep

logger = logging.getLogger("equidial")
GRACE = 4
"""Heartbeats that may be missed."""


Told = Callable[[Slots, Sequence[FrozenTrial]], None]
"""Called before each trial with where the sweep stands, and its trials."""


def work(sweep: Sweep, progress: Told | None = None, parent: int | None = None) -> None:
    """Run trials until the sweep has ended, waiting at the end for those of others, which may be lost yet.

    ``parent``: a process without which no new trial is begun. Raises ``SweepError`` for a sweep with other settings or
    one whose every trial fails, ``StorageError`` for a storage that is gone or a full disk.
    """
    sweep.check()
    settings = sweep.settings()
    with Lease(lease_folder(sweep.where)) as lease, joined(sweep, settings) as study:
        watch = Watch(lease_folder(sweep.where), GRACE * sweep.heartbeat)
        pause = 0.05
        while parent is None or os.getppid() == parent:
            with reaching(sweep.where):
                agree(study, settings, sweep)
                state, trials = recover(study, watch, sweep, lease.worker)
            _not_hopeless(trials)
            _keep_front(sweep, trials)
            if progress is not None:
                progress(state, trials)
            if state.waiting or state.begun < sweep.trials:
                _attempt(sweep, study, lease)
                pause = 0.05
            elif state.running:
                time.sleep(pause)
                pause = min(2 * pause, 1.0, sweep.heartbeat)
            else:
                return


def _attempt(sweep: Sweep, study: optuna.Study, lease: Lease) -> None:
    """Take one trial and end it, one way or another."""
    with reaching(sweep.where):
        trial = study.ask()
        trial.set_user_attr("worker", lease.worker)
        trials = study.get_trials(deepcopy=False)
        if is_surplus(trials[trial.number], trials, sweep.trials):
            trial.set_user_attr("surplus", True)
            return fail(study, trial.number)
        seed = hashlib.sha256(f"{sweep.seed} {trial.number}".encode()).digest()[:4]
        study.sampler = TPESampler(seed=int.from_bytes(seed, "big"), n_startup_trials=sweep.startup)
        values = suggest(sweep, trial)
    folder = trial_folder(sweep, trial.number)
    if "retry_of" in trial.user_attrs:
        _clear_earlier(sweep, study, trial)
    pulse = (lambda now: trial.set_user_attr("pulse", now)) if is_database(sweep.where) else None
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with lease.beating(sweep.heartbeat, pulse):
            _train(sweep, study, trial, values, folder)
    except UpdateFinishedTrialError:
        # this worker was silent for so long that the trial was given to another
        logger.info("trial %d: taken over by another worker", trial.number)
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        _leave(sweep, study, trial, error)


def _train(sweep: Sweep, study: optuna.Study, trial: optuna.Trial, values: dict[str, Any], folder: Path) -> None:
    found: list[Measured] = []
    start = time.perf_counter()
    for seed in sweep.seeds:
        own = folder / f"seed-{seed}"
        own.mkdir()
        measured = sweep.made_of.train(sweep.configuration(values, seed, own), seed, own)
        if not (math.isfinite(measured.accuracy) and math.isfinite(measured.error)):
            raise FloatingPointError(f"seed {seed}: accuracy {measured.accuracy}, error {measured.error}")
        found.append(measured)
        pairs = [[float(m.accuracy), float(m.error)] for m in found]
        record = {"pairs": pairs, "more": [dict(m.more) for m in found]}
        record |= {"model": None if found[0].model is None else str(found[0].model.relative_to(folder))}
        record |= {"folder": str(folder.resolve()), "seconds": time.perf_counter() - start}
        with reaching(sweep.where):
            trial.set_user_attr("seeds", record)
        if len(found) < len(sweep.seeds) and _is_behind(sweep, study, pairs):
            _tell(sweep, study, trial, None)
            return shutil.rmtree(folder, ignore_errors=True)
    accuracy, error = (math.fsum(column) / len(found) for column in zip(*pairs, strict=True))
    _tell(sweep, study, trial, (accuracy, error))


def _is_behind(sweep: Sweep, study: optuna.Study, pairs: list[list[float]]) -> bool:
    if math.isinf(sweep.prune):
        return False
    with reaching(sweep.where):
        done = [t.user_attrs["seeds"]["pairs"] for t in _complete(study)]
    return dominated_by_margin(pairs, done, sweep.prune, sweep.startup)


def _tell(sweep: Sweep, study: optuna.Study, trial: optuna.Trial, values: tuple[float, float] | None) -> None:
    """Tell the objectives, or that the trial was stopped; a storage that is away is asked again for two minutes."""
    state = TrialState.PRUNED if values is None else TrialState.COMPLETE
    for pause in (1, 2, 4, 8, 16, 32, 60, None):
        try:
            with reaching(sweep.where):
                told = study.tell(trial, values, state=state, skip_if_finished=True)
            if told.state != state:
                raise UpdateFinishedTrialError(f"trial {trial.number} has ended")
            return
        except StorageError:
            if pause is None or not is_database(sweep.where):
                raise
            time.sleep(pause)


def _leave(sweep: Sweep, study: optuna.Study, trial: optuna.Trial, error: BaseException) -> None:
    """End a trial that raised: an error of its own is kept with it; for others it is left to be begun again."""
    full = disk_is_full(error, sweep.folder)
    own = isinstance(error, Exception) and not full and not isinstance(error, StorageError)
    try:
        if own:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:1000])
        else:
            trial.set_user_attr("interrupted", True)
        fail(study, trial.number)
    except Exception as also:  # a full disk may hold the storage too; the free lease tells of the trial
        logger.info("trial %d is left to be retried: %s", trial.number, also)
    if full:
        raise full_disk(sweep.folder) from error
    if not own:
        raise error
    logger.info("trial %d failed: %s", trial.number, error)


def _not_hopeless(trials: Sequence[FrozenTrial]) -> None:
    """Raise ``SweepError`` where the first three trials failed and none succeeded: something is wrong with them all."""
    ended = [t for t in trials if t.state.is_finished() and "surplus" not in t.user_attrs]
    errors = [t.user_attrs["error"] for t in ended if "error" in t.user_attrs]
    if len(errors) >= 3 and not any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in ended):
        got = f"{len(errors)} failed and none succeeded; the last: {errors[-1]}"
        raise SweepError(explain("a trial that succeeds", got, "mend the settings, and choose another --name"))


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _keep_front(sweep: Sweep, trials: Sequence[FrozenTrial]) -> None:
    """Delete the folders, here, of finished trials that another one dominates: they can be no one's choice."""
    done = [(t, (t.values[0], t.values[1])) for t in trials if t.state == TrialState.COMPLETE]
    kept = {done[i][0].number for i in front([point for _, point in done])}
    for trial, _ in done:
        folder = trial_folder(sweep, trial.number)
        if trial.number not in kept and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _clear_earlier(sweep: Sweep, study: optuna.Study, trial: optuna.Trial) -> None:
    for other in study.get_trials(deepcopy=False):
        if other.number != trial.number and int(trial.user_attrs["retry_of"]) in (
            other.number,
            other.user_attrs.get("retry_of"),
        ):
            shutil.rmtree(trial_folder(sweep, other.number), ignore_errors=True)


def trial_folder(sweep: Sweep, number: int) -> Path:
    """Where a trial's seeds lie on the machine that ran it."""
    return sweep.folder / "trials" / f"{number:04d}"
