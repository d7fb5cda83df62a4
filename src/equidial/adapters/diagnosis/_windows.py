"""The windows of convolutions and poolings as they are called, with the padding that was put on before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from equidial.adapters._geometry import Window, has_quarter_turns, reversed_axes
from equidial.adapters.diagnosis._group_layers import layer_of, window_of
from equidial.adapters.diagnosis._values import Event, Operation
from equidial.groups import Group

_SIGNATURES = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "max_pool2d_with_indices": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp_pool2d": ("input", "norm_type", "kernel_size", "stride", "ceil_mode"),
}


@dataclass(frozen=True)
class Called:
    """A window on a grid of ``size`` (rows, columns) before any padding; ``same``: the padding was not symmetric."""

    window: Window
    size: tuple[int, int]
    padded_by: str | None

    def broken_axis(self, group: Group) -> int | None:
        """The first axis along which a reversed input does not reverse the output, or ``None``."""
        return next((a for a in reversed_axes(group, 2) if not self.window.is_symmetric(self.size, (a,))), None)

    def turns(self, group: Group) -> bool:
        """Whether both axes are treated alike, where the group exchanges them."""
        return not has_quarter_turns(group) or (self.window.is_isotropic and self.size[0] == self.size[1])

    def arithmetic(self, axis: int) -> str:
        """Why the axis breaks, in numbers (theory 6)."""
        n, k, s = self.size[axis], self.window.kernel[axis], self.window.stride[axis]
        before, after, d = self.window.before[axis], self.window.after[axis], self.window.dilation[axis]
        reach = n + before + after - d * (k - 1) - 1
        pads = f" + {before} + {after}" if before or after else ""
        wide = f" - {d} x {k - 1} - 1" if d > 1 else f" - {k}"
        return (
            f"grid {n}, window {k}, stride {s}: ({n}{pads}{wide}) mod {s} = {reach % s}, "
            f"but padding after - before = {after - before}"
        )

    def symmetric_padding(self, axis: int) -> int | None:
        """The same padding on both sides that fits the stride and gives as many windows, else one that fits at all."""
        n, k, s, d = (
            self.size[axis],
            *(v[axis] for v in (self.window.kernel, self.window.stride, self.window.dilation)),
        )
        reach = n - d * (k - 1) - 1
        now = (reach + self.window.before[axis] + self.window.after[axis]) // s
        fitting = [p for p in range(k) if reach + 2 * p >= 0 and (reach + 2 * p) % s == 0]
        return next((p for p in fitting if (reach + 2 * p) // s == now), fitting[0] if fitting else None)

    def condition(self, axis: int) -> tuple[int, int]:
        """``(r, s)``: the window fits grids of size ``r`` modulo ``s``, its padding as it is."""
        s, d, k = (v[axis] for v in (self.window.stride, self.window.dilation, self.window.kernel))
        return (d * (k - 1) + 1 - 2 * self.window.before[axis]) % s, s


def called_window(operation: Operation) -> Called | None:
    """The window of a convolution or pooling; ``None`` for other operations."""
    layer = layer_of(operation)
    if layer is not None:
        own = window_of(layer)
        return None if own is None or len(own.kernel) != 2 else _with_padding(operation, operation.args[0], own)
    names = _SIGNATURES.get(operation.name)
    if names is None:
        return None
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    x = given["input"]
    kernel = tuple(given["weight"].shape[-2:]) if "weight" in given else _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or (1 if "weight" in given else kernel))
    dilation = _pair(given.get("dilation", 1))
    own = given.get("padding", 0)
    if own == "same":
        total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = _pair(0 if own == "valid" else own)
    window = Window(kernel, stride, before, after, dilation, bool(given.get("ceil_mode", False)))
    return _with_padding(operation, x, window)


def _with_padding(operation: Operation, x: torch.Tensor, window: Window) -> Called:
    """The window on the grid before what was padded right before it."""
    before, after = window.before, window.after
    size, by = tuple(x.shape[-2:]), "padding='same'" if before != after else None
    for event in operation.events:
        if event.kind == "pad" and _grown(event) == size:
            left, right, top, bottom = event.facts["pads"][:4]
            before, after = (before[0] + top, before[1] + left), (after[0] + bottom, after[1] + right)
            size, by = event.facts["shape"][-2:], f"a padding of {tuple(event.facts['pads'][:4])} before it"
    return Called(replace(window, before=before, after=after), (size[0], size[1]), by)


def _grown(event: Event) -> tuple[int, int] | None:
    """Rows and columns after a padding, if it pads rows and columns alone."""
    pads, shape = event.facts["pads"], event.facts["shape"]
    if len(pads) < 4 or any(pads[4:]) or len(shape) not in (4, 5):
        return None
    return shape[-2] + pads[2] + pads[3], shape[-1] + pads[0] + pads[1]


def _pair(value: int | Sequence[Any]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))
