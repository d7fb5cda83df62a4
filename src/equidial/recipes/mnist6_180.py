"""MNIST6-180 (paper B, table 2): can a network tell a six from the same six upside down, and does it learn to?

Two tasks on the same network. ``half turn``: each six and its half turn, which is which; an invariant network is right
half of the time, whatever it learns. ``invariant``: sixes and eights, each with its half turn, which digit; the labels
are exactly invariant. A learned ``omega'`` should rise from 0 in the first and stay there in the second.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from equidial.errors import ArgumentError, FileFormatError, explain
from equidial.nn import summary
from equidial.recipes._group_resnet import GroupResNet, GroupResNetConfig
from equidial.recipes._study import (
    Key,
    Progress,
    Study,
    Training,
    check_named,
    fit_classifier,
    logits,
    spent,
    turn_error,
)

Task = Literal["half turn", "invariant"]
Method = Literal["strict", "partial", "soft", "learned"]
NAME = "mnist6-180"
_DIGITS: dict[str, tuple[int, ...]] = {"half turn": (6,), "invariant": (6, 8)}
_MEAN, _STD = 0.1307, 0.3081  # of MNIST


@dataclass(frozen=True)
class _Sizes:
    image: int
    widths: tuple[int, int]
    kernel: int
    features: int
    count: int | None  # training images of each digit, before their half turns
    training: Training


SCALES = {
    "small": _Sizes(20, (4, 8), 5, 16, 400, Training(8, 64, 3e-3, 1e-2)),
    "paper": _Sizes(28, (10, 20), 7, 32, None, Training(300, 64, 1e-3, 1e-3, warmup=5)),
}


@dataclass(frozen=True)
class Mnist6180:
    """Sixes and their half turns: strict, partial, soft, and learned omega', on two tasks."""

    data: Path
    """mnist.npz: x_train [60000, 28, 28] uint8, y_train, x_test, y_test."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: 20 pixels, 4 and 8 channels, 400 digits. paper: 28 pixels, 10 and 20 channels, all, 300 epochs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per seed, method and task."""
    rotations: int = 8
    """Samples of the rotations."""
    omega_prime: float = 1.0
    """Of the soft method."""
    penalty: float = 0.1
    """lambda of the learned method, the same for both tasks; its omega' starts at 0."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of strict, partial, soft, learned."""
    tasks: tuple[Task, ...] = get_args(Task)
    """Out of "half turn", "invariant"."""
    epochs: int | None = None
    """Default: of the scale."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning and for data that is not there."""
        if not self.data.is_file():
            raise ArgumentError(
                explain("the file mnist.npz", str(self.data), "pass --data; keras and torchvision offer MNIST to save")
            )
        check_named("seeds", self.seeds)
        check_named("methods", self.methods, get_args(Method))
        check_named("tasks", self.tasks, get_args(Task))
        if self.penalty < 0 or self.rotations < 2 or self.rotations % 2:
            raise ArgumentError(
                explain("penalty >= 0 and an even number of rotations", f"{self.penalty}, {self.rotations}", "mend it")
            )


def load(file: Path, task: Task, part: Literal["train", "test"], size: int, count: int | None) -> tuple[Any, Any]:
    """Images ``[n, 1, size, size]``, normalised, each followed by its half turn further down, and labels 0 or 1."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            pixels, digits = archive[f"x_{part}"], archive[f"y_{part}"]
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FileFormatError(
            explain(f"arrays x_{part} and y_{part} in {file.name}", str(error), "write it with numpy.savez")
        ) from error
    images, labels = [], []
    for label, digit in enumerate(_DIGITS[task]):
        x = torch.from_numpy(pixels[np.flatnonzero(digits == digit)[:count]]).float()[:, None] / 255
        x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        x = (x - _MEAN) / _STD
        images += [x, torch.rot90(x, 2, (-2, -1))]
        labels += [torch.full((len(x),), label if task == "invariant" else turned) for turned in (0, 1)]
    return torch.cat(images), torch.cat(labels)


def network(recipe: Mnist6180, method: Method) -> GroupResNet:
    """The residual network of paper B, smaller."""
    sizes = SCALES[recipe.scale]
    soft = {"soft": recipe.omega_prime, "learned": 0.0}.get(method)
    return GroupResNet(
        GroupResNetConfig(
            in_channels=1,
            classes=2,
            rotations=recipe.rotations,
            widths=sizes.widths,
            kernel_size=sizes.kernel,
            features=sizes.features,
            method="soft" if soft is not None else "partial" if method == "partial" else "strict",
            omega_prime=None if soft is None else {"rotation": soft},
            learned=method == "learned",
        )
    )


def run(recipe: Mnist6180, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`Mnist6180.check`."""
    recipe.check()
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data")}
    data = {task: _data(recipe, task) for task in recipe.tasks}
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe)), lambda key: _train(recipe, study, key, *data[key["task"]]), progress)


def _keys(recipe: Mnist6180) -> Iterator[dict[str, Any]]:
    for task in recipe.tasks:
        for method in recipe.methods:
            for seed in recipe.seeds:
                yield {"task": task, "method": method, "seed": seed}


def _data(recipe: Mnist6180, task: Task) -> tuple[Any, Any, Any, Any]:
    """Training images and labels, test images and labels; as many training images in both tasks."""
    sizes = SCALES[recipe.scale]
    count = None if sizes.count is None else sizes.count // len(_DIGITS[task])
    return (
        *load(recipe.data, task, "train", sizes.image, count),
        *load(recipe.data, task, "test", sizes.image, None),
    )


def _train(
    recipe: Mnist6180,
    study: Study,
    key: Key,
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    y_test: torch.Tensor,
) -> dict[str, Any]:
    start, sizes = time.perf_counter(), SCALES[recipe.scale]
    torch.manual_seed(key["seed"])
    model = network(recipe, key["method"])
    training = replace(sizes.training, epochs=recipe.epochs or sizes.training.epochs)
    if key["method"] == "learned":
        training = replace(training, penalty=recipe.penalty)
    history = fit_classifier(model, x, y, training, key["seed"], checkpoint=study.checkpoint(key))
    hits = (logits(model, x_test).argmax(1) == y_test).float().mean()
    rows = summary(model, sizes.image)
    return {
        "accuracy": float(hits),
        "turn_error": turn_error(model, x_test[:200]),
        "omega_prime": [row.omega_prime.get("rotation", 0.0) for row in rows if row.omega_prime],
        "course": [entry["omega_prime"] for entry in history],
        "support": history[-1]["support"],
        "defects": [row.group_defect for row in rows],
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": len(x),
        "test_images": len(x_test),
        **spent(history, start),
    }
