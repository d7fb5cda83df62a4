"""Result objects as files: plain dataclasses that turn into JSON and back, and refuse what they do not know."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from equidial.errors import FileFormatError, explain


def to_json(value: Any) -> Any:
    """Plain data for JSON: tuples become lists, and NaN, which JSON lacks, ``None``."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


Kind = TypeVar("Kind", bound="Document")


class Document(ABC):
    """A result with a JSON form. ``KIND`` names it in the file, ``FORMAT_VERSION`` changes with its fields."""

    KIND: ClassVar[str]
    FORMAT_VERSION: ClassVar[int] = 1

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """The content; :meth:`to_dict` makes it plain."""

    @classmethod
    @abstractmethod
    def _from_fields(cls: type[Kind], data: dict[str, Any]) -> Kind:
        """The inverse of :meth:`_fields`; ``KeyError``, ``TypeError`` or ``ValueError`` for other content."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; NaN is ``None``."""
        return to_json({"document": self.KIND, "format_version": self.FORMAT_VERSION, **self._fields()})

    @classmethod
    def from_dict(cls: type[Kind], data: dict[str, Any]) -> Kind:
        """The inverse of :meth:`to_dict`; raises ``FileFormatError`` for another kind, format or content."""
        found = (data.get("document"), data.get("format_version")) if isinstance(data, dict) else (None, None)
        if found != (cls.KIND, cls.FORMAT_VERSION):
            raise FileFormatError(
                explain(
                    f"a {cls.KIND} of format {cls.FORMAT_VERSION}",
                    f"{found[0]!r} of format {found[1]!r}",
                    "use the version of equidial that wrote it",
                )
            )
        try:
            return cls._from_fields(data)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                explain(f"the content of a {cls.KIND}", f"{type(error).__name__}: {error}", "make it again")
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls: type[Kind], path: str | os.PathLike[str]) -> Kind:
        """Read what :meth:`save` wrote; raises ``FileFormatError``."""
        try:
            data = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(
                explain(f"JSON in {path}", str(error), "copy the file again: it is damaged")
            ) from error
        return cls.from_dict(data)
