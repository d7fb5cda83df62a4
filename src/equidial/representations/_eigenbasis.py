"""Unitary bases in which all generators are diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from equidial.representations._blocks import BlockBasis
from equidial.representations._maps import map_blocks
from equidial.representations._unitary import DenseUnitary, PairedUnitary, UnitaryMap

_TOLERANCE = 1e-11  # relative to the size of a generator

EIGENBASIS_LIMIT = 1024
"""Largest dimension for which an eigenbasis is looked for; cost O(d^3)."""


@dataclass(frozen=True)
class Eigenbasis:
    """A unitary basis in which every generator is diagonal.

    ``blocks``: ``(copies, U)`` with ``U`` unitary, a complex matrix ``[k, k]`` whose columns are the vectors, or a
    :class:`UnitaryMap`; the basis is block diagonal, copies outermost. ``values``: ``[generators, d]`` complex, Lie
    generators first, then discrete. ``residuals``: eigenvalues ``[d]`` of each residual generator by name.
    ``paired``: columns of each matrix are real or come as adjacent pairs ``(u, conj u)``.
    """

    blocks: tuple[tuple[int, torch.Tensor | UnitaryMap], ...]
    values: torch.Tensor
    residuals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    paired: bool = True

    @cached_property
    def unitaries(self) -> tuple[tuple[int, UnitaryMap], ...]:
        """The blocks, matrices among them as maps."""
        return tuple((n, DenseUnitary(u) if isinstance(u, torch.Tensor) else u) for n, u in self.blocks)

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return sum(copies * u.dim for copies, u in self.unitaries)

    def tensors(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> tuple[tuple[torch.Tensor, ...], ...]:
        """What each block needs for a product on this device, in this real dtype."""
        device = torch.device(device)
        return tuple(u.tensors(device, dtype) for _, u in self.unitaries)

    def to_real(self, x: torch.Tensor, tensors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """``x V`` on the last axis of real ``x``, ``U = V P``; ``tensors``: :meth:`tensors` for its dtype."""
        return self._over_blocks(x, tensors, lambda u: u.to_real)

    def to_complex(self, x: torch.Tensor, tensors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """``x P`` on the last axis of complex ``x``."""
        return self._over_blocks(x, tensors, lambda u: u.to_complex)

    def from_complex(self, x: torch.Tensor, tensors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """``x P^*``, the inverse of :meth:`to_complex`."""
        return self._over_blocks(x, tensors, lambda u: u.from_complex)

    def from_real(self, x: torch.Tensor, tensors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """``x V^T``, the inverse of :meth:`to_real`."""
        return self._over_blocks(x, tensors, lambda u: u.from_real)

    def _over_blocks(
        self,
        x: torch.Tensor,
        tensors: Sequence[Sequence[torch.Tensor]],
        product: Callable[[UnitaryMap], Callable[..., torch.Tensor]],
    ) -> torch.Tensor:
        pairs = zip(self.unitaries, tensors, strict=True)
        return map_blocks(x, [(n, u.dim, partial(product(u), tensors=t)) for (n, u), t in pairs])

    def whole(self) -> Eigenbasis:
        """The same basis as one block, a matrix."""
        return replace(self, blocks=((1, self.to_dense()),))

    def to_dense(self) -> torch.Tensor:
        """``U`` as one matrix, complex128 ``[d, d]``."""
        eye = torch.eye(self.dim, dtype=torch.float64)
        tensors = self.tensors()
        return self.to_complex(self.to_real(eye, tensors).to(torch.complex128), tensors)

    def real_basis(self) -> BlockBasis:
        """Real orthonormal columns spanning the same eigenspaces up to conjugation, float64, column by column.

        A pair ``(u, conj u)`` becomes ``(sqrt2 Re u, sqrt2 Im u)``. Needs one block that stands once.
        """
        ((copies, block),) = self.blocks
        assert copies == 1, "a real basis is asked of single blocks only"
        assert self.paired, "a real basis needs its columns in conjugate pairs"
        if isinstance(block, PairedUnitary):
            return block.basis
        u = block if isinstance(block, torch.Tensor) else block.to_dense()
        out = u.real.clone()
        column = 0
        while column < u.shape[1]:
            if u[:, column].imag.abs().max() > 0:
                out[:, column] = math.sqrt(2) * u[:, column].real
                out[:, column + 1] = math.sqrt(2) * u[:, column].imag
                column += 1
            column += 1
        return BlockBasis((out,))


def joint_eigenbasis(matrices: Sequence[torch.Tensor], dim: int) -> Eigenbasis | None:
    """An eigenbasis of all ``matrices`` ``[dim, dim]``, or ``None`` where they do not commute or are not normal.

    Commuting normal matrices and their transposes commute with one another (Fuglede), so the eigenvectors of a
    random Hermitian combination diagonalise all of them; the off-diagonal entries are then tested.
    """
    if not _commute([*matrices, *(m.mT for m in matrices)]):
        return None
    generator = torch.Generator().manual_seed(0)
    combined = torch.zeros(dim, dim, dtype=torch.complex128)
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
    stacked = torch.stack(values) if values else torch.zeros(0, dim, dtype=torch.complex128)
    return Eigenbasis(((1, u),), stacked, paired=False)


def _commute(matrices: Sequence[torch.Tensor]) -> bool:
    for i, a in enumerate(matrices):
        for b in matrices[:i]:
            if float((a @ b - b @ a).norm()) > _TOLERANCE * max(1.0, float(a.norm() * b.norm())):
                return False
    return True
