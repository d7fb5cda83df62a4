"""The benchmark of learned dials on digits made up here: its data, its comparisons, its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks._contract import write_json

import equidial as ed
from benchmarks import learned_dial as bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lopsided 9, a 6 that is its half turn, and a symmetric 8; 40 of each, with noise."""
    rng = np.random.default_rng(0)
    nine = np.zeros((28, 28))
    nine[4:12, 8:20] = 200
    eight = nine + np.rot90(nine, 2)
    shapes = {9: nine, 6: np.rot90(nine, 2), 8: eight, 1: 0 * nine}
    labels = np.tile(list(shapes), 40)
    images = np.stack([shapes[d] for d in labels]) + rng.uniform(0, 40, (len(labels), 28, 28))
    x, y = images.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path


def test_tasks_hold_the_digits_that_they_say(folder: Path) -> None:
    task = bench.load_task(folder, "6 or 9", 30)
    assert task.x.shape == (60, 1, 28, 28)
    assert task.x_test.shape == (80, 1, 28, 28)
    assert int(task.y.sum()) == 30
    upper = task.x[:, 0, :14].mean((1, 2)) > task.x[:, 0, 14:].mean((1, 2))
    assert torch.equal(upper, task.y == 1), "a 9 is heavy above"
    other = bench.load_task(folder, "8 or not", 30)
    assert (len(other.x), int(other.y.sum()), other.turned) == (90, 30, True)


def test_every_element_turns_images_and_each_alike() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(400, 1, 1, 1)
    moved = bench.randomly_turned(x, ed.groups.C(4), torch.Generator().manual_seed(0))
    counts = [sum(torch.equal(m, torch.rot90(x[0], k, (-2, -1))) for m in moved) for k in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_runs_and_table(folder: Path, tmp_path: Path) -> None:
    task = bench.load_task(folder, "6 or 9", 40)
    results = [bench.run(task, "6 or 9", mode, 0, "C2", 6, 0.5) for mode in bench.MODES]
    learned, strict, free = results
    assert len(learned.dials) == 7
    assert learned.dials[0] == [1.0, 1.0, 1.0]
    assert all(b <= a for a, b in zip(learned.dials[0], learned.dials[-1], strict=True))
    assert strict.certified == 0.0
    assert strict.invariance < 1e-4 < free.invariance
    assert strict.accuracy < 0.9 < free.accuracy, "one is the half turn of the other but for noise"
    text = bench.report(results)
    assert all(word in text for word in ("learned", "softness 0", "untouched", "0.000 (0.000..0.000)"))
    bench.plot([learned, replace(learned, task="8 or not")], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert bench.spread([0.1, 0.3, 0.2], 1) == "0.2 (0.1..0.3)"
    options = bench.parser().parse_args(["--data", str(folder)])
    write_json(tmp_path / "run.json", "learned_dial", options, [vars(r) for r in results])
    assert str(folder) not in (tmp_path / "run.json").read_text()
