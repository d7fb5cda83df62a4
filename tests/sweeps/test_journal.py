"""The journal: nothing that a dying writer or a full disk leaves behind spoils it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from equidial.errors import StorageError
from equidial.sweeps import _journal
from equidial.sweeps._journal import JournalFile
from equidial.sweeps._storage import open_storage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
fork = multiprocessing.get_context("fork")


def read(path: Path) -> list[dict[str, Any]]:
    return list(JournalFile(path).read_logs(0))


def test_lines_come_back(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "log")
    assert list(journal.read_logs(0)) == []
    journal.append_logs([{"a": 1}, {"b": "ü\n"}])
    journal.append_logs([{"c": [1.5, None]}])
    assert list(journal.read_logs(0)) == [{"a": 1}, {"b": "ü\n"}, {"c": [1.5, None]}]
    assert list(journal.read_logs(2)) == [{"c": [1.5, None]}]


@pytest.mark.parametrize("torn", [b"{", b'{"op_code":4,"tri', b'{"whole":1}', b"x" * 10_000])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    """Optuna's own backend appends to it; then no line can be read any more."""
    path, theirs = tmp_path / "log", tmp_path / "theirs"
    for file in (path, theirs):
        file.write_bytes(b'{"a":1}\n' + torn)
    assert read(path) == [{"a": 1}], "read while it is torn"
    JournalFile(path).append_logs([{"b": 2}])
    JournalFile(path).append_logs([{"c": 3}])
    assert read(path) == [{"a": 1}, {"b": 2}, {"c": 3}]
    backend = JournalFileBackend(str(theirs))
    backend.append_logs([{"b": 2}])
    backend.append_logs([{"c": 3}])
    with pytest.raises(ValueError, match=r"Expecting|Extra data|delimiter|Invalid"):
        list(JournalFileBackend(str(theirs)).read_logs(0))


@pytest.mark.parametrize("written", [0, 5, 20])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    journal = JournalFile(tmp_path / "log")
    journal.append_logs([{"a": 1}])
    before = journal.path.read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_journal, "_write_all", full)
        with pytest.raises(OSError, match="No space"):
            journal.append_logs([{"b": "a line of more than twenty bytes"}])
    assert journal.path.read_bytes() == before
    journal.append_logs([{"c": 3}])
    assert read(journal.path) == [{"a": 1}, {"c": 3}]


def _hold(path: Path, ready: Any) -> None:
    with JournalFile(path)._lock:
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_holder_is_free_at_once(tmp_path: Path) -> None:
    """A lock that is a file would be waited for, thirty seconds."""
    ready = fork.Event()
    holder = fork.Process(target=_hold, args=(tmp_path / "log", ready))
    holder.start()
    assert ready.wait(20)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    start = time.monotonic()
    JournalFile(tmp_path / "log").append_logs([{"a": 1}])
    assert time.monotonic() - start < 5


def _write(path: Path, writer: int) -> None:
    journal = JournalFile(path)
    for count in range(100_000):
        journal.append_logs([{"writer": writer, "count": count, "filler": "x" * 200}])


def test_writers_killed_at_random(tmp_path: Path) -> None:
    """Whatever was written stays, in order and without a gap for each writer."""
    path, draw, lines = tmp_path / "log", random.Random(0), 0
    for round_ in range(6):
        writers = [fork.Process(target=_write, args=(path, 2 * round_ + k)) for k in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(draw.uniform(0.03, 0.1))
        for writer in writers:
            writer.kill()
            writer.join()
        found = read(path)
        assert len(found) >= lines
        lines = len(found)
        for k in range(2 * round_ + 2):
            counts = [line["count"] for line in found if line["writer"] == k]
            assert counts == list(range(len(counts)))
    assert lines > 20


def test_optuna_reads_what_is_written_here(tmp_path: Path) -> None:
    """The format is Optuna's own: its dashboard and its scripts read the journal."""
    path = tmp_path / "log"
    study = optuna.create_study(storage=open_storage(str(path)), study_name="s", directions=["maximize", "minimize"])
    study.tell(study.ask(), (1.0, 2.0))
    theirs = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    assert optuna.load_study(storage=theirs, study_name="s").trials[0].values == [1.0, 2.0]


@pytest.mark.parametrize("text", ["hello\nworld\n", "[1, 2]\n{}\n", json.dumps({"op_code": 99}) + "\n{}\n", '"a"\n'])
def test_another_file_is_no_journal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(StorageError):
        open_storage(str(path))
    assert path.read_text() == text
