"""Representations given by matrices, factors of products: equality, and nothing lost of the inner representation."""

from __future__ import annotations

import math

import pytest
import torch

from equidial.errors import ArgumentError
from equidial.filters import Constraint
from equidial.groups import SO, SO2, C, D, Group, O, Permutation, Shift
from equidial.representations import FactorRepresentation, MatrixRepresentation, Pixels, Vector
from tests.spaces import full_spectrum


def test_matrices_compare_by_value() -> None:
    turns = SO(3).natural_generators()
    first, second = MatrixRepresentation(SO(3), turns), MatrixRepresentation(SO(3), turns.clone())
    assert first == second
    assert hash(first) == hash(second)
    assert first != MatrixRepresentation(SO(3), turns, name="Turns")
    assert first != MatrixRepresentation(SO(3), turns.flip(1).flip(2))
    assert (first + second).dim == 6


def test_a_factor_keeps_the_letters_that_its_action_misses() -> None:
    """The direction that the circle action leaves still is not symmetric, alone or inside a product."""
    inner = Pixels(SO2(), (6, 6))
    rep = FactorRepresentation(SO2() * C(2), 0, inner)
    assert rep.exactness == inner.exactness
    assert rep.constructions == inner.constructions
    alone, inside = (full_spectrum(Constraint.invariants(r)) for r in (inner, rep))
    assert inside.multiplicity[0] == alone.multiplicity[0]


def turn(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


@pytest.mark.parametrize("n", range(2, 12))
def test_an_angle_that_does_not_close_is_refused(n: int) -> None:
    with pytest.raises(ArgumentError, match="multiply as the elements"):
        MatrixRepresentation(C(n), discrete=[turn(1.4 * math.pi / n)])
    assert MatrixRepresentation(C(n), discrete=[turn(4 * math.pi / n)]).is_orthogonal


@pytest.mark.parametrize("group", [Permutation(3), Permutation(4), Permutation(5), D(2), D(5), D(6)], ids=str)
def test_one_wrong_letter_is_refused(group: Group) -> None:
    letters = [Vector(group).matrix(s.element) for s in group.discrete_generators()]
    assert MatrixRepresentation(group, discrete=letters).dim == group.natural_dim
    for k, s in enumerate(letters):
        with pytest.raises(ArgumentError, match="multiply as the elements"):
            MatrixRepresentation(group, discrete=[*letters[:k], -s, *letters[k + 1 :]])


@pytest.mark.parametrize(
    ("group", "letter"),
    [
        (O(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))),
        (O(3), 2 * torch.eye(3)),
        (O(4), -torch.eye(4)),
        (O(4), torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))),
        (Shift(1, (5,)), turn(1.0)),
    ],
    ids=str,
)
def test_a_letter_with_other_relations_is_refused(group: Group, letter: torch.Tensor) -> None:
    lie = group.natural_generators() if group.lie_dim else []
    with pytest.raises(ArgumentError, match="multiply as the elements"):
        MatrixRepresentation(group, lie, [letter])


def test_a_double_valued_representation_is_refused() -> None:
    """Spin 1/2 has the brackets of SO(3), but a full turn is -1."""
    turn_, flip = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.diag(torch.tensor([1.0, -1.0]))
    x, y = torch.kron(turn_, flip) / 2, torch.kron(torch.eye(2), turn_) / 2
    z = x @ y - y @ x
    with pytest.raises(ArgumentError, match="multiply as the elements"):
        MatrixRepresentation(SO(3), [z, -y, x])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: MatrixRepresentation(SO(3), SO(3).natural_generators()[:2]), "3 matrices of Lie generators"),
        (lambda: MatrixRepresentation(C(4)), "1 of discrete"),
        (lambda: MatrixRepresentation(O(3), [torch.zeros(3, 3)] * 3, [torch.eye(2)]), "one size"),
        (lambda: MatrixRepresentation(C(4), discrete=[torch.zeros(2, 3)]), "one size"),
        (lambda: MatrixRepresentation(C(4), discrete=[torch.full((2, 2), math.nan)]), "finite"),
        (lambda: MatrixRepresentation(SO(3), 2 * SO(3).natural_generators()), "brackets"),
        (lambda: MatrixRepresentation(C(2), discrete=[torch.tensor([[1.0, 1], [0, -1]])], orthogonal=True), "declared"),
        (lambda: MatrixRepresentation(C(4), discrete=[turn(math.pi / 2)], orthogonal=False), "declared"),
        (lambda: FactorRepresentation(SO(3) * C(4), 2, Vector(C(4))), "index"),
        (lambda: FactorRepresentation(SO(3) * C(4), 0, Vector(C(4))), "index"),
        (lambda: FactorRepresentation(SO(3), 0, Vector(SO(3))), "product group"),
    ],
)
def test_wrong_matrices_and_factors_are_refused(wrong, why: str) -> None:
    with pytest.raises(ArgumentError, match=rf"(?s)expected .*{why}.*got: .*do: "):
        wrong()


def test_the_norm_of_an_orthogonal_letter_is_one_in_any_basis() -> None:
    """A cruder bound would take the letter for one that stretches, and refuse a certificate."""
    basis, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    mirror = basis @ torch.diag(torch.tensor([1.0, 1, 1, -1], dtype=torch.float64)) @ basis.mT
    (letter,) = MatrixRepresentation(C(2), discrete=[mirror]).discrete_generators()
    assert 1 <= letter.norm_bound() < 1 + 1e-14
