"""Common eigenbases of commuting normal matrices, found numerically."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from equidial.representations._base import Eigenbasis, Representation

_TOLERANCE = 1e-11  # relative to the size of a generator

EIGENBASIS_LIMIT = 1024
"""Largest dimension for which an eigenbasis is looked for; cost O(d^3)."""


def joint_eigenbasis(rep: Representation) -> Eigenbasis | None:
    """An eigenbasis of all generators of ``rep``, or ``None`` where they do not commute or are not normal.

    Commuting normal matrices and their transposes commute with one another (Fuglede), so the eigenvectors of a
    random Hermitian combination diagonalise all of them; the off-diagonal entries are then tested.
    """
    if rep.dim > EIGENBASIS_LIMIT or rep.residual_generators():
        return None
    matrices = [m.to_dense() for m in (*rep.generators(), *rep.discrete_generators())]
    if not _commute([*matrices, *(m.mT for m in matrices)]):
        return None
    generator = torch.Generator().manual_seed(0)
    combined = torch.zeros(rep.dim, rep.dim, dtype=torch.complex128)
    for m in matrices:
        even, odd = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        scale = max(float(m.norm()), 1e-300)
        combined += ((0.5 + even) * (m + m.mT) + 1j * (0.5 + odd) * (m - m.mT)) / scale
    _, u = torch.linalg.eigh(combined)
    values = []
    for m in matrices:
        image = u.mH @ m.to(u.dtype) @ u
        diagonal = torch.diagonal(image)
        if float((image - torch.diag(diagonal)).norm()) > 1e3 * _TOLERANCE * max(1.0, float(m.norm())):
            return None
        values.append(diagonal)
    stacked = torch.stack(values) if values else torch.zeros(0, rep.dim, dtype=torch.complex128)
    return Eigenbasis(((1, u),), stacked, paired=False)


def _commute(matrices: Sequence[torch.Tensor]) -> bool:
    for i, a in enumerate(matrices):
        for b in matrices[:i]:
            if float((a @ b - b @ a).norm()) > _TOLERANCE * max(1.0, float(a.norm() * b.norm())):
                return False
    return True
