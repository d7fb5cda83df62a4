"""What a bound on the generators says about elements far away: ``r`` for orthogonal actions, ``phi(r)`` else."""

from __future__ import annotations

import math

from equidial.errors import EquidialError, explain
from equidial.filters._constraint import Constraint


def growth_factor(constraint: Constraint, radius: float) -> float:
    """``phi`` with ``||W rho_X(g) - rho_Y(g) W|| <= phi(r) ||L W||`` for elements within ``r`` (theory 4).

    ``r`` if both actions are orthogonal; else ``(e^(m_X r) - e^(m_Y r)) / (m_X - m_Y)``, ``m`` the growth rates; its
    limit ``r e^(m r)`` where they are equal. Non-orthogonal letters raise ``EquidialError``: bound their words one by
    one.
    """
    m_x, m_y = constraint.rep_in.growth, constraint.rep_out.growth
    if constraint.is_orthogonal:
        return radius
    _refuse_letters(constraint)
    # (e^a - e^b) / (a - b) = e^b expm1(a - b) / (a - b): no cancellation
    gap = (m_x - m_y) * radius
    slope = math.expm1(gap) / gap if abs(gap) > 1e-12 else 1 + gap / 2
    return radius * math.exp(m_y * radius) * slope


def trivial_bound(constraint: Constraint, radius: float) -> float:
    """``||rho_X(g)|| + ||rho_Y(g)||`` at most: 2 for orthogonal actions, else ``e^(m_X r) + e^(m_Y r)``."""
    return math.exp(constraint.rep_in.growth * radius) + math.exp(constraint.rep_out.growth * radius)


def _refuse_letters(constraint: Constraint) -> None:
    for letter in constraint.letters:
        if not letter.is_lie and max(letter.on_input.norm_bound(), letter.on_output.norm_bound()) > 1 + 1e-6:
            raise EquidialError(
                explain(
                    "discrete generators that act orthogonally, for a bound over a radius",
                    f"{letter.name} of {constraint.name}",
                    "bound the elements one by one with rep.matrix(g)",
                )
            )
