"""Linear maps: what a generator is, without forming its matrix where its structure says more."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

_EXACT_NORM = 1024  # up to this size a norm is computed, beyond it is bounded


class LinearMap(ABC):
    """A real ``d x d`` linear map in float64: ``A @ x`` for ``x`` of shape ``[d]`` or ``[d, k]``."""

    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(d, d)``."""
        return self.dim, self.dim

    @abstractmethod
    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """``x[..., :] -> A x[..., :]``, in the dtype and on the device of ``x``."""

    @property
    @abstractmethod
    def T(self) -> LinearMap:
        """The transpose."""

    @abstractmethod
    def trace(self) -> float:
        """The trace."""

    def norm_bound(self) -> float:
        """An upper bound of the spectral norm, rounding included; cost O(d^3) up to 1024 dimensions, O(d^2) beyond.

        The largest singular value, then ``sqrt(||A||_1 ||A||_inf)`` or the Frobenius norm.
        """
        dense = self.to_dense()
        margin = 1 + 8 * self.dim * torch.finfo(torch.float64).eps
        if 0 < self.dim <= _EXACT_NORM:
            return float(torch.linalg.matrix_norm(dense, ord=2)) * margin
        columns, rows = float(dense.abs().sum(0).max()), float(dense.abs().sum(1).max())
        return min(math.sqrt(columns * rows), float(dense.norm())) * margin

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A x`` for a vector ``[d]`` or a matrix ``[d, k]``."""
        return self.on_last_axis(x.mT).mT if x.ndim > 1 else self.on_last_axis(x)

    def to_dense(self) -> torch.Tensor:
        """The matrix, ``[d, d]`` float64."""
        return self.on_last_axis(torch.eye(self.dim, dtype=torch.float64)).mT.contiguous()


class DenseMap(LinearMap):
    """A matrix."""

    def __init__(self, matrix: torch.Tensor):
        self.matrix = matrix.to(torch.float64)
        self.dim = matrix.shape[0]

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """``x A^T``; cost O(d^2) per vector."""
        return x @ self.matrix.to(device=x.device, dtype=x.dtype).mT

    @property
    def T(self) -> DenseMap:
        """The transposed matrix."""
        return DenseMap(self.matrix.mT)

    def trace(self) -> float:
        """The trace of the matrix."""
        return float(self.matrix.trace())


class PermutationMap(LinearMap):
    """``(P x)[i] = x[index[i]]``, exact in every dtype; cost O(d) per vector."""

    def __init__(self, index: torch.Tensor):
        self.index = index.to(torch.long)
        self.dim = len(index)

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """A gather."""
        return x[..., self.index.to(x.device)]

    @property
    def T(self) -> PermutationMap:
        """The inverse permutation."""
        return PermutationMap(torch.argsort(self.index))

    def trace(self) -> float:
        """The number of fixed points."""
        return float((self.index == torch.arange(self.dim)).sum())

    def norm_bound(self) -> float:
        """1."""
        return 1.0


class SparseMap(LinearMap):
    """A sparse matrix, ``torch.sparse_coo`` or anything that becomes one; cost O(nonzeros) per vector."""

    def __init__(self, matrix: torch.Tensor):
        self.matrix = matrix.to(torch.float64).to_sparse_coo().coalesce()
        self.dim = matrix.shape[0]

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """``x A^T``."""
        flat = x.reshape(-1, self.dim)
        return (self.matrix.to(device=x.device, dtype=x.dtype) @ flat.mT).mT.reshape(x.shape)

    @property
    def T(self) -> SparseMap:
        """The transposed matrix."""
        return SparseMap(self.matrix.t())

    def trace(self) -> float:
        """Sum of the entries on the diagonal."""
        rows, columns = self.matrix.indices()
        return float(self.matrix.values()[rows == columns].sum())

    def norm_bound(self) -> float:
        """``sqrt(||A||_1 ||A||_inf)``."""
        size = torch.sparse_coo_tensor(self.matrix.indices(), self.matrix.values().abs(), self.shape)
        sums = [float(torch.sparse.sum(size, dim=axis).to_dense().max()) for axis in (0, 1)]
        return math.sqrt(sums[0] * sums[1]) * (1 + self.dim * torch.finfo(torch.float64).eps)


class FunctionMap(LinearMap):
    """A map given by functions on the last axis: itself and its transpose, with an upper bound of its norm."""

    def __init__(
        self,
        dim: int,
        function: Callable[[torch.Tensor], torch.Tensor],
        transpose: Callable[[torch.Tensor], torch.Tensor],
        norm: float,
    ):
        self.dim, self._function, self._transpose, self._norm = dim, function, transpose, float(norm)

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """The function."""
        return self._function(x)

    @property
    def T(self) -> FunctionMap:
        """The two functions swapped."""
        return FunctionMap(self.dim, self._transpose, self._function, self._norm)

    def trace(self) -> float:
        """From the dense matrix; cost O(d) applications."""
        return float(self.to_dense().trace())

    def norm_bound(self) -> float:
        """The bound given."""
        return self._norm


class ScaledMap(LinearMap):
    """``factor A``."""

    def __init__(self, inner: LinearMap, factor: float):
        self.inner, self.factor, self.dim = inner, float(factor), inner.dim

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """The map, then the factor."""
        return self.factor * self.inner.on_last_axis(x)

    @property
    def T(self) -> ScaledMap:
        """Transposed, same factor."""
        return ScaledMap(self.inner.T, self.factor)

    def trace(self) -> float:
        """Scaled."""
        return self.factor * self.inner.trace()

    def norm_bound(self) -> float:
        """Scaled."""
        return abs(self.factor) * self.inner.norm_bound()


class _LegMap(LinearMap):
    """A map of ``X_1 (x) .. (x) X_k`` (row-major, first factor slowest) made of one map per factor."""

    def __init__(self, factors: Sequence[LinearMap]):
        self.factors = tuple(factors)
        self.dim = math.prod(f.dim for f in self.factors)

    def _on_leg(self, i: int, x: torch.Tensor) -> torch.Tensor:
        after = math.prod(f.dim for f in self.factors[i + 1 :])
        legs = x.unflatten(-1, (-1, self.factors[i].dim, after))
        moved = self.factors[i].on_last_axis(legs.movedim(-2, -1)).movedim(-1, -2)
        return moved.reshape(x.shape)


class KroneckerSum(_LegMap):
    """``sum_i I (x) .. A_i .. (x) I``: a generator on a tensor product; nothing of size ``d x d`` is formed."""

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """One leg after the other; cost O(d sum_i d_i) per vector."""
        out = self._on_leg(0, x)
        for i in range(1, len(self.factors)):
            out = out + self._on_leg(i, x)
        return out

    @property
    def T(self) -> KroneckerSum:
        """Legs transposed."""
        return KroneckerSum([f.T for f in self.factors])

    def trace(self) -> float:
        """``sum_i tr(A_i) d / d_i``."""
        return sum(f.trace() * (self.dim // f.dim) for f in self.factors)

    def norm_bound(self) -> float:
        """Sum over the legs."""
        return sum(f.norm_bound() for f in self.factors)


class KroneckerProduct(_LegMap):
    """``A_1 (x) .. (x) A_k``: an element on a tensor product."""

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """One leg after the other."""
        for i in range(len(self.factors)):
            x = self._on_leg(i, x)
        return x

    @property
    def T(self) -> KroneckerProduct:
        """Legs transposed."""
        return KroneckerProduct([f.T for f in self.factors])

    def trace(self) -> float:
        """Product of the traces."""
        return math.prod(f.trace() for f in self.factors)

    def norm_bound(self) -> float:
        """Product over the legs."""
        return math.prod(f.norm_bound() for f in self.factors)


class BlockDiagonalMap(LinearMap):
    """``diag(A_1, .., A_1, A_2, ..)``: each block ``A_i`` stands ``copies_i`` times in a row."""

    def __init__(self, blocks: Sequence[tuple[int, LinearMap]]):
        self.blocks = tuple(blocks)
        self.dim = sum(copies * block.dim for copies, block in self.blocks)

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """Block by block."""
        return map_blocks(x, [(copies, block.dim, block.on_last_axis) for copies, block in self.blocks])

    @property
    def T(self) -> BlockDiagonalMap:
        """Blocks transposed."""
        return BlockDiagonalMap([(copies, block.T) for copies, block in self.blocks])

    def trace(self) -> float:
        """Sum over the blocks."""
        return sum(copies * block.trace() for copies, block in self.blocks)

    def to_dense(self) -> torch.Tensor:
        """The matrices of the blocks along the diagonal."""
        return torch.block_diag(*(dense for n, block in self.blocks for dense in [block.to_dense()] * n))

    def norm_bound(self) -> float:
        """The largest of the blocks'."""
        return max(block.norm_bound() for _, block in self.blocks)


def map_blocks(
    x: torch.Tensor, blocks: Sequence[tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]]
) -> torch.Tensor:
    """Apply ``(copies, size, function)`` blocks to consecutive slices of the last axis of ``x``."""
    parts, start = [], 0
    for copies, size, function in blocks:
        stop = start + copies * size
        # torch.matmul copies the matrix once per row of a strided operand: d^3 numbers instead of d^2
        part = x[..., start:stop].contiguous().unflatten(-1, (copies, size))
        parts.append(function(part).flatten(-2))
        start = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def identity_map(dim: int) -> PermutationMap:
    """The identity of ``R^dim``."""
    return PermutationMap(torch.arange(dim))


def zero_map(dim: int) -> DenseMap:
    """The zero map of ``R^dim``."""
    return DenseMap(torch.zeros(dim, dim, dtype=torch.float64))
