"""Convolution by a kernel that differs from place to place, without ever building that kernel.

With ``k_p[o, c, t] = sum_m weight[o, c, m] phi[p, t, m]`` for output place ``p``, tap ``t``, feature ``m``:

    A[p, b, m, c] = sum_t phi[p, t, m] x[b, c, p + t],        y[b, o, p] = sum_mc weight[o, c, m] A[p, b, m, c]

The first product costs ``T M C`` per place and image, the second ``M C O``; the kernels, ``P T C O`` numbers whatever
the batch, are never formed. Places are treated in chunks that stay in the cache: neither the unfolded input nor ``A``
is kept for the backward pass, which computes them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Memory of one chunk: second-level caches on the CPU, enough to fill the device on a GPU."""


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
    backward; memory: input, output, ``phi``, their gradients and one chunk.
    """
    b, c, v, height, width = x.shape
    h, w = geometry.outputs((height, width))
    places = x.permute(3, 4, 2, 0, 1).reshape(height, width, v, b, c)
    y = _PositionConvolution.apply(places, phi.reshape(h, w, -1, phi.shape[-1]), weight, geometry, groups)
    return y.permute(2, 3, 0, 1)


class _PositionConvolution(torch.autograd.Function):
    """On ``x [H, W, V, B, C]``, ``phi [h, w, V T, M]``, ``weight [O, C/g, M]`` to ``y [h, w, B, O]``."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, geometry: Geometry, groups: int
    ) -> torch.Tensor:
        """Chunk by chunk."""
        x, phi = x.contiguous(), phi.contiguous()
        ctx.save_for_backward(x, phi, weight)
        ctx.geometry, ctx.groups = geometry, groups
        mixing = _mixing(weight, groups)
        out = x.new_empty(*phi.shape[:2], x.shape[3], weight.shape[0])
        for rows in _chunks(x, phi):
            gathered = _gather(_columns(x, geometry, rows), phi[rows], x.shape[3:], groups)
            out[rows] = _mix(gathered, mixing).view(out[rows].shape)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        """The columns and ``A`` are computed again."""
        x, phi, weight = ctx.saved_tensors
        geometry, groups = ctx.geometry, ctx.groups
        need_x, need_phi, need_weight = ctx.needs_input_grad[:3]
        mixing, dy = _mixing(weight, groups), dy.contiguous()
        dx = torch.zeros_like(x) if need_x else None
        dphi = torch.empty_like(phi) if need_phi else None
        dmixing = torch.zeros_like(mixing) if need_weight else None
        batch, channels = x.shape[3:]
        for rows in _chunks(x, phi):
            columns = _columns(x, geometry, rows)
            part = dy[rows].reshape(-1, groups, weight.shape[0] // groups).transpose(0, 1)  # [g, pB, O/g]
            if dmixing is not None:
                gathered = _gather(columns, phi[rows], (batch, channels), groups)
                dmixing.baddbmm_(gathered.mT, part)
            if dx is None and dphi is None:
                continue
            features = phi[rows].flatten(0, 1)  # [p, VT, M]
            dgathered = torch.bmm(part, mixing.mT)  # [g, pB, M C/g]
            dgathered = dgathered.view(groups, len(features), batch, features.shape[-1], -1)
            dgathered = dgathered.permute(1, 3, 2, 0, 4).reshape(len(features), features.shape[-1], -1)  # [p, M, BC]
            if dphi is not None:
                dphi[rows] = torch.bmm(columns, dgathered.mT).view(phi[rows].shape)
            if dx is not None:
                _scatter(dx, torch.bmm(features, dgathered), geometry, rows)
        dweight = None if dmixing is None else _unmixing(dmixing, weight.shape, groups)
        return dx, dphi, dweight, None, None


def _chunks(x: torch.Tensor, phi: torch.Tensor) -> list[slice]:
    h, w, taps, features = phi.shape
    row = w * x.shape[3] * x.shape[4] * (taps + 2 * features) * x.element_size()
    step = max(1, _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cuda"]) // row)
    return [slice(i, min(i + step, h)) for i in range(0, h, step)]


def _mixing(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """``[g, M C/g, O/g]``."""
    out, into, features = weight.shape
    return weight.view(groups, out // groups, into, features).permute(0, 3, 2, 1).reshape(groups, features * into, -1)


def _unmixing(mixing: torch.Tensor, shape: torch.Size, groups: int) -> torch.Tensor:
    out, into, features = shape
    return mixing.view(groups, features, into, out // groups).permute(0, 3, 2, 1).reshape(shape)


def _windows(x: torch.Tensor, geometry: Geometry, rows: slice) -> torch.Tensor:
    """A view ``[rows, w, V, kh, kw, B C]`` of all windows whose place lies in these rows."""
    height, width, v, batch, channels = x.shape
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    w = geometry.outputs((height, width))[1]
    across, down = v * batch * channels, width * v * batch * channels
    return x.as_strided(
        (rows.stop - rows.start, w, v, kh, kw, batch * channels),
        (sh * down, sw * across, batch * channels, dh * down, dw * across, 1),
        x.storage_offset() + rows.start * sh * down,
    )


def _columns(x: torch.Tensor, geometry: Geometry, rows: slice) -> torch.Tensor:
    """``[p, V T, B C]``."""
    windows = _windows(x, geometry, rows)
    return windows.reshape(windows.shape[0] * windows.shape[1], -1, windows.shape[-1])


def _gather(columns: torch.Tensor, phi: torch.Tensor, sizes: Any, groups: int) -> torch.Tensor:
    """``A`` as ``[g, p B, M C/g]``."""
    batch, channels = sizes
    found = torch.bmm(phi.flatten(0, 1).mT, columns)  # [p, M, B C]
    places, features = found.shape[:2]
    found = found.view(places, features, batch, groups, channels // groups)
    return found.permute(3, 0, 2, 1, 4).reshape(groups, places * batch, -1)


def _mix(gathered: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """``[p B, O]``."""
    return torch.bmm(gathered, mixing).transpose(0, 1).reshape(gathered.shape[1], -1)


def _scatter(dx: torch.Tensor, dcolumns: torch.Tensor, geometry: Geometry, rows: slice) -> None:
    """Add the gradients of the columns to the places they were read from; windows overlap, so tap by tap."""
    windows = _windows(dx, geometry, rows)
    parts = dcolumns.view(windows.shape)
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            # within one tap every place is read once, so that this addition in place is well defined
            windows[:, :, :, i, j].add_(parts[:, :, :, i, j])
