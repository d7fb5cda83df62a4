"""Refinements of the bounds: each against what it refines, and against a search over elements."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch

from equidial import equivariant_filter, invariant_filter
from equidial.certificates import certify_weight, evaluation_error, splits_by_spectrum
from equidial.errors import EquidialError
from equidial.filters import Constraint, growth_factor, trivial_bound
from equidial.groups import O2, SO, SO2, C, GeneratedGroup, Lorentz, O, Permutation
from equidial.representations import MatrixRepresentation, Pixels, Tensor, Trivial, Vector
from tests.certificates.hunt import attack
from tests.spaces import full_spectrum, random_weight


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.equivariants(Tensor(SO(3), 2), Vector(SO(3))),
        Constraint.equivariants(Tensor(O(3), 2), Tensor(O(3), 2)),
        Constraint.equivariants(Vector(O(5)), 2 * Vector(O(5)) + Trivial(O(5))),
        Constraint.equivariants(Vector(Permutation(7)), Vector(Permutation(7))),
    ],
    ids=lambda c: c.name,
)
def test_the_split_by_the_spectrum_is_tight_near_symmetry(constraint: Constraint) -> None:
    """``bound(V) + 2 ||W - V||``: never above the plain bound, and within a third of what a search finds."""
    assert splits_by_spectrum(constraint)
    spectrum = full_spectrum(constraint)
    w = random_weight(constraint, (2,))
    symmetric = invariant_part(constraint, w)
    for share in (0.02, 0.3, 1.0):
        weight = symmetric + share * (w - symmetric)
        plain, split = certify_weight(constraint, weight), certify_weight(constraint, weight, None, spectrum)
        worst, _ = attack(constraint, weight, constraint.group.radius, torch.Generator().manual_seed(1))
        worst /= float(weight.norm())
        assert worst <= split.bound <= plain.bound
        assert split.bound <= 1.34 * worst
        assert split.measured >= 0.8 * worst
    assert certify_weight(constraint, symmetric, None, spectrum).bound < 1e-11, "nothing but rounding"


def invariant_part(constraint: Constraint, weight: torch.Tensor) -> torch.Tensor:
    if constraint.invariant:
        return invariant_filter(constraint.rep_in, softness=0.0)(weight)
    return equivariant_filter(constraint.rep_in, constraint.rep_out, softness=0.0)(weight)


def test_the_gram_matrix_takes_the_place_of_the_stacked_norm() -> None:
    """Between 1 / sqrt(n) and 1 of it; exact for one direction: ``W`` moved by a single generator."""
    constraint = Constraint.equivariants(Vector(SO(3)), Vector(SO(3)))
    radius = 0.2
    for seed in range(5):
        weight = random_weight(constraint, (), seed)
        stacked = radius * constraint.defect(weight)
        found = certify_weight(constraint, weight, radius).bound
        assert stacked / math.sqrt(3) <= found <= stacked * (1 - 1e-3)
    invariants = Constraint.invariants(Vector(SO(3)))
    assert certify_weight(invariants, torch.tensor([0.0, 0.0, 1.0]), 0.1).bound == pytest.approx(0.1, rel=1e-9)


def test_mirrors_of_the_plane_are_followed_along_their_coset() -> None:
    """O(2): within the grid's slack of a search over rotations and mirrors alike."""
    rng = random.Random(0)
    for rep in (Pixels(O2(), (5, 5)), Tensor(O2(), 2), Vector(O2()) + Trivial(O2())):
        constraint = Constraint.invariants(rep)
        for draw in range(4):
            weight = random_weight(constraint, (2,), draw)
            weight = weight * rng.random() + invariant_filter(rep, softness=0.0)(weight)
            norm = float(weight.norm())
            angles = torch.linspace(-math.pi, math.pi, 721, dtype=torch.float64)
            turned = [rep.group.element((float(t), f)) for t in angles for f in (0, 1)]
            worst = max(float((rep.act(g, weight) - weight).norm()) for g in turned) / norm
            found = certify_weight(constraint, weight)
            assert worst <= found.bound + evaluation_error(constraint, 1.0, math.pi)
            assert found.bound <= worst * 1.002 + 1e-11
    strict = invariant_filter(Pixels(O2(), (5, 5)), softness=0.0)(torch.randn(3, 25, dtype=torch.float64))
    assert certify_weight(Constraint.invariants(Pixels(O2(), (5, 5))), strict).bound < 1e-11


def _stretches() -> GeneratedGroup:
    """One letter that stretches: words of it grow by 1.3 a step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GeneratedGroup("stretch", torch.zeros(0, 2, 2), [torch.diag(torch.tensor([1.3, 1.0]))], lengths=[0.5])


def test_letters_that_are_not_orthogonal_grow_with_their_words() -> None:
    group = _stretches()
    rep = Vector(group)
    constraint = Constraint.equivariants(rep, rep)
    weight = torch.tensor([[0.3, 1.0], [0.2, -0.5]], dtype=torch.float64)
    (letter,) = group.discrete_generators()
    stretch = group.natural_matrix(letter.element.value)
    for steps in (1, 2, 3, 4):
        radius = steps * letter.length
        bound = certify_weight(constraint, weight, radius).bound
        power = torch.linalg.matrix_power(stretch, steps)
        for m in (power, power.inverse()):
            error = float((weight @ m - m @ weight).norm()) / float(weight.norm())
            assert error <= bound <= trivial_bound(constraint, radius)
    assert growth_factor(constraint, 1.0) > 1.0


def test_growth_of_boosts_is_that_of_one_boost() -> None:
    """A boost along any axis stretches by e^t: the joint rate is 1, from above, and not the root of 3."""
    growth = Vector(Lorentz()).growth
    assert 1.0 <= growth <= 1.01
    for seed in range(20):
        t = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        g = Lorentz().exp(t)
        assert float(torch.linalg.matrix_norm(Vector(Lorentz()).matrix(g), ord=2)) <= math.exp(growth * float(t.norm()))


def test_bounds_relative_to_the_original_weight() -> None:
    """``||L F(V)|| <= max sigma f(sigma) ||V||``: r b / e for the exponential response."""
    rep = Pixels(C(8), (5, 5))
    constraint = Constraint.invariants(rep)
    for response, factor in (("exponential", 1 / math.e), ("nearest", 1.0)):
        f = invariant_filter(rep, threshold=0.4, response=response)
        assert f.bound(0.7, relative_to="original") == pytest.approx(0.7 * 0.4 * factor)
        for seed in range(10):
            v = random_weight(constraint, (3,), seed)
            assert constraint.defect_norm(f(v)) <= f.bound(1.0, relative_to="original") * float(v.norm()) * (1 + 1e-12)
    with pytest.raises(EquidialError, match="relative_to"):
        f.bound(relative_to="image")  # pyright: ignore[reportArgumentType]
    hard = invariant_filter(rep, threshold=1.0, response="hard")
    assert hard.bound(0.5, relative_to="original") == pytest.approx(0.5 * hard.effective_threshold)


def test_matrices_that_break_the_law_a_little_widen_the_certificate() -> None:
    """What was let pass at construction is part of the rounding, so that a symmetric weight is not called exact."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    bent = turn + 1e-12 * torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    exact, off = (MatrixRepresentation(C(4), discrete=[m]) for m in (turn, bent))
    assert exact.rounding < 1e-13 < off.rounding
    identity = torch.eye(2, dtype=torch.float64)
    bounds = [certify_weight(Constraint.equivariants(r, r), identity).bound for r in (exact, off)]
    assert bounds[0] < bounds[1]


def test_so2_supremum_is_within_a_percent_of_brute_force() -> None:
    """The promise is 5 %; brute force is 20,000 angles."""
    rep = 2 * Vector(SO2()) + Pixels(SO2(), (7, 7))
    constraint = Constraint.equivariants(rep, Vector(SO2()) + Trivial(SO2()))
    for seed in range(3):
        weight = random_weight(constraint, (), seed)
        found = certify_weight(constraint, weight)
        worst = brute_force(constraint, weight)
        assert worst <= found.bound <= 1.01 * worst


def brute_force(constraint: Constraint, weight: torch.Tensor) -> float:
    """Every angle of a fine grid, by the definition and by dense matrices exponentiated once and multiplied up."""
    steps = 2_000
    small_x = constraint.rep_in.matrix(constraint.group.exp(math.pi / steps))
    small_y = constraint.rep_out.matrix(constraint.group.exp(math.pi / steps))
    on_x, on_y = torch.eye(len(small_x), dtype=torch.float64), torch.eye(len(small_y), dtype=torch.float64)
    worst = 0.0
    for _ in range(steps):
        on_x, on_y = on_x @ small_x, on_y @ small_y
        worst = max(worst, float((weight @ on_x - on_y @ weight).norm()))
    return worst / float(weight.norm())
