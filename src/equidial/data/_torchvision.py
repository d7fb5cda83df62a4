"""CIFAR and MNIST in the files that their authors publish, where ``torchvision.datasets`` puts them.

CIFAR's files are pickles, which could run any code. They are read by an unpickler that knows three names, and gives
none of them numpy's meaning: an array is its shape and its bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equidial.data._images import Images
from equidial.data._reading import array_split
from equidial.errors import ArgumentError, EquidialWarning, FileFormatError, explain

_Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Cifar:
    """``parts``: the files of training and of test, with the MD5 that torchvision publishes; ``meta`` alike."""

    name: str
    folder: str
    where: str
    parts: tuple[dict[str, str], dict[str, str]]
    meta: tuple[str, str]
    labels: str
    names: str


_CIFARS = (
    _Cifar(
        "cifar10",
        "cifar-10-batches-py",
        "unpack cifar-10-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html",
        (
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            {"test_batch": "40351d587109b95175f43aff81a1287e"},
        ),
        ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        "labels",
        "label_names",
    ),
    _Cifar(
        "cifar100",
        "cifar-100-python",
        "unpack cifar-100-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html",
        ({"train": "16019d7e3df5f24257cddd939b257f8d"}, {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}),
        ("meta", "7973b15100ade9c7d40fb424638fde48"),
        "fine_labels",
        "fine_label_names",
    ),
)
_CIFAR_COUNTS, _SIDE = (50_000, 10_000), 32

_IDX_SETS = ("MNIST", "FashionMNIST", "KMNIST")
_IDX_WHERE = "torchvision.datasets.{name}(FOLDER, download=True) puts its four files into FOLDER/{name}/raw"
_IDX_COUNTS = (60_000, 10_000)
_IDX_MD5 = {  # of MNIST, unpacked
    "train-images": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels": "a25bea736e30d166cdddb491f175f624",
    "t10k-images": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
}


def torchvision_images(path: Path, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Images | None:
    """The data set in this folder, or just below it; ``None`` where there is none.

    Warns (``EquidialWarning``) of files that are not the official ones. Raises ``ArgumentError`` for a folder with
    more than one data set, ``FileFormatError`` for files that are missing, spoilt or hostile.
    """
    found: list[tuple[Path, Callable[[], tuple[_Arrays, _Arrays, tuple[str, ...], str]]]] = []
    for cifar in _CIFARS:
        files = [*cifar.parts[0], *cifar.parts[1], cifar.meta[0]]
        for root in (path, path / cifar.folder):
            if sum((root / file).is_file() for file in files) >= min(2, len(files)):
                found.append((root, lambda cifar=cifar, root=root: _cifar(root, cifar)))
    for root, name in [(path, ""), (path / "raw", "")] + [(path / name / "raw", name) for name in _IDX_SETS]:
        if root.is_dir() and any(_idx_file(root, which) for which in _IDX_MD5):
            found.append((root, lambda root=root, name=name: _idx_set(root, name or _name(root))))
    if not found:
        return None
    if len(found) > 1:
        held = ", ".join(str(root) for root, _ in found)
        raise ArgumentError(explain("a folder with one data set", f"{path} with {held}", "name one of them"))
    train, test, classes, name = found[0][1]()
    splits = []
    for x, y in (train, test):
        if len(x) != len(y) or not len(y) or not 0 <= y.min() <= y.max() < len(classes):
            span = f" from {y.min()} to {y.max()}" if len(y) else ""
            got = f"{len(x)} images, {len(y)} labels{span}"
            wanted = f"images of {name}, each with a label below {len(classes)}"
            raise FileFormatError(explain(wanted, got, "unpack the official files again"))
        splits.append(array_split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), size, mean, std))
    return Images(splits[0], splits[1], classes, name)


def _missing(root: Path, files: Sequence[str], where: str) -> None:
    raise FileFormatError(explain(f"all files of the data set in {root}", f"no {', '.join(files)}", where))


def _tell(name: str, wanted: tuple[int, int], counts: tuple[int, int], changed: Sequence[str], where: str) -> None:
    """Warn where the data set is not the official one."""
    if counts != wanted:
        expected = f"{wanted[0]} training and {wanted[1]} test images of {name}"
        message = explain(expected, f"{counts[0]} and {counts[1]}", f"for its results, {where}")
    elif changed:
        message = explain(f"the official files of {name} (MD5)", f"others: {', '.join(changed)}", f"compare: {where}")
    else:
        return
    warnings.warn(message, EquidialWarning, stacklevel=6)  # at the call of load_images


# --- CIFAR: pickles of Python 2


def _cifar(root: Path, cifar: _Cifar) -> tuple[_Arrays, _Arrays, tuple[str, ...], str]:
    digests = {**cifar.parts[0], **cifar.parts[1], cifar.meta[0]: cifar.meta[1]}
    absent = [file for file in digests if not (root / file).is_file()]
    if absent:
        _missing(root, absent, cifar.where)
    changed: list[str] = []

    def read(file: str) -> dict[str, Any]:
        raw = (root / file).read_bytes()
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() != digests[file]:
            changed.append(file)
        return _unpickled(raw, root / file, cifar.where)

    parts = [_joined([_batch(read(file), cifar, root / file) for file in files]) for files in cifar.parts]
    names = read(cifar.meta[0]).get(cifar.names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileFormatError(explain(f"{cifar.names} in {root / cifar.meta[0]}", repr(names)[:60], cifar.where))
    counts = len(parts[0][1]), len(parts[1][1])
    _tell(cifar.name, _CIFAR_COUNTS, counts, changed, cifar.where)
    return parts[0], parts[1], tuple(names), cifar.name


def _batch(held: Mapping[str, Any], cifar: _Cifar, file: Path) -> _Arrays:
    data, labels = held.get("data"), held.get(cifar.labels)
    pixels = data.value if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3 * _SIDE**2:
        got = "none" if pixels is None else f"shape {pixels.shape}"
        raise FileFormatError(explain(f"data [n, {3 * _SIDE**2}] of bytes in {file}", got, cifar.where))
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise FileFormatError(explain(f"{cifar.labels}, a list of whole numbers, in {file}", "others", cifar.where))
    return pixels.reshape(-1, 3, _SIDE, _SIDE), np.array(labels, dtype=np.int64)


def _joined(batches: Sequence[_Arrays]) -> _Arrays:
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


class _Array:
    """What a pickled array becomes; :attr:`value` is there once its bytes have come."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        whole = all(type(n) is int and n >= 0 for n in shape)
        if not isinstance(kind, _Kind) or not whole or not isinstance(raw, bytes) or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError("an array that is none of bytes, or of another length than its shape")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Kind:
    """A dtype; only ``u1`` can be made."""

    def __init__(self, name: str, *_: Any):
        if name != "u1":
            raise pickle.UnpicklingError(f"an array of {str(name)[:20]!r}, not of bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: bytes have none."""


def _new_array(*_: Any) -> _Array:
    return _Array()


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Nothing is ever imported."""
        known = _KNOWN.get((module_name, global_name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is not admitted")
        return known


def _unpickled(raw: bytes, file: Path, where: str) -> dict[str, Any]:
    try:
        held = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # a spoilt pickle raises anything
        raise FileFormatError(
            explain(f"a batch of CIFAR in {file}", f"{type(error).__name__}: {error}", where)
        ) from error
    if not isinstance(held, dict):
        raise FileFormatError(explain(f"a dictionary in {file}", type(held).__name__, where))
    return held


# --- MNIST: idx files


def _name(root: Path) -> str:
    return next((n for n in (root.name, root.parent.name) if n in _IDX_SETS), "MNIST")


def _idx_file(root: Path, which: str) -> Path | None:
    part, _, what = which.partition("-")
    axes = {"images": 3, "labels": 1}[what]
    names = (f"{part}-{what}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((root / name for name in names if (root / name).is_file()), None)


def _idx_set(root: Path, name: str) -> tuple[_Arrays, _Arrays, tuple[str, ...], str]:
    where = _IDX_WHERE.format(name=name)
    files = {which: _idx_file(root, which) for which in _IDX_MD5}
    absent = [f"{which}-idx{3 if 'images' in which else 1}-ubyte[.gz]" for which, file in files.items() if file is None]
    if absent:
        _missing(root, absent, where)
    arrays: dict[str, np.ndarray] = {}
    changed = []
    for which, file in files.items():
        assert file is not None
        raw = _bytes(file, where)
        arrays[which] = _idx(raw, 3 if "images" in which else 1, file, where)
        if name == "MNIST" and hashlib.md5(raw, usedforsecurity=False).hexdigest() != _IDX_MD5[which]:
            changed.append(file.name)
    train, test = ((arrays[f"{part}-images"][:, None], arrays[f"{part}-labels"]) for part in ("train", "t10k"))
    _tell(name, _IDX_COUNTS, (len(train[1]), len(test[1])), changed, where)
    return train, test, tuple(str(digit) for digit in range(10)), name.lower()


def _bytes(file: Path, where: str) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(explain(f"a gzip file {file}", str(error), where)) from error


def _idx(raw: bytes, axes: int, file: Path, where: str) -> np.ndarray:
    """Two zero bytes, 8 for bytes, the number of axes, their lengths (big endian), the bytes."""
    start = 4 + 4 * axes
    if raw[:4] != bytes((0, 0, 8, axes)) or len(raw) < start:
        raise FileFormatError(explain(f"an idx file of bytes with {axes} axes: {file}", repr(raw[:4]), where))
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if math.prod(shape) != len(raw) - start:
        got = f"{len(raw) - start}"
        raise FileFormatError(explain(f"{'x'.join(map(str, shape))} bytes after the head of {file}", got, where))
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
