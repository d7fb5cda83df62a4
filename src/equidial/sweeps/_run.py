"""Run a sweep on this machine: its workers, the wait for them, and the best trial's folded model."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial

from equidial.errors import ArgumentError, EquidialError, StorageError, SweepError, explain
from equidial.recipes._files import replace_text
from equidial.sweeps._status import Status, best_of, status_of
from equidial.sweeps._storage import disk_is_full, full_disk, reaching
from equidial.sweeps._study import Slots, joined, slots
from equidial.sweeps._sweep import Sweep, differences
from equidial.sweeps._worker import Told, trial_folder, work

logger = logging.getLogger("equidial")

_OWNER = "sweep.json"

Progress = Callable[[int, int, str], None]
"""Called with (trials that came to an end, trials in all, what is going on)."""


def run_sweep(sweep: Sweep, progress: Progress | None = None) -> Status:
    """Run until the sweep has its trials, then put the best one's folded model into ``best/`` of the output folder.

    Several workers are processes of their own, each as the same command on another machine would start it; one worker
    is this process. Raises ``ArgumentError`` for settings that cannot work, ``SweepError`` for a name or an output
    folder that another sweep has, or where no worker is left, ``StorageError`` for a storage that is gone or a full
    disk. An interruption leaves what was under way to be begun again.
    """
    sweep.check()
    _check_folder(sweep)  # before another's storage gets a study
    with joined(sweep, sweep.settings()) as study:
        _claim(sweep)

        def told(state: Slots, trials: Sequence[FrozenTrial]) -> None:
            if progress is not None:
                best = best_of(trials, sweep.where, sweep.select, sweep.max_error)
                found = "" if best is None else f"best: {best.accuracy:.4f}, {best.error:.4f}"
                progress(state.ended, sweep.trials, found)

        if sweep.workers == 1:
            work(sweep, told)
        else:
            _supervise(sweep, study, told)
        with reaching(sweep.where):
            status = status_of(study, sweep.where, sweep.select, sweep.max_error)
    with _written(sweep):
        export_best(sweep, status)
    return status


@contextmanager
def _written(sweep: Sweep) -> Iterator[None]:
    """A disk that is full is told as such."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error, sweep.folder):
            raise full_disk(sweep.folder) from error
        raise


def _check_folder(sweep: Sweep) -> None:
    """Raise ``SweepError`` where the trials of another sweep lie: one's would be in the other's place."""
    file = sweep.folder / _OWNER
    if not file.is_file():
        return
    lines = differences({"name": sweep.title} | sweep.settings(), json.loads(file.read_text()))
    if lines:
        got = f"{sweep.folder} of another one:\n    " + "\n    ".join(lines)
        raise SweepError(explain("a new folder, or that of the same sweep", got, "choose another --output"))


def _claim(sweep: Sweep) -> None:
    """The folder is this sweep's from now on. Raises as :func:`_check_folder`."""
    file = sweep.folder / _OWNER
    with _written(sweep):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                replace_text(file, json.dumps({"name": sweep.title} | sweep.settings(), indent=2) + "\n")
    _check_folder(sweep)


def export_best(sweep: Sweep, status: Status) -> Path | None:
    """Copy the best trial's model to ``best/``, with ``trial.json`` beside; ``None`` where it lies on another machine.

    The model is that of the first seed: none is chosen among the seeds.
    """
    best, target = status.best, sweep.folder / "best"
    if best is None or best.model is None or best.folder is None:
        return None
    places = (Path(best.folder), trial_folder(sweep, best.number))
    source = next((place / best.model for place in places if (place / best.model).is_dir()), None)
    if source is None:
        logger.info("the best trial, %d, lies on the machine of %s: %s", best.number, best.worker, best.folder)
        return None
    unfinished = target.with_name("best.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    record = asdict(best) | {"seed": status.settings["seeds"][0], "settings": status.settings}
    (unfinished / "trial.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target


def _supervise(sweep: Sweep, study: optuna.Study, told: Told) -> None:
    """Start the workers and wait for them; at an interruption they are told, and waited for."""
    with ExitStack() as files:
        logs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(sweep.workers)]
        workers = [_start(sweep, log) for log in logs]
        try:
            while any(worker.poll() is None for worker in workers):
                time.sleep(1)
                with reaching(sweep.where):
                    told(*_state(sweep, study))
        except BaseException:
            for worker in workers:
                if worker.poll() is None:
                    worker.send_signal(signal.SIGINT)
            for worker in workers:
                worker.wait()
            raise
        messages = [_read(log) for log in logs]
    with reaching(sweep.where):
        state, trials = _state(sweep, study)
    told(state, trials)
    if state.ended < sweep.trials:
        _explain_end(workers, messages, state, sweep)


def _start(sweep: Sweep, log: IO[str]) -> subprocess.Popen[str]:
    # each its share of the cores: threads of BLAS that wait for one another double the time
    threads = str(max(1, (os.cpu_count() or 1) // sweep.workers))
    # a session of its own: Ctrl-C reaches this process, which tells the worker once
    worker = subprocess.Popen(
        [sys.executable, "-m", "equidial.sweeps"],
        stdin=subprocess.PIPE,
        stderr=log,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={"OMP_NUM_THREADS": threads, **os.environ},
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(asdict(sweep) | {"parent": os.getpid()}, default=str))
    worker.stdin.close()
    return worker


def _state(sweep: Sweep, study: optuna.Study) -> tuple[Slots, list[FrozenTrial]]:
    trials = study.get_trials(deepcopy=False)
    return slots(trials, sweep.retries, sweep.trials), trials


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def _explain_end(workers: list[subprocess.Popen[str]], messages: list[str], state: Slots, sweep: Sweep) -> None:
    """Raise the error that ended a worker, in its own words."""
    for worker, text in zip(workers, messages, strict=True):
        kind = EXIT_CODES.get(worker.returncode)
        if kind is not None:
            raise kind(text.rpartition(MARK)[2].strip())
    ends = ", ".join(_how(worker.returncode) for worker in workers)
    last = next((text.strip().splitlines()[-1] for text in messages if text.strip()), "")
    got = f"{state.ended} of {sweep.trials} trials, and every worker {ends}{f': {last}' if last else ''}"
    raise SweepError(explain("a worker that lives to the end", got, "give the same command again: it goes on there"))


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"ended with code {code}"


MARK = "error: "
EXIT_CODES: dict[int, type[EquidialError]] = {2: ArgumentError, 3: SweepError, 4: StorageError}
"""What a worker's exit code says of the error that it wrote."""


def serve(document: str) -> int:
    """The body of a worker process: run what the parent wrote; returns its exit code."""
    # a batch system's notice: leave like at Ctrl-C, so that the trial is begun again at once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fields = json.loads(document)
    parent = fields.pop("parent")
    fields |= {name: tuple(fields[name]) for name in ("seeds", "space", "fixed")}
    fields["output"] = None if fields["output"] is None else Path(fields["output"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        work(Sweep(**fields), parent=parent)
    except KeyboardInterrupt:
        return 130
    except EquidialError as error:
        sys.stderr.write(f"{MARK}{error}\n")
        return next((code for code, kind in EXIT_CODES.items() if isinstance(error, kind)), 1)
    return 0
