"""The tasks of measure: how an output is read, what it should be for a moved image, and how errors add up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from equidial.adapters._batches import logits_of, tensor_of
from equidial.adapters._scores import FeatureScores, Scores, SegmentationScores
from equidial.errors import ArgumentError, explain
from equidial.groups import GroupElement, Shift, Translation
from equidial.metrics import (
    TokenLayout,
    combined_accuracy,
    confusion_counts,
    correct,
    in_frame,
    invariance_kl,
    is_permutation,
    masked_relative_error,
    mean_iou,
    pixel_accuracy,
    pixel_kl,
    relative_error,
    split_tokens,
    token_layout,
    transform_images,
    transform_labels,
)

TASKS = ("classification", "segmentation", "features")


class Dense(NamedTuple):
    """A grid ``[n, C, h, w]`` that moves with the image, and rows ``[n, extra, D]`` that should not move."""

    grid: torch.Tensor
    rows: torch.Tensor | None


def segmentation_logits(output: Any, x: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, classes, h, w]`` of a model's output; ``ArgumentError`` for another shape."""
    logits = tensor_of(output, ("logits", "out"), "logits")
    if logits.ndim != 4 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ArgumentError(
            explain(
                "logits [n, classes, h, w], two classes or more",
                f"shape {tuple(logits.shape)} for {len(x)} images",
                "wrap the model so that it returns them, or measure another task",
            )
        )
    return logits


def dense_features(output: Any, x: torch.Tensor, tokens: TokenLayout | None) -> Dense:
    """Grid and rows of a model's output; ``ArgumentError`` for another shape or tokens of unknown layout."""
    features = tensor_of(output, ("last_hidden_state", "logits", "out"), "features")
    if features.ndim not in (3, 4) or len(features) != len(x) or (tokens is not None and features.ndim == 4):
        wanted = "tokens [n, extra + N, D]" + ("" if tokens is not None else " or a grid [n, C, h, w]")
        got = f"shape {tuple(features.shape)} for {len(x)} images"
        raise ArgumentError(explain(f"features as {wanted}", got, "wrap the model, or measure another task"))
    if features.ndim == 4:
        return Dense(features, None)
    layout = tokens if tokens is not None else token_layout(features.shape[1], x.shape[-2:])
    rows, grid = split_tokens(features, layout)
    return Dense(grid, rows if layout.extra else None)


def moved_grid(grid: torch.Tensor, g: GroupElement, size: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """``g . grid`` and the places in the frame, for a grid that lies over images of ``size`` ``(h, w)``.

    Raises ``ArgumentError`` where the grid cannot move with the image: shifts on a coarser grid, rotations of a grid
    of another aspect ratio, and grids so small that no place stays in the frame.
    """
    h, w = grid.shape[-2:]
    over = f"a {h}x{w} grid over {size[0]}x{size[1]} images"
    if isinstance(g.group, Shift | Translation) and (h, w) != tuple(size):
        raise ArgumentError(
            explain("an output as large as the image for shifts", over, "measure another group, or resize the output")
        )
    if not is_permutation(g) and abs(h * size[1] - w * size[0]) > max(size):
        raise ArgumentError(
            explain("an output with the aspect ratio of the image", over, "measure mirrors, or square images")
        )
    inside = some_place(in_frame((h, w), g)).to(grid.device)
    grid = grid.to(torch.promote_types(grid.dtype, torch.float32))
    return transform_images(grid, g), inside


def some_place(inside: torch.Tensor) -> torch.Tensor:
    """The mask ``[h, w]`` as it is; ``ArgumentError`` where it is empty."""
    if not inside.any():
        h, w = inside.shape
        raise ArgumentError(
            explain("a place that stays in the frame", f"none of a {h}x{w} output", "give larger images, or measure C4")
        )
    return inside


@dataclass
class Running:
    """Mean and largest of the numbers added; NaN without any, and once one was NaN."""

    total: float = 0.0
    count: int = 0
    largest: float = -float("inf")

    def add(self, values: torch.Tensor) -> None:
        self.total += float(values.sum())
        self.count += len(values)
        self.largest = float(np.maximum(self.largest, float(values.max())))

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")

    @property
    def peak(self) -> float:
        return self.largest if self.count else float("nan")


class Task(ABC):
    """What was found so far, on ``images`` images and ``elements`` elements each."""

    probed = True  # whether epsilon is defined

    def __init__(self, elements: int):
        self.elements, self.images = elements, 0
        self.epsilon = Running()

    def check(self, x: torch.Tensor, y: torch.Tensor | None) -> None:  # noqa: B027 (most tasks refuse nothing)
        """Refuse a batch before the model reads it."""

    @abstractmethod
    def read(self, output: Any, x: torch.Tensor) -> Any:
        """What is compared, from a model's output for ``x``."""

    @abstractmethod
    def add_images(self, output: Any, y: torch.Tensor | None) -> None:
        """Count the images as they are."""

    @abstractmethod
    def add_element(
        self, index: int, g: GroupElement, output: Any, moved: Any, x: torch.Tensor, y: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Compare ``f(gx)`` with what it should be; returns the difference per image, for epsilon."""

    @abstractmethod
    def scores(self) -> Scores | SegmentationScores | FeatureScores:
        """The numbers."""


class Classification(Task):
    """Logits ``[n, classes]`` that the group leaves."""

    def __init__(self, elements: int):
        super().__init__(elements)
        self.labelled = self.hits = self.moved_hits = 0
        self.divergence = Running()

    def read(self, output: Any, x: torch.Tensor) -> torch.Tensor:
        return logits_of(output)

    def add_images(self, output: torch.Tensor, y: torch.Tensor | None) -> None:
        if y is not None:
            self.labelled += len(output)
            self.hits += int(correct(output, y).sum())

    def add_element(
        self,
        index: int,
        g: GroupElement,
        output: torch.Tensor,
        moved: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None,
    ) -> torch.Tensor:
        self.divergence.add(invariance_kl(output, moved))
        if y is not None:
            self.moved_hits += int(correct(moved, y).sum())
        return moved - output

    def scores(self) -> Scores:
        acc = self.hits / self.labelled if self.labelled else float("nan")
        a_acc = self.moved_hits / (self.labelled * self.elements) if self.labelled else float("nan")
        return Scores(
            Acc=acc,
            aAcc=a_acc,
            cAcc=combined_accuracy(acc, a_acc),
            iErr=self.divergence.mean,
            epsilon=self.epsilon.peak,
            epsilon_mean=self.epsilon.mean,
            images=self.images,
            elements=self.elements,
        )


class Segmentation(Task):
    """Logits ``[n, classes, h, w]`` that move with the image, masks ``[n, h, w]``."""

    def __init__(self, elements: int, ignore_index: int):
        super().__init__(elements)
        self.ignore_index = ignore_index
        self.divergence = Running()
        self.confusions: list[torch.Tensor] = []  # upright, then one per element

    def check(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        got = "none" if y is None else f"{y.dtype} of shape {tuple(y.shape)}"
        wanted = (len(x), *x.shape[-2:])
        if y is None or tuple(y.shape) != wanted or y.is_floating_point() or y.is_complex():
            raise ArgumentError(
                explain(
                    f"integer masks of shape {wanted} as labels",
                    got,
                    "batches of (x, masks); without masks measure task='features'",
                )
            )

    def read(self, output: Any, x: torch.Tensor) -> torch.Tensor:
        return segmentation_logits(output, x)

    def add_images(self, output: torch.Tensor, y: torch.Tensor | None) -> None:
        if not self.confusions:
            classes = output.shape[1]
            self.confusions = [torch.zeros(classes, classes, dtype=torch.long) for _ in range(self.elements + 1)]
        self._count(0, output, y)

    def add_element(
        self,
        index: int,
        g: GroupElement,
        output: torch.Tensor,
        moved: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None,
    ) -> torch.Tensor:
        assert y is not None, "checked before"
        expected, inside = moved_grid(output, g, x.shape[-2:])
        self.divergence.add(pixel_kl(expected, moved, inside))
        self._count(index + 1, moved, transform_labels(y, g, self.ignore_index))
        return torch.where(inside, moved - expected, 0.0)

    def _count(self, row: int, logits: torch.Tensor, y: torch.Tensor | None) -> None:
        assert y is not None, "checked before"
        if logits.shape[-2:] != y.shape[-2:]:
            logits = functional.interpolate(logits.float(), size=y.shape[-2:], mode="bilinear", align_corners=False)
        counts = confusion_counts(logits.argmax(1), y.to(logits.device), logits.shape[1], self.ignore_index)
        self.confusions[row] += counts.cpu()

    def scores(self) -> SegmentationScores:
        iou, acc = ([score(c) for c in self.confusions] for score in (mean_iou, pixel_accuracy))
        a_iou, a_acc = float(np.mean(iou[1:])), float(np.mean(acc[1:]))
        return SegmentationScores(
            mIoU=iou[0],
            aIoU=a_iou,
            cIoU=combined_accuracy(iou[0], a_iou),
            Acc=acc[0],
            aAcc=a_acc,
            cAcc=combined_accuracy(acc[0], a_acc),
            eErr=self.divergence.mean,
            epsilon=self.epsilon.peak,
            epsilon_mean=self.epsilon.mean,
            images=self.images,
            elements=self.elements,
        )


class Features(Task):
    """A grid ``[n, C, h, w]``, or tokens ``[n, extra + h w, D]``, that moves with the image; no labels."""

    probed = False

    def __init__(self, elements: int, tokens: TokenLayout | None):
        super().__init__(elements)
        self.tokens = tokens
        self.on_grid, self.on_rows = Running(), Running()

    def read(self, output: Any, x: torch.Tensor) -> Dense:
        return dense_features(output, x, self.tokens)

    def add_images(self, output: Dense, y: torch.Tensor | None) -> None:
        """Nothing is known of them without labels."""

    def add_element(
        self, index: int, g: GroupElement, output: Dense, moved: Dense, x: torch.Tensor, y: torch.Tensor | None
    ) -> None:
        expected, inside = moved_grid(output.grid, g, x.shape[-2:])
        self.on_grid.add(masked_relative_error(expected, moved.grid, inside))
        if output.rows is not None and moved.rows is not None:
            self.on_rows.add(relative_error(output.rows, moved.rows))

    def scores(self) -> FeatureScores:
        return FeatureScores(
            eErr_rel=self.on_grid.mean,
            eErr_rel_max=self.on_grid.peak,
            iErr_rel=self.on_rows.mean,
            iErr_rel_max=self.on_rows.peak,
            images=self.images,
            elements=self.elements,
        )


def checked_layout(tokens: object, task: str) -> TokenLayout | None:
    """``tokens=(extra, h, w)`` as a layout; ``ArgumentError`` for another value or another task."""
    if tokens is None:
        return None
    if task != "features":
        raise ArgumentError(explain("tokens= with task='features' only", f"task={task!r}", "leave it out"))
    values = tuple(tokens) if isinstance(tokens, list | tuple) else ()
    if len(values) != 3 or not all(isinstance(v, int) for v in values) or values[0] < 0 or min(values[1:]) < 1:
        raise ArgumentError(
            explain("tokens=(extra, h, w), integers", repr(tokens), "e.g. tokens=(1, 14, 14) for a class token")
        )
    return TokenLayout(*values)
