"""Adapt a classifier: soften, recalibrate, fine-tune, measure, certify, fold, at every dial position and seed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.adapters import Scores
from equidial.data import Augmentation, Images, load_images, loader
from equidial.errors import ArgumentError, explain
from equidial.filters import Dial, Response
from equidial.recipes._models import check_fits, hub_name, load_model
from equidial.recipes._ranks import check_rows, device_of_ranks, on_main, world
from equidial.recipes._reading import images_of_all
from equidial.recipes._run_folder import Identity, RunFolder
from equidial.recipes._together import shared, together
from equidial.recipes._training import divergence, freeze_norms, restore_statistics, taught

logger = logging.getLogger("equidial")

Loss = Literal["labels", "distillation"]
Norm = Literal["train", "matched", "frozen"]
Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is going on)."""


@dataclass(frozen=True)
class Adapt:
    """Adapt a pretrained image classifier at several positions of the dial and compare them."""

    model: str
    """demo | hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file)."""
    data: str
    """demo | FILE.npz (x_train, y_train, x_test, y_test) | FOLDER (train/<class>/, test/<class>/; CIFAR, MNIST as
    torchvision has them) | hf:NAME_OR_FOLDER (hub, parquet, save_to_disk)."""
    output: Path
    """Folder of the run; the same command on it goes on where it was interrupted."""
    weights: Path | None = None
    """A .safetensors file with the model's tensors."""
    group: str = "C4"
    """C<n>, D<n>, SO2, O2, Flip, FlipUD, T2."""
    softness: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Dial positions: 0 exactly symmetric, 1 untouched (fine-tuned alike: the baseline)."""
    response: Response = "nearest"
    """How components beyond the dial are treated."""
    seeds: tuple[int, ...] = (0,)
    """One fine-tuning per seed and dial position."""
    epochs: int = 3
    """Passes over the training images; 0 only recalibrates batch normalisation."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9."""
    learning_rate: float = 1e-4
    """At the start; cosine decay to 0."""
    weight_decay: float = 1e-4
    """Of the optimizer."""
    loss: Loss = "labels"
    """distillation: KL divergence from the model as it came, which sees each image unmoved; labels are not read."""
    norm: Norm = "train"
    """Batch norm. train: re-estimated. matched: so that layers keep their moments, then fixed. frozen: as it is."""
    augment: Augmentation = "none"
    """Moves of training images: none, crop, crop-flip, turn (random elements of the group), group (crop and turn)."""
    recalibrate_batches: int = 8
    """Batches from which batch-norm statistics are re-estimated after the dial moved."""
    image_size: int | None = None
    """Resize images to this many pixels a side; exact symmetry needs sizes that fit the strides."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from images in [0, 1], one number or one per channel."""
    std: tuple[float, ...] = (0.5,)
    """Divisor after that."""
    epsilon_images: int = 32
    """Images on which epsilon is measured; 16 backward passes each, 0 leaves it out."""
    radius: float | None = None
    """Largest group element that is measured (radians or pixels); default: all, 30 degrees for SO2."""
    target_modules: tuple[str, ...] | None = None
    """Restrict to these modules (PEFT's rules)."""
    exclude_modules: tuple[str, ...] | None = None
    """Leave these modules out."""

    def check(self) -> None:
        """Raise ``ArgumentError`` for what cannot work or the folder of another run, before anything is loaded."""
        self.check_values()
        RunFolder(self.output, _plain(self)).check()

    def check_values(self) -> None:
        """Raise ``ArgumentError`` for values that cannot work, whatever the output folder holds."""
        ed.groups.by_name(self.group)
        for softness in self.softness:
            Dial.of(softness=softness)
        positive = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        for name, value in positive.items():
            if not value > 0:
                raise ArgumentError(explain(f"{name} > 0", repr(value), "choose a positive value"))
        choices = {"loss": (self.loss, get_args(Loss)), "norm": (self.norm, get_args(Norm))}
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ArgumentError(explain(f"{name} out of {allowed}", repr(value), "choose one of them"))
        if self.epsilon_images < 0:
            raise ArgumentError(explain("epsilon_images >= 0", repr(self.epsilon_images), "0 leaves epsilon out"))
        if self.epochs < 0 or not self.softness or not self.seeds:
            got = f"epochs={self.epochs}, softness={self.softness}, seeds={self.seeds}"
            raise ArgumentError(explain("epochs >= 0 and at least one softness and seed", got, "correct them"))
        check_rows(self.batch_size)

    def soft_config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """The configuration of one dial position."""
        return ed.SoftEquivarianceConfig(
            group=self.group,
            softness=softness,
            response=self.response,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
        )


@dataclass(frozen=True)
class Outcome:
    """One dial position and seed: scores before and after fine-tuning, and the certificate of the folded model."""

    softness: float
    seed: int
    softened: Scores
    tuned: Scores
    certificate: ed.Certificate
    seconds: float


def run(config: Adapt, progress: Progress | None = None) -> list[Outcome]:
    """Carry out the adaptation and write the run folder; returns one outcome per dial position and seed.

    Every position, the untouched one included, is recalibrated (unless ``norm`` is frozen) and fine-tuned alike, from
    the same weights and with the same batches per seed. The folder holds ``config.json``, ``metrics.jsonl`` and, per
    position and seed, a folder as :func:`equidial.save` writes it, with the scores in its card and the folded
    ``model.safetensors`` beside: :func:`equidial.load` reads it into the model as it came, :func:`equidial.push` puts
    it on the hub.

    The same configuration on the same folder goes on where it was interrupted, from the last epoch that ended, and ends
    with the numbers of an uninterrupted run; positions that are done are read. Under a launch (``accelerate launch``,
    ``torchrun``) all ranks work on each position together, on their devices, and rank 0 writes.
    """
    config.check()
    images = load_images(config.data, size=config.image_size, mean=config.mean, std=config.std)
    model = load_model(config.model, config.weights)
    if world() > 1:  # a function of a FILE.py may draw weights at random
        model.load_state_dict(on_main(model.state_dict))
    model.to(device_of_ranks(next(model.parameters()).device))
    images = images_of_all(images)
    check_fits(model, images)
    # whatever cannot work fails here, before the folder is made; strides that break the symmetry are told once
    ed.unload(ed.soften(model, replace(config.soft_config(config.softness[0]), image_size=images.shape[1:])))
    if config.loss == "distillation":
        with shared(model):
            images = images_of_all(replace(images, train=taught(model, images.train, config.batch_size)))
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restored: dict[str, torch.Tensor] = {}
    if config.norm == "matched":
        restore_statistics(model, _recalibration(config, images))
        state = model.state_dict()
        restored = {
            name: state[name].clone() for name, tensor in initial.items() if not torch.equal(state[name], tensor)
        }
    folder = RunFolder(config.output, _plain(config))
    steps = -(-len(images.train) // config.batch_size) * config.epochs + 1
    clock = _Clock(progress, len(config.softness) * len(config.seeds) * steps)
    outcomes = []
    with folder.opened():
        for softness in config.softness:
            for seed in config.seeds:
                identity = {"softness": softness, "seed": seed}
                ended = folder.finished(identity)
                if ended is not None:
                    outcomes.append(_read(folder, identity, *ended))
                    clock.step(f"{_words(identity)} is done", steps)
                    continue
                model.load_state_dict(initial)
                outcomes.append(_one(config, model, images, restored, identity, folder, clock))
    return outcomes


def _one(
    config: Adapt,
    model: nn.Module,
    images: Images,
    restored: dict[str, torch.Tensor],
    identity: Identity,
    folder: RunFolder,
    clock: _Clock,
) -> Outcome:
    start = time.perf_counter()
    torch.manual_seed(identity["seed"])
    ed.soften(model, config.soft_config(identity["softness"]))
    # after soften, so that the saved folder tells them from the base model's own
    model.load_state_dict(restored, strict=False)
    state = folder.saved(identity)
    if state is None:
        if config.norm != "frozen":
            with shared(model):
                ed.recalibrate(model, _recalibration(config, images))
        first = {**identity, "stage": "softened", **_measured(config, model, images).to_dict()}
        spent = 0.0
    else:
        first, spent = state["first"], state["seconds"]
    folder.write(first)
    for epoch, loss, reached in _fine_tune(config, model, images, identity, state, clock):
        folder.write({**identity, "stage": "epoch", "epoch": epoch, "loss": loss})
        if reached is not None:
            folder.save(identity, reached | {"first": first, "seconds": spent + time.perf_counter() - start})
    tuned = _measured(config, ed.fold(copy.deepcopy(model)), images)
    base_model = hub_name(config.model) if config.weights is None else None
    shape = images.shape[1:]
    on_main(lambda: ed.save(model, folder.position(identity), {images.name: tuned}, base_model, image_size=shape))
    certificate = _certificate(folder, identity)
    ed.fold(model)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    weights = folder.position(identity) / "model.safetensors"
    on_main(lambda: save_file(tensors, weights, metadata={"format": "pt"}))
    last = {"stage": "tuned", "bound": certificate.bound, "seconds": spent + time.perf_counter() - start}
    folder.finish(identity, {**identity, **last, **tuned.to_dict()})
    clock.step(f"{_words(identity)} measured")
    logger.info("%s: %s", _words(identity), tuned)
    return Outcome(identity["softness"], identity["seed"], _scores(first), tuned, certificate, last["seconds"])


def _read(folder: RunFolder, identity: Identity, first: Mapping[str, Any], last: Mapping[str, Any]) -> Outcome:
    """The outcome of a position that was done before."""
    certificate = _certificate(folder, identity)
    found = _scores(first), _scores(last), certificate, last["seconds"]
    return Outcome(identity["softness"], identity["seed"], *found)


def _certificate(folder: RunFolder, identity: Identity) -> ed.Certificate:
    return on_main(lambda: ed.Certificate.load(folder.position(identity) / "certificate.json"))


def _scores(record: Mapping[str, Any]) -> Scores:
    return Scores(**{field.name: record.get(field.name, float("nan")) for field in fields(Scores)})


def _words(identity: Identity) -> str:
    return "softness {softness:g} seed {seed}".format(**identity)


def _fine_tune(
    config: Adapt, model: nn.Module, images: Images, identity: Identity, state: dict[str, Any] | None, clock: _Clock
) -> Iterator[tuple[int, float, dict[str, Any] | None]]:
    """Train the constrained model; yields each epoch, its mean loss, and the state to go on from.

    From a ``state`` it yields the epochs before again, without their states.
    """
    if config.epochs == 0:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        if config.optimizer == "adamw"
        else torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
    )
    group = ed.groups.by_name(config.group)
    batches = loader(images.train, config.batch_size, seed=identity["seed"], augment=config.augment, group=group)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * len(batches))
    device = next(model.parameters()).device
    losses: list[float] = []
    assert batches.generator is not None
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        batches.generator.set_state(state["batches"])
        torch.set_rng_state(state["random"])
        losses += state["losses"]
        clock.step(f"{_words(identity)} goes on", len(losses) * len(batches))
        yield from ((epoch, loss, None) for epoch, loss in enumerate(losses, 1))
    loss_of = {"labels": functional.cross_entropy, "distillation": divergence}[config.loss]

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = model(x.to(device))
        return loss_of(getattr(output, "logits", output), y.to(device))

    with together(model, optimizer, step) as trainer:
        for epoch in range(len(losses) + 1, config.epochs + 1):
            model.train()
            if config.norm != "train":
                freeze_norms(model)
            total, count = 0.0, 0
            for x, y in batches:
                optimizer.zero_grad()
                loss = trainer(x, y)
                loss.backward()
                optimizer.step()
                schedule.step()
                total, count = total + loss.item() * len(x), count + len(x)
                clock.step(f"{_words(identity)} loss {total / count:.3f}")
            model.eval()
            losses.append(total / count)
            reached = trainer.state() | {"schedule": schedule.state_dict(), "losses": list(losses)}
            random = {"batches": batches.generator.get_state(), "random": torch.get_rng_state()}
            yield epoch, losses[-1], reached | random


def _measured(config: Adapt, model: nn.Module, images: Images) -> Scores:
    batches = loader(images.test, config.batch_size)
    with shared(model):
        return ed.measure(model, batches, config.group, radius=config.radius, epsilon_images=config.epsilon_images)


def _recalibration(config: Adapt, images: Images) -> list[Any]:
    # a fixed shuffle: files are often sorted by class, and statistics of one class fit no network
    batches = loader(images.train, config.batch_size, seed=0)
    return list(islice(iter(batches), config.recalibrate_batches))


class _Clock:
    """Counts steps for a progress callback."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def step(self, text: str, steps: int = 1) -> None:
        self.done += steps
        if self.progress is not None:
            self.progress(self.done, self.total, text)


def _plain(config: Any) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
