"""measure on outputs that move with the image: segmentation and dense features."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from torch import nn

import equidial as ed
from equidial.errors import ArgumentError, EquidialError
from equidial.groups import SO2, C
from tests.metrics.test_dense import iou_by_loops

QUARTER = [C(4).element(k) for k in (1, 2, 3)]


class HalfBias(nn.Module):
    """``(x + c on the left half, 0)``: exactly symmetric but for the constant."""

    def __init__(self, c: float, form: Callable[[torch.Tensor], Any] = lambda z: z, zero: bool = True) -> None:
        super().__init__()
        self.c, self.form, self.zero = nn.Parameter(torch.tensor(c)), form, zero

    def forward(self, x: torch.Tensor) -> Any:
        left = torch.zeros_like(x)
        left[..., : x.shape[-1] // 2] = 1.0
        z = x + self.c * left
        return self.form(torch.cat([z, torch.zeros_like(z)], dim=1) if self.zero else z)


def tokens_of(grid: torch.Tensor) -> torch.Tensor:
    """``[n, C, h, w]`` -> ``[n, 1 + h w, C]``; the first row is the mean of the left half."""
    rows = grid[..., : grid.shape[-1] // 2].mean((2, 3))[:, None]
    return torch.cat([rows, grid.flatten(2).mT], dim=1)


class Dense(nn.Module):
    """Two convolutions, output one class more than channels in; answers in a form of its own."""

    def __init__(self, form: Callable[[torch.Tensor], Any] = lambda z: z, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 3, stride + 2 if stride > 1 else 3, padding=1, stride=stride)
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(self.second(torch.relu(self.first(x))))


def bernoulli_kl(a: float, b: float) -> float:
    """``KL`` of two classes with logit differences ``a`` and ``b``."""
    p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda z: z,
    ".logits": lambda z: SimpleNamespace(logits=z),
    "out": lambda z: {"out": z, "aux": z.new_zeros(())},
}


@pytest.mark.parametrize("form", FORMS)
def test_segmentation_of_a_model_known_by_hand(form: str) -> None:
    """Images are -1 everywhere, c = 2: the left half is class 0, whatever the image does."""
    x = torch.full((3, 1, 4, 4), -1.0)
    y = torch.ones(3, 4, 4, dtype=torch.long)
    y[..., :2] = 0
    model = HalfBias(2.0, FORMS[form]).train()
    scores = ed.measure(model, [(x[:2], y[:2]), (x[2:], y[2:])], "Flip", task="segmentation", probes=32)
    assert model.training
    assert (scores.mIoU, scores.aIoU, scores.cIoU) == (1.0, 0.0, 0.0)
    assert (scores.Acc, scores["aAcc"], scores.cAcc) == (1.0, 0.0, 0.0)
    # g f(x) is -1 where f(gx) is 1, and the other way round
    assert scores.eErr == pytest.approx((bernoulli_kl(-1, 1) + bernoulli_kl(1, -1)) / 2)
    # ||difference|| = 2 sqrt16, ||J|| = sqrt16 (all 32 outputs probed), ||x|| = sqrt16
    assert scores.epsilon == pytest.approx(2 / 4, rel=1e-6)
    assert scores.epsilon_mean == pytest.approx(2 / 4, rel=1e-6)
    assert (scores.images, scores.elements) == (3, 1)
    assert list(scores)[:7] == ["mIoU", "aIoU", "cIoU", "Acc", "aAcc", "cAcc", "eErr"]
    assert json.loads(json.dumps(scores.to_dict())) == dict(scores)
    assert "aIoU 0.0000" in str(scores)


def test_masks_count_only_where_they_are_labelled() -> None:
    x, y = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 4, 4), 255)
    y[0, 0, 0] = 0
    scores = ed.measure(HalfBias(2.0), [(x, y)], "Flip", task="segmentation", epsilon_images=0)
    assert (scores.mIoU, scores.aIoU) == (1.0, 0.0)
    assert math.isnan(scores.epsilon)
    other = ed.measure(HalfBias(2.0), [(x, y.where(y == 0, 7))], "Flip", task="segmentation", ignore_index=7)
    assert other.mIoU == 1.0
    nothing = ed.measure(HalfBias(2.0), [(x, torch.full_like(y, 255))], "Flip", task="segmentation")
    assert math.isnan(nothing.mIoU)
    assert math.isnan(nothing.aIoU)
    assert nothing.eErr > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_segmentation_against_loops(stride: int) -> None:
    """Quarter turns and a rotation by 0.3 rad, rebuilt with numpy and scipy; images in three batches."""
    model = Dense(stride=stride).double().eval()
    nn.init.normal_(model.second.weight)
    x, y = torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.randint(0, 3, (5, 8, 8))
    y[torch.rand(y.shape) < 0.1] = 255
    turn = SO2().element(0.3)
    batches = [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])]

    def predictions(z: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            logits = model(z)
        return nn.functional.interpolate(logits, (8, 8), mode="bilinear").argmax(1).numpy()

    upright = iou_by_loops(predictions(x), y.numpy(), 3, 255)
    for elements in (QUARTER, [turn]):
        ious, divergences = [], []
        for g in elements:
            if g is turn:
                moved = ed.metrics.transform_images(x, g)
                labels = rotate(
                    y.numpy(), math.degrees(0.3), (2, 1), reshape=False, order=0, mode="grid-constant", cval=255
                )
            else:
                moved = torch.rot90(x, g.value, (-2, -1))
                labels = np.rot90(y.numpy(), g.value, (-2, -1))
            ious.append(iou_by_loops(predictions(moved), labels, 3, 255))
            with torch.no_grad():
                here, there = model(x).numpy(), model(moved).numpy()
            side = here.shape[-1]
            if g is turn:
                options: dict[str, Any] = {"reshape": False, "order": 1, "mode": "grid-constant"}
                here = rotate(here, math.degrees(0.3), (3, 2), **options)
                inside = rotate(np.ones((side, side)), math.degrees(0.3), (1, 0), **options) > 1 - 1e-6
            else:
                here, inside = np.rot90(here, g.value, (-2, -1)), np.ones((side, side), dtype=bool)
            p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (here, there))
            divergences.append((p * np.log(p / q)).sum(1)[:, inside].mean())
        scores = ed.measure(model, batches, "SO2", task="segmentation", elements=elements)
        assert (scores.mIoU, scores.Acc) == pytest.approx(upright)
        assert (scores.aIoU, scores.aAcc) == pytest.approx(tuple(np.mean(ious, axis=0)))
        assert scores.cIoU == pytest.approx(math.sqrt(scores.mIoU * scores.aIoU))
        assert scores.eErr == pytest.approx(np.mean(divergences), rel=1e-6)


@pytest.mark.parametrize(("c", "v"), [(2.0, -1.0), (0.5, 3.0)])
def test_features_of_a_model_known_by_hand(c: float, v: float) -> None:
    """The difference is c everywhere; the class row differs by c and is v + c."""
    x = torch.full((3, 1, 4, 4), v)
    expected = c * 4 / math.sqrt(8 * v**2 + 8 * (v + c) ** 2)
    grid = ed.measure(HalfBias(c, zero=False), [x[:2], x[2:]], "Flip", task="features")
    assert (grid.eErr_rel, grid.eErr_rel_max) == pytest.approx((expected, expected))
    assert math.isnan(grid.iErr_rel)
    assert math.isnan(grid["iErr_rel_max"])
    hidden = HalfBias(c, lambda z: SimpleNamespace(last_hidden_state=tokens_of(z), logits=z), zero=False)
    tokens = ed.measure(hidden, [x], "Flip", task="features")
    assert (tokens.eErr_rel, tokens.eErr_rel_max) == pytest.approx((expected, expected))
    assert (tokens.iErr_rel, tokens.iErr_rel_max) == (0.0, 0.0), "the mean of the left half is the constant v + c"
    ramp = x + torch.arange(4.0)
    moved = ed.measure(hidden, [ramp], "Flip", task="features")
    # columns v + 0 .. v + 3: the left half has the mean v + 1/2 + c, mirrored v + 5/2 + c
    assert moved.iErr_rel == pytest.approx(2 / abs(v + 0.5 + c))
    assert "eErr_rel" in str(moved)


def test_mean_and_largest_over_images_and_elements() -> None:
    model, x = Dense(), torch.randn(3, 2, 6, 6)
    with torch.no_grad():
        singles = [
            float(
                (model(torch.rot90(one, k, (-2, -1))) - torch.rot90(model(one), k, (-2, -1))).norm() / model(one).norm()
            )
            for one in x.split(1)
            for k in (1, 2, 3)
        ]
    scores = ed.measure(model, [x[:2], x[2:]], "C4", task="features")
    assert scores.eErr_rel == pytest.approx(np.mean(singles), rel=1e-5)
    assert scores.eErr_rel_max == pytest.approx(max(singles), rel=1e-5)
    assert (scores.images, scores.elements) == (3, 3)


@pytest.mark.parametrize("group", ["C4", "D4", "Flip"])
def test_strict_networks_measure_zero(group: str) -> None:
    model = ed.soften(Dense(), ed.SoftEquivarianceConfig(group=group, softness=0.0))
    x, y = torch.randn(3, 2, 7, 7), torch.randint(0, 3, (3, 7, 7))
    scores = ed.measure(model, [(x, y)], group, task="segmentation")
    assert scores.eErr < 1e-10
    assert scores.epsilon < 1e-6
    assert scores.aIoU == pytest.approx(scores.mIoU)
    assert ed.measure(model, [x], group, task="features").eErr_rel_max < 1e-5
    free = ed.unload(model)
    assert ed.measure(free, [(x, y)], group, task="segmentation").eErr > 1e-4
    assert ed.measure(free, [x], group, task="features").eErr_rel > 1e-2


def test_what_moves_in_from_outside_is_no_error() -> None:
    """A linear map of single pixels commutes with bilinear rotation; its bias does so in the frame alone."""
    model, x = nn.Conv2d(2, 3, 1), torch.randn(2, 2, 9, 9)
    scores = ed.measure(model, [x], "SO2", task="features", radius=3.0)
    assert 0 < scores.eErr_rel_max < 1e-5
    y = torch.randint(0, 3, (2, 9, 9))
    segmentation = ed.measure(model, [(x, y)], "SO2", task="segmentation", radius=3.0)
    assert segmentation.eErr < 1e-9
    assert segmentation.epsilon < 1e-5
    assert ed.measure(model, [x], "T2", task="features").eErr_rel_max == 0.0


def test_a_network_that_answers_nan_is_not_called_symmetric() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], 1) * torch.nan

    x, y = torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    scores = ed.measure(Broken(), [(x, y)], "C4", task="segmentation")
    assert math.isnan(scores.eErr)
    assert math.isnan(scores.epsilon)
    assert math.isnan(ed.measure(Broken(), [x], "C4", task="features").eErr_rel_max)
    flat = ed.measure(nn.Sequential(Broken(), nn.Flatten()), [x], "C4")
    assert math.isnan(flat.epsilon)


X, Y = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
SEGMENTATION = {"task": "segmentation"}
FEATURES = {"task": "features"}


def answers(*shape: int) -> nn.Module:
    """A model that answers zeros of this shape per image."""

    class Answers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), *shape) + 0 * x.sum()

    return Answers()


@pytest.mark.parametrize(
    ("model", "batch", "group", "options", "message"),
    [
        (answers(2, 4, 4), (X, Y), "C4", {"task": "detection"}, "a task out of"),
        (answers(2, 4, 4), X, "C4", SEGMENTATION, r"integer masks of shape \(2, 4, 4\)"),
        (answers(2, 4, 4), (X, Y[:, 0, 0]), "C4", SEGMENTATION, r"integer masks of shape \(2, 4, 4\)"),
        (answers(2, 4, 4), (X, Y[:, :3]), "C4", SEGMENTATION, r"integer masks of shape \(2, 4, 4\)"),
        (answers(2, 4, 4), (X, Y[:, None]), "C4", SEGMENTATION, r"integer masks of shape \(2, 4, 4\)"),
        (answers(2, 4, 4), (X, Y.float()), "C4", SEGMENTATION, "integer masks"),
        (answers(2, 4, 4), (X, Y + 2), "C4", SEGMENTATION, r"(?s)labels in 0\.\.1.*the label 2"),
        (answers(2, 4, 4), (X, Y - 1), "C4", SEGMENTATION, "the label -1"),
        (answers(2), (X, Y), "C4", SEGMENTATION, r"logits \[n, classes, h, w\]"),
        (answers(1, 4, 4), (X, Y), "C4", SEGMENTATION, "two classes or more"),
        (answers(2, 2, 2), (X, Y), "T2", SEGMENTATION, "as large as the image for shifts"),
        (answers(2, 4, 2), (X, Y), "C4", SEGMENTATION, "square images for quarter turns"),
        (answers(2, 4, 2), (X, Y), "SO2", SEGMENTATION, "the aspect ratio of the image"),
        (answers(2, 4, 4), (X, Y), "C4", SEGMENTATION | {"tokens": (1, 2, 2)}, "task='features' only"),
        (answers(2, 2, 2), X, "SO2", FEATURES | {"radius": 1.5}, "a place that stays in the frame"),
        (answers(5), X, "C4", FEATURES, "features as tokens"),
        (answers(9, 3), X, "C4", FEATURES, r"(?s)\(0, 3, 3\) or \(5, 2, 2\).*pass tokens="),
        (answers(7, 3), X, "C4", FEATURES | {"tokens": (1, 2, 2)}, "1 \\+ 2x2 = 5 tokens"),
        (answers(5, 3), X, "C4", FEATURES | {"tokens": (1, 2)}, "tokens=\\(extra, h, w\\), integers"),
        (answers(5, 3), X, "C4", FEATURES | {"tokens": (-1, 2, 3)}, "tokens=\\(extra, h, w\\), integers"),
        (answers(3, 4, 4), X, "C4", FEATURES | {"tokens": (1, 2, 2)}, "features as tokens"),
        (answers(3, 4, 4), [], "C4", FEATURES, "wrap the data loader"),
    ],
)
def test_wrong_input(model: nn.Module, batch: Any, group: str, options: dict[str, Any], message: str) -> None:
    model.train()
    with pytest.raises(EquidialError, match=message) as caught:
        ed.measure(model, [batch], group, **options)
    assert isinstance(caught.value, ValueError)
    assert model.training


def test_masks_are_checked_before_the_model_reads_anything() -> None:
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("read")

    for y in (None, Y[:, :3]):
        with pytest.raises(ArgumentError, match="integer masks"):
            ed.measure(Never(), [(X, y)], "C4", task="segmentation")


def test_tokens_said_by_the_caller() -> None:
    """Nine tokens are 3x3, or five and 2x2: the caller knows."""

    class Tokens(nn.Module):
        def __init__(self, extra: int, step: int) -> None:
            super().__init__()
            self.extra, self.step = extra, step

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = x[..., :: self.step, :: self.step].flatten(2).mT
            return torch.cat([x.new_ones(len(x), self.extra, 1), grid], dim=1)

    whole = ed.measure(Tokens(0, 1), [torch.randn(2, 1, 3, 3)], "C4", task="features", tokens=(0, 3, 3))
    assert whole.eErr_rel_max == 0.0
    corners = ed.measure(Tokens(5, 3), [torch.randn(2, 1, 4, 4)], "C4", task="features", tokens=(5, 2, 2))
    assert (corners.eErr_rel_max, corners.iErr_rel_max) == (0.0, 0.0)
    wrong = ed.measure(Tokens(5, 3), [torch.randn(2, 1, 4, 4)], "C4", task="features", tokens=(0, 3, 3))
    assert wrong.eErr_rel > 0.1
