"""Unitary maps: the blocks of an eigenbasis, as a matrix or as a rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from equidial.representations._blocks import BlockBasis


class UnitaryMap(ABC):
    """A complex unitary ``U`` of size ``dim`` that acts on rows: ``x U`` and ``x U^*`` on the last axis.

    ``U = V P`` with ``V`` real and orthogonal (by default the identity), so that most of the work on real weights is
    done in real arithmetic: ``x U = (x V) P``, ``x U^* = (x P^*) V^T``.
    """

    dim: int

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What a product needs, on this device and in this real dtype (or the complex one that belongs to it)."""
        return ()

    def to_real(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """``x V`` for real ``x`` ``[..., dim]``; ``tensors``: those of its device and dtype."""
        return x

    def from_real(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """``x V^T``."""
        return x

    @abstractmethod
    def to_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """``x P`` for complex ``x``."""

    @abstractmethod
    def from_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """``x P^*``."""

    def to_dense(self) -> torch.Tensor:
        """``U`` as a matrix, complex128."""
        eye = torch.eye(self.dim, dtype=torch.float64)
        tensors = self.tensors(eye.device, torch.float64)
        return self.to_complex(self.to_real(eye, tensors).to(torch.complex128), tensors)


class DenseUnitary(UnitaryMap):
    """A matrix; cost of a product O(dim^2) per vector."""

    def __init__(self, matrix: torch.Tensor):
        self.matrix, self.dim = matrix, matrix.shape[0]

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The matrix."""
        return (self.matrix.to(device, torch.promote_types(dtype, torch.complex64)),)

    def to_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """A product of matrices."""
        return x @ tensors[0]

    def from_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """A product of matrices."""
        return x @ tensors[0].mH

    def to_dense(self) -> torch.Tensor:
        """The matrix itself."""
        return self.matrix


class PairedUnitary(UnitaryMap):
    """Columns of a real basis, pairs ``(c, s)`` of them made ``(c - i s, c + i s) / sqrt2``.

    Cost of a product: one real one with the blocks of the basis, and the pairs.
    """

    def __init__(self, basis: BlockBasis, pairs: torch.Tensor):
        self.basis, self.pairs, self.dim = basis, pairs, basis.dim

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The pairs, then the real basis."""
        return (self.pairs.to(device), *self.basis.tensors(device, dtype))

    def to_real(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Components in the real basis."""
        return self.basis.coefficients(x, tensors[1:])

    def from_real(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combinations of the real basis."""
        return self.basis.combine(x, tensors[1:])

    def to_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The pairs."""
        first, second = tensors[0]
        c, s = x[..., first] / math.sqrt(2), x[..., second] / math.sqrt(2)
        return x.index_copy(-1, first, c - 1j * s).index_copy(-1, second, c + 1j * s)

    def from_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The pairs, back."""
        first, second = tensors[0]
        u, v = x[..., first] / math.sqrt(2), x[..., second] / math.sqrt(2)
        return x.index_copy(-1, first, u + v).index_copy(-1, second, 1j * (u - v))


class FourierUnitary(UnitaryMap):
    """Plane waves ``e^(2 pi i k.p / shape) / sqrt(d)`` of a periodic grid, row-major in ``p`` and ``k``, by the FFT.

    Cost of a product: O(d log d) per vector; nothing is stored.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.dim = shape, math.prod(shape)

    def to_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse transform, whose sign this is."""
        return self._over_axes(torch.fft.ifftn, x)

    def from_complex(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The transform."""
        return self._over_axes(torch.fft.fftn, x)

    def _over_axes(self, transform, x: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(-len(self.shape), 0))
        return transform(x.unflatten(-1, self.shape), dim=axes, norm="ortho").flatten(axes[0])
