"""What a sweep varies: ranges and choices, read from text and held against the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from equidial.errors import ArgumentError, explain, nearest_names

Plain = Any
RESERVED = ("output", "seeds")
"""Fields that the sweep sets itself."""

_FORM = "NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=LOW:HIGH:STEP or NAME=A,B,C"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; evenly in the logarithm, or on a grid of ``step``."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        tail = ":log" if self.log else "" if self.step is None else f":{self.step:.12g}"
        return f"{self.low:.12g}:{self.high:.12g}{tail}"

    @property
    def ends(self) -> tuple[Any, Any]:
        """The least and the largest value."""
        return self.low, self.high

    def fault(self) -> str | None:
        """What is wrong with it, if anything."""
        if not (self.low < self.high < float("inf") and self.low > -float("inf")):
            return "its low end is not below its high end"
        if self.log and self.low <= 0:
            return "a logarithmic range starts above 0"
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            return "its step is not between 0 and its width"
        return None


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ",".join(f"{v:.12g}" if isinstance(v, float) else str(v) for v in self.values)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value."""
        return self.values[0], self.values[-1]

    def fault(self) -> str | None:
        """What is wrong with it, if anything."""
        if not self.values:
            return "it has no value"
        return "a value comes twice" if len(set(self.values)) < len(self.values) else None


Space = Mapping[str, Union[Range, Choice]]  # noqa: UP007 (an alias, read at run time by Python 3.10)


def read_space(texts: tuple[str, ...], made: type) -> dict[str, Range | Choice]:
    """``("softness=0:1", "learning_rate=1e-5:1e-3:log", "response=nearest,taper")`` as a space over fields of ``made``.

    Raises ``ArgumentError`` for a text of another form, a field that is not there, a value that its type does not
    take, a name that comes twice; :func:`check_space` asks the rest.
    """
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, kind, value = _split(text, made, space, _FORM)
        if ":" in value and kind in (int, float):
            space[name] = _range(text, value)
        else:
            optional = type(None) in get_args(get_type_hints(made)[name])
            parts = value.split(",")
            space[name] = Choice(tuple(None if optional and p == "none" else _value(text, p, kind) for p in parts))
    return space


def read_fixed(texts: tuple[str, ...], made: type) -> dict[str, Any]:
    """``("data=mnist.npz", "epochs=3")`` as values of fields; a tuple is written with commas. Raises as above."""
    fixed: dict[str, Any] = {}
    for text in texts:
        name, _, value = _split(text, made, fixed, "NAME=VALUE")
        hint = get_type_hints(made)[name]
        fixed[name] = _value(text, value, hint)
    return fixed


def check_space(space: Space, made: type) -> None:
    """Raise ``ArgumentError`` for an empty space, or one with a range or a choice that its field cannot take."""
    if not space:
        raise ArgumentError(explain("something to vary", "an empty space", f"e.g. --space {_FORM}"))
    for name, part in space.items():
        kind = field_kind(made, name)
        fault = part.fault()
        if fault is None and isinstance(part, Range):
            numbers = [part.low, part.high, *([] if part.step is None else [part.step])]
            if kind not in (int, float):
                fault = f"{name} is no number"
            elif kind is int and any(number != int(number) for number in numbers):
                fault = f"{name} is a whole number"
            elif kind is int and part.log and part.step is not None:
                fault = "it has a step and a logarithm"
        if fault is None and isinstance(part, Choice) and get_origin(kind) is Literal:
            wrong = [v for v in part.values if v not in get_args(kind)]
            fault = f"{wrong[0]!r} is none of {get_args(kind)}" if wrong else None
        if fault is not None:
            raise ArgumentError(explain(f"a range or a choice for {name}", f"{name}={part}: {fault}", f"write {_FORM}"))


def field_kind(made: type, name: str) -> Any:
    """The type of one value of a field: ``float`` for ``tuple[float, ...]``. Raises ``ArgumentError`` without one."""
    names = [f.name for f in dataclasses.fields(made) if f.name not in RESERVED]
    if name not in names:
        todo = f"closest: {nearest_names(name, names)}"
        raise ArgumentError(explain(f"a field of {made.__name__} that a sweep may set", repr(name), todo))
    hint = _bare(get_type_hints(made)[name])
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def build(made: type, values: Mapping[str, Any], seed: int, folder: Path) -> Any:
    """The dataclass with these values; one value of a tuple field becomes a tuple, ``output`` and ``seeds`` are set."""
    hints, arguments = get_type_hints(made), {}
    for name, value in values.items():
        whole = get_origin(_bare(hints[name])) is tuple
        arguments[name] = (value,) if whole and not isinstance(value, tuple | list) else value
        if whole and isinstance(value, list):
            arguments[name] = tuple(value)
        if _bare(hints[name]) is Path and isinstance(value, str):
            arguments[name] = Path(value)
    own = {"output": folder, "seeds": (seed,)}
    arguments |= {f.name: own[f.name] for f in dataclasses.fields(made) if f.name in own}
    missing = [
        f.name
        for f in dataclasses.fields(made)
        if f.name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        todo = f"--fixed {' '.join(f'{name}=...' for name in missing)}"
        raise ArgumentError(explain(f"values for {', '.join(missing)}", "none", todo))
    return made(**arguments)


def _split(text: str, made: type, taken: Mapping[str, Any], form: str) -> tuple[str, Any, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ArgumentError(explain(form, repr(text), "write it so, without blanks"))
    kind = field_kind(made, name)
    if name in taken:
        raise ArgumentError(explain("each name once", f"{name} twice", "leave one out"))
    return name, kind, value


def _range(text: str, value: str) -> Range:
    low, high, *rest = value.split(":")
    try:
        ends = float(low), float(high)
        if len(rest) > 1:
            raise ValueError(value)
        step = float(rest[0]) if rest and rest[0] != "log" else None
    except ValueError as error:
        raise ArgumentError(explain(_FORM, repr(text), "write numbers, e.g. softness=0:1")) from error
    return Range(*ends, log=rest == ["log"], step=step)


def _value(text: str, value: str, hint: Any) -> Any:
    optional, bare = type(None) in get_args(hint), _bare(hint)
    if optional and value == "none":
        return None
    if get_origin(bare) is tuple:
        return tuple(_value(text, part, get_args(bare)[0]) for part in value.split(","))
    if get_origin(bare) is Literal:
        if value not in get_args(bare):
            raise ArgumentError(explain(f"one of {get_args(bare)}", repr(text), "choose one of them"))
        return value
    if bare is bool:
        if value not in ("true", "false"):
            raise ArgumentError(explain("true or false", repr(text), "write one of them"))
        return value == "true"
    try:
        return bare(value) if bare in (int, float) else value
    except ValueError as error:
        raise ArgumentError(explain(f"a value of type {bare.__name__}", repr(text), "mend it")) from error


def _bare(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint
