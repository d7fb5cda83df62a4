"""Trainers of other libraries; each of them is imported only when its name is asked for.

``DialCallback``: for the Trainer of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equidial.integrations._transformers import DialCallback

__all__ = ["DialCallback"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from equidial.integrations import _transformers

        return getattr(_transformers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
