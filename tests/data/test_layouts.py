"""CIFAR and MNIST as torchvision lays them out: small files of this form, spoilt and hostile ones, the real MNIST."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import equidial as ed
from equidial.data import load_images, loader
from equidial.errors import ArgumentError, FileFormatError
from tests.data.layouts import cifar10, cifar100, dump, idx, mnist, pixels

FEW = pytest.mark.filterwarnings("ignore:expected .* training and:equidial.EquidialWarning")
AS_IS: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}


@FEW
@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10(below: str, tmp_path: Path) -> None:
    images = load_images(str(cifar10(tmp_path) / below), **AS_IS)
    assert (images.name, len(images.classes), images.classes[9]) == ("cifar10", 10, "name 9")
    assert (len(images.train), len(images.test), images.shape) == (10, 3, (3, 32, 32))
    x, y = next(iter(loader(images.train, 10)))
    assert y.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    stored = np.concatenate([pixels(2, i) for i in range(1, 6)]).reshape(10, 3, 32, 32)  # red, green, blue in turn
    assert torch.equal(x, torch.from_numpy(stored).float() / 255)
    assert [int(y) for _, y in (images.test.dataset[i] for i in range(3))] == [9, 8, 7]


@FEW
def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    images = load_images(str(cifar100(tmp_path)))
    assert (images.name, len(images.classes), images.classes[99]) == ("cifar100", 100, "fine 99")
    assert next(iter(loader(images.train, 4)))[1].tolist() == [99, 98, 97, 96]


@FEW
@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_python_3_are_read_too(protocol: int, tmp_path: Path) -> None:
    root = cifar10(tmp_path) / "cifar-10-batches-py"
    held = {"data": np.asfortranarray(pixels(3, 0)), "labels": [9, 8, 7]}
    (root / "test_batch").write_bytes(pickle.dumps(held, protocol=protocol))
    x = torch.stack([x for x, _ in (load_images(str(root), **AS_IS).test.dataset[i] for i in range(3))])
    assert torch.equal(x, torch.from_numpy(pixels(3, 0).reshape(3, 3, 32, 32)).float() / 255)


@FEW
@pytest.mark.parametrize(
    ("below", "form"),
    [
        ("", {}),
        ("MNIST", {}),
        ("MNIST/raw", {"packed": True}),
        ("", {"packed": True, "dot": "."}),
        ("", {"name": "FashionMNIST"}),
        ("KMNIST/raw", {"name": "KMNIST"}),
    ],
    ids=["root", "folder", "raw packed", "packed dotted", "fashion", "kmnist"],
)
def test_mnist(below: str, form: dict[str, Any], tmp_path: Path) -> None:
    images = load_images(str(mnist(tmp_path, **form) / below), **AS_IS)
    assert images.name == form.get("name", "MNIST").lower()
    assert (len(images.train), len(images.test), images.shape, len(images.classes)) == (5, 2, (1, 28, 28), 10)
    x, y = next(iter(loader(images.train, 5)))
    expected = np.random.default_rng(5).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    assert torch.equal(x[:, 0], torch.from_numpy(expected).float() / 255)
    assert y.tolist() == [0, 1, 2, 3, 4]


@FEW
def test_enlarged_one_by_one_as_all_at_once(tmp_path: Path) -> None:
    path = str(cifar10(tmp_path))
    plain = torch.stack([load_images(path, **AS_IS).test.dataset[i][0] for i in range(3)])
    wanted = functional.interpolate(plain, size=(48, 48), mode="bilinear", antialias=True)
    large = load_images(path, size=48, **AS_IS)
    assert large.shape == (3, 48, 48)
    assert torch.equal(torch.stack([large.test.dataset[i][0] for i in range(3)]), wanted)
    with pytest.raises(ArgumentError, match="one or 3 numbers"):
        load_images(path, size=48, mean=(0.0, 1.0))


def test_others_than_the_official_files_are_told(tmp_path: Path, data_folder: Path) -> None:
    with pytest.warns(
        ed.EquidialWarning, match=r"(?s)50000 training and 10000 test.*got: 10 and 3.*cifar-10-python"
    ) as told:
        load_images(str(cifar10(tmp_path)))
    assert told[0].filename == __file__
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    with np.load(data_folder / "mnist/mnist.npz") as held:
        for part, name in (("train", "train"), ("test", "t10k")):
            (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(held[f"x_{part}"]))
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(held[f"y_{part}"]))
        labels = held["y_test"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load_images(str(raw))  # the real one: every digest fits
    assert (len(images.train), len(images.test)) == (60_000, 10_000)
    swapped = labels.copy()
    swapped[0] = (swapped[0] + 1) % 10
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(swapped))
    with pytest.warns(ed.EquidialWarning, match=r"(?s)official files of MNIST.*t10k-labels-idx1-ubyte\n"):
        load_images(str(raw))


class Command:
    """A pickle of this runs a command when it is read without care."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


BATCH = "cifar-10-batches-py/data_batch_2"


def batch(**changes: Any) -> Callable[[Path], None]:
    held = {"data": pixels(2, 2), "labels": [1, 0]} | changes
    return lambda root: dump(root / BATCH, {k: v for k, v in held.items() if v is not None})


def written(path: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        file = root / path
        file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))

    return write


def called(module: str, name: str, argument: str = "") -> bytes:
    """A pickle that calls a function by its name."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


IMAGES, LABELS = "MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"


@FEW
@pytest.mark.parametrize(
    ("make", "spoil", "words"),
    [
        (cifar10, lambda root: (root / BATCH).unlink(), "no data_batch_2.*cifar-10-python.tar.gz"),
        (cifar100, lambda root: (root / "cifar-100-python/meta").unlink(), "no meta.*cifar-100-python.tar.gz"),
        (cifar10, written(BATCH, called("os", "system", "true")), "os.system, which is not admitted"),
        (cifar10, written(BATCH, called("builtins", "eval", "1")), "builtins.eval, which is not admitted"),
        (cifar10, written(BATCH, called("numpy", "load", "x")), "numpy.load, which is not admitted"),
        (cifar10, written(BATCH, called("numpy.core.multiarray", "scalar", "x")), "scalar, which is not admitted"),
        (cifar10, written(BATCH, called("_codecs", "encode", "x")), "encode, which is not admitted"),
        (cifar10, written(BATCH, called("numpy", "dtype", "O8")), "'O8', not of bytes"),
        (cifar10, written(BATCH, b"no pickle"), "a batch of CIFAR"),
        (cifar10, written(BATCH, b""), "EOFError"),
        (cifar10, written(BATCH, lambda raw: raw[:-700]), "a batch of CIFAR"),
        (cifar10, written(BATCH, b"(lp0\n."), "a dictionary.*list"),
        (cifar10, batch(data=None), r"data \[n, 3072\] of bytes"),
        (cifar10, batch(data=[1, 2]), r"data \[n, 3072\] of bytes"),
        (cifar10, batch(data=pixels(2, 2)[:, :9]), r"shape \(2, 9\)"),
        (cifar10, batch(data=pixels(2, 2).astype(float)), "'f8', not of bytes"),
        (cifar10, batch(labels=None), "labels, a list of whole numbers"),
        (cifar10, batch(labels=["a", "b"]), "labels, a list of whole numbers"),
        (cifar10, batch(labels=[1]), "10 images, 9 labels"),
        (cifar10, batch(labels=[1, 10]), "labels from 0 to 10"),
        (cifar10, batch(labels=[-1, 1]), "labels from -1 to 5"),
        (cifar10, lambda root: dump(root / "cifar-10-batches-py/batches.meta", {}), "label_names in"),
        (mnist, lambda root: (root / LABELS).unlink(), r"no t10k-labels-idx1-ubyte\[.gz\].*MNIST/raw"),
        (mnist, written(IMAGES, lambda raw: raw[:-1]), "2x28x28 bytes after.*got: 1567"),
        (mnist, written(IMAGES, lambda raw: raw + b"0"), "2x28x28 bytes after.*got: 1569"),
        (mnist, written(IMAGES, b"\0\0\x08\x03\0"), "an idx file of bytes with 3 axes"),
        (mnist, written(IMAGES, b"\0\0\x0d\x03" + bytes(12)), "an idx file of bytes with 3 axes"),
        (mnist, written(IMAGES, b""), "an idx file of bytes with 3 axes"),
        (mnist, written(LABELS, idx(np.array([3, 11], np.uint8))), "labels from 3 to 11"),
        (mnist, written(LABELS, idx(np.zeros(3, np.uint8))), "2 images, 3 labels"),
        (mnist, written(LABELS, idx(np.zeros((2, 1, 1), np.uint8))), "with 1 axes"),
    ],
)
def test_what_is_spoilt_is_refused(make: Any, spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    spoil(root)
    with pytest.raises(FileFormatError) as told:
        load_images(str(root))
    assert re.search(words, str(told.value), re.DOTALL), told.value


@FEW
def test_a_hostile_pickle_does_nothing(tmp_path: Path) -> None:
    root, mark = cifar10(tmp_path), tmp_path / "mark"
    raw = pickle.dumps({"data": pixels(2, 2), "labels": [Command(mark), 1]}, protocol=3)
    (root / BATCH).write_bytes(raw)
    with pytest.raises(FileFormatError, match="system, which is not admitted"):
        load_images(str(root))
    assert not mark.exists()
    pickle.loads(raw)
    assert mark.exists(), "the same file, read without care, runs its command"


@FEW
def test_a_broken_gzip_file(tmp_path: Path) -> None:
    file = mnist(tmp_path, packed=True) / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    for content in (b"no", file.read_bytes()[:-9], gzip.compress(b"x")[:-1]):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match="a gzip file"):
            load_images(str(tmp_path))


@FEW
def test_two_data_sets_in_a_folder_are_not_guessed(tmp_path: Path) -> None:
    mnist(cifar10(tmp_path))
    with pytest.raises(ArgumentError, match=r"(?s)one data set.*cifar-10-batches-py.*MNIST/raw"):
        load_images(str(tmp_path))
    shutil.rmtree(tmp_path / "MNIST")
    assert load_images(str(tmp_path)).name == "cifar10"
