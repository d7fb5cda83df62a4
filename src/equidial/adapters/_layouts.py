"""Layouts: where in a parameter the weights of a filter lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from equidial.errors import FileFormatError, explain

Kind = Literal["convolution", "table", "linear", "bias"]


@dataclass(frozen=True)
class Layout:
    """How a parameter becomes weights ``[..., d]`` or ``[..., d', d]`` and back.

    * ``convolution`` ``[out, in/groups, k...]``: out * in copies of an invariant vector on the window.
    * ``table``: ``axis`` is the grid axis, every other axis a copy; the rows ``start..start+size`` of it hold
      the grid, the rest (class and register tokens) is left as it is.
    * ``linear`` ``[out, in]`` and ``bias`` ``[out]``: as they stand.

    A ``convolution`` or ``table`` may have a ``view``: the shape in which the parameter is seen, whose ``axes``, in the
    order of the grid, hold the window or grid; every other axis is a copy. A linear patch embedding
    ``[out, 3 * 8 * 8]`` has the view ``(out, 3, 8, 8)`` and the axes ``(2, 3)``.
    """

    kind: Kind
    axis: int = 0
    start: int = 0
    size: int = 0
    view: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def weights(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weights of the filter, a view where possible."""
        if self.view:
            return self._seen(tensor).flatten(-len(self.axes))
        if self.kind == "convolution":
            return tensor.flatten(2)
        if self.kind == "table":
            return tensor.movedim(self.axis, -1)[..., self.start : self.start + self.size]
        return tensor

    def tensor(self, weights: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The parameter with these weights; rows outside the grid come from ``original``."""
        if self.view:
            moved = weights.reshape(self._seen(original).shape)
            return moved.movedim(self._last(), self.axes).reshape(original.shape)
        if self.kind == "convolution":
            return weights.reshape(original.shape)
        if self.kind == "table":
            rows = original.movedim(self.axis, -1)
            before, after = rows[..., : self.start], rows[..., self.start + self.size :]
            return torch.cat([before, weights, after], dim=-1).movedim(-1, self.axis)
        return weights

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(self.view).movedim(self.axes, self._last())

    def _last(self) -> tuple[int, ...]:
        return tuple(range(-len(self.axes), 0))

    def to_tuple(self) -> tuple[str | int, ...]:
        """``(kind, axis, start, size)``, and where there is a view its length, its sizes and the axes."""
        plain = (self.kind, self.axis, self.start, self.size)
        return (*plain, len(self.view), *self.view, *self.axes) if self.view else plain

    @classmethod
    def from_tuple(cls, data: Sequence[str | int]) -> Layout:
        """The inverse of :meth:`to_tuple`; raises ``FileFormatError`` for anything else."""
        kind, *rest = data or ("",)
        numbers = [n for n in rest if isinstance(n, int)]
        if kind in get_args(Kind) and 3 <= len(numbers) == len(rest):
            axis, start, size = numbers[:3]
            if len(numbers) == 3:
                return cls(cast("Kind", kind), axis, start, size)
            length = numbers[3]
            view, axes = tuple(numbers[4 : 4 + length]), tuple(numbers[4 + length :])
            sound = len(view) == length > 0 and math.prod(view) > 0
            if sound and axes and len(set(axes)) == len(axes) and all(0 <= axis < length for axis in axes):
                return cls(cast("Kind", kind), axis, start, size, view, axes)
        raise FileFormatError(
            explain(
                "a layout (kind, axis, start, size), with a view its length, sizes and axes after them",
                repr(tuple(data)),
                "use the certificate as it was written",
            )
        )
