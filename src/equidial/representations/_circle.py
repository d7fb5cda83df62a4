"""A real orthogonal action of the circle on the pixels of a grid.

Interpolated rotation matrices are no representation: not orthogonal, and their powers do not come back. Here
the sampled disc harmonics ``J_m(k r) e^(i m phi)`` are orthonormalised inside the sectors of an EXACT symmetry
of the grid (the quarter turn of a square, the half turn of a rectangle), in the order of their band limit ``k``,
and each basis vector keeps its frequency ``m``. The result is real, orthogonal, a homomorphism, equal to the
exact turn at its angle and to the identity at a full turn.

The order: ``k`` runs over the zeros of ``J_m'`` divided by ``R``, the Neumann modes of the disc with diameter
``n`` (``R = sqrt(h w) / 2``), so that the constant comes first.

Construction ``"disc-harmonics-1"``: never changed, only added to, because saved models rely on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from equidial.representations._bessel import BesselCache
from equidial.representations._blocks import BlockBasis

CONSTRUCTION = "disc-harmonics-1"

# A candidate joins the basis when this part of its norm lies outside the span of the vectors before it. Small
# values accept vectors that are mostly rounding, large ones leave gaps that only single pixels can fill; from
# 0.05 to 0.2 the invariance error of the result does not depend on it.
_ACCEPT = 0.1

# Candidates projected at once on large grids: products of matrices instead of vectors.
_BATCH = 32

# Up to this many pixels every operation stands as it always did: Gram-Schmidt amplifies rounding, and the bits of
# saved models must come out again. Larger grids, which no earlier version could filter, go in batches, read Bessel
# values off tables and fix signs by a rule that mirror images cannot tie.
_ONE_BY_ONE = 4096

_CHUNK = 32  # radial parts evaluated at a time


@dataclass(frozen=True)
class CircleBasis:
    """A real orthonormal basis of the pixels in which the circle acts by plane rotations.

    ``pairs`` ``[2, count]``: columns ``(c, s)`` of ``basis`` with ``rho(t) c = cos(mt) c + sin(mt) s``;
    ``frequency`` ``[d]`` is ``m > 0`` at ``c``, ``-m`` at ``s`` and 0 at a column that stays still. ``unpaired``:
    still columns that the exact turn turns over, for want of a partner; none where the turn is exact.
    ``free_singles`` counts still columns that had no partner either, but do stay still under the exact turn.
    """

    basis: BlockBasis
    frequency: torch.Tensor
    pairs: torch.Tensor
    unpaired: tuple[int, ...]
    free_singles: int

    @property
    def vectors(self) -> torch.Tensor:
        """The columns as one matrix ``[d, d]``, float64; memory 8 d^2 where the basis has several blocks."""
        return self.basis.to_dense()


def pixel_coordinates(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``(x, y)`` of the pixels, row-major: origin at the centre, ``x`` right, ``y`` up, unit one pixel."""
    y, x = np.meshgrid((h - 1) / 2 - np.arange(h), np.arange(w) - (w - 1) / 2, indexing="ij")
    return x.ravel(), y.ravel()


def circle_basis(h: int, w: int) -> CircleBasis:
    """Build the basis for an ``h x w`` grid; cost O((hw)^3 / 16), memory O((hw)^2)."""
    order = 4 if h == w else 2
    orbits, centre = turn_orbits(h, w, order)
    x, y = pixel_coordinates(h, w)
    first = np.append(orbits[:, 0], centre) if centre is not None else orbits[:, 0]
    radius, angle = np.hypot(x[first], y[first]), np.arctan2(y[first], x[first])
    parts: list[np.ndarray] = []
    frequency: list[int] = []
    unpaired, free_singles, shared = [], 0, BesselCache()
    for residue in (0, 1, 2) if order == 4 else (0, 1):
        sector = Sector(residue, order, orbits, centre, radius, angle, math.sqrt(h * w) / 2, shared)
        sector.fill()
        columns, found = sector.real_columns()
        parts.append(columns)
        frequency += found
        if sector.turned_over:
            unpaired += [len(frequency) - 1] * len(sector.odd_single)
        else:
            free_singles += len(sector.odd_single)
    marks = torch.tensor(frequency, dtype=torch.long)
    first = torch.nonzero(marks > 0).ravel()
    return CircleBasis(
        BlockBasis((torch.from_numpy(np.concatenate(parts, axis=1)),)),
        marks,
        torch.stack([first, first + 1]),
        tuple(unpaired),
        free_singles,
    )


def turn_orbits(h: int, w: int, order: int) -> tuple[np.ndarray, int | None]:
    """Orbits ``[count, order]`` of the exact turn, ``p_(j+1) = index[p_j]``, and the fixed pixel if there is one."""
    index = np.rot90(np.arange(h * w).reshape(h, w), 1 if order == 4 else 2).ravel()
    seen = np.zeros(h * w, dtype=bool)
    orbits, centre = [], None
    for start in range(h * w):
        if seen[start]:
            continue
        orbit = [start]
        while (following := int(index[orbit[-1]])) != start:
            orbit.append(following)
        seen[orbit] = True
        if len(orbit) == order:
            orbits.append(orbit)
        else:
            centre = start
    return np.array(orbits, dtype=int).reshape(-1, order), centre


class Sector:
    """The vectors on which the exact turn ``T`` acts as ``e^(-2 pi i residue / order)``.

    Such a vector is known from its values on one pixel of each orbit, so all work happens on these
    representatives, scaled to keep the norm. Residues 0 and ``order / 2`` are real spaces of pairs
    ``R(r) (cos m phi, sin m phi)``; in between, one complex space and its conjugate carry ``m`` and ``-m``.
    """

    def __init__(
        self,
        residue: int,
        order: int,
        orbits: np.ndarray,
        centre: int | None,
        radius: np.ndarray,
        angle: np.ndarray,
        disc_radius: float,
        shared: BesselCache | None = None,
    ):
        self.residue, self.order, self.disc_radius = residue, order, disc_radius
        self.orbits, self.centre = orbits, centre
        self.complex = 0 < residue < order / 2
        self.turned_over = 2 * residue == order
        self.dim = len(orbits) + (1 if centre is not None and residue == 0 else 0)
        self.radius, self.angle = radius[: self.dim], angle[: self.dim]
        self.weight = np.full(self.dim, math.sqrt(order))
        if centre is not None and residue == 0:
            self.weight[-1] = 1.0
        self.unique_radius, self.radius_index = np.unique(np.round(self.radius, 9), return_inverse=True)
        self._large = orbits.size > _ONE_BY_ONE
        self._least = _ACCEPT
        self._limit = 3.0 * math.sqrt(self.dim * order) + 12.0  # six radians a pixel: beyond even the corners alias
        self._shared = shared or BesselCache()
        self.basis = np.zeros((self.dim, self.dim), dtype=complex if self.complex else float)
        self.filled = 0
        self.frequency_of: list[tuple[int, int]] = []  # (m, first column), pairs of real sectors
        self.complex_frequency: list[int] = []
        self.still: list[int] = []  # columns with m = 0 by construction
        self.singles: list[tuple[int, int]] = []  # (m, column), one vector left of a pair

    def fill(self) -> None:
        """Take candidates in the order of their band limit until the sector is full."""
        candidates, size = self._candidates(), _BATCH if self._large else 1
        while self.filled < self.dim and (batch := list(itertools.islice(candidates, size))):
            self._take([m for m, _ in batch], [wave for _, wave in batch])
        self._complete()
        # one Newton step towards the nearest orthonormal basis: Gram-Schmidt drifts by 1e-12, this leaves 1e-15
        gram = self.basis.conj().T @ self.basis
        self.basis = self.basis @ (1.5 * np.eye(self.dim) - 0.5 * gram)
        self._pair_singles()

    def _take(self, frequencies: list[int], waves: list[np.ndarray]) -> None:
        """Gram-Schmidt over one batch: off the basis so far all at once, then one after the other."""
        coordinates, frame = self._project_off(np.concatenate(waves, axis=1)), None
        if len(waves) > 1:
            # on in coordinates of an orthonormal basis of the batch: small vectors, the same decisions
            frame, coordinates = np.linalg.qr(coordinates)
        found = np.zeros((len(coordinates), 0), dtype=self.basis.dtype)
        column = 0
        for m, wave in zip(frequencies, waves, strict=True):
            if self.filled + found.shape[1] == self.dim:
                break
            rest = _project_off(coordinates[:, column : column + wave.shape[1]], found)
            column += wave.shape[1]
            if self.complex:
                new = self._accept_complex(rest, m)
            else:
                new = self._accept_real(rest, m, self.filled + found.shape[1], frame)
            found = np.concatenate([found, new], axis=1)
        self.basis[:, self.filled : self.filled + found.shape[1]] = found if frame is None else frame @ found
        self.filled += found.shape[1]

    def _waves(self, orders: np.ndarray, radials: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Candidates ``R(r) e^(i m phi)`` for ``|m|`` in ``orders``, with signed ``m``; ``R``: ``[count, radii]``.

        One or two columns of mean norm 1 each; what is next to nothing on the pixels is left out.
        """
        if self.complex:
            orders = np.where(orders % self.order == self.residue, orders, -orders)
        radial = radials[:, self.radius_index] * self.weight
        turned = np.exp(1j * orders[:, None] * self.angle)
        if self.complex:
            waves = (radial * turned)[:, :, None]
        else:
            waves = radial[:, :, None] * np.stack([np.real(turned), np.imag(turned)], axis=2)
        scales = np.sqrt((np.abs(waves) ** 2).sum((1, 2)) / np.where(orders == 0, 1, waves.shape[2]))
        for m, wave, scale in zip(orders.tolist(), waves, scales.tolist(), strict=True):
            if scale >= 1e-9:
                yield m, (wave[:, :1] if m == 0 else wave) / scale

    def _candidates(self) -> Iterator[tuple[int, np.ndarray]]:
        """``m`` and ``J_m(k r) e^(i m phi)``, in the order of ``k``.

        They outnumber the pixels, so that few sizes need :meth:`_complete`. A complex sector holds ``e^(i m phi)`` for
        ``m = residue`` mod ``order`` and ``e^(-i m phi)`` for the others.
        """
        step = self.order if self.residue in (0, self.order / 2) else 2
        below = -1.0
        # most sectors are full long before the limit: zeros beyond seven tenths of it are found only if need be
        for limit in (0.7 * self._limit, self._limit):
            zeros = self._shared.zeros(limit)
            ordered = iter(sorted((z, m) for z, m in zeros if z > below and m % step == self.residue % step))
            while chunk := list(itertools.islice(ordered, _CHUNK)):
                yield from self._waves(np.array([m for _, m in chunk]), self._radials(chunk, limit))
            below = limit

    def _radials(self, chunk: list[tuple[float, int]], limit: float) -> np.ndarray:
        """``J_m(z r / R)`` at the distinct radii for each ``(z, m)``, ``z <= limit``, ``[count, radii]``."""
        z, m = (np.array(values) for values in zip(*chunk, strict=True))
        x = z[:, None] / self.disc_radius * self.unique_radius
        return self._shared.tables(limit * float(self.unique_radius[-1]) / self.disc_radius)(m, x)

    def _project_off(self, v: np.ndarray) -> np.ndarray:
        return _project_off(v, self.basis[:, : self.filled])

    def _accept_complex(self, rest: np.ndarray, m: int) -> np.ndarray:
        """The new column ``[size, 0 or 1]`` that a candidate less its projections gives."""
        size = np.linalg.norm(rest)
        if size <= self._least:
            return rest[:, :0]
        self.complex_frequency.append(m)
        return rest / size

    def _accept_real(self, rest: np.ndarray, m: int, column: int, frame: np.ndarray | None) -> np.ndarray:
        """The new columns ``[size, 0 to 2]``, the first of which gets the number ``column``."""
        least = self._least**2
        gram = rest.T @ rest
        if m > 0 and self.dim - column >= 2:
            (a, c), (_, b) = gram.tolist()
            determinant = a * b - c * c
            if determinant > 0 and (a + b) / 2 - math.hypot((a - b) / 2, c) > least:
                self.frequency_of.append((m, column))
                # the orthonormal pair nearest to (R cos, R sin) keeps their phase relation: rest (rest^T rest)^(-1/2)
                root = math.sqrt(determinant)
                scale = root * math.sqrt(a + b + 2 * root)
                return rest @ (np.array([[b + root, -c], [-c, a + root]]) / scale)
        values, vectors = np.linalg.eigh(gram)
        if values[-1] <= least:
            return rest[:, :0]
        if m == 0:
            self.still.append(column)
        else:
            self.singles.append((m, column))
        single = rest @ vectors[:, -1:]
        single = single / np.linalg.norm(single)
        return single * self._sign(single[:, 0] if frame is None else frame @ single[:, 0])

    def _sign(self, v: np.ndarray) -> float:
        """1 or -1, to be multiplied with a singular vector, which has no sign of its own."""
        if not self._large:
            return 1.0 if v[np.argmax(np.round(np.abs(v), 9))] > 0 else -1.0
        # along a fixed direction without symmetry, so that rounding decides it practically never
        i = np.arange(len(v))
        return 1.0 if float(v @ np.sin(1 + 2 * i + i**2 / 7)) > 0 else -1.0

    def _complete(self) -> None:
        """Fill what the harmonics left with single pixels, centre outwards, in a fixed order."""
        for position in np.lexsort((self.angle, np.round(self.radius, 9))):
            if self.filled == self.dim:
                return
            self._append_pixel(position)

    def _append_pixel(self, position: int) -> None:
        """Add what a single pixel has outside the basis so far, unless that is next to nothing."""
        pixel = np.zeros((self.dim, 1), dtype=self.basis.dtype)
        pixel[position] = 1.0
        rest = self._project_off(pixel)[:, 0]
        size = np.linalg.norm(rest)
        if size > 1e-6:
            if self.complex:
                self.complex_frequency.append(self._frequency_of_pixels())
            else:
                self.singles.append((self._frequency_of_pixels(), self.filled))
            self.basis[:, self.filled] = rest / size
            self.filled += 1

    def _frequency_of_pixels(self) -> int:
        return self.residue or self.order

    def _pair_singles(self) -> None:
        """Singles pair with one another, at the lower of their frequencies; an odd one stays over."""
        paired = len(self.singles) // 2 * 2
        self.single_pairs = [
            (min(self.singles[i][0], self.singles[i + 1][0]), self.singles[i][1], self.singles[i + 1][1])
            for i in range(0, paired, 2)
        ]
        self.odd_single = self.singles[paired:]

    def _expand(self, v: np.ndarray) -> np.ndarray:
        """Values on all pixels from those on the representatives, ``v[p_j] = lambda^j v[p_0]``, column by column."""
        eigenvalue = (1, -1j, -1, 1j)[self.residue * 4 // self.order]
        out = np.zeros((self.orbits.size + (self.centre is not None), v.shape[1]), dtype=v.dtype)
        count = len(self.orbits)
        for j in range(self.order):
            factor = eigenvalue**j
            out[self.orbits[:, j]] = v[:count] / math.sqrt(self.order) * (factor if self.complex else factor.real)
        if self.centre is not None and self.residue == 0:
            out[self.centre] = v[-1]
        return out

    def real_columns(self) -> tuple[np.ndarray, list[int]]:
        """Columns on all pixels and their frequencies: adjacent pairs ``m, -m``, then still ones, odd singles last."""
        if self.complex:
            v = self._expand(self.basis) * math.sqrt(2)
            signed = np.array(self.complex_frequency, dtype=int)
            out = np.empty((len(v), 2 * self.dim))
            out[:, 0::2], out[:, 1::2] = v.real, v.imag * np.sign(signed)
            return out, np.stack([abs(signed), -abs(signed)], axis=1).ravel().tolist()
        order: list[int] = []
        frequency: list[int] = []
        for m, column in self.frequency_of:
            order += [column, column + 1]
            frequency += [m, -m]
        for m, first, second in self.single_pairs:
            order += [first, second]
            frequency += [m, -m]
        order += [*self.still, *(column for _, column in self.odd_single)]
        return self._expand(self.basis[:, order]), frequency + [0] * (len(order) - len(frequency))


def _project_off(v: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """``v`` ``[dim, count]`` without its components along orthonormal columns."""
    if basis.shape[1] == 0:
        return v
    for _ in range(2):  # twice is enough (Kahan): the second pass removes the rounding of the first
        v = v - basis @ (v.conj().T @ basis).conj().T
    return v
