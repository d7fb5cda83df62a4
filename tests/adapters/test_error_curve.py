"""error_curve against measure at quarter turns and against scipy between them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.ndimage import rotate
from torch import nn

import equidial as ed
from equidial.errors import EquidialError
from equidial.groups import SO2, C
from tests.adapters.models import cnn


def turned(x: np.ndarray, degrees: float) -> np.ndarray:
    """Rotated by scipy over the last two axes, bilinear, zero outside."""
    return rotate(x, degrees, (-1, -2), reshape=False, order=1, mode="grid-constant")


class Mass(nn.Module):
    """Two logits: the mean of the image, and 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, torch.ones_like(mean)], dim=1)


def test_quarter_turns_are_those_of_measure() -> None:
    """The same numbers as measure under single elements, the deviation from single images; the floor is 0."""
    model, x = cnn().train(), torch.randn(4, 3, 9, 9)
    curve = ed.error_curve(model, [(x[:3], None), x[3:]], "C4", [math.pi, 0.0, math.pi / 2])
    assert model.training
    assert model.norm.training
    assert curve.angles == (0.0, math.pi / 2, math.pi)
    assert curve.error[0] == 0.0
    assert curve.floor == (0.0, 0.0, 0.0)
    assert curve.elements == (math.pi / 2, math.pi)
    assert curve.images == 4
    for row, k in ((1, 1), (2, 2)):
        element = [C(4).element(k)]
        single = [ed.measure(model, [one], "C4", elements=element).iErr for one in x.split(1)]
        assert curve.error[row] == pytest.approx(np.mean(single), rel=1e-5)
        assert curve.deviation[row] == pytest.approx(np.std(single), rel=1e-5)


@pytest.mark.parametrize("error", ["kl", "total_variation", "relative"])
def test_errors_of_classifiers_by_definition(error: str) -> None:
    """f is linear in the image: its values on images turned by scipy give error and floor."""
    x = torch.rand(3, 1, 10, 10, dtype=torch.float64) * 8
    curve = ed.error_curve(Mass(), [x], angles=[math.radians(30)], error=error)

    def values(images: np.ndarray) -> np.ndarray:
        return np.stack([images.mean((1, 2, 3)), np.ones(3)], axis=1)

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (a, b))
        if error == "relative":
            return np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
        return (p * np.log(p / q)).sum(1) if error == "kl" else np.abs(p - q).sum(1) / 2

    once = turned(x.numpy(), 30)
    here = values(x.numpy())
    assert curve.error[0] == pytest.approx(between(here, values(once)).mean(), rel=1e-6)
    assert curve.deviation[0] == pytest.approx(between(here, values(once)).std(), rel=1e-6)
    assert curve.floor[0] == pytest.approx(between(here, values(turned(once, -30))).mean(), rel=1e-6)


def test_the_identity_has_no_error_and_the_floor_of_two_rotations() -> None:
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    curve = ed.error_curve(nn.Identity(), [x], task="features", angles=[math.radians(d) for d in (0, 35, 90, 140)])
    assert max(curve.error) < 1e-12
    floors = []
    for degrees in (35, 140):
        back = turned(turned(x.numpy(), degrees), -degrees)
        inside = turned((turned(np.ones((12, 12)), degrees) > 1 - 1e-6).astype(float), -degrees) > 1 - 1e-6
        assert 0 < inside.sum() < 144
        gap = np.linalg.norm((back - x.numpy())[..., inside], axis=(1, 2))
        floors.append((gap / np.linalg.norm(x.numpy()[..., inside], axis=(1, 2))).mean())
    assert curve.floor == pytest.approx((0.0, floors[0], 0.0, floors[1]), rel=1e-6)
    assert min(floors) > 0.1


@pytest.mark.parametrize("task", ["segmentation", "features"])
def test_dense_errors_are_those_of_measure(task: str) -> None:
    model, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(3, 2, 9, 9)
    y = torch.zeros(3, 9, 9, dtype=torch.long)
    angles = [0.0, 0.4, math.pi / 2, 2.5]
    curve = ed.error_curve(model, [x[:2], x[2:]], "SO2", angles, task)
    expected = []
    for angle in angles[1:]:
        scores = ed.measure(model, [(x, y)], "SO2", task, elements=[SO2().element(angle)])
        expected.append(scores["eErr" if task == "segmentation" else "eErr_rel"])
    assert curve.error == pytest.approx((0.0, *expected), rel=1e-5)
    strict = ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    assert ed.error_curve(strict, [x], "C4", [math.pi / 2], task).error[0] < 1e-6


def test_a_disc_leaves_no_corner_to_lose() -> None:
    x = torch.ones(1, 1, 32, 32)
    options: dict[str, Any] = {"angles": [math.pi / 4], "error": "relative"}
    loses = ed.error_curve(Mass(), [x], **options)
    keeps = ed.error_curve(Mass(), [x], disc=True, **options)
    # the square loses 1 - 2 (sqrt2 - 1) = 0.172 of its mass m = 1, beside the constant logit 1
    assert loses.error[0] == pytest.approx((3 - 2 * math.sqrt(2)) / math.sqrt(2), rel=0.03)
    assert keeps.error[0] < 0.003
    assert (loses.disc, keeps.disc) == (False, True)


@pytest.mark.parametrize(
    ("group", "count", "marked"),
    [
        ("SO2", 37, ()),
        ("O2", 37, ()),
        ("C8", 37, (45, 90, 135, 180)),
        ("D3", 37, (120,)),
        ("C7", 40, (360 / 7, 720 / 7, 1080 / 7)),
    ],
)
def test_default_angles_hold_the_elements(group: str, count: int, marked: tuple[float, ...]) -> None:
    curve = ed.error_curve(Mass(), [torch.rand(1, 1, 5, 5)], group)
    assert len(curve.angles) == len(curve.error) == len(curve.deviation) == len(curve.floor) == count
    assert list(curve.angles) == sorted(curve.angles)
    assert (curve.angles[0], curve.angles[-1]) == (0.0, math.pi)
    assert curve.elements == pytest.approx([math.radians(d) for d in marked])
    assert set(curve.elements) <= set(curve.angles)
    assert [e for a, e in zip(curve.angles, curve.floor, strict=True) if a in (0.0, math.pi / 2, math.pi)] == [0.0] * 3


def test_a_curve_is_written_and_drawn(tmp_path: Path) -> None:
    curve = ed.error_curve(Mass(), [torch.rand(2, 1, 6, 6)], "C4", [0.0, 1.0, math.pi])
    curve.save(tmp_path / "curve.json")
    document = json.loads((tmp_path / "curve.json").read_text())
    assert document == curve.to_dict()
    assert document["error"] == list(curve.error)
    assert (document["task"], document["group"], document["images"]) == ("classification", "C4", 2)
    figure = curve.plot()
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    degrees = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert [90.0, 90.0] in degrees
    assert pytest.approx([0.0, math.degrees(1.0), 180.0]) in degrees
    figure.savefig(tmp_path / "curve.png")
    assert len(str(curve).splitlines()) == 5


X = torch.rand(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([X], {"group": "Flip"}, "a group with rotations"),
        ([X], {"group": "T2"}, "a group with rotations"),
        ([X], {"group": "C1"}, "a group with rotations"),
        ([X], {"group": "SO3"}, "a group with rotations"),
        ([X], {"task": "detection"}, "a task out of"),
        ([X], {"error": "hinge"}, r"\['kl', 'total_variation', 'relative'\] for classification"),
        ([X], {"task": "features", "error": "kl"}, r"\['relative'\] for features"),
        ([X], {"tokens": (1, 2, 2)}, "task='features' only"),
        ([X], {"angles": []}, r"angles in \[0, pi\]"),
        ([X], {"angles": [0.0, 90.0]}, r"angles in \[0, pi\] radians"),
        ([X], {"angles": [-0.1]}, r"angles in \[0, pi\]"),
        ([X], {"angles": [math.nan]}, r"angles in \[0, pi\]"),
        ([], {}, "at least one batch"),
        ([X[..., :3]], {}, "square images for quarter turns"),
        ([X], {"task": "segmentation"}, r"logits \[n, classes, h, w\]"),
        ([X], {"task": "features"}, "features as tokens"),
    ],
)
def test_wrong_input(batches: list[torch.Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(EquidialError, match=message) as caught:
        ed.error_curve(Mass(), batches, **options)
    assert isinstance(caught.value, ValueError)
