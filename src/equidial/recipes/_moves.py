"""Images moved by random elements of a group, for training; and what ``measure`` finds, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def turned(
    x: torch.Tensor, elements: Sequence[GroupElement], generator: torch.Generator, rest: bool = True
) -> torch.Tensor:
    """``[n, c, h, w]``, each image moved by an element that is drawn for it; ``rest``: the identity is one more."""
    drawn = torch.randint(len(elements) + rest, (len(x),), generator=generator).to(x.device)
    out = x.clone()
    for place, g in enumerate(elements):
        rows = drawn == place
        if bool(rows.any()):
            out[rows] = transform_images(x[rows], g)
    return out


def scores(model: nn.Module, batches: Iterable[Any], group: str) -> dict[str, float]:
    """Acc, aAcc, cAcc and iErr of :func:`equidial.measure`."""
    found = ed.measure(model, batches, group, epsilon_images=0)
    return {name: found[name] for name in ("Acc", "aAcc", "cAcc", "iErr")}
