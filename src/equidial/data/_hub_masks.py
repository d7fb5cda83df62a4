"""Segmentation from data sets of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equidial.data._hub import (
    Cell,
    HubSource,
    cells,
    column_name,
    no_split,
    of_type,
    parsed,
    read_splits,
    split_name,
    told,
)
from equidial.errors import ArgumentError, FileFormatError, explain

NO_CLASS = 255
"""Label of the pixels that count for nothing."""

_MASK_NAMES = ("mask", "annotation", "label", "segmentation", "gt")
_CLASS_FILE = "id2label.json"


@dataclass(frozen=True)
class HubMasks:
    """What :func:`load_segmentation` makes its result of; fields as those of :class:`Segmentations`."""

    name: str
    classes: tuple[str, ...]
    files: tuple[tuple[Cell, Cell], ...]
    void: int
    reduce_labels: bool


def hub_masks(text: str, part: str, count: Callable[[Sequence[tuple[Cell, Cell]], int, bool], int]) -> HubMasks:
    """As :func:`load_segmentation` says of ``hf:``; ``count(files, void, reduce_labels)``: classes of the masks."""
    known = ("config", "revision", "image", "mask", "classes", "void", "reduce_labels", "train", "val", "test")
    source = parsed(text, known)
    void = _number(source, "void", NO_CLASS)
    reduce_labels = _number(source, "reduce_labels", 0, most=1) == 1
    given = _number(source, "classes", 0)
    splits = read_splits(source)
    split = split_name(source, splits, part)
    if split is None:
        raise no_split(source, splits, part)
    found = _pairs(source, splits, split)
    if not found:
        raise FileFormatError(explain(f"images in {source.name} {split}", "none", "fetch the data set again"))
    classes = tuple(str(i) for i in range(given)) if given else _named_classes(source)
    if classes is None:
        train = split_name(source, splits, "train")
        files = found if train in (None, split) else _pairs(source, splits, train)
        classes = tuple(str(i) for i in range(count(files, void, reduce_labels)))
    return HubMasks(source.title, classes, tuple(found), void, reduce_labels)


def _number(source: HubSource, option: str, usual: int, most: int = 255) -> int:
    text = source.options.get(option, str(usual))
    if not text.isdecimal() or int(text) > most:
        raise ArgumentError(explain(f"{option} from 0 to {most}", repr(text), f"e.g. ?{option}={min(most, 150)}"))
    return int(text)


def _pairs(source: HubSource, splits: Mapping[str, Any], name: str) -> list[tuple[Cell, Cell]]:
    found = of_type(splits[name].features, "Image")
    image, mask = source.options.get("image"), source.options.get("mask")
    masks = [own for own in found if own != image and any(word in own.lower() for word in _MASK_NAMES)]
    mask = column_name(source, "mask", found, masks, "masks (type Image, named mask, annotation, label, ...)")
    image = column_name(source, "image", found, [own for own in found if own != mask], "images (type Image)")
    return list(zip(*(cells(source, splits, name, column) for column in (image, mask)), strict=True))


def _named_classes(source: HubSource) -> tuple[str, ...] | None:
    """Of ``id2label.json`` beside the data, where there is one."""
    if source.folder is not None:
        file = source.folder / _CLASS_FILE
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            revision = source.options.get("revision")
            file = Path(hf_hub_download(source.name, _CLASS_FILE, repo_type="dataset", revision=revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
        except Exception as error:
            raise told(source, error) from error
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text())
        names = {int(key): value for key, value in held.items()}
    except (ValueError, AttributeError) as error:
        raise FileFormatError(explain(f"{{number: name}} in {_CLASS_FILE}", str(error), "correct the file")) from error
    if sorted(names) != list(range(len(names))) or not all(isinstance(name, str) for name in names.values()):
        todo = source.or_else("classes", "the number of classes")
        raise FileFormatError(explain(f"names of classes 0, 1, ... in {_CLASS_FILE}", repr(sorted(names))[:60], todo))
    return tuple(names[i] for i in range(len(names)))
