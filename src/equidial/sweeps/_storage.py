"""Where a sweep keeps its trials: a journal file or a database."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from equidial.errors import ArgumentError, StorageError, explain
from equidial.sweeps._journal import JournalFile


def is_database(storage: str) -> bool:
    """Whether it is a database URL; else it is the path of a journal file."""
    return "://" in storage


def shown(storage: str) -> str:
    """The storage without the password of its URL."""
    if not is_database(storage):
        return storage
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (UrlError, ValueError):
        return storage.partition("://")[0] + "://..."


def open_storage(storage: str, create: bool = True) -> BaseStorage:
    """Open a journal file or a database; it is made if it is not there and ``create`` says so.

    Raises ``StorageError`` where it cannot be reached, ``ArgumentError`` for a URL that is none or needs a package.
    """
    return _database(storage) if is_database(storage) else _journal(Path(storage), create)


def close_storage(storage: BaseStorage) -> None:
    """Give back the connections of a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _journal(path: Path, create: bool) -> BaseStorage:
    if not create and not path.is_file():
        raise StorageError(explain("the journal of a sweep", f"{path}, which is not there", "check --storage"))
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        with path.open("ab" if create else "rb"):
            pass
        return JournalStorage(JournalFile(path))
    except StorageError:
        raise
    except (OSError, AssertionError, KeyError, TypeError, AttributeError) as error:
        if disk_is_full(error, path.parent):
            raise full_disk(path.parent) from error
        todo = "name a file that can be written, or a database URL"
        raise StorageError(explain("a journal file", f"{path}: {error}", todo)) from error


def _database(url: str) -> BaseStorage:
    try:
        parsed = make_url(url)
    except (UrlError, ValueError) as error:
        todo = "e.g. postgresql://user:password@host/name"
        raise ArgumentError(explain("a database URL", shown(url), todo)) from error
    connect = {}
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        connect = {"connect_timeout": 10}
    address = parsed.render_as_string(hide_password=False)
    try:
        _make_tables(address, connect)
        # what was idle through a long trial is opened anew, as the server may have closed it
        return RDBStorage(address, engine_kwargs={"pool_recycle": 60, "connect_args": connect})
    except (ImportError, SQLAlchemyError) as error:
        if isinstance(error, ImportError) or "load plugin" in str(error):
            todo = "pip install 'equidial[sweep]' for PostgreSQL, or the driver that SQLAlchemy names for another one"
            raise ArgumentError(explain("a database with its driver", f"{shown(url)}: {error}", todo)) from error
        raise unreachable(url, error) from error
    except (optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise unreachable(url, error) from error


def _make_tables(address: str, connect: dict[str, int]) -> None:
    """Make Optuna's tables. Workers that start together trip over one another there, once: they are let try again."""
    for attempt in range(8):
        try:
            # no pool: what fails in its constructor could not be closed from here
            RDBStorage(address, engine_kwargs={"poolclass": NullPool, "connect_args": connect})
            return
        except (IntegrityError, ProgrammingError, AssertionError):
            if attempt == 7:
                raise
            time.sleep(0.1 * 2**attempt)


def unreachable(storage: str, error: BaseException) -> StorageError:
    """The error for a storage that does not answer."""
    lines = str(error.__cause__ or error).strip().splitlines()
    got = f"{shown(storage)}: {lines[0] if lines else type(error).__name__}"
    return StorageError(explain("a storage that can be reached", got, "check the address, the server and the network"))


@contextmanager
def reaching(storage: str) -> Iterator[None]:
    """Turn what a storage raises when it is gone, or full, into ``StorageError``."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise unreachable(storage, error) from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        folder = None if is_database(storage) else Path(storage).parent
        if disk_is_full(error, folder):
            raise full_disk(folder) from error
        raise unreachable(storage, error) from error


def disk_is_full(error: BaseException | None, folder: Path | None) -> bool:
    """Whether an error, or what caused it, is a lack of space; libraries hide it under errors of their own."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(cause) or "os error 28" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    # torch.save tells of a stream that broke, not why
    if not isinstance(error, RuntimeError) or folder is None or not folder.is_dir():
        return False
    return shutil.disk_usage(folder).free < 1 << 16


def full_disk(folder: Path | None) -> StorageError:
    """The error for a disk without space."""
    todo = "free some, and give the same command again: finished trials are kept, this one is run anew"
    return StorageError(explain("space on the disk", f"none left under {folder}", todo))
