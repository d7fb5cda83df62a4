"""Scores of a segmentation under a group: pure functions of logits and masks.

confusion  counts[label, predicted] over pixels, summed over a data set
mIoU  mean over the classes that occur of  intersection / union
aIoU  mIoU of f(g x) against g y, the mean over elements
cIoU  sqrt(mIoU aIoU)
eErr  KL( softmax g f(x) || softmax f(g x) ) in nats, the mean over pixels in the frame, images and elements
"""

from __future__ import annotations

import torch

from equidial.errors import ArgumentError, explain
from equidial.metrics._classification import invariance_kl


def confusion_counts(
    predicted: torch.Tensor, labels: torch.Tensor, classes: int, ignore_index: int = 255
) -> torch.Tensor:
    """How many pixels of each label were given each class, ``[label, predicted]`` int64.

    ``predicted``: classes ``[...]``; ``labels``: integers of that shape, in ``0..classes-1`` or ``ignore_index``, which
    is left out. Raises ``ArgumentError`` for other labels. Cost O(pixels + classes^2).
    """
    seen = labels != ignore_index
    labels, predicted = labels[seen].long(), predicted[seen].long()
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ArgumentError(
            explain(
                f"labels in 0..{classes - 1}, or ignore_index={ignore_index}",
                f"the label {int(labels[outside][0])}",
                "give the model an output for each class, or pass ignore_index",
            )
        )
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def mean_iou(confusion: torch.Tensor) -> float:
    """Mean of ``intersection / union`` over the classes that occur among labels or predictions; NaN without any."""
    intersection = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean())


def pixel_accuracy(confusion: torch.Tensor) -> float:
    """Share of the labelled pixels that were given their label; NaN without any."""
    return float(confusion.diagonal().sum().double() / confusion.sum())


def pixel_kl(logits: torch.Tensor, transformed: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(logits) || softmax(transformed))`` in nats, the mean over the places in the frame, one per image.

    ``[n, classes, h, w]`` each; ``inside``: boolean ``[h, w]``. Image by image, in double precision.
    """
    rows = [invariance_kl(p[:, inside].mT, q[:, inside].mT).mean() for p, q in zip(logits, transformed, strict=True)]
    return torch.stack(rows)
