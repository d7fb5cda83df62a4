"""What goes wrong around a sweep: storages, names, versions, disks; each error says what to do, none spoils a trial."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from equidial.errors import ArgumentError, StorageError, SweepError
from equidial.sweeps import SWEEPS, Measured, Sweep, _journal, _sweep, run, status
from equidial.sweeps._storage import open_storage, shown
from tests.sweeps import toy as toys

Make = Callable[..., Sweep]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("storage", "kind", "message"),
    [
        (f"postgresql://me:secret@127.0.0.1:{closed_port()}/db", StorageError, "a storage that can be reached"),
        ("postgresql://me:secret@host:port/db", ArgumentError, "a database URL"),
        ("nosuchdatabase://me:secret@host/db", ArgumentError, "a database with its driver"),
        ("oracle://me:secret@host/db", ArgumentError, "a database with its driver"),
        ("{folder}", StorageError, "a journal file"),
        ("{file}/journal.log", StorageError, "a journal file"),
        ("/proc/journal.log", StorageError, "a journal file"),
        ("{file}", StorageError, "a journal"),
    ],
    ids=["no server", "no port", "no such database", "no driver", "folder", "below a file", "not writable", "text"],
)
def test_storages_that_cannot_be_reached(
    storage: str, kind: type[Exception], message: str, tmp_path: Path, toy: Make
) -> None:
    (tmp_path / "file").write_text("no journal\nat all\n")
    storage = storage.format(folder=tmp_path, file=tmp_path / "file")
    with pytest.raises(kind) as caught:
        run(toy(storage=storage))
    assert f"expected {message}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "no journal\nat all\n"


def test_no_password_is_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert "secret" not in shown("postgresql://me:secret@host:port/db")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"space": ("x=0:0.5",)}, ["space x: 0:1 there, 0:0.5 here"]),
        ({"space": ("steps=1,2",)}, ["space steps: absent there, 1,2 here"]),
        ({"fixed": ("y=0.1",)}, ["fixed y: absent there, 0.1 here", "space y: 0:0.5 there, absent here"]),
        ({"seeds": (0, 1, 2)}, ["seeds: [0, 1] there, [0, 1, 2] here"]),
        ({"prune": 3.0}, ["prune: 2.0 there, 3.0 here"]),
    ],
)
def test_two_sweeps_of_one_name(tmp_path: Path, toy: Make, changes: dict[str, Any], lines: list[str]) -> None:
    first = toy(trials=1, storage=str(tmp_path / "log"))
    other = dataclasses.replace(first, output=tmp_path / "other", **changes)
    found = run(first)
    with pytest.raises(SweepError, match="choose another --name") as caught:
        run(dataclasses.replace(other, trials=2))
    for line in lines:
        assert line in str(caught.value)
    assert not other.folder.exists()
    assert status(first.where, "toy").trials == found.trials
    assert len(run(dataclasses.replace(other, name="other")).trials) == 1, "another name is another one"


def test_a_worker_of_another_version(storage: str, toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run(toy(storage=storage, trials=1))
    monkeypatch.setattr(_sweep, "__version__", "9.9")
    with pytest.raises(SweepError, match=r"equidial: 0\.1\.0 there, 9\.9 here"):
        run(toy(storage=storage, trials=2))


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"name": "other"}, "name: toy there, other here"), ({"seeds": (5,)}, "seeds: [0, 1] there, [5] here")],
)
def test_two_sweeps_in_one_folder(tmp_path: Path, toy: Make, changes: dict[str, Any], line: str) -> None:
    first = toy(trials=1, storage=str(tmp_path / "a.log"))
    run(first)
    before = sorted(first.folder.rglob("*"))
    with pytest.raises(SweepError, match="choose another --output") as caught:
        run(dataclasses.replace(first, storage=str(tmp_path / "b.log"), **changes))
    assert line in str(caught.value)
    assert sorted(first.folder.rglob("*")) == before
    assert not (tmp_path / "b.log").exists()
    run(dataclasses.replace(first, trials=2))  # the same goes on


def test_a_name_that_something_else_made(tmp_path: Path, toy: Make) -> None:
    path = str(tmp_path / "log")
    study = optuna.create_study(storage=open_storage(path), study_name="toy", directions=["maximize", "minimize"])
    study.tell(study.ask(), (1.0, 1.0))
    with pytest.raises(SweepError, match="something else made"):
        run(toy(storage=path))


@pytest.mark.parametrize(("name", "message"), [("absent", "holds 'a', 'b'"), (None, "no name")])
def test_status_of_a_name_that_is_not_there(toy: Make, tmp_path: Path, name: str | None, message: str) -> None:
    storage = str(tmp_path / "log")
    for known in ("a", "b"):
        run(toy(storage=storage, trials=1, name=known, output=tmp_path / known))
    with pytest.raises(StorageError, match=message):
        status(storage, name)


def test_status_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="which is not there"):
        status(str(tmp_path / "new" / "log"))
    assert list(tmp_path.iterdir()) == []


def by_python(folder: Path) -> None:
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def by_torch(folder: Path) -> None:
    torch.save(torch.zeros(100_000), "/dev/full")


def by_a_library(folder: Path) -> None:
    try:
        by_python(folder)
    except OSError as error:
        raise ValueError("could not write") from error


@pytest.mark.parametrize("fill", [by_python, by_torch, by_a_library], ids=lambda f: f.__name__)
def test_a_full_disk_ends_the_run_and_the_trial_is_begun_again(
    fill: Callable[[Path], None], toy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own error, from its device that is always full; torch hides it, and the free space is looked at."""
    full = [True]
    usage = shutil.disk_usage
    if fill is by_torch:
        monkeypatch.setattr(
            shutil, "disk_usage", lambda place: usage(place)._replace(free=0) if full[0] else usage(place)
        )

    def train(made: Any, seed: int, folder: Path) -> Measured:
        if folder.parent.name == "0001" and seed == 1 and full[0]:
            (folder / "half").write_text("written before")
            fill(folder)
        return toys.train(made, seed, folder)

    monkeypatch.setitem(SWEEPS, "toy", dataclasses.replace(toys.TOY, train=train))
    sweep = toy(trials=3, retries=0)
    with pytest.raises(StorageError, match="expected space on the disk"):
        run(sweep)
    assert not (sweep.folder / "trials" / "0001").exists(), "what was half written is cleared away"
    before = status(sweep.where)
    assert before.counts == {"finished": 1, "lost": 1}
    full[0] = False
    found = run(sweep)
    assert found.counts == {"finished": 3, "lost": 1}
    assert found.trials[0] == before.trials[0]
    (again,) = [row for row in found.trials if row.retry_of == 1]
    assert again.values == found.trials[1].values


def test_a_full_disk_under_the_journal(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written any more in the midst of a trial: what was told stays, the rest is run again."""
    sweep, written = toy(trials=3), [0]
    whole = _journal._write_all

    def limited(descriptor: int, data: bytes) -> None:
        written[0] += len(data)
        if written[0] > 4000:
            whole(descriptor, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(_journal, "_write_all", limited)
        with pytest.raises(StorageError, match="expected space on the disk"):
            run(sweep)
    before = status(sweep.where)
    assert 1 <= before.counts["finished"] < 3
    assert before.counts["running"] == 1, "its end could not be told"
    assert before.workers == (), "its worker has gone"
    found = run(sweep)
    assert found.counts == {"finished": 3, "lost": 1}
    done = [row for row in before.trials if row.state == "finished"]
    assert [row for row in found.trials if row in done] == done
