"""ETH/UCY: the published counts, constant velocity, folders of either layout, other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import equidial as ed
from equidial.data import SCENES, load_trajectories
from equidial.metrics import constant_velocity, displacement_errors

COUNTS = {"eth": (70, 181), "hotel": (301, 1053), "univ": (947, 24334), "zara1": (602, 2253), "zara2": (921, 5833)}
VELOCITY = {
    "eth": (1.075, 2.282),
    "hotel": (0.319, 0.614),
    "univ": (0.524, 1.165),
    "zara1": (0.427, 0.952),
    "zara2": (0.324, 0.724),
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_counts_and_constant_velocity_are_the_published_ones(scene: str, data_folder: Path) -> None:
    found = load_trajectories(data_folder / "eth_ucy", scene, "test")
    assert (found.windows, len(found)) == COUNTS[scene]
    alone = load_trajectories(data_folder / "eth_ucy", scene, "test", together=1)
    ade, fde = displacement_errors(constant_velocity(alone.past, 12), alone.future)
    assert (float(ade.mean()), float(fde.mean())) == pytest.approx(VELOCITY[scene], abs=6e-4)


def lines(tracks: dict[int, dict[int, tuple[float, float]]]) -> str:
    rows = [(t, p, *xy) for p, track in tracks.items() for t, xy in track.items()]
    return "".join(f"{t}\t{p}\t{x}\t{y}\n" for t, p, x, y in sorted(rows))


def walk(frames: range, x: float = 0.0) -> dict[int, tuple[float, float]]:
    return {10 * t: (x + 0.5 * t, -0.25 * t) for t in frames}


@pytest.mark.parametrize(
    ("settings", "windows", "tracks"),
    [({}, 2, 4), ({"together": 3}, 0, 0), ({"stride": 2}, 1, 2), ({"together": 1}, 3, 5), ({"predicted": 2}, 3, 6)],
)
def test_windows_hold_those_who_are_there_for_all_of_it(
    settings: dict[str, int], windows: int, tracks: int, tmp_path: Path
) -> None:
    folder = tmp_path / "scene" / "train"
    folder.mkdir(parents=True)
    # one walks for seven frames, one for six, one comes late
    (folder / "a.txt").write_text(lines({1: walk(range(7)), 2: walk(range(6), 3.0), 9: walk(range(5, 7))}))
    found = load_trajectories(tmp_path, "scene", "train", **{"observed": 2, "predicted": 3, **settings})
    assert (found.windows, len(found)) == (windows, tracks)
    if len(found):
        ade, fde = displacement_errors(constant_velocity(found.past, found.future.shape[1]), found.future)
        assert ade.max() < 1e-12
        assert fde.max() < 1e-12


def test_splits_name_the_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(lines({1: walk(range(4)), 2: walk(range(4), 1.0)}))
    (tmp_path / "splits.json").write_text(json.dumps({"mine": {"val": ["b.txt"]}}))
    assert len(load_trajectories(tmp_path, "mine", "val", observed=2, predicted=2)) == 2


def written(folder: Path, text: str) -> Path:
    (folder / "mine" / "test").mkdir(parents=True)
    (folder / "mine" / "test" / "x.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "settings", "error", "words"),
    [
        ("1 1 0 0\n", {"scene": "other"}, ed.errors.ArgumentError, "folder of trajectories"),
        ("1 1 0 0\n", {"observed": 0}, ed.errors.ArgumentError, "observed"),
        ("1 1 0\n", {}, ed.errors.FileFormatError, "four numbers"),
        ("1 1 0 zero\n", {}, ed.errors.FileFormatError, "four numbers"),
    ],
)
def test_other_folders_and_files_are_refused(
    text: str, settings: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, text)
    with pytest.raises(error, match=words):
        load_trajectories(folder, **{"scene": "mine", "part": "test", **settings})


def test_the_best_of_many_samples_counts() -> None:
    truth = torch.zeros(1, 2, 2)
    samples = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]], [[[0.0, 1.0], [0.0, 2.0]]]])
    ade, fde = displacement_errors(samples, truth)
    assert (float(ade), float(fde)) == (1.5, 0.0)
    one, end = displacement_errors(samples[0], truth)
    assert (float(one), float(end)) == (2.5, 0.0)


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 2, 2), (2, 2), (2, 3, 1, 2, 2)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ed.errors.ArgumentError, match="predicted"):
        displacement_errors(torch.zeros(shape), torch.zeros(1, 2, 2))
    with pytest.raises(ed.errors.ArgumentError, match="past"):
        constant_velocity(torch.zeros(2, 1, 2), 3)
