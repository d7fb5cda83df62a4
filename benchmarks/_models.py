"""Models of common sizes with random weights, and what of them is softened."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from equidial.errors import ArgumentError, explain

WIDTH: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
        "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}
"""Changes of transformers' defaults, which are ResNet-50, ViT-B/16 and, at patch 14, DINOv2-B/14."""


def vision_model(kind: str, image_size: int, classes: int, changes: dict[str, Any]) -> tuple[Any, int]:
    """A classifier with random weights and the image size that it takes, at most ``image_size``."""
    family, _, patch = kind.partition("-b")
    more: dict[str, Any] = {**changes.get(family, {}), "num_labels": classes}
    if family == "resnet50":
        return ResNetForImageClassification(ResNetConfig(**(more | changes.get("resnet", {})))), image_size
    size = image_size // int(patch or 1) * int(patch or 1)
    if family not in ("vit", "dinov2") or not patch or size == 0:
        raise ArgumentError(
            explain("resnet50, vit-bP or dinov2-bP, images of a patch or more", f"{kind!r} at {image_size}", "use one")
        )
    more |= {"image_size": size, "patch_size": int(patch)}
    if family == "vit":
        return ViTForImageClassification(ViTConfig(**more)), size
    return Dinov2ForImageClassification(Dinov2Config(**more)), size


def softened_tensors(model: nn.Module) -> dict[str, int | float]:
    """Softened tensors, the share of the parameters that they hold, and distinct spectra behind them."""
    chains: list[Any] = []
    for module in model.modules():
        if parametrize.is_parametrized(module):
            found: Any = module.parametrizations
            chains += list(found.values())
    held = sum(chain.original.numel() for chain in chains)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return {
        "tensors": len(chains),
        "share of the parameters": held / whole,
        "spectra": len({id(chain[0].spectrum) for chain in chains}),
    }
