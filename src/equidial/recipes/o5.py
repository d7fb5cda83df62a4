"""O(5) regression (EMLP, paper A): two vectors in five dimensions to a number that rotations and mirrors leave alone.

    y = sin |x1| - |x2|^3 / 2 + <x1, x2> / (|x1| |x2|),      x1, x2 ~ N(0, I)

The term that breaks it singles out the first two axes (paper A's code):

    (|x1_1| + |x1_2| + |x2_1| + |x2_2|) / (|x1_3| + |x1_4| + |x2_3| + |x2_4| + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from equidial.groups import O
from equidial.recipes import _regressions
from equidial.recipes._regressions import Problem, Regression
from equidial.recipes._study import Progress

NAME = "o5"


@dataclass(frozen=True)
class O5(Regression):
    """An O(5)-invariant regression, broken by a dial: soft, exact and free networks, residual pathway priors."""


def draw(count: int, generator: torch.Generator) -> torch.Tensor:
    """``[count, 10]``, standard normal."""
    return torch.randn(count, 10, generator=generator, dtype=torch.float64)


def target(x: torch.Tensor) -> torch.Tensor:
    """``[count, 1]``."""
    vectors = x.unflatten(-1, (2, 5))
    a, b = vectors.norm(dim=-1).unbind(-1)
    return (a.sin() - b**3 / 2 + vectors.prod(-2).sum(-1) / (a * b))[:, None]


def term(x: torch.Tensor) -> torch.Tensor:
    """``[count, 1]``."""
    size = x.unflatten(-1, (2, 5)).abs().sum(-2)
    return (size[:, :2].sum(-1) / (size[:, 2:4].sum(-1) + 1))[:, None]


PROBLEM = Problem(O(5), vectors=2, numbers=0, order=0, draw=draw, target=target, term=term)


def run(recipe: O5, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`Regression.check`."""
    return _regressions.run(NAME, PROBLEM, recipe, progress)
