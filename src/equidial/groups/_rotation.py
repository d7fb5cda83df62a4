"""The continuous groups of the plane, SO(2) and O(2), and the families SO(n), O(n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Exp, Group, GroupElement, Power, Word, check_count
from equidial.groups._orthogonal import Orthogonal, SpecialOrthogonal
from equidial.groups._planar import PlanarGroup


class _Circle(PlanarGroup):
    """What SO(2) and O(2) share: all rotations of the plane, one Lie generator, no element farther than pi."""

    @property
    def order(self) -> None:
        """Infinite."""
        return None

    @property
    def radius(self) -> float:
        """pi."""
        return math.pi

    @property
    def lie_dim(self) -> int:
        """1."""
        return 1


@dataclass(frozen=True, repr=False)
class SO2(_Circle):
    """Rotations of the plane; the coordinate is the angle in ``(-pi, pi]``. One Lie generator, radius pi."""

    @property
    def name(self) -> str:
        """``"SO2"``."""
        return "SO2"

    def identity(self) -> GroupElement:
        """The rotation by 0."""
        return GroupElement(self, 0.0)

    def element(self, value: float) -> GroupElement:
        """The rotation by ``value`` radians."""
        return GroupElement(self, _wrap(float(value)))

    def exp(self, t: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """The rotation by ``t`` radians, counterclockwise."""
        values = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        if values.numel() != 1:
            raise ArgumentError(explain("one Lie coordinate", f"{values.numel()} of them", "pass one angle"))
        return self.element(float(values[0]))

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """None."""
        return ()

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` angles, uniform on ``(-pi, pi]`` (the Haar measure)."""
        check_count(n)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        return [self.element(math.pi - 2 * math.pi * float(u)) for u in uniform]

    def compose_values(self, a: float, b: float) -> float:
        """Angles add modulo a full turn."""
        return _wrap(a + b)

    def invert_value(self, a: float) -> float:
        """The angle changes sign."""
        return _wrap(-a)

    def distance_of_value(self, a: float) -> float:
        """``|angle|``."""
        return abs(a)

    def word(self, value: float) -> Word:
        """One exponential."""
        return (Exp((value,)),) if value else ()

    def angle_and_mirror(self, value: float) -> tuple[float, bool]:
        """``(angle, False)``."""
        return value, False


@dataclass(frozen=True, repr=False)
class O2(_Circle):
    """Rotations and mirrors of the plane; the coordinate ``(angle, f)`` means ``R(angle) m^f``.

    ``m`` is the left-right mirror, length pi, applied by the constraint to what rotations keep (see
    :class:`DiscreteGenerator`). Every element with ``f = 1`` is itself a mirror, at distance pi.
    """

    @property
    def name(self) -> str:
        """``"O2"``."""
        return "O2"

    @property
    def connected(self) -> Group:
        """SO(2)."""
        return SO2()

    def identity(self) -> GroupElement:
        """``(0, 0)``."""
        return GroupElement(self, (0.0, 0))

    def element(self, value: tuple[float, int]) -> GroupElement:
        """``R(angle) m^f`` with ``value = (angle, f)``."""
        angle, f = value
        return GroupElement(self, (_wrap(float(angle)), int(f) % 2))

    def exp(self, t: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """The rotation by ``t`` radians, counterclockwise."""
        return self.element((SO2().exp(t).value, 0))

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """The left-right mirror."""
        return (DiscreteGenerator(GroupElement(self, (0.0, 1)), math.pi, on_invariants=True),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` elements of the Haar measure: uniform angles, a mirror half of the time."""
        rotations = SO2().sample(n, generator)
        mirrored = torch.randint(2, (n,), generator=generator).tolist()
        return [self.element((g.value, f)) for g, f in zip(rotations, mirrored, strict=True)]

    def compose_values(self, a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
        """``R(a) m^f R(b) m^h = R(a + (-1)^f b) m^(f+h)``."""
        return _wrap(a[0] + (-b[0] if a[1] else b[0])), (a[1] + b[1]) % 2

    def invert_value(self, a: tuple[float, int]) -> tuple[float, int]:
        """Mirrors are their own inverses."""
        return a if a[1] else (_wrap(-a[0]), 0)

    def distance_of_value(self, a: tuple[float, int]) -> float:
        """pi for a mirror, the angle turned for a rotation."""
        return math.pi if a[1] else abs(a[0])

    def word(self, value: tuple[float, int]) -> Word:
        """``exp(angle) m^f``."""
        angle, f = value
        return ((Exp((angle,)),) if angle else ()) + ((Power(0, 1),) if f else ())

    def angle_and_mirror(self, value: tuple[float, int]) -> tuple[float, bool]:
        """``(angle, f)``."""
        return value[0], bool(value[1])


def SO(n: int) -> SO2 | SpecialOrthogonal:
    """The rotations of R^n, ``n >= 2``: :class:`SO2` for the plane, else :class:`SpecialOrthogonal`."""
    _check_dimension("SO", n)
    return SO2() if n == 2 else SpecialOrthogonal(n)


def O(n: int) -> O2 | Orthogonal:  # noqa: E743 - the group's name
    """The rotations and reflections of R^n, ``n >= 2``: :class:`O2` for the plane, else :class:`Orthogonal`."""
    _check_dimension("O", n)
    return O2() if n == 2 else Orthogonal(n)


def _check_dimension(family: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ArgumentError(explain(f"{family}(n) with an integer n >= 2", repr(n), f"e.g. {family}(3)"))


def _wrap(angle: float) -> float:
    """The angle in ``(-pi, pi]``."""
    wrapped = math.remainder(angle, 2 * math.pi)
    return math.pi if wrapped == -math.pi else wrapped
