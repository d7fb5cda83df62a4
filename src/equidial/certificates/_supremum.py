"""The a posteriori certificate of one stored weight: the supremum of its defect over group elements.

    E(g) = ||W rho_X(g) - rho_Y(g) W||_F,      bound >= sup_{|g| <= radius} E(g) / ||W||_F

Computed in float64 from the stored tensor; rounding is added, never neglected (theory 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from equidial.certificates._rounding import UNIT_ROUNDOFF, gamma, up
from equidial.filters import Constraint, growth_factor, resolve_radius, trivial_bound
from equidial.groups import Group, GroupElement, Shift

_MAX_ELEMENTS = 4096  # a finite group with more elements is bounded, not listed
_GRID_SLACK = 1e-3  # relative; the grid of a one-parameter group is refined down to it
_MAX_GRID = 1 << 16


@dataclass(frozen=True)
class Supremum:
    """A certified supremum of the relative defect of one weight.

    ``kind``: ``"exact"`` (every element was tried) or ``"upper"``. ``measured``: the largest value found by
    applying elements. ``absolute``: the bound on ``E`` itself. ``elements``: the set that the bound speaks of.
    """

    bound: float
    kind: str
    measured: float
    absolute: float
    radius: float
    elements: str


def certify_weight(constraint: Constraint, weight: torch.Tensor, radius: float | None = None) -> Supremum:
    """Certify one stored weight over all group elements within ``radius`` (default: the whole group).

    Finite groups are listed: exact. One-parameter orthogonal groups: a grid with the second-order correction
    ``sup E <= sqrt(max_grid E^2 + ||L W||^2 dt^2 / 4)``. Larger groups: ``radius ||L W||``; actions that are not
    orthogonal: ``phi(radius) ||L W||`` (theory 4). Raises ``ArgumentError``
    for a weight of another space or a radius that is not finite.
    """
    constraint.check(weight)
    radius = resolve_radius(constraint, radius)
    stored = weight.detach().to("cpu", torch.float64)
    matrices = constraint.as_matrices(stored)
    norm = float(stored.norm())
    if norm == 0:
        return Supremum(0.0, "exact", 0.0, 0.0, radius, _describe(constraint, radius))
    orthogonal = constraint.is_orthogonal
    if orthogonal and constraint.group.is_finite and (constraint.group.order or 0) <= _MAX_ELEMENTS:
        measured, absolute, kind = _finite(constraint, matrices, norm, radius)
    elif (
        orthogonal
        and _is_one_parameter(constraint.group)
        and constraint.rep_in.eigenbasis()
        and constraint.rep_out.eigenbasis()
    ):
        measured, absolute, kind = _one_parameter(constraint, matrices, norm, radius)
    else:
        measured, absolute, kind = _lipschitz(constraint, stored, matrices, norm, radius)
    count = weight.numel()
    bound = up(absolute / (norm * (1 - gamma(count + 2))))
    trivial = trivial_bound(constraint, radius)
    return Supremum(
        min(bound, trivial),
        kind,
        min(measured / norm, trivial),
        min(absolute, up(trivial * norm)),
        radius,
        _describe(constraint, radius),
    )


def defect_of_element(constraint: Constraint, matrices: torch.Tensor, g: GroupElement) -> float:
    """``E(g)`` by applying ``g`` to float64 matrices ``[..., d_Y, d_X]``."""
    if not constraint.is_orthogonal:
        return float(constraint.difference(g, matrices).norm())
    return float((constraint.transform(g, matrices) - matrices).norm())


def _is_one_parameter(group: Group) -> bool:
    return group.lie_dim == 1 and not group.discrete_generators()


def _describe(constraint: Constraint, radius: float) -> str:
    group = constraint.group
    if radius >= group.radius:
        return f"all of {group.name}"
    unit = "steps" if isinstance(group, Shift) else "rad"
    return f"{group.name} within {radius:.6g} {unit}"


def _action_error(constraint: Constraint, norm: float) -> float:
    """What applying one element in float64 may lose, and what its stored matrix lacks of orthogonality."""
    total = 0.0
    for rep in (constraint.rep_in, constraint.rep_out):
        if not rep.is_permutation:
            total += gamma(rep.dim + 2) * math.sqrt(rep.dim) + rep.rounding
    return total * norm


def _finite(constraint: Constraint, matrices: torch.Tensor, norm: float, radius: float) -> tuple[float, float, str]:
    largest = 0.0
    done: set[object] = set()
    for g in constraint.group.elements():
        if g.is_identity or g.distance() > radius * (1 + 1e-12) or g.inverse().value in done:
            continue  # E(g) = E(g^-1) for orthogonal actions
        done.add(g.value)
        largest = max(largest, defect_of_element(constraint, matrices, g))
    error = _action_error(constraint, norm)
    absolute = up(largest, gamma(matrices.numel() + 2)) + error
    residual = [
        float(constraint.apply(letter, matrices).norm()) * letter.length
        for letter in constraint.letters[len(constraint.group.discrete_generators()) :]
    ]
    if not residual:
        return largest, absolute, "exact"
    # a letter that the action misses moves directions of its own: its worst case adds in squares
    worst = math.sqrt(sum(r * r for r in residual))
    return max(largest, *residual), up(math.hypot(absolute, worst)) + error, "upper"


def _one_parameter(
    constraint: Constraint, matrices: torch.Tensor, norm: float, radius: float
) -> tuple[float, float, str]:
    frequency, energy, residual = _frequency_energies(constraint, matrices)
    square_l = float((frequency.square() * energy).sum())
    points = 257
    while True:
        t = torch.linspace(0, radius, points, dtype=torch.float64)
        square = (4 * torch.sin(t[:, None] * frequency / 2).square()) @ energy
        top, at = float(square.max()), int(square.argmax())
        correction = square_l * (radius / (points - 1)) ** 2 / 4
        negligible = (UNIT_ROUNDOFF * norm) ** 2  # of a symmetric weight there is only rounding left to resolve
        if correction <= max(2 * _GRID_SLACK * (top + residual), negligible) or points > _MAX_GRID:
            break
        points = 2 * points - 1
    # the letter that the action misses is assumed to act at its worst, whatever the angle
    absolute = up(math.sqrt(top + correction + 4 * residual), gamma(matrices.numel() + 8))
    for rep in (constraint.rep_in, constraint.rep_out):
        residue, loss = rep.eigenbasis_error()
        absolute += (radius * residue + 4 * loss + gamma(rep.dim + 2) * math.sqrt(rep.dim)) * norm
    elements = [
        constraint.group.exp(float(t[at])),
        *(constraint.group.exp(radius * k / 7) for k in range(1, 8)),
    ]
    measured = max(defect_of_element(constraint, matrices, g) for g in elements)
    return measured, absolute, "upper"


def _frequency_energies(constraint: Constraint, matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Distinct ``|lambda_Y - lambda_X|``, the energy of the weight at each, and the energy a residual letter moves."""
    bases = [constraint.rep_in.eigenbasis(), constraint.rep_out.eigenbasis()]
    right, left = [(b, b.tensors(matrices.device, matrices.dtype)) for b in bases if b]
    # U_Y^* W U_X, row by row: (U^* V)^T is the conjugate of conj(V)^T U
    coefficients = right[0].times(matrices.to(torch.complex128), right[1])
    coefficients = left[0].times(coefficients.mT.conj(), left[1]).conj().mT
    energy = (coefficients.real.square() + coefficients.imag.square()).reshape(-1, *coefficients.shape[-2:]).sum(0)
    on_input, on_output = (b.values[0].imag for b in bases if b)
    difference = (on_output[:, None] - on_input[None, :]).abs()
    moved = torch.zeros_like(difference, dtype=torch.bool)
    for letter in constraint.letters:
        if not letter.is_lie:
            signs = [b.residuals.get(letter.name, torch.ones(b.dim, dtype=torch.complex128)).real for b in bases if b]
            moved |= (signs[1][:, None] - signs[0][None, :]).abs() > 0
    # frequencies closer than rounding are one; the largest stands for them
    values, index = torch.unique(difference.round(decimals=9).flatten(), return_inverse=True)
    values = torch.zeros_like(values).scatter_reduce(0, index, difference.flatten(), "amax")
    energies = torch.zeros_like(values).index_add(0, index, energy.flatten())
    return values, energies, float(energy[moved].sum())


def _lipschitz(
    constraint: Constraint, stored: torch.Tensor, matrices: torch.Tensor, norm: float, radius: float
) -> tuple[float, float, str]:
    """``phi(radius) ||L W||`` (Duhamel and telescoping, theory 4), with a few elements beside it."""
    group = constraint.group
    rounding = gamma(matrices.numel() + 4)
    if any(letter.on_invariants for letter in constraint.letters):
        # g = exp(t) s with the one letter s: no claim about its conjugates is needed
        absolute = _connected_then_letter(constraint, matrices, norm, radius, rounding)
    else:
        sizes = [2 * _action_error(constraint, norm) / letter.length for letter in constraint.letters]
        defect = up(constraint.defect_norm(stored), rounding) + sum(sizes, _application_error(constraint, norm))
        absolute = up(growth_factor(constraint, radius) * defect)
    generator = torch.Generator().manual_seed(0)
    elements = [g for g in group.sample(64, generator) if g.distance() <= radius]
    if group.lie_dim:
        directions = torch.randn(32, group.lie_dim, generator=generator, dtype=torch.float64)
        elements += [group.exp(radius * d / d.norm()) for d in directions]
    elements += [s.element for s in constraint.group.discrete_generators() if s.length <= radius]
    measured = max((defect_of_element(constraint, matrices, g) for g in elements), default=0.0)
    return measured, max(absolute, measured), "upper"


def _application_error(constraint: Constraint, norm: float) -> float:
    """What float64 loses in ``W A_X - A_Y W`` with dense generators, relative to their norms (theory 4)."""
    total = 0.0
    for letter in constraint.letters:
        if letter.is_lie:
            size = letter.on_input.norm_bound() + letter.on_output.norm_bound()
            total += gamma(max(constraint.rep_in.dim, constraint.rep_out.dim) + 2) * size * math.sqrt(constraint.dim)
    return total * norm


def _connected_then_letter(
    constraint: Constraint, matrices: torch.Tensor, norm: float, radius: float, rounding: float
) -> float:
    error = _action_error(constraint, norm) + _application_error(constraint, norm)
    lie = math.hypot(*(float(constraint.apply(x, matrices).norm()) for x in constraint.letters if x.is_lie))
    letters = [x for x in constraint.letters if not x.is_lie]
    connected = constraint.group.connected.radius
    absolute = min(radius, connected) * (up(lie, rounding) + error)
    if radius >= min(x.length for x in letters):
        jump = max(x.length * (up(float(constraint.apply(x, matrices).norm()), rounding) + error) for x in letters)
        absolute = connected * (up(lie, rounding) + error) + jump
    return up(absolute)
