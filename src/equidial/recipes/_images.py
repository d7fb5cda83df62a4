"""Image files for training at full size: augmented by workers that read ahead, every image from a seed of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from equidial.errors import ArgumentError, explain
from equidial.recipes._reading import batches_of_all

Moves = Literal["timm", "crop-flip"]
Transform = Callable[[Any], torch.Tensor]


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """The generators of Python, numpy and torch start from these numbers, and go on as before afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)  # noqa: NPY002
    torch.default_generator.manual_seed(drawn)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class ImageFiles(Dataset[tuple[torch.Tensor, int]]):
    """Files with their labels, each transformed under the seed ``(seed, epoch, place)``: the same with any workers.

    ``items``: those of a split of class folders or of the hub: what has ``open("rb")``, and a label. ``finish``: what
    becomes of batches in training, under a seed of their own.
    """

    def __init__(
        self,
        items: Sequence[tuple[Any, int]],
        transform: Transform,
        seed: int,
        finish: Callable[..., Any] | None = None,
    ):
        self.items, self.transform, self.seed, self.epoch = items, transform, seed, 0
        self.finish = finish

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        file, label = self.items[index]
        with file.open("rb") as stream, Image.open(stream) as image, seeded(self.seed, self.epoch, index):
            return self.transform(image.convert("RGB")), label

    def feed(self, workers: int) -> Callable[[Sequence[torch.Tensor], int], Iterable[Any]]:
        """Batches ``(x, y)`` for :func:`equidial.recipes.fit`."""

        def batches(rows: Sequence[torch.Tensor], epoch: int) -> Iterator[Any]:
            self.epoch = epoch
            order = [part.tolist() for part in rows]
            own = torch.Generator().manual_seed(self.seed)  # a loader draws its seed from the global one otherwise
            for place, (x, y) in enumerate(batches_of_all(self, order, workers, own)):
                with seeded(self.seed, epoch, len(self), place):
                    batch = (x, y) if self.finish is None else self.finish(x, y)
                yield batch

        return batches


def timm_moves(
    size: int, mean: Sequence[float], std: Sequence[float], classes: int, smoothing: float
) -> tuple[Transform, Callable[..., Any]]:
    """The paper's augmentation: random crops, RandAugment, erasing, then mixup or cutmix of a batch, labels smoothed.

    Raises ``ArgumentError`` where timm is not installed.
    """
    try:
        from timm.data import Mixup, create_transform  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ArgumentError(
            explain("timm for augmentation='timm'", "not installed", "pip install 'equidial[timm]', or use crop-flip")
        ) from error
    transform = create_transform(
        size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bicubic",
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=smoothing, num_classes=classes)

    def finish(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        odd = len(x) % 2  # mixup takes pairs
        mixed, target = mixup(torch.cat([x, x[:odd]]), torch.cat([y, y[:odd]]))
        return mixed[: len(x)], target[: len(x)]

    return transform, finish


class CropFlip:
    """A crop of 35 to 100 % of the area and an aspect ratio of 3/4 to 4/3, made a square, mirrored half of the time."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]):
        self.size = size
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))

    def __call__(self, image: Any) -> torch.Tensor:
        """``[3, size, size]``, normalised; draws from Python's generator."""
        area, ratio = random.uniform(0.35, 1.0) * image.width * image.height, random.uniform(3 / 4, 4 / 3)
        w, h = min(image.width, (area * ratio) ** 0.5), min(image.height, (area / ratio) ** 0.5)
        left, top = random.uniform(0, image.width - w), random.uniform(0, image.height - h)
        pixels = image.resize((self.size, self.size), resample=3, box=(left, top, left + w, top + h))
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
        x = x.flip(-1) if random.random() < 0.5 else x
        return (x - self.mean) / self.std
