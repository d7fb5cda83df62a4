"""Layouts: where in a parameter the weights of a filter lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["convolution", "table", "linear", "bias"]


@dataclass(frozen=True)
class Layout:
    """How a parameter becomes weights ``[..., d]`` or ``[..., d', d]`` and back.

    * ``convolution`` ``[out, in/groups, k...]``: out * in copies of an invariant vector on the window.
    * ``table``: ``axis`` is the grid axis, every other axis a copy; the rows ``start..start+size`` of it hold
      the grid, the rest (class and register tokens) is left as it is.
    * ``linear`` ``[out, in]`` and ``bias`` ``[out]``: as they stand.
    """

    kind: Kind
    axis: int = 0
    start: int = 0
    size: int = 0

    def weights(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weights of the filter, a view where possible."""
        if self.kind == "convolution":
            return tensor.flatten(2)
        if self.kind == "table":
            return tensor.movedim(self.axis, -1)[..., self.start : self.start + self.size]
        return tensor

    def tensor(self, weights: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The parameter with these weights; rows outside the grid come from ``original``."""
        if self.kind == "convolution":
            return weights.reshape(original.shape)
        if self.kind == "table":
            rows = original.movedim(self.axis, -1)
            before, after = rows[..., : self.start], rows[..., self.start + self.size :]
            return torch.cat([before, weights, after], dim=-1).movedim(-1, self.axis)
        return weights
