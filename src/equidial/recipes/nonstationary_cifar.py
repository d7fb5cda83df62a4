"""CIFAR-10 with relaxed rotations (paper B, tables 1 and 3, figure 4): strict, partial, soft and learned networks.

Three parts. ``tune``: every setting of every method on one seed, judged on validation images that no augmentation
touches: ``omega'`` of the soft network, ``lambda`` of the learned one, the learning rate of the symmetry of the
partial one, the learning rate of the strict ones, so that each has a grid of as many. ``main``: the chosen settings on
all seeds, judged on test images. ``curve``: accuracy, measured error and certified defect of the soft network with
integer harmonics from 0 past the number of samples.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from equidial.data import held_out_rows, load_images
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.nn import summary
from equidial.recipes._arrays import Splits, stacked
from equidial.recipes._group_resnet import GroupResNet, GroupResNetConfig
from equidial.recipes._moves import crop_flip
from equidial.recipes._study import (
    Key,
    Progress,
    Study,
    Training,
    check_named,
    fit_classifier,
    logits,
    part_of,
    spent,
    turn_error,
)

Method = Literal["strict", "strict, all shortcuts", "partial", "soft", "learned"]
Augmentation = Literal["none", "crop-flip"]
NAME = "nonstationary-cifar"
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


@dataclass(frozen=True)
class _Sizes:
    image: int
    widths: tuple[int, int]
    kernel: int
    features: int
    training: Training
    omegas: tuple[float, ...]
    penalties: tuple[float, ...]
    support_rates: tuple[float, ...]
    rates: tuple[float, ...]  # learning rates of strict networks, which have nothing else to tune


SCALES = {
    "small": _Sizes(
        image=20,
        widths=(4, 8),
        kernel=5,
        features=16,
        training=Training(8, 64, 6e-3, 1e-2, warmup=1),
        omegas=(0.5, 1.0, 2.0),
        penalties=(0.001, 0.01, 0.1),
        support_rates=(1e-4, 1e-3, 1e-2),
        rates=(3e-3, 6e-3, 1.2e-2),
    ),
    "paper": _Sizes(
        image=32,
        widths=(32, 64),
        kernel=7,
        features=32,
        training=Training(300, 64, 1e-3, 1e-3, warmup=5),
        omegas=(1.0, 2.0, 3.0, 4.0, 5.0),
        penalties=(0.001, 0.01, 0.1, 0.5, 1.0, 5.0),
        support_rates=(1e-5, 1e-4, 1e-3),
        rates=(3e-4, 1e-3, 3e-3),
    ),
}


@dataclass(frozen=True)
class NonstationaryCifar:
    """CIFAR-10 (or images like it): strict, partial, soft and learned rotation equivariance, tuned alike."""

    data: str
    """FILE.npz (x_train [n, 32, 32, 3] uint8, ...) | FOLDER (train/<class>/, test/<class>/; cifar-10-batches-py) |
    hf:NAME_OR_FOLDER (uoft-cs/cifar10)."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: 20 pixels, 4 and 8 channels, 8 epochs. paper: 32 pixels, 32 and 64 channels, 300 epochs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the main part; tuning uses the first."""
    rotations: tuple[int, ...] = (4, 8)
    """Samples of the rotations."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of strict, "strict, all shortcuts", partial, soft, learned."""
    augmentations: tuple[Augmentation, ...] = get_args(Augmentation)
    """Out of none, crop-flip (paper B's "+ augment")."""
    curve: tuple[int, ...] = (4,)
    """Numbers of samples for which the curve over omega' is taken, without augmentation."""
    validation: float = 0.1
    """Share of the training images that is held out."""
    epochs: int | None = None
    """Default: of the scale."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning."""
        check_named("seeds", self.seeds)
        check_named("rotations", self.rotations)
        check_named("methods", self.methods, get_args(Method))
        check_named("augmentations", self.augmentations, get_args(Augmentation))
        if not 0 < self.validation < 1:
            raise ArgumentError(explain("a validation share in (0, 1)", repr(self.validation), "e.g. 0.1"))


def load(recipe: NonstationaryCifar) -> Splits:
    """All images in memory; the validation images are the same for every seed."""
    images = load_images(recipe.data, size=SCALES[recipe.scale].image, mean=_MEAN, std=_STD)
    (x, y), (x_test, y_test) = stacked(images.train), stacked(images.test)
    train, val = held_out_rows(len(x), max(1, round(len(x) * recipe.validation)))
    return Splits(x[train], y[train], x[val], y[val], x_test, y_test, images.classes)


def run(recipe: NonstationaryCifar, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`NonstationaryCifar.check`."""
    recipe.check()
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data")}
    study, data = Study(recipe.output, NAME, settings), load(recipe)
    tuning, curve = list(_tuning_keys(recipe)), list(_curve_keys(recipe))
    cases = list(_cases(recipe))
    total = len(tuning) + len(cases) * len(recipe.seeds) + len(curve)

    tuned: list[dict[str, Any]] = []

    def train(key: Key) -> dict[str, Any]:
        """The chosen setting on the first seed is trained already."""
        same = (r for r in tuned if {**key, "part": "tune"}.items() <= r.items())
        if key["part"] == "main" and (found := next(same, None)) is not None:
            return {k: v for k, v in found.items() if k not in key} | {"seconds": 0.0}
        return _train(recipe, study, key, data)

    tuned = study.collect(tuning, train, part_of(progress, 0, total))
    main: list[dict[str, Any]] = []
    for case in cases:
        found = [r for r in tuned if all(r[k] == v for k, v in case.items())]
        best = max(found, key=lambda r: r["validation"])["setting"]
        main += [{"part": "main", **case, "setting": best, "seed": seed} for seed in recipe.seeds]
    return tuned + study.collect(main + curve, train, part_of(progress, len(tuning), total))


def settings_of(recipe: NonstationaryCifar, method: Method) -> tuple[float, ...]:
    """What is tuned: ``omega'``, ``lambda``, the learning rate of supports, or, of strict networks, of weights."""
    sizes = SCALES[recipe.scale]
    found = {"soft": sizes.omegas, "learned": sizes.penalties, "partial": sizes.support_rates}
    return found.get(method, sizes.rates)


def _cases(recipe: NonstationaryCifar) -> Iterator[dict[str, Any]]:
    for rotations in recipe.rotations:
        for augmentation in recipe.augmentations:
            for method in recipe.methods:
                yield {"rotations": rotations, "augmentation": augmentation, "method": method}


def _tuning_keys(recipe: NonstationaryCifar) -> Iterator[dict[str, Any]]:
    for case in _cases(recipe):
        for setting in settings_of(recipe, case["method"]):
            yield {"part": "tune", **case, "setting": setting, "seed": recipe.seeds[0]}


def _curve_keys(recipe: NonstationaryCifar) -> Iterator[dict[str, Any]]:
    for rotations in recipe.curve:
        for harmonic in range(rotations + 2):  # one past the alias
            case = {"rotations": rotations, "augmentation": "none", "method": "soft", "setting": float(harmonic)}
            for seed in recipe.seeds:
                yield {"part": "curve", **case, "seed": seed}


def network(recipe: NonstationaryCifar, key: Key, channels: int, classes: int) -> GroupResNet:
    """The network of one training."""
    sizes, method = SCALES[recipe.scale], key["method"]
    soft = {"soft": key["setting"], "learned": 0.0}.get(method)
    config = GroupResNetConfig(
        in_channels=channels,
        classes=classes,
        rotations=key["rotations"],
        widths=sizes.widths,
        kernel_size=sizes.kernel,
        features=sizes.features,
        method="soft" if soft is not None else "partial" if method == "partial" else "strict",
        omega_prime=None if soft is None else {"rotation": soft},
        learned=method == "learned",
        harmonics=key["part"] == "curve",
        shortcut="needed" if method == "strict" else "always",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # of frequencies that fold: the curve is there to show them
        return GroupResNet(config)


def _train(recipe: NonstationaryCifar, study: Study, key: Key, data: Splits) -> dict[str, Any]:
    start, sizes = time.perf_counter(), SCALES[recipe.scale]
    torch.manual_seed(key["seed"])
    model = network(recipe, key, data.x.shape[1], len(data.classes))
    plan = replace(sizes.training, epochs=recipe.epochs or sizes.training.epochs)
    if key["method"] == "learned":
        plan = replace(plan, penalty=key["setting"])
    if key["method"] == "partial":
        plan = replace(plan, symmetry_rate=key["setting"])
    if key["method"].startswith("strict"):
        plan = replace(plan, learning_rate=key["setting"])
    augment = crop_flip if key["augmentation"] == "crop-flip" else None
    history = fit_classifier(model, data.x, data.y, plan, key["seed"], augment, study.checkpoint(key))
    rows = summary(model, sizes.image)
    return {
        "validation": float((logits(model, data.x_val).argmax(1) == data.y_val).float().mean()),
        "accuracy": float((logits(model, data.x_test).argmax(1) == data.y_test).float().mean()),
        "turn_error": turn_error(model, data.x_test[:200]),
        "omega_prime": [row.omega_prime.get("rotation", 0.0) for row in rows if row.omega_prime],
        "support": history[-1]["support"],
        "defects": [row.group_defect for row in rows],
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }
