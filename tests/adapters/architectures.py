"""Tiny networks of transformers, one per row of the table, with random weights everywhere.

``SMALL[name](draw)`` builds one from a random generator of Python; sizes are drawn, so that no test rests on one shape.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

HEADS = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def scramble(model: nn.Module) -> Any:
    """Random values in every parameter and buffer that is born constant or tiny; evaluation mode."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * min(1.0, 2 / max(parameter[0].numel(), 1) ** 0.5))
            if "position" in name or "token" in name or "bias_table" in name:
                parameter.normal_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def _vit(draw: random.Random, **more: Any) -> dict[str, Any]:
    patch = draw.choice([4, 8])
    return {**HEADS, "num_hidden_layers": draw.choice([1, 2]), "image_size": patch * draw.choice([4, 5, 6])} | {
        "patch_size": patch,
        **more,
    }


def _text(draw: random.Random) -> dict[str, Any]:
    words = {"vocab_size": 99, "max_position_embeddings": 25, "bos_token_id": 1, "eos_token_id": 2}
    return {**HEADS, "num_hidden_layers": draw.choice([1, 2]), **words}


def _widths(draw: random.Random) -> list[int]:
    return [8 * draw.choice([1, 2]) for _ in range(4)]


def swin(draw: random.Random, window: int = 4, image: int = 32) -> Any:
    """A Swin of two stages of two blocks each (one of them shifted), patches of 2 pixels."""
    return hf.SwinForImageClassification(
        hf.SwinConfig(
            image_size=image,
            patch_size=2,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=window,
            use_absolute_embeddings=draw.random() < 0.5,
        )
    )


SMALL: dict[str, Callable[[random.Random], Any]] = {
    "vit": lambda d: hf.ViTForImageClassification(hf.ViTConfig(**_vit(d))),
    "vit with pooler": lambda d: hf.ViTModel(hf.ViTConfig(**_vit(d))),
    "vit that paints": lambda d: hf.ViTForMaskedImageModeling(hf.ViTConfig(**_vit(d))),
    "deit": lambda d: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_vit(d))),
    "dinov2": lambda d: hf.Dinov2ForImageClassification(
        hf.Dinov2Config(**_vit(d, use_swiglu_ffn=d.random() < 0.5, mlp_ratio=2))
    ),
    "dinov2_with_registers": lambda d: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**_vit(d, num_register_tokens=d.choice([1, 4]), mlp_ratio=2))
    ),
    "dinov3_vit": lambda d: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**_vit(d, num_register_tokens=d.choice([0, 4]), use_gated_mlp=d.random() < 0.5))
    ),
    "dinov3_convnext": lambda d: hf.DINOv3ConvNextModel(
        hf.DINOv3ConvNextConfig(hidden_sizes=_widths(d), depths=[1, 1, 2, 1])
    ),
    "clip": lambda d: hf.CLIPModel(hf.CLIPConfig(text_config=_text(d), vision_config=_vit(d))),
    "clip_vision_model": lambda d: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**_vit(d))),
    "clip classifier": lambda d: hf.CLIPForImageClassification(
        hf.CLIPConfig(text_config=_text(d), vision_config=_vit(d))
    ),
    "siglip": lambda d: hf.SiglipModel(hf.SiglipConfig(text_config=_text(d), vision_config=_vit(d))),
    "siglip_vision_model": lambda d: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_vit(d))),
    "siglip classifier": lambda d: hf.SiglipForImageClassification(
        hf.SiglipConfig(text_config=_text(d), vision_config=_vit(d))
    ),
    "swin": swin,
    "convnext": lambda d: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=_widths(d), depths=[1, 1, 2, 1])
    ),
    "resnet": lambda d: hf.ResNetForImageClassification(
        hf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=_widths(d),
            depths=[1, 2, 1, 1],
            layer_type=d.choice(["basic", "bottleneck"]),
        )
    ),
    "mobilenet_v2": lambda d: hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(depth_multiplier=d.choice([0.35, 0.5]))
    ),
    "mobilenet_v2 that segments": lambda d: hf.MobileNetV2ForSemanticSegmentation(
        hf.MobileNetV2Config(depth_multiplier=0.35)
    ),
    "segformer": lambda d: hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1], decoder_hidden_size=16)
    ),
    "segformer classifier": lambda d: hf.SegformerForImageClassification(
        hf.SegformerConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """The network of this name with sizes and weights of this seed."""
    torch.manual_seed(seed)
    return scramble(SMALL[name](random.Random(seed)))


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits, else the pooled output, else the image embedding."""
    with torch.no_grad():
        found = model(pixel_values=x)
    for key in ("logits", "image_embeds", "pooler_output"):
        value = getattr(found, key, None)
        if value is not None:
            return value
    raise AssertionError(f"{type(found).__name__} has no output that this test knows")
