"""Permutations of n objects."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Group, GroupElement, Power, Word, check_count
from equidial.groups._weights import permutation_tensor_spectrum

_LISTED = 5040  # 7!


@dataclass(frozen=True, repr=False)
class Permutation(Group):
    """The symmetric group S(n); the coordinate of an element is the tuple of images ``(p(0), .., p(n-1))``.

    Acts on vectors by ``(rho(p) x)[p(i)] = x[i]``. Generators: all ``n (n - 1) / 2`` transpositions, length 1, so
    that a distance is ``n`` minus the number of cycles and the Gram operator has the contents of partitions as
    eigenvalues.
    """

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ArgumentError(explain("Permutation(n) with an integer n >= 1", repr(self.n), "e.g. Permutation(4)"))

    @property
    def name(self) -> str:
        """``"S<n>"``."""
        return f"S{self.n}"

    @property
    def order(self) -> int:
        """``n!``."""
        return math.factorial(self.n)

    @property
    def is_finite(self) -> bool:
        """Whether :meth:`elements` lists the group: up to 7 objects."""
        return self.order <= _LISTED

    @property
    def radius(self) -> float:
        """``n - 1``: a full cycle. For one object, 0."""
        return float(self.n - 1)

    @property
    def natural_dim(self) -> int:
        """``n``."""
        return self.n

    def natural_matrix(self, value: tuple[int, ...]) -> torch.Tensor:
        """The permutation matrix with ``M[p(i), i] = 1``."""
        out = torch.zeros(self.n, self.n, dtype=torch.float64)
        out[list(value), list(range(self.n))] = 1.0
        return out

    def identity(self) -> GroupElement:
        """``(0, 1, .., n-1)``."""
        return GroupElement(self, tuple(range(self.n)))

    def element(self, value: tuple[int, ...]) -> GroupElement:
        """The permutation with these images; raises ``ArgumentError`` unless each object appears once."""
        images = tuple(int(v) for v in value)
        if sorted(images) != list(range(self.n)):
            raise ArgumentError(
                explain(f"the numbers 0..{self.n - 1} in some order", repr(value), "name each image once")
            )
        return GroupElement(self, images)

    def elements(self) -> list[GroupElement]:
        """All permutations in lexicographic order, the identity first; raises beyond 7 objects."""
        if not self.is_finite:
            return super().elements()
        return [GroupElement(self, p) for p in itertools.permutations(range(self.n))]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """All transpositions."""
        out = []
        for i, j in itertools.combinations(range(self.n), 2):
            images = list(range(self.n))
            images[i], images[j] = j, i
            out.append(DiscreteGenerator(GroupElement(self, tuple(images)), 1.0))
        return tuple(out)

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` permutations, uniform."""
        check_count(n)
        return [GroupElement(self, tuple(torch.randperm(self.n, generator=generator).tolist())) for _ in range(n)]

    def compose_values(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """``(a b)(i) = a(b(i))``."""
        return tuple(a[i] for i in b)

    def invert_value(self, a: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse permutation."""
        return tuple(sorted(range(self.n), key=a.__getitem__))

    def distance_of_value(self, a: tuple[int, ...]) -> float:
        """``n`` minus the number of cycles: the smallest number of transpositions."""
        return float(sum(len(cycle) - 1 for cycle in _cycles(a)))

    def word(self, value: tuple[int, ...]) -> Word:
        """Each cycle ``(c0 c1 .. ck)`` as ``(c0 ck) .. (c0 c1)``."""
        index = {pair: k for k, pair in enumerate(itertools.combinations(range(self.n), 2))}
        pieces = []
        for cycle in _cycles(value):
            first = cycle[0]
            pieces += [Power(index[min(first, c), max(first, c)], 1) for c in reversed(cycle[1:])]
        return tuple(pieces)

    def tensor_spectrum(self, order: int) -> dict[float, int]:
        """``n (n - 1) - 2 content`` over the partitions in the tensor power."""
        return permutation_tensor_spectrum(self.n, order)


def _cycles(a: tuple[int, ...]) -> list[list[int]]:
    seen: set[int] = set()
    out = []
    for start in range(len(a)):
        cycle = []
        i = start
        while i not in seen:
            seen.add(i)
            cycle.append(i)
            i = a[i]
        if cycle:
            out.append(cycle)
    return out
