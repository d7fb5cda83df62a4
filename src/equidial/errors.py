"""Errors and warnings of the library, and the wording that they share.

Every message says what was expected, what was got and what to do. Each class also derives from the builtin
that a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EquidialError(Exception):
    """Root of every error that the library raises on purpose."""


class ArgumentError(EquidialError, ValueError):
    """An argument has a value that has no meaning here."""


class GroupActionError(EquidialError, ValueError):
    """A group cannot act on the space asked for."""


class TargetError(EquidialError, ValueError):
    """A tensor of a model cannot be constrained as asked."""


class NoMatchingTargetError(TargetError):
    """A target pattern matches no tensor of the model."""


class BudgetError(EquidialError, ValueError):
    """No setting of the dial reaches the bound asked for; :attr:`smallest` is the smallest that one does."""

    def __init__(self, message: str, smallest: float | None = None):
        super().__init__(message)
        self.smallest = smallest


class ToleranceError(EquidialError, ArithmeticError):
    """A numerical method did not reach the tolerance asked for."""


class StateError(EquidialError, RuntimeError):
    """A verb is called at the wrong moment of a model's life."""


class CertificateError(EquidialError, ValueError):
    """A certificate does not stand for what it is presented with."""


class FileFormatError(EquidialError, ValueError):
    """A saved folder is not what this version, or this base model, can use."""


class HubError(EquidialError, OSError):
    """The hub could not be reached, or refused."""


class SweepError(EquidialError, RuntimeError):
    """A sweep cannot be joined, or cannot go on."""


class StorageError(EquidialError, OSError):
    """The storage of a sweep cannot be reached, read or written."""


class EquidialWarning(UserWarning):
    """Something that the caller should know and that does not stop the work."""


def explain(expected: str, got: object, todo: str) -> str:
    """One message in the house pattern: what was expected, what was got, what to do."""
    return f"expected {expected}\n  got: {got}\n  do: {todo}"


def nearest_names(name: str, names: Iterable[str], n: int = 3) -> str:
    """The names closest to ``name``, for a message; all of them when none is close."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.4)
    return ", ".join(repr(c) for c in (close or names[:8])) or "none"
