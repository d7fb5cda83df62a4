"""The largest defect that applying elements finds: a lower bound of the supremum, so that the slack shows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from equidial.filters import Constraint
from equidial.groups import GroupElement, uniform_in_ball

_SAMPLES = 64
_IMPROVED = 3  # candidates from which a local search starts
_STEPS = 24


def defect_of_element(constraint: Constraint, matrices: torch.Tensor, g: GroupElement) -> float:
    """``E(g) = ||W rho_X(g) - rho_Y(g) W||`` by applying ``g`` to float64 matrices ``[..., d_Y, d_X]``."""
    if not constraint.is_orthogonal:
        return float(constraint.difference(g, matrices).norm())
    return float((constraint.transform(g, matrices) - matrices).norm())


Defect = Callable[[Constraint, torch.Tensor, GroupElement], float]
"""How large the defect of an element is: :func:`defect_of_element`, or the same in another norm."""


def worst_element(
    constraint: Constraint, matrices: torch.Tensor, radius: float, defect: Defect = defect_of_element, seed: int = 0
) -> float:
    """The largest ``E(g)`` found over elements within ``radius``, the best improved by steps of shrinking length.

    Groups with a Lie algebra: ``g = exp(t) s``, ``||t|| + |s| <= radius``, half of the ``t`` on the border, so that no
    distance is ever computed. Others: samples and letters. Deterministic under ``seed``. Cost: 150 elements.
    """
    group, generator = constraint.group, torch.Generator().manual_seed(seed)
    letters = [(s.element, s.length) for s in group.discrete_generators() if s.length <= radius]
    if not group.lie_dim:
        near = [g for g in group.sample(_SAMPLES, generator) if g.distance() <= radius]
        chosen = [*near, *(s for s, _ in letters)]
        return max((defect(constraint, matrices, g) for g in chosen), default=0.0)

    def value(t: torch.Tensor, s: GroupElement | None) -> float:
        g = group.exp(t)
        return defect(constraint, matrices, g if s is None else g @ s)

    starts: list[tuple[float, torch.Tensor, GroupElement | None, float]] = []
    for k, t in enumerate(uniform_in_ball(_SAMPLES, group.lie_dim, 1.0, generator)):
        s, length = (None, 0.0) if k % 2 == 0 or not letters else letters[k // 2 % len(letters)]
        reach = radius - length
        t = t * (reach / float(t.norm()) if k % 4 < 2 else reach)
        starts.append((value(t, s), t, s, reach))
    starts.sort(key=lambda start: -start[0])
    best = starts[0][0]
    for found, t, s, reach in starts[:_IMPROVED]:
        step = 0.3 * min(reach, 1.0)
        for _ in range(_STEPS):
            moved = t + step * uniform_in_ball(1, group.lie_dim, 1.0, generator)[0]
            moved = moved * min(1.0, reach / max(float(moved.norm()), 1e-300))
            tried = value(moved, s)
            if tried > found:
                found, t = tried, moved
            else:
                step *= 0.8
        best = max(best, found)
    return best
