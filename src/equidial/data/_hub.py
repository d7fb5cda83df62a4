"""Data sets of the Hugging Face hub, by name or from a folder in its layouts: splits, columns by type, encoded cells.

``datasets`` is imported only where such a set is read. Its code is never run: ``datasets`` 4 and later cannot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from equidial.errors import ArgumentError, FileFormatError, HubError, explain, nearest_names

_PREFIX = "hf:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_TRAIN = ("train", "training")
VAL_NAMES = ("validation", "val", "valid", "dev")
TEST_NAMES = ("test", "testing")
_SPLITS = {"train": _TRAIN, "val": VAL_NAMES, "test": TEST_NAMES}


def is_hub(source: str) -> bool:
    """Whether ``source`` is ``hf:NAME_OR_FOLDER``."""
    return source.startswith(_PREFIX)


@dataclass(frozen=True)
class HubSource:
    """``hf:name?key=value&key=value``."""

    text: str
    name: str
    options: dict[str, str]

    @property
    def folder(self) -> Path | None:
        """The folder that is meant; ``None`` for a name on the hub."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def title(self) -> str:
        """What the data set is called: the name on the hub, or that of the folder."""
        return self.name if self.folder is None else self.folder.resolve().name

    def or_else(self, option: str, todo: str) -> str:
        """What to do: name the option, or something else."""
        return f"add ?{option}=... to {self.text.partition('?')[0]}; {todo}"


def parsed(text: str, known: Sequence[str]) -> HubSource:
    """Its parts. Raises ``ArgumentError`` for options that are not ``known`` and for names that cannot be one."""
    name, _, query = text.removeprefix(_PREFIX).partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if query else {}
    except ValueError:
        options = {query: ""}
    other = [key for key, value in options.items() if key not in known or not value]
    if other or not name:
        got = f"{other[0]!r} in {text!r}" if other else repr(text)
        raise ArgumentError(explain(f"hf:NAME_OR_FOLDER?option=value&..., options out of {known}", got, "correct it"))
    source = HubSource(text, name, options)
    if source.folder is None and not _NAME.fullmatch(name):
        raise ArgumentError(
            explain("hf:FOLDER that exists, or hf:USER/NAME of the hub", repr(text), "check the path or the name")
        )
    if source.folder is not None and {"config", "revision"} & set(options) and _saved(source.folder):
        raise ArgumentError(
            explain("no config and revision for a folder of save_to_disk", repr(text), "leave them out")
        )
    return source


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            explain("the package datasets, for hf: data", "not installed", "pip install 'equidial[data]'")
        ) from error
    return datasets


def _saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_splits(source: HubSource) -> Mapping[str, Any]:
    """The splits by name. Raises as :func:`load_images`."""
    datasets = _library()
    folder = source.folder
    try:
        if folder is not None and _saved(folder):
            found = datasets.load_from_disk(str(folder))
        else:
            name = source.name if folder is None else str(folder)
            found = datasets.load_dataset(name, source.options.get("config"), revision=source.options.get("revision"))
    except Exception as error:  # whatever the client, the readers and the network raise
        raise told(source, error) from error
    if isinstance(found, datasets.Dataset):
        return {str(found.split or "train"): found}
    return dict(found)


def told(source: HubSource, error: Exception) -> Exception:
    """The error of the library for one of ``datasets``."""
    text = (str(error).strip().splitlines() or [""])[0]
    got = f"{type(error).__name__}: {text}"
    lower = str(error).lower()
    if "config name is missing" in lower or "builderconfig" in lower:
        return ArgumentError(
            explain(f"a config of {source.name}", str(error), source.or_else("config", "one of those"))
        )
    if source.folder is not None:
        wanted = f"parquet files, class folders or a save_to_disk folder in {source.folder}"
        return FileFormatError(explain(wanted, got, "fetch it again, or name the folder that holds the files"))
    page = f"https://huggingface.co/datasets/{source.name}"
    fetch = f"hf download --repo-type dataset {source.name} --local-dir FOLDER"
    todo = f"check the network and HF_HUB_OFFLINE; or elsewhere: {fetch}, and here hf:FOLDER ({page})"
    if "script" in lower:
        todo = f"its code is not run; add ?revision=refs/convert/parquet, or take a copy in parquet ({page})"
    elif "gated" in lower or "authenticat" in lower:
        todo = f"ask for access on {page}, then log in (hf auth login, or HF_TOKEN)"
    elif "doesn't exist" in lower or "not found" in lower:
        todo = f"check the name on {page}; where it is private or gated, log in (hf auth login, or HF_TOKEN)"
    return HubError(explain(f"the data set {source.name!r} of the hub, or a folder of this name", got, todo))


def split_name(source: HubSource, splits: Mapping[str, Any], part: str) -> str | None:
    """The name of the split for ``train``, ``val`` or ``test``."""
    wanted = source.options.get(part)
    if wanted is None:
        return next((name for name in _SPLITS[part] if name in splits), None)
    if wanted not in splits:
        got = f"{wanted!r}; close: {nearest_names(wanted, splits)}"
        raise ArgumentError(explain(f"a split of {source.name}: {', '.join(splits)}", got, "name one of them"))
    return wanted


def no_split(source: HubSource, splits: Mapping[str, Any], part: str) -> ArgumentError:
    """What is said where a data set has no such split."""
    todo = source.or_else(part, "or hold images out (train_test_split, save_to_disk) and pass hf:FOLDER")
    wanted = " or ".join(_SPLITS[part])
    return ArgumentError(explain(f"a split {wanted} of {source.name}", f"{', '.join(splits)}", todo))


def column_name(source: HubSource, option: str, columns: Sequence[str], candidates: Sequence[str], what: str) -> str:
    """The column named by an option, else the only candidate."""
    wanted = source.options.get(option)
    if wanted is not None and wanted not in columns:
        got = f"{wanted!r}; close: {nearest_names(wanted, columns)}"
        raise ArgumentError(explain(f"a column of {source.name}: {', '.join(columns)}", got, "name one of them"))
    if wanted is None and len(candidates) != 1:
        got = f"{', '.join(candidates) or 'none'} among {', '.join(columns)}"
        todo = source.or_else(option, "datasets.Dataset.cast_column gives a column its type")
        raise FileFormatError(explain(f"one column of {what} in {source.name}", got, todo))
    return wanted or candidates[0]


@dataclass(frozen=True)
class Cell:
    """An encoded image of a table; it has the words of a path that its readers use."""

    table: Any
    column: str
    row: int
    where: str  # the data set and the split: no two cells have the same string

    def __str__(self) -> str:
        return f"{self.column} of row {self.row} of {self.where}"

    @property
    def name(self) -> str:
        """That of the file it was, else the number of the row."""
        return PurePath(self._held().get("path") or f"{self.row:08d}.png").name

    def exists(self) -> bool:
        """Tables are whole."""
        return True

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its bytes. Raises ``FileFormatError`` where there are none."""
        held = self._held()
        if held.get("bytes") is not None:
            return io.BytesIO(held["bytes"])
        path = Path(held.get("path") or "")
        if path.is_file():
            return path.open("rb")
        got = f"a path that is not here: {path}" if held.get("path") else "none"
        raise FileFormatError(explain(f"an image as {self}", got, "take a split where every row has one"))

    def _held(self) -> Mapping[str, Any]:
        return self.table[self.row][self.column] or {}


def cells(source: HubSource, splits: Mapping[str, Any], name: str, column: str) -> list[Cell]:
    """The encoded images of a column. Raises ``FileFormatError`` for a column that is not there or has none."""
    split, where = splits[name], f"{source.text.partition('?')[0]} {name}"
    try:
        table = split.select_columns([column]).cast_column(column, _library().Image(decode=False))
    except Exception as error:  # of datasets or pyarrow, by the type that is there
        wanted = f"images in the column {column}"
        raise FileFormatError(explain(wanted, f"{split.features.get(column)}", "name another column")) from error
    return [Cell(table, column, row, where) for row in range(len(table))]


def of_type(features: Mapping[str, Any], kind: str) -> list[str]:
    """The columns of this type of ``datasets``."""
    cls = getattr(_library(), kind)
    return [name for name, feature in features.items() if isinstance(feature, cls)]
