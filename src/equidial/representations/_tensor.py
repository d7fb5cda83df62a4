"""Tensor powers, tensor products, duals and spaces of linear maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups import Group, GroupElement
from equidial.representations._base import DirectSum, Representation, ResidualGenerator
from equidial.representations._derived import DerivedRepresentation
from equidial.representations._elementary import Trivial, Vector
from equidial.representations._maps import KroneckerProduct, KroneckerSum, LinearMap, PermutationMap, ScaledMap


@dataclass(frozen=True, repr=False)
class Dual(DerivedRepresentation):
    """``rho*(g) = rho(g^-1)^T``: what covectors do. Take it as ``rep.dual``, which is ``rep`` if orthogonal."""

    inner: Representation

    @property
    def group(self) -> Group:
        """The same group."""
        return self.inner.group

    @property
    def name(self) -> str:
        """``"Dual(Vector)"``."""
        return f"Dual({self.inner.name})"

    def generators(self) -> tuple[LinearMap, ...]:
        """``-A^T``."""
        return tuple(ScaledMap(a.T, -1.0) for a in self.inner.generators())

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """``rho(s^-1)^T``."""
        return tuple(self.map_of(s.element) for s in self.group.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """``rho(g^-1)^T``."""
        return self.inner.map_of(g.inverse()).T

    @property
    def effective_group(self) -> Group:
        """As the inner one."""
        return self.inner.effective_group

    @property
    def dual(self) -> Representation:
        """The inner one."""
        return self.inner

    @property
    def connected(self) -> Representation:
        """The dual of the inner one."""
        return Dual(self.inner.connected)


@dataclass(frozen=True, repr=False)
class TensorProduct(Representation):
    """``X_1 (x) .. (x) X_k``, row-major (the first factor varies slowest); build it with ``X @ Y``.

    Generators act leg by leg, so that nothing of size ``dim x dim`` is formed.
    """

    factors: tuple[Representation, ...]

    def __post_init__(self) -> None:
        for rep in self.factors[1:]:
            if rep.group != self.factors[0].group:
                raise ArgumentError(
                    explain(
                        f"representations of one group ({self.factors[0].group.name})",
                        f"one of {rep.group.name}",
                        "build both on the same group",
                    )
                )

    @property
    def group(self) -> Group:
        """The common group."""
        return self.factors[0].group

    @property
    def dim(self) -> int:
        """Product of the dimensions."""
        return math.prod(rep.dim for rep in self.factors)

    @property
    def name(self) -> str:
        """``"Vector @ Pixels(3,3)"``."""
        return " @ ".join(f"({r.name})" if isinstance(r, DirectSum) else r.name for r in self.factors)

    def generators(self) -> tuple[LinearMap, ...]:
        """``sum_i I (x) .. A_i .. (x) I``."""
        return tuple(KroneckerSum(legs) for legs in zip(*(rep.generators() for rep in self.factors), strict=True))

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """``A_1 (x) .. (x) A_k``."""
        return tuple(_product(legs) for legs in zip(*(r.discrete_generators() for r in self.factors), strict=True))

    def map_of(self, g: GroupElement) -> LinearMap:
        """``rho_1(g) (x) .. (x) rho_k(g)``; a gather where all factors permute."""
        return _product(tuple(rep.map_of(g) for rep in self.factors))

    @property
    def effective_group(self) -> Group:
        """The smallest quotient through which every factor acts."""
        group = self.factors[0].effective_group
        for rep in self.factors[1:]:
            group = group.common_quotient(rep.effective_group)
        return group

    def residual_generators(self) -> tuple[ResidualGenerator, ...]:
        """None; raises where a factor has one, since the product would hide the missing direction."""
        for rep in self.factors:
            if rep.residual_generators():
                raise ArgumentError(
                    explain(
                        "factors whose action is complete",
                        f"{rep!r} ({rep.exactness})",
                        "use a grid whose exact turn the action reaches (sides with n mod 4 != 2)",
                    )
                )
        return ()

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether every factor is."""
        return all(rep.is_orthogonal for rep in self.factors)

    @property
    def growth(self) -> float:
        """Sum of the factors'."""
        return sum(rep.growth for rep in self.factors)

    @property
    def dual(self) -> Representation:
        """Factor by factor."""
        return self if self.is_orthogonal else TensorProduct(tuple(rep.dual for rep in self.factors))

    @property
    def is_permutation(self) -> bool:
        """Whether every factor is one."""
        return all(rep.is_permutation for rep in self.factors)

    @property
    def exactness(self) -> str:
        """The weakest of the factors'."""
        notes = [rep.exactness for rep in self.factors if rep.exactness != "exact"]
        return "; ".join(dict.fromkeys(notes)) or "exact"

    @property
    def rounding(self) -> float:
        """Sum of the factors'."""
        return sum(rep.rounding for rep in self.factors)

    @property
    def constructions(self) -> frozenset[str]:
        """Those of all factors."""
        return frozenset().union(*(rep.constructions for rep in self.factors))

    @property
    def connected(self) -> Representation:
        """Factor by factor."""
        if isinstance(self, Tensor):
            return Tensor(self.group.connected, self.order)
        return TensorProduct(tuple(rep.connected for rep in self.factors))

    def tensor_orders(self) -> Mapping[int, int] | None:
        """Orders add, copies multiply."""
        total: Mapping[int, int] = {0: 1}
        for rep in self.factors:
            found = rep.tensor_orders()
            if found is None:
                return None
            following: Counter[int] = Counter()
            for a, m in total.items():
                for b, n in found.items():
                    following[a + b] += m * n
            total = following
        return dict(total)


@dataclass(frozen=True, repr=False)
class Tensor(TensorProduct):
    """Tensors ``T(order)`` of natural vectors, dimension ``n^order``, row-major; ``order = 0`` is a scalar.

    Raises ``ArgumentError`` for a negative order, ``GroupActionError`` for a group without natural matrices.
    """

    order: int

    def __init__(self, group: Group, order: int):
        if isinstance(order, bool) or not isinstance(order, int) or order < 0:
            raise ArgumentError(explain("a tensor order >= 0", repr(order), "e.g. Tensor(SO(3), 2)"))
        vector = Vector(group)
        object.__setattr__(self, "factors", (vector,) * order or (Trivial(group),))
        object.__setattr__(self, "order", order)

    @property
    def name(self) -> str:
        """``"Tensor(2)"``."""
        return f"Tensor({self.order})"


def tensor_product(left: Representation, right: Representation) -> Representation:
    """``X (x) Y`` with products flattened and scalars dropped; ``T(j) (x) T(k) = T(j + k)``."""
    factors: list[Representation] = []
    for rep in (left, right):
        factors += rep.factors if isinstance(rep, TensorProduct) else (rep,)
    if any(rep.group != left.group for rep in factors):
        return TensorProduct((left, right))  # raises
    kept = [rep for rep in factors if not isinstance(rep, Trivial)]
    if not kept:
        return Trivial(left.group)
    if all(isinstance(rep, Vector) for rep in kept):
        return kept[0] if len(kept) == 1 else Tensor(left.group, len(kept))
    return kept[0] if len(kept) == 1 else TensorProduct(tuple(kept))


def Hom(rep_in: Representation, rep_out: Representation) -> Representation:
    """Linear maps ``W`` from ``rep_in`` to ``rep_out``, moved by ``rho_out(g) W rho_in(g)^-1``.

    ``rep_out @ rep_in.dual``: ``W`` flattened row-major, output axis first. Its invariants are the equivariant maps.
    """
    return tensor_product(rep_out, rep_in.dual)


def _product(legs: tuple[LinearMap, ...]) -> LinearMap:
    if all(isinstance(leg, PermutationMap) for leg in legs):
        index = torch.zeros(1, dtype=torch.long)
        for leg in legs:
            assert isinstance(leg, PermutationMap)
            index = (index[:, None] * leg.dim + leg.index[None, :]).ravel()
        return PermutationMap(index)
    return KroneckerProduct(legs)
