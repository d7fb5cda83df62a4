"""The group suite catches broken groups: each law is broken once, and the test that speaks of it fails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from equidial.groups import SO2, C, D, DiscreteGenerator, GeneratedGroup, Group, GroupElement, Permutation, Power, Scale
from equidial.groups import SpecialOrthogonal as Rotations
from equidial.testing import GroupConformance, failures


def caught(group: Group, named: bool = False, has_words: bool = True) -> set[str]:
    class Suite(GroupConformance):
        def make(self) -> Group:
            return group

    suite = Suite()
    suite.named, suite.has_words = named, has_words
    return set(failures(suite))


@dataclass(frozen=True, repr=False)
class WrongInverse(C):
    def invert_value(self, a: int) -> int:
        return a


@dataclass(frozen=True, repr=False)
class NotAssociative(C):
    def compose_values(self, a: int, b: int) -> int:
        return (a - b) % self.n


@dataclass(frozen=True, repr=False)
class WrongMatrices(C):
    def angle_and_mirror(self, value: int) -> tuple[float, bool]:
        return 2 * math.pi * value / (self.n + 1), False


@dataclass(frozen=True, repr=False)
class OneSided(C):
    def distance_of_value(self, a: int) -> float:
        return a * 2 * math.pi / self.n


@dataclass(frozen=True, repr=False)
class FarIdentity(Permutation):
    def distance_of_value(self, a: tuple[int, ...]) -> float:
        return 1.0 + super().distance_of_value(a)


@dataclass(frozen=True, repr=False)
class Squared(SO2):
    def distance_of_value(self, a: float) -> float:
        return a * a / math.pi


@dataclass(frozen=True, repr=False)
class WrongWord(D):
    def word(self, value: tuple[int, int]) -> tuple[Power, ...]:
        return (Power(0, value[0]),) if value[0] else ()


@dataclass(frozen=True, repr=False)
class OneMirror(D):
    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        return super().discrete_generators()[:2]


@dataclass(frozen=True, repr=False)
class TwoLengths(Permutation):
    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        first, *rest = super().discrete_generators()
        return (DiscreteGenerator(first.element, 2.0), *rest)


@dataclass(frozen=True, repr=False)
class Unseeded(SO2):
    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        return super().sample(n, None)


@dataclass(frozen=True, repr=False)
class FarSamples(Scale):
    @property
    def sample_radius(self) -> float:
        return 0.1

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        return [g @ g for g in super().sample(n, generator)]


@dataclass(frozen=True, repr=False)
class Stuck(C):
    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        return [self.identity() for _ in super().sample(n, generator)]


@dataclass(frozen=True, repr=False)
class HalfSpeed(Scale):
    def exp(self, t) -> GroupElement:
        (x,) = super().exp(t).value
        return self.element((x / 2,))


@dataclass(frozen=True, repr=False)
class Bent(Scale):
    def exp(self, t) -> GroupElement:
        (x,) = super().exp(t).value
        return self.element((x * abs(x),))


@dataclass(frozen=True, repr=False)
class Scaled(Rotations):
    """One generator twice as large: brackets close, but the basis is orthonormal for no invariant inner product."""

    def natural_generators(self) -> torch.Tensor:
        out = super().natural_generators().clone()
        out[0] *= 2
        return out


@dataclass(frozen=True, repr=False)
class WrongBrackets(Rotations):
    def structure_constants(self) -> torch.Tensor:
        return -super().structure_constants()


@dataclass(frozen=True, repr=False)
class WrongSpectrum(Permutation):
    def tensor_spectrum(self, order: int) -> dict[float, int]:
        found = super().tensor_spectrum(order)
        return {q + (0.5 if q else 0.0): m for q, m in found.items()}


@dataclass(frozen=True, repr=False)
class FewEigenvalues(Permutation):
    def tensor_spectrum(self, order: int) -> dict[float, int]:
        return {0.0: 1}


@dataclass(frozen=True, repr=False)
class Doubled(C):
    def elements(self) -> list[GroupElement]:
        return super().elements() * 2


@dataclass(frozen=True, repr=False)
class IdentityLast(C):
    def elements(self) -> list[GroupElement]:
        return super().elements()[::-1]


@dataclass(frozen=True, repr=False)
class WrongName(C):
    @property
    def name(self) -> str:
        return f"C{self.n + 1}"


@dataclass(frozen=True, repr=False)
class WrongProjector(C):
    def isotypic_components(self):
        first, *rest = super().isotypic_components()
        return (first, *(type(p)(p.label, p.coefficients, 2 * p.sigma) for p in rest))


@dataclass(frozen=True, repr=False)
class WrongPart(Permutation):
    @property
    def connected(self) -> Group:
        return D(3)


class Identity(C):
    """Compares as an object, not as a value."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class NewEachTime(GroupConformance):
    def make(self) -> Group:
        return Identity(4)


@pytest.mark.parametrize(
    ("broken", "tests"),
    [
        (WrongInverse(5), {"test_group_laws"}),
        (NotAssociative(5), {"test_group_laws", "test_natural_matrices_are_a_representation"}),
        (WrongMatrices(5), {"test_natural_matrices_are_a_representation"}),
        (OneSided(5), {"test_distances", "test_distance_is_the_shortest_word"}),
        (FarIdentity(3), {"test_distances"}),
        (Squared(), {"test_distances"}),
        (WrongWord(4), {"test_words_rebuild_elements"}),
        (OneMirror(4), {"test_letters_are_closed_under_conjugation", "test_distance_is_the_shortest_word"}),
        (TwoLengths(3), {"test_letters_are_closed_under_conjugation"}),
        (Unseeded(), {"test_samples"}),
        (FarSamples(), {"test_samples"}),
        (Stuck(5), {"test_samples"}),
        (HalfSpeed(), {"test_exponentials"}),
        (Bent(), {"test_exponentials"}),
        (Scaled(3), {"test_structure_constants"}),
        (WrongBrackets(3), {"test_structure_constants"}),
        (WrongSpectrum(3), {"test_tensor_spectrum"}),
        (FewEigenvalues(3), {"test_tensor_spectrum"}),
        (Doubled(4), {"test_elements"}),
        (IdentityLast(4), {"test_elements"}),
        (WrongName(4), {"test_name"}),
        (WrongProjector(4), {"test_isotypic_components"}),
        (WrongPart(3), {"test_connected"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Group) else "",
)
def test_a_broken_group_is_caught(broken: Group, tests: set[str]) -> None:
    assert tests <= caught(broken, named=True)


def test_a_group_that_is_no_value_is_caught() -> None:
    assert "differ" in failures(NewEachTime)["test_values_are_hashable_and_compare"]


def test_every_check_has_failed_once() -> None:
    """No test of the suite is vacuous: the list above breaks all of them."""
    marks = test_a_broken_group_is_caught.pytestmark
    broken = set().union(*(tests for _, tests in marks[0].args[1])) | {"test_values_are_hashable_and_compare"}
    assert broken == {name for name in dir(GroupConformance) if name.startswith("test_")}


def test_words_may_be_unknown_only_where_said() -> None:
    """A group of letters alone does not know how to write a product of them."""
    group = GeneratedGroup("turns", discrete=[C(4).natural_matrix(1)])
    assert caught(group, has_words=False) == set()

    class Mute(C):
        def word(self, value: int):
            return Group.word(self, value)

    assert caught(Mute(4)) == {"test_words_rebuild_elements"}
    assert caught(Mute(4), has_words=False) == {"test_words_rebuild_elements"}, "the identity is always a word"


def test_the_suite_itself_asks_for_an_object() -> None:
    found = failures(GroupConformance)
    assert all("NotImplementedError" in message for message in found.values())
    assert len(found) > 10
