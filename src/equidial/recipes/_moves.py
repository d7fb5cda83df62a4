"""Images moved by random elements of a group, for training, and what ``measure`` finds, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.groups import GroupElement
from equidial.metrics import rotate_bilinear, transform_images
from equidial.recipes._together import shared


def crop_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifted by up to an eighth of the side, zeros filled in, and mirrored half of the time."""
    return flipped(shifted(x, x.shape[-1] // 8, generator), generator)


def shifted(x: torch.Tensor, margin: int, generator: torch.Generator) -> torch.Tensor:
    """``[n, c, h, w]``, each image by up to ``margin`` whole pixels along both axes, zeros filled in."""
    padded = functional.pad(x, (margin,) * 4)
    shifts = torch.randint(2 * margin + 1, (len(x), 2), generator=generator).tolist()
    return torch.stack(
        [p[:, i : i + x.shape[-2], j : j + x.shape[-1]] for p, (i, j) in zip(padded, shifts, strict=True)]
    )


def flipped(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored, or not, equally likely."""
    out = x.clone()
    flips = torch.rand(len(x), generator=generator) < 0.5
    out[flips] = out[flips].flip(-1)
    return out


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


def spun(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``[n, c, h, w]``, each image turned by an angle of its own, uniform on the circle; bilinear, zeros outside."""
    angles = (2 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 1) * torch.pi
    return torch.stack([rotate_bilinear(image, angle) for image, angle in zip(x, angles.tolist(), strict=True)])


def scores(
    model: nn.Module, batches: Iterable[Any], group: str, elements: Sequence[GroupElement] | None = None
) -> dict[str, float]:
    """Acc, aAcc, cAcc and iErr of :func:`equidial.measure`."""
    with shared(model):
        found = ed.measure(model, batches, group, elements=elements, epsilon_images=0)
    return {name: found[name] for name in ("Acc", "aAcc", "cAcc", "iErr")}
