"""The residual network of paper B on sampled rotations: strict, soft, or partial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from equidial.baselines import PartialGroupConv2d, PartialLiftingConv2d, PartialSamples
from equidial.errors import ArgumentError, explain
from equidial.nn import (
    Frequencies,
    GroupBatchNorm2d,
    GroupConv2d,
    GroupInstanceNorm2d,
    GroupSamples,
    LiftingConv2d,
    OnImages,
    PointwiseGroupConv2d,
    SirenFeatures,
)

Method = Literal["strict", "soft", "partial"]
Shortcut = Literal["needed", "always"]
_OMEGA = {"translation": 10.0, "rotation": 10 / math.pi}


@dataclass(frozen=True)
class GroupResNetConfig:
    """Sizes of :class:`GroupResNet`; the defaults are those of paper B's CIFAR network.

    Attributes:
        in_channels, classes: of images and labels.
        rotations: samples ``N``; 1 is a translation-equivariant network.
        widths: channels of the two residual blocks; the first convolution has as many as the first block.
        kernel_size: of every convolution but the shortcuts.
        features: width of the sine networks; shortcuts have half of it.
        method: ``"strict"``, ``"soft"`` (relaxed in rotation), ``"partial"`` (learned support).
        omega_prime: of ``"soft"``, by axis: ``"rotation"``, ``"translation"``; the axes that are left out are strict.
        learned: whether ``omega'`` is learned, per layer.
        harmonics: the absolute angle enters as an integer harmonic.
        shortcut: a convolution on every shortcut (``"always"``, as paper B's soft network has) or only where channels
            change (``"needed"``, as its strict one).
    """

    in_channels: int = 3
    classes: int = 10
    rotations: int = 8
    widths: tuple[int, int] = (32, 64)
    kernel_size: int = 7
    features: int = 32
    method: Method = "strict"
    omega_prime: Mapping[str, float] | None = None
    learned: bool = False
    harmonics: bool = False
    shortcut: Shortcut = "needed"

    def __post_init__(self) -> None:
        if self.method == "soft" and not self.omega_prime:
            raise ArgumentError(explain("omega_prime for a soft network", "none", 'e.g. {"rotation": 1.0}'))
        if self.method != "soft" and (self.omega_prime or self.learned):
            raise ArgumentError(explain("omega_prime for method='soft' alone", f"method={self.method!r}", "drop it"))


class GroupResNet(nn.Module):
    """Lifting, two residual blocks with pooling, one more group convolution, the maximum over all samples and places.

    ``[batch, in, H, W]`` to logits ``[batch, classes]``. With 32 pixels and the default sizes the last convolution
    sees 8 x 8 places. Blocks: group convolution, instance norm, ReLU, group convolution, instance norm, ReLU, plus
    the shortcut, batch norm, 2 x 2 maximum, ReLU. No biases but that of the head. Invariant to the sampled rotations as
    far as each layer is equivariant. Source: paper B, section 5; parameter counts 451,898 strict and 469,802 soft for
    10 classes.
    """

    def __init__(self, config: GroupResNetConfig):
        super().__init__()
        self.config = config
        first, second = config.widths
        make = _Maker(config)
        half = config.kernel_size // 2
        self.lift = make.lift(config.in_channels, first)
        self.norm = GroupBatchNorm2d(first)
        self.block1 = _Block(make, first, first, half, config.shortcut)
        self.block2 = _Block(make, first, second, half, config.shortcut)
        self.last = make.convolve(second, second, 0)
        self.last_norm = GroupBatchNorm2d(second)
        self.head = nn.Linear(second, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x = torch.relu(self.norm(self.lift(x)))
        x = self.block2(self.block1(x))
        x = torch.relu(self.last_norm(self.last(x)))
        return self.head(x.amax((-3, -2, -1)))


class _Block(nn.Module):
    def __init__(self, make: _Maker, into: int, out: int, half: int, shortcut: Shortcut):
        super().__init__()
        source = make.samples
        self.conv1 = make.convolve(into, out, half, "replicate")
        self.conv2 = make.convolve(out, out, half, "replicate")
        # between two partial supports there is no identity: their samples lie at other angles
        needed = shortcut == "always" or into != out or isinstance(source, PartialSamples)
        self.shortcut = make.shortcut(into, out, source) if needed else nn.Identity()
        self.norm1, self.norm2 = GroupInstanceNorm2d(out), GroupInstanceNorm2d(out)
        self.norm3, self.pool = GroupBatchNorm2d(out), OnImages(nn.MaxPool2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, into, U, H, W]`` to ``[B, out, U, H/2, W/2]``."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        return torch.relu(self.pool(self.norm3(y + self.shortcut(x))))


class _Maker:
    """Makes the convolutions of one method, and knows on which samples the last one ended."""

    def __init__(self, config: GroupResNetConfig):
        self.config = config
        self.group = f"C{config.rotations}"
        self.samples = PartialSamples(self.group) if config.method == "partial" else GroupSamples(self.group)
        self.wide = partial(_sines, width=config.features)
        self.thin = partial(_sines, width=max(1, config.features // 2))

    def lift(self, into: int, out: int) -> nn.Module:
        """The first convolution, on images as they are."""
        size, half = self.config.kernel_size, self.config.kernel_size // 2
        if isinstance(self.samples, PartialSamples):
            return PartialLiftingConv2d(
                into, out, size, self.samples, padding=half, bias=False, kernel=self.wide, nonlinearity="linear"
            )
        return LiftingConv2d(
            into,
            out,
            size,
            padding=half,
            bias=False,
            group=self.samples,
            omega={"translation": _OMEGA["translation"]},
            omega_prime=self._relaxation(),
            harmonics=self.config.harmonics,
            kernel=self.wide,
            nonlinearity="linear",
        )

    def convolve(self, into: int, out: int, padding: int, padding_mode: str = "zeros") -> nn.Module:
        """A group convolution onto the next samples."""
        size = self.config.kernel_size
        if isinstance(self.samples, PartialSamples):
            source, self.samples = self.samples, PartialSamples(self.group)
            return PartialGroupConv2d(
                into,
                out,
                size,
                source,
                self.samples,
                padding=padding,
                bias=False,
                padding_mode=padding_mode,
                kernel=self.wide,
            )
        return GroupConv2d(
            into,
            out,
            size,
            padding=padding,
            bias=False,
            padding_mode=padding_mode,
            group=self.samples,
            omega=_OMEGA,
            omega_prime=self._relaxation(),
            harmonics=self.config.harmonics,
            kernel=self.wide,
        )

    def shortcut(self, into: int, out: int, source: GroupSamples) -> nn.Module:
        """A strict point-wise one, from the samples before the block to those after it."""
        if isinstance(source, PartialSamples) and isinstance(self.samples, PartialSamples):
            return PartialGroupConv2d(into, out, 1, source, self.samples, bias=False, kernel=self.thin)
        omega = {"rotation": _OMEGA["rotation"]}
        return PointwiseGroupConv2d(into, out, bias=False, group=self.samples, kernel=self.thin, omega=omega)

    def _relaxation(self) -> Frequencies | None:
        """Its own for each layer."""
        config = self.config
        return None if config.omega_prime is None else Frequencies(config.omega_prime, config.learned)


def _sines(stationary: int, domain: int, features: int, width: int) -> SirenFeatures:
    return SirenFeatures(stationary, domain, width, constant=True)
