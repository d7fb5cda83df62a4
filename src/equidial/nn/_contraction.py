"""Convolution by a kernel that differs from place to place, without ever building that kernel.

With ``k_p[o, c, t] = sum_m weight[o, c, m] phi[p, t, m]`` for output place ``p``, tap ``t``, feature ``m``:

    A[p, b, c, m] = sum_t phi[p, t, m] x[b, c, p + t],        y[b, o, p] = sum_cm weight[o, c, m] A[p, b, c, m]

The first product costs ``T M C`` per place and image, the second ``M C O``; the kernels, ``P T C O`` numbers whatever
the batch, are never formed. Nor is the unfolded input: with the input unfolded along the width alone, the window of
each place is one block of it, and blocks that overlap are read, and in the backward pass added to, where they lie.
Places are treated one output row at a time, so that ``A`` stays in the cache; the backward pass computes it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

_BAND_BYTES = {"cpu": 5 << 20, "cuda": 256 << 20}
"""Unfolded input of one band of output columns: near the second-level caches on the CPU; long rows on a GPU."""


@dataclass(frozen=True)
class Geometry:
    """Where the windows lie on an input that is padded already: kernel, stride and dilation of each axis."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Places along each axis for a padded input of this size."""
        a, b = (
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(size, self.kernel, self.stride, self.dilation, strict=True)
        )
        return a, b


def position_convolution(
    x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, geometry: Geometry, groups: int = 1
) -> torch.Tensor:
    """``y[b, o, p] = sum over v, t, c of k_p[o, c, v, t] x[b, c, v, p + t]``.

    Args:
        x: ``[B, C, V, H, W]``, padded; ``V`` further inputs at each place (samples of a group axis).
        phi: ``[h * w, V * T, M]``, features at each output place, taps row-major, the last of ``V * T`` axes.
        weight: ``[O, C / groups, M]``.
        geometry: the windows.
        groups: as in torch.

    Shapes: to ``[B, O, h, w]``. Cost: ``B P C (T V M + M O)`` multiplications forward, about three times that
    backward; memory: input, output, ``phi``, their gradients and one band.
    """
    h, w = geometry.outputs((x.shape[3], x.shape[4]))
    # whole residue classes of rows, so that the taps of a dilated window can be laid side by side
    x = functional.pad(x, (0, 0, 0, -x.shape[3] % geometry.dilation[0]))
    places = x.permute(2, 3, 4, 0, 1).contiguous()
    phi = phi.reshape(h, w, x.shape[2], -1, phi.shape[-1])
    return _PositionConvolution.apply(places, phi, weight, geometry, groups).permute(2, 3, 0, 1)


class _PositionConvolution(torch.autograd.Function):
    """On ``x [V, H, W, B, C]``, ``phi [h, w, V, T, M]``, ``weight [O, C/g, M]`` to ``y [h, w, B, O]``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, geometry: Geometry, groups: int
    ) -> torch.Tensor:
        """Band by band, row by row."""
        phi, weight = phi.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, phi, weight)
        ctx.geometry, ctx.groups = geometry, groups
        mixing = weight.view(groups, weight.shape[0] // groups, -1)
        y = x.new_empty(*phi.shape[:2], x.shape[3], weight.shape[0])
        for band in _bands(x, phi, geometry):
            unfolded = _taps(x, geometry, band).contiguous()
            for row in range(len(y)):
                gathered = _gather(_window(unfolded, geometry, row), phi[row, band])
                mixed = torch.bmm(_by_group(gathered, x, groups), mixing.mT)
                y[row, band] = mixed.transpose(0, 1).reshape(y[row, band].shape)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        """The unfolded input and ``A`` are computed again."""
        x, phi, weight = ctx.saved_tensors
        geometry, groups = ctx.geometry, ctx.groups
        need_x, need_phi, need_weight = ctx.needs_input_grad[:3]
        dy, mixing = dy.contiguous(), weight.view(groups, weight.shape[0] // groups, -1)
        dx, dphi, dmixing = torch.zeros_like(x), torch.empty_like(phi), torch.zeros_like(mixing)
        for band in _bands(x, phi, geometry):
            unfolded = _taps(x, geometry, band).contiguous()
            dunfolded = torch.zeros_like(unfolded) if need_x else unfolded
            for row in range(len(phi)):
                window, features = _window(unfolded, geometry, row), phi[row, band]
                part = _by_group(dy[row, band], x, groups)
                if need_weight:
                    dmixing.baddbmm_(part.mT, _by_group(_gather(window, features), x, groups))
                if need_x or need_phi:
                    dgathered = torch.bmm(part, mixing).transpose(0, 1).reshape(len(features), -1, phi.shape[-1])
                for v in range(len(x)):
                    if need_phi:
                        dphi[row, band, v] = torch.bmm(window[v], dgathered)
                    if need_x:
                        # the windows of different columns lie apart: this addition in place is well defined
                        _window(dunfolded, geometry, row)[v].add_(torch.bmm(features[:, v], dgathered.mT))
            if need_x:
                for tap in range(geometry.kernel[1]):  # within one tap every place is read once
                    _taps(dx, geometry, band)[..., tap, :].add_(dunfolded[..., tap, :])
        return (
            dx if need_x else None,
            dphi if need_phi else None,
            dmixing.view(weight.shape) if need_weight else None,
            None,
            None,
        )


def _bands(x: torch.Tensor, phi: torch.Tensor, geometry: Geometry) -> Iterator[slice]:
    """Output columns that are treated together."""
    w, column = phi.shape[1], x[:, :, 0].numel() * geometry.kernel[1] * x.element_size()
    bands = min(w, math.ceil(w * column / _BAND_BYTES.get(x.device.type, _BAND_BYTES["cuda"])))
    for i in range(bands):
        yield slice(w * i // bands, w * (i + 1) // bands)


def _taps(x: torch.Tensor, geometry: Geometry, band: slice) -> torch.Tensor:
    """A view ``[columns, V, residues, H / residues, kw, B C]``: the row of taps that each output column sees."""
    v, height, width, b, c = x.shape
    (sw, dw), dh, place = (geometry.stride[1], geometry.dilation[1]), geometry.dilation[0], b * c
    return x.as_strided(
        (band.stop - band.start, v, dh, height // dh, geometry.kernel[1], place),
        (sw * place, height * width * place, width * place, dh * width * place, dw * place, 1),
        x.storage_offset() + band.start * sw * place,
    )


def _window(unfolded: torch.Tensor, geometry: Geometry, row: int) -> torch.Tensor:
    """A view ``[V, columns, T, B C]`` of the windows of one output row."""
    first, residue = divmod(row * geometry.stride[0], geometry.dilation[0])
    return unfolded[:, :, residue, first : first + geometry.kernel[0]].flatten(2, 3).transpose(0, 1)


def _gather(window: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``A`` of one row, ``[columns, B C, M]``."""
    found = torch.bmm(window[0].mT, features[:, 0])
    for v in range(1, len(window)):
        found.baddbmm_(window[v].mT, features[:, v])
    return found


def _by_group(part: torch.Tensor, x: torch.Tensor, groups: int) -> torch.Tensor:
    """A view ``[g, columns B, rest / g]``."""
    return part.reshape(len(part) * x.shape[3], groups, -1).transpose(0, 1)
