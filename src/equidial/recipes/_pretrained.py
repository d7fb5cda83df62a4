"""Pretrained classifiers of CIFAR: networks by name, the images as they read them, and how they are adapted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.data import load_images
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.recipes._arrays import Splits, stacked
from equidial.recipes._cifar_networks import cct, resnet20, resnet56
from equidial.recipes._models import load_model, load_weights
from equidial.recipes._study import Key, Loss, Study, Training, fit

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
_PIXELS, _PRETRAINED_PIXELS = 32, 224
_RECALIBRATION = 8  # batches


@dataclass(frozen=True)
class _Small:
    build: Callable[[], nn.Module]
    file: str
    moments: tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of the inputs


NETWORKS = {
    "resnet20": _Small(resnet20, "cifar10_resnet20.safetensors", _IMAGENET),
    "resnet56": _Small(resnet56, "cifar10_resnet56.safetensors", _IMAGENET),
    "cct": _Small(cct, "cifar10_cct_2_3x2.safetensors", _CIFAR),
}
"""Small networks, with the file of each in the folder of weights."""


def check_names(names: Sequence[str]) -> None:
    """Raises ``ArgumentError`` for a network that is neither small nor of transformers or timm."""
    known = (*NETWORKS, "hf:NAME_OR_FOLDER", "timm:NAME")
    for name in names:
        if name not in NETWORKS and not name.startswith(("hf:", "timm:")):
            raise ArgumentError(explain(f"a network out of {', '.join(known)}", repr(name), "name one of them"))


def check_networks(names: Sequence[str], weights: Path | None) -> None:
    """:func:`check_names`; also raises ``ArgumentError`` for weights that are not there."""
    check_names(names)
    for name in names:
        if name in NETWORKS and (weights is None or not (weights / NETWORKS[name].file).is_file()):
            raise ArgumentError(explain(f"{NETWORKS[name].file} in a folder", repr(weights), "pass --weights FOLDER"))


@dataclass(frozen=True)
class Reader:
    """Images in [0, 1] as a network reads them."""

    pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str

    @classmethod
    def of(cls, name: str, device: str) -> Reader:
        """What comes before the network of this name."""
        if name in NETWORKS:
            return cls(_PIXELS, *NETWORKS[name].moments, device)
        return cls(_PRETRAINED_PIXELS, *_IMAGENET, device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shift, scale = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        x = ((x - shift) / scale).to(self.device)
        if x.shape[-1] == self.pixels:
            return x
        return functional.interpolate(x, size=(self.pixels, self.pixels), mode="bilinear", align_corners=False)

    def batches(self, x: torch.Tensor, y: torch.Tensor, size: int = 250) -> Iterator[Any]:
        """Pairs, one batch at a time."""
        return ((self(part), labels) for part, labels in zip(x.split(size), y.split(size), strict=True))


def pretrained(name: str, weights: Path | None, classes: int, device: str) -> nn.Module:
    """The pretrained network, on the device; with a head drawn anew where its own has other classes."""
    if name not in NETWORKS:
        return load_model(name, classes=classes).to(device)
    assert weights is not None
    model = NETWORKS[name].build()
    load_weights(model, weights / NETWORKS[name].file)
    return model.eval().to(device)


def load_splits(data: str, names: Sequence[str], images: int | None, validation: int, test: int | None) -> Splits:
    """Images in [0, 1], in a fixed random order, the same for every seed and method; at most so many of each part.

    Validation images are taken from the test images where a small network is named, because those have seen the
    training images of CIFAR-10; else from the training images. They are nobody else's.
    """
    found = load_images(data, size=_PIXELS, mean=(0.0,), std=(1.0,))
    parts = []
    for split in (found.train, found.test):
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        x, y = stacked(split)
        parts.append((x[order], y[order]))
    (x, y), (x_test, y_test) = parts
    seen = any(name in NETWORKS for name in names)
    x_val, y_val = parts[seen]
    held = min(validation, max(1, len(x_val) // 3))
    x_val, y_val = x_val[:held], y_val[:held]
    if seen:
        x_test, y_test = x_test[held:], y_test[held:]
    else:
        x, y = x[held:], y[held:]
    return Splits(x[:images], y[:images], x_val, y_val, x_test[:test], y_test[:test], found.classes)


def adapted(
    model: nn.Module,
    config: ed.SoftEquivarianceConfig,
    data: Splits,
    read: Reader,
    loss: Loss,
    plan: Training,
    study: Study,
    key: Key,
) -> tuple[list[dict[str, Any]], ed.Certificate]:
    """Turn the dial, re-estimate batch norm, train, fold: the history, and the certificate.

    Warnings (of strides) are left to who looks at the network first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        ed.soften(model, config)
        count = _RECALIBRATION * plan.batch_size
        ed.recalibrate(model, read.batches(data.x[:count], data.y[:count], plan.batch_size))
        history = fit(model, len(data.x), loss, plan, key["seed"], study.checkpoint(key))
        certificate = ed.certify(model)
        ed.fold(model)
    return history, certificate


def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``[n, classes]``, also of models that return more."""
    output = model(x)
    return getattr(output, "logits", output)
