"""Known spectra on tensors: components, gradients and Gram operators against dense computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equidial import equivariant_filter, invariant_filter
from equidial.errors import ArgumentError
from equidial.filters import Constraint, Dial, Filter, Setting
from equidial.filters._legs import LegGram, leg_gram
from equidial.groups import O2, SE2, SO, SO2, C, D, Flip, Group, Lorentz, O, Permutation, Shift
from equidial.representations import Dual, Hom, Regular, Representation, Tensor, Trivial, Vector
from tests.oracle import factors, oracle
from tests.spaces import full_spectrum, random_weight

RESPONSES = ("hard", "taper", "exponential", "nearest")

SPACES = [
    Constraint.invariants(Tensor(SO(3), 3)),
    Constraint.invariants(Tensor(SO(4), 3)),
    Constraint.invariants(Tensor(O(3), 3)),
    Constraint.invariants(Tensor(O(4), 2)),
    Constraint.invariants(Tensor(O2(), 4)),
    Constraint.invariants(Tensor(Permutation(4), 2)),
    Constraint.invariants(2 * Vector(SO(3)) + Tensor(SO(3), 2) + Trivial(SO(3))),
    Constraint.invariants(Hom(Tensor(O(4), 1), Tensor(O(4), 1)) + 2 * Trivial(O(4))),
    Constraint.equivariants(Vector(SO(3)) + Trivial(SO(3)), Tensor(SO(3), 2)),
    Constraint.equivariants(Tensor(O(3), 2), 2 * Vector(O(3)) + Tensor(O(3), 2)),
    Constraint.equivariants(Tensor(O(4), 2), Vector(O(4)) + Trivial(O(4))),
    Constraint.equivariants(2 * Vector(Permutation(3)), Tensor(Permutation(3), 2)),
    Constraint.equivariants(Vector(SO(3)).dual @ Vector(SO(3)), Vector(SO(3))),
]


def at(constraint: Constraint, response: str, b: float, method: str | None = None) -> Filter:
    return Filter(full_spectrum(constraint, method), response, Dial("threshold", b), Setting(b))


def settings_of(constraint: Constraint, weight: torch.Tensor) -> list[float]:
    """Thresholds between the singular values, and on one of them."""
    sigma = full_spectrum(constraint, "dense").sigma
    defect = full_spectrum(constraint, "dense").defect_norm(weight) / float(weight.norm())
    return [0.0, 0.6 * defect, 0.9 * defect, float(sigma[len(sigma) // 2]), 1.4 * float(sigma[-1])]


@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
def test_known_spectra_are_those_of_the_dense_operator(constraint: Constraint) -> None:
    expected = np.sort(oracle(constraint).sigma)
    for method in ("casimir", "dense", None):
        try:
            spectrum = full_spectrum(constraint, method)
        except ArgumentError:
            assert method == "casimir", "the plane has no Casimir rule: its connected part is in closed form"
            continue
        assert sum(spectrum.multiplicity) == constraint.dim
        assert np.allclose(spectrum.values().numpy(), expected, atol=1e-7)
        assert spectrum.multiplicity[0] == int((expected < 1e-7).sum()) or spectrum.sigma[0] > 0


@pytest.mark.parametrize("constraint", SPACES, ids=lambda c: c.name)
@pytest.mark.parametrize("response", RESPONSES)
def test_casimir_and_dense_filters_agree_with_their_gradients(constraint: Constraint, response: str) -> None:
    dense = oracle(constraint)
    method = "casimir" if not isinstance(constraint.group, O2) else None
    weight = random_weight(constraint, (2,))
    direction = random_weight(constraint, (2,), 1)
    for b in settings_of(constraint, weight):
        if response == "nearest" and b < float(full_spectrum(constraint).sigma[0]):
            continue
        results = []
        for m in (method, "dense"):
            w = weight.clone().requires_grad_()
            found = at(constraint, response, b, m)(w)
            (gradient,) = torch.autograd.grad((found * direction).sum(), w)
            results.append((found.detach(), gradient))
        size = float(weight.norm())
        assert torch.allclose(results[0][0], results[1][0], atol=1e-10 * size)
        # the derivative of the nearest point divides by a curvature
        assert torch.allclose(results[0][1], results[1][1], atol=(1e-9 if response == "nearest" else 1e-10) * size)
        if response != "nearest":
            expected = dense.filtered(weight, factors(response, dense.sigma, b))
            assert torch.allclose(results[0][0], expected, atol=1e-10 * size)


@pytest.mark.parametrize("group", [O2(), O(4)], ids=str)
def test_the_defect_under_reflections_is_float64(group: Group) -> None:
    """A single precision number on the way would leave bounds below the truth by 1e-8."""
    constraint = Constraint.invariants(Tensor(group, 2))
    spectrum = full_spectrum(constraint)
    weight = random_weight(constraint)
    energies = spectrum.energies(spectrum.analyse(weight))
    expected = float((spectrum.sigma.square() * energies).sum().sqrt())
    assert spectrum.defect_norm(weight) == pytest.approx(expected, rel=1e-14)


def lorentz(order: int) -> Representation:
    return Tensor(Lorentz(), order)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.invariants(Tensor(SO(3), 4)),
        Constraint.invariants(Tensor(O(4), 3)),
        Constraint.equivariants(Tensor(SO(3), 2), Tensor(SO(3), 2)),
        Constraint.equivariants(lorentz(1), lorentz(2)),
        Constraint.equivariants(Dual(Vector(Lorentz())) @ Vector(Lorentz()), lorentz(2)),
        Constraint.invariants(Hom(lorentz(2), lorentz(1))),
        Constraint.equivariants(Tensor(SE2(), 3), Vector(SE2()).dual),
        Constraint.equivariants(Tensor(SO(3), 2) @ (Vector(SO(3)) + Trivial(SO(3))), Vector(SO(3))),
    ],
    ids=lambda c: c.name,
)
def test_the_gram_operator_by_legs_is_that_of_the_letters(constraint: Constraint) -> None:
    fast = leg_gram(constraint.rep_in, constraint.rep_out)
    assert isinstance(fast, LegGram)
    matrices = constraint.as_matrices(random_weight(constraint, (2,)))
    lie = [letter for letter in constraint.letters if letter.is_lie]
    slow = torch.stack([constraint.adjoint(x, constraint.apply(x, matrices)) for x in lie]).sum(0)
    assert torch.allclose(fast(matrices), slow, atol=1e-12 * float(slow.abs().max()))
    assert torch.allclose(fast(matrices.float()).double(), slow, atol=1e-5 * float(slow.abs().max()))
    whole = torch.stack([constraint.adjoint(x, constraint.apply(x, matrices)) for x in constraint.letters]).sum(0)
    assert torch.allclose(constraint.gram(matrices), whole, atol=1e-12 * float(whole.abs().max()))


COMPACT = [C(5), D(3), D(4), Flip(), SO2(), O2(), SO(3), SO(4), O(3), O(4), Permutation(3), Permutation(4)]
COMPACT += [C(3) * Flip(), D(3) * C(2), Shift(1, (5,))]


@pytest.mark.parametrize("group", COMPACT, ids=str)
@pytest.mark.parametrize("response", RESPONSES)
def test_soft_subspaces_of_compact_groups_are_stable(group: Group, response: str) -> None:
    """``F(g W) = g F(W)``: no dial parts an irreducible space."""
    assert group.is_stable
    reps: list[Representation] = [Regular(group)] if group.is_finite else []
    if group.natural_dim:
        reps += [Tensor(group, 2) + Vector(group), Tensor(group, 2) @ Vector(group)]
    for rep in reps:
        weight = torch.randn(2, rep.dim, dtype=torch.float64)
        for softness in (0.0, 0.3, 0.6, 0.9):
            f = invariant_filter(rep, softness=softness, response=response).at(weight)
            for g in group.sample(3, torch.Generator().manual_seed(1)):
                assert torch.allclose(f(rep.act(g, weight)), rep.act(g, f(weight)), atol=1e-10)


def test_softness_names_threshold_where_multiplicities_are_unknown() -> None:
    for response, method in (("hard", "subspace"), ("taper", "chebyshev"), ("exponential", "chebyshev")):
        with pytest.raises(ArgumentError, match=r"(?s)multiplicities are unknown.*do: pass threshold="):
            invariant_filter(Tensor(Lorentz(), 2), softness=0.5, response=response, method=method)


def test_methods_refuse_what_they_cannot_treat() -> None:
    for wrong in (
        lambda: invariant_filter(Vector(Lorentz()), softness=0.5, method="casimir"),
        lambda: invariant_filter(Regular(Permutation(3)), softness=0.5, method="casimir"),
        lambda: equivariant_filter(Vector(O(4)), Vector(O(4)), softness=0.5, method="cg"),
        lambda: invariant_filter(Tensor(O2(), 2), softness=0.5, method="cg"),
    ):
        with pytest.raises(ArgumentError, match=r"(?s)expected .*got: .*do: "):
            wrong()


def test_a_space_without_invariants_of_the_rotations_keeps_its_group() -> None:
    """O(n), n even, on vectors: nothing is kept by SO(n), and the filter still speaks of O(n)."""
    for group in (O(2), O(4)):
        f = invariant_filter(Vector(group), softness=0.5)
        assert f.constraint.group == group
        assert float(f.spectrum[0]) > 0
        weight = torch.randn(3, Vector(group).dim, dtype=torch.float64)
        assert torch.allclose(f(weight), weight / 2, atol=1e-12)
