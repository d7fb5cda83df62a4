"""Rules for parameters: which tensors a pattern names, and what they carry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal, get_args

from equidial.adapters._matching import pattern_for
from equidial.errors import ArgumentError, FileFormatError, explain

Role = Literal["kernel", "table", "offsets", "leave"]


@dataclass(frozen=True)
class ParameterRule:
    """What the parameters of one name carry; checks itself when constructed.

    Attributes:
        pattern: regular expression for the end of a parameter's full name, after a dot or the start, e.g.
            ``r"embeddings\\.position_embeddings"``, ``r"patch\\.weight"``.
        role: ``"kernel"``, ``w^T rho(g) = w^T``: what meets the pixels or tokens of a window. ``"table"``,
            ``rho(g) w = w``: what is added to, or multiplies, the places of a grid. ``"offsets"``: a table of relative
            positions, on the odd grid of offsets ``(2h-1, 2w-1)``. ``"leave"``: untouched.
        grid: ``(h, w)`` of the window, the table or the offsets. ``None``: the sizes of the axes; for the one axis of
            a table what the model's configuration tells (``image_size // patch_size``), else a square. More rows than
            places: the first ones (class, distillation, registers) are no places and stay as they are.
        view: shape in which the tensor is seen, e.g. ``(-1, 3, 8, 8)`` for a linear patch embedding ``[out, 192]``
            with channels first, ``(-1, 8, 8, 3)`` with channels last. At most one ``-1``; ``0`` keeps the tensor's
            own size of that axis. ``None``: the tensor's own shape.
        axes: axes of the view that hold the grid, rows first: ``(2, 1)`` where columns come before rows. ``None``: for
            a kernel the last ones of the view, or those of a convolution after ``[out, in]``; for a table with a view
            those before the last (``(.., h, w, channels)``), without one the axis of the rows in
            ``[1, rows, channels]`` and ``[rows, channels]``.
        reason: why it is so; shown by :func:`equidial.describe_targets`.

    Raises ``ArgumentError`` for a pattern that is no regular expression, an unknown role, sizes that are no whole
    numbers, axes outside the view, an even grid of offsets, places for a tensor that is left.
    """

    pattern: str
    role: Role
    _: KW_ONLY
    grid: Sequence[int] | None = None
    view: Sequence[int] | None = None
    axes: Sequence[int] | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        for name in ("grid", "view", "axes"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _whole(name, value))
        self._check_words()
        self._check_places()

    def _check_words(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ArgumentError(explain("a pattern, a text", repr(self.pattern), r"e.g. r'patch\.weight'"))
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ArgumentError(
                explain(f"a regular expression in {self.pattern!r}", str(error), "escape dots and brackets")
            ) from error
        if self.role not in get_args(Role):
            raise ArgumentError(
                explain(f"a role out of {get_args(Role)}", repr(self.role), "say what the tensor is to the grid")
            )
        if not isinstance(self.reason, str):
            raise ArgumentError(explain("a reason in words", repr(self.reason), "give a text"))

    def _check_places(self) -> None:
        grid, view, axes = self.grid, self.view, self.axes
        if self.role == "leave" and (grid, view, axes) != (None, None, None):
            raise self._wrong("no grid, view or axes for a tensor that is left alone", "leave them out")
        if grid is not None and (not 1 <= len(grid) <= 3 or min(grid) < 1):
            raise self._wrong("a grid of one to three sizes >= 1", "e.g. grid=(14, 14)")
        if self.role == "offsets" and grid is not None and any(n % 2 == 0 for n in grid):
            raise self._wrong("an odd grid of offsets", "a window of (h, w) has the offsets (2h-1, 2w-1)")
        if view is not None and (not view or min(view) < -1 or view.count(-1) > 1):
            raise self._wrong("a view of sizes >= 1, 0 for the tensor's own, at most one -1", "e.g. view=(-1, 3, 8, 8)")
        if axes is not None:
            inside = min(axes, default=-1) >= 0 and (view is None or max(axes) < len(view))
            if not inside or len(set(axes)) != len(axes):
                raise self._wrong("different axes, 0 to the last one of the view", "e.g. axes=(1, 2)")
            if grid is not None and len(axes) not in (1, len(grid)):
                raise self._wrong("one axis per size of the grid, or one for all of it", "correct axes or grid")

    def _wrong(self, expected: str, todo: str) -> ArgumentError:
        got = f"role={self.role!r}, grid={self.grid}, view={self.view}, axes={self.axes}"
        return ArgumentError(f"rule {self.pattern!r}: " + explain(expected, got, todo))

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the end of this full name."""
        return pattern_for([self.pattern], name) is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; what is not given is left out."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None and v != ""}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParameterRule:
        """The inverse of :meth:`to_dict`; raises ``FileFormatError`` for a missing key or one of unknown meaning."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or not {"pattern", "role"} <= set(data) <= known:
            raise FileFormatError(
                explain(
                    f"a rule with pattern and role, and keys out of {sorted(known)}",
                    repr(data),
                    "use the version that wrote the file: ignoring a key would change the subspace",
                )
            )
        return cls(**data)


def _whole(name: str, value: object) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if sizes is None or any(isinstance(n, bool) or not isinstance(n, int) for n in sizes):
        raise ArgumentError(explain(f"whole numbers for {name}", repr(value), f"e.g. {name}=(8, 8)"))
    return sizes
