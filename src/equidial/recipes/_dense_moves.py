"""Random moves of images together with their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from equidial.data._segmentation import IGNORED
from equidial.groups import GroupElement
from equidial.metrics import transform_images, transform_labels
from equidial.recipes._moves import drawn


@dataclass(frozen=True)
class Moves:
    """What training images go through; each image draws its own.

    Attributes:
        flip: mirrored left to right half of the time.
        scale: magnified by a factor whose logarithm is uniform, then cropped (or bordered) at a random place.
        degrees: turned by a uniform angle of at most this size.
        jitter: contrast and brightness changed by at most this much, in units of the normalised image.
    """

    flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    degrees: float = 0.0
    jitter: float = 0.0


def moved(
    x: torch.Tensor, y: torch.Tensor, moves: Moves, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``[n, 3, h, w]`` (bilinear, 0 outside) and masks ``[n, h, w]`` (nearest, 255 outside), moved together."""
    count = len(x)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    if moves.jitter:
        contrast, brightness = (uniform(-moves.jitter, moves.jitter)[:, None, None, None].to(x) for _ in range(2))
        x = x * (1 + contrast) + brightness
    if moves.flip:
        flips = (torch.rand(count, generator=generator) < 0.5).to(x.device)
        x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        y = torch.where(flips[:, None, None], y.flip(-1), y)
    if moves.scale == (1.0, 1.0) and not moves.degrees:
        return x, y
    factor = torch.exp(uniform(*(math.log(s) for s in moves.scale)))
    angle = uniform(-math.radians(moves.degrees), math.radians(moves.degrees))
    room = (1 - 1 / factor).abs()  # the crop lies in the magnified image, or the small image in the frame
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    aspect = x.shape[-2] / x.shape[-1]
    rows = [
        [cos, -sin * aspect, uniform(-1, 1) * room],
        [sin / aspect, cos, uniform(-1, 1) * room],
    ]
    theta = torch.stack([torch.stack(row, -1) for row in rows], 1).to(x)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    up = functional.grid_sample((y[:, None] + 1).to(x), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    labels = up[:, 0].round().long() - 1
    return x, torch.where(labels < 0, IGNORED, labels)


def turned_together(
    x: torch.Tensor, y: torch.Tensor, elements: Sequence[GroupElement], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image and its mask moved by one of the ``elements`` or not at all, all equally likely."""
    images, masks = x.clone(), y.clone()
    for rows, g in drawn(len(x), elements, generator):
        images[rows], masks[rows] = transform_images(x[rows], g), transform_labels(y[rows], g, IGNORED)
    return images, masks
