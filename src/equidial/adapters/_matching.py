"""Matching of names, by the rules that PEFT users know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def matches(patterns: str | Sequence[str], name: str) -> bool:
    """A list matches whole names or dotted suffixes; a string is a regular expression for the whole name."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def pattern_for(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern that matches the end of ``name`` (a regular expression after a dot or the start)."""
    for pattern in patterns:
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return pattern
    return None


def unmatched(patterns: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """The patterns that match none of the names."""
    names = list(names)
    every = [patterns] if isinstance(patterns, str) else list(patterns)
    return [p for p in every if not any(matches(p if isinstance(patterns, str) else [p], n) for n in names)]
