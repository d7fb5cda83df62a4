"""The coordinates that a continuous kernel sees: of ``u^-1 v`` and of ``u`` itself.

Convention: ``x`` to the right, ``y`` up, angles in radians, counterclockwise, principal in ``(-pi, pi]``; offsets in
units of half the longest side of the window, places in units of half the domain, both from the centre. A mirror has
the coordinate 1, its absence 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from equidial.errors import ArgumentError, explain
from equidial.nn._frequencies import Frequencies
from equidial.nn._samples import GroupSamples

RelativeAngle = Literal["log", "harmonics"]
Support = Literal["disk", "square"]
SPACE = ("x", "y")


@dataclass
class Coordinates:
    """Scaled coordinates of a window and its group samples.

    Attributes:
        kernel: taps along each image axis.
        samples: of the group axis, or ``None``.
        lifts: the input has no group axis.
        relative_axes, absolute_axes: along which the kernel varies with ``u^-1 v`` and with ``u``.
        omega, omega_prime: their scales.
        harmonics: the absolute angle enters as ``cos k theta - 1`` and ``sin k theta`` with ``k = omega'``.
        relative_angle: ``"log"``, the principal angle, cut at pi; ``"harmonics"``, its cosine and sine.
        support: the taps within the disk through the nearest taps of the longest sides, or all.
        domain_size: output places that span ``+-1``; ``None``: those of each image.
    """

    kernel: tuple[int, ...]
    samples: GroupSamples | None
    lifts: bool
    relative_axes: tuple[str, ...]
    omega: Frequencies
    omega_prime: Frequencies
    harmonics: bool
    relative_angle: RelativeAngle
    support: Support
    domain_size: tuple[int, ...] | None

    @property
    def absolute_axes(self) -> tuple[str, ...]:
        """Axes along which the kernel may vary with ``u``."""
        return self.omega_prime.axes

    @property
    def stationary(self) -> int:
        """Number of coordinates of ``u^-1 v``."""
        return len(self.relative_axes) + ("rotation" in self.relative_axes and self.relative_angle == "harmonics")

    @property
    def domain(self) -> int:
        """Number of coordinates of ``u``."""
        return len(self.absolute_axes) + ("rotation" in self.absolute_axes and self.harmonics)

    @property
    def outputs(self) -> int:
        """``U``."""
        return self.samples.size if self.samples is not None else 1

    @property
    def inputs(self) -> int:
        """``V``."""
        return 1 if self.lifts else self.outputs

    def grid(self) -> torch.Tensor:
        """Offsets of all taps, ``[T, axes]`` float64, row-major."""
        half = max(max(self.kernel) - 1, 1) / 2
        return _mesh([(torch.arange(k, dtype=torch.float64) - (k - 1) / 2) / half for k in self.kernel])

    def taps(self) -> torch.Tensor:
        """Indices of the taps in the support."""
        half = max(max(self.kernel) - 1, 1) / 2
        # in Python: how many there are must be known while a compiler traces
        every = [*itertools.product(*([abs(i - (k - 1) / 2) / half for i in range(k)] for k in self.kernel))]
        squares = [sum(x * x for x in offset) for offset in every]
        # an even window has no taps on its axes: the disk holds those next to them, or 2 x 2 taps would all be outside
        outermost = [n for n, offset in zip(squares, every, strict=True) if max(offset) > 1 - 1e-9]
        reach = min(outermost) if self.support == "disk" and outermost else math.inf
        return torch.tensor([i for i, n in enumerate(squares) if n <= reach + 1e-9])

    def places(self, sizes: tuple[int, ...]) -> torch.Tensor:
        """Coordinates of output places, ``[P, axes]`` float64, row-major."""
        spans = self.domain_size or sizes
        return _mesh(
            [
                (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / max((m - 1) / 2, 0.5)
                for n, m in zip(sizes, spans, strict=True)
            ]
        )

    def relative(self, taps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Of ``u^-1 v``, ``[U, V, T, stationary]``, in the dtype and on the device of ``like``."""
        offsets = self.grid()[taps][None, None]
        columns: dict[str, torch.Tensor] = {}
        if self.samples is not None:
            back = _turned_back(self.samples.table.inverse, self.samples.offset)
            offsets = torch.einsum("uij,tj->uti", back, offsets[0, 0])[:, None]
            angle, mirror = self.samples.table.relative_angle, self.samples.table.relative_mirror
            columns = {"rotation": angle[..., None], "flip": mirror[..., None]}
        columns |= {axis: offsets[..., i] for i, axis in enumerate(SPACE[: len(self.kernel)])}
        shape = (self.outputs, self.inputs, len(taps))
        if not self.relative_axes:
            return like.new_zeros(*shape, 0)
        scale, parts = self.omega(self.relative_axes, like), []
        for i, axis in enumerate(self.relative_axes):
            column = columns[axis].expand(shape)
            if axis == "rotation" and self.relative_angle == "harmonics":
                parts += [scale[i] * torch.cos(column).to(like), scale[i] * torch.sin(column).to(like)]
            else:
                parts.append(scale[i] * column.to(like))
        return torch.stack(parts, dim=-1)

    def absolute(
        self, like: torch.Tensor, places: torch.Tensor | None = None, order: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Of ``u``, ``[U, domain]``, or ``[P, U, domain]`` at places; ``None`` for a kernel without ``u``.

        ``order`` reads the samples in another order: the kernel at ``g u`` in the place of that at ``u``.
        """
        if not self.absolute_axes:
            return None
        shape = (self.outputs,) if places is None else (len(places), self.outputs)
        scale, parts = self.omega_prime(self.absolute_axes, like), []
        for i, axis in enumerate(self.absolute_axes):
            if axis in SPACE:
                where = torch.zeros(1) if places is None else places[:, SPACE.index(axis), None]
                parts.append(scale[i] * where.expand(shape).to(like))
                continue
            for column, scaled in self._of_samples(axis):
                column = (column if order is None else column[order]).expand(shape).to(like)
                parts.append(scale[i] * column if scaled else column)
        return torch.stack(parts, dim=-1)

    def _of_samples(self, axis: str) -> Iterator[tuple[torch.Tensor, bool]]:
        """Columns ``[U]`` and whether ``omega'`` scales them."""
        assert self.samples is not None
        table = self.samples.table
        if axis == "flip":
            yield table.mirrored, True
        elif self.harmonics:
            # by index arithmetic, so that samples at the same phase of the harmonic have the same features bit for bit
            n, k = self.samples.rotations, self.harmonic
            phase = 2 * math.pi * torch.remainder(k * table.steps, n).double() / n + k * self.samples.offset
            yield torch.cos(phase) - 1, False
            yield torch.sin(phase), False
        else:
            angle = table.angle + self.samples.offset
            yield torch.where(angle > math.pi, angle - 2 * math.pi, angle), True

    @property
    def harmonic(self) -> int:
        """The integer harmonic of ``u`` that the kernel sees, with ``harmonics=True``.

        More than there are samples is allowed and aliases: ``k`` is ``k mod N`` then. Raises ``ArgumentError`` where it
        is no integer ``>= 0``.
        """
        value = self.omega_prime.value("rotation")
        if value < 0 or value != round(value):
            raise ArgumentError(explain("an integer harmonic >= 0", f"{value:g}", "round it, or use harmonics=False"))
        return int(value)

    def check_harmonics(self) -> None:
        """Raises ``ArgumentError`` for integer harmonics of what is learned, or of nothing."""
        if not self.harmonics:
            return
        if "rotation" not in self.absolute_axes or "rotation" in self.omega_prime.learned:
            raise ArgumentError(
                explain(
                    "a fixed frequency of rotation in omega_prime for harmonics=True",
                    "a learned one" if "rotation" in self.omega_prime.learned else "none",
                    "an integer has no gradient: learn with harmonics=False, the continuous form",
                )
            )
        _ = self.harmonic

    def alias(self) -> str | None:
        """What is wrong with ``omega'`` for the present number of samples, in words; ``None`` where nothing is."""
        if self.samples is None or "rotation" not in self.absolute_axes:
            return None
        k, n = abs(self.omega_prime.value("rotation")), self.samples.rotations
        if n == 1 or k < n / 2:
            return None
        found = f"omega' = {k:g} for rotations with {n} samples"
        if k < n:
            return f"{found}: from {n / 2:g} on, frequencies fold back, and more does not relax further"
        same = f"; harmonic {k:g} is harmonic {int(k) % n}" if self.harmonics else ""
        strict = ", the layer is strict" if self.harmonics and int(k) % n == 0 else ""
        return f"{found}: from {n} on, frequencies alias{same}{strict}"

    def kept_subgroup(self) -> int:
        """The order of the rotations under which an integer harmonic leaves the kernel as it is; 1 elsewhere."""
        if self.samples is None or "rotation" not in self.absolute_axes:
            return self.samples.rotations if self.samples is not None else 1
        if self.harmonics:
            return math.gcd(self.harmonic, self.samples.rotations)
        return self.samples.rotations if self.omega_prime.value("rotation") == 0 else 1


def _mesh(lines: list[torch.Tensor]) -> torch.Tensor:
    """``(x,)`` of one line, ``(x, y)`` of lines along rows and columns: ``y`` points up, rows go down."""
    if len(lines) == 1:
        return lines[0][:, None]
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    return torch.stack((columns.flatten(), -rows.flatten()), dim=-1)


def _turned_back(inverse: torch.Tensor, offset: float) -> torch.Tensor:
    """Matrices of ``(R(offset) u)^-1 = u^-1 R(-offset)``."""
    if offset == 0:
        return inverse
    c, s = math.cos(offset), math.sin(offset)
    return inverse @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
