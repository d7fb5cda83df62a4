"""Data sets in the layouts of the Hugging Face hub: parquet, class folders, save_to_disk, names; what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import equidial as ed
from equidial.data import load_images, load_segmentation, loader
from equidial.errors import ArgumentError, FileFormatError, HubError
from equidial.recipes import ImageNet, imagenet
from equidial.recipes._images import CropFlip, ImageFiles
from tests.data.layouts import labelled, masked, on_disk, parquet, picture
from tests.recipes.image_folder import image_folder

datasets = pytest.importorskip("datasets")
AS_IS: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, no network, no bars."""
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    datasets.disable_progress_bars()


def class_folders(root: Path) -> Path:
    for part, n in (("train", 2), ("test", 1)):
        for place, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                picture(2 * i + place).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda p: parquet(p / "set", train=labelled(4), test=labelled(2)), [0, 1, 2, 3]),
        (lambda p: on_disk(p / "set", train=labelled(4), test=labelled(2)), [0, 1, 2, 3]),
        (lambda p: class_folders(p / "set"), [0, 2, 1, 3]),
    ],
    ids=["parquet", "save_to_disk", "class folders"],
)
def test_the_layouts(make: Callable[[Path], Path], order: list[int], tmp_path: Path) -> None:
    images = load_images(f"hf:{make(tmp_path)}", **AS_IS)
    assert (images.name, images.classes, images.shape) == ("set", ("cat", "dog"), (3, 6, 8))
    assert (len(images.train), len(images.test)) == (4, 2)
    x, y = next(iter(loader(images.train, 4)))
    assert y.tolist() == [i % 2 for i in order]
    stored = np.stack([np.asarray(picture(i)) for i in order]).transpose(0, 3, 1, 2)
    assert torch.equal(x, torch.from_numpy(stored).float() / 255)


def test_a_square_is_cut_as_from_class_folders(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    for a, b in zip(
        loader(load_images(f"hf:{folder}", size=5).test, 2),
        loader(load_images(str(folder), size=5).test, 2),
        strict=True,
    ):
        assert torch.equal(a[0], b[0])
        assert a[0].shape == (2, 3, 5, 5)
        assert torch.equal(a[1], b[1])


def test_grey_sets_have_one_channel_and_a_few_grey_images_do_not_make_one(tmp_path: Path) -> None:
    grey = load_images(
        f"hf:{on_disk(tmp_path / 'g', train=labelled(3, mode='L'), test=labelled(2, mode='L'))}", **AS_IS
    )
    assert grey.shape == (1, 6, 8)
    wanted = torch.from_numpy(np.array(picture(0, "L"))).float() / 255
    assert torch.equal(grey.train.dataset[0][0][0], wanted)
    mixed = labelled(40)
    rows = [picture(i, "RGB" if i == 20 else "L") for i in range(40)]
    columns = {"pic": rows, "what": [0] * 40}
    mixed = datasets.Dataset.from_dict(columns, features=mixed.features)
    images = load_images(f"hf:{on_disk(tmp_path / 'm', train=mixed, test=labelled(2))}", **AS_IS)
    x = images.train.dataset[0][0]
    assert x.shape == (3, 6, 8)
    assert torch.equal(x[0], x[2]), "a grey image of a coloured set"


COARSE = {"coarse": ([0, 0, 0], datasets.ClassLabel(names=["pet"]))}


@pytest.mark.parametrize(
    ("splits", "options", "name", "tested"),
    [
        ({"train": labelled(3), "validation": labelled(2), "test": labelled(4)}, "", "s", 4),
        ({"train": labelled(3), "validation": labelled(2), "test": labelled(4, y=[-1] * 4)}, "", "s (validation)", 2),
        ({"train": labelled(3), "valid": labelled(2)}, "", "s (valid)", 2),
        ({"training": labelled(3), "extra": labelled(5)}, "?test=extra", "s (extra)", 5),
        ({"a": labelled(3), "test": labelled(2)}, "?train=a&test=test", "s", 2),
        ({"train": labelled(3, columns=COARSE), "test": labelled(3, columns=COARSE)}, "", "s", 3),
    ],
    ids=["test", "no labels in test", "valid", "extra", "named", "finest classes"],
)
def test_splits_and_columns(splits: dict[str, Any], options: str, name: str, tested: int, tmp_path: Path) -> None:
    images = load_images(f"hf:{on_disk(tmp_path / 's', **splits)}{options}")
    assert (images.name, len(images.train), len(images.test)) == (name, 3, tested)
    assert images.classes == ("cat", "dog")


def test_options_name_columns(tmp_path: Path) -> None:
    more = {
        "thumb": ([picture(9, size=(2, 2))] * 3, datasets.Image()),
        "number": ([2, 0, 1], datasets.Value("int64")),
        "coarse": ([0, 0, 0], datasets.ClassLabel(names=["pet"])),
    }
    source = f"hf:{on_disk(tmp_path / 's', train=labelled(3, columns=more), test=labelled(3, columns=more))}"
    images = load_images(f"{source}?image=thumb&label=number")
    assert (images.shape, images.classes) == ((3, 2, 2), ("0", "1", "2"))
    assert [y for _, y in (images.test.dataset[i] for i in range(3))] == [2, 0, 1]
    assert load_images(f"{source}?image=pic&label=coarse").classes == ("pet",)
    with pytest.raises(FileFormatError, match=r"(?s)one column of images.*pic, thumb.*\?image="):
        load_images(source)


def saved(**splits: Any) -> Callable[[Path], str]:
    return lambda p: f"hf:{on_disk(p / 's', **splits)}"


def with_options(text: str, **splits: Any) -> Callable[[Path], str]:
    return lambda p: f"hf:{on_disk(p / 's', **splits)}{text}"


def spoilt(p: Path) -> str:
    (parquet(p / "s", train=labelled(2)) / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1 no PAR1")
    return f"hf:{p / 's'}"


def with_code(p: Path) -> str:
    (p / "s").mkdir()
    (p / "s/s.py").write_text(f"open({str(p / 'mark')!r}, 'w')")
    return f"hf:{p / 's'}"


TWO, NUMBERS = labelled(2), {"n": ([0, 1], datasets.Value("int64"))}
ONLY_NUMBERS = datasets.Dataset.from_dict({"n": [0, 1]})
OTHERS = labelled(2, classes=("dog", "cat"))
TIED = {"other": ([0, 1], datasets.ClassLabel(names=["a", "b"]))}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: "hf:", ArgumentError, "hf:NAME_OR_FOLDER"),
        (lambda p: f"hf:{p / 'absent'}", ArgumentError, "hf:FOLDER that exists"),
        (lambda p: "hf:a/b/c", ArgumentError, "hf:FOLDER that exists"),
        (lambda p: "hf:../a", ArgumentError, "hf:FOLDER that exists"),
        (lambda p: "hf:a/b?mask=x", ArgumentError, "options out of.*'mask'"),
        (lambda p: "hf:a/b?test", ArgumentError, "options out of.*'test'"),
        (lambda p: "hf:a/b?test=", ArgumentError, "options out of.*'test'"),
        (lambda p: f"hf:{p}", FileFormatError, "parquet files, class folders or a save_to_disk folder"),
        (spoilt, FileFormatError, "parquet files, class folders"),
        (with_code, FileFormatError, "parquet files, class folders"),
        (saved(train=TWO), ArgumentError, r"a split test or testing of.*got: train.*\?test=.*train_test_split"),
        (saved(test=TWO), ArgumentError, r"a split train or training.*\?train="),
        (lambda p: (TWO.save_to_disk(p / "s"), f"hf:{p / 's'}")[1], ArgumentError, "a split test"),
        (with_options("?test=tset", train=TWO, test=TWO), ArgumentError, "a split of.*'tset'; close: 'test'"),
        (with_options("?label=waht", train=TWO, test=TWO), ArgumentError, "a column of.*'waht'; close: 'what'"),
        (with_options("?label=pic", train=TWO, test=TWO), FileFormatError, "whole numbers as pic"),
        (with_options("?image=what", train=TWO, test=TWO), FileFormatError, "images in the column what.*ClassLabel"),
        (with_options("?config=x", train=TWO, test=TWO), ArgumentError, "no config and revision"),
        (saved(train=ONLY_NUMBERS, test=ONLY_NUMBERS), FileFormatError, "one column of images.*none among n"),
        (
            saved(train=TWO.remove_columns("what"), test=TWO),
            FileFormatError,
            r"one column of classes.*none among pic.*\?label=.*cast_column",
        ),
        (saved(train=labelled(2, columns=TIED), test=TWO), FileFormatError, "one column of classes.*what, other"),
        (saved(train=labelled(2, y=[-1, -1]), test=TWO), FileFormatError, "labels in.*train"),
        (saved(train=labelled(2, y=[0, -1]), test=TWO), FileFormatError, "what from 0 to 1.*got: -1"),
        (saved(train=TWO, test=labelled(2, y=[-1, -1])), FileFormatError, "labels in a split.*none in test"),
        (saved(train=TWO, test=TWO.remove_columns("what")), FileFormatError, "labels in a split.*none in test"),
        (saved(train=TWO, test=TWO.remove_columns("pic")), FileFormatError, "images in the column pic.*got: None"),
        (saved(train=TWO, test=OTHERS), FileFormatError, "the same classes in all splits"),
    ],
)
def test_what_is_refused(make: Callable[[Path], str], error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error) as told:
        load_images(make(tmp_path))
    assert re.search(words, str(told.value), re.DOTALL), told.value
    assert not (tmp_path / "mark").exists(), "code of a data set is not run"


def test_spoilt_and_missing_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled(3).cast_column("pic", datasets.Image(decode=False))["pic"][:]
    rows[1] = {"bytes": b"no image", "path": None}
    rows[2] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    spoilt = datasets.Dataset.from_dict({"pic": rows, "what": [0, 1, 0]}, features=labelled(1).features)
    made = {"train": spoilt, "test": labelled(2)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(made))
    images = load_images("hf:a/b")
    assert images.train.dataset[0][0].shape == (3, 6, 8)
    for row, words in ((1, "an image in pic of row 1 of hf:a/b train"), (2, "(?s)pic of row 2.*gone.png")):
        with pytest.raises(FileFormatError, match=words):
            images.train.dataset[row]
    made["train"] = datasets.Dataset.from_dict({"pic": [None, rows[0]], "what": [0, 1]}, features=spoilt.features)
    with pytest.raises(FileFormatError, match="an image as pic of row 0"):
        load_images("hf:a/b")


def test_the_imagenet_study_reads_them_as_its_folders(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set", train=4, test=2)
    one, other = (
        imagenet.load(ImageNet(data=data, output=tmp_path / "run", image_size=32))
        for data in (str(folder), f"hf:{folder}")
    )
    assert other.images.name == "set (validation)"
    assert (one.images.classes, one.validation) == (other.images.classes, other.validation)
    assert [y for _, y in one.items] == [y for _, y in other.items]
    crop = CropFlip(32, (0.5,), (0.5,))
    for a, b in zip(*(ImageFiles(data.items, crop, 0) for data in (one, other)), strict=True):
        assert torch.equal(a[0], b[0])
    assert torch.equal(one.images.test.dataset[5][0], other.images.test.dataset[5][0])


def test_names_of_the_hub_where_there_is_no_network(tmp_path: Path) -> None:
    for load in (load_images, lambda source: load_segmentation(source, "val")):
        with pytest.raises(HubError) as told:
            load("hf:uoft-cs/cifar10")
        for words in (
            "'uoft-cs/cifar10' of the hub",
            "HF_HUB_OFFLINE",
            "hf download --repo-type dataset uoft-cs/cifar10",
        ):
            assert words in str(told.value)


def test_names_go_to_the_library_with_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.DatasetDict({"train": labelled(2), "test": labelled(2)})

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert load_images("hf:ylecun/mnist").name == "ylecun/mnist"
    load_images("hf:a/b?config=small&revision=refs/convert/parquet")
    assert asked == [
        (("ylecun/mnist", None), {"revision": None}),
        (("a/b", "small"), {"revision": "refs/convert/parquet"}),
    ]


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub.", HubError, "ask for access on https.*a/b.*hf auth login"),
        ("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.", HubError, "check the name.*private or gated"),
        ("Dataset scripts are no longer supported, but found b.py", HubError, "revision=refs/convert/parquet"),
        ("Config name is missing.\nPlease pick one: ['x', 'y']", ArgumentError, r"'x', 'y'.*\?config="),
        ("BuilderConfig 'z' not found. Available: ['x', 'y']", ArgumentError, r"'x', 'y'.*\?config="),
    ],
)
def test_what_the_hub_says_is_told_with_what_to_do(
    raised: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(raised)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(error) as told:
        load_images("hf:a/b?config=z")
    assert re.search(words, str(told.value), re.DOTALL), told.value


# --- segmentation


@pytest.mark.parametrize(
    ("make", "mask"), [(parquet, "annotation"), (on_disk, "mask"), (on_disk, "label"), (on_disk, "segmentation_mask")]
)
def test_masks(make: Callable[..., Path], mask: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "set", train=masked(3, mask=mask), validation=masked(2, top=1, mask=mask))
    for part, n in (("train", 3), ("val", 2)):
        found = load_segmentation(f"hf:{folder}", part)  # pyright: ignore[reportArgumentType]
        assert (found.name, found.part, len(found), found.complete) == ("set", part, n, True)
        assert found.classes == ("0", "1", "2", "3"), "those of the training masks"
    train = load_segmentation(f"hf:{folder}", "train")
    assert len({str(file) for pair in (*train.files, *found.files) for file in pair}) == 10, "caches tell them apart"
    image, labels = found[1]
    assert torch.equal(image, torch.from_numpy(np.array(picture(1))).permute(2, 0, 1))
    assert torch.equal(labels, torch.from_numpy(np.resize(np.array([0, 1, 255], np.uint8), (6, 8))))
    assert len(found.checksum()) == 64
    assert load_segmentation(Path(f"hf:{folder}"), "train", size=4).subset((2,))[0][1].shape == (4, 4)


def test_the_checksum_does_not_depend_on_the_packing(tmp_path: Path) -> None:
    made = [make(tmp_path / name, train=masked(3)) for make, name in ((parquet, "a"), (on_disk, "b"))]
    one, other = (load_segmentation(f"hf:{folder}", "train").checksum() for folder in made)
    assert one == other
    changed = load_segmentation(f"hf:{on_disk(tmp_path / 'c', train=masked(3, top=2))}", "train").checksum()
    assert changed != one


@pytest.mark.parametrize(
    ("options", "names", "wanted"),
    [
        ("?classes=5", None, {0, 1, 2, 3, 255}),
        ("?reduce_labels=1", None, {0, 1, 2, 255}),
        ("?void=3", None, {0, 1, 2, 255}),
        ("", ["sky", "road", "tree", "car"], {0, 1, 2, 3, 255}),
        ("?reduce_labels=1", ["road", "tree", "car"], {0, 1, 2, 255}),
    ],
)
def test_classes_and_conventions(options: str, names: list[str] | None, wanted: set[int], tmp_path: Path) -> None:
    folder = parquet(tmp_path / "s", train=masked(2), test=masked(1))
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    found = load_segmentation(f"hf:{folder}{options}", "test")
    number = int(options[-1]) if "classes" in options else len(wanted) - 1
    assert found.classes == tuple(names or map(str, range(number)))
    assert set(found[0][1].unique().tolist()) == wanted
    assert (found.void, found.reduce_labels) == (3 if "void" in options else 255, "reduce" in options)


def test_columns_and_splits_by_name(tmp_path: Path) -> None:
    split = masked(2).rename_columns({"image": "mask_of_nothing", "annotation": "b"})
    source = f"hf:{on_disk(tmp_path / 's', left=split)}?val=left&train=left"
    found = load_segmentation(f"{source}&image=mask_of_nothing&mask=b", "val")
    assert (len(found), len(found.classes)) == (2, 4)
    with pytest.raises(FileFormatError, match="one byte a pixel: mask_of_nothing"):
        load_segmentation(f"{source}&mask=mask_of_nothing&classes=4", "val")[0]


def masks(text: str = "", names: Any = None, split: Any = None) -> Callable[[Path], str]:
    def make(p: Path) -> str:
        folder = on_disk(p / "s", train=masked(2) if split is None else split)
        if names is not None:
            (folder / "id2label.json").write_text(names if isinstance(names, str) else json.dumps(names))
        return f"hf:{folder}{text}"

    return make


COLOURED = datasets.Dataset.from_dict(
    {"image": [picture(0)], "mask": [picture(1)]},
    features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
)
NO_MASK = datasets.Dataset.from_dict({"image": [picture(0)], "mask": [None]}, features=COLOURED.features)


@pytest.mark.parametrize(
    ("make", "part", "error", "words"),
    [
        (masks(), "test", ArgumentError, r"a split test or testing.*got: train.*\?test="),
        (masks("?label=x"), "train", ArgumentError, "options out of.*'label'"),
        (masks("?classes=many"), "train", ArgumentError, "classes from 0 to 255.*'many'"),
        (masks("?reduce_labels=2"), "train", ArgumentError, "reduce_labels from 0 to 1"),
        (masks("?void=-1"), "train", ArgumentError, "void from 0 to 255"),
        (masks("?mask=msak"), "train", ArgumentError, "a column of"),
        (masks(split=labelled(2)), "train", FileFormatError, r"one column of masks.*\?mask="),
        (masks(split=masked(2, mask="truth")), "train", FileFormatError, r"one column of masks.*\?mask="),
        (masks("?classes=3"), "train", FileFormatError, r"classes 0..2.*got: 3.*\?reduce_labels=1"),
        (masks(names={"0": "a", "2": "b"}), "train", FileFormatError, r"classes 0, 1, .*\?classes="),
        (masks(names={"0": 1}), "train", FileFormatError, "classes 0, 1, "),
        (masks(names={"sky": "0"}), "train", FileFormatError, "id2label.json"),
        (masks(names="[1"), "train", FileFormatError, "id2label.json"),
        (masks(names="[1]"), "train", FileFormatError, "id2label.json"),
        (masks("?classes=3", split=COLOURED), "train", FileFormatError, "one byte a pixel: mask of row 0"),
        (masks("?classes=3", split=NO_MASK), "train", FileFormatError, "an image as mask of row 0"),
    ],
)
def test_masks_refused(
    make: Callable[[Path], str], part: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as told:
        load_segmentation(make(tmp_path), part)[0]
    assert re.search(words, str(told.value), re.DOTALL), told.value


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ed.EquidialError, match=r"equidial\[data\]"):
        load_images(f"hf:{tmp_path}")
