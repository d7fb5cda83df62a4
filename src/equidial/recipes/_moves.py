"""Images moved by random elements of a group, for training; and what ``measure`` finds, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import equidial as ed
from equidial.data import Split
from equidial.groups import GroupElement
from equidial.metrics import transform_images


def stacked(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """All images ``[n, c, h, w]`` and labels ``[n]`` of a split, in its order."""
    if isinstance(split.dataset, TensorDataset):
        x, y = split.dataset.tensors
        return x, y
    pairs = [split.dataset[i] for i in range(len(split))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


def drawn(
    count: int, elements: Sequence[GroupElement], generator: torch.Generator, rest: bool = True
) -> Iterator[tuple[torch.Tensor, GroupElement]]:
    """Which of ``count`` images are moved by which element, all equally likely; ``rest``: one more leaves them."""
    picks = torch.randint(len(elements) + rest, (count,), generator=generator)
    for place, g in enumerate(elements):
        rows = (picks == place).nonzero()[:, 0]
        if len(rows):
            yield rows, g


def turned(
    x: torch.Tensor, elements: Sequence[GroupElement], generator: torch.Generator, rest: bool = True
) -> torch.Tensor:
    """``[n, c, h, w]``, each image moved by an element that is :func:`drawn` for it."""
    out = x.clone()
    for rows, g in drawn(len(x), elements, generator, rest):
        out[rows] = transform_images(x[rows], g)
    return out


def scores(model: nn.Module, batches: Iterable[Any], group: str) -> dict[str, float]:
    """Acc, aAcc, cAcc and iErr of :func:`equidial.measure`."""
    found = ed.measure(model, batches, group, epsilon_images=0)
    return {name: found[name] for name in ("Acc", "aAcc", "cAcc", "iErr")}
