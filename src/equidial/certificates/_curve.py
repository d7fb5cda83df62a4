"""Suprema along one-parameter subgroups: a closed form on a grid, with a second-order correction between its points.

With the coefficients of ``W`` and of ``V`` in the joint eigenbasis and ``lambda = lambda_Y - lambda_X``

    E(t)^2 = ||W - exp(t) . V||^2 = sum |What - e^(i lambda t) Vhat|^2

(``V = W`` for the subgroup itself, ``V = s . W`` for its coset through a letter ``s``). At a maximum inside the
interval the slope is 0 and the second derivative of ``E^2`` is at most ``2 ||L W|| ||L V||``, so

    sup E^2 <= max over grid of E^2 + ||L W|| ||L V|| dt^2 / 4        (theory 4)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from equidial.certificates._rounding import UNIT_ROUNDOFF, gamma, up
from equidial.filters import Constraint, two_sided_coefficients

_GRID_SLACK = 1e-3  # relative; the grid is refined down to it
_MAX_GRID = 1 << 16


@dataclass(frozen=True)
class Peak:
    """The certified supremum of ``E`` over an interval and the grid point at which ``E`` was largest."""

    absolute: float
    at: float


def has_curve(constraint: Constraint) -> bool:
    """Whether the group of ``constraint`` is one orthogonal one-parameter group with known eigenbases."""
    group = constraint.group
    return (
        group.lie_dim == 1
        and not group.discrete_generators()
        and constraint.is_orthogonal
        and constraint.rep_in.eigenbasis() is not None
        and constraint.rep_out.eigenbasis() is not None
    )


def curve_supremum(
    constraint: Constraint, matrices: torch.Tensor, low: float, high: float, moved: torch.Tensor | None = None
) -> Peak:
    """``sup ||W - exp(t) . V||`` for ``low <= t <= high``, rounding included; ``moved``: ``V``, default ``W``.

    ``matrices``: ``[..., d_Y, d_X]`` float64. A residual letter (a direction that the circle action misses) is assumed
    to act at its worst. Cost O(d^3) once, then O(grid points times distinct frequencies).
    """
    terms = _terms(constraint, matrices, moved)
    reach = max(abs(low), abs(high))
    norm = max(float(matrices.norm()), 0.0 if moved is None else float(moved.norm()))
    negligible = (UNIT_ROUNDOFF * norm) ** 2  # of a symmetric weight there is only rounding left to resolve
    points = 257
    while True:
        t = torch.linspace(low, high, points, dtype=torch.float64)
        square = terms.at(t)
        top, index = float(square.max()), int(square.argmax())
        correction = terms.curvature * ((high - low) / (points - 1)) ** 2 / 4
        if correction <= max(2 * _GRID_SLACK * (top + terms.residual), negligible) or points > _MAX_GRID:
            break
        points = 2 * points - 1
    absolute = up(math.sqrt(max(top, 0.0) + correction + 4 * terms.residual), gamma(matrices.numel() + 8))
    for rep in (constraint.rep_in, constraint.rep_out):
        residue, loss = rep.eigenbasis_error()
        absolute += (reach * residue / (1 - loss) + 4 * loss + gamma(rep.dim + 2) * math.sqrt(rep.dim)) * norm
    return Peak(absolute + reach * terms.spread * norm, float(t[index]))


@dataclass(frozen=True)
class _Terms:
    """``E(t)^2 = base + sum 4 sin^2(lambda t / 2) even + 2 sin(lambda t) odd``: no cancellation where E is small."""

    base: float
    frequency: torch.Tensor
    even: torch.Tensor
    odd: torch.Tensor
    curvature: float
    residual: float
    spread: float

    def at(self, t: torch.Tensor) -> torch.Tensor:
        angle = t[:, None] * self.frequency
        return self.base + (4 * torch.sin(angle / 2).square()) @ self.even + (2 * torch.sin(angle)) @ self.odd


def _terms(constraint: Constraint, matrices: torch.Tensor, moved: torch.Tensor | None) -> _Terms:
    basis_in, basis_out = constraint.rep_in.eigenbasis(), constraint.rep_out.eigenbasis()
    assert basis_in is not None, "checked by has_curve"
    assert basis_out is not None, "checked by has_curve"
    bases = (basis_in, basis_out)
    flat = (-1, constraint.rep_out.dim, constraint.rep_in.dim)
    w = two_sided_coefficients(matrices, *bases).reshape(flat)
    v = w if moved is None else two_sided_coefficients(moved, *bases).reshape(flat)
    product = (w.conj() * v).sum(0)
    energy_w, energy_v = ((x.real.square() + x.imag.square()).sum(0) for x in (w, v))
    on_input, on_output = (b.values[0].imag for b in bases)
    difference = on_output[:, None] - on_input[None, :]
    touched = torch.zeros_like(difference, dtype=torch.bool)
    for letter in constraint.letters:
        if not letter.is_lie:
            signs = [b.residuals.get(letter.name, torch.ones(b.dim, dtype=torch.complex128)).real for b in bases]
            touched |= (signs[1][:, None] - signs[0][None, :]).abs() > 0
    # frequencies closer than rounding are one; what the largest of them hides is added as ``spread``
    _, index = torch.unique(difference.round(decimals=9).flatten(), return_inverse=True)
    count = int(index.max()) + 1
    top = torch.full((count,), -math.inf, dtype=torch.float64).scatter_reduce(0, index, difference.flatten(), "amax")
    low = torch.full((count,), math.inf, dtype=torch.float64).scatter_reduce(0, index, difference.flatten(), "amin")

    def grouped(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add(0, index, x.flatten())

    slopes = [float((difference.square() * energy).sum()) for energy in (energy_w, energy_v)]
    return _Terms(
        base=0.0 if moved is None else float((w - v).abs().square().sum()),
        frequency=top,
        even=grouped(product.real),
        odd=grouped(product.imag) if moved is not None else torch.zeros(count, dtype=torch.float64),
        curvature=math.sqrt(slopes[0] * slopes[1]),
        residual=max(float(energy_w[touched].sum()), float(energy_v[touched].sum())),
        spread=float((top - low).max()),
    )
