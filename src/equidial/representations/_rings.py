"""A cheap real orthogonal action of the circle on the pixels of a large grid: ring by ring.

The sectors of :mod:`equidial.representations._circle` fill up one vector after the other, at a cost that grows as
the cube of the number of pixels. Here the pixels are parted into rings one pixel wide, and the waves ``e^(i m phi)``
sampled at the pixels of a ring are orthonormalised inside the sectors of the exact turn OF THAT RING, in the order
of ``|m|``. A ring of ``k`` pixels gives a block of size ``k x k``; nothing larger is ever formed. The result is
real, orthogonal, a homomorphism, equal to the exact turn at its angle and to the identity at a full turn.

A ring whose real sector (turn +1 or -1) has odd dimension leaves a single vector without a partner. Singles of one
sector are paired with one another from ring to ring, inside out, at the lower of their frequencies, so that at most
one is left over in each sector: in the sector -1 only where an exact action is impossible on this grid.

The price: the waves of different rings know nothing of one another. The still directions are the constants on each
ring, corners included, which are less still on resampled images than the disc harmonics.

Construction ``"rings-1"``: never changed, only added to, because saved models rely on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from equidial.representations._blocks import BlockBasis
from equidial.representations._circle import CircleBasis, Sector, pixel_coordinates, turn_orbits

CONSTRUCTION = "rings-1"

# A wave joins the basis of its ring when this part of its norm lies outside the span of the waves before it. On the
# arcs of the corners waves resemble one another, and small values amplify rounding step by step, up to 1e-3 at 0.1 on
# 224 x 224 pixels; at 0.6 it stays below 1e-13. What that leaves out, one vector in thirty, single pixels fill.
_LEAST = 0.6


def rings_basis(h: int, w: int) -> CircleBasis:
    """Build the basis for an ``h x w`` grid: one block per ring, inside out.

    Cost O(sum k^3) and memory 8 sum k^2 bytes over rings of ``k <= 2 pi r`` pixels: O((hw)^2) and O((hw)^1.5).
    """
    order = 4 if h == w else 2
    orbits, centre = turn_orbits(h, w, order)
    rings = ring_numbers(h, w)
    x, y = pixel_coordinates(h, w)
    blocks: list[torch.Tensor] = []
    pixels: list[np.ndarray] = []
    frequency: list[int] = []
    singles: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # by turned_over: (m, column)
    of_orbit = rings[orbits[:, 0]]
    for ring in np.unique(rings):
        members = orbits[of_orbit == ring].ravel()
        local, local_centre = np.arange(len(members)).reshape(-1, order), None
        here, first = members, members[::order]
        if centre is not None and rings[centre] == ring:
            here, first, local_centre = np.append(members, centre), np.append(first, centre), len(members)
        radius, angle = np.hypot(x[first], y[first]), np.arctan2(y[first], x[first])
        parts = []
        for residue in (0, 1, 2) if order == 4 else (0, 1):
            sector = RingSector(residue, order, local, local_centre, radius, angle)
            sector.fill()
            columns, found = sector.real_columns()
            parts.append(columns)
            frequency += found
            singles[sector.turned_over] += [(m, len(frequency) - 1) for m, _ in sector.odd_single]
        blocks.append(torch.from_numpy(np.concatenate(parts, axis=1)))
        pixels.append(here)
    marks = torch.tensor(frequency, dtype=torch.long)
    first = torch.nonzero(marks > 0).ravel()
    pairs = [torch.stack([first, first + 1])]
    for found in singles.values():
        for (m, c), (n, s) in zip(found[0::2], found[1::2], strict=False):
            marks[c], marks[s] = min(m, n), -min(m, n)
            pairs.append(torch.tensor([[c], [s]]))
    return CircleBasis(
        BlockBasis(tuple(blocks), torch.from_numpy(np.concatenate(pixels))),
        marks,
        torch.cat(pairs, dim=1),
        tuple(column for _, column in singles[True][len(singles[True]) // 2 * 2 :]),
        len(singles[False]) % 2,
    )


def ring_numbers(h: int, w: int) -> np.ndarray:
    """The ring of each pixel, row-major: ``floor(r)``, or ``floor(r + 1/2)`` where a pixel lies at the centre.

    So the pixels next to the axes lie in the middle of their rings. In integers: no rounding moves a pixel.
    """
    x, y = pixel_coordinates(h, w)
    twice = np.sqrt(np.rint((2 * x) ** 2 + (2 * y) ** 2)).astype(int)  # floor(2 r): roots of integers are exact
    return (twice + (h % 2 and w % 2)) // 2


class RingSector(Sector):
    """One sector of one ring: angular waves alone, since no two pixels of a ring lie at the same angle."""

    def __init__(
        self, residue: int, order: int, orbits: np.ndarray, centre: int | None, radius: np.ndarray, angle: np.ndarray
    ):
        super().__init__(residue, order, orbits, centre, radius, angle, 1.0)
        self._large = True
        self._least = _LEAST

    def _candidates(self) -> Iterator[tuple[int, np.ndarray]]:
        """``|m|`` ascending up to six radians a pixel, signed in complex sectors, with a flat radial part."""
        limit = int(6 * self.radius.max(initial=0.0)) + 12
        orders = np.arange(self.residue, limit + 1, 2 if self.complex else self.order)
        yield from self._waves(orders, np.ones((len(orders), len(self.unique_radius))))

    def _complete(self) -> None:
        """Fill what the waves left with single pixels, each time the one that lies outside the basis the most."""
        while self.filled < self.dim:
            inside = np.square(np.abs(self.basis[:, : self.filled])).sum(1)
            self._append_pixel(int(np.argmin(np.round(inside, 6))))

    def _frequency_of_pixels(self) -> int:
        """The one of this sector next to three radians a pixel: a single pixel is as fine as the ring goes."""
        return super()._frequency_of_pixels() + self.order * int(3 * self.radius.max() / self.order)
