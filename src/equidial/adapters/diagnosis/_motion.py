"""How group elements move an intermediate tensor of a network, and the arithmetic of such motions.

A motion is one map ``rho(g)`` for each of a few elements ``g``, numbered. Most are permutations of entries:
``(rho(g) h)[i] = h[index[i]]`` over flat positions. What an operation does to a motion is then arithmetic on indices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from equidial.errors import GroupActionError
from equidial.groups import GroupElement
from equidial.metrics import is_permutation, transform_images
from equidial.representations import Representation


class Motion(ABC):
    """``rho(g_k)`` on tensors of one shape."""

    @abstractmethod
    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """``rho(g_k) x``, a new tensor."""

    @abstractmethod
    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor | None:
        """Flat positions, int64 of this shape; ``None`` for a motion that is no permutation."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In words, for a person."""


@dataclass(frozen=True)
class Still(Motion):
    """Nothing moves: classes, pooled features, tokens of no place."""

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """A copy of ``x``."""
        return x.clone()

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The identity."""
        return positions(shape, device)

    @property
    def name(self) -> str:
        """``"invariant"``."""
        return "invariant"


@dataclass(frozen=True)
class Grid(Motion):
    """An image: two axes of the tensor are its rows and columns."""

    elements: tuple[GroupElement, ...]
    axes: tuple[int, int]

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """Turned or mirrored about the centre of the grid."""
        moved = transform_images(x.movedim(self.axes, (-2, -1)), self.elements[k])
        return moved.movedim((-2, -1), self.axes).clone(memory_format=torch.contiguous_format)

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The positions that :meth:`move` reads."""
        return self.move(k, positions(shape, device))

    @property
    def name(self) -> str:
        """``"grid"``."""
        return "grid"


@dataclass(frozen=True)
class Plane(Motion):
    """A permutation of the places of a grid that is no turn of it: an image with padding on one side."""

    indices: tuple[torch.Tensor, ...]
    axes: tuple[int, int]

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """The places read at the positions ``[h, w]``, alike in all other axes."""
        last = x.movedim(self.axes, (-2, -1))
        moved = last.flatten(-2)[..., self.indices[k].reshape(-1)].reshape(last.shape)
        return moved.movedim((-2, -1), self.axes).contiguous()

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The positions that :meth:`move` reads."""
        return self.move(k, positions(shape, device))

    @property
    def name(self) -> str:
        """``"padded grid"``."""
        return "padded grid"


@dataclass(frozen=True)
class Places(Motion):
    """Any permutation of entries: tokens, windows, heads."""

    indices: tuple[torch.Tensor, ...]

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """The entries at the positions."""
        return x.reshape(-1)[self.indices[k].reshape(-1)].reshape(x.shape)

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The positions."""
        return self.indices[k]

    @property
    def name(self) -> str:
        """``"tokens"``."""
        return "tokens"


@dataclass(frozen=True)
class Vectors(Motion):
    """A representation on the last axis."""

    elements: tuple[GroupElement, ...]
    rep: Representation

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """``rho(g)`` on the last axis."""
        return self.rep.act(self.elements[k], x)

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> None:
        """No permutation in general."""
        return None

    @property
    def name(self) -> str:
        """The representation."""
        return self.rep.name


def positions(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Flat positions ``0, 1, ..`` in a tensor of this shape."""
    return torch.arange(int(torch.Size(shape).numel()), device=device).reshape(tuple(shape))


def grid_at(elements: tuple[GroupElement, ...], axes: tuple[int, int], shape: Sequence[int]) -> Motion | None:
    """The motion of an image on these axes; ``None`` where an element cannot act (a quarter turn of a rectangle)."""
    if all(shape[a] == 1 for a in axes):
        return Still()
    if not all(is_permutation(g) for g in elements):
        return None
    try:
        for g in elements:
            transform_images(torch.empty(shape[axes[0]], shape[axes[1]]), g)
    except GroupActionError:
        return None
    return Grid(elements, axes)


def places(indices: Sequence[torch.Tensor], elements: tuple[GroupElement, ...]) -> Motion:
    """The simplest motion with these indices: still, an image, or places."""
    shape, device = indices[0].shape, indices[0].device
    if all(torch.equal(index, positions(shape, device)) for index in indices):
        return Still()
    for axes in ((2, 3), (1, 2)) if len(shape) == 4 else ():
        grid = grid_at(elements, axes, shape)
        if isinstance(grid, Grid) and all(
            torch.equal(index, grid.index(k, shape, device)) for k, index in enumerate(indices)
        ):
            return grid
    return Places(tuple(indices))


def projected(index: torch.Tensor, keep: Sequence[int]) -> torch.Tensor | None:
    """What a permutation does to some axes alone: flat positions over them, or ``None`` if it depends on the rest."""
    shape = index.shape
    rest = [a for a in range(len(shape)) if a not in keep]
    kept = torch.zeros_like(index)
    coordinates = torch.unravel_index(index, shape)
    for a in keep:
        kept = kept * shape[a] + coordinates[a]
    lined = kept.permute(*keep, *rest).reshape(*(shape[a] for a in keep), -1)
    first = lined[..., :1]
    return first[..., 0] if bool((lined == first).all()) else None


def extended(index: torch.Tensor, size: int) -> torch.Tensor:
    """The same permutation with an inert last axis of this size."""
    return index[..., None] * size + torch.arange(size, device=index.device)


def carried(sources: torch.Tensor, moved: torch.Tensor) -> torch.Tensor | None:
    """The permutation of a gathered tensor: ``sources[i]`` is where entry ``i`` came from, ``moved[i]`` where the entry
    comes from that stands there once the source has moved. ``None`` where the gathered entries do not stay among
    themselves. Equal entries are matched in order; entries of no source (padding) are -1 in both.
    """
    shape, device = sources.shape, sources.device
    flat, target = sources.reshape(-1) + 1, moved.reshape(-1) + 1
    size = int(torch.maximum(flat.max(), target.max())) + 1
    n = len(flat)
    here = torch.full((size,), -1, dtype=torch.long, device=device)
    here[flat] = torch.arange(n, device=device)
    if bool((here[flat] == torch.arange(n, device=device)).all()):
        found = here[target]
        return None if bool((found < 0).any()) else found.reshape(shape)
    counts = torch.bincount(flat, minlength=size)
    if not torch.equal(counts[flat], counts[target]):
        return None
    order = torch.argsort(flat, stable=True)
    start = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n, device=device) - start[flat[order]]
    return order[start[target] + rank].reshape(shape)
