"""Bounds from the generators alone, for groups that can be neither listed nor followed along one curve.

    ||W rho_X(g) - rho_Y(g) W||  <=  phi(r) c,     c = max( max over unit t of ||sum_i t_i L_i W||,  max_s ||L_s W|| )

for every element that a word of length ``r`` writes (Duhamel for its exponentials, telescoping for its letters,
theory 4). The first maximum is the root of the largest eigenvalue of the Gram matrix ``<L_i W, L_j W>``.
"""

from __future__ import annotations

import math

import torch

from equidial.certificates._curve import curve_supremum, has_curve
from equidial.certificates._rounding import action_error, application_error, gamma, up
from equidial.filters import Constraint, Spectrum, growth_factor, trivial_bound
from equidial.groups import GroupElement


def generator_bound(
    constraint: Constraint, matrices: torch.Tensor, radius: float, spectrum: Spectrum | None = None
) -> float:
    """An upper bound of ``sup E`` over elements within ``radius``, rounding included; ``matrices`` float64.

    With a ``spectrum`` the weight may be split into a nearly symmetric part ``V`` and a rest, whose bound is the
    trivial one: ``bound(V) + trivial ||W - V||`` holds for any ``V``; the ``V`` below the best cut of the spectrum is
    tried. Cost: one application of each generator, twice with a spectrum.
    """
    whole = _bound(constraint, matrices, radius)
    low = None if spectrum is None else low_part(constraint, matrices, radius, spectrum)
    if low is None:
        return whole
    # the subtraction rounds each entry once
    rest = up(float((matrices - low).norm()), gamma(matrices.numel() + 3))
    return min(whole, up(_bound(constraint, low, radius) + trivial_bound(constraint, radius) * rest))


def _bound(constraint: Constraint, matrices: torch.Tensor, radius: float) -> float:
    if any(s.on_invariants for s in constraint.group.discrete_generators()):
        # g = exp(t) s with the one letter s: no claim about its conjugates is needed
        return _connected_then_letter(constraint, matrices, radius)
    norm = float(matrices.norm())
    defects = [_lie_defect(constraint, matrices, norm)]
    for s in constraint.group.discrete_generators():
        letters = (s.element,) if constraint.is_orthogonal else (s.element, s.element.inverse())
        defects += [element_bound(constraint, matrices, g) / s.length for g in letters]
    # a direction that the action misses is assumed to be moved at its worst, whatever the element
    missed = [
        letter.length * up(float(constraint.apply(letter, matrices).norm()), gamma(matrices.numel() + 4))
        for letter in constraint.letters
        if letter.is_residual
    ]
    return up(growth_factor(constraint, radius) * max(defects) + sum(missed))


def element_bound(constraint: Constraint, matrices: torch.Tensor, g: GroupElement) -> float:
    """``||W rho_X(g) - rho_Y(g) W||`` of one element, rounded up."""
    found = up(float(constraint.difference(g, matrices).norm()), gamma(matrices.numel() + 4))
    return found + 2 * action_error(constraint, float(matrices.norm()), g)


def _lie_defect(constraint: Constraint, matrices: torch.Tensor, norm: float) -> float:
    """``max over unit t of ||sum_i t_i L_i W||``."""
    images = [constraint.apply(letter, matrices).flatten() for letter in constraint.letters if letter.is_lie]
    if not images:
        return 0.0
    rows = torch.stack(images)
    gram = rows @ rows.mT
    top = float(torch.linalg.eigvalsh(gram)[-1]) if len(rows) > 1 else float(gram)
    # each entry of the Gram matrix is a sum of products, and its eigenvalues err by its norm
    top += (gamma(rows.shape[1] + 2) + gamma(8 * len(rows) ** 2)) * float(gram.trace())
    return up(math.sqrt(max(top, 0.0))) + application_error(constraint, norm)


def _connected_then_letter(constraint: Constraint, matrices: torch.Tensor, radius: float) -> float:
    connected = constraint.connected
    curve = has_curve(connected)

    def of_connected(radius: float) -> float:
        return curve_supremum(connected, matrices, 0, radius).absolute if curve else _bound(connected, matrices, radius)

    reach = constraint.group.connected.radius
    absolute = of_connected(min(radius, reach))
    for s in constraint.group.discrete_generators():
        if radius < s.length:
            continue
        if curve:
            turned = constraint.transform(s.element, matrices)
            error = action_error(constraint, float(matrices.norm()))
            found = curve_supremum(connected, matrices, -reach, reach, turned).absolute + error
        else:
            found = of_connected(reach) + element_bound(constraint, matrices, s.element)
        absolute = max(absolute, found)
    return up(absolute)


def low_part(constraint: Constraint, matrices: torch.Tensor, radius: float, spectrum: Spectrum) -> torch.Tensor | None:
    """The components of ``W`` below the cut that promises the smallest bound; ``None`` where no cut does."""
    weight = constraint.from_matrices(matrices)
    coefficients = spectrum.analyse(weight)
    energy = spectrum.energies(coefficients)
    sigma = spectrum.sigma
    slopes = growth_factor(constraint, radius) * (sigma.square() * energy).cumsum(0).sqrt()
    rests = trivial_bound(constraint, radius) * (energy.sum() - energy.cumsum(0)).clamp(min=0).sqrt()
    best = int((slopes + rests).argmin())
    if best == len(sigma) - 1:
        return None
    kept = (torch.arange(len(sigma)) <= best).to(energy.dtype)
    return constraint.as_matrices(spectrum.synthesise(coefficients, kept))
