"""Sweeps on both storages: exact numbers, kills at any moment, retries, what is kept and what is exported."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from equidial.errors import StorageError, SweepError
from equidial.sweeps import SWEEPS, Measured, Sweep, run, status
from equidial.sweeps._lease import Lease, Watch, machine
from equidial.sweeps._study import joined, loaded
from equidial.sweeps._worker import work
from tests.sweeps import toy as toys

Make = Callable[..., Sweep]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
fork = multiprocessing.get_context("fork")


def started(sweep: Sweep) -> Any:
    """A worker as a process of its own."""
    process = fork.Process(target=work, args=(sweep,))
    process.start()
    return process


def trials(sweep: Sweep) -> list[optuna.trial.FrozenTrial]:
    with loaded(sweep.where, sweep.title) as study:
        return study.get_trials()


def lose(study: optuna.Study, worker: str | None, **values: Any) -> int:
    """A trial as a worker leaves it that dies."""
    trial = study.ask()
    if worker is not None:
        trial.set_user_attr("worker", worker)
    for name, high in values.items():
        trial.suggest_float(name, 0, high)
    return trial.number


def swap(monkeypatch: pytest.MonkeyPatch, train: Callable[..., Measured]) -> None:
    monkeypatch.setitem(SWEEPS, "toy", dataclasses.replace(toys.TOY, train=train))


def test_a_sweep_from_end_to_end(storage: str, toy: Make) -> None:
    sweep = toy(storage=storage, trials=10, startup=6, space=("steps=1:3",))
    told: list[tuple[int, int, str]] = []
    found = run(sweep, lambda *what: told.append(what))
    assert sum(found.counts[s] for s in ("finished", "stopped early") if s in found.counts) == 10
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (10, 10)
    for row in found.trials:
        values = [toys.objectives(row.values["x"], row.values["y"], seed) for seed in (0, 1)]
        seeds = values if row.state == "finished" else values[:1]
        assert row.accuracy == pytest.approx(math.fsum(a for a, _ in seeds) / len(seeds), abs=1e-12)
        assert row.error == pytest.approx(math.fsum(e for _, e in seeds) / len(seeds), abs=1e-12)
        assert row.values["steps"] in (1, 2, 3)
        if row.state == "finished":
            # deviations of two numbers that are 0.001 and 0.002 apart
            assert row.deviations == pytest.approx((0.001 / 2**0.5, 0.002 / 2**0.5))
            assert row.more == {"steps": row.values["steps"]}
    folders = {int(p.name) for p in (sweep.folder / "trials").iterdir()}
    assert folders == {row.number for row in found.front}, "only the front is kept"
    best = found.best
    assert best is not None
    assert (sweep.folder / "best" / "weights.txt").read_text() == f"{best.values['x']!r} {best.values['y']!r} 0"
    assert json.loads((sweep.folder / "best" / "trial.json").read_text())["number"] == best.number
    again = run(dataclasses.replace(sweep, trials=12))
    assert len(again.trials) == 12, "given more trials it goes on"
    assert again.trials[:10] == found.trials
    assert str(status(storage, "toy")) == str(again)
    assert status(storage).name == "toy", "the only one needs no name"


def test_the_sampler_is_determined_by_its_seed(tmp_path: Path, toy: Make) -> None:
    runs = [
        run(toy(storage=str(tmp_path / f"{i}.log"), trials=14, seed=seed, output=tmp_path / f"o{i}", prune=math.inf))
        for i, seed in enumerate((3, 3, 4))
    ]
    values = [[row.values for row in found.trials] for found in runs]
    assert values[0] == values[1] != values[2]


def test_trials_are_counted_exactly(storage: str, toy: Make) -> None:
    """Four workers that ask at the same moments end three trials, and two more when they are asked for."""
    for total in (3, 5):
        sweep = toy(storage=storage, trials=total, fixed=("seconds=0.02",))
        workers = [started(sweep) for _ in range(4)]
        for worker in workers:
            worker.join(300)
            assert worker.exitcode == 0
        states = [t.state for t in trials(sweep) if "surplus" not in t.user_attrs]
        assert states == [TrialState.COMPLETE] * total


def test_kill_at_any_moment(storage: str, toy: Make) -> None:
    """Either of two workers is killed again and again: no finished trial is lost, every killed one is run again."""
    sweep = toy(storage=storage, trials=16, fixed=("seconds=0.02",), retries=1000)
    draw, seen, kills = random.Random(1), {}, 0
    with joined(sweep, sweep.settings()):
        pass  # the storage is there: what is looked at below is trials
    workers = [started(sweep), started(sweep)]
    deadline = time.monotonic() + 300
    while any(worker.is_alive() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(draw.uniform(0.05, 0.4))
        if kills < 6:
            victim = draw.randrange(2)
            if workers[victim].is_alive():
                os.kill(workers[victim].pid, signal.SIGKILL)
                kills += 1
                workers[victim].join()
                workers[victim] = started(sweep)
        # nothing that was finished is ever changed
        try:
            now = {t.number: t.values for t in trials(sweep) if t.state == TrialState.COMPLETE}
        except StorageError:
            continue  # not there yet
        assert seen.items() <= now.items()
        seen = now
    assert kills >= 3
    found = trials(sweep)
    slots: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in found:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL), "nothing hangs"
        assert "error" not in trial.user_attrs
        if "surplus" not in trial.user_attrs:
            slots.setdefault(trial.user_attrs.get("retry_of", trial.number), []).append(trial)
    assert len(slots) == 16
    lost = 0
    for attempts in slots.values():
        ends = [t for t in attempts if t.state != TrialState.FAIL]
        assert len(ends) == 1, "each trial came to one end"
        for trial in attempts:
            lost += trial.state == TrialState.FAIL
            assert trial.params.items() <= ends[0].params.items(), "run again with the same values"
    assert lost >= 1


def test_a_worker_of_this_machine_is_missed_at_once(storage: str, toy: Make) -> None:
    """With an hour of grace, the free lock alone tells that it is dead."""
    sweep = toy(storage=storage, trials=2, heartbeat=900.0, fixed=("seconds=1.5",), seeds=(0,))
    first = started(sweep)
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        try:
            if len(trials(sweep)[0].params) == 3:
                break
        except (StorageError, IndexError):
            continue
    first.kill()
    first.join()
    before = status(storage)
    assert before.trials[0].dead
    assert before.workers == ()
    start = time.monotonic()
    found = run(sweep)
    assert time.monotonic() - start < 600
    assert [row.state for row in found.trials].count("lost") == 1
    (again,) = [row for row in found.trials if row.retry_of == 0]
    assert again.values == found.trials[0].values
    assert again.state == "finished"


@pytest.mark.parametrize("worker", ["elsewhere-0123abcd:12:beef", None])
def test_a_worker_elsewhere_is_missed_after_the_grace_period(storage: str, toy: Make, worker: str | None) -> None:
    """Its machine is gone, or it died before it could say its name."""
    sweep = toy(storage=storage, trials=2, heartbeat=0.1, seeds=(0,))
    with joined(sweep, sweep.settings()) as study:
        number = lose(study, worker, x=1.0)
    found = run(sweep)
    assert found.trials[number].state == "lost"
    assert {row.state for row in found.trials if row.number != number} == {"finished"}
    (again,) = [row for row in found.trials if row.retry_of == number]
    assert again.values["x"] == found.trials[number].values["x"]


def test_a_pulse_keeps_a_worker_alive(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(tmp_path, 10.0, lambda: now[0])
    for now[0], pulse, lost in ((0, 1, False), (9, 1, False), (9.5, 2, False), (19, 2, False), (20, 2, True)):
        assert watch.lost(0, "elsewhere:1:a", pulse) is lost


def test_a_lease_moves_its_file_and_tells_the_living(tmp_path: Path) -> None:
    with Lease(tmp_path) as lease:
        assert lease.worker.startswith(machine())
        before, beats = lease.path.stat().st_mtime_ns, []
        with lease.beating(0.02, beats.append):
            time.sleep(0.2)
        assert lease.path.stat().st_mtime_ns > before
        assert len(beats) > 2
        assert not Watch(tmp_path, 10.0).lost(0, lease.worker, None)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_kills_its_worker_is_given_up(toy: Make) -> None:
    """Else one setting that runs out of memory would be tried for ever."""
    sweep = toy(trials=2, retries=2, heartbeat=0.05, seeds=(0,))
    with joined(sweep, sweep.settings()) as study:
        for _ in range(3):
            if study.trials:
                study.enqueue_trial({"x": 0.1}, user_attrs={"retry_of": 0})
            study.tell(study.ask(), state=TrialState.FAIL)
    found = run(sweep)
    assert [row.state for row in found.trials] == ["lost", "lost", "lost", "finished"]


def test_an_interruption_leaves_the_trial_to_be_run_again(
    storage: str, toy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def interrupted(made: Any, seed: int, folder: Path) -> Measured:
        calls.append(seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return toys.train(made, seed, folder)

    swap(monkeypatch, interrupted)
    sweep = toy(storage=storage, trials=2, retries=0)
    with pytest.raises(KeyboardInterrupt):
        run(sweep)
    assert list((sweep.folder / "trials").iterdir()) == [], "what was begun is cleared away"
    found = run(sweep)
    assert sorted(row.state for row in found.trials) == ["finished", "finished", "lost"]


def test_a_trial_that_another_worker_took_over(storage: str, toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that slept too long finds its trial failed: its numbers are dropped, and it goes on."""
    sweep = toy(storage=storage, trials=3)

    def slept(made: Any, seed: int, folder: Path) -> Measured:
        if folder.parent.name == "0001" and seed == 1:
            with loaded(storage, "toy") as study:
                study.tell(1, state=TrialState.FAIL)
        return toys.train(made, seed, folder)

    swap(monkeypatch, slept)
    found = run(sweep)
    assert found.counts == {"finished": 3, "lost": 1}
    assert found.trials[1].state == "lost"


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_failed_trial_is_told_and_the_sweep_goes_on(toy: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def train(made: Any, seed: int, folder: Path) -> Measured:
        if folder.parent.name == "0001":
            if kind == "raises":
                raise RuntimeError("out of luck")
            return Measured(math.nan, 0.0)
        return toys.train(made, seed, folder)

    swap(monkeypatch, train)
    found = run(toy(trials=4))
    assert found.counts == {"finished": 3, "failed": 1}
    assert ("out of luck" if kind == "raises" else "accuracy nan") in str(found.trials[1].message)


def test_what_always_fails_is_not_tried_a_hundred_times(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(made: Any, seed: int, folder: Path) -> Measured:
        raise RuntimeError("no such file")

    swap(monkeypatch, train)
    with pytest.raises(SweepError, match="3 failed and none succeeded; the last: RuntimeError: no such file"):
        run(toy(trials=100))


def test_trials_are_stopped_early(toy: Make) -> None:
    """Trials far behind the front are stopped after their first seed, none near it."""
    found = run(toy(trials=30, startup=5, seeds=(0, 1, 2)))
    early = [row for row in found.trials if row.state == "stopped early"]
    assert len(early) >= 3
    done = [row for row in found.trials if row.state == "finished"]
    for row in early:
        assert any(other.accuracy > row.accuracy and other.error < row.error for other in done)
