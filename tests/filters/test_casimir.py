"""Known spectra on tensors: components, gradients and Gram operators against dense computations."""

from __future__ import annotations

import pytest

from equidial.filters import Constraint
from equidial.groups import O2, Group, O
from equidial.representations import Tensor
from tests.spaces import full_spectrum, random_weight


@pytest.mark.parametrize("group", [O2(), O(4)], ids=str)
def test_the_defect_under_reflections_is_float64(group: Group) -> None:
    """A single precision number on the way would leave bounds below the truth by 1e-8."""
    constraint = Constraint.invariants(Tensor(group, 2))
    spectrum = full_spectrum(constraint)
    weight = random_weight(constraint)
    energies = spectrum.energies(spectrum.analyse(weight))
    expected = float((spectrum.sigma.square() * energies).sum().sqrt())
    assert spectrum.defect_norm(weight) == pytest.approx(expected, rel=1e-14)
