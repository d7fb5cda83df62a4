"""The a posteriori certificate of one stored weight: the supremum of its defect over group elements.

    E(g) = ||W rho_X(g) - rho_Y(g) W||_F,      bound >= sup_{|g| <= radius} E(g) / ||W||_F

Computed in float64 from the stored tensor; rounding is added, never neglected (theory 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from equidial.certificates._curve import curve_supremum, has_curve
from equidial.certificates._generators import generator_bound
from equidial.certificates._hypotheses import check_hypotheses
from equidial.certificates._rounding import action_error, evaluation_error, gamma, up
from equidial.certificates._search import defect_of_element, worst_element
from equidial.errors import GroupActionError, explain
from equidial.filters import Constraint, Spectrum, resolve_radius, trivial_bound
from equidial.groups import Scale, Shift, Translation

_MAX_ELEMENTS = 4096  # a finite group with more elements is bounded, not listed


@dataclass(frozen=True)
class Supremum:
    """A certified supremum of the relative defect of one weight.

    ``kind``: ``"exact"`` (every element was tried) or ``"upper"``. ``measured``: the largest value found by
    applying elements. ``absolute``: the bound on ``E`` itself. ``elements``: the set that the bound speaks of.
    ``hypotheses``: what it rests on, each of them tried on the representation.
    """

    bound: float
    kind: str
    measured: float
    absolute: float
    radius: float
    elements: str
    hypotheses: tuple[str, ...] = ()


def certify_weight(
    constraint: Constraint,
    weight: torch.Tensor,
    radius: float | None = None,
    spectrum: Spectrum | None = None,
) -> Supremum:
    """Certify one stored weight over all group elements within ``radius`` (default: the whole group).

    Finite groups are listed: exact. One-parameter orthogonal groups, and O(2): a closed form on a grid, with the
    second-order correction between its points. Larger groups, and actions that are not orthogonal: ``phi(radius)``
    times the largest defect of a unit generator; ``spectrum``, the constraint's, makes that bound tighter where the
    weight is nearly symmetric. Cost: O(|G|) actions, O(d^3), or one application of each generator.

    Raises ``ArgumentError`` for a weight of another space or a radius that is not finite, ``GroupActionError`` for a
    representation whose elements and generators disagree. Source: theory 4.
    """
    constraint.check(weight)
    radius = resolve_radius(constraint, radius)
    stored = weight.detach().to("cpu", torch.float64)
    matrices = constraint.as_matrices(stored)
    norm = float(stored.norm())
    if norm == 0:
        return Supremum(0.0, "exact", 0.0, 0.0, radius, describe_elements(constraint, radius), ("the weight is 0",))
    for rep in {constraint.rep_in, constraint.rep_out}:
        check_hypotheses(rep)
    if _is_listed(constraint):
        measured, absolute, kind = _finite(constraint, matrices, norm, radius)
        hypotheses = ("every element was applied",)
    elif has_curve(constraint):
        measured, absolute = _one_parameter(constraint, matrices, radius)
        kind, hypotheses = "upper", ("orthogonal one-parameter group", "residue of its eigenbasis included")
    else:
        measured = worst_element(constraint, matrices, radius)
        absolute, kind = generator_bound(constraint, matrices, radius, spectrum), "upper"
        action = "orthogonal action" if constraint.is_orthogonal else "growth of the action"
        hypotheses = (action, "a word no longer than the radius reaches every element")
    bound = up(absolute / (norm * (1 - gamma(weight.numel() + 2))))
    trivial = trivial_bound(constraint, radius)
    if measured > absolute + evaluation_error(constraint, norm, radius):
        raise GroupActionError(
            explain(
                f"elements of {constraint.name} that move a weight by at most {absolute / norm:.6g}, as its generators",
                f"{measured / norm:.6g}",
                "correct the group or the representation: its elements are no words of this length",
            )
        )
    return Supremum(
        min(bound, trivial),
        kind,
        min(measured / norm, bound, trivial),
        min(absolute, up(trivial * norm)),
        radius,
        describe_elements(constraint, radius),
        (*hypotheses, "elements, letters and generators agree"),
    )


def splits_by_spectrum(constraint: Constraint) -> bool:
    """Whether :func:`certify_weight` makes use of a spectrum: neither listed nor followed along one curve."""
    return not _is_listed(constraint) and not has_curve(constraint)


def _is_listed(constraint: Constraint) -> bool:
    group = constraint.group
    return constraint.is_orthogonal and group.is_finite and (group.order or 0) <= _MAX_ELEMENTS


def describe_elements(constraint: Constraint, radius: float) -> str:
    """The set of elements that a bound speaks of, in words."""
    group = constraint.group
    if radius >= group.radius:
        return f"all of {group.name}"
    unit = "steps" if isinstance(group, Shift) else "px" if isinstance(group, Translation) else "rad"
    unit = "in log(factor)" if isinstance(group, Scale) else unit
    return f"{group.name} within {radius:.6g} {unit}"


def _finite(constraint: Constraint, matrices: torch.Tensor, norm: float, radius: float) -> tuple[float, float, str]:
    largest = 0.0
    done: set[object] = set()
    for g in constraint.group.elements():
        if g.is_identity or g.distance() > radius * (1 + 1e-12) or g.inverse().value in done:
            continue  # E(g) = E(g^-1) for orthogonal actions
        done.add(g.value)
        largest = max(largest, defect_of_element(constraint, matrices, g))
    error = action_error(constraint, norm)
    absolute = up(largest, gamma(matrices.numel() + 2)) + error
    residual = [
        float(constraint.apply(letter, matrices).norm()) * letter.length
        for letter in constraint.letters
        if letter.is_residual
    ]
    if not residual:
        return largest, absolute, "exact"
    # a letter that the action misses moves directions of its own: its worst case adds in squares
    worst = math.sqrt(sum(r * r for r in residual))
    return max(largest, *residual), up(math.hypot(absolute, worst)) + error, "upper"


def _one_parameter(constraint: Constraint, matrices: torch.Tensor, radius: float) -> tuple[float, float]:
    peak = curve_supremum(constraint, matrices, 0, radius)
    elements = [
        constraint.group.exp(peak.at),
        *(constraint.group.exp(radius * k / 7) for k in range(1, 8)),
    ]
    return max(defect_of_element(constraint, matrices, g) for g in elements), peak.absolute
