"""Representations: how a group acts on the last axis of a tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from equidial.errors import ArgumentError, GroupActionError, explain
from equidial.groups import Group, GroupElement
from equidial.representations._eigenbasis import EIGENBASIS_LIMIT, Eigenbasis, joint_eigenbasis
from equidial.representations._growth import joint_growth
from equidial.representations._maps import BlockDiagonalMap, LinearMap, identity_map
from equidial.representations._unitary import UnitaryMap


@dataclass(frozen=True)
class ResidualGenerator:
    """A symmetry of the space that the action misses, joined to the constraint as one more discrete letter.

    Where an exact real circle action does not exist, some directions are left still by the action and turned over
    by the true quarter (or half) turn. This letter moves them alone, so that they are never kept as symmetric.
    """

    name: str
    length: float
    map: LinearMap


class Representation(ABC):
    """A homomorphism ``rho`` from a group to invertible real matrices of size ``dim``; acts on the last axis.

    ``8 * rep`` is eight copies (copies outermost: index ``copy * dim + i``), ``rep + rep`` the direct sum.
    Immutable; two representations are equal when they act alike by construction.
    """

    group: Group

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the space."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text that :func:`equidial.representations.parse` turns back into this representation."""

    @abstractmethod
    def generators(self) -> tuple[LinearMap, ...]:
        """``d rho(A_i)`` for each Lie generator of the group, float64 linear maps."""

    @abstractmethod
    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """``rho(s)`` for each discrete generator of the group, float64 linear maps."""

    @abstractmethod
    def map_of(self, g: GroupElement) -> LinearMap:
        """``rho(g)`` as a linear map."""

    @property
    def is_orthogonal(self) -> bool:
        """Whether every element acts by an orthogonal matrix (generators skew)."""
        return True

    @property
    def growth(self) -> float:
        """``m >= 0`` with ``||exp(sum t_i A_i)|| <= e^(m ||t||)``; 0 for orthogonal actions (theory 4).

        The supremum over unit ``t`` of the symmetric part, from above (:func:`joint_growth`).
        """
        return 0.0 if self.is_orthogonal else self._found_growth

    @cached_property
    def _found_growth(self) -> float:
        return joint_growth([a.to_dense() for a in self.generators()])

    @property
    def dual(self) -> Representation:
        """``rho*(g) = rho(g^-1)^T``; the representation itself where it is orthogonal."""
        if self.is_orthogonal:
            return self
        from equidial.representations._tensor import Dual  # built on this class: known at run time only

        return Dual(self)

    @property
    def connected(self) -> Representation:
        """The same space under :attr:`Group.connected`, the connected part of the group."""
        if self.group.connected == self.group:
            return self
        raise GroupActionError(
            explain(
                f"a representation that restricts to {self.group.connected.name}",
                repr(self),
                f"build it on {self.group.connected.name}",
            )
        )

    def tensor_orders(self) -> Mapping[int, int] | None:
        """How many copies of each tensor power of the natural representation this is, ``{order: copies}``.

        ``None`` where it is no sum of tensor powers, or where duals differ. Groups know the spectra of tensor powers.
        """
        return None

    def act(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """``rho(g) x`` on the last axis of ``x`` (``[..., dim]``), in the dtype of ``x``.

        Raises ``ArgumentError`` for an element of another group or an axis of another size.
        """
        self._check_element(g)
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ArgumentError(
                explain(f"a last axis of {self.dim} ({self.name})", f"shape {tuple(x.shape)}", "reshape it")
            )
        return self.map_of(g).on_last_axis(x)

    def matrix(self, g: GroupElement) -> torch.Tensor:
        """``rho(g)`` as a dense float64 matrix ``[dim, dim]``."""
        self._check_element(g)
        return self.map_of(g).to_dense()

    def character(self, g: GroupElement) -> float:
        """``tr rho(g)``."""
        return self.map_of(g).trace()

    @property
    def effective_group(self) -> Group:
        """The group, or the finite quotient through which the action factors (cyclic shifts of a grid)."""
        return self.group

    def residual_generators(self) -> tuple[ResidualGenerator, ...]:
        """Extra letters of the constraint, see :class:`ResidualGenerator`; none by default."""
        return ()

    def eigenbasis(self) -> Eigenbasis | None:
        """A common eigenbasis of all generators, searched once up to 1024 dimensions; ``None`` where there is none."""
        return self._found_eigenbasis

    @cached_property
    def _found_eigenbasis(self) -> Eigenbasis | None:
        if self.dim > EIGENBASIS_LIMIT or self.residual_generators():
            return None
        return joint_eigenbasis([m.to_dense() for m in (*self.generators(), *self.discrete_generators())], self.dim)

    def eigenbasis_error(self) -> tuple[float, float]:
        """Bounds ``(residue, loss)`` of the rounding in :meth:`eigenbasis` for a group with one Lie generator ``A``.

        ``loss >= ||U^* U - I||`` and ``residue >= ||A U - U diag(values)|| + 2 loss max|values|`` (theory 4). Default:
        from the matrices, cost O(d^3).
        """
        basis = self.eigenbasis()
        assert basis is not None, "asked of declared eigenbases only"
        u, values = basis.to_dense(), basis.values[0]
        loss = float((u.mH @ u - torch.eye(self.dim)).norm())
        residue = float((self.generators()[0].to_dense().to(u.dtype) @ u - u * values).norm())
        return residue + 2 * loss * float(values.abs().max()), loss

    @property
    def is_permutation(self) -> bool:
        """Whether every element acts by permuting coordinates, exactly, in any dtype."""
        return False

    @property
    def exactness(self) -> str:
        """How far the action is exact, in words."""
        return "exact"

    @property
    def rounding(self) -> float:
        """Spectral distance from the stored ``rho(g)`` to an exactly orthogonal homomorphism, at most; 0 if exact."""
        return 0.0

    @property
    def constructions(self) -> frozenset[str]:
        """Names of the numbered constructions that the action relies on; saved files record them."""
        return frozenset()

    def residual_map(self, name: str) -> LinearMap:
        """The residual generator with this name, the identity where this space has none."""
        for residual in self.residual_generators():
            if residual.name == name:
                return residual.map
        return identity_map(self.dim)

    def __add__(self, other: Representation) -> DirectSum:
        if not isinstance(other, Representation):
            return NotImplemented
        return DirectSum(_terms(self) + _terms(other))

    def __matmul__(self, other: Representation) -> Representation:
        """The tensor product ``X (x) Y``, row-major: index ``i dim(Y) + j``."""
        if not isinstance(other, Representation):
            return NotImplemented
        from equidial.representations._tensor import tensor_product  # built on this class: known at run time only

        return tensor_product(self, other)

    def __rmul__(self, copies: int) -> Representation:
        if isinstance(copies, bool) or not isinstance(copies, int):
            return NotImplemented
        if copies < 1:
            raise ArgumentError(explain("a number of copies >= 1", repr(copies), "e.g. 8 * rep"))
        return DirectSum(((copies, self),))

    def __repr__(self) -> str:
        return f"{self.name} of {self.group.name}"

    def _check_element(self, g: GroupElement) -> None:
        if not self.effective_group.is_quotient_of(g.group):
            raise ArgumentError(
                explain(f"an element of {self.group.name}", repr(g), "take the element from this group")
            )


@dataclass(frozen=True, repr=False)
class DirectSum(Representation):
    """Copies and direct sums: ``terms`` are ``(copies, representation)``, laid out one after the other."""

    terms: tuple[tuple[int, Representation], ...]

    def __post_init__(self) -> None:
        first = self.terms[0][1].group
        for _, rep in self.terms[1:]:
            if rep.group != first:
                raise ArgumentError(
                    explain(
                        f"representations of one group ({first.name})",
                        f"one of {rep.group.name}",
                        "build both on the same group",
                    )
                )

    @property
    def group(self) -> Group:
        """The common group."""
        return self.terms[0][1].group

    @cached_property
    def _dim(self) -> int:
        return sum(copies * rep.dim for copies, rep in self.terms)

    @property
    def dim(self) -> int:
        """Sum of the dimensions."""
        return self._dim

    @property
    def name(self) -> str:
        """``"8*Vector + 4*Trivial"``."""

        def one(copies: int, rep: Representation) -> str:
            inner = f"({rep.name})" if isinstance(rep, DirectSum) else rep.name
            return inner if copies == 1 else f"{copies}*{inner}"

        return " + ".join(one(copies, rep) for copies, rep in self.terms)

    def generators(self) -> tuple[LinearMap, ...]:
        """Block diagonal."""
        return self._blockwise(lambda rep: rep.generators())

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Block diagonal."""
        return self._blockwise(lambda rep: rep.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """Block diagonal."""
        return BlockDiagonalMap([(copies, rep.map_of(g)) for copies, rep in self.terms])

    @property
    def effective_group(self) -> Group:
        """The smallest quotient through which every term factors."""
        group = self.terms[0][1].effective_group
        for _, rep in self.terms[1:]:
            group = group.common_quotient(rep.effective_group)
        return group

    def residual_generators(self) -> tuple[ResidualGenerator, ...]:
        """The letters of all terms; terms without a letter stay still under it."""
        lengths = {r.name: r.length for _, rep in self.terms for r in rep.residual_generators()}
        return tuple(
            ResidualGenerator(
                name,
                length,
                BlockDiagonalMap([(copies, rep.residual_map(name)) for copies, rep in self.terms]),
            )
            for name, length in lengths.items()
        )

    def eigenbasis(self) -> Eigenbasis | None:
        """The eigenbases of the terms, side by side."""
        bases = [(copies, rep.eigenbasis()) for copies, rep in self.terms]
        if any(basis is None for _, basis in bases):
            return None
        blocks: list[tuple[int, torch.Tensor | UnitaryMap]] = []
        values, names = [], [r.name for r in self.residual_generators()]
        residuals: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for copies, basis in bases:
            assert basis is not None
            # a block that is itself a sum cannot be repeated as one matrix: lay its blocks out copy by copy
            blocks += (
                [(copies * basis.blocks[0][0], basis.blocks[0][1])]
                if len(basis.blocks) == 1
                else list(basis.blocks) * copies
            )
            values.append(basis.values.repeat(1, copies))
            ones = torch.ones(basis.dim, dtype=torch.complex128)
            for name in names:
                residuals[name].append(basis.residuals.get(name, ones).repeat(copies))
        return Eigenbasis(
            tuple(blocks),
            torch.cat(values, dim=1),
            {name: torch.cat(parts) for name, parts in residuals.items()},
            paired=all(basis is not None and basis.paired for _, basis in bases),
        )

    def eigenbasis_error(self) -> tuple[float, float]:
        """The largest of the terms'."""
        residues, losses = zip(*(rep.eigenbasis_error() for _, rep in self.terms), strict=True)
        return max(residues), max(losses)

    @property
    def is_orthogonal(self) -> bool:
        """Whether every term is."""
        return all(rep.is_orthogonal for _, rep in self.terms)

    @property
    def growth(self) -> float:
        """The largest of the terms'."""
        return max(rep.growth for _, rep in self.terms)

    @property
    def dual(self) -> Representation:
        """Term by term."""
        return self if self.is_orthogonal else DirectSum(tuple((copies, rep.dual) for copies, rep in self.terms))

    @property
    def connected(self) -> Representation:
        """Term by term."""
        return DirectSum(tuple((copies, rep.connected) for copies, rep in self.terms))

    def tensor_orders(self) -> Mapping[int, int] | None:
        """Sums of the terms'."""
        total: Counter[int] = Counter()
        for copies, rep in self.terms:
            found = rep.tensor_orders()
            if found is None:
                return None
            for order, count in found.items():
                total[order] += copies * count
        return dict(total)

    @property
    def is_permutation(self) -> bool:
        """Whether every term is one."""
        return all(rep.is_permutation for _, rep in self.terms)

    @property
    def exactness(self) -> str:
        """The weakest of the terms'."""
        notes = [rep.exactness for _, rep in self.terms if rep.exactness != "exact"]
        return "; ".join(dict.fromkeys(notes)) or "exact"

    @property
    def rounding(self) -> float:
        """The largest of the terms'."""
        return max(rep.rounding for _, rep in self.terms)

    @property
    def constructions(self) -> frozenset[str]:
        """Those of all terms."""
        return frozenset().union(*(rep.constructions for _, rep in self.terms))

    def _blockwise(self, maps: Callable[[Representation], tuple[LinearMap, ...]]) -> tuple[LinearMap, ...]:
        per_term = [(copies, maps(rep)) for copies, rep in self.terms]
        count = len(per_term[0][1])
        return tuple(BlockDiagonalMap([(copies, found[i]) for copies, found in per_term]) for i in range(count))


def _terms(rep: Representation) -> tuple[tuple[int, Representation], ...]:
    return rep.terms if isinstance(rep, DirectSum) else ((1, rep),)
