"""From a rule and a tensor to a layout: where in the tensor the grid lies, and which grid it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from equidial.adapters._layouts import Kind, Layout
from equidial.adapters._parameter_rules import ParameterRule

_MAX_EXTRA_TOKENS = 8
_EXTRA_OFFSETS = (0, 3)  # BEiT: class to token, token to class, class to class, after the offsets

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A tensor that carries a grid: how its weights lie, and on which grid."""

    layout: Layout
    grid: Grid


@dataclass(frozen=True)
class Surroundings:
    """What the modules around a tensor tell: the grid of tokens, the window of attention; ``None``: nothing."""

    tokens: tuple[int, int] | None
    window: tuple[int, int] | None


def surroundings(model: nn.Module, module_name: str) -> Surroundings:
    """Ask the module that owns a tensor, then those around it."""
    parts = module_name.split(".") if module_name else []
    owners = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts), -1, -1)]
    tokens = next((grid for owner in owners if (grid := _tokens(owner)) is not None), None)
    return Surroundings(tokens, _pair(getattr(owners[0], "window_size", None)))


def place(rule: ParameterRule, shape: torch.Size, around: Surroundings) -> Place | str:
    """Where the rule's grid lies in a tensor of this shape, or in words why it does not lie there."""
    if rule.role == "kernel":
        return _kernel(rule, shape)
    if rule.role == "offsets":
        return _offsets(rule, shape, around)
    several = rule.axes is not None and len(rule.axes) > 1
    return _viewed(rule, shape, "table") if rule.view is not None or several else _rows(rule, shape, around.tokens)


def _kernel(rule: ParameterRule, shape: torch.Size) -> Place | str:
    if rule.view is not None or rule.axes is not None:
        return _viewed(rule, shape, "convolution")
    window = tuple(shape[2:])
    if not window:
        return f"a tensor {tuple(shape)} without a window after [out, in]; a view says where it is"
    if rule.grid is not None and tuple(rule.grid) != window:
        return f"a window {window}, not {tuple(rule.grid)}"
    return Place(Layout("convolution"), window)


def _viewed(rule: ParameterRule, shape: torch.Size, kind: Kind) -> Place | str:
    view = _sizes(rule.view, shape)
    if view is None:
        return f"a tensor {tuple(shape)}, which has no view {rule.view}"
    axes = _axes(rule, len(view), kind)
    if max(axes, default=len(view)) >= len(view) or min(axes) < 0:
        return f"a view {view} without the axes {axes}"
    sizes = tuple(view[axis] for axis in axes)
    grid = sizes if rule.grid is None else tuple(rule.grid)
    if grid != sizes and (len(axes) > 1 or math.prod(grid) != math.prod(sizes)):
        return f"sizes {sizes} along the axes {axes} of {view}, not the grid {grid}"
    return Place(Layout(kind, view=view, axes=axes), grid)


def _sizes(view: Sequence[int] | None, shape: torch.Size) -> tuple[int, ...] | None:
    """The view with its open sizes filled in; ``None`` where the tensor has no such view."""
    if view is None:
        return tuple(shape)
    if any(n == 0 and i >= len(shape) for i, n in enumerate(view)):
        return None
    sizes = [shape[i] if n == 0 else n for i, n in enumerate(view)]
    known = math.prod(n for n in sizes if n != -1)
    if known == 0 or (-1 in sizes and shape.numel() % known) or (-1 not in sizes and known != shape.numel()):
        return None
    return tuple(shape.numel() // known if n == -1 else n for n in sizes)


def _axes(rule: ParameterRule, length: int, kind: Kind) -> tuple[int, ...]:
    if rule.axes is not None:
        return tuple(rule.axes)
    count = 2 if rule.grid is None else len(rule.grid)
    last = length if kind == "convolution" or length == count else length - 1
    return tuple(range(last - count, last))


def _rows(rule: ParameterRule, shape: torch.Size, tokens: tuple[int, int] | None) -> Place | str:
    """The grid in the rows of ``[1, extra + h*w, D]`` or ``[extra + h*w, D]``: the given one, else a square."""
    if rule.axes is not None:
        axis = rule.axes[0]
    elif len(shape) in (1, 2) or (len(shape) == 3 and shape[0] == 1):
        axis = max(len(shape) - 2, 0)
    else:
        return f"a tensor {tuple(shape)}, whose rows are not told; axes=(...) names them"
    if axis >= len(shape):
        return f"a tensor {tuple(shape)} without axis {axis}"
    rows = shape[axis]
    grid = tokens if rule.grid is None else tuple(rule.grid)
    if rule.grid is not None and math.prod(rule.grid) > rows:
        return f"{rows} rows, fewer than the places of {grid}"
    if rule.grid is None and (grid is None or not 0 <= rows - math.prod(grid) <= _MAX_EXTRA_TOKENS):
        grid = _square(rows)
    if grid is None:
        return f"{rows} rows, which are no square and no image_size // patch_size; grid=(h, w) tells the grid"
    size = math.prod(grid)
    return Place(Layout("table", axis, rows - size, size), grid)


def _square(rows: int) -> tuple[int, int] | None:
    for extra in range(_MAX_EXTRA_TOKENS + 1):
        side = math.isqrt(max(rows - extra, 0))
        if side >= 2 and side * side == rows - extra:
            return side, side
    return None


def _offsets(rule: ParameterRule, shape: torch.Size, around: Surroundings) -> Place | str:
    """The odd grid in the rows of ``[(2h-1)(2w-1) + extra, heads]``, or along the axes of a view."""
    if rule.view is not None or (rule.axes is not None and len(rule.axes) > 1):
        found = _viewed(rule, shape, "table")
        even = isinstance(found, Place) and any(n % 2 == 0 for n in found.grid)
        return f"an even grid {found.grid} of offsets" if isinstance(found, Place) and even else found
    axis = 0 if rule.axes is None else rule.axes[0]
    if axis >= len(shape):
        return f"a tensor {tuple(shape)} without axis {axis}"
    rows = shape[axis]
    window = None if around.window is None else tuple(2 * n - 1 for n in around.window)
    known = window if rule.grid is None else tuple(rule.grid)
    for extra in _EXTRA_OFFSETS:
        side = math.isqrt(max(rows - extra, 0))
        grid = (side, side) if known is None and side % 2 == 1 else known
        if grid is not None and math.prod(grid) == rows - extra:
            return Place(Layout("table", axis, 0, math.prod(grid)), grid)
    return f"{rows} rows, which are no odd square and no (2h-1)(2w-1) of a window; grid=(2h-1, 2w-1) tells it"


def _tokens(module: nn.Module) -> tuple[int, int] | None:
    """``image_size // patch_size`` of a configuration of transformers, or the ``grid_size`` of timm."""
    config = getattr(module, "config", None)
    image = _pair(getattr(config, "image_size", None))
    patch = _pair(getattr(config, "patch_size", None))
    if image is not None and patch is not None:
        return image[0] // patch[0], image[1] // patch[1]
    return _pair(getattr(getattr(module, "patch_embed", None), "grid_size", None))


def _pair(value: object) -> tuple[int, int] | None:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        return None
    return pair[0], pair[1]
