"""The folder of an adaptation: what is finished stays, what was interrupted goes on from its last epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from equidial.errors import ArgumentError, explain
from equidial.recipes._files import read_checkpoint, read_records, replace_text, write_checkpoint
from equidial.recipes._ranks import on_main

Identity = Mapping[str, Any]
"""Softness and seed of one dial position."""


class RunFolder:
    """``config.json``, ``metrics.jsonl`` and the checkpoint of the dial position that is under way; rank 0 has it.

    The lines of positions that did not end are dropped at the start and written again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.log = folder, folder / "metrics.jsonl"
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.ended: list[dict[str, Any]] = []

    def check(self) -> None:
        """Raises ``ArgumentError`` for the folder of another run."""
        on_main(self._check)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder or go on in it; raises ``ArgumentError`` while another process works there."""
        lock = FileLock(self.folder / "run.lock")
        on_main(lambda: self._open(lock))
        try:
            yield
        finally:
            if lock.is_locked:
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def finished(self, identity: Identity) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The first and the last record of a position that is done."""
        found = [record for record in self.ended if _is(record, identity)]
        return on_main(lambda: (found[0], found[-1]) if found else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """One more line; what was not measured is NaN and left out."""
        on_main(lambda: self._write(record))

    def saved(self, identity: Identity) -> dict[str, Any] | None:
        """The state of an interrupted position."""
        return on_main(lambda: read_checkpoint(self._checkpoint(identity)))

    def save(self, identity: Identity, state: Mapping[str, Any]) -> None:
        """Replace it."""
        write_checkpoint(self._checkpoint(identity), state)

    def finish(self, identity: Identity, record: Mapping[str, Any]) -> None:
        """The last line of a position; its checkpoint is dropped."""
        self.write(record)
        on_main(lambda: self._checkpoint(identity).unlink(missing_ok=True))

    def position(self, identity: Identity) -> Path:
        """The folder of one position."""
        return self.folder / "softness-{softness:g}-seed-{seed}".format(**identity)

    def _checkpoint(self, identity: Identity) -> Path:
        return self.folder / f"checkpoint-{self.position(identity).name}.pt"

    def _check(self) -> None:
        config = self.folder / "config.json"
        if not config.is_file() and not self.log.exists():
            return
        found = json.loads(config.read_text()) if config.is_file() else {}
        # where the folder lies is no setting: it may have been moved, or named from elsewhere
        other = [name for name, value in self.settings.items() if name != "output" and found.get(name) != value]
        if other:
            raise ArgumentError(
                explain(
                    "a folder without a run, or with that of this very adaptation",
                    f"{self.folder}, which holds one with another {', '.join(other[:3])}",
                    "choose another --output, or the settings of its config.json",
                )
            )

    def _open(self, lock: FileLock) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ArgumentError(
                explain("a folder that no other process works in", str(self.folder), "wait for it, or choose another")
            ) from error
        self._check()
        config = self.folder / "config.json"
        if not config.is_file():
            replace_text(config, json.dumps(self.settings, indent=2) + "\n")
        records = read_records(self.log)
        last = [record for record in records if record["stage"] == "tuned"]
        self.ended = [r for r in records if any(_is(r, {k: t[k] for k in ("softness", "seed")}) for t in last)]
        replace_text(self.log, "".join(json.dumps(record) + "\n" for record in self.ended))

    def _write(self, record: Mapping[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps({k: v for k, v in record.items() if v == v}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _is(record: Mapping[str, Any], identity: Identity) -> bool:
    return all(record.get(name) == value for name, value in identity.items())
