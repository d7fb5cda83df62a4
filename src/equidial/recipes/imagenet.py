"""ImageNet (paper A, table of section 5): a pretrained classifier, softened and fine-tuned by the paper's schedule.

The paper evaluates its baselines as released and fine-tunes its own for 15 epochs, so that its gain may be that of the
epochs. Here ``released`` is evaluated only, ``untouched`` takes exactly the steps, images and averages that ``soft``
takes. The schedule: AdamW with layer decay, cosine to 0 after a linear rise, gradients clipped, bf16, exponential
averages of the weights, and timm's augmentation (RandAugment, erasing, mixup, cutmix, smoothed labels). Drop path is
what the network's own configuration says. Positions of the dial are compared on validation images, which are held out
of the training images and not augmented; the test images are those of ``val/``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Subset

import equidial as ed
from equidial.data import Images, held_out_rows, load_images
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.filters import Response
from equidial.recipes._images import CropFlip, ImageFiles, Moves, timm_moves
from equidial.recipes._models import check_fits, load_model
from equidial.recipes._moves import scores
from equidial.recipes._ranks import sharded
from equidial.recipes._reading import batches_of_all
from equidial.recipes._schedule import average_weights, clip_gradients, layered_adamw, use_averages
from equidial.recipes._study import Key, Progress, Study, Training, check_named, fit, spent
from equidial.recipes._training import restore_statistics

Method = Literal["released", "untouched", "soft"]
Norm = Literal["as-is", "restored"]
NAME = "imagenet"
_TABLES = r"position_embeddings|pos_embed"
_RECALIBRATION = 16  # batches


@dataclass(frozen=True)
class _Sizes:
    training: Training
    part: int  # images of one backward pass; the gradient of a step is their sum
    validation: int
    augmentation: Moves
    average: float
    bf16: bool
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    clip: float = 1.0
    smoothing: float = 0.1


SCALES = {
    "small": _Sizes(Training(2, 32, 1e-4, warmup=0.5), 32, 200, "crop-flip", average=0.99, bf16=False),
    "paper": _Sizes(Training(19, 512, 1e-4, warmup=4), 128, 10_000, "timm", average=0.9999, bf16=True),
}


@dataclass(frozen=True)
class ImageNet:
    """ImageNet by the paper's schedule: as released, fine-tuned untouched, and fine-tuned softened, alike."""

    data: str
    """FOLDER (train/<class>/*, val/<class>/*) | hf:ILSVRC/imagenet-1k (after its terms are accepted) |
    hf:NAME_OR_FOLDER; classes in the order of the network's outputs."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    model: str = "hf:google/vit-base-patch16-224"
    """hf:NAME_OR_FOLDER | timm:NAME | FILE.py:function (runs the code of that file). The paper has this one,
    hf:facebook/dinov2-base-imagenet1k-1-layer and hf:microsoft/resnet-50."""
    weights: Path | None = None
    """FILE.safetensors with exactly the model's tensors, in place of its own."""
    norm: Norm = "as-is"
    """Batch norm before the dial is turned. restored: statistics of its own inputs, weight and bias changed so that the
    network stays what it is; for checkpoints with batch norm folded in (mean 0, variance 1)."""
    scale: Literal["small", "paper"] = "paper"
    """paper: 4 epochs of rise and 15 more, 512 images a step. small: 2 epochs, 32 images a step, crops and mirrors."""
    group: str = "C4"
    """Paper: C4 for the ViT, C18 for the others."""
    softness: tuple[float, ...] = (0.9,)
    """Positions of the dial (paper: ViT 0.9, DINOv2 0.8, ResNet-50 0.95)."""
    table_softness: float | None = 0.8
    """Of position tables (paper: ViT 0.8, DINOv2 0.5); None: as everything else, as networks without tables need it."""
    response: Response = "nearest"
    """How components beyond the dial are treated."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of released, untouched, soft."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per seed and position."""
    image_size: int = 224
    """Side in pixels."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of the inputs (DINOv2, ResNet-50: 0.485 0.456 0.406)."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of the inputs (DINOv2, ResNet-50: 0.229 0.224 0.225)."""
    learning_rate: float | None = None
    """At the top; default: of the scale."""
    epochs: int | None = None
    """Default: of the scale."""
    augmentation: Moves | None = None
    """timm or crop-flip; default: of the scale."""
    workers: int = 0
    """Processes that read images ahead."""
    device: str = "cpu"
    """Where networks are trained, e.g. cuda."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning, and for timm's augmentation without timm."""
        check_named("seeds", self.seeds)
        check_named("methods", self.methods, get_args(Method))
        check_named("positions of the dial", self.softness)
        for softness in self.softness:
            self.config(softness)
        if not (self.model.startswith(("hf:", "timm:")) or ".py:" in self.model):
            known = "a model as hf:NAME_OR_FOLDER, timm:NAME or FILE.py:function"
            raise ArgumentError(explain(known, repr(self.model), "name one"))
        check_named("treatments of batch norm", [self.norm], get_args(Norm))
        plan = self.plan()
        if plan.epochs < 1 or not plan.learning_rate > 0 or self.image_size < 1 or self.workers < 0:
            got = f"{plan.epochs} epochs, rate {plan.learning_rate}, {self.image_size} px, {self.workers} workers"
            raise ArgumentError(explain("at least an epoch, a rate and a pixel, no negative workers", got, "mend it"))
        if sharded() and plan.batch_size > SCALES[self.scale].part:
            got = f"batches of {plan.batch_size} in parts of {SCALES[self.scale].part}"
            raise ArgumentError(explain("DDP, which adds up the gradients of parts of a batch", got, "leave FSDP2 out"))
        check_named("moves", [self.moves()], get_args(Moves))
        if not (self.data.startswith("hf:") or Path(self.data).is_dir()):
            raise ArgumentError(explain("a folder with train/ and val/, or hf:", repr(self.data), "check the path"))
        if self.moves() == "timm":
            timm_moves(self.image_size, self.mean, self.std, 2, 0.0)

    def plan(self) -> Training:
        """The schedule, with what was given in place of the scale's."""
        plan = SCALES[self.scale].training
        rate, epochs = self.learning_rate, self.epochs
        return replace(
            plan,
            learning_rate=plan.learning_rate if rate is None else rate,
            epochs=plan.epochs if epochs is None else epochs,
        )

    def moves(self) -> Moves:
        """The augmentation."""
        return self.augmentation or SCALES[self.scale].augmentation

    def config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """Of one position of the dial; tables have their own below 1."""
        tables = {} if self.table_softness is None or softness == 1 else {_TABLES: self.table_softness}
        return ed.SoftEquivarianceConfig(
            group=self.group,
            softness=softness,
            response=self.response,
            softness_pattern=tables,
            image_size=self.image_size,
        )


@dataclass(frozen=True)
class _Data:
    images: Images
    items: list[tuple[Any, int]]
    validation: list[int]


def load(recipe: ImageNet) -> _Data:
    """The files of training, and the places of the validation images among them before they are taken out."""
    images = load_images(recipe.data, size=recipe.image_size, mean=recipe.mean, std=recipe.std)
    items: list[tuple[Any, int]] = images.train.dataset.items  # pyright: ignore[reportAttributeAccessIssue]
    kept, held = held_out_rows(len(items), min(SCALES[recipe.scale].validation, max(1, len(items) // 5)))
    return _Data(images, [items[i] for i in kept.tolist()], held.tolist())


def run(recipe: ImageNet, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`ImageNet.check`."""
    recipe.check()
    data = load(recipe)
    model = load_model(recipe.model, recipe.weights, classes=len(data.images.classes))
    check_fits(model, data.images)
    ed.soften(model, recipe.config(recipe.softness[0]))  # what cannot work fails here; strides are told once
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data", "weights", "device", "workers")}
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe)), lambda key: _train(recipe, study, key, data), progress)


def _keys(recipe: ImageNet) -> Iterator[dict[str, Any]]:
    for method in recipe.methods:
        for softness in recipe.softness if method == "soft" else (1.0,):
            for seed in recipe.seeds if method != "released" else recipe.seeds[:1]:
                yield {"method": method, "softness": softness, "seed": seed}


def _train(recipe: ImageNet, study: Study, key: Key, data: _Data) -> dict[str, Any]:
    start = time.perf_counter()
    torch.manual_seed(key["seed"])  # of a new head
    model = load_model(recipe.model, recipe.weights, classes=len(data.images.classes)).to(recipe.device)
    files = _files(recipe, data, key["seed"])
    if recipe.norm == "restored":
        restore_statistics(model, _first(recipe, files))
    history: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # of strides: told at the start
        ed.soften(model, recipe.config(key["softness"]))
        if key["method"] != "released":
            history = _fine_tune(recipe, model, files, key["seed"], study.checkpoint(key))
        bound = float(ed.certify(model).bound)
        ed.fold(model)
        held = Subset(data.images.train.dataset, data.validation)  # pyright: ignore[reportArgumentType]
        validation = scores(model, _batches(recipe, held), recipe.group)
        test = scores(model, _batches(recipe, data.images.test.dataset), recipe.group)
    return {
        **test,
        "bound": bound,
        "validation": validation["cAcc"],
        "images": len(data.items),
        "test_images": len(data.images.test),
        **spent(history, start),
    }


def _files(recipe: ImageNet, data: _Data, seed: int) -> ImageFiles:
    """The training images under the scale's augmentation."""
    if recipe.moves() != "timm":
        return ImageFiles(data.items, CropFlip(recipe.image_size, recipe.mean, recipe.std), seed)
    classes, smoothing = len(data.images.classes), SCALES[recipe.scale].smoothing
    transform, finish = timm_moves(recipe.image_size, recipe.mean, recipe.std, classes, smoothing)
    return ImageFiles(data.items, transform, seed, finish)


def _first(recipe: ImageNet, files: ImageFiles) -> Iterator[Any]:
    """Batches of statistics."""
    files.epoch = 0
    return islice(_batches(recipe, files), _RECALIBRATION)


def _fine_tune(
    recipe: ImageNet, model: nn.Module, files: ImageFiles, seed: int, checkpoint: Path
) -> list[dict[str, Any]]:
    """The paper's schedule; the model ends with the averaged weights and batch-norm statistics that fit them."""
    sizes, plan = SCALES[recipe.scale], recipe.plan()
    optimizer = layered_adamw(model, plan.learning_rate, sizes.weight_decay, sizes.layer_decay)
    clip_gradients(optimizer, sizes.clip)
    average_weights(optimizer, sizes.average)
    kind = torch.device(recipe.device).type

    def loss_of(batch: Any, _: torch.Generator) -> torch.Tensor:
        parts = list(zip(*(part.to(recipe.device).split(sizes.part) for part in batch), strict=True))
        done = torch.zeros((), device=recipe.device)
        for place, (x, y) in enumerate(parts):
            with torch.autocast(kind, torch.bfloat16, enabled=sizes.bf16):
                output = model(x)
            loss = functional.cross_entropy(getattr(output, "logits", output).float(), y) * (len(x) / len(batch[0]))
            if place + 1 == len(parts):
                return done + loss
            loss.backward()
            done += loss.detach()
        raise AssertionError("a batch has images")

    ed.recalibrate(model, _first(recipe, files))
    feed = files.feed(recipe.workers)
    history = fit(model, len(files), loss_of, plan, seed, checkpoint, optimizer=optimizer, feed=feed)
    use_averages(optimizer)
    ed.recalibrate(model, _first(recipe, files))
    return history


def _batches(recipe: ImageNet, dataset: Any) -> Iterator[Any]:
    rows = torch.arange(len(dataset)).split(SCALES[recipe.scale].part)
    return batches_of_all(dataset, [part.tolist() for part in rows], recipe.workers)
