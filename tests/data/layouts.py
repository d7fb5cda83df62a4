"""Small data sets in the layouts of torchvision and of the Hugging Face hub, and the numbers that they hold."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_Pickler: Any = pickle.__dict__["_Pickler"]  # the one in Python, whose opcodes can be chosen


class Python2Pickler(_Pickler):
    """Writes text and bytes as the strings of Python 2, as in CIFAR's own files, and numpy under its old name."""

    dispatch: Any = dict(_Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = "numpy.core.multiarray" if "multiarray" in obj.__module__ else obj.__module__
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(pickle.dumps)] = save_global
    dispatch[type(lambda: None)] = save_global


def dump(path: Path, held: Any) -> None:
    """As Python 2 would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(held)
    path.write_bytes(stream.getvalue())


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def cifar10(root: Path) -> Path:
    """Five batches of two images, one of three."""
    top = root / "cifar-10-batches-py"
    for i in range(1, 6):
        dump(top / f"data_batch_{i}", {"data": pixels(2, i), "labels": [i, 0], "batch_label": "x", "filenames": ["a"]})
    dump(top / "test_batch", {"data": pixels(3, 0), "labels": [9, 8, 7]})
    dump(top / "batches.meta", {"label_names": [f"name {i}" for i in range(10)], "num_vis": 3072})
    return root


def cifar100(root: Path) -> Path:
    top = root / "cifar-100-python"
    for part, n in (("train", 4), ("test", 2)):
        labels = {"fine_labels": [99 - i for i in range(n)], "coarse_labels": [0] * n}
        dump(top / part, {"data": pixels(n, n), **labels})
    dump(top / "meta", {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["c"] * 20})
    return root


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist(root: Path, name: str = "MNIST", packed: bool = False, dot: str = "-") -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 5), ("t10k", 2)):
        x = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for file, values in ((f"{part}-images{dot}idx3", x), (f"{part}-labels{dot}idx1", np.arange(n, dtype=np.uint8))):
            content = idx(values)
            (raw / f"{file}-ubyte{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return root


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """``size``: width and height."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def labelled(n: int, classes: tuple[str, ...] = ("cat", "dog"), mode: str = "RGB", **more: Any) -> Any:
    """A ``datasets.Dataset`` of images under names that tell nothing; ``y``: labels, ``i mod classes`` by default."""
    import datasets

    y = more.get("y", [i % len(classes) for i in range(n)])
    features = {"pic": datasets.Image(), "what": datasets.ClassLabel(names=list(classes))}
    columns: dict[str, Any] = {"pic": [picture(i, mode) for i in range(n)], "what": y}
    for name, (values, feature) in more.get("columns", {}).items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def masked(n: int, top: int = 3, mask: str = "annotation") -> Any:
    """Images with masks of labels 0..top and 255."""
    import datasets

    masks = [Image.fromarray(np.resize(np.array([*range(top + 1), 255], np.uint8), (6, 8))) for _ in range(n)]
    features = datasets.Features({"image": datasets.Image(), mask: datasets.Image()})
    return datasets.Dataset.from_dict({"image": [picture(i) for i in range(n)], mask: masks}, features=features)


def parquet(root: Path, **splits: Any) -> Path:
    """As the hub stores data sets: ``data/<split>-00000-of-00001.parquet``."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def on_disk(root: Path, **splits: Any) -> Path:
    """As ``save_to_disk`` writes it."""
    import datasets

    held: Any = splits
    datasets.DatasetDict(held).save_to_disk(root)
    return root
