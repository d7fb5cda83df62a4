"""The trivial representation and the vectors of the plane."""

from __future__ import annotations

import cmath
from dataclasses import dataclass

import torch

from equidial.errors import GroupActionError, explain
from equidial.groups import SO2, C, Flip, Group, GroupElement, PlanarGroup, Shift
from equidial.representations._base import Eigenbasis, Representation
from equidial.representations._maps import DenseMap, LinearMap, identity_map, zero_map


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


@dataclass(frozen=True, repr=False)
class Vector(Representation):
    """Column vectors ``(x, y)`` of the plane, ``x`` right, ``y`` up; raises ``GroupActionError`` for shifts."""

    group: Group

    def __post_init__(self) -> None:
        if not isinstance(self.group, PlanarGroup):
            raise GroupActionError(
                explain(
                    "a group of matrices (C(n), D(n), SO(2), Flip) for the vector representation",
                    self.group.name,
                    "use Trivial or Pixels with this group",
                )
            )

    @property
    def dim(self) -> int:
        """2."""
        return 2

    @property
    def name(self) -> str:
        """``"Vector"``."""
        return "Vector"

    def generators(self) -> tuple[LinearMap, ...]:
        """``[[0, -1], [1, 0]]`` for SO(2)."""
        if self.group.lie_dim == 0:
            return ()
        return (DenseMap(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)),)

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Rotation and mirror matrices."""
        return tuple(self.map_of(s.element) for s in self.group.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """The 2 x 2 matrix of ``g``."""
        assert isinstance(self.group, PlanarGroup)
        return DenseMap(self.group.planar_matrix(g))

    @property
    def rounding(self) -> float:
        """Two roundings of cosines and sines."""
        return 4 * torch.finfo(torch.float64).eps

    def eigenbasis(self) -> Eigenbasis | None:
        """``(1, -i) / sqrt2`` and its conjugate for rotations, the axes for a mirror, none for D(n)."""
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
        return None
