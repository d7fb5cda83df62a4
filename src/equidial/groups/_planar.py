"""Groups of rotations and mirrors of the plane: the contract, and the finite ones C(n), D(n), Flip.

Convention: ``x`` to the right, ``y`` up, angles in radians, counterclockwise, origin at the centre of the grid.
An element is ``R(angle) M^reflected`` with ``M = diag(-1, 1)``, the left-right mirror.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import (
    DiscreteGenerator,
    Group,
    GroupElement,
    IsotypicComponent,
    Power,
    Word,
    check_count,
    rotation_matrix,
)


def _check_order(family: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ArgumentError(explain(f"{family}(n) with an integer n >= 1", repr(n), f"e.g. {family}(4)"))


class PlanarGroup(Group):
    """A subgroup of O(2), acting on the plane about the origin."""

    @abstractmethod
    def angle_and_mirror(self, value: Any) -> tuple[float, bool]:
        """``(angle, reflected)`` of an element, which acts as ``R(angle) M^reflected``."""

    @property
    def natural_dim(self) -> int:
        """2: vectors ``(x, y)``."""
        return 2

    def natural_matrix(self, value: Any) -> torch.Tensor:
        """The 2 x 2 matrix of the element."""
        return self.planar_matrix(GroupElement(self, value))

    def natural_generators(self) -> torch.Tensor:
        """``[[0, -1], [1, 0]]`` where the group holds all rotations, else none."""
        turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
        return turn[: self.lie_dim]

    def planar_matrix(self, g: GroupElement) -> torch.Tensor:
        """The 2 x 2 matrix of ``g`` on column vectors ``(x, y)``, float64."""
        angle, reflected = self.angle_and_mirror(g.value)
        mirror = torch.diag(torch.tensor([-1.0 if reflected else 1.0, 1.0], dtype=torch.float64))
        return rotation_matrix(angle) @ mirror

    def quarter_turns_and_mirror(self, g: GroupElement) -> tuple[int, bool] | None:
        """``(k, reflected)`` when ``g`` is ``k`` quarter turns after an optional mirror, else ``None``."""
        angle, reflected = self.angle_and_mirror(g.value)
        quarters = angle / (math.pi / 2)
        if abs(quarters - round(quarters)) < 1e-12:
            return round(quarters) % 4, reflected
        return None


class FinitePlanarGroup(PlanarGroup):
    """A finite subgroup of O(2): sampling is uniform over its elements."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Number of elements."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` elements, uniform over the group (its Haar measure)."""
        check_count(n)
        elements = self.elements()
        picks = torch.randint(len(elements), (n,), generator=generator)
        return [elements[int(i)] for i in picks]


@dataclass(frozen=True, repr=False)
class C(FinitePlanarGroup):
    """Cyclic group of rotations by ``2 pi k / n``; the coordinate of an element is ``k`` in ``0..n-1``.

    One generator ``r = 2 pi / n`` of length ``|r| = 2 pi / n``, so a distance is the angle turned.
    """

    n: int

    def __post_init__(self) -> None:
        _check_order("C", self.n)

    @property
    def name(self) -> str:
        """``"C<n>"``."""
        return f"C{self.n}"

    @property
    def order(self) -> int:
        """``n``."""
        return self.n

    @property
    def radius(self) -> float:
        """``floor(n/2) 2 pi / n``: the largest angle turned."""
        return (self.n // 2) * 2 * math.pi / self.n

    def identity(self) -> GroupElement:
        """The rotation by 0."""
        return GroupElement(self, 0)

    def element(self, value: int) -> GroupElement:
        """The rotation by ``2 pi value / n``."""
        return GroupElement(self, int(value) % self.n)

    def elements(self) -> list[GroupElement]:
        """The rotations by ``0, 1, .., n-1`` steps."""
        return [GroupElement(self, k) for k in range(self.n)]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """The rotation by one step; none for the trivial group."""
        if self.n == 1:
            return ()
        return (DiscreteGenerator(GroupElement(self, 1), 2 * math.pi / self.n),)

    def compose_values(self, a: int, b: int) -> int:
        """Steps add modulo ``n``."""
        return (a + b) % self.n

    def invert_value(self, a: int) -> int:
        """Steps change sign modulo ``n``."""
        return -a % self.n

    def distance_of_value(self, a: int) -> float:
        """The angle turned, at most pi."""
        return min(a, self.n - a) * 2 * math.pi / self.n

    def word(self, value: int) -> Word:
        """A power of the step, the short way round."""
        steps = value if 2 * value <= self.n else value - self.n
        return (Power(0, steps),) if value else ()

    def angle_and_mirror(self, value: int) -> tuple[float, bool]:
        """``(2 pi k / n, False)``."""
        return 2 * math.pi * value / self.n, False

    def isotypic_components(self) -> tuple[IsotypicComponent, ...]:
        """Frequencies ``m = 0..n/2``: ``sigma = |e^(2 pi i m / n) - 1| n / (2 pi)``."""
        out = []
        for m in range(self.n // 2 + 1):
            weight = (1 if m == 0 or 2 * m == self.n else 2) / self.n
            coefficients = tuple(weight * math.cos(2 * math.pi * m * k / self.n) for k in range(self.n))
            out.append(IsotypicComponent(f"m={m}", coefficients, self.n / math.pi * math.sin(math.pi * m / self.n)))
        return tuple(out)


@dataclass(frozen=True, repr=False)
class D(FinitePlanarGroup):
    """Dihedral group: ``n`` rotations and ``n`` mirrors; the coordinate ``(k, f)`` means ``r^k m^f``.

    ``m`` is the left-right mirror. Generators: ``r`` of length ``2 pi / n`` and ALL mirrors of length pi: the
    set must be closed under conjugation, else the soft subspaces split irreducible representations.
    """

    n: int

    def __post_init__(self) -> None:
        _check_order("D", self.n)

    @property
    def name(self) -> str:
        """``"D<n>"``."""
        return f"D{self.n}"

    @property
    def order(self) -> int:
        """``2 n``."""
        return 2 * self.n

    @property
    def radius(self) -> float:
        """pi: a mirror is one letter, a rotation at most a half turn."""
        return math.pi

    def identity(self) -> GroupElement:
        """``(0, 0)``."""
        return GroupElement(self, (0, 0))

    def element(self, value: tuple[int, int]) -> GroupElement:
        """The element ``r^k m^f`` with ``value = (k, f)``."""
        k, f = value
        return GroupElement(self, (int(k) % self.n, int(f) % 2))

    def elements(self) -> list[GroupElement]:
        """Rotations first, then mirrors."""
        return [GroupElement(self, (k, f)) for f in (0, 1) for k in range(self.n)]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """``r`` and all ``n`` mirrors."""
        rotation = (DiscreteGenerator(GroupElement(self, (1, 0)), 2 * math.pi / self.n),) if self.n > 1 else ()
        mirrors = tuple(DiscreteGenerator(GroupElement(self, (k, 1)), math.pi) for k in range(self.n))
        return rotation + mirrors

    def compose_values(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        """``r^k m^f r^l m^h = r^(k + (-1)^f l) m^(f+h)``."""
        return (a[0] + (-b[0] if a[1] else b[0])) % self.n, (a[1] + b[1]) % 2

    def invert_value(self, a: tuple[int, int]) -> tuple[int, int]:
        """Mirrors are their own inverses."""
        return a if a[1] else (-a[0] % self.n, 0)

    def distance_of_value(self, a: tuple[int, int]) -> float:
        """pi for a mirror, the angle turned for a rotation."""
        return math.pi if a[1] else min(a[0], self.n - a[0]) * 2 * math.pi / self.n

    def word(self, value: tuple[int, int]) -> Word:
        """A power of the rotation, or one mirror."""
        k, f = value
        if f:
            return (Power(k + (1 if self.n > 1 else 0), 1),)
        return (Power(0, k if 2 * k <= self.n else k - self.n),) if k else ()

    def angle_and_mirror(self, value: tuple[int, int]) -> tuple[float, bool]:
        """``(2 pi k / n, f)``."""
        return 2 * math.pi * value[0] / self.n, bool(value[1])

    def isotypic_components(self) -> tuple[IsotypicComponent, ...]:
        """A1, A2, (B1, B2 for even ``n``) and the planar E_j, ``j < n/2``, from the character table."""
        n, size = self.n, 2 * self.n
        rotations, mirrors = range(n), range(n)
        ones: dict[str, tuple[int, int]] = {"A1": (1, 1), "A2": (1, -1)}
        if n % 2 == 0:
            ones |= {"B1": (-1, 1), "B2": (-1, -1)}
        table = {
            label: (1, [float(r**k) for k in rotations], [float(r**k * m) for k in mirrors])
            for label, (r, m) in ones.items()
        }
        for j in range(1, (n + 1) // 2):
            table[f"E{j}"] = (2, [2 * math.cos(2 * math.pi * j * k / n) for k in rotations], [0.0] * n)
        out = []
        for label, (dim, on_rotations, on_mirrors) in table.items():
            # sum over generators s of (2 - 2 chi(s) / dim) / |s|^2, one scalar on the whole component
            square = sum(2 - 2 * chi / dim for chi in on_mirrors) / math.pi**2
            if n > 1:
                square += (2 - 2 * on_rotations[1] / dim) * (n / (2 * math.pi)) ** 2
            coefficients = tuple(dim * chi / size for chi in on_rotations + on_mirrors)
            out.append(IsotypicComponent(label, coefficients, math.sqrt(max(square, 0.0))))
        return tuple(out)


@dataclass(frozen=True, repr=False)
class Flip(FinitePlanarGroup):
    """The mirror group {1, m}; ``axis`` is the direction that is reversed. The coordinate is 0 or 1.

    ``"horizontal"`` swaps left and right (``x -> -x``), ``"vertical"`` swaps top and bottom. Length of m: pi.
    """

    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __post_init__(self) -> None:
        if self.axis not in ("horizontal", "vertical"):
            raise ArgumentError(explain("axis 'horizontal' or 'vertical'", repr(self.axis), "e.g. Flip('horizontal')"))

    @property
    def name(self) -> str:
        """``"Flip"`` for left-right, ``"FlipUD"`` for top-bottom."""
        return "Flip" if self.axis == "horizontal" else "FlipUD"

    @property
    def order(self) -> int:
        """2."""
        return 2

    @property
    def radius(self) -> float:
        """pi, the length of the mirror."""
        return math.pi

    def identity(self) -> GroupElement:
        """0."""
        return GroupElement(self, 0)

    def element(self, value: int) -> GroupElement:
        """0: the identity, 1: the mirror."""
        return GroupElement(self, int(value) % 2)

    def elements(self) -> list[GroupElement]:
        """The identity and the mirror."""
        return [GroupElement(self, 0), GroupElement(self, 1)]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """The mirror."""
        return (DiscreteGenerator(GroupElement(self, 1), math.pi),)

    def compose_values(self, a: int, b: int) -> int:
        """Addition modulo 2."""
        return (a + b) % 2

    def invert_value(self, a: int) -> int:
        """Every element is its own inverse."""
        return a

    def distance_of_value(self, a: int) -> float:
        """0 or pi."""
        return math.pi * a

    def word(self, value: int) -> Word:
        """The mirror, or nothing."""
        return (Power(0, 1),) if value else ()

    def angle_and_mirror(self, value: int) -> tuple[float, bool]:
        """The top-bottom mirror is the left-right one followed by a half turn."""
        return (math.pi if value and self.axis == "vertical" else 0.0), bool(value)

    def isotypic_components(self) -> tuple[IsotypicComponent, ...]:
        """Even and odd parts: ``sigma`` 0 and ``2 / pi``."""
        return (
            IsotypicComponent("even", (0.5, 0.5), 0.0),
            IsotypicComponent("odd", (0.5, -0.5), 2 / math.pi),
        )
