"""Arguments that the layers take over from torch.nn, read and checked once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional

from equidial.errors import ArgumentError, EquidialWarning, explain, nearest_names
from equidial.nn._contraction import Geometry

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]
Size = int | Sequence[int]


@dataclass(frozen=True)
class Windows:
    """Kernel, stride, dilation and padding of each image axis.

    ``before`` and ``after`` of each axis; ``"same"`` pads as torch does, the odd pixel at the end.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: PaddingMode

    @property
    def is_lopsided(self) -> bool:
        """Whether the padding differs between the two ends of an axis."""
        return self.before != self.after

    @property
    def is_square(self) -> bool:
        """Whether all axes are treated alike."""
        return all(len(set(values)) == 1 for values in (self.kernel, self.stride, self.dilation, self.before))

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """The last axes padded. Raises ``ArgumentError`` where torch cannot pad that far."""
        amounts = [n for pair in zip(reversed(self.before), reversed(self.after), strict=True) for n in pair]
        if not any(amounts):
            return x
        if self.mode == "zeros":
            return functional.pad(x, amounts)
        limit = 0 if self.mode == "circular" else 1 if self.mode == "reflect" else None
        sizes = x.shape[-len(self.kernel) :]
        if limit is not None and any(
            max(b, a) > n - limit for b, a, n in zip(self.before, self.after, sizes, strict=True)
        ):
            raise ArgumentError(
                explain(
                    f"an input that {self.mode} padding {self.before}/{self.after} can be read from",
                    f"size {tuple(sizes)}",
                    "use larger images, a smaller padding, or padding_mode='zeros'",
                )
            )
        lead = x.shape[: -len(self.kernel)]
        flat = functional.pad(x.reshape(1, -1, *sizes), amounts, mode=self.mode)
        return flat.view(*lead, *flat.shape[2:])

    def geometry(self) -> Geometry:
        """As an image: one axis is treated as one row."""
        if len(self.kernel) == 1:
            return Geometry((1, self.kernel[0]), (1, self.stride[0]), (1, self.dilation[0]))
        return Geometry(_pair(self.kernel), _pair(self.stride), _pair(self.dilation))

    def check_input(self, sizes: Sequence[int]) -> None:
        """Raises ``ArgumentError`` for an image smaller than one window."""
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        padded = [n + b + a for n, b, a in zip(sizes, self.before, self.after, strict=True)]
        if any(p < r for p, r in zip(padded, reach, strict=True)):
            raise ArgumentError(
                explain(
                    f"an input of at least {tuple(reach)} pixels with its padding",
                    f"{tuple(padded)}",
                    "use larger images, a smaller kernel or more padding",
                )
            )


def read_windows(
    axes: int, kernel_size: Size, stride: Size, padding: Size | str, dilation: Size, padding_mode: str
) -> Windows:
    """Check and spell out what torch.nn accepts. Raises ``ArgumentError``."""
    kernel = spelled("kernel_size", kernel_size, axes, 1)
    steps, spread = spelled("stride", stride, axes, 1), spelled("dilation", dilation, axes, 1)
    if padding_mode not in get_args(PaddingMode):
        known = get_args(PaddingMode)
        raise ArgumentError(
            explain(f"padding_mode out of {known}", repr(padding_mode), f"try {nearest_names(padding_mode, known)}")
        )
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and set(steps) != {1}):
            raise ArgumentError(
                explain("padding 'valid', or 'same' with stride 1", f"{padding!r} with stride {steps}", "give a number")
            )
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, spread, strict=True)]
        before = tuple(n // 2 for n in total)
        after = tuple(n - b for n, b in zip(total, before, strict=True))
    else:
        before = after = spelled("padding", padding, axes, 0)
    return Windows(kernel, steps, spread, before, after, padding_mode)  # pyright: ignore[reportArgumentType]


def spelled(name: str, value: Size, axes: int, least: int) -> tuple[int, ...]:
    """One integer for each axis. Raises ``ArgumentError``."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in values):
        raise ArgumentError(explain(f"{name} >= {least}, one integer or {axes} of them", repr(value), "e.g. 3"))
    return values


def check_channels(into: int, out: int, groups: int) -> None:
    """Raises ``ArgumentError`` for numbers of channels that torch would refuse too."""
    for name, value in (("in_channels", into), ("out_channels", out), ("groups", groups)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(explain(f"{name} >= 1, an integer", repr(value), "e.g. 32"))
    if into % groups or out % groups:
        raise ArgumentError(
            explain(f"channels that {groups} groups divide", f"{into} and {out}", "choose groups that divide both")
        )


def warn_of_broken_turns(layer: str, windows: Windows) -> None:
    """One warning for windows or padding that no quarter turn keeps."""
    found = []
    if windows.is_lopsided:
        found.append(f"padding {windows.before} before and {windows.after} after the image")
    if not windows.is_square:
        found.append(f"a window of {windows.kernel} with stride {windows.stride} and padding {windows.before}")
    if found:
        message = f"{layer}: {' and '.join(found)}: turns of the image are not kept, whatever the kernel"
        warnings.warn(message, EquidialWarning, stacklevel=4)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    a, b = values
    return a, b
