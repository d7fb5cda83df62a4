"""Large angles (paper A, table 3): a pretrained classifier adapted to rotations through the whole circle.

Methods, all from the same weights, with as many optimizer steps on the same images, mirrored and shifted at random, and
with batch norm in training mode: ``untouched`` fine-tuning; ``augmentation``, the same on images turned by random
angles of the whole circle; ``strict``, the dial at 0; ``soft``, the dial between 0 and 1; ``both``, the dial between 0
and 1 on images turned like that. Each has one setting with a grid of two, the softness of ``soft`` and ``both``, the
learning rate of the others; it is chosen on validation images by the mean accuracy over eight directions, with the
first seed.

Every angle 15, 30, .., 180 degrees is tried in both directions, on test images that are read in two ways. ``whole``:
the image as it is, turned, zeros in the corners, as paper A does; what lay in the corners is lost, but for quarter
turns. ``disc``: zeros outside of the inscribed disc, before the turn and after it; nothing leaves the frame, so what
falls here is the network's and the interpolation's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import equidial as ed
from equidial.data import Images, Split
from equidial.errors import ArgumentError, explain
from equidial.filters import Response
from equidial.metrics import combined_accuracy, correct, inscribed_disc, invariance_kl, transform_images
from equidial.recipes._arrays import Splits
from equidial.recipes._models import check_fits
from equidial.recipes._moves import crop_flip, spun
from equidial.recipes._pretrained import Reader, adapted, check_networks, load_splits, logits_of, pretrained
from equidial.recipes._study import Key, Progress, Study, Training, check_named, part_of, spent

Method = Literal["untouched", "augmentation", "strict", "soft", "both"]
Protocol = Literal["whole", "disc"]
NAME = "large-angles"
ANGLES = tuple(sign * degrees for degrees in range(15, 181, 15) for sign in (1, -1) if sign * degrees != -180)
"""Degrees, counterclockwise; a half turn is the same in both directions."""
RANGES = (30, 60, 90, 180)
"""Largest angles, in degrees, over which accuracies and divergences are averaged."""
_TUNED = (45, -45, 90, -90, 135, -135, 180)  # with 0: eight directions
_DIAL = ("strict", "soft", "both")
_TURNED = ("augmentation", "both")


@dataclass(frozen=True)
class _Sizes:
    network: str
    images: int | None
    validation: int
    test: int | None
    training: Training
    rates: tuple[float, float]  # the first one is that of soft and both


SCALES = {
    "small": _Sizes("resnet20", 4000, 300, 500, Training(3, 64), (1e-3, 3e-3)),
    "paper": _Sizes("hf:facebook/deit-small-patch16-224", None, 5000, None, Training(30, 128), (1e-4, 3e-4)),
}


@dataclass(frozen=True)
class LargeAngles:
    """Rotations through the whole circle: untouched, augmentation, strict, soft, and soft with augmentation."""

    data: str
    """FILE.npz (x_train [n, 32, 32, 3] uint8, ...) | FOLDER (train/<class>/, test/<class>/; cifar-10-batches-py;
    cifar-100-python) | hf:NAME_OR_FOLDER (uoft-cs/cifar10)."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    weights: Path | None = None
    """Folder of cifar10_resnet20.safetensors, cifar10_resnet56.safetensors and cifar10_cct_2_3x2.safetensors."""
    scale: Literal["small", "paper"] = "small"
    """small: resnet20, 4,000 images, 3 epochs, 500 test images. paper: a DeiT at 224 pixels, all images, 30 epochs."""
    network: str | None = None
    """Out of resnet20, resnet56, cct, hf:NAME_OR_FOLDER, timm:NAME; default: of the scale."""
    groups: tuple[str, ...] = ("SO2",)
    """Of the dial: SO2, C8, C4, ...; what turns training and test images is the whole circle for each of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Settings are chosen with the first one."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of untouched, augmentation, strict, soft, both."""
    softness: tuple[float, ...] = (0.5, 0.8)
    """The grid of soft and both, between 0 and 1."""
    learning_rates: tuple[float, ...] = ()
    """The grid of the other methods; soft and both have the first one. Default: of the scale (small: 1e-3, 3e-3)."""
    response: Response = "nearest"
    """Of the dial."""
    epochs: int | None = None
    """Default: of the scale."""
    device: str = "cpu"
    """Where the network is trained, e.g. cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning and for weights that are not there."""
        check_named("seeds", self.seeds)
        check_named("groups", self.groups)
        check_named("methods", self.methods, get_args(Method))
        check_named("response", (self.response,), get_args(Response))
        if not self.softness or not all(0 < s < 1 for s in self.softness):
            wanted = "positions of the dial between 0 and 1 (0 is strict, 1 untouched)"
            raise ArgumentError(explain(wanted, repr(self.softness), "e.g. 0.5 0.8"))
        if min(self.rates) <= 0 or (self.epochs is not None and self.epochs < 1):
            got = f"learning_rates={self.rates}, epochs={self.epochs}"
            raise ArgumentError(explain("positive learning rates and at least one epoch", got, "mend it"))
        for group in self.groups:
            ed.SoftEquivarianceConfig(group=group, softness=0.5)
        check_networks([self.named], self.weights)

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates."""
        return self.learning_rates or SCALES[self.scale].rates

    @property
    def named(self) -> str:
        """The network."""
        return self.network or SCALES[self.scale].network


def run(recipe: LargeAngles, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`LargeAngles.check`."""
    recipe.check()
    sizes = SCALES[recipe.scale]
    data = load_splits(recipe.data, [recipe.named], sizes.images, sizes.validation, sizes.test)
    _look_at(recipe, data)
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data", "weights", "device")}
    settings |= {"network": recipe.named, "learning_rates": recipe.rates}
    study, tuning = Study(recipe.output, NAME, settings), list(_tuning_keys(recipe))
    cases = [(group, method) for group in recipe.groups for method in recipe.methods]
    total = len(tuning) + len(cases) * (len(recipe.seeds) - 1)

    def train(key: Key) -> dict[str, Any]:
        return _train(recipe, study, key, data)

    tuned = study.collect(tuning, train, part_of(progress, 0, total))
    best = chosen(tuned)
    rest = [{**best[case], "seed": seed} for case in cases for seed in recipe.seeds[1:]]
    return tuned + study.collect(rest, train, part_of(progress, len(tuning), total))


def chosen(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By group and method: the key that did best on validation images, of the seed of the first record."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        case = (record["group"], record["method"])
        if (
            record["seed"] == records[0]["seed"]
            and record["validation"] > best.get(case, {"validation": -1})["validation"]
        ):
            best[case] = record
    return {case: {name: record[name] for name in _KEY} for case, record in best.items()}


_KEY = ("group", "method", "softness", "learning_rate", "seed")


def _tuning_keys(recipe: LargeAngles) -> Iterator[dict[str, Any]]:
    """Methods that do not know the group are trained for each group again: their numbers are those of its table."""
    for group in recipe.groups:
        for method in recipe.methods:
            dial = recipe.softness if method in ("soft", "both") else (0.0,) if method == "strict" else (1.0,)
            for softness in dial:
                for rate in recipe.rates[:1] if method in ("soft", "both") else recipe.rates:
                    yield dict(zip(_KEY, (group, method, softness, rate, recipe.seeds[0]), strict=True))


def _look_at(recipe: LargeAngles, data: Splits) -> None:
    """Refuses a network that does not read the images; tells (``EquidialWarning``) of strides that break a symmetry."""
    model = pretrained(recipe.named, recipe.weights, len(data.classes), recipe.device)
    read = Reader.of(recipe.named, recipe.device)
    prepared = Split(TensorDataset(read(data.x_test[:1]), data.y_test[:1]))
    check_fits(model, Images(prepared, prepared, data.classes, recipe.named))
    for group in recipe.groups:
        ed.unload(ed.soften(model, ed.SoftEquivarianceConfig(group=group, softness=1.0, image_size=read.pixels)))


def _train(recipe: LargeAngles, study: Study, key: Key, data: Splits) -> dict[str, Any]:
    start, sizes, method = time.perf_counter(), SCALES[recipe.scale], key["method"]
    torch.manual_seed(key["seed"])  # of a new head
    model = pretrained(recipe.named, recipe.weights, len(data.classes), recipe.device)
    read = Reader.of(recipe.named, recipe.device)
    epochs = recipe.epochs or sizes.training.epochs
    plan = replace(sizes.training, learning_rate=key["learning_rate"], epochs=epochs)
    config = ed.SoftEquivarianceConfig(group=key["group"], softness=key["softness"], response=recipe.response)

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = crop_flip(read(data.x[rows]), generator)
        x = spun(x, generator) if method in _TURNED else x
        return functional.cross_entropy(logits_of(model, x), data.y[rows].to(recipe.device))

    history, certificate = adapted(model, config, data, read, loss, plan, study, key)
    validation = over_angles(model, read, data.x_val, data.y_val, "whole", _TUNED)
    found = {name: over_angles(model, read, data.x_test, data.y_test, name, ANGLES) for name in get_args(Protocol)}
    return {
        **found,
        "angles": ANGLES,
        "validation": (validation["Acc"] + sum(validation["accuracy"])) / (1 + len(_TUNED)),
        "bound": float(certificate.bound),
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }


@torch.no_grad()
def over_angles(
    model: nn.Module, read: Reader, x: torch.Tensor, y: torch.Tensor, protocol: Protocol, angles: Sequence[int]
) -> dict[str, Any]:
    """How well a classifier does on turned images, at each angle and in the mean over each range.

    Turns are bilinear (quarter turns exact) with zeros from outside, of images as the network reads them. Returns
    ``Acc`` of images that are not turned; ``accuracy`` and ``iErr`` (mean ``KL(softmax f(x) || softmax f(gx))``,
    nats) with one number an angle; and, for every range (by its degrees) that holds one of the angles, the means
    ``aAcc`` and ``kl`` over its angles, and ``cAcc = sqrt(Acc aAcc)``. With ``disc``, ``x`` stands for the masked
    image in all of them.
    """
    circle = ed.groups.SO2()
    turns = [circle.element(torch.pi * degrees / 180) for degrees in angles]
    hits, divergences, still = torch.zeros(len(turns)), torch.zeros(len(turns), dtype=torch.float64), 0
    model.eval()
    for images, labels in read.batches(x, y):
        disc = inscribed_disc(*images.shape[-2:]).to(images) if protocol == "disc" else 1.0
        seen = images * disc
        output = logits_of(model, seen)
        still += int(correct(output, labels).sum())
        for place, g in enumerate(turns):
            moved = logits_of(model, transform_images(seen, g) * disc)
            hits[place] += correct(moved, labels).sum().cpu()
            divergences[place] += invariance_kl(output, moved).sum().cpu()
    found: dict[str, Any] = {"Acc": still / len(x)}
    found |= {"accuracy": (hits.double() / len(x)).tolist(), "iErr": (divergences / len(x)).tolist()}
    for reach in RANGES:
        within = [place for place, degrees in enumerate(angles) if abs(degrees) <= reach]
        if within:
            a_acc, kl = (sum(found[name][i] for i in within) / len(within) for name in ("accuracy", "iErr"))
            found[str(reach)] = {"aAcc": a_acc, "cAcc": combined_accuracy(found["Acc"], a_acc), "kl": kl}
    return found
