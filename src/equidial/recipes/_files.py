"""Files of a run folder: replaced whole or not at all, and lines of JSON of which the last may have been cut short."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from equidial.recipes._ranks import is_main


def read_records(log: Path) -> list[dict[str, Any]]:
    """One a line; a line that an interruption cut short is none, and a file that is not there has none."""
    found = []
    for line in log.read_text().splitlines() if log.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def replace_text(file: Path, text: str) -> None:
    """Write a file in the place of what is there."""
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(text)
    unfinished.replace(file)


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """The state in a file, if it is there."""
    return torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None


def write_checkpoint(file: Path, state: Mapping[str, Any]) -> None:
    """Replace a file by rank 0's state."""
    if is_main():
        unfinished = file.with_suffix(".partial")
        torch.save(dict(state), unfinished)
        unfinished.replace(file)
