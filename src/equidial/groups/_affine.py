"""Groups that are not compact: translations of R^d, scalings, motions of the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Exp, Group, GroupElement, Word, check_count, uniform_in_ball
from equidial.groups._matrix import MatrixGroup


class _Additive(Group):
    """The group R^n under addition: the coordinate is the tuple ``t``, and ``exp`` is the identity map."""

    @property
    def order(self) -> None:
        """Infinite."""
        return None

    @property
    def radius(self) -> float:
        """Infinite."""
        return math.inf

    def identity(self) -> GroupElement:
        """0."""
        return GroupElement(self, (0.0,) * self.lie_dim)

    def element(self, value: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """The element with these coordinates."""
        values = tuple(torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist())
        if len(values) != self.lie_dim or not all(math.isfinite(v) for v in values):
            raise ArgumentError(
                explain(f"{self.lie_dim} finite coordinates of {self.name}", repr(value), "pass one per generator")
            )
        return GroupElement(self, values)

    def exp(self, t: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """The element with coordinates ``t``."""
        return self.element(t)

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """None."""
        return ()

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` elements, uniform in the ball ``||t|| <= sample_radius``."""
        check_count(n)
        return [self.element(t) for t in uniform_in_ball(n, self.lie_dim, self.sample_radius, generator)]

    def compose_values(self, a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
        """Coordinates add."""
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def invert_value(self, a: tuple[float, ...]) -> tuple[float, ...]:
        """Coordinates change sign."""
        return tuple(-x for x in a)

    def distance_of_value(self, a: tuple[float, ...]) -> float:
        """``||t||``."""
        return math.hypot(*a)

    def word(self, value: tuple[float, ...]) -> Word:
        """One exponential."""
        return (Exp(value),) if any(value) else ()

    def structure_constants(self) -> torch.Tensor:
        """Zero: the group commutes."""
        n = self.lie_dim
        return torch.zeros(n, n, n, dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class Translation(_Additive):
    """Shifts of R^d by real amounts, not cyclic: the coordinate counts pixels, towards larger indices, axis by axis.

    What leaves a window does not come back, so that its action on a grid is not orthogonal. Declared set of samples:
    ``||t|| <= 1`` pixel. (Cyclic shifts by whole pixels are :class:`Shift`.)
    """

    dims: int

    def __post_init__(self) -> None:
        if isinstance(self.dims, bool) or self.dims not in (1, 2, 3):
            raise ArgumentError(
                explain("Translation(dims) with dims 1, 2 or 3", repr(self.dims), "e.g. Translation(2)")
            )

    @property
    def name(self) -> str:
        """``"R<dims>"``."""
        return f"R{self.dims}"

    @property
    def lie_dim(self) -> int:
        """One generator per axis."""
        return self.dims

    @property
    def sample_radius(self) -> float:
        """1 pixel."""
        return 1.0


@dataclass(frozen=True, repr=False)
class Scale(_Additive):
    """Magnification about the centre; the coordinate is the logarithm of the factor, ``x -> e^t x``.

    The natural representation is on vectors of the plane. Declared set of samples: ``|t| <= log(1.25)``.
    """

    @property
    def name(self) -> str:
        """``"Scale"``."""
        return "Scale"

    @property
    def lie_dim(self) -> int:
        """1."""
        return 1

    @property
    def sample_radius(self) -> float:
        """``log(1.25)``."""
        return math.log(1.25)

    @property
    def natural_dim(self) -> int:
        """2."""
        return 2

    def natural_matrix(self, value: tuple[float, ...]) -> torch.Tensor:
        """``e^t I``."""
        return math.exp(value[0]) * torch.eye(2, dtype=torch.float64)

    def natural_generators(self) -> torch.Tensor:
        """The identity."""
        return torch.eye(2, dtype=torch.float64)[None]


@dataclass(frozen=True, repr=False)
class SE2(MatrixGroup):
    """Motions of the plane on homogeneous vectors ``(x, y, 1)``; the coordinate is the 3 x 3 matrix.

    Basis: the rotation (counterclockwise), the translation along ``x``, along ``y``. Not compact: samples have
    ``||t|| <= 1``.
    """

    @property
    def name(self) -> str:
        """``"SE2"``."""
        return "SE2"

    @property
    def natural_dim(self) -> int:
        """3."""
        return 3

    @property
    def order(self) -> None:
        """Infinite."""
        return None

    @property
    def lie_dim(self) -> int:
        """3."""
        return 3

    @property
    def radius(self) -> float:
        """Infinite."""
        return math.inf

    @property
    def sample_radius(self) -> float:
        """1."""
        return 1.0

    def natural_generators(self) -> torch.Tensor:
        """Rotation, translation along ``x``, along ``y``."""
        out = torch.zeros(3, 3, 3, dtype=torch.float64)
        out[0, 0, 1], out[0, 1, 0] = -1.0, 1.0
        out[1, 0, 2] = out[2, 1, 2] = 1.0
        return out

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """None."""
        return ()

    def check_member(self, matrix: torch.Tensor) -> None:
        """Raise ``ArgumentError`` unless the matrix is a rotation and a translation."""
        turn = matrix[:2, :2]
        error = float((turn.mT @ turn - torch.eye(2, dtype=torch.float64)).abs().max())
        error += float((matrix[2] - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).abs().max())
        if error > 1e-9 or float(torch.linalg.det(turn)) < 0:
            raise ArgumentError(
                explain("a homogeneous matrix [[R, p], [0, 1]] of SE2", f"one off by {error:.1e}", "use exp()")
            )
