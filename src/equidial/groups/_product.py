"""Direct products of groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Exp, Group, GroupElement, Power, Word


@dataclass(frozen=True, repr=False)
class Product(Group):
    """``G_1 x .. x G_k``; the coordinate is the tuple of coordinates. ``G * H`` builds it.

    Generators: those of ``G_1``, then of ``G_2``, .. The distance is the sum of the factors' (for groups without
    discrete generators the root of the sum of squares: ``||t||``).
    """

    factors: tuple[Group, ...]

    def __post_init__(self) -> None:
        flat: list[Group] = []
        for factor in self.factors:
            if not isinstance(factor, Group):
                raise ArgumentError(explain("groups as factors", repr(factor), "e.g. Product((SO(3), C(4)))"))
            flat += factor.factors if isinstance(factor, Product) else [factor]
        if len(flat) < 2:
            raise ArgumentError(explain("at least two factors", f"{len(flat)}", "e.g. SO(3) * Permutation(4)"))
        if any(s.on_invariants for factor in flat for s in factor.discrete_generators()):
            raise ArgumentError(
                explain(
                    "factors whose letters are closed under conjugation",
                    ", ".join(f.name for f in flat),
                    "use SO(n), or O(n) with odd n, as a factor",
                )
            )
        object.__setattr__(self, "factors", tuple(flat))

    @property
    def name(self) -> str:
        """``"SO3 x S4"``."""
        return " x ".join(f.name for f in self.factors)

    @property
    def order(self) -> int | None:
        """Product of the orders."""
        orders = [f.order for f in self.factors]
        return None if any(o is None for o in orders) else math.prod(o for o in orders if o is not None)

    @property
    def is_finite(self) -> bool:
        """Whether every factor can be listed."""
        return all(f.is_finite for f in self.factors)

    @property
    def lie_dim(self) -> int:
        """Sum over the factors."""
        return sum(f.lie_dim for f in self.factors)

    @property
    def radius(self) -> float:
        """As the distance combines."""
        return self._combine([f.radius for f in self.factors])

    @property
    def sample_radius(self) -> float:
        """As the distance combines."""
        return self._combine([f.sample_radius for f in self.factors])

    @property
    def is_stable(self) -> bool:
        """Whether every factor is."""
        return all(f.is_stable for f in self.factors)

    def identity(self) -> GroupElement:
        """The identities."""
        return GroupElement(self, tuple(f.identity().value for f in self.factors))

    def element(self, value: tuple[Any, ...]) -> GroupElement:
        """The element with these coordinates."""
        if len(value) != len(self.factors):
            raise ArgumentError(explain(f"{len(self.factors)} coordinates", repr(value), "give one per factor"))
        return GroupElement(self, tuple(f.element(v).value for f, v in zip(self.factors, value, strict=True)))

    def exp(self, t: Any) -> GroupElement:
        """Coordinates of the factors one after the other."""
        values = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        if not self.lie_dim:
            return super().exp(t)
        if values.numel() != self.lie_dim:
            raise ArgumentError(
                explain(f"{self.lie_dim} Lie coordinates of {self.name}", f"{values.numel()}", "one per generator")
            )
        parts = torch.split(values, [f.lie_dim for f in self.factors])
        return GroupElement(
            self,
            tuple(
                (f.exp(part) if f.lie_dim else f.identity()).value for f, part in zip(self.factors, parts, strict=True)
            ),
        )

    def elements(self) -> list[GroupElement]:
        """All tuples, first factor slowest."""
        if not self.is_finite:
            return super().elements()
        values: list[tuple[Any, ...]] = [()]
        for f in self.factors:
            values = [(*v, g.value) for v in values for g in f.elements()]
        return [GroupElement(self, v) for v in values]

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """Those of the factors, the other coordinates at the identity."""
        neutral = self.identity().value
        return tuple(
            DiscreteGenerator(GroupElement(self, (*neutral[:i], s.element.value, *neutral[i + 1 :])), s.length)
            for i, f in enumerate(self.factors)
            for s in f.discrete_generators()
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """Independent samples of the factors."""
        columns = [f.sample(n, generator) for f in self.factors]
        return [GroupElement(self, tuple(g.value for g in row)) for row in zip(*columns, strict=True)]

    def compose_values(self, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        """Factor by factor."""
        return tuple(f.compose_values(x, y) for f, x, y in zip(self.factors, a, b, strict=True))

    def invert_value(self, a: tuple[Any, ...]) -> tuple[Any, ...]:
        """Factor by factor."""
        return tuple(f.invert_value(x) for f, x in zip(self.factors, a, strict=True))

    def distance_of_value(self, a: tuple[Any, ...]) -> float:
        """Sum of the distances, or the root of their squares where all factors are pure Lie groups."""
        return self._combine([f.distance_of_value(x) for f, x in zip(self.factors, a, strict=True)])

    def word(self, value: tuple[Any, ...]) -> Word:
        """The words of the factors one after the other."""
        pieces: list[Exp | Power] = []
        lie, letters = 0, 0
        for f, x in zip(self.factors, value, strict=True):
            before, after = (0.0,) * lie, (0.0,) * (self.lie_dim - lie - f.lie_dim)
            for piece in f.word(x):
                if isinstance(piece, Exp):
                    pieces.append(Exp((*before, *piece.t, *after)))
                else:
                    pieces.append(Power(piece.letter + letters, piece.exponent))
            lie += f.lie_dim
            letters += len(f.discrete_generators())
        return tuple(pieces)

    def structure_constants(self) -> torch.Tensor:
        """Block by block."""
        out = torch.zeros(self.lie_dim, self.lie_dim, self.lie_dim, dtype=torch.float64)
        start = 0
        for f in self.factors:
            stop = start + f.lie_dim
            out[start:stop, start:stop, start:stop] = f.structure_constants()
            start = stop
        return out

    def _combine(self, parts: list[float]) -> float:
        pure = not any(f.discrete_generators() for f in self.factors)
        return math.hypot(*parts) if pure else float(sum(parts))
