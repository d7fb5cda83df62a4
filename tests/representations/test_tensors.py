"""Tensors, duals and linear maps: layout, exact invariants counted by characters, and what is refused."""

from __future__ import annotations

import pytest
import torch

from equidial import equivariant_filter, invariant_filter
from equidial.errors import EquidialError, GroupActionError
from equidial.groups import O2, SE2, SO, SO2, C, D, Flip, Group, Lorentz, O, Permutation, Scale, Shift, Translation
from equidial.representations import Dual, Hom, Regular, Representation, Tensor, TensorProduct, Trivial, Vector, parse


def invariants(rep: Representation, method: str | None = None) -> int:
    return invariant_filter(rep, softness=0.0, response="hard", method=method).rank


def by_characters(rep: Representation) -> float:
    """The average of the trace over the listed group."""
    return sum(float(rep.matrix(g).trace()) for g in rep.group.elements()) / (rep.group.order or 1)


@pytest.mark.parametrize(
    ("rep", "count"),
    [
        (Tensor(O(5), 2), 1),
        (Tensor(O(5), 4), 3),
        (Tensor(SO(3), 3), 1),
        (Tensor(SO(4), 4), 4),
        (Tensor(O(4), 4), 3),
        (Tensor(O2(), 2), 1),
        (Tensor(SO2(), 2), 2),
        (Tensor(O2(), 4), 3),
        (Tensor(Lorentz(proper=True), 2), 1),
        (Tensor(Lorentz(proper=True), 4), 4),
        (Tensor(Lorentz(), 4), 3),
        (Hom(Tensor(O(3), 2), Tensor(O(3), 2)), 3),
        (Hom(Tensor(Lorentz(), 1), Tensor(Lorentz(), 1)), 1),
        (Hom(Vector(SE2()), Vector(SE2())), 1),
        (Hom(Vector(Scale()), Vector(Scale())), 4),
        (Tensor(Scale(), 2), 0),
        (Tensor(Permutation(4), 4), 15),
        (Tensor(Permutation(3), 4), 14),
        (Tensor(Permutation(5), 3), 5),
    ],
    ids=repr,
)
def test_known_numbers_of_exact_invariants(rep: Representation, count: int) -> None:
    assert invariants(rep) == count
    if rep.dim <= 256:
        assert invariants(rep, "dense") == count
    assert invariant_filter(rep, softness=0.0, response="hard").spectrum.shape == (rep.dim,)


FINITE = [C(5), D(3), D(4), Flip(), Permutation(3), Permutation(4), C(3) * Flip(), D(3) * C(2), Shift(2, (2, 3))]


@pytest.mark.parametrize("group", FINITE, ids=str)
def test_commuting_maps_of_the_regular_representation(group: Group) -> None:
    """As many as the group has elements; and any representation stands in it as often as its dimension says."""
    rep = Regular(group)
    f = equivariant_filter(rep, rep, softness=0.0, response="hard")
    assert f.rank == group.order
    assert invariants(rep) == 1
    if group.natural_dim:
        into = equivariant_filter(rep, Vector(group), softness=0.0, response="hard")
        assert into.rank == group.natural_dim


@pytest.mark.parametrize("group", FINITE, ids=str)
def test_invariants_of_finite_groups_by_characters(group: Group) -> None:
    reps: list[Representation] = [Regular(group), Regular(group) @ Regular(group)] if group.order in (2, 3, 6) else []
    if group.natural_dim:
        reps += [Tensor(group, 2), Tensor(group, 3), Hom(Tensor(group, 2), Vector(group) + Trivial(group))]
    for rep in reps:
        assert invariants(rep) == round(by_characters(rep)) == pytest.approx(by_characters(rep), abs=1e-9)


def test_tensors_are_row_major() -> None:
    g = SO(3).sample(1, torch.Generator().manual_seed(0))[0]
    matrix = Vector(SO(3)).matrix(g)
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert torch.allclose(Tensor(SO(3), 2).act(g, x.flatten(1)), (matrix @ x @ matrix.mT).flatten(1))
    third = torch.randn(3, 3, 3, dtype=torch.float64)
    moved = torch.einsum("ai,bj,ck,ijk->abc", matrix, matrix, matrix, third)
    assert torch.allclose(Tensor(SO(3), 3).act(g, third.flatten()), moved.flatten())
    assert torch.equal(Tensor(SO(3), 0).act(g, x[0, 0, :1]), x[0, 0, :1])


@pytest.mark.parametrize("group", [SO(3), Lorentz(), SE2(), Permutation(3)], ids=str)
def test_linear_maps_are_moved_from_both_sides(group: Group) -> None:
    """``W -> rho_out(g) W rho_in(g)^-1``, flattened with the output axis first; invariants are equivariant maps."""
    rep_in, rep_out = Vector(group), Vector(group) + Trivial(group)
    rep = Hom(rep_in, rep_out)
    for g in group.sample(3, torch.Generator().manual_seed(0)):
        w = torch.randn(rep_out.dim, rep_in.dim, dtype=torch.float64)
        expected = rep_out.matrix(g) @ w @ torch.linalg.inv(rep_in.matrix(g))
        assert torch.allclose(rep.act(g, w.flatten()), expected.flatten(), atol=1e-10)
    # weights w of y = w^T x are kept by the transposed action: those of the dual are the vectors that rep keeps
    equivariant = equivariant_filter(rep_in, rep_out, softness=0.0, response="hard")
    weight = torch.randn(rep_out.dim, rep_in.dim, dtype=torch.float64)
    invariant = invariant_filter(rep.dual, softness=0.0, response="hard")
    assert invariant.rank == equivariant.rank
    assert torch.allclose(invariant(weight.flatten()), equivariant(weight).flatten(), atol=1e-10)


def test_products_simplify() -> None:
    group = SO(3)
    v, one = Vector(group), Trivial(group)
    assert v @ v == Tensor(group, 2)
    assert v @ (v @ v) == Tensor(group, 3) == (v @ v) @ v
    assert v @ one == v
    assert one @ one == one
    assert v.dual == v
    assert isinstance(Vector(Lorentz()).dual, Dual)
    assert Vector(Lorentz()).dual.dual == Vector(Lorentz())
    assert (Vector(Lorentz()) @ Vector(Lorentz())).dual.dual == TensorProduct((Vector(Lorentz()),) * 2)
    assert ((v + one) @ v).dim == 12
    assert (2 * Vector(Lorentz()) + Trivial(Lorentz())).dual.dim == 9


@pytest.mark.parametrize(
    "text", ["Tensor(2)", "Tensor(0)", "2*Tensor(3) + Vector", "Dual(Vector)", "Vector @ Dual(Vector)"]
)
def test_text_of_tensors(text: str) -> None:
    rep = parse(text, Lorentz())
    assert parse(rep.name, Lorentz()) == rep


@pytest.mark.parametrize(
    ("wrong", "kind", "why"),
    [
        (lambda: Regular(SO(3)), GroupActionError, "finite group"),
        (lambda: Regular(Permutation(8)), GroupActionError, "finite group"),
        (lambda: Regular(Shift(2)), GroupActionError, "finite group"),
        (lambda: Regular(SO(3) * C(2)), GroupActionError, "finite group"),
        (lambda: Tensor(SO(3), -1), EquidialError, "order >= 0"),
        (lambda: Tensor(SO(3), 1.0), EquidialError, "order >= 0"),  # type: ignore[arg-type]
        (lambda: Tensor(Translation(2), 2), GroupActionError, "group of matrices"),
        (lambda: Vector(SO(3) * C(4)), GroupActionError, "group of matrices"),
        (lambda: Vector(SO(3)) @ Vector(O(3)), EquidialError, "one group"),
        (lambda: Vector(SO(3)) + Vector(O(3)), EquidialError, "one group"),
        (lambda: Vector(SO(3)).act(O(3).identity(), torch.zeros(3)), EquidialError, "element of SO3"),
        (lambda: parse("Tensor(1,2)", SO(3)), EquidialError, "terms"),
    ],
)
def test_wrong_tensors_are_refused(wrong, kind, why: str) -> None:
    with pytest.raises(kind, match=rf"(?s)expected .*{why}.*got: .*do: "):
        wrong()
