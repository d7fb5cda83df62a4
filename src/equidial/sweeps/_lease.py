"""Who is alive: a lock that the kernel drops with its process, and a pulse that others watch.

Every worker holds the lock of a file of its own. On the same machine whoever can take that lock knows at once that the
worker is dead. From other machines a worker counts as lost when its pulse (the time of that file, and in a database an
attribute of the trial that it runs) has not moved for the grace period of the observer's own clock: clocks of different
machines are never compared. Optuna's heartbeats exist for databases only, and never find a trial whose worker died
before the first of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from equidial.sweeps._storage import is_database

logger = logging.getLogger("equidial")


def lease_folder(storage: str) -> Path:
    """Beside the journal, where every host sees it; for a database a folder of this machine."""
    if is_database(storage):
        owner = getattr(os, "getuid", lambda: 0)()
        return Path(tempfile.gettempdir()) / f"equidial-workers-{owner}"
    path = Path(storage)
    return path.with_name(path.name + ".workers")


def machine() -> str:
    """What tells this machine, since it was started, from every other: locks are seen on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = f"{uuid.getnode():x}"
    return f"{socket.gethostname()}-{boot}"


class Lease:
    """A worker's claim to be alive; a context manager that holds it. :attr:`worker` names it in the storage."""

    def __init__(self, folder: Path):
        self.worker = f"{machine()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self.path = lease_path(folder, self.worker)
        self._lock = FileLock(self.path)

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire(timeout=10)
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: object) -> None:
        self._lock.release()
        if kind is None:  # else a trial may be left, and the free lock tells of it
            self.path.unlink(missing_ok=True)

    @contextmanager
    def beating(self, interval: float, pulse: Callable[[float], None] | None) -> Iterator[None]:
        """Move the pulse every ``interval`` seconds, in a thread, while the body runs."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(interval):
                try:
                    os.utime(self.path)
                    if pulse is not None:
                        pulse(time.time())
                except Exception as error:  # a storage that is away for a while must not end the trial
                    logger.info("heartbeat failed: %s", error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def lease_path(folder: Path, worker: str) -> Path:
    """The file whose lock a worker holds."""
    return folder / (worker.replace(":", "-") + ".lock")


def host_of(worker: str) -> str:
    """``host:pid``, for a person."""
    place, _, rest = worker.partition(":")
    return f"{place.rpartition('-')[0]}:{rest.partition(':')[0]}"


def known_dead(folder: Path, worker: str) -> bool:
    """Whether a worker of this machine has died: its lock is there and free. Never true of one that lives."""
    path = lease_path(folder, worker)
    if worker.partition(":")[0] != machine() or not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True


def bury(folder: Path, worker: str) -> None:
    """Remove what a dead worker left, once its trial has been seen to."""
    if known_dead(folder, worker):
        lease_path(folder, worker).unlink(missing_ok=True)


class Watch:
    """Finds workers whose pulse stands still."""

    def __init__(self, folder: Path, grace: float, clock: Callable[[], float] = time.monotonic):
        self.folder, self.grace, self.clock = folder, grace, clock
        self._seen: dict[int, tuple[object, float]] = {}

    def lost(self, trial: int, worker: str | None, pulse: object) -> bool:
        """Whether the worker of a running trial is dead, or silent for longer than the grace period.

        ``worker``: ``None`` where it died before it could say its name. ``pulse``: what the storage has of it.
        """
        if worker is not None and known_dead(self.folder, worker):
            return True
        sign = None
        if worker is not None:
            with contextlib.suppress(OSError):
                sign = lease_path(self.folder, worker).stat().st_mtime_ns
        now, found = self.clock(), (worker, pulse, sign)
        before, since = self._seen.get(trial, (None, now))
        if before != found:
            self._seen[trial] = (found, now)
            return False
        return now - since > self.grace
