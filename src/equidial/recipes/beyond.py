"""Shifts and magnification of images, and clouds of points under rotations of space: what paper A leaves open.

Three parts, each from strict to free:

* ``shifts``: a pretrained transformer, the dial of cyclic shifts on its position table; judged on images shifted by
  whole pixels, zeros filled in. Convolutions commute with shifts already and have nothing to turn.
* ``scaling``: a pretrained residual network, the dial of magnification on its kernels; judged on images magnified about
  their centre, bilinear. A kernel that reads the same of a picture magnified about any place is one number in the
  middle and zeros around it: strict is a network of pointwise convolutions, and its certificate speaks of kernels.
* ``points``: a network from scratch on ModelNet or on solids drawn from a seed, whose classes differ partly by how they
  stand only; exactly invariant to rotations at softness 0.

Each part has the dial below 1, ``untouched`` (the dial at 1) and ``augmentation``, the same on moved examples, with as
many steps of the same rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, explain
from equidial.groups import GroupElement, Scale, Translation
from equidial.metrics import measured_elements
from equidial.recipes import _beyond_points
from equidial.recipes._arrays import Splits
from equidial.recipes._moves import crop_flip, flipped, scores, shifted, turned
from equidial.recipes._pretrained import Reader, adapted, check_networks, load_splits, pretrained
from equidial.recipes._study import Key, Progress, Study, Training, check_named, spent

Part = Literal["shifts", "scaling", "points"]
NAME = "beyond"
_SHIFTS_TRIED = 4  # of each size
_PIXELS = 32


@dataclass(frozen=True)
class _Images:
    network: str
    group: str  # of the dial
    moves: str  # of the images that judge: no cyclic ones


IMAGES: dict[str, _Images] = {"shifts": _Images("cct", "T2", "R2"), "scaling": _Images("resnet20", "Scale", "Scale")}
"""Network and groups of the parts on images."""


@dataclass(frozen=True)
class _Sizes:
    training: Training
    images: int | None
    test: int | None
    points: _beyond_points.Sizes


SCALES = {
    "small": _Sizes(Training(2, 64, 1e-3), 4000, 1000, _beyond_points.SMALL),
    "paper": _Sizes(Training(30, 128, 1e-3), None, None, _beyond_points.PAPER),
}


@dataclass(frozen=True)
class Beyond:
    """Shifts and magnification of images, clouds of points under SO(3): from strict to free, beside moved examples."""

    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    data: str = ""
    """CIFAR, for shifts and scaling: FILE.npz (x_train [n, 32, 32, 3] uint8, y_train, x_test, y_test) | FOLDER."""
    weights: Path | None = None
    """Folder of cifar10_cct_2_3x2.safetensors (shifts) and cifar10_resnet20.safetensors (scaling)."""
    clouds: Path | None = None
    """Folder in ModelNet's layout, <class>/train/*.off and <class>/test/*.off. Default: solids drawn from a seed."""
    scale: Literal["small", "paper"] = "small"
    """small: 4,000 images, 2 epochs; 1,000 clouds of 256 points. paper: all, 30 epochs; clouds of 1,024 points."""
    parts: tuple[Part, ...] = get_args(Part)
    """Out of shifts, scaling, points."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order and moves."""
    shifts_softness: tuple[float, ...] = (0.0, 0.25, 0.5)
    """Positions of the table, below 1; 1 is the untouched network."""
    scaling_softness: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Positions of the kernels, below 1."""
    points_softness: tuple[float, ...] = (0.0, 0.1, 0.2)
    """Positions of the network from scratch, below 1."""
    shifts: tuple[int, ...] = (1, 2, 4, 8)
    """Largest steps along each axis, in pixels, of the images that judge; the last one bounds those of augmentation."""
    factors: tuple[float, ...] = (0.7, 0.8, 0.9, 1.1, 1.25, 1.4)
    """Magnifications that judge; augmentation draws from the same range."""
    breaking: bool = True
    """Whether two kinds of solids differ from others only by how they stand."""
    epochs: int | None = None
    """Of all parts. Default: of the scale."""
    device: str = "cpu"
    """Where networks are trained, e.g. cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning and for data and weights that are not there."""
        check_named("parts", self.parts, get_args(Part))
        check_named("seeds", self.seeds)
        for part in get_args(Part):
            name, values = f"{part}_softness", self.positions(part)
            if not values or not all(0 <= s < 1 for s in values):
                raise ArgumentError(explain(f"{name} in [0, 1)", repr(values), "1 is trained as untouched"))
        if not self.shifts or not all(0 < k < _PIXELS for k in self.shifts):
            raise ArgumentError(explain(f"shifts of 1 to {_PIXELS - 1} pixels", repr(self.shifts), "e.g. 1 2 4 8"))
        if not self.factors or not all(0.1 <= f <= 10 and f != 1 for f in self.factors):
            got = repr(self.factors)
            raise ArgumentError(explain("factors from 0.1 to 10 other than 1", got, "e.g. 0.8 1.2"))
        if self.epochs is not None and self.epochs < 1:
            raise ArgumentError(explain("at least one epoch", f"epochs={self.epochs}", "leave it out for the default"))
        if self.image_parts:
            if not self.data:
                got = f"data='' for {', '.join(self.image_parts)}"
                raise ArgumentError(explain("CIFAR images", got, "pass --data FILE.npz, or --parts points"))
            check_networks(self.networks, self.weights)
        if "points" in self.parts and self.clouds is not None and not self.clouds.is_dir():
            raise ArgumentError(explain("a folder of clouds", str(self.clouds), "leave it out for drawn solids"))

    def positions(self, part: str) -> tuple[float, ...]:
        """Of the dial, below 1."""
        return getattr(self, f"{part}_softness")

    @property
    def image_parts(self) -> tuple[str, ...]:
        """The parts that read images."""
        return tuple(part for part in self.parts if part in IMAGES)

    @property
    def networks(self) -> tuple[str, ...]:
        """The pretrained networks of these parts."""
        return tuple(IMAGES[part].network for part in self.image_parts)


def run(recipe: Beyond, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`Beyond.check`."""
    recipe.check()
    sizes, images = SCALES[recipe.scale], None
    if recipe.image_parts:
        images = load_splits(recipe.data, recipe.networks, sizes.images, 0, sizes.test)
    plan = replace(sizes.points, epochs=recipe.epochs or sizes.points.epochs)
    clouds = None
    if "points" in recipe.parts:
        clouds = _beyond_points.load(recipe.clouds, plan, recipe.breaking, recipe.device)
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data", "weights", "device")}
    settings["clouds"] = None if recipe.clouds is None else recipe.clouds.name
    study = Study(recipe.output, NAME, settings)

    def train(key: Key) -> Mapping[str, Any]:
        if key["part"] == "points":
            assert clouds is not None
            return _beyond_points.train(clouds, plan, key, study.checkpoint(key))
        assert images is not None
        return _train(recipe, study, key, images)

    return study.collect(list(_keys(recipe)), train, progress)


def _keys(recipe: Beyond) -> Iterator[dict[str, Any]]:
    for part in recipe.parts:
        cases = [("soft", s) for s in recipe.positions(part)] + [("untouched", 1.0), ("augmentation", 1.0)]
        for (method, softness), seed in product(cases, recipe.seeds):
            yield {"part": part, "method": method, "softness": softness, "seed": seed}


def shifts_up_to(pixels: int) -> list[GroupElement]:
    """Four translations by whole pixels, not all 0 and at most so many along each axis, always the same."""
    reach = range(-pixels, pixels + 1)
    steps = [step for step in product(reach, reach) if any(step)]
    order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(pixels))[:_SHIFTS_TRIED]
    return [Translation(2).element(steps[k]) for k in order.tolist()]


def judges(recipe: Beyond, part: str) -> dict[str, list[GroupElement]]:
    """By name, the elements that move the test images."""
    if part == "shifts":
        return {f"{k:g}": shifts_up_to(k) for k in recipe.shifts}
    return {f"{f:g}": [Scale().exp(math.log(f))] for f in recipe.factors}


def _augmented(recipe: Beyond, part: str) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    """How training images of ``augmentation`` move, before what all training images undergo."""
    if part == "shifts":
        return partial(_shift, margin=max(recipe.shifts))
    reach = max(abs(math.log(f)) for f in recipe.factors)
    return partial(_zoom, elements=measured_elements(Scale(), reach))


def _shift(x: torch.Tensor, generator: torch.Generator, margin: int) -> torch.Tensor:
    return shifted(x, margin, generator)


def _zoom(x: torch.Tensor, generator: torch.Generator, elements: list[GroupElement]) -> torch.Tensor:
    return turned(x, elements, generator)


def _train(recipe: Beyond, study: Study, key: Key, data: Splits) -> dict[str, Any]:
    start, sizes, own, part = time.perf_counter(), SCALES[recipe.scale], IMAGES[key["part"]], key["part"]
    torch.manual_seed(key["seed"])
    model = pretrained(own.network, recipe.weights, len(data.classes), recipe.device)
    read = Reader.of(own.network, recipe.device)
    plan = replace(sizes.training, epochs=recipe.epochs or sizes.training.epochs)
    move = _augmented(recipe, part) if key["method"] == "augmentation" else None
    usual = flipped if part == "shifts" else crop_flip  # a crop is a shift

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = read(data.x[rows])
        x = usual(x if move is None else move(x, generator), generator)
        return functional.cross_entropy(model(x), data.y[rows].to(recipe.device))

    config = ed.SoftEquivarianceConfig(group=own.group, softness=key["softness"], image_size=read.pixels)
    history, certificate = adapted(model, config, data, read, loss_of, plan, study, key)
    test = list(read.batches(data.x_test, data.y_test))
    found = {name: scores(model, test, own.moves, g) for name, g in judges(recipe, part).items()}
    return {
        **combined(found),
        "bound": float(certificate.bound),
        "level": sorted({row.level for row in certificate.layers}),
        "constrained": len(certificate.layers),
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }


def combined(moves: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """All moves as one: means of aAcc and iErr over them, cAcc of these, and what was found under each."""
    accuracy = next(iter(moves.values()))["Acc"]
    moved, error = (sum(m[name] for m in moves.values()) / len(moves) for name in ("aAcc", "iErr"))
    return {"Acc": accuracy, "aAcc": moved, "cAcc": math.sqrt(accuracy * moved), "iErr": error, "moves": dict(moves)}
