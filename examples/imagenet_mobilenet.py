"""MobileNetV2 (Sandler et al., 2018) of width 1.0, for ImageNet.

Keys as in torchvision's checkpoints: ``features.0.0``, ``features.1.conv.0.0``, .., ``classifier.1``. Use it from the
command line with ``--model examples/imagenet_mobilenet.py:mobilenet_v2 --weights FILE.safetensors``; it reads
RGB images scaled to [-1, 1]. Weights lie in memory with channels last, which makes it faster on CPUs.
"""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, and stride of the first block: table 2 of the paper."""


class EndPaddedConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads one pixel right and one below, as TensorFlow does at even sizes.

    At odd sizes the windows end with the image and never read that pixel, so it is left out: there the layer is a
    plain convolution without padding, and quarter turns and mirrors of the input turn and mirror its windows.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, c', h // 2, w // 2]``."""
        h, w = input.shape[-2:]
        return super().forward(functional.pad(input, (0, 1 - w % 2, 0, 1 - h % 2)))


def convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int, groups: int, same: bool
) -> nn.Sequential:
    """Convolution, normalisation, ReLU6."""
    end = same and stride == 2
    kind, padding = (EndPaddedConv2d, 0) if end else (nn.Conv2d, kernel // 2)
    conv = kind(channels_in, channels_out, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, same: bool):
        super().__init__()
        width = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *([convolution(channels_in, width, 1, 1, 1, same)] if expansion > 1 else []),
            convolution(width, width, 3, stride, width, same),
            nn.Conv2d(width, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, c', h / stride, w / stride]``."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """53 layers, 3.5 M parameters. ``same``: pad before stride 2 as TensorFlow does, at the end only."""

    def __init__(self, same: bool = True, classes: int = 1000):
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2, 1, same)]
        width = 32
        for expansion, channels, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(width, channels, stride if block == 0 else 1, expansion, same))
                width = channels
        layers.append(convolution(width, 1280, 1, 1, 1, same))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]``."""
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2() -> MobileNetV2:
    """With padding right and below before stride 2; exactly symmetric kernels make it invariant at 32 k - 1 pixels."""
    return MobileNetV2().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def mobilenet_v2_symmetric() -> MobileNetV2:
    """With padding all around; exactly symmetric kernels make it invariant at 32 k + 1 pixels."""
    return MobileNetV2(same=False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
