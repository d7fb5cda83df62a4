"""The nearest certified weight: optimality, the implicit gradient, the ends and the hard case."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from equidial import equivariant_filter, invariant_filter
from equidial.errors import BudgetError, EquidialError
from equidial.filters import Constraint, Dial, Filter, Setting, apply_filter, relative_defect
from equidial.filters._nearest import GAIN_CAP, nearest_factors
from equidial.groups import SO2, C, D, Flip
from equidial.representations import Pixels, Trivial, Vector
from tests.oracle import oracle
from tests.spaces import full_spectrum, random_space, random_weight, spaces

SOFTNESS = [0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99, 1.0]


def nearest_at(constraint: Constraint, beta: float, budget: float = 0.0) -> Filter:
    return Filter(full_spectrum(constraint), "nearest", Dial("threshold", beta), Setting(beta, budget))


def filter_of(constraint: Constraint, softness: float, response: str) -> Filter:
    if constraint.invariant:
        return invariant_filter(constraint.rep_in, softness=softness, response=response)
    return equivariant_filter(constraint.rep_in, constraint.rep_out, softness=softness, response=response)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_it_agrees_with_a_generic_optimiser(draws: int) -> None:
    """Multi-start SLSQP on ``min ||w' - w||^2  s.t.  ||L w'||^2 <= beta^2 ||w'||^2`` finds nothing nearer."""
    rng = random.Random(1)
    checked = 0
    while checked < 25 * draws:
        constraint = random_space(rng, max_dim=9)
        dense = oracle(constraint)
        if dense.sigma.min() > 0 or dense.sigma.max() == 0:
            continue
        weight = random_weight(constraint, (1,), checked)
        c = dense.components(weight)[0]
        delta = math.sqrt((dense.sigma**2 * c**2).sum() / (c**2).sum())
        beta = delta * rng.uniform(0.1, 0.95)
        mine = dense.components(nearest_at(constraint, beta)(weight))[0]
        best = math.inf
        for start in range(4):
            x0 = c * (dense.sigma == 0) if start == 0 else np.random.default_rng(start).normal(size=len(c))
            found = minimize(
                lambda x, c=c: ((x - c) ** 2).sum(),
                x0,
                jac=lambda x, c=c: 2 * (x - c),
                method="SLSQP",
                options={"maxiter": 500, "ftol": 1e-15},
                constraints={
                    "type": "ineq",
                    "fun": lambda x, s=dense.sigma, b=beta: ((b**2 - s**2) * x**2).sum(),
                    "jac": lambda x, s=dense.sigma, b=beta: 2 * (b**2 - s**2) * x,
                },
            )
            if (dense.sigma**2 * found.x**2).sum() <= beta**2 * (found.x**2).sum() + 1e-9:
                best = min(best, found.fun)
        ours = ((mine - c) ** 2).sum()
        assert ours <= best + 1e-6, (constraint.name, ours, best)
        assert best <= ours + 1e-5, (constraint.name, "the optimiser is a fair judge", ours, best)
        checked += 1


@given(constraint=spaces(), seed=st.integers(0, 2**31), share=st.floats(0.05, 0.95))
def test_bound_norm_and_optimality_conditions(constraint: Constraint, seed: int, share: float) -> None:
    spectrum = full_spectrum(constraint)
    weight = random_weight(constraint, (4,), seed)
    delta = relative_defect(spectrum, weight)
    beta = share * delta
    if delta == 0 or float(spectrum.sigma[0]) > 0:
        return
    f = nearest_at(constraint, beta)
    found = f(weight)
    assert f.defect(found) == pytest.approx(beta, rel=1e-9)
    assert f.defect(found) <= beta * (1 + 1e-13)
    assert found.norm() <= weight.norm() * (1 + 1e-12)
    assert torch.allclose(f(found), found, atol=1e-11), "a projection"
    if f.is_nearest(weight):
        # W - W' = mu (Q - beta^2) W' (stationarity), so the residual is orthogonal to W'
        assert float(((weight - found) * found).sum()) == pytest.approx(0.0, abs=1e-8 * float(weight.norm()) ** 2)


def test_it_beats_every_subspace_response_at_equal_bound(draws: int) -> None:
    rng = random.Random(2)
    compared = 0
    for draw in range(300 * draws):
        constraint = random_space(rng)
        if float(full_spectrum(constraint).sigma[0]) > 0:
            continue
        weight = random_weight(constraint, (3,), draw)
        for response in ("hard", "taper", "exponential"):
            softness = rng.random()
            other = Filter(full_spectrum(constraint), response, Dial("softness", softness), None)
            from equidial.filters import threshold_of_softness

            b = threshold_of_softness(other.decomposition, response, softness)
            rival = Filter(other.decomposition, response, Dial("threshold", b), Setting(b))(weight)
            bound = other.defect(rival)
            f = nearest_at(constraint, bound)
            if f.is_nearest(weight):
                assert distance(f(weight), weight) <= distance(rival, weight) + 1e-9
                compared += 1
    assert compared > 500


@pytest.mark.parametrize("response", ["nearest", "hard", "taper", "exponential"])
def test_defect_rises_and_distance_falls_along_the_dial(response: str, draws: int) -> None:
    rng = random.Random(3)
    for draw in range(60 * draws):
        constraint = random_space(rng)
        weight = random_weight(constraint, (3,), draw)
        spectrum = full_spectrum(constraint)
        defects, distances = [], []
        for softness in SOFTNESS:
            found = filter_of(constraint, softness, response)(weight)
            # where nothing is exactly symmetric but 0 the dial is absolute, and the relative defect says nothing
            defects.append(spectrum.defect_norm(found))
            distances.append(distance(found, weight))
        assert all(b >= a - 1e-9 for a, b in pairwise(defects)), (constraint.name, defects)
        assert all(b <= a + 1e-9 for a, b in pairwise(distances)), (constraint.name, distances)
        assert defects[0] < 1e-9
        assert distances[-1] == 0


@given(constraint=spaces(), seed=st.integers(0, 2**31))
def test_no_jump_along_the_dial(constraint: Constraint, seed: int) -> None:
    """At 41 positions no step of the result is larger than a few times the mean step."""
    weight = random_weight(constraint, (6,), seed)
    spectrum = full_spectrum(constraint)
    results = []
    for k in range(41):
        dial = Dial("softness", k / 40)
        results.append(Filter(spectrum, "nearest", dial, None)(weight))
    steps = [float((b - a).norm() / weight.norm()) for a, b in pairwise(results)]
    if sum(steps) > 0:
        assert max(steps) < 0.35, steps


@pytest.mark.parametrize(
    ("rep", "share"),
    [
        (Pixels(C(4), (3, 3)), 0.4),
        (Pixels(SO2(), (4, 4)), 0.2),
        (Pixels(D(4), (3, 3)), 0.7),
        (Pixels(Flip(), (2, 3)), 0.9),
    ],
)
def test_gradient_of_the_implicit_function(rep, share: float) -> None:
    constraint = Constraint.invariants(rep)
    weight = random_weight(constraint, (2,), 5).requires_grad_()
    f = nearest_at(constraint, share * constraint.defect(weight))
    assert torch.autograd.gradcheck(f, (weight,), eps=1e-6, atol=1e-6)


def test_gradient_through_both_sides_and_the_dial() -> None:
    constraint = Constraint.equivariants(Vector(SO2()) + Trivial(SO2()), 2 * Vector(SO2()))
    spectrum = full_spectrum(constraint)
    weight = random_weight(constraint, (), 1).requires_grad_()

    beta = torch.tensor(0.5 * constraint.defect(weight), dtype=torch.float64, requires_grad=True)
    none = torch.zeros((), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w, b: apply_filter(spectrum, "nearest", w, b, none), (weight, beta), atol=1e-6
    )
    moving = Constraint.invariants(Vector(SO2()))
    spectrum = full_spectrum(moving)
    w = random_weight(moving, (3,), 2).requires_grad_()
    budget = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, a: apply_filter(spectrum, "nearest", w, none, a), (w, budget), atol=1e-6)


def slope_of_the_theory(dense, weight: torch.Tensor, along: torch.Tensor, beta: float) -> float:
    """``<dW'/dbeta, along>`` by theory 4 (a), the root by bisection."""
    c, v, a = dense.components(weight), dense.components(along), dense.sigma**2 - beta**2
    low, high = 0.0, (1 - 1e-15) / beta**2
    for _ in range(200):
        middle = (low + high) / 2
        above = (a * (c / (1 + middle * a)) ** 2).sum() > 0
        low, high = (middle, high) if above else (low, middle)
    m = 1 + low * a
    found = c / m
    z = a * found
    slope = (2 * low * beta * (z * found / m).sum() - beta * (found**2).sum()) / (z**2 / m).sum()
    return float(((2 * low * beta * found / m - slope * z / m) * v).sum())


def test_derivative_in_the_dial_is_that_of_the_theory(draws: int) -> None:
    """Inside: the closed form. From above at 0: finite differences. Where the set holds the weight: exactly 0."""
    rng, compared = random.Random(4), 0
    none = torch.zeros((), dtype=torch.float64)
    while compared < 40 * draws:
        constraint = random_space(rng, max_dim=12)
        dense, spectrum, weight = (
            oracle(constraint),
            full_spectrum(constraint),
            random_weight(constraint, (2,), compared),
        )
        delta = constraint.defect(weight)
        if dense.sigma.min() > 0 or not 0 < delta < math.inf:
            continue
        along = torch.randn_like(weight)

        def derivative(at: float, budget: bool = False, case=(spectrum, weight, along)) -> float:
            dial = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            found = apply_filter(case[0], "nearest", case[1], *((none, dial) if budget else (dial, none)))
            return float(torch.autograd.grad((found * case[2]).sum(), dial)[0])

        def value(at: float, budget: bool = False, case=(spectrum, weight, along)) -> float:
            dial = torch.tensor(at, dtype=torch.float64)
            found = apply_filter(case[0], "nearest", case[1], *((none, dial) if budget else (dial, none)))
            return float((found * case[2]).sum())

        beta = rng.uniform(0.1, 0.9) * delta
        step = 1e-5 * beta
        slope = (value(beta + step) - value(beta - step)) / (2 * step)
        assert derivative(beta) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert derivative(beta) == pytest.approx(slope_of_the_theory(dense, weight, along, beta), rel=1e-6, abs=1e-9)
        for budget in (False, True):
            step = 1e-5 * (beta if not budget else 1.0)
            first, half = ((value(h, budget) - value(0.0, budget)) / h for h in (step, step / 2))
            assert derivative(0.0, budget) == pytest.approx(2 * half - first, rel=1e-4, abs=1e-4)
        assert derivative(1.1 * delta) == 0.0
        compared += 1


@pytest.mark.parametrize("beta_share", [0.0, 1.0, 5.0, math.inf])
def test_gradient_at_the_ends(beta_share: float) -> None:
    constraint = Constraint.invariants(Pixels(C(4), (3, 3)))
    weight = random_weight(constraint, (2,), 3).requires_grad_()
    beta = beta_share * constraint.defect(weight) * (1 + 1e-6 if beta_share == 1 else 1)
    assert torch.autograd.gradcheck(nearest_at(constraint, beta), (weight,), atol=1e-6)


def test_the_untouched_end_is_bit_for_bit() -> None:
    constraint = Constraint.invariants(Pixels(C(4), (3, 3)))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weight = torch.randn(7, 9).to(dtype)
        weight[0, 0] = -0.0
        for response in ("nearest", "hard", "taper", "exponential"):
            found = invariant_filter(constraint.rep_in, softness=1.0, response=response)(weight)
            assert torch.equal(found.view(torch.uint8), weight.view(torch.uint8))
        inside = nearest_at(constraint, 1.01 * constraint.defect(weight))(weight)
        assert torch.equal(inside.view(torch.uint8), weight.view(torch.uint8))


def test_hard_case_is_certified_and_said() -> None:
    """No component that the group keeps: scaling cannot reach the cone, noise is not blown up."""
    rep = Pixels(C(4), (3, 3))
    constraint = Constraint.invariants(rep)
    weight = random_weight(constraint, (4,), 0)
    odd = weight - invariant_filter(rep, softness=0.0, response="hard")(weight)
    noise = 1e-9 * weight
    for beta in (0.2, 0.6):
        f = nearest_at(constraint, beta)
        for candidate in (odd, odd + noise):
            found = f(candidate)
            assert constraint.defect(found) <= beta * (1 + 1e-12)
            assert float(found.norm()) <= float(candidate.norm())
            assert float(found.abs().max()) <= GAIN_CAP * float(candidate.abs().max())
            assert not f.is_nearest(candidate)
        assert f.is_nearest(weight)
    assert float(nearest_at(constraint, 0.2)(odd).norm()) < 1e-9


def test_zero_and_invariant_weights_stay() -> None:
    rep = Pixels(D(4), (3, 3))
    constraint = Constraint.invariants(rep)
    zero = torch.zeros(3, 9, dtype=torch.float64)
    still = torch.ones(3, 9, dtype=torch.float64)
    for beta in (0.0, 0.4, math.inf):
        assert torch.equal(nearest_at(constraint, beta)(zero), zero)
        assert torch.allclose(nearest_at(constraint, beta)(still), still, atol=1e-14)
    assert torch.equal(invariant_filter(rep, softness=0.5)(zero), zero)


def test_spaces_without_invariants() -> None:
    """Relative budgets below the smallest sigma hold 0 alone: a threshold raises, softness is absolute."""
    rep = 3 * Vector(SO2())
    weight = torch.randn(6, dtype=torch.float64)
    with pytest.raises(BudgetError, match="threshold >= 1") as caught:
        invariant_filter(rep, threshold=0.4)
    assert caught.value.smallest == pytest.approx(1.0)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(BudgetError) as caught:
        invariant_filter(rep, max_error=0.4)
    assert caught.value.smallest == pytest.approx(math.pi) or caught.value.smallest == pytest.approx(2.0)
    assert torch.equal(invariant_filter(rep, threshold=1.2)(weight), weight)
    assert torch.equal(invariant_filter(rep, softness=0.0)(weight), torch.zeros(6, dtype=torch.float64))
    assert torch.allclose(invariant_filter(rep, softness=0.25)(weight), 0.25 * weight)
    mixed = Constraint.equivariants(Vector(SO2()), Pixels(SO2(), (2, 2)) + Trivial(SO2()))
    assert float(full_spectrum(mixed).sigma[0]) == 0
    absolute = invariant_filter(rep, softness=0.5).at(weight)
    with pytest.raises(EquidialError, match="absolute"):
        absolute.bound()


def test_the_dial_of_a_filter_that_depends_on_the_weight() -> None:
    rep = Pixels(C(4), (3, 3))
    f = invariant_filter(rep, softness=0.3)
    weight = torch.randn(4, 9, dtype=torch.float64)
    for question in (lambda: f.threshold, lambda: f.rank, lambda: f.bound(), lambda: f.effective_threshold):
        with pytest.raises(EquidialError, match=r"f\.at\(weight\)"):
            question()
    fixed = f.at(weight)
    assert fixed.threshold == pytest.approx(0.3 * f.defect(weight))
    assert fixed.bound() == pytest.approx(math.pi * fixed.threshold)
    assert fixed.bound(math.pi / 6) == pytest.approx(math.pi / 6 * fixed.threshold)
    assert f.bound(weight=f(weight)) <= fixed.bound() * (1 + 1e-12)
    assert fixed.at(2 * weight) is fixed


@pytest.mark.parametrize(("beta", "budget"), [(0.0, 0.0), (0.2, 0.0), (0.5, 0.0), (5.0, 0.0), (1e-9, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("kept", [0.0, 1e-14, 1.0])
def test_a_dial_that_is_not_trained_gives_the_same_factors(beta: float, budget: float, kept: float) -> None:
    """What numpy solves beside what autograd follows: factors, root, first and second derivative."""
    sigma = torch.tensor([0.0, 0.4, 0.9, 1.3], dtype=torch.float64)
    found = []
    for trained in (False, True):
        energy = torch.tensor([kept, 0.5, 0.2, 0.01], dtype=torch.float64, requires_grad=True)
        dial = [torch.tensor(v, dtype=torch.float64, requires_grad=trained) for v in (beta, budget)]
        factors, root = nearest_factors(sigma, energy, *dial)
        first = second = torch.zeros(4, dtype=torch.float64)
        if factors.requires_grad:
            (first,) = torch.autograd.grad(factors.square().sum(), energy, create_graph=True)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.square().sum(), energy)
        found.append((factors, root, first, second))
    for fixed, trained in zip(*found, strict=True):
        torch.testing.assert_close(fixed, trained, rtol=1e-12, atol=1e-12)


def test_solver_on_wild_energies() -> None:
    """Energies over six orders of magnitude and many clusters: the bound is met to rounding."""
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros((), dtype=torch.float64)
    for _ in range(2000):
        k = int(torch.randint(2, 14, (), generator=generator))
        sigma = torch.rand(k, generator=generator, dtype=torch.float64).sort().values
        sigma = (sigma - sigma[0]) * 10 ** float(2 * torch.rand((), generator=generator) - 1)
        energy = torch.rand(k, generator=generator, dtype=torch.float64) ** 4
        energy = energy * 10 ** (-6 * torch.rand(k, generator=generator, dtype=torch.float64))
        delta = ((sigma**2 * energy).sum() / energy.sum()).sqrt()
        beta = delta * torch.rand((), generator=generator, dtype=torch.float64) ** 2
        found, root = nearest_factors(sigma, energy, beta, none)
        kept = energy * found**2
        assert float((sigma**2 * kept).sum().sqrt()) <= float(beta * kept.sum().sqrt()) * (1 + 1e-13)
        if float(found.max()) < GAIN_CAP:
            assert float((sigma**2 * kept).sum().sqrt()) == pytest.approx(float(beta * kept.sum().sqrt()), rel=1e-9)
        assert float(root) >= 0
