"""CIFAR (paper A, section 5): pretrained classifiers adapted at positions of the dial, against what rivals it.

Methods, all from the same weights, with as many optimizer steps on the same images, mirrored and shifted at random, and
with batch norm in training mode: ``untouched`` fine-tuning; ``augmentation``, the same on randomly turned images;
``penalty``, the untouched network with ``lambda KL(softmax f(x) || softmax f(gx))`` added to its loss (two forward
passes a step); ``soft``, the dial below 1; ``both``, the dial below 1 on randomly turned images. Each method has one
setting with a grid of three: the learning rate, ``lambda``, or the softness; it is chosen by cAcc on validation images,
which nothing moves, with the first seed. The curve takes one of the soft methods through every position of the dial
under every response.

Small networks were trained on the training images of CIFAR-10, which tell them nothing: their validation images are
taken from the test images, and do not come back in the test.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import equidial as ed
from equidial.data import Images, Split
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.filters import Response
from equidial.metrics import measured_elements
from equidial.recipes._arrays import Splits
from equidial.recipes._models import check_fits
from equidial.recipes._moves import crop_flip, scores, turned
from equidial.recipes._pretrained import Reader, adapted, check_networks, load_splits, logits_of, pretrained
from equidial.recipes._study import Key, Progress, Study, Training, check_named, part_of, spent
from equidial.recipes._training import divergence

Method = Literal["untouched", "augmentation", "penalty", "soft", "both"]
NAME = "cifar"
RESPONSES: tuple[Response, ...] = ("nearest", "hard", "taper", "exponential")


@dataclass(frozen=True)
class _Sizes:
    networks: tuple[str, ...]
    groups: tuple[str, ...]
    images: int | None
    validation: int
    test: int | None
    training: Training
    rates: tuple[float, ...]  # the middle one is that of soft and penalised networks
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0)


SCALES = {
    "small": _Sizes(
        networks=("resnet20", "cct"),
        groups=("C4",),
        images=4000,
        validation=1000,
        test=2000,
        training=Training(3, 64),
        rates=(3e-4, 1e-3, 3e-3),
    ),
    "paper": _Sizes(
        networks=("hf:facebook/deit-small-patch16-224", "hf:facebook/dinov2-base", "hf:microsoft/resnet-50"),
        groups=("C4", "C8", "SO2"),
        images=None,
        validation=10_000,
        test=None,
        training=Training(30, 128),
        rates=(3e-5, 1e-4, 3e-4),
    ),
}


@dataclass(frozen=True)
class Cifar:
    """CIFAR: untouched fine-tuning, augmentation, a penalty, the dial, and the dial with augmentation, tuned alike."""

    data: str
    """FILE.npz (x_train [n, 32, 32, 3] uint8, ...) | FOLDER (train/<class>/, test/<class>/; cifar-10-batches-py;
    cifar-100-python) | hf:NAME_OR_FOLDER (uoft-cs/cifar10)."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    weights: Path | None = None
    """Folder of cifar10_resnet20.safetensors, cifar10_resnet56.safetensors and cifar10_cct_2_3x2.safetensors."""
    scale: Literal["small", "paper"] = "small"
    """small: 4,000 images, 3 epochs. paper: all images, 30 epochs. hf: and timm: networks read 224 pixels."""
    networks: tuple[str, ...] = ()
    """Out of resnet20, resnet56, cct, hf:NAME_OR_FOLDER, timm:NAME; default: of the scale."""
    groups: tuple[str, ...] = ()
    """C4, C8, SO2, ...; default: of the scale (small: C4)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Settings are chosen with the first one."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of untouched, augmentation, penalty, soft, both."""
    softness: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
    """Positions of the curve; those above 0 are the grid from which soft and both are tuned."""
    responses: tuple[Response, ...] = RESPONSES
    """Of the curve; the main comparison has the first one."""
    curve: Literal["soft", "both"] = "both"
    """Whose curve is taken under all responses."""
    epochs: int | None = None
    """Default: of the scale."""
    device: str = "cpu"
    """Where networks are trained, e.g. cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning and for weights that are not there."""
        check_named("seeds", self.seeds)
        check_named("methods", self.methods, get_args(Method))
        check_named("responses", self.responses, get_args(Response))
        check_named("positions of the dial above 0", [s for s in self.softness if s > 0])
        for softness in self.softness:
            for group in self.used("groups"):
                ed.SoftEquivarianceConfig(group=group, softness=softness)
        if max(self.softness) >= 1 or (self.epochs is not None and self.epochs < 1):
            got = f"softness={self.softness}, epochs={self.epochs}"
            raise ArgumentError(explain("softness below 1 (1 is untouched) and at least one epoch", got, "mend it"))
        check_networks(self.used("networks"), self.weights)

    def used(self, name: Literal["networks", "groups"]) -> tuple[str, ...]:
        """Networks or groups, those of the scale where none are named."""
        return getattr(self, name) or getattr(SCALES[self.scale], name)


def network(recipe: Cifar, name: str, classes: int) -> nn.Module:
    """The pretrained network, on the device; with a head drawn anew where its own has other classes."""
    return pretrained(name, recipe.weights, classes, recipe.device)


def load(recipe: Cifar) -> Splits:
    """Images in [0, 1], in a fixed random order; every seed and method has the same."""
    sizes = SCALES[recipe.scale]
    return load_splits(recipe.data, recipe.used("networks"), sizes.images, sizes.validation, sizes.test)


def run(recipe: Cifar, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`Cifar.check`."""
    recipe.check()
    data = load(recipe)
    positions = {name: _positions(recipe, name, data) for name in recipe.used("networks")}
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data", "weights", "device")}
    settings |= {name: recipe.used(name) for name in ("networks", "groups")}
    study = Study(recipe.output, NAME, settings)
    tuning, curve = list(_tuning_keys(recipe)), list(_curve_keys(recipe, positions))
    total = len(tuning) + len(list(_cases(recipe))) * (len(recipe.seeds) - 1) + len(curve)

    def train(key: Key) -> dict[str, Any]:
        return _train(recipe, study, key, data)

    tuned = study.collect(tuning, train, part_of(progress, 0, total))
    best = chosen(tuned, recipe.seeds[0], recipe.responses[0])
    main = [_key(*case, recipe.responses[0], best[case], seed) for case in _cases(recipe) for seed in recipe.seeds[1:]]
    done = {json.dumps(key) for key in tuning}
    rest = {text: key for key in main + curve if (text := json.dumps(key)) not in done}
    return tuned + study.collect(list(rest.values()), train, part_of(progress, len(tuning), total))


def chosen(records: Sequence[Mapping[str, Any]], seed: int, response: str) -> dict[tuple[str, str, str], float]:
    """The setting of each network, group and method with the highest cAcc on validation images."""
    best: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for record in records:
        case = (record["network"], record["group"], record["method"])
        grid = record["setting"] > 0 and record["response"] in (None, response) and record["seed"] == seed
        if grid and (case not in best or record["validation"] > best[case]["validation"]):
            best[case] = record
    return {case: record["setting"] for case, record in best.items()}


def settings_of(recipe: Cifar, method: Method) -> tuple[float, ...]:
    """What is tuned: the learning rate, ``lambda`` or the softness."""
    sizes = SCALES[recipe.scale]
    if method == "penalty":
        return sizes.penalties
    return tuple(s for s in recipe.softness if s > 0) if method in ("soft", "both") else sizes.rates


def _key(network: str, group: str, method: str, response: str, setting: float, seed: int) -> dict[str, Any]:
    soft = method in ("soft", "both")
    return {
        "network": network,
        "group": group,
        "method": method,
        "response": response if soft else None,
        "setting": setting,
        "seed": seed,
    }


def _cases(recipe: Cifar) -> Iterator[tuple[str, str, Method]]:
    for name in recipe.used("networks"):
        for group in recipe.used("groups"):
            for method in recipe.methods:
                yield name, group, method


def _tuning_keys(recipe: Cifar) -> Iterator[dict[str, Any]]:
    for case in _cases(recipe):
        for setting in settings_of(recipe, case[2]):
            yield _key(*case, recipe.responses[0], setting, recipe.seeds[0])


def _curve_keys(recipe: Cifar, positions: Mapping[str, Mapping[Any, Sequence[float]]]) -> Iterator[dict[str, Any]]:
    """Both soft methods under the first response, one of them under the others; its end at 1, trained alike."""
    for name, group, method in _cases(recipe):
        for seed in recipe.seeds:
            if method in ("soft", "both"):
                for response in recipe.responses if method == recipe.curve else recipe.responses[:1]:
                    for softness in positions[name][group, response]:
                        yield _key(name, group, method, response, softness, seed)
            elif method == _END[recipe.curve]:
                yield _key(name, group, method, "", SCALES[recipe.scale].rates[1], seed)


_END = {"soft": "untouched", "both": "augmentation"}


def _positions(recipe: Cifar, name: str, data: Splits) -> dict[tuple[str, str], list[float]]:
    """Positions of the dial, by group and response, at which the network differs: ``hard`` moves in few stairs.

    At 0 all responses are one, which is the first's. Raises ``ArgumentError`` for a network that does not read the
    images; tells (``EquidialWarning``) of strides that break a symmetry.
    """
    model, read = network(recipe, name, len(data.classes)), Reader.of(name, recipe.device)
    prepared = Split(TensorDataset(read(data.x_test[:1]), data.y_test[:1]))
    check_fits(model, Images(prepared, prepared, data.classes, name))
    found: dict[tuple[str, str], list[float]] = {}
    for group in recipe.used("groups"):
        at = partial(ed.SoftEquivarianceConfig, group=group)
        ed.unload(ed.soften(model, at(softness=1.0, image_size=read.pixels)))
        for place, response in enumerate(recipe.responses):
            seen = [_weights(model, at(softness=1.0))]
            kept = found[group, response] = []
            for softness in recipe.softness if place == 0 else [s for s in recipe.softness if s > 0]:
                weights = _weights(model, at(softness=softness, response=response))
                if not any(all(map(torch.allclose, weights, other)) for other in seen):
                    seen.append(weights)
                    kept.append(softness)
    return found


def _weights(model: nn.Module, config: ed.SoftEquivarianceConfig) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        ed.soften(model, config)
    paths = [row.name.rpartition(".") for row in ed.status(model)]
    found = [getattr(model.get_submodule(module), name).detach().clone() for module, _, name in paths]
    ed.unload(model)
    return found


def _train(recipe: Cifar, study: Study, key: Key, data: Splits) -> dict[str, Any]:
    start, sizes, method = time.perf_counter(), SCALES[recipe.scale], key["method"]
    torch.manual_seed(key["seed"])  # of a new head
    model, read = network(recipe, key["network"], len(data.classes)), Reader.of(key["network"], recipe.device)
    rate = sizes.rates[1] if method in ("penalty", "soft", "both") else key["setting"]
    plan = replace(sizes.training, learning_rate=rate, epochs=recipe.epochs or sizes.training.epochs)
    elements = measured_elements(ed.groups.by_name(key["group"]))

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, y = crop_flip(read(data.x[rows]), generator), data.y[rows].to(recipe.device)
        if method in ("augmentation", "both"):
            x = turned(x, elements, generator)
        output = logits_of(model, x)
        loss = functional.cross_entropy(output, y)
        if method == "penalty":
            loss = loss + key["setting"] * divergence(logits_of(model, turned(x, elements, generator, False)), output)
        return loss

    history, certificate = adapted(model, _config(key), data, read, loss_of, plan, study, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # of strides: told at the start
        validation = scores(model, read.batches(data.x_val, data.y_val), key["group"])
        test = scores(model, read.batches(data.x_test, data.y_test), key["group"])
    return {
        **test,
        "bound": float(certificate.bound),
        "validation": validation["cAcc"],
        "learning_rate": rate,
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }


def _config(key: Key) -> ed.SoftEquivarianceConfig:
    if key["response"] is None:
        return ed.SoftEquivarianceConfig(group=key["group"], softness=1.0)
    return ed.SoftEquivarianceConfig(group=key["group"], softness=key["setting"], response=key["response"])
