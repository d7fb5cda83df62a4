"""Sets of labelled images and loaders over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.metrics import measured_elements, transform_images

Augmentation = Literal["none", "crop-flip", "crop", "group", "turn"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)

_BY_GROUP = ("group", "turn")
_CROP_MARGIN = 8  # random crops move an image by at most one eighth of its side


class SizedDataset(Protocol):
    """A map-style torch dataset that knows its length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Split:
    """Labelled images: a dataset of pairs ``(x, y)`` with ``x`` float ``[channels, h, w]``, normalised.

    ``y``: a class, or an integer mask ``[h, w]``.
    """

    dataset: SizedDataset

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Images:
    """A training and a test split with the names of their classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, h, w)`` of the images."""
        c, h, w = self.test.dataset[0][0].shape
        return c, h, w


def held_out_rows(n: int, held: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that stay and ``held`` rows that are held out of ``n``, int64; drawn once and for all, whatever the seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[held:], order[:held]


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """What stays of a split, and a share of it held out for validation, at least one image; each in its order.

    The same images in every process and for every seed. Give the second to :func:`loader` without a seed, so that
    nothing moves its images. Raises ``ArgumentError`` for a share outside (0, 1) or a split of fewer than two images.
    """
    n = len(split)
    if not 0 < share < 1 or n < 2:
        raise ArgumentError(explain("a share in (0, 1) of at least two images", f"{share!r} of {n}", "e.g. 0.1"))
    parts = held_out_rows(n, min(n - 1, max(1, round(n * share))))
    dataset = cast(Dataset[Any], split.dataset)
    kept, held = (Split(cast(SizedDataset, Subset(dataset, rows.sort().values.tolist()))) for rows in parts)
    return kept, held


def loader(
    split: Split,
    batch_size: int,
    *,
    seed: int | None = None,
    augment: Augmentation = "none",
    group: Group | None = None,
) -> DataLoader[Any]:
    """Batches ``(x, y)``: in order without ``seed``, else shuffled and augmented by that seed.

    ``augment``: ``none``; ``crop``: random shifts with zero fill; ``crop-flip``: and left-right mirrors; ``group``:
    random shifts and a random element of ``group`` (the identity among them); ``turn``: that element alone. Labels are
    whole numbers, or tensors that are stacked as they are. Raises ``ArgumentError`` for an unknown augmentation, or
    for ``group`` and ``turn`` without a group.
    """
    if augment not in AUGMENTATIONS:
        raise ArgumentError(explain(f"an augmentation out of {AUGMENTATIONS}", repr(augment), "e.g. 'crop-flip'"))
    if augment in _BY_GROUP and group is None:
        raise ArgumentError(explain(f"a group for augment={augment!r}", "none", "pass group="))
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    collate = _Collate(augment if seed is not None else "none", group, generator)
    dataset = cast(Dataset[Any], split.dataset)
    return DataLoader(dataset, batch_size=batch_size, shuffle=seed is not None, generator=generator, collate_fn=collate)


class _Collate:
    """Stack samples and move each of them at random."""

    def __init__(self, augment: str, group: Group | None, generator: torch.Generator):
        self.augment, self.generator = augment, generator
        self.elements = [] if group is None or augment not in _BY_GROUP else [None, *measured_elements(group)]

    def __call__(self, samples: Sequence[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.stack([image for image, _ in samples])
        y = torch.stack([_label(label) for _, label in samples])
        if self.augment not in ("none", "turn"):
            x = self._each(x, self._shift)
        if self.augment == "crop-flip":
            flipped = torch.rand(len(x), generator=self.generator) < 0.5
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        if self.augment in _BY_GROUP:
            x = self._each(x, self._turn)
        return x, y

    def _each(self, x: torch.Tensor, move: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.stack([move(image) for image in x])

    def _shift(self, image: torch.Tensor) -> torch.Tensor:
        h, w = image.shape[-2:]
        dy, dx = (
            int(torch.randint(-(n // _CROP_MARGIN), n // _CROP_MARGIN + 1, (), generator=self.generator))
            for n in (h, w)
        )
        return functional.pad(image, (dx, -dx, dy, -dy))

    def _turn(self, image: torch.Tensor) -> torch.Tensor:
        g = self.elements[int(torch.randint(len(self.elements), (), generator=self.generator))]
        return image if g is None else transform_images(image, g)


def _label(label: Any) -> torch.Tensor:
    soft = isinstance(label, torch.Tensor) and label.is_floating_point()
    return label if soft else torch.as_tensor(label, dtype=torch.long)
