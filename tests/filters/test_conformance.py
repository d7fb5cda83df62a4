"""The public suites on spectra and filters of every kind of group, bounded or not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from equidial.filters import Constraint, Dial, Filter, Spectrum, resolve_setting
from equidial.groups import O2, SE2, SO, SO2, C, D, Group, Lorentz, O, Permutation, Product, Scale
from equidial.representations import FactorRepresentation, Pixels, Regular, Tensor, Trivial, Vector
from equidial.testing import FilterConformance, SpectrumConformance
from tests.spaces import UNBOUNDED, full_spectrum, representations_of


def on_factors(group: Group) -> Constraint:
    assert isinstance(group, Product)
    x, y = (FactorRepresentation(group, i, Vector(f)) for i, f in enumerate(group.factors))
    return Constraint.invariants(x @ y + x)


SPACES = [
    Constraint.invariants(Pixels(C(4), (3, 3))),
    Constraint.invariants(Pixels(SO2(), (6, 6))),
    Constraint.invariants(Tensor(O2(), 2)),
    Constraint.equivariants(Vector(O2()) + Trivial(O2()), Tensor(O2(), 2)),
    Constraint.invariants(Tensor(SO(3), 2) + Vector(SO(3))),
    Constraint.equivariants(Vector(O(4)) + Trivial(O(4)), 2 * Vector(O(4))),
    Constraint.invariants(Tensor(O(4), 2)),
    Constraint.equivariants(Vector(O(3)), Tensor(O(3), 2) + Vector(O(3))),
    Constraint.equivariants(Vector(Permutation(3)), Tensor(Permutation(3), 2)),
    Constraint.invariants(Regular(D(3) * C(2))),
    on_factors(SO(3) * Permutation(3)),
    Constraint.invariants(Tensor(Lorentz(), 2)),
    Constraint.equivariants(Vector(Lorentz(proper=True)), Vector(Lorentz(proper=True)) + Trivial(Lorentz(proper=True))),
    Constraint.equivariants(Vector(SE2()), Vector(SE2()).dual + Trivial(SE2())),
    Constraint.equivariants(Vector(Scale()), Vector(Scale()) + Trivial(Scale())),
]


@lru_cache(maxsize=64)
def spectrum_of(constraint: Constraint, method: str | None = None) -> Spectrum:
    return full_spectrum(constraint, method)


class OfSpace(SpectrumConformance):
    constraint: Constraint
    method: str | None = None

    @pytest.fixture(autouse=True)
    def _given(self, constraint: Constraint) -> None:
        self.constraint = constraint

    def make(self) -> Spectrum:
        return spectrum_of(self.constraint, self.method)


@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
class TestSpectra(OfSpace):
    pass


@pytest.mark.parametrize("constraint", [SPACES[4], SPACES[6], SPACES[7]], ids=lambda c: c.name)
class TestCasimirSpectra(OfSpace):
    method = "casimir"


@pytest.mark.parametrize("response", ["nearest", "hard", "taper", "exponential"])
@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
class TestFilters(FilterConformance):
    samples = 4
    constraint: Constraint
    response: str

    @pytest.fixture(autouse=True)
    def _given(self, constraint: Constraint, response: str) -> None:
        self.constraint, self.response = constraint, response

    def make(self, **dial: Any) -> Filter:
        spectrum, of = spectrum_of(self.constraint), Dial.of(**dial)
        return Filter(spectrum, self.response, of, resolve_setting(spectrum, self.response, of))


@pytest.mark.parametrize("group", UNBOUNDED, ids=str)
def test_every_representation_of_an_unbounded_group_has_a_whole_spectrum(group: Group) -> None:
    for rep in representations_of(group, small=True):
        found = full_spectrum(Constraint.invariants(rep))
        assert sum(found.multiplicity) == rep.dim
