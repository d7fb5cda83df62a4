"""The trivial and the natural representation."""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from equidial.groups import SO2, C, Flip, Group, GroupElement, Permutation, Shift
from equidial.representations._base import Eigenbasis, Representation
from equidial.representations._maps import DenseMap, LinearMap, PermutationMap, identity_map, zero_map


@dataclass(frozen=True, repr=False)
class Trivial(Representation):
    """One number that no element changes."""

    group: Group

    @property
    def dim(self) -> int:
        """1."""
        return 1

    @property
    def name(self) -> str:
        """``"Trivial"``."""
        return "Trivial"

    def generators(self) -> tuple[LinearMap, ...]:
        """Zeros."""
        return (zero_map(1),) * self.group.lie_dim

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Ones."""
        return (identity_map(1),) * len(self.group.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """One."""
        return identity_map(1)

    @property
    def effective_group(self) -> Group:
        """For shifts, the trivial quotient."""
        return Shift(self.group.dims, (1,) * self.group.dims) if isinstance(self.group, Shift) else self.group

    def eigenbasis(self) -> Eigenbasis:
        """The number itself; eigenvalue 0 of a Lie generator, 1 of a discrete one."""
        values = [0.0] * self.group.lie_dim + [1.0] * len(self.group.discrete_generators())
        one = torch.ones(1, 1, dtype=torch.complex128)
        return Eigenbasis(((1, one),), torch.tensor(values, dtype=torch.complex128)[:, None])

    @property
    def is_permutation(self) -> bool:
        """Trivially."""
        return True

    @property
    def connected(self) -> Trivial:
        """Trivial too."""
        return Trivial(self.group.connected)

    def tensor_orders(self) -> dict[int, int]:
        """``{0: 1}``."""
        return {0: 1}


@dataclass(frozen=True, repr=False)
class Vector(Representation):
    """The natural representation: column vectors on which the group acts by its own matrices.

    Planar groups: ``(x, y)``, ``x`` right, ``y`` up. SO(n), O(n): R^n. Lorentz: ``(t, x, y, z)``. SE2: ``(x, y, 1)``.
    Scale: the plane, magnified. Permutation(n): R^n, coordinates permuted. Raises ``GroupActionError`` for a group
    without natural matrices (shifts, translations, products).
    """

    group: Group

    def __post_init__(self) -> None:
        if self.group.natural_dim is None:
            self.group.natural_generators()  # raises and says why

    @property
    def dim(self) -> int:
        """Size of the matrices."""
        return self.group.natural_dim or 0

    @property
    def name(self) -> str:
        """``"Vector"``."""
        return "Vector"

    def generators(self) -> tuple[LinearMap, ...]:
        """The Lie algebra basis of the group."""
        if self.group.lie_dim == 0:
            return ()
        return tuple(DenseMap(a) for a in self.group.natural_generators())

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """The matrices of the letters."""
        return tuple(self.map_of(s.element) for s in self.group.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """The matrix of ``g``; a gather for permutations."""
        if isinstance(self.group, Permutation):
            return PermutationMap(torch.tensor(g.inverse().value))
        return DenseMap(self.group.natural_matrix(g.value))

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether generators are skew and letters orthogonal."""
        return is_orthogonal_set(
            [a.to_dense() for a in self.generators()], [s.to_dense() for s in self.discrete_generators()]
        )

    @property
    def is_permutation(self) -> bool:
        """For Permutation(n)."""
        return isinstance(self.group, Permutation)

    @property
    def rounding(self) -> float:
        """Roundings of cosines and sines, or of the exponential; 0 for permutations."""
        return 0.0 if self.is_permutation else 4 * self.dim * torch.finfo(torch.float64).eps

    @property
    def connected(self) -> Vector:
        """The same matrices."""
        return Vector(self.group.connected)

    def tensor_orders(self) -> dict[int, int] | None:
        """``{1: 1}``."""
        return {1: 1}

    def eigenbasis(self) -> Eigenbasis | None:
        """``(1, -i) / sqrt2`` and its conjugate for rotations of the plane, the axes for a mirror, else searched."""
        turned = torch.tensor([[1, 1], [-1j, 1j]], dtype=torch.complex128) / 2**0.5
        if isinstance(self.group, Flip):
            values = torch.diagonal(self.map_of(self.group.element(1)).to_dense())[None].to(torch.complex128)
            return Eigenbasis(((1, torch.eye(2, dtype=torch.complex128)),), values)
        if isinstance(self.group, SO2):
            return Eigenbasis(((1, turned),), torch.tensor([[1j, -1j]], dtype=torch.complex128))
        if isinstance(self.group, C):
            letters = self.group.discrete_generators()
            phases = [cmath.exp(1j * s.length) for s in letters]
            values = torch.tensor([[p, p.conjugate()] for p in phases], dtype=torch.complex128)
            return Eigenbasis(((1, turned),), values.reshape(len(letters), 2))
        return super().eigenbasis()


def is_orthogonal_set(generators: Sequence[torch.Tensor], letters: Sequence[torch.Tensor]) -> bool:
    """Whether matrices of generators are skew and those of letters orthogonal, to 1e-12 of their size."""
    skew = all(float((a + a.mT).abs().max()) <= 1e-12 * max(1.0, float(a.abs().max())) for a in generators)
    return skew and all(float((s.mT @ s - torch.eye(len(s), dtype=s.dtype)).abs().max()) <= 1e-11 for s in letters)
