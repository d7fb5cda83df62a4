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

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.special
import torch

CONSTRUCTION = "disc-harmonics-1"

# A candidate joins the basis when this part of its norm lies outside the span of the vectors before it. Small
# values accept vectors that are mostly rounding, large ones leave gaps that only single pixels can fill; from
# 0.05 to 0.2 the invariance error of the result does not depend on it.
_ACCEPT = 0.1


@dataclass(frozen=True)
class CircleBasis:
    """Real orthonormal columns ``vectors`` ``[d, d]`` (float64) in which the circle acts by plane rotations.

    ``frequency[j] = m`` marks the first column of a pair ``(c, s)``: ``rho(t) c = cos(mt) c + sin(mt) s``; the
    second column carries ``-m``; 0 marks a column that stays still. ``unpaired`` is the column turned over by
    the exact turn that no partner was left for, or ``None``. ``free_singles`` counts further columns that had
    no partner and were made invariant.
    """

    vectors: torch.Tensor
    frequency: torch.Tensor
    unpaired: int | None
    free_singles: int


def pixel_coordinates(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``(x, y)`` of the pixels, row-major: origin at the centre, ``x`` right, ``y`` up, unit one pixel."""
    y, x = np.meshgrid((h - 1) / 2 - np.arange(h), np.arange(w) - (w - 1) / 2, indexing="ij")
    return x.ravel(), y.ravel()


def circle_basis(h: int, w: int) -> CircleBasis:
    """Build the basis for an ``h x w`` grid; cost O((hw)^3 / 16), memory O((hw)^2)."""
    order = 4 if h == w else 2
    orbits, centre = _orbits(h, w, order)
    x, y = pixel_coordinates(h, w)
    first = np.append(orbits[:, 0], centre) if centre is not None else orbits[:, 0]
    radius, angle = np.hypot(x[first], y[first]), np.arctan2(y[first], x[first])
    sectors = [
        _Sector(residue, order, orbits, centre, radius, angle, math.sqrt(h * w) / 2)
        for residue in ((0, 1, 2) if order == 4 else (0, 1))
    ]
    columns: list[np.ndarray] = []
    frequency: list[int] = []
    unpaired, free_singles = None, 0
    for sector in sectors:
        sector.fill()
        for m, pair in sector.pairs():
            columns += pair
            frequency += [m, -m]
        leftovers = sector.leftovers()
        for column in leftovers:
            if sector.turned_over:
                unpaired = len(columns)
            elif column[0] is None:
                free_singles += 1
            columns.append(column[1])
            frequency.append(0)
    vectors = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
    return CircleBasis(
        torch.from_numpy(np.ascontiguousarray(vectors)),
        torch.tensor(frequency, dtype=torch.long),
        unpaired,
        free_singles,
    )


def _orbits(h: int, w: int, order: int) -> tuple[np.ndarray, int | None]:
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


class _Sector:
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
        self.basis = np.zeros((self.dim, self.dim), dtype=complex if self.complex else float)
        self.filled = 0
        self.frequency_of: list[tuple[int, int]] = []  # (m, first column), pairs of real sectors
        self.complex_frequency: list[int] = []
        self.still: list[int] = []  # columns with m = 0 by construction
        self.singles: list[tuple[int, int]] = []  # (m, column), one vector left of a pair

    def fill(self) -> None:
        """Take candidates in the order of their band limit until the sector is full."""
        for m, k in self._candidates():
            if self.filled == self.dim:
                break
            radial = scipy.special.jv(m, k * self.unique_radius)[self.radius_index] * self.weight
            if self.complex:
                # the sector holds e^(i m phi) for m = residue mod order and e^(-i m phi) for the others
                signed = m if m % self.order == self.residue else -m
                self._accept_complex(radial * np.exp(1j * signed * self.angle), signed)
            elif m == 0:
                self._accept_real(radial[:, None], 0)
            else:
                waves = np.stack([np.cos(m * self.angle), np.sin(m * self.angle)], axis=1)
                self._accept_real(radial[:, None] * waves, m)
        self._complete()
        # one Newton step towards the nearest orthonormal basis: Gram-Schmidt drifts by 1e-12, this leaves 1e-15
        gram = self.basis.conj().T @ self.basis
        self.basis = self.basis @ (1.5 * np.eye(self.dim) - 0.5 * gram)
        self._pair_singles()

    def _candidates(self) -> Iterator[tuple[int, float]]:
        """``(m, k)`` in the order of ``k``; they outnumber the pixels, so that few sizes need :meth:`_complete`."""
        scale = math.sqrt(self.dim * self.order)
        step = self.order if self.residue in (0, self.order / 2) else 2
        found = []
        limit = 3.0 * scale + 12.0  # six radians a pixel: beyond that even the corners alias
        for m in range(self.residue, int(limit) + 1, step):
            zeros = scipy.special.jnp_zeros(m, int(limit / math.pi) + 4)
            if m == 0:
                zeros = np.append(0.0, zeros)
            found += [(z / self.disc_radius, m) for z in zeros if z <= limit]
        for k, m in sorted(found):
            yield m, k

    def _project_off(self, v: np.ndarray) -> np.ndarray:
        basis = self.basis[:, : self.filled]
        for _ in range(2):  # twice is enough (Kahan): the second pass removes the rounding of the first
            v = v - basis @ (v.conj().T @ basis).conj().T
            if np.linalg.norm(v) < _ACCEPT / 2:  # rejected whatever the second pass finds
                return v
        return v

    def _append(self, v: np.ndarray) -> int:
        self.basis[:, self.filled] = v
        self.filled += 1
        return self.filled - 1

    def _accept_complex(self, v: np.ndarray, m: int) -> None:
        norm = np.linalg.norm(v)
        if norm < 1e-9:
            return
        rest = self._project_off(v / norm)
        size = np.linalg.norm(rest)
        if size > _ACCEPT:
            self._append(rest / size)
            self.complex_frequency.append(m)

    def _accept_real(self, pair: np.ndarray, m: int) -> None:
        scale = np.linalg.norm(pair) / math.sqrt(pair.shape[1])
        if scale < 1e-9:
            return
        u, s, vh = np.linalg.svd(self._project_off(pair / scale), full_matrices=False)
        rank = int((s > _ACCEPT).sum())
        if rank == 0:
            return
        if m == 0:
            self.still.append(self._append(_sign_fixed(u[:, 0])))
        elif rank == 2 and self.dim - self.filled >= 2:
            polar = u @ vh  # the orthonormal pair nearest to (R cos, R sin): keeps their phase relation
            self.frequency_of.append((m, self._append(polar[:, 0])))
            self._append(polar[:, 1])
        else:
            self.singles.append((m, self._append(_sign_fixed(u[:, 0]))))

    def _complete(self) -> None:
        """Fill what the harmonics left with single pixels, centre outwards, in a fixed order."""
        for position in np.lexsort((self.angle, np.round(self.radius, 9))):
            if self.filled == self.dim:
                return
            pixel = np.zeros(self.dim, dtype=self.basis.dtype)
            pixel[position] = 1.0
            rest = self._project_off(pixel)
            size = np.linalg.norm(rest)
            if size > 1e-6:
                column = self._append(rest / size)
                if self.complex:
                    self.complex_frequency.append(self.residue)
                else:
                    self.singles.append((self.order if self.residue == 0 else self.residue, column))

    def _pair_singles(self) -> None:
        """Singles pair with one another, at the lower of their frequencies; an odd one stays over."""
        paired = len(self.singles) // 2 * 2
        self.single_pairs = [
            (min(self.singles[i][0], self.singles[i + 1][0]), self.singles[i][1], self.singles[i + 1][1])
            for i in range(0, paired, 2)
        ]
        self.odd_single = self.singles[paired:]

    def _expand(self, v: np.ndarray) -> np.ndarray:
        """Values on all pixels from the values on the representatives: ``v[p_j] = lambda^j v[p_0]``."""
        eigenvalue = (1, -1j, -1, 1j)[self.residue * 4 // self.order]
        out = np.zeros(self.orbits.size + (self.centre is not None), dtype=complex)
        count = len(self.orbits)
        for j in range(self.order):
            out[self.orbits[:, j]] = v[:count] / math.sqrt(self.order) * eigenvalue**j
        if self.centre is not None and self.residue == 0:
            out[self.centre] = v[-1]
        return out

    def _expand_real(self, column: int) -> np.ndarray:
        return np.real(self._expand(self.basis[:, column]))

    def pairs(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """``(m, [c, s])`` with ``m > 0`` and ``rho(t) c = cos(mt) c + sin(mt) s``."""
        if self.complex:
            for column, m in enumerate(self.complex_frequency):
                v = self._expand(self.basis[:, column]) * math.sqrt(2)
                yield abs(m), [v.real, v.imag if m > 0 else -v.imag]
            return
        for m, column in self.frequency_of:
            yield m, [self._expand_real(column + i) for i in (0, 1)]
        for m, first, second in self.single_pairs:
            yield m, [self._expand_real(i) for i in (first, second)]

    def leftovers(self) -> list[tuple[int | None, np.ndarray]]:
        """Columns that stay still: ``(0, v)`` by construction, ``(None, v)`` for want of a partner."""
        if self.complex:
            return []
        out: list[tuple[int | None, np.ndarray]] = [(0, self._expand_real(i)) for i in self.still]
        return out + [(None, self._expand_real(i)) for _, i in self.odd_single]


def _sign_fixed(v: np.ndarray) -> np.ndarray:
    """``v`` or ``-v``, whichever is positive at its largest entry: singular vectors have no sign of their own."""
    largest = np.argmax(np.round(np.abs(v), 9))
    return v if v[largest] > 0 else -v
