"""The representation suite catches broken representations, each with the test that speaks of what is broken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from equidial.groups import SE2, SO, SO2, C, D, Group, GroupElement, Lorentz, O, Scale
from equidial.representations import Eigenbasis, FunctionMap, LinearMap, Pixels, Representation, Vector
from equidial.representations import ResidualGenerator as Residual
from equidial.representations._maps import DenseMap
from equidial.testing import RepresentationConformance, failures


@dataclass(frozen=True, repr=False)
class Copy(Representation):
    """Acts as ``inner``; each broken class below changes one thing."""

    inner: Representation

    @property
    def group(self) -> Group:
        return self.inner.group

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def is_orthogonal(self) -> bool:
        return self.inner.is_orthogonal

    @property
    def rounding(self) -> float:
        return self.inner.rounding

    def generators(self) -> tuple[LinearMap, ...]:
        return self.inner.generators()

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        return self.inner.discrete_generators()

    def map_of(self, g: GroupElement) -> LinearMap:
        return self.inner.map_of(g)

    @property
    def connected(self) -> Representation:
        return self if self.group.connected == self.group else type(self)(self.inner.connected)


class Reversed(Copy):
    def map_of(self, g: GroupElement) -> LinearMap:
        return self.inner.map_of(g.inverse())


class Shifted(Copy):
    def map_of(self, g: GroupElement) -> LinearMap:
        return DenseMap(self.inner.matrix(g) + 1e-6)


class NotOrthogonal(Copy):
    @property
    def is_orthogonal(self) -> bool:
        return True


class NearlySkew(Copy):
    def generators(self) -> tuple[LinearMap, ...]:
        return tuple(DenseMap(a.to_dense() + 1e-13 * torch.eye(a.dim)) for a in super().generators())


class WrongSign(Copy):
    def generators(self) -> tuple[LinearMap, ...]:
        return tuple(DenseMap(-a.to_dense()) for a in super().generators())


class OneGenerator(Copy):
    def generators(self) -> tuple[LinearMap, ...]:
        return super().generators()[:1]


class WrongLetter(Copy):
    def discrete_generators(self) -> tuple[LinearMap, ...]:
        return tuple(s.T for s in super().discrete_generators())


class NoLetters(Copy):
    def discrete_generators(self) -> tuple[LinearMap, ...]:
        return ()


class WrongTranspose(Copy):
    def generators(self) -> tuple[LinearMap, ...]:
        return tuple(FunctionMap(a.dim, a.on_last_axis, a.on_last_axis, 2.0) for a in super().generators())


class SmallNorm(Copy):
    def generators(self) -> tuple[LinearMap, ...]:
        return tuple(FunctionMap(a.dim, a.on_last_axis, a.T.on_last_axis, 0.9) for a in super().generators())


class WrongCharacter(Copy):
    def character(self, g: GroupElement) -> float:
        return super().character(g) + 1e-6


class WrongOrders(Copy):
    def tensor_orders(self) -> dict[int, int]:
        return {2: 1}


class NoGrowth(Copy):
    @property
    def growth(self) -> float:
        return 0.5


class SelfDual(Copy):
    @property
    def dual(self) -> Representation:
        return self


class WrongEigenvalues(Copy):
    def eigenbasis(self) -> Eigenbasis:
        found = self.inner.eigenbasis()
        assert found is not None
        return Eigenbasis(found.blocks, -found.values)


class NotUnitary(Copy):
    def eigenbasis(self) -> Eigenbasis:
        found = self.inner.eigenbasis()
        assert found is not None
        return Eigenbasis(((1, 2 * found.to_dense()),), found.values)


class NoError(Copy):
    def eigenbasis(self) -> Eigenbasis:
        found = self.inner.eigenbasis()
        assert found is not None
        return Eigenbasis(((1, found.to_dense() * (1 + 2e-11)),), found.values)

    def eigenbasis_error(self) -> tuple[float, float]:
        return 0.0, 0.0


class NoPermutation(Copy):
    @property
    def is_permutation(self) -> bool:
        return True


class AnySize(Copy):
    def act(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix(g).to(x.dtype).mT if x.ndim and x.shape[-1] == self.dim else x


class Doubles(Copy):
    def act(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        return super().act(g, x.double())


class AnyGroup(Copy):
    def _check_element(self, g: GroupElement) -> None:
        return

    def map_of(self, g: GroupElement) -> LinearMap:
        return self.inner.map_of(g if g.group == self.group else self.group.identity())


class WrongResidual(Copy):
    def residual_generators(self) -> tuple[Residual, ...]:
        return (Residual("turn", math.pi, DenseMap(torch.diag(torch.tensor([1.0, -1.0])))),)


class WrongPart(Copy):
    @property
    def connected(self) -> Representation:
        return 2 * self.inner.connected


class Identity(Copy):
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Rounds(Copy):
    def map_of(self, g: GroupElement) -> LinearMap:
        return DenseMap(self.inner.matrix(g) * (1 + 1e-12))


class Products(Copy):
    def __matmul__(self, other: Representation) -> Representation:
        return other.__matmul__(self) if type(other) is not type(self) else self.inner + other.inner


BROKEN: list[tuple[Representation, str]] = [
    (Reversed(Vector(SO(3))), "test_homomorphism"),
    (Shifted(Vector(C(5))), "test_homomorphism"),
    (NotOrthogonal(Vector(SE2())), "test_orthogonality"),
    (NearlySkew(Vector(SO(3))), "test_orthogonality"),
    (Rounds(Vector(SO(3))), "test_orthogonality"),
    (WrongSign(Vector(SO2())), "test_generators"),
    (WrongSign(Vector(SO(3))), "test_brackets"),
    (OneGenerator(Vector(SO(3))), "test_generators"),
    (WrongLetter(Vector(C(5))), "test_letters"),
    (NoLetters(Vector(C(5))), "test_letters"),
    (WrongTranspose(Vector(SO2())), "test_linear_maps"),
    (SmallNorm(Vector(SO2())), "test_linear_maps"),
    (WrongCharacter(Vector(SO2())), "test_trace_is_the_character"),
    (WrongOrders(Vector(SO2())), "test_trace_is_the_character"),
    (NoGrowth(Vector(Scale())), "test_growth"),
    (SelfDual(Vector(Lorentz())), "test_dual"),
    (WrongEigenvalues(Vector(SO2())), "test_eigenbasis"),
    (NotUnitary(Vector(SO2())), "test_eigenbasis"),
    (NoError(Vector(SO2())), "test_eigenbasis"),
    (NoPermutation(Vector(C(5))), "test_permutations_are_exact"),
    (AnySize(Vector(C(5))), "test_act"),
    (Doubles(Vector(C(5))), "test_act"),
    (AnyGroup(Vector(C(5))), "test_act"),
    (WrongResidual(Vector(SO2())), "test_residual_generators"),
    (WrongPart(Vector(O(4))), "test_connected"),
    (Products(Vector(SO(3))), "test_sums_and_products"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN, ids=[f"{type(b).__name__}-{t}" for b, t in BROKEN])
def test_a_broken_representation_is_caught(broken: Representation, test: str) -> None:
    class Suite(RepresentationConformance):
        def make(self) -> Representation:
            return broken

    assert test in failures(Suite)


def test_values_and_names() -> None:
    class Suite(RepresentationConformance):
        named = True

        def make(self) -> Representation:
            return Identity(Vector(C(4)))

    assert "differ" in failures(Suite)["test_values_compare"]

    class Named(Suite):
        def make(self) -> Representation:
            return Copy(Vector(C(4)))

    assert "parse" in failures(Named)["test_values_compare"]


@pytest.mark.parametrize("inner", [Vector(SO(3)), Vector(D(4)), Pixels(C(4), (3, 3)), Vector(Lorentz()), Vector(O(4))])
def test_the_copy_itself_passes(inner: Representation) -> None:
    class Suite(RepresentationConformance):
        def make(self) -> Representation:
            return Copy(inner)

    assert failures(Suite) == {}


def test_every_check_has_failed_once() -> None:
    tests = {name for name in dir(RepresentationConformance) if name.startswith("test_")}
    assert {test for _, test in BROKEN} | {"test_values_compare"} == tests
