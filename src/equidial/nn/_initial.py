"""The scale at which a continuous kernel starts, so that variances stay at 1 through depth.

Neighbouring taps and samples of a continuous kernel are alike, and so are those of the features that such a layer
makes. Counting taps as independent, as for free kernels, lets the variance grow with each layer (by 5 and more on a
group axis of 8). And what passes through smooth kernels becomes smooth, so that the gain of a layer depends on how
many stand before it. It is therefore taken at every depth of a stack of such layers, and of these the geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

DEPTH, _CHANNELS = 8, 16

NONLINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""Functions that may stand between two layers."""


def output_power(own: Sequence[torch.Tensor], stack: Sequence[torch.Tensor], nonlinearity: str) -> float:
    """Mean square of the output of a layer per input channel, for unit normal weights.

    ``own``, ``stack``: features of the window, ``[U, V, kh, kw, M]``, of the layer and of others like it, at one depth
    after the other. The first input is ``nonlinearity(z)`` with white ``z`` of variance 1, each next what the layer of
    the stack makes of it, brought back to variance 1. Both signs of ``z`` are taken, which are alike by law, so that
    few channels speak for many. The expectation over the layer's weights is exact, those of the stack are one draw of
    a fixed seed. One place stands for all of a kernel that varies in space.
    """
    u, v, kh, kw, m = stack[0].shape
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_CHANNELS, v, 2 * kh, 2 * kw, generator=generator)
    act, gains = NONLINEARITIES[nonlinearity], []
    for mine, others in zip(own, stack, strict=True):
        x = act(torch.cat((z, -z)))
        first = mine[0].permute(3, 0, 1, 2)  # all samples u are alike: that of the identity stands for them
        gains.append(float(_circular(x, first).square().sum(1).mean()))
        if u == v:
            weights = torch.randn(m, _CHANNELS, 2 * _CHANNELS, generator=generator)
            layer = torch.einsum("uvijm,moc->oucvij", others, weights).flatten(2, 3).flatten(0, 1)
            z = _circular(x.flatten(0, 1)[None], layer).view_as(z)
            z = z / z.square().mean().sqrt().clamp_min(1e-30)
    return math.exp(sum(math.log(max(gain, 1e-30)) for gain in gains) / len(gains))


def _circular(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    h, w = kernels.shape[-2:]
    padded = functional.pad(x, (w // 2, math.ceil(w / 2) - 1, h // 2, math.ceil(h / 2) - 1), mode="circular")
    return functional.conv2d(padded, kernels)
