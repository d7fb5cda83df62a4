"""What a bound on the generators says about elements far away: ``r`` for orthogonal actions, ``phi(r)`` else."""

from __future__ import annotations

import math

from equidial.filters._constraint import Constraint
from equidial.representations import Representation


def growth_factor(constraint: Constraint, radius: float) -> float:
    """``phi`` with ``||W rho_X(g) - rho_Y(g) W|| <= phi(r) c`` for elements within ``r`` (theory 4).

    ``c`` bounds ``||sum_i t_i L_i W||`` over unit ``t`` and ``||L_s W||`` over letters and their inverses. ``r`` if
    both actions are orthogonal; else ``(e^(m_X r) - e^(m_Y r)) / (m_X - m_Y)``, ``m`` the growth rates; its limit
    ``r e^(m r)`` where they are equal. ``phi`` is an integral along the word, and a letter adds no more than the part
    of it over its own length: exponentials and letters may follow one another in any order.
    """
    if constraint.is_orthogonal:
        return radius
    m_x, m_y = _rate(constraint.rep_in), _rate(constraint.rep_out)
    # (e^a - e^b) / (a - b) = e^b expm1(a - b) / (a - b): no cancellation
    gap = (m_x - m_y) * radius
    slope = math.expm1(gap) / gap if abs(gap) > 1e-12 else 1 + gap / 2
    return radius * math.exp(m_y * radius) * slope


def trivial_bound(constraint: Constraint, radius: float) -> float:
    """``||rho_X(g)|| + ||rho_Y(g)||`` at most: 2 for orthogonal actions, else ``e^(m_X r) + e^(m_Y r)``."""
    return math.exp(_rate(constraint.rep_in) * radius) + math.exp(_rate(constraint.rep_out) * radius)


def _rate(rep: Representation) -> float:
    """``m >= 0`` with ``||rho(g)|| <= e^(m r)`` for words of length ``r``: exponentials, letters and their inverses."""
    if rep.is_orthogonal:
        return 0.0
    letters = [(s.length, g) for s in rep.group.discrete_generators() for g in (s.element, s.element.inverse())]
    return max(rep.growth, *(math.log(max(rep.map_of(g).norm_bound(), 1.0)) / length for length, g in letters), 0.0)
