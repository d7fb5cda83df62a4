"""DeepLabV3 (Chen et al., 2017) on MobileNetV2 (Sandler et al., 2018), output stride 16.

Keys: ``features.0`` to ``features.17`` as in torchvision's MobileNetV2, then ``image_pool``, ``aspp0``, ``project`` and
``classifier``. It reads images scaled to [-1, 1]; the weights for the 21 classes of PASCAL VOC were trained at 513
pixels, smaller images padded with grey.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from equidial.recipes._models import load_weights

_VOC_CLASSES = 21
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))
"""Expansion, channels, blocks, and stride of the first block."""
_DILATED_FROM = 15
"""The 160-channel stage starts at block 14 and keeps its resolution; later kernels are spread by 2 instead."""


def _convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int, groups: int, spread: int
) -> nn.Sequential:
    """Convolution, normalisation, ReLU6; padded all around, which is TensorFlow's padding at odd sizes."""
    padding = spread * (kernel // 2)
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, spread, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, spread: int):
        super().__init__()
        width = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *([_convolution(channels_in, width, 1, 1, 1, 1)] if expansion > 1 else []),
            _convolution(width, width, 3, stride, width, spread),
            nn.Conv2d(width, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, c', h / stride, w / stride]``."""
        return x + self.conv(x) if self.residual else self.conv(x)


class DeepLabV3(nn.Module):
    """MobileNetV2 features, an image-level branch and a 1x1 branch, 2.1 M parameters.

    Exactly symmetric kernels make it equivariant under C4 and D4 at images of ``16 k + 1`` pixels, 513 among them.
    """

    def __init__(self, classes: int = 21):
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, 3, 2, 1, 1)]
        width = 32
        for expansion, channels, blocks, stride in _STAGES:
            for block in range(blocks):
                spread = 2 if len(layers) >= _DILATED_FROM else 1
                layers.append(_InvertedResidual(width, channels, stride if block == 0 else 1, expansion, spread))
                width = channels
        self.features = nn.Sequential(*layers)
        self.image_pool = nn.Conv2d(width, 256, 1)
        self.aspp0 = nn.Conv2d(width, 256, 1)
        self.project = nn.Conv2d(512, 256, 1)
        self.classifier = nn.Conv2d(256, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes, h, w]`` of images ``[n, 3, h, w]``."""
        f = self.features(x)
        whole = functional.relu(self.image_pool(f.mean((2, 3), keepdim=True))).expand(-1, -1, *f.shape[-2:])
        y = torch.cat([whole, functional.relu(self.aspp0(f))], dim=1)
        y = self.classifier(functional.relu(self.project(y)))
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)


def pretrained_deeplab(weights: Path, classes: int) -> DeepLabV3:
    """The network with the weights of a ``.safetensors`` file for 21 classes, and a new last layer for ``classes``.

    The last layer is drawn from the global generator. Raises ``ArgumentError`` for a file that is not there,
    ``FileFormatError`` where a key or a shape differs.
    """
    model = DeepLabV3(_VOC_CLASSES)
    load_weights(model, weights)
    model.classifier = nn.Conv2d(model.classifier.in_channels, classes, 1)
    return model
