"""Networks that give every pixel a class, by name, with what their training needs to know of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from equidial.errors import ArgumentError, explain
from equidial.metrics import split_tokens, token_layout
from equidial.recipes._deeplab import pretrained_deeplab

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Segmenter:
    """A network with logits ``[n, classes, h', w']`` (or ``.logits``), before training.

    Attributes:
        model: reads images ``(x - mean) / std`` of ``x`` in [0, 1].
        mean, std: per channel.
        kind: ``"deeplab"``, or the ``model_type`` of transformers (``"segformer"``, ``"vit"``, ``"dinov2"``, ..).
        head: parameters whose names begin so learn at a rate of their own.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str
    head: str

    def parameters(self, head: bool) -> list[nn.Parameter]:
        """Those of the head, or all others. Softening keeps names up to what torch puts behind them."""
        return [p for name, p in self.model.named_parameters() if name.startswith(self.head) == head]


class PatchSegmenter(nn.Module):
    """A transformer of patches with a linear classifier of its patch tokens, resized to the image.

    ``backbone``: gives tokens ``last_hidden_state [n, extra + h' w', hidden]``; position tables are interpolated by the
    backbone where its images differ from those that it was made for.
    """

    def __init__(self, backbone: nn.Module, hidden: int, classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(hidden, classes, 1)
        interpolates = "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes, h, w]`` of images ``[n, 3, h, w]``."""
        tokens = self.backbone(pixel_values=x, **self.options).last_hidden_state
        _, grid = split_tokens(tokens, token_layout(tokens.shape[1], x.shape[-2:]))
        return functional.interpolate(self.head(grid), size=x.shape[-2:], mode="bilinear", align_corners=False)


def check_segmenter(model: str | None, weights: Path | None) -> None:
    """Raise ``ArgumentError`` unless ``model`` is ``hf:NAME_OR_FOLDER``, or nothing beside an existing file."""
    if model is not None and not (model.startswith("hf:") and len(model) > 3):
        raise ArgumentError(
            explain("a model as hf:NAME_OR_FOLDER", repr(model), "e.g. hf:nvidia/mit-b0, or a folder of transformers")
        )
    if model is not None and weights is not None:
        raise ArgumentError(explain("a model or weights", "both", "weights are of DeepLabV3, which needs no name"))
    if model is None and (weights is None or not weights.is_file()):
        got = "none" if weights is None else f"{weights}, which is no file"
        raise ArgumentError(
            explain(
                "weights: a .safetensors file with the tensors of equidial.recipes.DeepLabV3 for 21 classes of VOC "
                "(converted from github.com/google-coral/test_data)",
                got,
                "give --weights FILE, or --model hf:NAME_OR_FOLDER",
            )
        )


def load_segmenter(model: str | None, weights: Path | None, classes: int) -> Segmenter:
    """The pretrained network with a new head for ``classes``, drawn from the global generator.

    ``model``: ``hf:NAME_OR_FOLDER`` of transformers; networks made for segmentation (SegFormer) keep their decoder, all
    others (ViT, DINOv2) get a linear head on their patch tokens. Without it DeepLabV3 with ``weights``. Raises as
    :func:`check_segmenter`, ``ArgumentError`` where transformers has no such model, ``FileFormatError`` where the
    weights do not fit.
    """
    check_segmenter(model, weights)
    if model is None:
        assert weights is not None, "checked"
        half = (0.5, 0.5, 0.5)
        network = pretrained_deeplab(weights, classes).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return Segmenter(network.eval(), half, half, "deeplab", "classifier.")
    return _from_transformers(model.removeprefix("hf:"), classes)


def _from_transformers(name: str, classes: int) -> Segmenter:
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError as error:
        raise ArgumentError(
            explain("transformers for hf: models", "not installed", "pip install 'equidial[hf]'")
        ) from error
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type == "segformer" or any("Segmentation" in a for a in config.architectures or ()):
            network: Any = AutoModelForSemanticSegmentation.from_pretrained(
                name, num_labels=classes, ignore_mismatched_sizes=True, dtype=torch.float32
            )
            head = "decode_head."
        else:
            backbone = AutoModel.from_pretrained(name, dtype=torch.float32)
            network, head = PatchSegmenter(backbone, config.hidden_size, classes), "head."
    except (OSError, ValueError) as error:
        raise ArgumentError(
            explain("a folder or hub name of a vision model", f"{name!r}: {error}", "check the name, or the network")
        ) from error
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # models saved without their processor
        found = {}
    mean, std = (
        tuple(found.get(key) or default) for key, default in zip(("image_mean", "image_std"), _IMAGENET, strict=True)
    )
    return Segmenter(network.eval(), mean, std, config.model_type, head)
