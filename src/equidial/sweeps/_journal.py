"""The journal file: Optuna's format, written so that no death of a writer and no full disk can spoil it.

Optuna's own file backend marks its lock by a file, which a killed holder leaves behind (others break it after thirty
seconds), and appends to whatever is there: the half line of a killed writer and the next line become one that cannot be
read, and with it every line after. Here the lock is the kernel's (``flock``), which goes with its process, and whoever
holds it first cuts off a last line that was not finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from equidial.errors import StorageError, explain


class JournalFile(BaseJournalBackend):
    """A file with one operation a line.

    An operation that :meth:`append_logs` returned from is on the disk, whole; one that it did not return from is there
    whole or not at all. The file is shared by hosts where their file system carries locks between them (NFS 4, Lustre
    with ``-o flock``; not NFS 2 and 3 without a lock daemon).
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        # reading is Optuna's; its lock object is never taken
        self._reader = JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The operations from this number on. Raises ``StorageError`` for a file that is no journal."""
        try:
            yield from self._reader.read_logs(log_number_from)
        except ValueError as error:
            todo = "name the journal of a sweep, or a new file"
            raise StorageError(explain("a journal, one JSON object a line", f"{self.path}: {error}", todo)) from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations; on any failure the file is as it was. Raises ``OSError`` as the system does."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = _end_of_lines(descriptor)
                os.ftruncate(descriptor, end)
                os.lseek(descriptor, end, os.SEEK_SET)
                try:
                    _write_all(descriptor, data)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)


def _end_of_lines(descriptor: int) -> int:
    """Where the last finished line ends."""
    position = os.fstat(descriptor).st_size
    while position > 0:
        start = max(0, position - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
