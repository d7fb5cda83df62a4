"""Masks, frames, tokens and pixel scores against loops over single pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from equidial.errors import ArgumentError, GroupActionError
from equidial.groups import O2, SO2, C, D, GroupElement, Shift
from equidial.metrics import (
    TokenLayout,
    confusion_counts,
    in_frame,
    inscribed_disc,
    is_permutation,
    masked_relative_error,
    mean_iou,
    pixel_accuracy,
    pixel_kl,
    split_tokens,
    token_layout,
    transform_images,
    transform_labels,
)


def iou_by_loops(predicted: np.ndarray, labels: np.ndarray, classes: int, ignore: int) -> tuple[float, float]:
    """``(mIoU, accuracy)`` from sets of pixels."""
    seen = [(p, y) for p, y in zip(predicted.ravel(), labels.ravel(), strict=True) if y != ignore]
    values = []
    for c in range(classes):
        union = sum(p == c or y == c for p, y in seen)
        if union:
            values.append(sum(p == c and y == c for p, y in seen) / union)
    return float(np.mean(values)), sum(p == y for p, y in seen) / len(seen)


@pytest.mark.parametrize(
    ("classes", "ignore", "dtype"), [(3, 255, torch.uint8), (4, -100, torch.long), (2, 0, torch.int)]
)
def test_scores_of_masks_are_those_of_sets_of_pixels(classes: int, ignore: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(classes)
    total, parts = torch.zeros(classes + 1, classes + 1, dtype=torch.long), []
    for _ in range(3):
        predicted = rng.integers(0, classes, (2, 5, 4))
        labels = np.where(rng.random((2, 5, 4)) < 0.2, ignore, rng.integers(0, classes, (2, 5, 4)))
        # one class more than occurs: it has no part in the mean
        counts = confusion_counts(torch.tensor(predicted), torch.tensor(labels).to(dtype), classes + 1, ignore)
        total += counts
        parts.append((predicted, labels))
    predicted, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    expected = iou_by_loops(predicted, labels, classes + 1, ignore)
    assert (mean_iou(total), pixel_accuracy(total)) == pytest.approx(expected)


def test_a_confusion_counts_labels_in_rows() -> None:
    counts = confusion_counts(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 255, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert mean_iou(counts) == pytest.approx((1 / 2 + 0 + 1) / 3)
    empty = confusion_counts(torch.tensor([1]), torch.tensor([255]), 3)
    assert math.isnan(mean_iou(empty))
    assert math.isnan(pixel_accuracy(empty))


@pytest.mark.parametrize("label", [3, -1, 254])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(ArgumentError, match=rf"(?s)labels in 0\.\.2.*the label {label}"):
        confusion_counts(torch.tensor([0, 1]), torch.tensor([0, label]), 3)


def test_pixel_kl_against_scipy() -> None:
    torch.manual_seed(1)
    p, q = torch.randn(2, 2, 3, 4, 5)
    inside = torch.rand(4, 5) < 0.6
    expected = [
        np.mean([entropy(p[i, :, r, c].softmax(0), q[i, :, r, c].softmax(0)) for r, c in inside.nonzero().tolist()])
        for i in range(2)
    ]
    assert pixel_kl(p, q, inside).tolist() == pytest.approx(expected, rel=1e-5)
    assert float(pixel_kl(p, p, inside).max()) == 0.0
    assert pixel_kl(p.index_fill(0, torch.tensor([1]), torch.nan), q, inside).isnan().tolist() == [False, True]


def sources(h: int, w: int, angle: float, mirrored: bool) -> dict[tuple[int, int], tuple[float, float]]:
    """Where each pixel of the moved image comes from, ``(row, column)`` as real numbers."""
    found = {}
    for i in range(h):
        for j in range(w):
            x, y = j - (w - 1) / 2, (h - 1) / 2 - i
            a, b = math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y
            a = -a if mirrored else a
            found[i, j] = ((h - 1) / 2 - b, a + (w - 1) / 2)
    return found


MOVES = [
    (SO2().element(0.3), 0.3, False),
    (SO2().element(-2.0), -2.0, False),
    (C(7).element(3), 6 * math.pi / 7, False),
    (O2().element((0.4, True)), 0.4, True),
]


@pytest.mark.parametrize(("g", "angle", "mirrored"), MOVES, ids=lambda v: str(v))
@pytest.mark.parametrize("size", [(7, 7), (6, 9)])
def test_labels_and_frames_pixel_by_pixel(size: tuple[int, int], g: GroupElement, angle: float, mirrored: bool) -> None:
    assert not is_permutation(g)
    labels = torch.randint(0, 250, size, dtype=torch.uint8)
    moved, inside = transform_labels(labels, g, 255), in_frame(size, g)
    for (i, j), (row, column) in sources(*size, angle, mirrored).items():
        near = (round(row), round(column))
        known = 0 <= near[0] < size[0] and 0 <= near[1] < size[1]
        assert int(moved[i, j]) == (int(labels[near]) if known else 255)
        assert bool(inside[i, j]) == (0 <= row <= size[0] - 1 and 0 <= column <= size[1] - 1)
    assert 0 < int(inside.sum()) < inside.numel()
    assert (moved == 255).any()


@pytest.mark.parametrize("group", [C(4), D(4), Shift(2, (6, 6))], ids=str)
def test_lattice_elements_permute_labels(group) -> None:
    labels = torch.randint(0, 256, (2, 6, 6), dtype=torch.uint8)
    for g in group.elements():
        assert is_permutation(g)
        assert torch.equal(transform_labels(labels, g, 7), transform_images(labels.long(), g))
        assert in_frame((6, 6), g).all()
    with pytest.raises(GroupActionError, match="square images"):
        transform_labels(labels[..., :5], C(4).element(1), 255)


def test_relative_error_over_places() -> None:
    reference, other = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    other[0, :, 0, 0] = 3.0
    other[1, :, 1, 1] = 5.0
    inside = torch.tensor([[True, True], [True, False]])
    assert masked_relative_error(reference, other, inside).tolist() == pytest.approx([2 / math.sqrt(3), 0.0])
    assert masked_relative_error(0 * reference, other, inside).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("count", "size", "layout"),
    [
        (196, (224, 224), (0, 14, 14)),
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), (2, 14, 14)),
        (201, (224, 224), (5, 14, 14)),
        (17, (32, 32), (1, 4, 4)),
        (24, (32, 48), (0, 4, 6)),
        (50, (32, 48), (1, 7, 7)),
        (1, (32, 32), (0, 1, 1)),
        (9, (32, 32), "(0, 3, 3) or (5, 2, 2)"),
        (25, (32, 48), "(0, 5, 5) or (1, 4, 6)"),
        (202, (224, 224), "none fits"),
        (15, (32, 32), "none fits"),
    ],
)
def test_layouts_of_tokens(count: int, size: tuple[int, int], layout: tuple[int, int, int] | str) -> None:
    if isinstance(layout, tuple):
        assert token_layout(count, size) == layout
        return
    with pytest.raises(ArgumentError, match=r"(?s)do: pass tokens=\(extra, h, w\)") as caught:
        token_layout(count, size)
    assert layout in str(caught.value)


def test_tokens_are_row_major_after_the_first_rows() -> None:
    tokens = torch.arange(2 * 8 * 3.0).reshape(2, 8, 3)
    rows, grid = split_tokens(tokens, TokenLayout(2, 2, 3))
    assert torch.equal(rows, tokens[:, :2])
    for i in range(2):
        for j in range(3):
            assert torch.equal(grid[:, :, i, j], tokens[:, 2 + 3 * i + j])
    with pytest.raises(ArgumentError, match="1 \\+ 2x3 = 7 tokens"):
        split_tokens(tokens, TokenLayout(1, 2, 3))


@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 9), (6, 11), (1, 4)])
def test_the_disc_is_the_largest_that_every_rotation_keeps(h: int, w: int) -> None:
    disc = inscribed_disc(h, w)
    for i in range(h):
        for j in range(w):
            farthest = math.hypot(i - (h - 1) / 2, j - (w - 1) / 2)
            assert bool(disc[i, j]) == (farthest <= (min(h, w) - 1) / 2 + 1e-9)
