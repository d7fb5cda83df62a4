"""Where images come from: ``FILE.npz``, folders as torchvision or Hugging Face lay them out, the hub, ``demo``."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

from equidial.data._hub import is_hub
from equidial.data._hub_images import hub_images
from equidial.data._images import Images, Split
from equidial.data._reading import array_split, image_folder
from equidial.data._torchvision import torchvision_images
from equidial.errors import ArgumentError, FileFormatError, explain

DEMO_SIZE = 16
"""Side of the demo's digits: the 8 x 8 scans of scikit-learn, resampled."""

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_NO_CLASS = 255  # of a mask


def load_images(
    source: str,
    *,
    size: int | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    masks: bool = False,
) -> Images:
    """Labelled images, scaled to [0, 1], resized to ``size x size`` pixels (bilinear) and normalised.

    * ``demo``: :func:`demo_digits`, normalised its own way.
    * ``FILE.npz``: ``x_train [n, h, w(, c)]`` (uint8), ``y_train``, ``x_test``, ``y_test``.
    * A folder: ``train/<class>/*.png`` and ``test/`` (or ``val/``) alike; ``cifar-10-batches-py``,
      ``cifar-100-python``, ``MNIST/raw`` (also Fashion-MNIST and KMNIST), or the folder around one of them.
    * ``hf:NAME_OR_FOLDER[?option=value&...]``: a data set of the Hugging Face hub, or a folder that holds one: parquet
      files, class folders, ``save_to_disk``. The column of images and that of classes are found by their types; of
      several columns of classes, that with most classes is taken. The split ``test`` is the test where it has labels,
      else ``validation``, which the name then says. Options: ``config``, ``revision``, ``image``, ``label``, ``train``,
      ``test``: names of columns and splits. Code of a data set is never run.

    Encoded images (class folders, ``hf:``) are read when asked for, after a centre crop to a square where ``size`` is
    given; arrays are made ready at once, or one by one where ``size`` enlarges them. ``masks``: an ``.npz`` file whose
    ``y_train`` and ``y_test`` are integer masks ``[n, h, w]``, resized to the nearest label; 255 is no class.

    Warns (``EquidialWarning``) where the files of CIFAR or MNIST are not the official ones. Raises ``FileFormatError``
    for data of another form, ``ArgumentError`` for a path that is not there, ``HubError`` where the hub cannot be
    reached or refuses.
    """
    path = Path(source)
    if masks and path.suffix != ".npz":
        raise ArgumentError(explain("an existing FILE.npz for masks", repr(source), "save images and masks there"))
    if source == "demo":
        return demo_digits()
    if is_hub(source):
        return hub_images(source, size, mean, std)
    if path.is_dir():
        return torchvision_images(path, size, mean, std) or image_folder(path, size, mean, std)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, size, mean, std, masks)
    raise ArgumentError(
        explain(
            "data: 'demo', an existing FILE.npz or an existing folder, or hf:NAME_OR_FOLDER",
            repr(source),
            "check the path; docs/data.md says where to get data sets",
        )
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
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
        y = torch.from_numpy(np.asarray(arrays[f"y_{part}"]))
        y = _masks(part, x, y, size) if masks else y.long().flatten()
        if len(x) != len(y):
            raise FileFormatError(explain("as many labels as images", f"{len(y)} and {len(x)}", "check the file"))
        splits.append((x, y))
    labels = [y[y != _NO_CLASS] if masks else y for _, y in splits]
    classes = max((int(y.max()) for y in labels if y.numel()), default=0) + 1
    made = [array_split(x, y, size, mean, std) for x, y in splits]
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
