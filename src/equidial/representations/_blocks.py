"""Real orthonormal bases in blocks, and maps that turn planes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from equidial.representations._maps import LinearMap, map_blocks


@dataclass(frozen=True, eq=False)
class BlockBasis:
    """Real orthonormal columns ``V`` in square blocks, each on pixels of its own: ``V[order] = diag(V_1, V_2, ..)``.

    ``blocks``: float64 ``[k, k]``; ``order`` ``[d]``: the coordinates in the order of the rows of the blocks, or
    ``None`` where they are in order. Products cost O(sum k^2) per vector; nothing of size ``d x d`` is formed.
    """

    blocks: tuple[torch.Tensor, ...]
    order: torch.Tensor | None = None

    @property
    def dim(self) -> int:
        """Dimension ``d`` of the space."""
        return sum(len(block) for block in self.blocks)

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The blocks, then the order if there is one, on this device; blocks in this real dtype."""
        blocks = tuple(block.to(device, dtype) for block in self.blocks)
        return blocks if self.order is None else (*blocks, self.order.to(device))

    def coefficients(self, x: torch.Tensor, tensors: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """``x V`` on the last axis of ``x``; ``tensors``: :meth:`tensors` for its device and dtype, if at hand."""
        tensors = self.tensors(x.device, x.dtype) if tensors is None else tensors
        if self.order is not None:
            x = x[..., tensors[len(self.blocks)]]
        return map_blocks(x, [(1, len(v), _times(v)) for v in tensors[: len(self.blocks)]])

    def combine(self, y: torch.Tensor, tensors: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """``y V^T`` on the last axis of ``y``, the inverse of :meth:`coefficients`."""
        tensors = self.tensors(y.device, y.dtype) if tensors is None else tensors
        out = map_blocks(y, [(1, len(v), _times(v.mT)) for v in tensors[: len(self.blocks)]])
        return out if self.order is None else torch.empty_like(out).index_copy(-1, tensors[len(self.blocks)], out)

    def to_dense(self) -> torch.Tensor:
        """``V`` as a matrix ``[d, d]``."""
        if self.order is None and len(self.blocks) == 1:
            return self.blocks[0]
        return self.coefficients(torch.eye(self.dim, dtype=torch.float64))

    def deviation(self) -> float:
        """An upper bound of ``||V^T V - I||_F``, the rounding of the products included; cost O(sum k^3)."""
        square = 0.0
        for v in self.blocks:
            k = len(v)
            found = float((v.mT @ v - torch.eye(k, dtype=torch.float64)).norm())
            # entries of V^T V are off by k u |V|^T |V|, whose norm is at most ||V||_F^2 = k
            square += (found + k * k * torch.finfo(torch.float64).eps) ** 2
        return square**0.5


class PlanesMap(LinearMap):
    """``V M V^T`` with ``M`` acting on planes ``(c, s)`` spanned by pairs of columns of a :class:`BlockBasis`.

    ``M e_c = diagonal_c e_c + turning e_s``, ``M e_s = diagonal_s e_s - turning e_c``; other columns are multiplied
    by their diagonal entry. ``mirrored``: ``M e_s = diagonal_s e_s + turning e_c``, a symmetric ``M``. ``diagonal``
    ``[d]``, ``turning`` and ``pairs`` ``[2, count]`` float64 and int64. Cost of a product: two with the blocks.
    """

    def __init__(
        self,
        basis: BlockBasis,
        pairs: torch.Tensor,
        diagonal: torch.Tensor,
        turning: torch.Tensor,
        mirrored: bool = False,
    ):
        self.basis, self.pairs, self.diagonal, self.turning = basis, pairs, diagonal, turning
        self.dim, self.mirrored = basis.dim, mirrored

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """Two changes of basis around the planes; O(sum k^2) per vector."""
        tensors = self.basis.tensors(x.device, x.dtype)
        y = self.basis.coefficients(x, tensors)
        diagonal, turning = self.diagonal.to(x.device, x.dtype), self.turning.to(x.device, x.dtype)
        first, second = self.pairs.to(x.device)
        turned = (y * diagonal).index_add(-1, first, (turning if self.mirrored else -turning) * y[..., second])
        return self.basis.combine(turned.index_add(-1, second, turning * y[..., first]), tensors)

    @property
    def T(self) -> PlanesMap:
        """The same planes turned the other way; a mirrored map is its own transpose."""
        return self if self.mirrored else PlanesMap(self.basis, self.pairs, self.diagonal, -self.turning)

    def trace(self) -> float:
        """Sum of the diagonal (``V`` being orthonormal)."""
        return float(self.diagonal.sum())

    def norm_bound(self) -> float:
        """The largest modulus of an eigenvalue, times ``||V||^2 <= 1 + 1e-6``."""
        squares = self.diagonal.square().index_add(0, self.pairs.flatten(), self.turning.square().repeat(2))
        return float(squares.max().sqrt()) * (1 + 1e-6)

    def to_dense(self) -> torch.Tensor:
        """The matrix; its symmetric and skew parts are so to the last bit."""
        v = self.basis.to_dense()
        first, second = self.pairs
        symmetric = (v * self.diagonal) @ v.mT
        turned = (v[:, second] * self.turning) @ v[:, first].mT
        return (symmetric + symmetric.mT) / 2 + (turned + turned.mT if self.mirrored else turned - turned.mT)


def _times(u: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x @ u
