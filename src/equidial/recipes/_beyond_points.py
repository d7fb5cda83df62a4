"""The part of ``beyond`` on clouds of points: data, training, and what rotations do to the trained network."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import equidial as ed
from equidial.data import PointClouds, load_points, solids
from equidial.metrics import combined_accuracy, invariance_kl
from equidial.recipes._point_network import GROUP, PointNetwork, point_vectors
from equidial.recipes._product_network import ProductSizes
from equidial.recipes._study import Key, Training, fit, spent

_TURNS = 4  # of every test cloud
_BATCH = 100
_AT_ONCE = 32  # clouds whose distances are in memory


@dataclass(frozen=True)
class Sizes:
    """Of clouds, network and training."""

    train: int
    test: int
    points: int
    network: ProductSizes
    features: int
    epochs: int
    rate: float
    batch_size: int = 50
    whole: bool = False  # read every mesh of a folder

    def training(self) -> Training:
        """With a rise over half an epoch."""
        return Training(self.epochs, self.batch_size, self.rate, warmup=0.5)


SMALL = Sizes(1000, 500, 256, ProductSizes(8, 16), 32, epochs=15, rate=2e-2)
PAPER = Sizes(10_000, 2_500, 1024, ProductSizes(16, 32), 64, epochs=50, rate=1e-2, whole=True)


@dataclass(frozen=True)
class Vectors:
    """Vectors ``[n, points, 3 kinds]`` and labels for training and test, on the device."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]


def load(folder: Path | None, sizes: Sizes, breaking: bool, device: str) -> Vectors:
    """Of a folder in ModelNet's layout, or of solids; every seed of the study has the same clouds."""
    if folder is None:
        found: PointClouds = solids(sizes.train, sizes.test, sizes.points, breaking=breaking)
    else:
        limits = (None, None) if sizes.whole else (sizes.train, sizes.test)
        found = load_points(folder, sizes.points, *limits)
    x, x_test = (torch.cat([point_vectors(part) for part in t.split(_AT_ONCE)]) for t in (found.x, found.x_test))
    return Vectors(x.to(device), found.y.to(device), x_test.to(device), found.y_test.to(device), found.classes)


def turned(vectors: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Each cloud ``[n, points, 3 kinds]`` by its own rotation ``[n, 3, 3]``."""
    kinds = vectors.unflatten(-1, (-1, 3))
    return (kinds @ matrices.to(vectors).mT[:, None]).flatten(-2)


def haar(count: int, generator: torch.Generator) -> torch.Tensor:
    """Rotations ``[count, 3, 3]`` from the Haar measure."""
    return torch.stack([GROUP.natural_matrix(g.value) for g in GROUP.sample(count, generator)])


def about_z(count: int, generator: torch.Generator) -> torch.Tensor:
    """Rotations ``[count, 3, 3]`` about the vertical axis, their angles uniform."""
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    out = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    out[:, 0, 0] = out[:, 1, 1] = angle.cos()
    out[:, 1, 0] = angle.sin()
    out[:, 0, 1] = -angle.sin()
    return out


def train(data: Vectors, sizes: Sizes, key: Key, checkpoint: Path | None) -> dict[str, Any]:
    """Train from scratch; returns what was measured and certified."""
    start = time.perf_counter()
    torch.manual_seed(key["seed"])
    model = PointNetwork(data.x.cpu(), len(data.classes), sizes.network, sizes.features).to(data.x.device)
    config = model.config(key["softness"])
    if key["softness"] < 1:
        ed.soften(model, config)

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = data.x[rows]
        if key["method"] == "augmentation":
            x = turned(x, haar(len(rows), generator))
        return functional.cross_entropy(model.of_vectors(x), data.y[rows])

    history = fit(model, len(data.x), loss_of, sizes.training(), key["seed"], checkpoint)
    bound = float(ed.certify(model, None if key["softness"] < 1 else config).bound)
    if key["softness"] < 1:
        ed.fold(model)
    return {
        **judged(model, data),
        "bound": bound,
        "level": ["layer"],
        "constrained": len(model.features.spaces),
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }


def judged(model: PointNetwork, data: Vectors) -> dict[str, Any]:
    """Accuracy upright and under four rotations of every cloud, all of SO(3) and about z alone.

    ``error``: ``||f(g x) - f(x)|| / ||f(x)||``, norms over all test clouds and rotations. What is not under ``moves``
    is under SO(3).
    """
    model.eval()
    found: dict[str, dict[str, float]] = {}
    still, y = _logits(model, data.x_test), data.y_test
    accuracy = _accuracy(still, y)
    for name, draw in (("about z", about_z), ("SO(3)", haar)):
        generator = torch.Generator().manual_seed(1)
        moved = [_logits(model, turned(data.x_test, draw(len(y), generator))) for _ in range(_TURNS)]
        hits = sum(_accuracy(m, y) for m in moved) / _TURNS
        found[name] = {
            "Acc": accuracy,
            "aAcc": hits,
            "cAcc": combined_accuracy(accuracy, hits),
            "iErr": sum(float(invariance_kl(still, m).mean()) for m in moved) / _TURNS,
            "error": float(torch.stack([m - still for m in moved]).norm() / (math.sqrt(_TURNS) * still.norm())),
        }
    return {**found["SO(3)"], "moves": found}


def _logits(model: PointNetwork, vectors: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.of_vectors(part) for part in vectors.split(_BATCH)])


def _accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())
