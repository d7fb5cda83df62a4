"""The scale at which a continuous kernel starts, so that variances stay at 1 through depth.

Neighbouring taps and samples of a continuous kernel are alike, and so are those of the features that such a layer
makes. Counting taps as independent, as for free kernels, lets the variance grow with each layer (by 5 and more on a
group axis of 8). The variance is therefore taken of what such a layer makes of the output of others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

_IMAGES, _CHANNELS, _LAYERS = 2, 8, 3

NONLINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""Functions that may stand between two layers."""


def output_power(kernels: torch.Tensor, nonlinearity: str) -> float:
    """Mean square of the output per input channel, for unit normal weights.

    ``kernels``: ``[U, V, kh, kw, M]``, features of the window. The input is ``nonlinearity(z)`` with ``z`` of variance
    1: white where ``V = 1 < U`` (lifting), else what a few such layers make of white input. The expectation over the
    weights of the last layer is exact, the rest one draw of a fixed seed.
    """
    kernels = kernels.float()
    u, v, kh, kw, m = kernels.shape
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_IMAGES * _CHANNELS, v, 2 * kh, 2 * kw, generator=generator)
    act = NONLINEARITIES[nonlinearity]
    for _ in range(_LAYERS if u == v else 0):
        weights = torch.randn(m, _CHANNELS, _CHANNELS, generator=generator)
        layer = torch.einsum("uvijm,moc->oucvij", kernels, weights).flatten(2, 3).flatten(0, 1)
        z = _circular(act(z).view(_IMAGES, -1, *z.shape[2:]), layer).view_as(z)
        z = z / z.square().mean().sqrt().clamp_min(1e-30)
    last = kernels[0].permute(3, 0, 1, 2)  # all samples u are alike: that of the identity stands for them
    return float(_circular(act(z), last).square().sum(1).mean())


def _circular(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    h, w = kernels.shape[-2:]
    padded = functional.pad(x, (w // 2, math.ceil(w / 2) - 1, h // 2, math.ceil(h / 2) - 1), mode="circular")
    return functional.conv2d(padded, kernels)
