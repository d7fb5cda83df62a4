"""Whole data sets in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import TensorDataset

from equidial.data import Split


@dataclass(frozen=True)
class Splits:
    """Images ``[n, c, h, w]`` and labels ``[n]`` for training, validation and test."""

    x: torch.Tensor
    y: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]


def stacked(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """All images ``[n, c, h, w]`` and labels ``[n]`` of a split, in its order."""
    if isinstance(split.dataset, TensorDataset):
        x, y = split.dataset.tensors
        return x, y
    pairs = [split.dataset[i] for i in range(len(split))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
