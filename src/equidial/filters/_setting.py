"""Settings: what a dial means for one weight, or for all of a space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, BudgetError, ToleranceError, explain
from equidial.filters._constraint import Constraint
from equidial.filters._dial import Dial, threshold_of_budget, threshold_of_softness
from equidial.filters._krylov import krylov_null
from equidial.filters._matrix_free import MatrixFreeSpectrum
from equidial.filters._spectrum import Spectrum


@dataclass(frozen=True)
class Setting:
    """Where a filter stands: the threshold ``b`` (or ``beta``), and for ``nearest`` the absolute budget.

    ``threshold = inf`` leaves the weight untouched. ``budget`` (on ``||L W'||_F``) is 0 except in spaces without
    invariants, where it takes the place of ``beta``.
    """

    threshold: float
    budget: float = 0.0


def relative_defect(spectrum: Spectrum | MatrixFreeSpectrum, weight: torch.Tensor) -> float:
    """``||L W||_F / ||W||_F`` in float64; 0 for the zero weight."""
    norm = float(weight.detach().to("cpu", torch.float64).norm())
    return spectrum.defect_norm(weight) / norm if norm > 0 else 0.0


def resolve_radius(constraint: Constraint, radius: float | None) -> float:
    """The radius asked for, at most the group's own; by default the group's, or its declared set's if unbounded.

    Raises ``ArgumentError`` for a radius that is no number, negative, or infinite on an unbounded group.
    """
    own = constraint.group.radius
    if radius is None:
        radius = constraint.group.sample_radius if math.isinf(own) else own
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not radius >= 0:
        raise ArgumentError(explain("a radius >= 0", repr(radius), "e.g. radius=math.pi / 6"))
    if math.isinf(min(radius, own)):
        raise ArgumentError(
            explain(
                f"a finite radius for {constraint.group.name}, which is not compact", repr(radius), "e.g. radius=1.0"
            )
        )
    return float(min(radius, own))


def nearest_setting(spectrum: Spectrum | MatrixFreeSpectrum, dial: Dial, weight: torch.Tensor) -> Setting:
    """The setting of ``nearest`` at a softness ``s``, measured on ``weight``: ``beta = s ||L W|| / ||W||``.

    In a space without invariants the relative cone is {0} below the smallest singular value; there the budget
    ``s ||L W||`` is absolute, so that the dial still runs from 0 to the untouched weight without a jump.
    """
    if dial.is_free:
        return Setting(math.inf)
    if isinstance(spectrum, MatrixFreeSpectrum):
        if _has_no_symmetric_part(spectrum, weight):
            return Setting(0.0, dial.value * spectrum.constraint.defect_norm(weight))
    elif float(spectrum.sigma[0]) > 0:
        return Setting(0.0, dial.value * spectrum.defect_norm(weight))
    return Setting(dial.value * relative_defect(spectrum, weight))


def _has_no_symmetric_part(spectrum: MatrixFreeSpectrum, weight: torch.Tensor) -> bool:
    """Whether ``P_0 W`` is next to nothing; false where conjugate gradients leave it open (tiny singular values)."""
    work = spectrum.constraint.as_matrices(weight.detach().to("cpu", torch.float64))
    try:
        kept = krylov_null(spectrum.constraint, work, spectrum.tolerance)
    except ToleranceError:
        return False
    return float(kept.norm()) <= 1e-6 * float(work.norm())


def resolve_setting(
    spectrum: Spectrum | MatrixFreeSpectrum, response: str, dial: Dial, radius: float | None = None
) -> Setting | None:
    """The setting that a dial means for every weight, or ``None`` where it depends on the weight.

    Raises ``BudgetError`` for a threshold or an error that no non-zero weight of the space reaches.
    """
    if dial.is_free:
        return Setting(math.inf)
    if dial.kind == "softness":
        if response == "nearest":
            return None
        return Setting(threshold_of_softness(spectrum, response, dial.value))
    if dial.kind == "max_error":
        bound_radius = resolve_radius(spectrum.constraint, radius)
        return Setting(threshold_of_budget(spectrum, response, dial.value, bound_radius))
    smallest = 0.0 if isinstance(spectrum, MatrixFreeSpectrum) else float(spectrum.sigma[0])
    if response == "nearest" and dial.value < smallest:
        raise BudgetError(
            explain(
                f"threshold >= {smallest:.6g}, the smallest singular value of {spectrum.constraint.name}",
                f"threshold={dial.value:g}, below which only the zero weight lies",
                f"use threshold={smallest:.6g} or more, or softness, whose budget is absolute here",
            ),
            smallest,
        )
    return Setting(dial.value)
