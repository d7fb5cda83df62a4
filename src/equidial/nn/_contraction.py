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
from collections.abc import Iterator, Sequence
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

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Geometry:
        """From the six numbers in a row."""
        a, b, c, d, e, f = sizes
        return cls((a, b), (c, d), (e, f))

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
    sizes = [*geometry.kernel, *geometry.stride, *geometry.dilation]
    return _forward(places, phi.contiguous(), weight.contiguous(), sizes, groups).permute(2, 3, 0, 1)


# Operators of their own, so that a compiler takes the loops below as one node and does not unroll them. On
# x [V, H, W, B, C], phi [h, w, V, T, M], weight [O, C / g, M] to y [h, w, B, O].


@torch.library.custom_op("equidial::position_convolution", mutates_args=())
def _forward(
    x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, sizes: Sequence[int], groups: int
) -> torch.Tensor:
    """Band by band, row by row."""
    geometry, mixing = Geometry.of(sizes), weight.view(groups, weight.shape[0] // groups, -1)
    y = x.new_empty(*phi.shape[:2], x.shape[3], weight.shape[0])
    for band in _bands(x, phi, geometry):
        windows = _windows(_taps(x, geometry, band).contiguous(), geometry, len(y))
        mixed = torch.empty_like(_rows_by_group(y[:, band], groups), memory_format=torch.contiguous_format)
        for window, features, out in zip(windows, _features(phi, band), mixed.unbind(0), strict=True):
            torch.bmm(_by_group(_gather(window, features), x, groups), mixing.mT, out=out)
        y[:, band] = mixed.transpose(1, 2).reshape(y[:, band].shape)
    return y


@torch.library.custom_op("equidial::position_convolution_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    phi: torch.Tensor,
    weight: torch.Tensor,
    sizes: Sequence[int],
    groups: int,
    need_x: bool,
    need_phi: bool,
    need_weight: bool,
) -> list[torch.Tensor]:
    """Gradients of x, phi and weight, empty where not needed; the unfolded input and ``A`` are computed again."""
    geometry, mixing = Geometry.of(sizes), weight.view(groups, weight.shape[0] // groups, -1)
    dx, dphi, dweight = _gradients(x, phi, weight, need_x, need_phi, need_weight)
    dmixing = dweight.zero_().view(mixing.shape) if need_weight else mixing
    dx.zero_()
    for band in _bands(x, phi, geometry):
        unfolded = _taps(x, geometry, band).contiguous()
        dunfolded = torch.zeros_like(unfolded) if need_x else unfolded
        windows, dwindows = (_windows(u, geometry, len(phi)) for u in (unfolded, dunfolded))
        parts = _rows_by_group(dy[:, band], groups).unbind(0)
        rows = zip(windows, dwindows, _features(phi, band), parts, strict=True)
        for row, (window, dwindow, features, part) in enumerate(rows):
            if need_weight:
                dmixing.baddbmm_(part.mT, _by_group(_gather(window, features), x, groups))
            if not (need_x or need_phi):
                continue
            dgathered = torch.bmm(part, mixing).transpose(0, 1).reshape(window.shape[1], -1, phi.shape[-1])
            for v in range(len(x)):
                if need_phi:
                    dphi[row, band, v] = torch.bmm(window[v], dgathered)
                if need_x:
                    # the windows of different columns lie apart: this addition in place is well defined; baddbmm_
                    # into a view would go column by column
                    dwindow[v].add_(torch.bmm(features[v], dgathered.mT))
        if need_x:
            for tap in range(geometry.kernel[1]):  # within one tap every place is read once
                _taps(dx, geometry, band)[..., tap, :].add_(dunfolded[..., tap, :])
    return [dx, dphi, dweight]


@_forward.register_fake
def _(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, sizes: Sequence[int], groups: int) -> torch.Tensor:
    return x.new_empty(*phi.shape[:2], x.shape[3], weight.shape[0])


@_backward.register_fake
def _(
    dy: torch.Tensor,
    x: torch.Tensor,
    phi: torch.Tensor,
    weight: torch.Tensor,
    sizes: Sequence[int],
    groups: int,
    need_x: bool,
    need_phi: bool,
    need_weight: bool,
) -> list[torch.Tensor]:
    return _gradients(x, phi, weight, need_x, need_phi, need_weight)


def _gradients(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, *needed: bool) -> list[torch.Tensor]:
    return [torch.empty_like(t) if need else t.new_empty(0) for t, need in zip((x, phi, weight), needed, strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, phi, weight, ctx.sizes, ctx.groups = inputs
    ctx.save_for_backward(x, phi, weight)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    need = ctx.needs_input_grad[:3]
    found = _backward(dy.contiguous(), *ctx.saved_tensors, ctx.sizes, ctx.groups, *need)
    return *(d if needed else None for d, needed in zip(found, need, strict=True)), None, None


torch.library.register_autograd("equidial::position_convolution", _differentiate, setup_context=_keep)


def _bands(x: torch.Tensor, phi: torch.Tensor, geometry: Geometry) -> Iterator[slice]:
    """Output columns that are treated together."""
    w, column = phi.shape[1], x[:, :, 0].numel() * geometry.kernel[1] * x.element_size()
    bands = min(w, math.ceil(w * column / _BAND_BYTES.get(x.device.type, _BAND_BYTES["cuda"])))
    for i in range(bands):
        yield slice(w * i // bands, w * (i + 1) // bands)


def _taps(x: torch.Tensor, geometry: Geometry, band: slice) -> torch.Tensor:
    """A view ``[columns, V, residues, H / residues, kw, B C]``: the row of taps that each output column sees."""
    (kw, stride), (dh, dw) = (geometry.kernel[1], geometry.stride[1]), geometry.dilation
    reach = dw * (kw - 1) + 1
    seen = x.flatten(3)[:, :, stride * band.start : stride * (band.stop - 1) + reach]
    taps = seen.unfold(2, reach, stride)[..., ::dw]  # [V, H, columns, B C, kw]
    return taps.permute(2, 0, 1, 4, 3).unflatten(2, (-1, dh)).transpose(2, 3)


def _windows(unfolded: torch.Tensor, geometry: Geometry, rows: int) -> list[torch.Tensor]:
    """Views ``[V, columns, T, B C]`` of the windows of all output rows: one operation each, whatever the loop."""
    columns, v, _, _, kw, width = unfolded.shape
    shape, strides = (v, columns, geometry.kernel[0] * kw, width), unfolded.stride()
    found = []
    for row in range(rows):
        first, residue = divmod(row * geometry.stride[0], geometry.dilation[0])
        start = unfolded.storage_offset() + residue * strides[2] + first * strides[3]
        found.append(unfolded.as_strided(shape, (strides[1], strides[0], width, 1), start))
    return found


def _features(phi: torch.Tensor, band: slice) -> list[tuple[torch.Tensor, ...]]:
    """Row by row, ``[columns, T, M]`` for each of the ``V``."""
    return [row.unbind(1) for row in phi[:, band].unbind(0)]


def _gather(window: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
    """``A`` of one row, ``[columns, B C, M]``."""
    found = torch.bmm(window[0].mT, features[0])
    for v in range(1, len(window)):
        found.baddbmm_(window[v].mT, features[v])
    return found


def _by_group(part: torch.Tensor, x: torch.Tensor, groups: int) -> torch.Tensor:
    """A view ``[g, columns B, rest / g]`` of what one row holds."""
    return part.reshape(len(part) * x.shape[3], groups, -1).transpose(0, 1)


def _rows_by_group(part: torch.Tensor, groups: int) -> torch.Tensor:
    """``[rows, g, columns B, O / g]`` of ``[rows, columns, B, O]``."""
    return part.flatten(1, 2).unflatten(2, (groups, -1)).transpose(1, 2)
