"""How fast an action that is not orthogonal may stretch: the logarithmic norm, jointly over all generators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import ConvexHull

_DIRECTIONS = 400  # of the polytope around the unit ball in three dimensions: 1 % of slack
_POLYGON = 64
_LIMIT = 128  # largest matrices whose eigenvalues are taken at every vertex


def joint_growth(generators: Sequence[torch.Tensor]) -> float:
    """``m >= sup over unit t of ||sym(sum_i t_i A_i)||_2``, so that ``||exp(t . A)||_2 <= e^(m ||t||)`` (theory 4).

    The norm is convex in ``t``, so on the unit ball it is at most its largest value at the vertices of a polytope
    around the ball; directions that stay skew drop out first. One direction: exact. Two and three: a polygon, a
    polytope. More, or large matrices: ``min(sqrt(sum ||S_i||^2), ||sum S_i^2||^(1/2))``.
    """
    if not generators:
        return 0.0
    symmetric = torch.stack([(a + a.mT) / 2 for a in generators])
    dim = symmetric.shape[-1]
    flat = symmetric.flatten(1)
    values, mix = torch.linalg.eigh(flat @ flat.mT)
    kept = values > 1e-24 * max(float(values[-1]), 1e-300)
    # sum_i t_i S_i = sum_j u_j P_j with u the coordinates of t along the kept directions: ||u|| <= ||t||
    parts = torch.tensordot(mix[:, kept].mT, symmetric, dims=1)
    dropped = math.sqrt(float(values[~kept].clamp(min=0).sum()))
    margin = 1 + 16 * dim * torch.finfo(torch.float64).eps
    sizes = torch.linalg.matrix_norm(parts, ord=2)
    squares = float(torch.linalg.matrix_norm((parts @ parts).sum(0), ord=2))
    bound = min(float(sizes.norm()), math.sqrt(squares))
    if 2 <= len(parts) <= 3 and dim <= _LIMIT:
        vertices = _polytope(len(parts))
        bound = min(bound, float(torch.linalg.matrix_norm(torch.tensordot(vertices, parts, dims=1), ord=2).max()))
    return bound * margin + dropped


def _polytope(dim: int) -> torch.Tensor:
    """Vertices ``[n, dim]`` of a polytope that holds the unit ball of the plane or of space, one of each pair +-v."""
    if dim == 2:
        angles = torch.arange(_POLYGON, dtype=torch.float64) * (math.pi / _POLYGON)
        return torch.stack([angles.cos(), angles.sin()], dim=1) / math.cos(math.pi / (2 * _POLYGON))
    k = np.arange(_DIRECTIONS) + 0.5  # Fibonacci's spiral on the upper half, and its mirror image through the origin
    z, turn = 1 - k / _DIRECTIONS, math.pi * (1 + math.sqrt(5)) * k
    ring = np.sqrt(1 - z**2)
    half = np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)
    inradius = float(-ConvexHull(np.concatenate([half, -half])).equations[:, -1].max())
    return torch.from_numpy(half / (inradius * (1 - 1e-12)))
