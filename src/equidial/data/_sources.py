"""Where images come from: ``FILE.npz``, a folder of class folders, or ``demo``."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from equidial.data._images import Images, Split
from equidial.errors import ArgumentError, FileFormatError, explain

DEMO_SIZE = 16
"""Side of the demo's digits: the 8 x 8 scans of scikit-learn, resampled."""

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_NO_CLASS = 255  # of a mask
_TEST_NAMES = ("test", "val", "validation")


def load_images(
    source: str,
    *,
    size: int | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    masks: bool = False,
) -> Images:
    """Images from ``demo``, an ``.npz`` file or a folder, scaled to [0, 1], resized and normalised.

    An ``.npz`` file holds ``x_train [n, h, w(, c)]`` (uint8), ``y_train``, ``x_test``, ``y_test``. A folder holds
    ``train/<class>/*.png`` and ``test/`` (or ``val/``) alike. ``size`` resizes to ``size x size`` pixels (bilinear, for
    folders after a centre crop to a square). The demo is normalised its own way. ``masks``: an ``.npz`` file whose
    ``y_train`` and ``y_test`` are integer masks ``[n, h, w]``, resized to the nearest label; 255 is no class.

    Raises ``FileFormatError`` for data of another form and ``ArgumentError`` for a path that is not there.
    """
    path = Path(source)
    if masks and path.suffix != ".npz":
        raise ArgumentError(explain("an existing FILE.npz for masks", repr(source), "save images and masks there"))
    if source == "demo":
        return demo_digits()
    if path.is_dir():
        return _from_folder(path, size, mean, std)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, size, mean, std, masks)
    raise ArgumentError(
        explain("data: 'demo', an existing FILE.npz or an existing folder", repr(source), "check the path")
    )


def demo_digits() -> Images:
    """The handwritten digits of scikit-learn: 1,797 real 8 x 8 scans, resampled to 16 x 16, split 1,257 to 540.

    Pixels run from -1 (paper) to 1 (ink). Needs scikit-learn, which ships the scans.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels)).float().reshape(-1, 1, 8, 8) / 8.0 - 1.0
    images = functional.interpolate(images, size=(DEMO_SIZE, DEMO_SIZE), mode="bicubic", align_corners=False)
    labels = torch.from_numpy(np.asarray(digits)).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=0, stratify=labels.numpy())
    splits = [Split(TensorDataset(images[rows], labels[rows])) for rows in (np.sort(train), np.sort(test))]
    return Images(splits[0], splits[1], tuple(str(d) for d in range(10)), "digits")


def _normalised(x: torch.Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """``[n, c, h, w]`` in [0, 1] -> resized, ``(x - mean) / std`` per channel."""
    channels = x.shape[1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ArgumentError(
                explain(f"one or {channels} numbers for {name}", f"{len(values)}", "give one per channel")
            )
    if size is not None and x.shape[-2:] != (size, size):
        x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    shift, scale = (torch.tensor(list(values), dtype=x.dtype)[:, None, None] for values in (mean, std))
    return (x - shift) / scale


def _from_npz(path: Path, size: int | None, mean: Sequence[float], std: Sequence[float], masks: bool) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _NPZ_KEYS if key not in archive]
            if missing:
                raise FileFormatError(
                    explain(
                        f"arrays {_NPZ_KEYS} in {path.name}",
                        f"{sorted(archive)[:8]}, without {missing}",
                        "save them under these names",
                    )
                )
            arrays = {key: archive[key] for key in _NPZ_KEYS}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(explain(f"a readable {path.name}", str(error), "write it with numpy.savez")) from error
    splits = []
    for part in ("train", "test"):
        x = torch.from_numpy(arrays[f"x_{part}"])
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
            raise FileFormatError(
                explain(f"x_{part} of shape [n, h, w] or [n, h, w, 1 or 3]", str(tuple(x.shape)), "move the axes")
            )
        x = (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)).float()
        x = x / 255 if arrays[f"x_{part}"].dtype == np.uint8 else x
        y = torch.from_numpy(np.asarray(arrays[f"y_{part}"]))
        y = _masks(part, x, y, size) if masks else y.long().flatten()
        if len(x) != len(y):
            raise FileFormatError(explain("as many labels as images", f"{len(y)} and {len(x)}", "check the file"))
        splits.append((x, y))
    labels = [y[y != _NO_CLASS] if masks else y for _, y in splits]
    classes = max((int(y.max()) for y in labels if y.numel()), default=0) + 1
    made = [Split(TensorDataset(_normalised(x, size, mean, std), y)) for x, y in splits]
    return Images(made[0], made[1], tuple(str(i) for i in range(classes)), path.stem)


def _masks(part: str, x: torch.Tensor, y: torch.Tensor, size: int | None) -> torch.Tensor:
    """Integer masks ``[n, h, w]`` of images ``[n, c, h, w]``, resized with them."""
    wanted = (len(x), *x.shape[-2:])
    if tuple(y.shape) != wanted or y.is_floating_point():
        got = f"{y.dtype} of shape {tuple(y.shape)}"
        raise FileFormatError(explain(f"y_{part}: integer masks of shape {wanted}", got, "save one label per pixel"))
    if size is None:
        return y.long()
    return functional.interpolate(y[:, None].double(), size=(size, size), mode="nearest-exact")[:, 0].long()


class _Folder(Dataset[tuple[torch.Tensor, int]]):
    """Images of class folders, read when asked for."""

    def __init__(
        self, root: Path, classes: Sequence[str], size: int | None, mean: Sequence[float], std: Sequence[float]
    ):
        self.size, self.mean, self.std = size, mean, std
        self.items = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((root / name).glob("*"))
            if file.suffix.lower() in _IMAGE_ENDINGS
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        file, label = self.items[index]
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        if self.size is not None:
            side = min(x.shape[-2:])
            top, left = ((n - side) // 2 for n in x.shape[-2:])
            x = x[:, top : top + side, left : left + side]
        return _normalised(x[None], self.size, self.mean, self.std)[0], label


def _from_folder(path: Path, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Images:
    train = path / "train"
    test = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise FileFormatError(
            explain(
                "a folder with train/<class>/ and test/<class>/ (or val/)",
                f"{path} with {sorted(p.name for p in path.iterdir())[:6]}",
                "arrange the images so",
            )
        )
    classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir()))
    splits = [_Folder(root, classes, size, mean, std) for root in (train, test)]
    if not classes or not all(len(split) for split in splits):
        raise FileFormatError(explain("images in every split", f"none in {path}", f"put {_IMAGE_ENDINGS} files there"))
    return Images(Split(splits[0]), Split(splits[1]), classes, path.name)
