"""Pedestrian trajectories: text files of positions, cut into windows of complete tracks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from equidial.errors import ArgumentError, FileFormatError, explain

Part = Literal["train", "val", "test"]
SCENES = ("eth", "hotel", "univ", "zara1", "zara2")
OBSERVED, PREDICTED = 8, 12

_WHERE = (
    "ETH/UCY as text files with splits.json comes with Social-STGCNN and Social-GAN (datasets/<scene>/<part>/*.txt)"
)


@dataclass(frozen=True)
class Trajectories:
    """Windows of pedestrians who are there for all of it.

    Attributes:
        tracks: ``[n, observed + predicted, 2]``, metres, one row per pedestrian and window, float64.
        window: ``[n]`` int64, ascending; pedestrians of one window walk at the same time.
        observed: how many steps are known.
    """

    tracks: torch.Tensor
    window: torch.Tensor
    observed: int

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.window.unique())

    @property
    def past(self) -> torch.Tensor:
        """``[n, observed, 2]``."""
        return self.tracks[:, : self.observed]

    @property
    def future(self) -> torch.Tensor:
        """``[n, predicted, 2]``."""
        return self.tracks[:, self.observed :]


def load_trajectories(
    folder: str | Path,
    scene: str,
    part: Part,
    observed: int = OBSERVED,
    predicted: int = PREDICTED,
    stride: int = 1,
    together: int = 2,
) -> Trajectories:
    """ETH/UCY, leave one scene out: ``test`` is the scene itself, ``train`` and ``val`` are parts of the others.

    Args:
        folder: holds ``splits.json`` ``{scene: {part: [files]}}``, or ``<scene>/<part>/*.txt``.
        scene: out of :data:`SCENES`, or any other that the folder holds.
        part: ``"train"``, ``"val"`` or ``"test"``.
        observed, predicted: steps of 0.4 s.
        stride: frames between the starts of two windows.
        together: fewest complete pedestrians of a window; with 2, the counts are those of Social-GAN.

    Files have lines ``frame pedestrian x y``, separated by white space, metres. Raises ``ArgumentError`` for a folder
    or scene that is not there, ``FileFormatError`` for lines of another form. Cost: seconds.
    """
    for name, value in (("observed", observed), ("predicted", predicted), ("stride", stride), ("together", together)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(explain(f"{name} >= 1, an integer", repr(value), "e.g. 8 observed and 12 predicted"))
    tracks, windows, count = [], [], 0
    for file in _files(Path(folder), scene, part):
        for group in _windows(_read(file), observed + predicted, stride, together):
            tracks.append(group)
            windows.append(np.full(len(group), count))
            count += 1
    if not tracks:
        empty = torch.zeros(0, observed + predicted, 2, dtype=torch.float64)
        return Trajectories(empty, torch.zeros(0, dtype=torch.int64), observed)
    return Trajectories(torch.from_numpy(np.concatenate(tracks)), torch.from_numpy(np.concatenate(windows)), observed)


def _files(folder: Path, scene: str, part: str) -> list[Path]:
    splits = folder / "splits.json"
    if splits.is_file():
        known = json.loads(splits.read_text())
        if scene not in known or part not in known[scene]:
            got = f"{scene!r}, {part!r}"
            raise ArgumentError(explain(f"a scene out of {sorted(known)} and its train, val or test", got, "name one"))
        files = [folder / name for name in known[scene][part]]
    else:
        files = sorted((folder / scene / part).glob("*.txt"))
    missing = [str(f.name) for f in files if not f.is_file()]
    if missing or not files:
        got = f"{folder}, without {', '.join(missing) or f'{scene}/{part}/*.txt and splits.json'}"
        raise ArgumentError(explain("a folder of trajectories", got, _WHERE))
    return files


def _read(file: Path) -> np.ndarray:
    """``[rows, 4]``: frame, pedestrian, x, y."""
    try:
        rows = np.loadtxt(file, ndmin=2)
    except ValueError as error:
        raise FileFormatError(explain(f"four numbers a line in {file.name}", str(error), "mend the file")) from error
    if rows.shape[1] != 4:
        raise FileFormatError(explain(f"four numbers a line in {file.name}", f"{rows.shape[1]}", "mend the file"))
    return rows


def _windows(rows: np.ndarray, length: int, stride: int, together: int) -> Sequence[np.ndarray]:
    """Complete tracks ``[pedestrians, length, 2]`` of every window of ``length`` recorded frames."""
    frames, frame = np.unique(rows[:, 0], return_inverse=True)
    people, person = np.unique(rows[:, 1], return_inverse=True)
    where = np.full((len(people), len(frames), 2), np.nan)
    where[person, frame] = rows[:, 2:]
    found = []
    for start in range(0, len(frames) - length + 1, stride):
        window = where[:, start : start + length]
        complete = window[~np.isnan(window[..., 0]).any(1)]
        if len(complete) >= together:
            found.append(complete)
    return found
