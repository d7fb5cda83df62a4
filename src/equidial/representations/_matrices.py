"""Representations given by the user's matrices, and factors of product groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property

import scipy.linalg
import torch

from equidial.errors import ArgumentError, GroupActionError, explain
from equidial.groups import Exp, Group, GroupElement, Product
from equidial.representations._base import Representation, ResidualGenerator
from equidial.representations._derived import DerivedRepresentation
from equidial.representations._elementary import is_orthogonal_set
from equidial.representations._maps import DenseMap, LinearMap, identity_map, zero_map

_LAW = 1e-8  # how far matrices may be from the relations of the group, relative to their size
_PRODUCTS = 1024  # of two elements, at most, that are multiplied out to prove that law


class MatrixRepresentation(Representation):
    """A representation given by its matrices on the generators of ``group``.

    Args:
        group: the group; its generators fix how many matrices are needed, and in which order.
        generators: one ``[d, d]`` matrix per Lie generator.
        discrete: one ``[d, d]`` matrix per discrete generator.
        name: for messages.
        orthogonal: declare it (``True`` or ``False``) to have it checked; ``None`` finds out.

    Other elements act through their word in the generators. Raises ``ArgumentError`` where matrices are missing, of
    different shapes, not finite, break the brackets of the Lie algebra or the products of the group, or are not what
    was declared.
    """

    def __init__(
        self,
        group: Group,
        generators: torch.Tensor | Sequence[torch.Tensor] = (),
        discrete: torch.Tensor | Sequence[torch.Tensor] = (),
        *,
        name: str = "Matrices",
        orthogonal: bool | None = None,
    ):
        self.group = group
        self._name = name
        self._lie = [torch.as_tensor(m, dtype=torch.float64) for m in generators]
        self._letters = [torch.as_tensor(m, dtype=torch.float64) for m in discrete]
        self._check_shapes()
        # the largest entry by which the laws were found broken: no more than rounding, or what was let pass
        self._law_error = max(self._check_brackets(), self._check_products())
        if orthogonal is not None and orthogonal != self.is_orthogonal:
            raise ArgumentError(
                explain(
                    ("skew generators and orthogonal letters" if orthogonal else "matrices that are not orthogonal")
                    + ", as declared",
                    "other ones",
                    "correct the matrices, or declare orthogonal=None",
                )
            )

    def _check_shapes(self) -> None:
        needed = (self.group.lie_dim, len(self.group.discrete_generators()))
        given = (len(self._lie), len(self._letters))
        if needed != given:
            raise ArgumentError(
                explain(
                    f"{needed[0]} matrices of Lie generators and {needed[1]} of discrete ones for {self.group.name}",
                    f"{given[0]} and {given[1]}",
                    "give one matrix per generator, in the group's order",
                )
            )
        shapes = {tuple(m.shape) for m in (*self._lie, *self._letters)}
        if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or shape[0] != shape[1]:
            raise ArgumentError(
                explain("square matrices of one size", f"shapes {sorted(shapes)}", "give all in one basis")
            )
        if not all(bool(torch.isfinite(m).all()) for m in (*self._lie, *self._letters)):
            raise ArgumentError(explain("finite matrices", "NaN or infinite entries", "check them"))

    def _check_brackets(self) -> float:
        f, worst = self.group.structure_constants(), 0.0
        for i, a in enumerate(self._lie):
            for j, b in enumerate(self._lie[:i]):
                expected = sum((float(f[i, j, k]) * c for k, c in enumerate(self._lie)), torch.zeros_like(a))
                error = float((a @ b - b @ a - expected).abs().max())
                worst = max(worst, error)
                if error > _LAW * max(1.0, float(a.abs().max() * b.abs().max())):
                    raise ArgumentError(
                        explain(
                            f"matrices with the brackets of {self.group.name}",
                            f"[A_{i + 1}, A_{j + 1}] off by {error:.2e}",
                            "check the matrices, their order and their scale",
                        )
                    )

        return worst

    def _check_products(self) -> float:
        worst = 0.0
        for g, h in self._pairs():
            try:
                product, image = self.map_of(g).to_dense() @ self.map_of(h).to_dense(), self.map_of(g @ h).to_dense()
            except GroupActionError:
                continue  # an element that the group cannot write in its generators
            error = float((product - image).abs().max())
            worst = max(worst, error)
            if not error <= _LAW * max(1.0, float(product.abs().max())):
                raise ArgumentError(
                    explain(
                        f"matrices that multiply as the elements of {self.group.name}",
                        f"a product off by {error:.2e}",
                        "check the matrices of the generators",
                    )
                )

        return worst

    def _pairs(self) -> Iterable[tuple[GroupElement, GroupElement]]:
        """Pairs whose products are checked: each element with each letter (that proves the law), else samples."""
        letters = [s.element for s in self.group.discrete_generators()]
        if self.group.is_finite and (self.group.order or 0) * len(letters) <= _PRODUCTS:
            return itertools.product(self.group.elements(), letters)
        drawn = self.group.sample(6, torch.Generator().manual_seed(0))
        both = itertools.product(letters, letters) if len(letters) ** 2 <= _PRODUCTS else ()
        among = itertools.combinations_with_replacement(drawn, 2)  # squares too: they find double-valued matrices
        return itertools.chain(among, itertools.product(drawn, letters), itertools.product(letters, drawn), both)

    @property
    def dim(self) -> int:
        """Size of the matrices."""
        return len((self._lie or self._letters)[0])

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    def generators(self) -> tuple[LinearMap, ...]:
        """The matrices given; exactly skew where the representation is orthogonal."""
        return tuple(DenseMap(a) for a in self._skewed)

    @cached_property
    def _skewed(self) -> list[torch.Tensor]:
        return [(a - a.mT) / 2 for a in self._lie] if self.is_orthogonal else self._lie

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """The matrices given."""
        return tuple(DenseMap(s) for s in self._letters)

    def map_of(self, g: GroupElement) -> LinearMap:
        """Exponentials and letters along the word of ``g``."""
        out = torch.eye(self.dim, dtype=torch.float64)
        for piece in self.group.word(g.value):
            if isinstance(piece, Exp):
                combined = sum((t * a for t, a in zip(piece.t, self._skewed, strict=True)), torch.zeros_like(out))
                out = out @ torch.from_numpy(scipy.linalg.expm(combined.numpy()))
            else:
                out = out @ torch.linalg.matrix_power(self._letters[piece.letter], piece.exponent)
        return DenseMap(out)

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether generators are skew and letters orthogonal, to 1e-12."""
        return is_orthogonal_set(self._lie, self._letters)

    @property
    def connected(self) -> Representation:
        """The matrices of the Lie generators."""
        if self.group.connected == self.group:
            return self
        return MatrixRepresentation(self.group.connected, self._lie, name=self._name)

    @property
    def rounding(self) -> float:
        """What a few products and exponentials lose, and what the matrices given lack of the laws."""
        return self._found_rounding

    @cached_property
    def _found_rounding(self) -> float:
        identity = torch.eye(self.dim, dtype=torch.float64)
        lacking = [float((s.mT @ s - identity).norm()) for s in self._letters] if self.is_orthogonal else []
        return self.dim * (64 * torch.finfo(torch.float64).eps + self._law_error) + max(lacking, default=0.0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MatrixRepresentation) or (self.group, self.name) != (other.group, other.name):
            return False
        pairs = zip((*self._lie, *self._letters), (*other._lie, *other._letters), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.group, self.name, self.dim))


class FactorRepresentation(DerivedRepresentation):
    """A representation of one factor of a product, on which the other factors act trivially.

    ``FactorRepresentation(G * H, 0, X) @ FactorRepresentation(G * H, 1, Y)`` is the outer product of ``X`` and ``Y``.
    """

    def __init__(self, group: Group, index: int, inner: Representation):
        if not isinstance(group, Product) or not 0 <= index < len(group.factors) or inner.group != group.factors[index]:
            raise ArgumentError(
                explain(
                    "a product group and a representation of its factor with this index",
                    f"{group!r}, index {index!r}, {inner!r}",
                    "e.g. FactorRepresentation(SO(3) * Permutation(4), 0, Vector(SO(3)))",
                )
            )
        self.group, self.index, self.inner = group, index, inner
        self._factors = group.factors

    @property
    def name(self) -> str:
        """``"Vector[0]"``."""
        return f"{self.inner.name}[{self.index}]"

    def _position(self, counts: list[int]) -> tuple[int, int]:
        return sum(counts[: self.index]), sum(counts[self.index + 1 :])

    def generators(self) -> tuple[LinearMap, ...]:
        """Zeros for the other factors."""
        before, after = self._position([f.lie_dim for f in self._factors])
        return (*(zero_map(self.dim),) * before, *self.inner.generators(), *(zero_map(self.dim),) * after)

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Identities for the other factors."""
        before, after = self._position([len(f.discrete_generators()) for f in self._factors])
        still = identity_map(self.dim)
        return (*(still,) * before, *self.inner.discrete_generators(), *(still,) * after)

    def map_of(self, g: GroupElement) -> LinearMap:
        """The inner map of the factor's coordinate."""
        return self.inner.map_of(GroupElement(self.inner.group, g.value[self.index]))

    @property
    def is_permutation(self) -> bool:
        """As the inner one."""
        return self.inner.is_permutation

    def residual_generators(self) -> tuple[ResidualGenerator, ...]:
        """The inner one's: what its action misses, this one misses too."""
        return self.inner.residual_generators()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactorRepresentation) and (self.group, self.index, self.inner) == (
            other.group,
            other.index,
            other.inner,
        )

    def __hash__(self) -> int:
        return hash((self.group, self.index, self.inner))
