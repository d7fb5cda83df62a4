"""Group laws, lengths against breadth-first search, conjugation, names and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equidial.errors import EquidialError
from equidial.groups import SO, SO2, C, D, Flip, GeneratedGroup, Group, PlanarGroup, Shift, as_group, by_name
from equidial.testing import GroupConformance
from equidial.testing._suite import difference
from tests.spaces import GROUPS, PLANAR, UNBOUNDED


@pytest.mark.parametrize("group", [*GROUPS, *UNBOUNDED], ids=str)
class TestGroups(GroupConformance):
    """The laws of the public suite, for every group of the library."""

    group: Group

    @pytest.fixture(autouse=True)
    def _given(self, group: Group) -> None:
        self.group = group
        self.named = not isinstance(group, GeneratedGroup)
        self.has_words = self.named or bool(group.lie_dim)

    def make(self) -> Group:
        return self.group


@pytest.mark.parametrize("group", [g for g in GROUPS if g.is_finite or g.lie_dim == 1], ids=str)
@given(seed=st.integers(0, 2**31))
def test_laws_over_many_draws(group: Group, seed: int) -> None:
    """Elements whose coordinates are exact keep the laws exactly; angles to rounding."""
    a, b, c = group.sample(3, torch.Generator().manual_seed(seed))
    for left, right in (((a @ b) @ c, a @ (b @ c)), (a @ a.inverse(), group.identity())):
        if group.lie_dim:
            assert difference(group, left.value, right.value) < 1e-12
        else:
            assert left == right
    assert (a @ b).distance() <= a.distance() + b.distance() + 1e-12
    assert a.inverse().distance() == pytest.approx(a.distance())
    assert a.distance() <= group.radius + 1e-12


def test_lengths_of_the_contract() -> None:
    assert [s.length for s in C(4).discrete_generators()] == [math.pi / 2]
    assert {s.length for s in D(4).discrete_generators()} == {math.pi / 2, math.pi}
    assert len(D(4).discrete_generators()) == 5
    assert [s.length for s in Flip().discrete_generators()] == [math.pi]
    assert [s.length for s in Shift(2).discrete_generators()] == [1.0, 1.0]
    assert SO(2).radius == math.pi
    assert Shift(2, (14, 9)).radius == 7 + 4
    assert math.isinf(Shift(2).radius)


def test_rotations_are_counterclockwise_and_mirrors_left_right() -> None:
    x, y = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(C(4).planar_matrix(C(4).element(1)) @ x, y)
    assert torch.allclose(SO2().planar_matrix(SO2().exp(math.pi / 2)) @ x, y)
    assert torch.equal(Flip().planar_matrix(Flip().element(1)) @ x, -x)
    assert torch.equal(Flip("vertical").planar_matrix(Flip("vertical").element(1)) @ y, -y)


@pytest.mark.parametrize("group", PLANAR, ids=str)
def test_planar_matrices_are_a_representation(group: PlanarGroup) -> None:
    for g in group.sample(6, torch.Generator().manual_seed(1)):
        for h in group.sample(6, torch.Generator().manual_seed(2)):
            assert torch.allclose(
                group.planar_matrix(g) @ group.planar_matrix(h), group.planar_matrix(g @ h), atol=1e-14
            )


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("C4", C(4)),
        ("c(12)", C(12)),
        ("D4", D(4)),
        ("SO2", SO2()),
        ("SO(2)", SO2()),
        ("so2", SO2()),
        ("Flip", Flip()),
        ("FlipUD", Flip("vertical")),
        ("T1", Shift(1)),
        ("T2", Shift(2)),
        ("T3", Shift(3)),
        ("T2[4x6]", Shift(2, (4, 6))),
    ],
)
def test_names(name: str, group: Group) -> None:
    assert by_name(name) == group
    assert by_name(group.name) == group
    assert as_group(group) is group


@pytest.mark.parametrize("name", ["", "C", "C0", "Q8", "S O x", "D-1", "SO2x", "T4", "rotation", "C4.5"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(EquidialError, match=r"C<n> and D<n>.*SO2.*Flip"):
        by_name(name)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: C(0),
        lambda: C(2.0),  # type: ignore[arg-type]
        lambda: C(True),
        lambda: D(-1),
        lambda: Flip("diagonal"),  # type: ignore[arg-type]
        lambda: SO(1),
        lambda: Shift(4),
        lambda: Shift(2, (3,)),
        lambda: Shift(2, (3, 0)),
        lambda: C(4).exp(0.1),
        lambda: SO2().elements(),
        lambda: SO2().exp([0.1, 0.2]),
        lambda: Shift(2).elements(),
        lambda: Shift(2).element((1,)),
        lambda: C(4).identity() @ C(5).identity(),
        lambda: C(4).sample(-1),
        lambda: C(4).common_quotient(C(8)),
    ],
)
def test_wrong_use_is_refused_with_what_to_do(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: ") as caught:
        wrong()
    assert isinstance(caught.value, ValueError)


def test_sampling_is_haar() -> None:
    counts = torch.zeros(4)
    for g in C(4).sample(4000, torch.Generator().manual_seed(0)):
        counts[g.value] += 1
    assert counts.min() > 900
    angles = torch.tensor([g.value for g in SO2().sample(4000, torch.Generator().manual_seed(0))])
    assert angles.min() > -math.pi
    assert angles.max() <= math.pi
    assert abs(float(angles.mean())) < 0.1
    assert C(4).sample(3, torch.Generator().manual_seed(5)) == C(4).sample(3, torch.Generator().manual_seed(5))
