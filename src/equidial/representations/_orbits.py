"""Eigenbases of permutations, cycle by cycle."""

from __future__ import annotations

import math

import torch

from equidial.representations._eigenbasis import Eigenbasis


def orbit_eigenbasis(index: torch.Tensor, letters: int) -> Eigenbasis:
    """Fourier vectors of the cycles of ``(P f)[i] = f[index[i]]``: ``f[p_j] = w^j``, eigenvalue ``w``.

    ``letters``: 1, or 0 for the trivial group, whose eigenvalues nobody asks for.
    """
    dim, following_of = len(index), index.tolist()
    u = torch.zeros(dim, dim, dtype=torch.complex128)
    values: list[complex] = []
    seen: set[int] = set()
    for start in range(dim):
        if start in seen:
            continue
        cycle = [start]
        while (following := following_of[cycle[-1]]) != start:
            cycle.append(following)
        seen.update(cycle)
        size = len(cycle)
        steps = torch.arange(size, dtype=torch.float64)
        for m in [0, *range(1, (size + 1) // 2), *([size // 2] if size % 2 == 0 else [])]:
            real = m == 0 or 2 * m == size
            wave = torch.cos(2 * math.pi * m * steps / size) + (
                0 if real else 1j * torch.sin(2 * math.pi * m * steps / size)
            )
            for column in [wave] if real else [wave, wave.conj()]:
                u[cycle, len(values)] = column.to(torch.complex128) / math.sqrt(size)
                # the eigenvalue read off one step of the cycle, exact for quarter turns up to rounding
                values.append(complex(column[1] / column[0]) if size > 1 else 1.0)
    found = torch.tensor(values, dtype=torch.complex128).expand(letters, dim)
    return Eigenbasis(((1, u),), found)
