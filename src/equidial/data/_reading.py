"""Images on their way from a file or an array to a network: decoded, cropped, resized, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from equidial.data._images import Images, Split
from equidial.errors import ArgumentError, FileFormatError, explain

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def check_moments(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ``ArgumentError`` unless there is one number for all channels, or one for each."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ArgumentError(
                explain(f"one or {channels} numbers for {name}", f"{len(values)}", "give one per channel")
            )


def normalised(x: torch.Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """``[n, c, h, w]``, uint8 or in [0, 1] -> resized, ``(x - mean) / std`` per channel."""
    check_moments(x.shape[1], mean, std)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if size is not None and x.shape[-2:] != (size, size):
        x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    shift, scale = (torch.tensor(list(values), dtype=x.dtype)[:, None, None] for values in (mean, std))
    return (x - shift) / scale


def array_split(
    pixels: torch.Tensor, y: torch.Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]
) -> Split:
    """Images of an array ``[n, c, h, w]``: made ready at once, or one by one where ``size`` enlarges them."""
    if size is not None and size * size > pixels.shape[-2] * pixels.shape[-1]:
        return Split(_Enlarged(pixels, y, size, mean, std))
    return Split(TensorDataset(normalised(pixels, size, mean, std), y))


class _Enlarged(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Small images that are resized when asked for: all of CIFAR takes 30 GB at 224 pixels."""

    def __init__(self, pixels: torch.Tensor, y: torch.Tensor, size: int, mean: Sequence[float], std: Sequence[float]):
        check_moments(pixels.shape[1], mean, std)
        self.pixels, self.y, self.size, self.mean, self.std = pixels, y, size, mean, std

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return normalised(self.pixels[index][None], self.size, self.mean, self.std)[0], self.y[index]


class ImageList(Dataset[tuple[torch.Tensor, int]]):
    """Encoded images with their labels, read when asked for.

    ``items``: pairs of what has ``open("rb")``, a path or a cell of a table, and its label. ``channels``: 1 or 3.
    """

    def __init__(
        self,
        items: Sequence[tuple[Any, int]],
        size: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 3,
    ):
        check_moments(channels, mean, std)
        self.items, self.size, self.mean, self.std, self.channels = items, size, mean, std, channels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file, label = self.items[index]
        x = torch.from_numpy(_decoded(file, "RGB" if self.channels == 3 else "L"))
        if self.size is not None:
            side = min(x.shape[:2])
            top, left = ((n - side) // 2 for n in x.shape[:2])
            x = x[top : top + side, left : left + side]
        x = x.permute(2, 0, 1) if self.channels == 3 else x[None]
        return normalised(x[None], self.size, self.mean, self.std)[0], label


def _decoded(file: Any, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            return np.array(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what its readers raise
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(explain(f"an image in {file}", str(error), "replace it, or take it out")) from error


_TEST_NAMES = ("test", "val", "validation")


def image_folder(path: Path, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Images:
    """``train/<class>/*`` and ``test/`` (or ``val/``) alike, as ``torchvision.datasets.ImageFolder`` reads each.

    Raises ``FileFormatError`` for a folder of another form.
    """
    train = path / "train"
    test = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise FileFormatError(
            explain(
                "a folder with train/<class>/ and test/<class>/ (or val/), or one of torchvision's CIFAR or MNIST",
                f"{path} with {sorted(p.name for p in path.iterdir())[:6]}",
                "arrange the images so; folders of Hugging Face (parquet, save_to_disk) are named hf:FOLDER",
            )
        )
    classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir()))
    splits = [ImageList(_items(root, classes), size, mean, std) for root in (train, test)]
    if not classes or not all(len(split) for split in splits):
        raise FileFormatError(explain("images in every split", f"none in {path}", f"put {_ENDINGS} files there"))
    return Images(Split(splits[0]), Split(splits[1]), classes, path.name)


def _items(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).glob("*"))
        if file.suffix.lower() in _ENDINGS
    ]
