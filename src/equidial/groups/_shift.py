"""Shifts of one-, two- and three-dimensional grids."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Group, GroupElement, Power, Word, check_count


@dataclass(frozen=True, repr=False)
class Shift(Group):
    """Integer shifts along ``dims`` axes; the coordinate is a tuple of steps, one per axis, first axis first.

    Without ``period`` the group is ``Z^dims``. With a period per axis it is the finite group of cyclic shifts
    of a grid of that size. Generators: one step along each axis, length 1; the distance of an element is the
    smallest number of one-pixel steps. ``sample`` on ``Z^dims`` is uniform on steps in ``-16..16``.
    """

    dims: int
    period: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dims, bool) or self.dims not in (1, 2, 3):
            raise ArgumentError(explain("Shift(dims) with dims 1, 2 or 3", repr(self.dims), "e.g. Shift(2)"))
        if self.period is not None:
            period = tuple(int(p) for p in self.period)
            if len(period) != self.dims or min(period) < 1:
                raise ArgumentError(explain(f"{self.dims} periods >= 1", repr(self.period), "give one period per axis"))
            object.__setattr__(self, "period", period)

    @property
    def name(self) -> str:
        """``"T<dims>"``, with the period in brackets where there is one."""
        suffix = "" if self.period is None else f"[{'x'.join(map(str, self.period))}]"
        return f"T{self.dims}{suffix}"

    @property
    def order(self) -> int | None:
        """Product of the periods, ``None`` for ``Z^dims``."""
        return None if self.period is None else math.prod(self.period)

    @property
    def sample_radius(self) -> float:
        """The radius; ``16 dims`` for ``Z^dims``."""
        return self.radius if self.period is not None else 16.0 * self.dims

    @property
    def is_stable(self) -> bool:
        """Shifts commute, so that every set of steps is closed under conjugation."""
        return True

    @property
    def radius(self) -> float:
        """``sum_i floor(period_i / 2)``; infinite for ``Z^dims``."""
        return math.inf if self.period is None else float(sum(p // 2 for p in self.period))

    def identity(self) -> GroupElement:
        """No step."""
        return GroupElement(self, (0,) * self.dims)

    def element(self, value: tuple[int, ...]) -> GroupElement:
        """The shift by ``value[i]`` steps along axis ``i`` (towards larger indices)."""
        value = tuple(int(v) for v in value)
        if len(value) != self.dims:
            raise ArgumentError(explain(f"{self.dims} steps", repr(value), "give one step count per axis"))
        return GroupElement(self, self._reduce(value))

    def elements(self) -> list[GroupElement]:
        """All cyclic shifts, first axis slowest."""
        if self.period is None:
            return super().elements()
        return [GroupElement(self, v) for v in itertools.product(*(range(p) for p in self.period))]

    def elements_within(self, radius: float) -> list[GroupElement]:
        """All shifts of at most ``radius`` one-pixel steps, in either direction, the identity first."""
        if self.period is not None:
            return [g for g in self.elements() if g.distance() <= radius * (1 + 1e-12)]
        reach = range(-math.floor(radius), math.floor(radius) + 1)
        values = [v for v in itertools.product(reach, repeat=self.dims) if sum(map(abs, v)) <= radius]
        return [GroupElement(self, v) for v in sorted(values, key=lambda v: (sum(map(abs, v)), v))]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """One step along each axis."""
        steps = (tuple(int(i == axis) for i in range(self.dims)) for axis in range(self.dims))
        return tuple(DiscreteGenerator(self.element(step), 1.0) for step in steps)

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` shifts: uniform over the finite group, or with steps uniform in ``-16..16``."""
        check_count(n)
        bounds = [(0, p - 1) for p in self.period] if self.period else [(-16, 16)] * self.dims
        columns = [torch.randint(low, high + 1, (n,), generator=generator).tolist() for low, high in bounds]
        return [self.element(value) for value in zip(*columns, strict=True)]

    def compose_values(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """Steps add."""
        return self._reduce(tuple(x + y for x, y in zip(a, b, strict=True)))

    def invert_value(self, a: tuple[int, ...]) -> tuple[int, ...]:
        """Steps change sign."""
        return self._reduce(tuple(-x for x in a))

    def distance_of_value(self, a: tuple[int, ...]) -> float:
        """The number of one-pixel steps, the short way round."""
        if self.period is None:
            return float(sum(abs(x) for x in a))
        return float(sum(min(x % p, -x % p) for x, p in zip(a, self.period, strict=True)))

    def word(self, value: tuple[int, ...]) -> Word:
        """Powers of the steps, axis by axis, the short way round."""
        steps = value
        if self.period is not None:
            steps = tuple(v if 2 * v <= p else v - p for v, p in zip(value, self.period, strict=True))
        return tuple(Power(axis, step) for axis, step in enumerate(steps) if step)

    def common_quotient(self, other: Group) -> Group:
        """Cyclic shifts whose periods are multiples of both."""
        if isinstance(other, Shift) and other.dims == self.dims:
            if self.period is None or other.period is None:
                return self if other.period is None else other
            return Shift(self.dims, tuple(math.lcm(*p) for p in zip(self.period, other.period, strict=True)))
        return super().common_quotient(other)

    def is_quotient_of(self, other: Group) -> bool:
        """Shifts of ``Z^dims`` act on every cyclic grid, cyclic shifts on grids whose period divides theirs."""
        if not isinstance(other, Shift) or other.dims != self.dims:
            return False
        if other.period is None or self.period is None:
            return other.period is None
        return all(p % q == 0 for p, q in zip(other.period, self.period, strict=True))

    def _reduce(self, value: tuple[int, ...]) -> tuple[int, ...]:
        if self.period is None:
            return value
        return tuple(v % p for v, p in zip(value, self.period, strict=True))
