"""Linear maps: what a generator is, without forming its matrix where its structure says more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch


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
