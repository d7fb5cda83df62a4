"""The largest defect that applying elements finds: a lower bound of the supremum, so that the slack shows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from equidial.filters import Constraint
from equidial.groups import GroupElement

_SAMPLES = 64
_DIRECTIONS = 32
_IMPROVED = 3  # candidates from which a local search starts


def defect_of_element(constraint: Constraint, matrices: torch.Tensor, g: GroupElement) -> float:
    """``E(g) = ||W rho_X(g) - rho_Y(g) W||`` by applying ``g`` to float64 matrices ``[..., d_Y, d_X]``."""
    if not constraint.is_orthogonal:
        return float(constraint.difference(g, matrices).norm())
    return float((constraint.transform(g, matrices) - matrices).norm())


def worst_element(constraint: Constraint, matrices: torch.Tensor, radius: float, seed: int = 0) -> float:
    """The largest ``E(g)`` over samples, letters and exponentials within ``radius``, the best improved locally.

    Deterministic under ``seed``. Cost: some 200 applications of elements.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [(defect_of_element(constraint, matrices, g), g) for g in _candidates(constraint, radius, generator)]
    found.sort(key=lambda pair: -pair[0])
    if not found:
        return 0.0
    if not constraint.group.lie_dim:
        return found[0][0]
    return max(_improved(constraint, matrices, radius, *pair, generator) for pair in found[:_IMPROVED])


def _candidates(constraint: Constraint, radius: float, generator: torch.Generator) -> Iterator[GroupElement]:
    group = constraint.group
    yield from (g for g in group.sample(_SAMPLES, generator) if g.distance() <= radius)
    yield from (s.element for s in group.discrete_generators() if s.length <= radius)
    if group.lie_dim:
        directions = torch.randn(_DIRECTIONS, group.lie_dim, generator=generator, dtype=torch.float64)
        for direction in directions / directions.norm(dim=1, keepdim=True):
            yield from (group.exp(radius * share * direction) for share in (0.5, 1.0))


def _improved(
    constraint: Constraint,
    matrices: torch.Tensor,
    radius: float,
    value: float,
    g: GroupElement,
    generator: torch.Generator,
) -> float:
    """Random steps ``exp(d) g`` of shrinking length, kept where they find more within the radius."""
    group = constraint.group
    step = 0.3 * min(radius, 1.0)
    for _ in range(24):
        direction = torch.randn(group.lie_dim, generator=generator, dtype=torch.float64)
        moved = group.exp(step * direction / direction.norm()) @ g
        tried = defect_of_element(constraint, matrices, moved) if moved.distance() <= radius else -1.0
        if tried > value:
            value, g = tried, moved
        else:
            step *= 0.8
    return value
