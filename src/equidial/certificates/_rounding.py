"""Rounding: what float64 arithmetic may have lost, so that a certificate holds in exact arithmetic (theory 4)."""

from __future__ import annotations

import math

from equidial.filters import Constraint, trivial_bound
from equidial.groups import GroupElement

UNIT_ROUNDOFF = 2.0**-53


def gamma(k: int) -> float:
    """``k u / (1 - k u)``: the relative error of a sum or product of ``k`` terms (Higham, section 3.1)."""
    return k * UNIT_ROUNDOFF / (1 - k * UNIT_ROUNDOFF)


def up(x: float, relative: float = 4 * UNIT_ROUNDOFF) -> float:
    """The next float64 above ``x (1 + relative)``; 0 stays 0."""
    return 0.0 if x == 0 else math.nextafter(x * (1 + relative), math.inf)


def action_error(constraint: Constraint, norm: float, g: GroupElement | None = None) -> float:
    """What applying one element may lose, and what its stored matrix lacks of orthogonality.

    ``g``: the element, where the action is not orthogonal and the size of its matrix matters.
    """
    total = 0.0
    for rep in (constraint.rep_in, constraint.rep_out):
        if not rep.is_permutation:
            size = 1.0 if rep.is_orthogonal or g is None else rep.map_of(g).norm_bound()
            total += gamma(rep.dim + 2) * math.sqrt(rep.dim) * size + rep.rounding
    return total * norm


def evaluation_error(constraint: Constraint, norm: float, radius: float) -> float:
    """How far a float64 evaluation of ``E(g)`` may be above its exact value: the element's coordinates err as well.

    What was measured may exceed a certificate by this much and no more.
    """
    size = trivial_bound(constraint, radius) / 2
    element = 64 * UNIT_ROUNDOFF * (1 + radius) * constraint.scale
    return size**2 * (2 * action_error(constraint, norm) + element * norm) + gamma(constraint.dim + 4) * size * norm


def application_error(constraint: Constraint, norm: float) -> float:
    """What ``W A_X - A_Y W`` loses with dense Lie generators, all of them together."""
    total = 0.0
    for letter in constraint.letters:
        if letter.is_lie:
            size = letter.on_input.norm_bound() + letter.on_output.norm_bound()
            total += gamma(max(constraint.rep_in.dim, constraint.rep_out.dim) + 2) * size * math.sqrt(constraint.dim)
    return total * norm
