"""A real orthogonal action of O(2) on the pixels of an odd square grid, with exact quarter turns and flips.

The sampled disc harmonics ``J_m(k r) cos(m psi)`` and ``J_m(k r) sin(m psi)``, ``psi`` measured from the mirror axis,
are even and odd under the left-right mirror. They are orthonormalised apart, in the order of their band limit ``k``
(the Neumann modes of the disc with diameter ``n``), inside the symmetry classes of the EXACT quarter turn ``T`` and
mirror ``M`` of the grid, whose vectors are known from their values on one pixel of each orbit:

* ``m = 0 mod 4``: ``T = 1``, cosines ``M = 1``, sines ``M = -1``;
* ``m = 2 mod 4``: ``T = -1``, cosines ``M = 1``, sines ``M = -1``;
* ``m`` odd: ``T^2 = -1``, cosines ``M = 1``; their partners are ``sin(m pi / 2) T`` times them.

So no rounding and no acceptance can mix parities. A cosine whose sine is refused (or the other way round) is paired
with a single of the other parity, of the same frequency where there is one. Sides of odd length make that possible:
in the class of ``m = 2`` both parities have the same dimension, in that of ``m = 0`` there are ``n`` more even vectors,
which are the ones that stay still, the fewest possible (the traces of the mirrors and turns leave no choice). About
half of them are radial modes, the others cosines that found no sine (``free_singles``). On even sides ``n / 2`` vectors
would be left over.

Construction ``"disc-harmonics-mirror-1"``: never changed, only added to, because saved models rely on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy.special
import torch

from equidial.representations._blocks import BlockBasis
from equidial.representations._circle import CircleBasis, pixel_coordinates

CONSTRUCTION = "disc-harmonics-mirror-1"

# A candidate joins the basis when this part of its norm lies outside the span of the vectors before it.
_ACCEPT = 0.1

# Candidates projected at once: products of matrices instead of vectors.
_BATCH = 32

_Label = tuple[int, int]  # frequency, and the running number of the candidate


def mirror_basis(n: int) -> CircleBasis:
    """Build the basis for an ``n x n`` grid, ``n`` odd: ``M c = c`` and ``M s = -s`` on pairs, ``M = 1`` elsewhere.

    Cost O(n^6 / 64), memory O(n^4).
    """
    assert n % 2, "checked by Pixels"
    x, y = pixel_coordinates(n, n)
    limit = 3.0 * n + 12.0  # six radians a pixel: beyond even the corners alias
    columns: list[np.ndarray] = []
    frequency: list[int] = []
    still: list[np.ndarray] = []
    for residue in (0, 2):
        even, odd = (_Class(n, x, y, residue, parity) for parity in (1, -1))
        # with at most n still vectors there are as many even ones left as odd ones: none of those goes unpaired
        even.fill(_modes(residue, 4, limit, n / 2), most_radial=n)
        odd.fill(_modes(residue, 4, limit, n / 2))
        pairs, singles = _paired(even.labels, odd.labels)
        c, s = even.expanded(), odd.expanded()
        for m, i, j in pairs:
            columns += [c[:, i], s[:, j]]
            frequency += [m, -m]
        still += [c[:, i] for i, (m, _) in enumerate(even.labels) if m == 0]
        free = [c[:, i] for i in singles]
        assert residue == 0 or not free, "both parities have the same dimension"
        still += free
        if residue == 0:
            free_singles = len(free)
    halves = _Class(n, x, y, 1, 1)
    halves.fill(_modes(1, 2, limit, n / 2))
    for c, (m, _) in zip(halves.expanded().T, halves.labels, strict=True):
        turned = np.rot90(c.reshape(n, n)).ravel()
        columns += [c, turned if m % 4 == 1 else -turned]
        frequency += [m, -m]
    first = torch.arange(0, len(frequency), 2)
    return CircleBasis(
        BlockBasis((torch.from_numpy(np.stack([*columns, *still], axis=1)),)),
        torch.tensor(frequency + [0] * len(still), dtype=torch.long),
        torch.stack([first, first + 1]),
        (),
        free_singles,
    )


@dataclass
class _Class:
    """Functions with ``f(-x, y) = parity f`` that the turn moves as a wave of frequency ``residue`` mod 4 (1: odd).

    ``labels``: of the candidate that gave each column.
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    residue: int
    parity: int
    labels: list[_Label] = field(default_factory=list)

    def __post_init__(self) -> None:
        x, y = np.rint(self.x).astype(int), np.rint(self.y).astype(int)
        if self.residue == 1:
            inside = (x >= 0) & (y > 0)
            self._signs = {(1, 1, 0): 1, (-1, 1, 0): 1, (1, -1, 0): -1, (-1, -1, 0): -1}
        else:
            # f(x, y) -> f(y, x) is the mirror after a quarter turn
            swap = self.parity * (1 if self.residue == 0 else -1)
            low, high = np.minimum(x, y), np.maximum(x, y)
            inside = (low >= 0 if self.parity == 1 else low > 0) & (x <= y if swap == 1 else x < y) & (high >= 0)
            self._signs = {
                (a, b, t): (a * b if self.parity == -1 else 1) * (swap if t else 1)
                for a, b, t in itertools.product((1, -1), (1, -1), (0, 1))
            }
        self._pixels = np.nonzero(inside)[0]
        self._px, self._py = x[self._pixels], y[self._pixels]
        self.dim = len(self._pixels)
        self._images = {key: self._index(*key) for key in self._signs}
        sizes = np.stack(list(self._images.values()))
        self._weight = np.sqrt([len(np.unique(orbit)) for orbit in sizes.T]) if self.dim else np.zeros(0)
        radius = np.hypot(self._px, self._py)
        self._radii, self._radius_index = np.unique(np.round(radius, 9), return_inverse=True)
        self._psi = np.arctan2(-self._px, self._py)  # counterclockwise from the upper half of the mirror axis
        self._basis = np.zeros((self.dim, self.dim))

    def _index(self, a: int, b: int, swapped: int) -> np.ndarray:
        """The pixels to which ``(x, y) -> (a x, b y)``, after an exchange of ``x`` and ``y``, takes the own ones."""
        x, y = (self._py, self._px) if swapped else (self._px, self._py)
        half = (self.n - 1) // 2
        return (half - b * y) * self.n + half + a * x

    def fill(self, modes: list[tuple[float, int]], most_radial: int | None = None) -> None:
        """Gram-Schmidt over the modes in order, then single orbits, then one Newton step towards orthonormality."""
        candidates = self._waves(modes)
        while len(self.labels) < self.dim and (batch := list(itertools.islice(candidates, _BATCH))):
            rest = _project_off(np.stack([wave for _, wave in batch], axis=1), self._filled)
            start = len(self.labels)
            for (label, _), column in zip(batch, rest.T, strict=True):
                column = _project_off(column, self._basis[:, start : len(self.labels)])
                size = float(np.linalg.norm(column))
                full = label[0] == 0 and sum(m == 0 for m, _ in self.labels) == most_radial
                if size > _ACCEPT and len(self.labels) < self.dim and not full:
                    self._append(column / size, label)
        while len(self.labels) < self.dim:
            # the orbit that lies outside the basis the most
            position = int(np.argmin(np.round(np.square(self._filled).sum(1), 6)))
            pixel = np.zeros(self.dim)
            pixel[position] = 1.0
            rest = _project_off(pixel, self._filled)
            self._append(rest / np.linalg.norm(rest), (self.residue or 4, -1 - len(self.labels)))
        gram = self._basis.T @ self._basis
        self._basis = self._basis @ (1.5 * np.eye(self.dim) - 0.5 * gram)

    def expanded(self) -> np.ndarray:
        """The columns on all pixels, ``[n^2, dim]``."""
        out = np.zeros((self.n**2, self.dim))
        for key, sign in self._signs.items():
            out[self._images[key]] = sign * self._basis / self._weight[:, None]
        return out

    @property
    def _filled(self) -> np.ndarray:
        return self._basis[:, : len(self.labels)]

    def _append(self, column: np.ndarray, label: _Label) -> None:
        self._basis[:, len(self.labels)] = column
        self.labels.append(label)

    def _waves(self, modes: list[tuple[float, int]]) -> Iterator[tuple[_Label, np.ndarray]]:
        """Label and samples of norm 1 of each mode that this class can hold."""
        for number, (k, m) in enumerate(modes):
            radial = scipy.special.jv(m, k * self._radii)[self._radius_index]
            wave = self._weight * radial * (np.cos(m * self._psi) if self.parity == 1 else np.sin(m * self._psi))
            size = float(np.linalg.norm(wave))
            if size >= 1e-9:
                yield (m, number), wave / size


def _modes(first: int, step: int, limit: float, disc_radius: float) -> list[tuple[float, int]]:
    """``(k, m)`` in the order of ``k``: zeros of ``J_m'`` up to the limit, over the radius; ``m`` in steps."""
    found = []
    for m in range(first, int(limit) + 1, step):
        zeros = scipy.special.jnp_zeros(m, int(limit / math.pi) + 4)
        zeros = np.append(0.0, zeros) if m == 0 else zeros
        found += [(z / disc_radius, m) for z in zeros if z <= limit]
    return sorted(found)


def _paired(even: list[_Label], odd: list[_Label]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Pairs ``(m, even column, odd column)``, and the even columns with ``m > 0`` that are left over.

    The cosine and the sine of one mode first, then singles of one frequency, then the rest at the lower frequency.
    """
    left = [i for i, (m, _) in enumerate(even) if m > 0]
    right = list(range(len(odd)))
    pairs = []
    same = (lambda a, b: a == b, lambda a, b: a[0] == b[0], lambda a, b: True)
    for fits in same:
        for j in list(right):
            i = next((i for i in left if fits(even[i], odd[j])), None)
            if i is not None:
                pairs.append((min(even[i][0], odd[j][0]), i, j))
                left.remove(i)
                right.remove(j)
    assert not right, "odd vectors never outnumber the even ones that move"
    return sorted(pairs, key=lambda pair: pair[1]), left


def _project_off(v: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """``v`` without its components along orthonormal columns."""
    for _ in range(2):  # twice is enough (Kahan): the second pass removes the rounding of the first
        v = v - basis @ (basis.T @ v)
    return v
