"""Small models that the adapter tests run on: transformers' own classes and plain modules.

Builders return ``Any``: a type checker knows no attributes of ``nn.Module``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)


def vit(depth: int = 2, image: int | tuple[int, int] = 32, patch: int = 8) -> Any:
    """A Hugging Face ViT with random weights and a random position table."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=image,
        patch_size=patch,
        initializer_range=0.2,
    )
    config.num_labels = 10
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.normal_()
        model.vit.embeddings.cls_token.normal_()
    return model


def resnet() -> Any:
    """A Hugging Face ResNet with its stem, pooling and strided stages."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 2, 1, 1])
    config.num_labels = 10
    model = ResNetForImageClassification(config).eval()
    randomise_norms(model)
    return model


def randomise_norms(model: nn.Module) -> None:
    """Batch-norm statistics that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


class TinyCnn(nn.Module):
    """Convolutions of every kind that the rules meet: reflect padding, groups, no bias, 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.mix = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, 4]``."""
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.mix(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


def cnn() -> Any:
    """The tiny network in evaluation mode, batch norm not the identity."""
    model = TinyCnn().eval()
    randomise_norms(model)
    return model


class VectorMlp(nn.Module):
    """Vectors of the plane in, vectors out; norms gate in between, so exact layers make an exact network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * 4 + 3, 2 * 8 + 5)
        self.outer = nn.Linear(2 * 8 + 5, 2 * 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``4*Vector + 3*Trivial`` to ``3*Vector``."""
        h = self.inner(x)
        vectors, scalars = h[..., :16].unflatten(-1, (8, 2)), h[..., 16:]
        gated = vectors * torch.sigmoid(vectors.norm(dim=-1, keepdim=True))
        return self.outer(torch.cat([gated.flatten(-2), torch.tanh(scalars)], dim=-1))


SPACES = {
    "inner": ("4*Vector + 3*Trivial", "8*Vector + 5*Trivial"),
    "outer": ("8*Vector + 5*Trivial", "3*Vector"),
}

MODELS = {"vit": (vit, (2, 3, 32, 32)), "resnet": (resnet, (2, 3, 65, 65)), "cnn": (cnn, (2, 3, 17, 17))}


def build(name: str) -> tuple[Any, torch.Tensor]:
    """A model by name and an input for it."""
    make, shape = MODELS[name]
    return make(), torch.randn(shape)


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The tensor a model returns."""
    with torch.no_grad():
        output = model(x)
    return getattr(output, "logits", output)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``."""
    return float(((a - b).norm() / b.norm()).detach())


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A deep copy of the state dict."""
    return copy.deepcopy(dict(model.state_dict()))


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Same keys in the same order, same bits."""

    def same(x: torch.Tensor, y: torch.Tensor) -> bool:
        if not isinstance(x, torch.Tensor) or x.is_quantized:
            return torch.equal(x.dequantize(), y.dequantize()) if isinstance(x, torch.Tensor) else x == y
        return x.dtype == y.dtype and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))

    return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
