"""Direct sums pair by pair: spectra, filters and gradients against the dense operator of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equidial.errors import ArgumentError
from equidial.filters import Constraint, Dial, Filter, Setting, build_spectrum
from equidial.filters._blocks import BlocksSpectrum
from equidial.groups import SO, C, Group, Lorentz, O
from equidial.representations import Pixels, Representation, Tensor, Trivial, Vector
from tests.oracle import oracle
from tests.spaces import full_spectrum, random_weight


def nested(group: Group) -> Representation:
    """Equal summands that do not stand together."""
    return 2 * (Vector(group) + Trivial(group)) + Vector(group)


SPACES = [
    Constraint.equivariants(nested(O(3)), 2 * Vector(O(3)) + Trivial(O(3))),
    Constraint.equivariants(2 * Vector(SO(3)) + Trivial(SO(3)), Tensor(SO(3), 2)),
    Constraint.equivariants(Vector(O(4)) + Trivial(O(4)), nested(O(4))),
    Constraint.equivariants(Tensor(O(4), 2) + Trivial(O(4)), Vector(O(4))),
    Constraint.equivariants(Vector(Lorentz()) + Trivial(Lorentz()), nested(Lorentz())),
    Constraint.invariants(nested(Lorentz()).dual),
    Constraint.equivariants(Pixels(C(4), (3, 3)) + Trivial(C(4)), 2 * Pixels(C(4), (2, 2))),
]


@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
def test_the_spectrum_is_that_of_the_whole(constraint: Constraint) -> None:
    spectrum = full_spectrum(constraint, "blocks")
    assert isinstance(spectrum, BlocksSpectrum)
    assert sum(spectrum.multiplicity) == constraint.dim
    assert np.allclose(spectrum.values().numpy(), np.sort(oracle(constraint).sigma), atol=1e-7)
    weight = random_weight(constraint, (3,))
    whole = full_spectrum(constraint, "dense" if constraint.group != O(4) else None)
    assert spectrum.defect_norm(weight) == pytest.approx(whole.defect_norm(weight), rel=1e-12)


@pytest.mark.parametrize("response", ["hard", "taper", "exponential", "nearest"])
@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
def test_filters_and_gradients_are_those_of_the_whole(constraint: Constraint, response: str) -> None:
    weight, direction = random_weight(constraint, (2,)), random_weight(constraint, (2,), 1)
    whole = full_spectrum(constraint, "dense")
    for share in (0.0, 0.4, 0.9):
        b = share * whole.defect_norm(weight) / float(weight.norm())
        results = []
        for spectrum in (whole, full_spectrum(constraint, "blocks")):
            w = weight.clone().requires_grad_()
            found = Filter(spectrum, response, Dial("threshold", b), Setting(b))(w)
            (gradient,) = torch.autograd.grad((found * direction).sum(), w)
            results.append((found.detach(), gradient))
        assert torch.allclose(results[0][0], results[1][0], atol=1e-10)
        assert torch.allclose(results[0][1], results[1][1], atol=1e-8)


def test_large_sums_are_taken_pair_by_pair_unasked() -> None:
    group = Lorentz()
    space = 8 * Vector(group) + 16 * Trivial(group)
    spectrum = build_spectrum(Constraint.equivariants(space, space))
    assert isinstance(spectrum, BlocksSpectrum)
    # Schur: one number per pair of vectors or scalars; the space of 4 x 4 matrices holds the identity
    assert spectrum.multiplicity[0] == 8 * 8 + 16 * 16
    assert full_spectrum(Constraint.equivariants(Vector(group), 2 * Vector(group))).method == "dense"
    lone = Tensor(O(5), 3)
    assert full_spectrum(Constraint.equivariants(lone, lone)).method == "casimir"


def test_summands_without_a_full_spectrum_are_refused() -> None:
    large = Tensor(Lorentz(), 3)
    with pytest.raises(ArgumentError, match="too large"):
        build_spectrum(Constraint.equivariants(large + Trivial(Lorentz()), large), "blocks")
