"""The distance between the exact action on a pixel grid and resampled images: interpolation, not symmetry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from equidial.errors import GroupActionError, explain
from equidial.groups import PlanarGroup
from equidial.metrics._action import measured_elements
from equidial.representations import Pixels, Representation, pixel_coordinates

_SMOOTHING = 1.0  # px; white noise of that blur stands for natural images, whose spectra fall off as well


def resampled_windows(
    image: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: Sequence[int], angle: float
) -> np.ndarray:
    """Windows ``[centres, h * w]`` of ``image`` turned counterclockwise by ``angle`` about each centre.

    Cubic splines of the whole image (``scipy.ndimage.map_coordinates``), so that nothing is lost at the window's edge.
    ``rows`` and ``columns``: the centres, real numbers, row 0 at the top.
    """
    x, y = pixel_coordinates(shape[0], shape[1])
    source_x, source_y = math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y
    where = [(rows[:, None] - source_y).ravel(), (columns[:, None] + source_x).ravel()]
    return map_coordinates(image, where, order=3).reshape(len(rows), shape[0] * shape[1])


def interpolation_distance(rep: Representation, radius: float | None = None, windows: int = 32, seed: int = 0) -> float:
    """Mean of ``||rho(g) x - x_g|| / ||x_g||``: ``x`` a window of an image, ``x_g`` that of the turned image.

    ``rep``: pixels of a plane on which rotations act orthogonally; elements: every rotation of a finite group, else 12
    equal angles within ``radius`` (default: all). The image is white noise, Gaussian blur of one pixel, under ``seed``.
    It is what separates the action, which a certificate speaks of, from images that are turned by resampling; 0 for
    quarter turns up to rounding. Raises ``GroupActionError`` for other representations. Cost: one action and one
    resampling per element. Source: theory 5.
    """
    group = rep.group
    if not isinstance(rep, Pixels) or len(rep.shape) != 2 or not isinstance(group, PlanarGroup):
        raise GroupActionError(
            explain("Pixels of a plane with rotations", repr(rep), "ask for the pixels of C(n), D(n), SO2 or O2")
        )
    elements = measured_elements(group, min(radius if radius is not None else math.inf, group.radius))
    turns = [(g, *group.angle_and_mirror(g.value)) for g in elements]
    turns = [(g, angle) for g, angle, mirrored in turns if not mirrored]
    reach = math.ceil(math.hypot(*rep.shape) / 2) + 3
    rng = np.random.default_rng(seed)
    side = 2 * reach + 32
    image = gaussian_filter(rng.standard_normal((side, side)), _SMOOTHING)
    rows, columns = rng.uniform(reach, side - 1 - reach, (2, windows))
    still = torch.from_numpy(resampled_windows(image, rows, columns, rep.shape, 0.0))
    total = 0.0
    for g, angle in turns:
        seen = torch.from_numpy(resampled_windows(image, rows, columns, rep.shape, angle))
        total += float(((rep.act(g, still) - seen).norm(dim=-1) / seen.norm(dim=-1)).mean())
    return total / max(len(turns), 1)
