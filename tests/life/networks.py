"""The columns of the compatibility matrix: tiny networks with random weights, an input and a configuration each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import equidial as ed
from tests.adapters import architectures, models

SOFTNESS = 0.3


class NotApplicable(Exception):
    """A feature that this network does not have; the text is the reason."""


@dataclass(frozen=True)
class Network:
    """A network as built, in evaluation mode, without random layers; four inputs; how it is softened."""

    name: str
    model: Any
    x: torch.Tensor
    config: ed.SoftEquivarianceConfig

    def softened(self) -> Any:
        """The model of this network, softened."""
        return ed.soften(self.model, self.config)


def _image_network(name: str) -> tuple[Any, torch.Tensor]:
    model = architectures.build(name)
    size = getattr(model.config, "image_size", 33 if name == "resnet" else 32)
    return model, torch.randn(4, 3, size, size)


def _cnn() -> tuple[Any, torch.Tensor]:
    return models.cnn(), torch.randn(4, 3, 17, 17)


def _mlp() -> tuple[Any, torch.Tensor]:
    return models.VectorMlp().eval(), torch.randn(4, 11)


_OWN: dict[str, Callable[[], tuple[Any, torch.Tensor]]] = {"cnn": _cnn, "mlp": _mlp}
_LIBRARY = {
    "ViT": "vit",
    "DeiT": "deit",
    "DINOv2": "dinov2",
    "CLIP": "clip_vision_model",
    "SigLIP": "siglip_vision_model",
    "Swin": "swin",
    "ConvNeXt": "convnext",
    "ResNet": "resnet",
    "MobileNetV2": "mobilenet_v2",
    "SegFormer": "segformer",
}
NETWORKS = (*_LIBRARY, "plain CNN", "vector MLP")


def build(name: str) -> Network:
    """The network of this name; the same weights and inputs at every call."""
    torch.manual_seed(0)
    own = {"plain CNN": "cnn", "vector MLP": "mlp"}.get(name)
    model, x = _OWN[own]() if own else _image_network(_LIBRARY[name])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "drop_prob" in vars(module):  # stochastic depth
            vars(module)["drop_prob"] = 0.0
    more: dict[str, Any] = {"group": "SO2", "representations": models.SPACES} if own == "mlp" else {"group": "C4"}
    return Network(name, model, x, ed.SoftEquivarianceConfig(softness=SOFTNESS, **more))


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the model says, with its gradient: logits, else the image embedding, else the pooled output."""
    found = model(x)
    for key in ("logits", "image_embeds", "pooler_output"):
        value = getattr(found, key, None)
        if value is not None:
            return value
    assert isinstance(found, torch.Tensor), type(found)
    return found


def evaluate(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """:func:`run` without gradients."""
    with torch.no_grad():
        return run(model, x)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A mean over the batch, so that halves of a batch average to the whole; large outputs make no large gradients."""
    return run(model, x).square().log1p().flatten(1).mean(1).mean()


class TensorOut(nn.Module):
    """A network that returns a plain tensor, as exporters like it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:func:`run`."""
        return run(self.model, x)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||`` in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@contextmanager
def refused(*words: str) -> Iterator[list[str]]:
    """Expect one :class:`StateError` in the house pattern that holds these words; yields a list for its text."""
    said: list[str] = []
    try:
        yield said
    except ed.errors.StateError as error:
        said.append(str(error))
    assert said, "not refused"
    text = said[0]
    assert text.startswith("expected ")
    assert "\n  got: " in text
    assert "\n  do: " in text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
