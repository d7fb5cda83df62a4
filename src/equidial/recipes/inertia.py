"""Tensor of inertia (EMLP, residual pathway priors): five masses and positions to a tensor that turns with them.

    I = sum_k m_k (|x_k|^2 1 - x_k x_k^T),      x_k ~ N(0, 1_3),  m_k = log(1 + exp(n_k)),  n_k ~ N(0, 1)

The term that breaks it (the modified inertia of residual pathway priors, there times 0.3) singles out an axis:
``(I z) z^T`` with ``z`` the third unit vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from equidial.groups import O
from equidial.recipes import _regressions
from equidial.recipes._regressions import Problem, Regression
from equidial.recipes._study import Progress

NAME = "inertia"


@dataclass(frozen=True)
class Inertia(Regression):
    """An O(3)-equivariant tensor, broken by a dial: soft, exact and free networks, residual pathway priors."""


def draw(count: int, generator: torch.Generator) -> torch.Tensor:
    """``[count, 20]``: five positions, then five masses."""
    x = torch.randn(count, 20, generator=generator, dtype=torch.float64)
    return torch.cat((x[:, :15], functional.softplus(x[:, 15:])), dim=-1)


def target(x: torch.Tensor) -> torch.Tensor:
    """``[count, 9]``, row-major."""
    positions, masses = x[:, :15].unflatten(-1, (5, 3)), x[:, 15:, None, None]
    outer = positions[..., :, None] * positions[..., None, :]
    unit = torch.eye(3, dtype=x.dtype) * positions.square().sum(-1)[..., None, None]
    return (masses * (unit - outer)).sum(1).flatten(1)


def term(x: torch.Tensor) -> torch.Tensor:
    """``[count, 9]``: the third column of the tensor, the others 0."""
    return target(x) * x.new_tensor([0.0, 0.0, 1.0] * 3)


PROBLEM = Problem(O(3), vectors=5, numbers=5, order=2, draw=draw, target=target, term=term)


def run(recipe: Inertia, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`Regression.check`."""
    return _regressions.run(NAME, PROBLEM, recipe, progress)
