"""What studies of segmentation share: a plan of data and sizes, and a network softened, fine-tuned and tested."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.adapters import SegmentationScores
from equidial.data import SegmentationPart, Segmentations, held_out_rows, load_segmentation
from equidial.data._segmentation import IGNORED
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.groups import GroupElement, by_name
from equidial.metrics import DEFAULT_RADIUS, measured_elements
from equidial.recipes._dense_moves import Moves, moved, turned_together
from equidial.recipes._reading import read_by_all
from equidial.recipes._schedule import clip_gradients
from equidial.recipes._segmenters import Segmenter, check_segmenter, load_segmenter
from equidial.recipes._study import Training, check_named, fit
from equidial.recipes._together import shared
from equidial.recipes._training import restore_statistics

STATISTICS = 8  # batches from which batch norm is restored and re-estimated
_HELD_OUT = 0.1  # of the training images, where a data set has no third part
_WORKERS = 8
_BATCH = 8  # images at once when testing: logits of full size are large

_KINDS = {"vit": (5e-5, 0.07, 512), "dinov2": (1e-5, 0.01, 518), "segformer": (1e-4, 0.01, 512)}
"""Of transformers: learning rate of what is pretrained, weight decay, and image size at the scale of the paper."""
_HEAD_RATE = 1e-3


@dataclass(frozen=True)
class Sizes:
    """What a scale means."""

    group: str
    image: int
    training: Training
    moves: Moves
    head_rate: float
    decay: float
    warmup_steps: int
    clip: float
    in_memory: bool


SCALES = {
    "small": Sizes("C4", 193, Training(6, 8, 1e-3), Moves(), 1e-2, 0.0, 20, 5.0, True),
    "paper": Sizes(
        "SO2", 512, Training(100, 32, 1e-4), Moves(True, (0.5, 2.0), 10.0, 0.25), _HEAD_RATE, 0.01, 250, 1.0, False
    ),
}
_EPOCHS = {"ade20k": 50}
_WARMUP = {"ade20k": 500}


class Setup(Protocol):
    """The fields that the dataclasses of these studies have in common."""

    @property
    def data(self) -> Path: ...
    @property
    def weights(self) -> Path | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def scale(self) -> str: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def images(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def check_setup(recipe: Setup) -> None:
    """Raises ``ArgumentError`` for values without a meaning, a network or a device that is not there."""
    check_named("seeds", recipe.seeds)
    for name in ("image_size", "epochs", "images"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise ArgumentError(explain(f"{name} >= 1", repr(value), "leave it out for the default"))
    if recipe.scale == "paper" and recipe.model is None:
        raise ArgumentError(explain("a model at the scale of the paper", "none", "e.g. --model hf:nvidia/mit-b0"))
    check_segmenter(recipe.model, recipe.weights)
    if recipe.device not in ("cpu", "cuda") or (recipe.device == "cuda" and not torch.cuda.is_available()):
        raise ArgumentError(explain("cpu, or cuda where there is one", repr(recipe.device), "use --device cpu"))


@dataclass(frozen=True)
class Plan:
    """What is the same in every training."""

    recipe: Setup
    train: Segmentations
    val: Segmentations
    test: Segmentations
    size: int
    sizes: Sizes
    cache: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def radius(self) -> float | None:
        """Of the elements that are certified and tried; ``None``: the whole group."""
        return DEFAULT_RADIUS if self.sizes.group == "SO2" else None

    @property
    def elements(self) -> list[GroupElement]:
        """Those that :func:`equidial.measure` would try."""
        return measured_elements(by_name(self.sizes.group), self.radius)

    def config(self, response: str, softness: float) -> ed.SoftEquivarianceConfig:
        """One softness for all tensors."""
        return ed.SoftEquivarianceConfig(
            self.sizes.group, softness=softness, response=response, radius=self.radius, image_size=self.size
        )

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` tells: the fields but paths and the device, and what became of them."""
        fields: Any = self.recipe
        found = {k: v for k, v in asdict(fields).items() if k not in ("output", "data", "weights", "device")}
        found |= {"dataset": self.train.name, "group": self.sizes.group, "image_size": self.size}
        return found | {"test_masks": self.test.checksum()}

    def network(self) -> Segmenter:
        """The pretrained network on its device, its new head from the global generator."""
        found = load_segmenter(self.recipe.model, self.recipe.weights, len(self.train.classes))
        found.model.to(self.recipe.device)
        return found

    def restore(self, network: Segmenter) -> None:
        """Statistics folded into weights come back, so that a softened network can be given its own."""
        restore_statistics(network.model, self.sample(STATISTICS, network))

    def batch(self, found: Segmentations, rows: list[int], network: Segmenter) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images ``[n, 3, h, w]`` and masks ``[n, h, w]`` on the device."""

        def read(row: int) -> tuple[torch.Tensor, torch.Tensor]:
            name = str(found.files[row][0])
            pair = self.cache.get(name)
            if pair is None:
                pair = found[row]
                if self.sizes.in_memory:
                    self.cache[name] = pair
            return pair

        def read_all(mine: Sequence[int]) -> list[torch.Tensor]:
            with ThreadPoolExecutor(_WORKERS) as pool:
                return [torch.stack(part) for part in zip(*pool.map(read, mine), strict=True)]

        images, masks = read_by_all(rows, read_all)
        mean, std = (torch.tensor(v, device=self.recipe.device)[:, None, None] for v in (network.mean, network.std))
        x = images.to(self.recipe.device).float() / 255
        return (x - mean) / std, masks.to(self.recipe.device).long()

    def batches(self, found: Segmentations, network: Segmenter) -> Iterator[Any]:
        """All images in order."""
        for rows in torch.arange(len(found)).split(_BATCH):
            yield self.batch(found, rows.tolist(), network)

    def sample(self, count: int, network: Segmenter) -> Iterator[Any]:
        """So many batches of training images, or as many as there are, the same at every call."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        for rows in order.split(self.sizes.training.batch_size)[:count]:
            yield self.batch(self.train, rows.tolist(), network)


def planned(recipe: Setup, group: str | None = None) -> Plan:
    """The parts of the data and the sizes; ``group`` in place of that of the scale."""
    sizes = SCALES[recipe.scale]
    sizes = replace(sizes, group=group or sizes.group)
    network = load_segmenter(recipe.model, recipe.weights, 2)
    if network.kind in _KINDS:
        rate, decay, image = _KINDS[network.kind]
        image = image if recipe.scale == "paper" else sizes.image
        training = replace(sizes.training, learning_rate=rate)
        sizes = replace(sizes, training=training, head_rate=_HEAD_RATE, decay=decay, image=image)
    size = recipe.image_size or sizes.image

    def part(name: SegmentationPart) -> Segmentations:
        return load_segmentation(recipe.data, name, size)

    train = part("train")
    if train.name == "camvid":
        val, test = part("val"), part("test")
    else:  # the official validation part is what papers test on
        rows = held_out_rows(len(train), max(1, round(len(train) * _HELD_OUT)))
        train, val, test = *(train.subset(part.sort().values.tolist()) for part in rows), part("val")
    if test.complete and test.known_checksum not in (None, test.checksum()):
        what = f"the official masks of {test.name} {test.part}"
        warnings.warn(explain(what, "others", "unpack them again for its results"), EquidialWarning, stacklevel=3)
    train, val, test = (_spread(found, recipe.images) for found in (train, val, test))
    steps = -(-len(train) // sizes.training.batch_size)
    epochs = recipe.epochs or (_EPOCHS.get(train.name) if recipe.scale == "paper" else None) or sizes.training.epochs
    warmup = (_WARMUP.get(train.name) if recipe.scale == "paper" else None) or sizes.warmup_steps
    training = replace(sizes.training, epochs=epochs, warmup=min(warmup / steps, epochs / 4))
    return Plan(recipe, train, val, test, size, replace(sizes, training=training), {})


def _spread(found: Segmentations, most: int | None) -> Segmentations:
    if most is None or len(found) <= most:
        return found
    return found.subset(torch.linspace(0, len(found) - 1, most).round().long().tolist())


def softened(plan: Plan, model: nn.Module, response: str, softness: float) -> nn.Module:
    """``ed.soften`` without the warning of strides, which do not fit every size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        return ed.soften(model, plan.config(response, softness))


def fine_tuned(
    plan: Plan, network: Segmenter, seed: int, checkpoint: Path, turned: bool = False
) -> list[dict[str, Any]]:
    """Cross-entropy over labelled pixels; AdamW, the new head with a rate of its own. ``turned``: training images."""
    sizes, elements = plan.sizes, measured_elements(by_name(plan.sizes.group))
    groups = [
        {"params": network.parameters(head=False), "lr": sizes.training.learning_rate},
        {"params": network.parameters(head=True), "lr": sizes.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=sizes.decay)
    clip_gradients(optimizer, sizes.clip)

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, y = moved(*plan.batch(plan.train, rows.tolist(), network), sizes.moves, generator)
        if turned:
            x, y = turned_together(x, y, elements, generator)
        output = network.model(x)
        logits = getattr(output, "logits", output)
        if logits.shape[-2:] != y.shape[-2:]:
            logits = functional.interpolate(logits, size=y.shape[-2:], mode="bilinear", align_corners=False)
        return functional.cross_entropy(logits, y, ignore_index=IGNORED)

    return fit(network.model, len(plan.train), loss, sizes.training, seed, checkpoint, optimizer=optimizer)


def tested(plan: Plan, network: Segmenter, part: Segmentations, elements: Sequence[GroupElement]) -> SegmentationScores:
    """``ed.measure`` on the images of a part."""
    with shared(network.model):
        return ed.measure(
            network.model,
            plan.batches(part, network),
            plan.sizes.group,
            task="segmentation",
            elements=elements,
            epsilon_images=0,
            ignore_index=IGNORED,
        )
