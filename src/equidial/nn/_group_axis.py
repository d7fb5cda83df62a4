"""Layers on features with a group axis ``[batch, channels, U, height, width]`` that commute with moving it.

Moving by ``g`` reads sample ``g^-1 u`` at place ``g^-1 p``. Whatever treats all ``u`` and ``p`` of a channel alike
commutes: point-wise functions (``nn.ReLU``, ``nn.GELU``, ...) as they are, and the layers here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from equidial.errors import ArgumentError, explain

Pooling = Literal["mean", "max"]


class GroupPool2d(nn.Module):
    """Mean or maximum over the group axis: ``[B, C, U, H, W]`` to ``[B, C, H, W]``, an image of invariant channels.

    The mean is the Haar integral of the samples. Raises ``ArgumentError`` for another mode or another number of axes.
    """

    def __init__(self, mode: Pooling = "mean"):
        super().__init__()
        if mode not in get_args(Pooling):
            raise ArgumentError(explain(f"mode out of {get_args(Pooling)}", repr(mode), "use 'mean' or 'max'"))
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The pooled image."""
        x = check_group_axis(x)
        return x.mean(-3) if self.mode == "mean" else x.amax(-3)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return self.mode


class GroupBatchNorm2d(nn.BatchNorm3d):
    """Batch normalisation with one mean, variance, scale and shift per channel, over batch, samples and places."""


class GroupInstanceNorm2d(nn.InstanceNorm3d):
    """Normalisation of each image and channel over samples and places."""


class GroupLayerNorm2d(nn.GroupNorm):
    """Normalisation of each image over channels, samples and places; scale and shift per channel.

    ``groups`` splits the channels as ``torch.nn.GroupNorm`` does.
    """

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-5, affine: bool = True):
        super().__init__(groups, channels, eps=eps, affine=affine)


class GroupDropout2d(nn.Dropout3d):
    """Drops whole channels, all samples and places at once."""


class OnImages(nn.Module):
    """A layer for images, applied to the image of every sample: ``OnImages(nn.MaxPool2d(2))``.

    The layer sees ``[B, C U, H, W]`` and must return as many channels, each made from its own: pooling, blurring,
    resizing. Raises ``ArgumentError`` for another number of channels.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's image of each sample."""
        x = check_group_axis(x)
        channels, samples = x.shape[-4:-2]
        y = self.layer(x.flatten(-4, -3))
        if y.shape[-3] != channels * samples:
            raise ArgumentError(
                explain(
                    f"a layer that keeps {channels * samples} channels",
                    f"{type(self.layer).__name__} with {y.shape[-3]}",
                    "use one that treats channels apart, such as pooling",
                )
            )
        return y.unflatten(-3, (channels, samples))


def check_group_axis(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself. Raises ``ArgumentError`` unless it has the axes ``[batch, channels, U, height, width]``."""
    if x.ndim not in (4, 5):
        raise ArgumentError(
            explain(
                "a feature [batch, channels, samples, height, width]",
                f"shape {tuple(x.shape)}",
                "lift the image first (LiftingConv2d); pool the group axis only once",
            )
        )
    return x
