"""Representations: homomorphisms, exact permutations, generators, eigenbases, sums and their text."""

from __future__ import annotations

import math

import pytest
import torch

from equidial.errors import EquidialError, GroupActionError
from equidial.groups import O2, SO2, C, D, Flip, PlanarGroup, Shift
from equidial.representations import DirectSum, Pixels, Representation, Trivial, Vector, parse
from equidial.testing import RepresentationConformance, failures
from tests.spaces import all_representations

REPRESENTATIONS = all_representations()
IDS = [f"{rep.name}-{rep.group.name}" for rep in REPRESENTATIONS]


@pytest.mark.parametrize("rep", REPRESENTATIONS, ids=IDS)
def test_conformance(rep: Representation) -> None:
    """The laws of the public suite, for every representation of every group; one test each, for speed."""

    class Suite(RepresentationConformance):
        samples = 10

        def make(self) -> Representation:
            return rep

    assert failures(Suite) == {}


def test_commuting_generators_have_an_eigenbasis() -> None:
    """All groups of the plane but those with rotations and mirrors."""
    for rep in REPRESENTATIONS:
        group = rep.group
        mixed = isinstance(group, D | O2)
        if isinstance(group, PlanarGroup) and not mixed and not rep.residual_generators():
            assert rep.eigenbasis() is not None, rep


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7])
def test_lattice_elements_are_the_moves_of_torch(n: int) -> None:
    """Independent of our index arithmetic: rot90, flip and roll themselves."""
    x = torch.randn(2, n, n, dtype=torch.float64)
    c4, d4 = Pixels(C(4), (n, n)), Pixels(D(4), (n, n))
    for k in range(4):
        turned = torch.rot90(x, k, (-2, -1)).flatten(1)
        assert torch.equal(c4.act(C(4).element(k), x.flatten(1)), turned)
        mirrored = torch.rot90(x.flip(-1), k, (-2, -1)).flatten(1)
        assert torch.equal(d4.act(D(4).element((k, 1)), x.flatten(1)), mirrored)
    y = torch.randn(2, n, n + 2, dtype=torch.float64)
    for rep, g, moved in (
        (Pixels(C(2), (n, n + 2)), C(2).element(1), torch.rot90(y, 2, (-2, -1))),
        (Pixels(Flip(), (n, n + 2)), Flip().element(1), y.flip(-1)),
        (Pixels(Flip("vertical"), (n, n + 2)), Flip("vertical").element(1), y.flip(-2)),
        (Pixels(D(2), (n, n + 2)), D(2).element((1, 1)), y.flip(-2)),
        (Pixels(Shift(2), (n, n + 2)), Shift(2).element((1, -3)), y.roll((1, -3), (-2, -1))),
    ):
        assert torch.equal(rep.act(g, y.flatten(1)), moved.flatten(1))
    line = torch.arange(5.0)
    for rep, g in ((Pixels(C(2), (5,)), C(2).element(1)), (Pixels(Flip(), 5), Flip().element(1))):  # type: ignore[arg-type]
        assert torch.equal(rep.act(g, line), line.flip(0))
    assert torch.equal(Pixels(Flip("vertical"), (5,)).act(Flip("vertical").element(1), line), line)


def test_copies_are_outermost_and_sums_side_by_side() -> None:
    group = C(4)
    rep = 3 * Vector(group) + Trivial(group)
    assert rep.dim == 7
    x = torch.arange(7.0, dtype=torch.float64)
    moved = rep.act(group.element(1), x)
    assert torch.equal(moved, torch.tensor([-1.0, 0, -3, 2, -5, 4, 6], dtype=torch.float64))
    nested = 2 * (Vector(group) + Trivial(group))
    assert nested.name == "2*(Vector + Trivial)"
    assert torch.equal(
        nested.act(group.element(2), torch.arange(6.0, dtype=torch.float64)),
        torch.tensor([0.0, -1, 2, -3, -4, 5], dtype=torch.float64),
    )
    assert (Vector(group) + Vector(group)).dim == 4
    assert 2 * Vector(group) == 2 * Vector(C(4))
    assert hash(Pixels(group, (3, 3))) == hash(Pixels(C(4), (3, 3)))


def test_shifts_of_different_grids_share_a_quotient() -> None:
    group = Shift(2)
    rep = Pixels(group, (2, 6)) + Pixels(group, (4, 3)) + Trivial(group)
    assert rep.effective_group == Shift(2, (4, 6))


@pytest.mark.parametrize(
    ("text", "dim"),
    [("Vector", 2), ("8*Vector + 4*Trivial", 20), (" 2 * Pixels(3,3)+Trivial ", 19), ("Pixels( 4 , 4 )", 16)],
)
def test_parse(text: str, dim: int) -> None:
    rep = parse(text, C(4))
    assert rep.dim == dim
    assert parse(rep.name, C(4)) == rep


@pytest.mark.parametrize("text", ["", "Vektor", "8 Vector", "Pixels", "Vector(2)", "Vector +", "-1*Vector", "0*Vector"])
def test_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*do: "):
        parse(text, C(4))


@pytest.mark.parametrize(
    ("group", "shape", "why"),
    [
        (C(4), (3, 5), "square"),
        (D(4), (2, 3), "square"),
        (C(8), (3, 5), "square"),
        (D(3), (4, 4), "dihedral group that permutes"),
        (D(8), (6, 6), "dihedral group that permutes"),
        (SO2(), (1, 5), "two axes"),
        (C(3), (7,), "two axes"),
        (C(4), (3, 3, 3), "1-D or 2-D"),
        (Shift(2), (3,), "axes of T2"),
        (Shift(2, (4, 4)), (3, 3), "axes of T2"),
    ],
)
def test_impossible_grids_are_refused(group, shape, why) -> None:
    with pytest.raises(GroupActionError, match=why):
        Pixels(group, shape)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Pixels(C(4), (0, 3)),
        lambda: Pixels(C(4), ()),
        lambda: Pixels(C(4), (3.0, 3.0)),  # type: ignore[arg-type]
        lambda: Vector(Shift(2)),
        lambda: Vector(C(4)) + Vector(C(8)),
        lambda: 0 * Vector(C(4)),
        lambda: Vector(C(4)).act(C(8).element(1), torch.zeros(2)),
        lambda: Vector(C(4)).act(C(4).element(1), torch.zeros(3)),
        lambda: Pixels(Shift(2), (3, 3)).act(Shift(2, (4, 4)).element((1, 0)), torch.zeros(9)),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()


def test_exactness_is_said() -> None:
    assert Pixels(C(4), (6, 6)).exactness == "exact permutation of the pixels"
    assert "but for one direction" in Pixels(SO2(), (6, 6)).exactness
    assert "but for one direction" not in Pixels(SO2(), (8, 8)).exactness
    assert "kept still" in Pixels(SO2(), (8, 8)).exactness
    total = 2 * Pixels(SO2(), (6, 6)) + Trivial(SO2())
    assert isinstance(total, DirectSum)
    assert "but for one direction" in total.exactness
    assert math.isclose(total.residual_generators()[0].length, math.pi / 2)
