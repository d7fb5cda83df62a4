"""Classification from data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equidial.data._hub import (
    TEST_NAMES,
    VAL_NAMES,
    Cell,
    HubSource,
    cells,
    column_name,
    no_split,
    of_type,
    parsed,
    read_splits,
    split_name,
)
from equidial.data._images import Images, Split
from equidial.data._reading import ImageList
from equidial.errors import FileFormatError, explain

_SAMPLED = 32  # images from which the number of channels is told


def hub_images(text: str, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Images:
    """As :func:`load_images` says of ``hf:``. Cost: reads labels and 32 images; all else when asked for."""
    source = parsed(text, ("config", "revision", "image", "label", "train", "test"))
    splits = read_splits(source)
    train = split_name(source, splits, "train")
    if train is None:
        raise no_split(source, splits, "train")
    features = splits[train].features
    image = column_name(source, "image", list(features), of_type(features, "Image"), "images (type Image)")
    label = _label_column(source, features)
    y, classes = _labels(source, splits[train], label, None)
    if not len(y):
        raise FileFormatError(explain(f"labels in {source.name} {train}", "none", "take a split that has them"))
    test, y_test = _test(source, splits, label, classes)
    items = {
        name: list(zip(cells(source, splits, name, image), known.tolist(), strict=True))
        for name, known in ((train, y), (test, y_test))
    }
    channels = _channels(items[train])
    made = [Split(ImageList(items[name], size, mean, std, channels)) for name in (train, test)]
    name = source.title if test in TEST_NAMES else f"{source.title} ({test})"
    return Images(made[0], made[1], classes, name)


def _label_column(source: HubSource, features: Mapping[str, Any]) -> str:
    found = of_type(features, "ClassLabel")
    most = max((features[name].num_classes for name in found), default=0)
    finest = [name for name in found if features[name].num_classes == most]  # CIFAR-100 has coarse ones, too
    return column_name(source, "label", list(features), finest, "classes (type ClassLabel)")


def _labels(
    source: HubSource, split: Any, column: str, classes: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of a split, empty where it has none, and the names of the classes.

    Raises ``FileFormatError`` for labels that are no whole numbers, or out of range.
    """
    feature = split.features.get(column)
    values = [] if feature is None else split.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    given = [-1 if value is None else value for value in values]
    other = [value for value in given if type(value) is not int]
    if other:
        wanted = f"whole numbers as {column} of {source.name}"
        raise FileFormatError(explain(wanted, repr(other[0])[:40], "class_encode_column makes them"))
    y = np.array(given, dtype=np.int64)
    names = getattr(feature, "names", None)
    if classes is None:
        classes = tuple(names) if names else tuple(str(i) for i in range(int(y.max(initial=-1)) + 1))
    if not len(y) or (y == -1).all():
        return y[:0], classes
    if names and tuple(names) != classes:
        raise FileFormatError(
            explain(f"the same classes in all splits of {source.name}", f"others in {column}", "cast it")
        )
    outside = y[(y < 0) | (y >= len(classes))]
    if len(outside):
        wanted = f"{column} from 0 to {len(classes) - 1} in {source.name}"
        raise FileFormatError(explain(wanted, f"{outside[0]}", "take out rows without a class"))
    return y, classes


def _test(source: HubSource, splits: Mapping[str, Any], label: str, classes: tuple[str, ...]) -> tuple[str, np.ndarray]:
    """The split that is tested on, the first that has labels, and these."""
    own = source.options.get("test")
    names = [split_name(source, splits, "test")] if own else [name for name in TEST_NAMES + VAL_NAMES if name in splits]
    for name in names:
        assert name is not None
        y, _ = _labels(source, splits[name], label, classes)
        if len(y):
            return name, y
    if not names:
        raise no_split(source, splits, "test")
    raise FileFormatError(
        explain(
            f"labels in a split of {source.name} to test on",
            f"none in {', '.join(map(str, names))}",
            source.or_else("test", "or hold images out"),
        )
    )


def _channels(items: Sequence[tuple[Cell, int]]) -> int:
    """1 where images out of the whole set are all grey, else 3: ImageNet, too, has grey ones."""
    from PIL import Image

    rows = np.unique(np.linspace(0, len(items) - 1, _SAMPLED).round().astype(int))
    for row in rows:
        cell = items[row][0]
        try:
            with cell.open() as stream, Image.open(stream) as image:
                if image.mode not in ("1", "L"):
                    return 3
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(explain(f"an image as {cell}", str(error), "fetch the data set again")) from error
    return 1
