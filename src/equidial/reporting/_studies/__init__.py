"""Pages of results from the folders of studies: what was measured, with its spread, beside what the papers say.

One module per study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equidial.errors import FileFormatError, explain
from equidial.recipes import inertia, lorentz, o5, study_records
from equidial.reporting._studies import (
    _beyond,
    _cifar,
    _imagenet,
    _large_angles,
    _mnist,
    _mnist6_180,
    _nonstationary_cifar,
    _regressions,
    _segmentation,
    _thresholds,
    _timing,
    _trajectories,
)

_MODULES = (
    _mnist,
    _cifar,
    _large_angles,
    _imagenet,
    _segmentation,
    _thresholds,
    _trajectories,
    _mnist6_180,
    _nonstationary_cifar,
    _beyond,
    _timing,
)
_PAGES = {module.PAGE.name: module.PAGE for module in _MODULES}
_PAGES |= {name: _regressions.page(name) for name in (o5.NAME, lorentz.NAME, inertia.NAME)}


def write_study(folder: str | Path) -> Path:
    """Write ``results.md`` and its picture ``NAME.png`` into the folder of a study; returns the page.

    What is finished is told, also of a study that is under way. Raises ``FileFormatError`` for another folder.
    """
    folder = Path(folder)
    config = folder / "config.json"
    found = json.loads(config.read_text()) if config.is_file() else {}
    if found.get("recipe") not in _PAGES:
        raise FileFormatError(
            explain(f"the folder of a study ({', '.join(_PAGES)})", str(folder), "run equidial reproduce first")
        )
    study = _PAGES[found["recipe"]]
    records = sorted(study_records(folder), key=lambda record: _place(record, found["settings"], study.order))
    if not records:
        raise FileFormatError(explain("a finished training", f"none in {folder}", "let the study run"))
    study.figure(records).savefig(folder / f"{study.name}.png", dpi=110)
    path = folder / "results.md"
    path.write_text(study.text(found["settings"], records), encoding="utf-8")
    return path


def _place(record: Mapping[str, Any], settings: Mapping[str, Any], order: tuple[str, ...]) -> list[Any]:
    """In the order of the settings, whatever the order in which several processes finished."""
    places = []
    for name in order:
        value, listed = record.get(name), settings.get(f"{name}s", settings.get(name))
        if isinstance(listed, list):
            places.append([*listed, value].index(value))
        else:
            places.append(-1 if value is None else value)
    return places
