"""Spectra of direct sums, pair by pair of their summands.

``Hom(sum_j m_j X_j, sum_i n_i Y_i)`` is the direct sum of ``n_i m_j`` copies of ``Hom(X_j, Y_i)``, and ``L`` maps each
copy by itself, so that the singular values of the whole are those of the pairs and every component lies in one kind of
pair. A space of ``240 x 160`` entries becomes four of at most ``25``. Cost: that of the pairs; what is more, one
gather of rows and columns where equal summands do not stand together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from equidial.filters._constraint import Constraint
from equidial.filters._spectrum import Spectrum, cluster
from equidial.representations import DirectSum, Representation


@dataclass(frozen=True)
class Summands:
    """The summands of a representation by kind: ``(representation, copies)``, and where their entries stand.

    ``order[i]`` is the place in the representation of entry ``i`` of the kinds side by side; ``None``: the same.
    """

    kinds: tuple[tuple[Representation, int], ...]
    order: torch.Tensor | None

    @classmethod
    def of(cls, rep: Representation) -> Summands:
        """All leaves of nested sums; equal ones are copies of each other."""
        places: dict[Representation, list[torch.Tensor]] = {}
        start = 0
        for leaf in _leaves(rep):
            places.setdefault(leaf, []).append(torch.arange(start, start + leaf.dim))
            start += leaf.dim
        order = torch.cat([part for parts in places.values() for part in parts])
        kinds = tuple((leaf, len(parts)) for leaf, parts in places.items())
        return cls(kinds, None if torch.equal(order, torch.arange(start)) else order)

    @property
    def sizes(self) -> list[int]:
        """Entries of each kind, in :attr:`order`."""
        return [copies * rep.dim for rep, copies in self.kinds]


class BlocksSpectrum(Spectrum):
    """The spectrum of a direct sum from the spectra of its pairs of summands.

    Args:
        constraint: the whole.
        on_input, on_output: its summands.
        pairs: the spectrum of ``Hom(X_j, Y_i)`` at ``[i][j]``.
    """

    method = "blocks"

    def __init__(self, constraint: Constraint, on_input: Summands, on_output: Summands, pairs: list[list[Spectrum]]):
        self.pairs, self.on_input, self.on_output = pairs, on_input, on_output
        flat = [spectrum for row in pairs for spectrum in row]
        values, index = cluster(torch.cat([spectrum.sigma for spectrum in flat]), constraint)
        self._labels = index.split([len(spectrum.sigma) for spectrum in flat])
        count = [0] * len(values)
        copies = [n * m for _, n in on_output.kinds for _, m in on_input.kinds]
        for spectrum, labels, times in zip(flat, self._labels, copies, strict=True):
            for label, multiplicity in zip(labels.tolist(), spectrum.multiplicity, strict=True):
                count[label] += times * multiplicity
        super().__init__(constraint, values, count)

    def analyse(self, weight: torch.Tensor) -> list[object]:
        """Coefficients of each pair, row by row."""
        blocks = self._blocks(self.constraint.as_matrices(weight))
        return [spectrum.analyse(block) for spectrum, block in zip(self._flat(), blocks, strict=True)]

    def energies(self, coefficients: list[object]) -> torch.Tensor:
        """Sums over the pairs, by cluster."""
        parts = [s.energies(c) for s, c in zip(self._flat(), coefficients, strict=True)]
        joined = torch.cat(parts)
        index = self._index(joined)
        return joined.new_zeros(len(self.sigma)).index_add(0, index, joined)

    def synthesise(self, coefficients: list[object], factors: torch.Tensor) -> torch.Tensor:
        """The blocks put together again."""
        own = factors[self._index(factors)].split([len(labels) for labels in self._labels])
        blocks = [s.synthesise(c, f) for s, c, f in zip(self._flat(), coefficients, own, strict=True)]
        rows, width = [], len(self.on_input.kinds)
        for i in range(len(self.on_output.kinds)):
            # [..., n, m, d_Y, d_X] -> [..., n d_Y, m d_X]
            parts = [b.transpose(-2, -3).flatten(-4, -3).flatten(-2) for b in blocks[i * width : (i + 1) * width]]
            rows.append(torch.cat(parts, dim=-1))
        matrices = torch.cat(rows, dim=-2)
        for axis, side in ((-1, self.on_input), (-2, self.on_output)):
            if side.order is not None:
                matrices = matrices.index_select(axis, torch.argsort(side.order).to(matrices.device))
        return self.constraint.from_matrices(matrices)

    def defect_norm(self, weight: torch.Tensor) -> float:
        """The root of the sum of squares of the pairs' own, which know of letters that act on invariants only."""
        self.constraint.check(weight)
        blocks = self._blocks(self.constraint.as_matrices(weight.detach().to("cpu", torch.float64)))
        return math.hypot(*(s.defect_norm(b) for s, b in zip(self._flat(), blocks, strict=True)))

    def _flat(self) -> Iterator[Spectrum]:
        return (spectrum for row in self.pairs for spectrum in row)

    def _blocks(self, matrices: torch.Tensor) -> list[torch.Tensor]:
        """``[..., n, m, d_Y, d_X]`` for each pair."""
        for axis, side in ((-1, self.on_input), (-2, self.on_output)):
            if side.order is not None:
                matrices = matrices.index_select(axis, side.order.to(matrices.device))
        found = []
        for rows, (rep_out, n) in zip(matrices.split(self.on_output.sizes, -2), self.on_output.kinds, strict=True):
            # split, not slices: the derivative of a slice writes zeros over all of the matrix
            for block, (rep_in, m) in zip(rows.split(self.on_input.sizes, -1), self.on_input.kinds, strict=True):
                apart = block.unflatten(-1, (m, rep_in.dim)).unflatten(-3, (n, rep_out.dim))
                found.append(apart.transpose(-2, -3))
        return found

    def _index(self, like: torch.Tensor) -> torch.Tensor:
        return self.tensors(like)[1]

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return (torch.cat(self._labels).to(device),)


def _leaves(rep: Representation) -> Iterator[Representation]:
    if not isinstance(rep, DirectSum):
        yield rep
        return
    for copies, term in rep.terms:
        for _ in range(copies):
            yield from _leaves(term)
