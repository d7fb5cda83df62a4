"""The scale at which a continuous kernel starts, so that variances stay at 1 through depth.

Neighbouring taps and samples of a continuous kernel are alike, and so are those of the features that such a layer
makes. Counting taps as independent, as for free kernels, lets the variance grow with each layer (by 5 and more on a
group axis of 8). And what passes through smooth kernels becomes smooth, so that the gain of a layer depends on how
many stand before it. It is therefore taken over a stack of such layers, the geometric mean from the first to the last.
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


def output_power(stack: Sequence[torch.Tensor], nonlinearity: str) -> float:
    """Mean square of the output of one layer per input channel, for unit normal weights.

    ``stack``: features of the window, ``[U, V, kh, kw, M]``, one draw for each layer. The input of the first layer is
    ``nonlinearity(z)`` with white ``z`` of variance 1, that of the others what the layers before make of it, brought
    back to variance 1. Both signs of ``z`` are taken, which are alike by law, so that few channels speak for many. The
    expectation over the weights of each layer is exact, the stack one draw of a fixed seed.
    """
    u, v, kh, kw, m = stack[0].shape
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(_CHANNELS, v, 2 * kh, 2 * kw, generator=generator)
    act, gains = NONLINEARITIES[nonlinearity], []
    for kernels in stack:
        x = act(torch.cat((z, -z)))
        first = kernels[0].permute(3, 0, 1, 2)  # all samples u are alike: that of the identity stands for them
        gains.append(float(_circular(x, first).square().sum(1).mean()))
        if u == v:
            weights = torch.randn(m, _CHANNELS, 2 * _CHANNELS, generator=generator)
            layer = torch.einsum("uvijm,moc->oucvij", kernels, weights).flatten(2, 3).flatten(0, 1)
            z = _circular(x.flatten(0, 1)[None], layer).view_as(z)
            z = z / z.square().mean().sqrt().clamp_min(1e-30)
    return math.exp(sum(math.log(max(gain, 1e-30)) for gain in gains) / len(gains))


def _circular(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    h, w = kernels.shape[-2:]
    padded = functional.pad(x, (w // 2, math.ceil(w / 2) - 1, h // 2, math.ceil(h / 2) - 1), mode="circular")
    return functional.conv2d(padded, kernels)
