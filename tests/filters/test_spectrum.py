"""Spectra and subspace filters against the dense oracle."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from equidial import equivariant_filter, invariant_filter
from equidial.errors import ArgumentError
from equidial.filters import Constraint, Dial, Filter, Setting, Spectrum
from equidial.filters._spectrum import cluster
from equidial.groups import SO2, C, D, Shift
from equidial.representations import Pixels, Trivial, Vector
from tests.oracle import factors, oracle
from tests.spaces import full_spectrum, random_space, random_weight, spaces

SUBSPACE = ("hard", "taper", "exponential")


def methods_of(constraint: Constraint) -> list[Spectrum]:
    """The spectrum by every method that treats this space."""
    found = []
    for method in ("closed_form", "dense", "isotypic"):
        try:
            found.append(full_spectrum(constraint, method))
        except ArgumentError:
            continue
    return found


def at(spectrum: Spectrum, response: str, b: float) -> Filter:
    return Filter(spectrum, response, Dial("threshold", b), Setting(b))


def test_a_thousand_random_filters_equal_the_oracle(draws: int) -> None:
    """Random weights, groups, representations and dials: 1e-10 in float64, by the method chosen unasked."""
    rng = random.Random(0)
    worst, seen = 0.0, set()
    for draw in range(1000 * draws):
        constraint = random_space(rng)
        dense = oracle(constraint)
        spectrum = full_spectrum(constraint)
        seen.add(spectrum.method)
        response = rng.choice(SUBSPACE)
        softness = rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()])
        filter_ = (
            invariant_filter(constraint.rep_in, softness=softness, response=response)
            if constraint.invariant
            else equivariant_filter(constraint.rep_in, constraint.rep_out, softness=softness, response=response)
        )
        weight = random_weight(constraint, (2,), draw)
        expected = dense.filtered(weight, factors(response, dense.sigma, filter_.threshold))
        got = filter_(weight)
        worst = max(worst, float((got - expected).abs().max()))
        again = random_weight(constraint, (2,), draw + 10**6)
        assert float((got * again).sum()) == pytest.approx(float((weight * filter_(again)).sum()), abs=1e-10)
        assert torch.equal(got, filter_(weight)), "the same call twice"
    assert worst < 1e-10
    assert seen == {"closed_form", "dense"}


@given(constraint=spaces(), seed=st.integers(0, 2**31))
def test_all_methods_agree(constraint: Constraint, seed: int) -> None:
    dense = oracle(constraint)
    weight = random_weight(constraint, (2,), seed)
    found = methods_of(constraint)
    assert found
    for spectrum in found:
        assert sum(spectrum.multiplicity) == constraint.dim
        assert np.allclose(spectrum.values().numpy(), np.sort(dense.sigma), atol=1e-9)
        energies = spectrum.energies(spectrum.analyse(weight))
        assert float(energies.sum()) == pytest.approx(float(weight.square().sum()))
        components = dense.components(weight) ** 2
        for value, energy in zip(spectrum.sigma.tolist(), energies.tolist(), strict=True):
            here = np.abs(dense.sigma - value) < 1e-7
            assert energy == pytest.approx(components[:, here].sum(), abs=1e-9)
        b = float(spectrum.sigma[len(spectrum.sigma) // 2])
        for response in SUBSPACE:
            expected = dense.filtered(weight, factors(response, dense.sigma, b))
            assert torch.allclose(at(spectrum, response, b)(weight), expected, atol=1e-10)


def test_isotypic_sums_treat_what_is_too_large_for_the_others() -> None:
    grid = Pixels(D(4), (14, 14))
    constraint = Constraint.equivariants(grid, grid)
    spectrum = full_spectrum(constraint)
    assert spectrum.method == "isotypic"
    assert sum(spectrum.multiplicity) == 196**2
    weight = random_weight(constraint, ())
    strict = at(spectrum, "hard", 0.0)(weight)
    for g in D(4).elements():
        assert torch.allclose(grid.matrix(g) @ strict, strict @ grid.matrix(g), atol=1e-12)
    assert torch.allclose(at(spectrum, "hard", 0.0)(strict), strict, atol=1e-12)


def test_sigma_of_the_contract() -> None:
    f = invariant_filter(Pixels(C(4), (3, 3)), softness=0.0, response="hard")
    assert np.allclose(f.spectrum[[0, 3, 7]], [0.0, 0.9003163, 1.2732395], atol=1e-7)
    assert f.rank == 3
    f = equivariant_filter(
        Vector(SO2()) + Trivial(SO2()), Vector(SO2()) + Trivial(SO2()), threshold=1.5, response="hard"
    )
    assert sorted(f.spectrum.tolist()) == pytest.approx([0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert f.rank == 7


@pytest.mark.parametrize("response", SUBSPACE)
def test_whole_clusters_are_kept_or_dropped(response: str) -> None:
    """Two lists of the same pixels give the same filter: no eigenspace is ever parted."""
    rep = Pixels(C(4), (4, 4))
    weight = torch.randn(5, 16, dtype=torch.float64)
    for softness in (0.1, 0.3, 0.5, 0.8):
        f = invariant_filter(rep, softness=softness, response=response)
        for k in range(4):
            g = C(4).element(k)
            assert torch.allclose(f(rep.act(g, weight)), rep.act(g, f(weight)), atol=1e-12), "the result is G-stable"


@pytest.mark.parametrize("response", SUBSPACE)
@given(constraint=spaces(), softness=st.floats(0, 1))
def test_softness_is_the_smallest_threshold_with_that_mean(
    response: str, constraint: Constraint, softness: float
) -> None:
    dense = oracle(constraint)
    positive = dense.sigma[dense.sigma > 1e-9]
    f = (
        invariant_filter(constraint.rep_in, softness=softness, response=response)
        if constraint.invariant
        else equivariant_filter(constraint.rep_in, constraint.rep_out, softness=softness, response=response)
    )
    b = f.threshold
    if softness == 1:
        assert b == float("inf")
        return
    if softness == 0 or len(positive) == 0:
        assert b == 0
        return
    assert factors(response, positive, b).mean() >= softness - 1e-9
    assert factors(response, positive, b * (1 - 1e-6)).mean() < softness + 1e-9


def test_responses_have_their_declared_support() -> None:
    rep = Pixels(SO2(), (8, 8))
    f = invariant_filter(rep, threshold=6.0, response="taper")
    assert isinstance(f.decomposition, Spectrum)
    sigma = f.decomposition.sigma
    from equidial.filters._responses import subspace_factors

    kept = subspace_factors("taper", sigma, torch.tensor(6.0))
    assert torch.equal(kept[sigma <= 3], torch.ones_like(kept[sigma <= 3]))
    assert torch.equal(kept[sigma >= 6], torch.zeros_like(kept[sigma >= 6]))
    assert bool((kept.diff() <= 0).all())
    assert f.effective_threshold == 5.0
    exponential = subspace_factors("exponential", sigma, torch.tensor(2.0))
    assert torch.allclose(exponential, torch.exp(-sigma / 2))
    assert invariant_filter(rep, threshold=6.4, response="hard").effective_threshold == 6.0


def test_hard_keeps_a_cluster_whose_value_was_typed_short() -> None:
    f = invariant_filter(Pixels(C(4), (3, 3)), threshold=0.9003163161571, response="hard")
    assert f.rank == 7


def test_cluster_zeroes_rounding_and_never_parts_equals() -> None:
    sigma = torch.tensor([1e-15, 0.0, 1.0, 1.0 + 1e-12, 2.0, 1.0 - 1e-12, 1e-5], dtype=torch.float64)
    values, index = cluster(sigma, Constraint.invariants(Vector(C(4))))
    assert index.tolist() == [0, 0, 2, 2, 3, 2, 1]
    assert values[0] == 0
    assert values[2] == pytest.approx(1.0)


def test_a_space_on_which_the_group_acts_by_a_sign_is_all_symmetric() -> None:
    """Every map of the plane commutes with the half turn; rounding of its eigenvalues must not say otherwise."""
    f = equivariant_filter(Vector(C(2)), Vector(C(2)), softness=0.5, response="taper")
    assert f.spectrum.tolist() == [0.0] * 4
    weight = torch.randn(2, 2, dtype=torch.float64)
    assert torch.allclose(f(weight), weight, atol=1e-15)


def test_dense_refuses_what_does_not_fit_in_memory() -> None:
    grid = Pixels(SO2(), (14, 14))
    with pytest.raises(ArgumentError, match=r"GiB.*(?s:.*)'closed_form'"):
        full_spectrum(Constraint.equivariants(grid, grid), "dense")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: full_spectrum(Constraint.invariants(Vector(D(4))), "closed_form"),
        lambda: full_spectrum(Constraint.invariants(Vector(SO2())), "isotypic"),
        lambda: full_spectrum(Constraint.invariants(Pixels(C(8), (6, 6))), "isotypic"),
        lambda: full_spectrum(Constraint.invariants(Vector(C(4))), "svd"),
        lambda: equivariant_filter(Vector(C(4)), Vector(C(8)), softness=0.5),
        lambda: invariant_filter(Vector(C(4)), softness=0.5, response="soft"),
        lambda: invariant_filter(Vector(C(4))),
        lambda: invariant_filter(Vector(C(4)), softness=0.5, threshold=0.5),
        lambda: invariant_filter(Vector(C(4)), softness=-0.1),
        lambda: invariant_filter(Vector(C(4)), softness=1.1),
        lambda: invariant_filter(Vector(C(4)), softness=float("nan")),
        lambda: invariant_filter(Vector(C(4)), softness="0.5"),  # type: ignore[arg-type]
        lambda: invariant_filter(Pixels(C(4), (3, 3)), threshold=-1.0),
        lambda: invariant_filter(Pixels(C(4), (3, 3)), max_error=0.1, response="exponential"),
        lambda: invariant_filter(Pixels(C(4), (3, 3)), softness=0.5)(torch.randn(2, 25)),
        lambda: invariant_filter(Pixels(C(4), (3, 3)), softness=0.5)(torch.zeros(9, dtype=torch.int64)),
        lambda: equivariant_filter(Vector(C(4)), Vector(C(4)), softness=0.5)(torch.randn(2)),
        lambda: invariant_filter(Pixels(C(4), (3, 3)), threshold=0.5).bound(radius=-1.0),
        lambda: invariant_filter(Pixels(C(4), (3, 3)), threshold=0.5).bound(radius=float("nan")),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(ArgumentError, match=r"(?s)expected .*got: .*do: "):
        wrong()


def test_dtype_and_shape_are_kept() -> None:
    f = equivariant_filter(Pixels(Shift(1), (4,)), Pixels(Shift(1), (4,)), softness=0.3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        weight = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = f(weight)
        assert found.dtype == dtype
        assert found.shape == weight.shape
        exact = f.at(weight)(weight.double())
        assert float((found.double() - exact).norm() / exact.norm()) < 3 * torch.finfo(dtype).eps


class _Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.entries = max(self.entries, out.numel())
        return out


@pytest.mark.parametrize("copies", [1, 3])
def test_applying_forms_nothing_larger_than_complex_weights(copies: int) -> None:
    """``torch.matmul`` with a strided operand would copy the basis once per row: d^3 entries."""
    rep = copies * Pixels(SO2(), (5, 5))
    filter_ = equivariant_filter(rep, rep, threshold=0.5, response="hard")
    weight = torch.randn(rep.dim, rep.dim, dtype=torch.float64)
    with _Largest() as largest:
        filter_(weight)
    assert 0 < largest.entries <= 2 * weight.numel()  # real and imaginary parts
