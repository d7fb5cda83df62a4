"""A study that is interrupted and started again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from equidial.cli import main
from equidial.recipes import study_records


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock says."""
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]


def interrupted(command: list[str], output: Path, trains: ModuleType) -> list[dict[str, Any]]:
    """The records of a command that is stopped in its second training, after the first epoch was kept, and repeated.

    ``trains``: the module whose ``fit`` it calls; each training takes two epochs.
    """
    fit, stopped = trains.fit, []

    def stop(epoch: int, loss: float) -> None:
        if len(stopped) == 2:
            raise KeyboardInterrupt
        stopped.append(epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trains, "fit", lambda *arguments: fit(*arguments, on_epoch=stop))
        assert main(command) == 130
    assert len(study_records(output)) == 1
    assert len(list(output.glob("checkpoint-*.pt"))) == 1
    assert main(command) == 0
    return untimed(study_records(output))
