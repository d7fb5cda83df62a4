"""Small networks for CIFAR: the residual networks of He et al. and a compact convolutional transformer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads channels with zeros where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.extra = stride, channels_out - channels_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` to ``[n, c', h / stride, w / stride]``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.extra:
            before = self.extra // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """``6 n + 2`` layers in three stages of 16, 32 and 64 channels (He et al., 2016, section 4.2).

    Shortcuts are of option A; keys as in the common CIFAR checkpoints: ``conv1``, ``bn1``, ``layer1.0.conv1``, ..,
    ``linear``.
    """

    def __init__(self, blocks: int, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class _Tokens(nn.Module):
    """Convolutions, each with ReLU and max pooling by two: ``[n, 3, h, w]`` to tokens ``[n, h w / 16, width]``."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_layers = nn.Sequential(*(self._layer(*sides) for sides in ((3, width // 2), (width // 2, width))))

    @staticmethod
    def _layer(channels_in: int, channels_out: int) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(3, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_layers(x).flatten(2).mT


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A transformer block whose second residual starts at the normalised tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.pre_norm, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = _Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.self_attn(self.pre_norm(x)))
        return x + self.linear2(functional.gelu(self.linear1(x)))


class _Classifier(nn.Module):
    def __init__(self, tokens: int, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        self.positional_emb = nn.Parameter(0.2 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.attention_pool, self.fc = nn.Linear(width, 1), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positional_emb
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        share = self.attention_pool(x).softmax(1)
        return self.fc((share * x).sum(1))


class CompactTransformer(nn.Module):
    """CCT-2/3x2 (Hassani et al., 2021): two convolutions make 64 tokens of a 32-pixel image, two blocks, no dropout.

    It has a learned position table and pools tokens by a learned share. Keys as in the authors' checkpoints.
    """

    def __init__(self, classes: int = 10, size: int = 32, width: int = 128, depth: int = 2, heads: int = 2):
        super().__init__()
        self.tokenizer = _Tokens(width)
        self.classifier = _Classifier((size // 4) ** 2, width, depth, heads, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of ``[n, 3, size, size]``."""
        return self.classifier(self.tokenizer(x))


def resnet20() -> CifarResNet:
    """ResNet-20, 0.27 M parameters."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """ResNet-56, 0.85 M parameters."""
    return CifarResNet(9)


def cct() -> CompactTransformer:
    """CCT-2/3x2, 0.28 M parameters."""
    return CompactTransformer()
