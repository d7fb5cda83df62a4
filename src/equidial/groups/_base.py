"""Groups and their elements: the abstract contract that every group keeps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from equidial.errors import ArgumentError, GroupActionError, explain


class Exp(NamedTuple):
    """A piece of a word: ``exp(sum_i t_i A_i)``."""

    t: tuple[float, ...]


class Power(NamedTuple):
    """A piece of a word: the discrete generator with this index, ``exponent`` times (negative: its inverse)."""

    letter: int
    exponent: int


Word = tuple[Exp | Power, ...]
"""An element as a product of pieces, the last one acting first."""


@dataclass(frozen=True)
class GroupElement:
    """An element ``g`` of a group: ``g @ h`` composes, ``g.inverse()`` inverts, ``g.distance()`` measures.

    ``value`` is the group's own coordinate of the element (see the group's docstring) and hashable.
    """

    group: Group
    value: Any

    def __matmul__(self, other: GroupElement) -> GroupElement:
        """The product ``g h``: ``h`` acts first. Raises ``ArgumentError`` across groups."""
        if not isinstance(other, GroupElement):
            return NotImplemented
        if other.group != self.group:
            raise ArgumentError(
                explain(
                    f"two elements of {self.group.name}",
                    f"one of {self.group.name} and one of {other.group.name}",
                    "compose elements of one group only",
                )
            )
        return GroupElement(self.group, self.group.compose_values(self.value, other.value))

    def inverse(self) -> GroupElement:
        """The element ``h`` with ``g h = h g = identity``."""
        return GroupElement(self.group, self.group.invert_value(self.value))

    def distance(self) -> float:
        """Distance from the identity: the smallest sum of ``||t||`` and generator lengths that writes ``g``."""
        return self.group.distance_of_value(self.value)

    @property
    def is_identity(self) -> bool:
        """Whether the element is the identity, exactly."""
        return self.value == self.group.identity().value

    def __repr__(self) -> str:
        return f"{self.group.name}.element({self.value!r})"


@dataclass(frozen=True)
class DiscreteGenerator:
    """A letter ``s`` of the words that write a group, with its length ``|s|`` (the unit of its defect).

    ``on_invariants``: the constraint applies it to the vectors that the connected part of the group keeps, and to
    them only. The mirrors of O(n), n even, are no finite set closed under conjugation, so that one of them alone
    would split irreducible spaces; on what SO(n) keeps, all mirrors act alike (theory 1).
    """

    element: GroupElement
    length: float
    on_invariants: bool = False


@dataclass(frozen=True)
class IsotypicComponent:
    """A real isotypic projector of a finite group, ``P = sum_g coefficients[g] rho(g)``.

    ``coefficients`` follow the order of :meth:`Group.elements`; ``sigma`` is the singular value that the
    stacked constraint ``[(rho(s) - I) / |s|]_s`` takes on the whole component (a class sum is a scalar on an
    irreducible representation, so this holds for generator sets closed under conjugation).
    """

    label: str
    coefficients: tuple[float, ...]
    sigma: float


class Group(ABC):
    """A group given by generators: Lie generators ``A_1..A_n`` and discrete generators ``s`` with lengths.

    Subclasses are immutable and compare by value. ``radius`` is the largest distance of any element, infinite
    for a non-compact group.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that :func:`equidial.groups.by_name` turns back into this group."""

    @property
    @abstractmethod
    def radius(self) -> float:
        """``sup_g g.distance()``; ``math.inf`` for a non-compact group."""

    @property
    def is_compact(self) -> bool:
        """Whether the radius is finite, so that a bound speaks of the whole group."""
        return math.isfinite(self.radius)

    @property
    def sample_radius(self) -> float:
        """Radius of the declared set of elements, which is the group's, or a finite one where that is infinite.

        :meth:`sample` draws from it, and bounds speak of it unless another radius is given.
        """
        return self.radius

    @property
    def is_stable(self) -> bool:
        """Whether spectral subspaces of the constraint are stable under the group (theory 1).

        True for compact groups whose Lie basis is orthonormal for an invariant inner product and whose discrete
        generators are closed under conjugation up to inverses.
        """
        return self.is_compact

    @property
    def natural_dim(self) -> int | None:
        """Size of the matrices of the natural representation, ``None`` where the group has none."""
        return None

    def natural_matrix(self, value: Any) -> torch.Tensor:
        """The matrix of an element in the natural representation, ``[n, n]`` float64."""
        raise self._no_natural()

    def natural_generators(self) -> torch.Tensor:
        """The Lie generators in the natural representation, ``[lie_dim, n, n]`` float64."""
        if self.lie_dim == 0 and self.natural_dim is not None:
            return torch.zeros(0, self.natural_dim, self.natural_dim, dtype=torch.float64)
        raise self._no_natural()

    def _no_natural(self) -> GroupActionError:
        return GroupActionError(
            explain(
                "a group of matrices for the vector representation",
                self.name,
                "use Trivial, Regular or Pixels with this group",
            )
        )

    def structure_constants(self) -> torch.Tensor:
        """``f`` with ``[A_i, A_j] = sum_k f_ijk A_k``, ``[n, n, n]`` float64.

        Raises ``ArgumentError`` where the generators do not close under the bracket.
        """
        n = self.lie_dim
        if n <= 1:
            return torch.zeros(n, n, n, dtype=torch.float64)
        return bracket_coefficients(self.natural_generators(), self.name)

    def tensor_spectrum(self, order: int) -> dict[float, int] | None:
        """Eigenvalues ``sigma^2`` of the Gram operator on ``order``-fold tensors of natural vectors.

        With multiplicities, whole (they sum to ``n^order``); ``None`` where the group does not know them.
        """
        return None

    @property
    def connected(self) -> Group:
        """The group of the same matrices that the Lie generators alone generate; the group itself by default."""
        return self

    def word(self, value: Any) -> Word:
        """The element as a product of exponentials and discrete generators.

        Raises ``GroupActionError`` where none is known.
        """
        raise GroupActionError(
            explain(f"an element of {self.name} as a word in its generators", repr(value), "compose it of generators")
        )

    def length_of_word(self, word: Word) -> float:
        """Sum of ``||t||`` over exponentials and of lengths over letters."""
        letters = self.discrete_generators()
        return sum(
            math.hypot(*piece.t) if isinstance(piece, Exp) else abs(piece.exponent) * letters[piece.letter].length
            for piece in word
        )

    @property
    def lie_dim(self) -> int:
        """Number of Lie generators; 0 for a discrete group."""
        return 0

    @property
    def is_finite(self) -> bool:
        """Whether :meth:`elements` can list the group."""
        return self.order is not None

    @property
    @abstractmethod
    def order(self) -> int | None:
        """Number of elements, ``None`` when infinite."""

    @abstractmethod
    def identity(self) -> GroupElement:
        """The neutral element."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` elements from the Haar measure, or uniform on the set that the group's docstring declares."""

    def sample_within(self, n: int, radius: float, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` independent elements at distance at most ``radius``, for a group with a Lie algebra.

        ``exp(t) s``: ``t`` uniform in the ball ``||t|| <= radius``, ``s`` the identity or a letter of at most that
        length, each as likely; a draw beyond ``radius`` is thrown away and repeated. SO(2): angles uniform in
        ``[-radius, radius]``. Raises ``ArgumentError`` unless ``n >= 0`` and ``radius`` is positive and finite, and
        ``GroupActionError`` for a discrete group.
        """
        check_count(n)
        if not 0 < radius < math.inf:
            raise ArgumentError(explain("a finite radius > 0", repr(radius), "e.g. radius=0.5"))
        if self.lie_dim == 0:
            raise GroupActionError(
                explain("a group with a Lie algebra", f"{self.name}, which is discrete", "draw from elements() instead")
            )
        letters = [s.element for s in self.discrete_generators() if s.length <= radius]
        out: list[GroupElement] = []
        while len(out) < n:
            (t,) = uniform_in_ball(1, self.lie_dim, radius, generator)
            g = self.exp(t)
            letter = int(torch.randint(len(letters) + 1, (), generator=generator)) if letters else 0
            if letter:
                g = g @ letters[letter - 1]
            if letter == 0 or g.distance() <= radius * (1 + 1e-12):
                out.append(g)
        return out

    @abstractmethod
    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """Discrete generators with lengths: a set closed under conjugation, up to inverses."""

    @abstractmethod
    def compose_values(self, a: Any, b: Any) -> Any:
        """Coordinate of the product of the elements with coordinates ``a`` and ``b``."""

    @abstractmethod
    def invert_value(self, a: Any) -> Any:
        """Coordinate of the inverse of the element with coordinate ``a``."""

    @abstractmethod
    def distance_of_value(self, a: Any) -> float:
        """Distance from the identity of the element with coordinate ``a``."""

    def element(self, value: Any) -> GroupElement:
        """The element with this coordinate."""
        return GroupElement(self, value)

    def exp(self, t: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """The element ``exp(sum_i t_i A_i)``; raises ``GroupActionError`` for a group without a Lie algebra."""
        raise GroupActionError(
            explain(
                "a group with a Lie algebra",
                f"{self.name}, which is discrete",
                f"name an element directly, e.g. {self.name}.elements()[1]",
            )
        )

    def elements(self) -> list[GroupElement]:
        """All elements, the identity first; raises ``GroupActionError`` for an infinite group."""
        raise GroupActionError(explain("a finite group", f"{self.name}, which is infinite", "use sample() or exp()"))

    def isotypic_components(self) -> tuple[IsotypicComponent, ...] | None:
        """The real isotypic projectors, or ``None`` where the group does not declare them."""
        return None

    def common_quotient(self, other: Group) -> Group:
        """The smallest group of the family of which ``self`` and ``other`` are both quotients.

        Representations of one group may factor through different quotients of it (cyclic shifts of grids of
        different size); two of them together factor through this one.
        """
        if self == other:
            return self
        raise ArgumentError(
            explain(
                "two representations of one group",
                f"{self.name} and {other.name}",
                "build both representations on the same group",
            )
        )

    def is_quotient_of(self, other: Group) -> bool:
        """Whether an element of ``other`` determines one of this group, so that it can act wherever this does."""
        return self == other

    def __mul__(self, other: Group) -> Group:
        """The direct product."""
        if not isinstance(other, Group):
            return NotImplemented
        from equidial.groups._product import Product  # a product is a group: the only way round is at run time

        return Product((self, other))

    def __repr__(self) -> str:
        return self.name


def check_count(n: int) -> None:
    """Raise ``ArgumentError`` unless ``n`` is a number of samples."""
    if not isinstance(n, int) or n < 0:
        raise ArgumentError(explain("a number of samples n >= 0", repr(n), "pass a non-negative integer"))


def uniform_in_ball(n: int, dim: int, radius: float, generator: torch.Generator | None) -> torch.Tensor:
    """``[n, dim]`` points, uniform in the ball ``||t|| <= radius``, float64."""
    directions = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    sizes = torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / dim)
    return directions / directions.norm(dim=1, keepdim=True) * sizes * radius


def bracket_coefficients(generators: torch.Tensor, name: str) -> torch.Tensor:
    """``f`` with ``[A_i, A_j] = sum_k f_ijk A_k`` by least squares; raises ``ArgumentError`` where that fails."""
    n, d, _ = generators.shape
    products = generators[:, None] @ generators[None, :]
    brackets = (products - products.transpose(0, 1)).reshape(n * n, d * d)
    basis = generators.reshape(n, d * d).mT
    f = torch.linalg.lstsq(basis, brackets.mT, driver="gelsd").solution
    missed = float((basis @ f - brackets.mT).abs().max())
    scale = max(float(generators.abs().max()) ** 2, 1e-300)
    if missed > 1e-9 * scale:
        raise ArgumentError(
            explain(
                f"generators of {name} whose span is closed under the bracket",
                f"a bracket that leaves it by {missed:.2e}",
                "add the missing generators, or check their entries",
            )
        )
    return f.mT.reshape(n, n, n)


def rotation_matrix(angle: float) -> torch.Tensor:
    """``[[cos, -sin], [sin, cos]]`` in float64, exact at multiples of a quarter turn."""
    quarters = angle / (math.pi / 2)
    if abs(quarters - round(quarters)) < 1e-12:
        c, s = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[round(quarters) % 4]
    else:
        c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
