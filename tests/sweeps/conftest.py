"""The two storages, each empty: a journal file, and a database of a PostgreSQL server that the tests start."""

from __future__ import annotations

import dataclasses
import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from equidial.sweeps import SWEEPS, Sweep
from tests.sweeps.toy import TOY


def _binaries() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    folders = [Path(p).parent for p in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    return max(folders, key=lambda f: int(f.parent.name), default=None)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a server without a database name, in a folder of its own and on a unix socket."""
    binaries = _binaries()
    if binaries is None:
        assert "CI" not in os.environ, "CI has Debian's package postgresql"
        pytest.skip("PostgreSQL is not here: apt-get install postgresql")
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses to be root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    # not below tmp_path, whose parents other users cannot enter; and short, as a socket's path has to be
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if as_user:
        os.chown(folder, as_user["user"], as_user["group"])

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(binaries / program), *arguments], cwd=folder, capture_output=True, text=True, check=False, **as_user
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "sweeper", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
    try:
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://sweeper@/{{}}?host={folder}"
    finally:
        subprocess.run([str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop"], check=False, **as_user)
        shutil.rmtree(folder, ignore_errors=True)


def _database(server: str) -> str:
    import psycopg

    name = f"s{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.format(name)


@pytest.fixture(params=["journal", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage with nothing in it."""
    if request.param == "journal":
        return str(tmp_path / "journal.log")
    return _database(request.getfixturevalue("server"))


@pytest.fixture(autouse=True)
def _quiet_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setitem(SWEEPS, "toy", TOY)


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Sweep]:
    """A sweep of the toy recipe, in a folder of the test, with other fields as given."""

    def make(**changes: Any) -> Sweep:
        sweep = Sweep("toy", output=tmp_path / "out", trials=8, seeds=(0, 1), heartbeat=0.5)
        return dataclasses.replace(sweep, **changes)

    return make
