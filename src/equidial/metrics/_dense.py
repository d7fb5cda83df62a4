"""Errors of dense features, on grids ``[n, C, h, w]`` or as tokens ``[n, extra + h w, D]``: pure functions.

relative error  ||f(g x) - g f(x)|| / ||g f(x)||  over the places in the frame
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from equidial.errors import ArgumentError, explain
from equidial.metrics._classification import relative_error

_MOST_EXTRA = 5  # rows before the grid that are looked for: a class token and four registers


class TokenLayout(NamedTuple):
    """Rows before the grid (class and register tokens), and the sides of the grid, row-major."""

    extra: int
    height: int
    width: int


def masked_relative_error(reference: torch.Tensor, other: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """``||other - reference|| / ||reference||`` over the places ``inside`` (``[h, w]``) of ``[n, C, h, w]``, per image.

    0 where they are equal, infinite where only the reference is 0.
    """
    return relative_error(reference[..., inside], other[..., inside])


def token_layout(count: int, size: Sequence[int]) -> TokenLayout:
    """The layout of ``count`` tokens of an image of ``size`` ``(h, w)``: at most five rows, then a grid.

    The grid is square or has the aspect ratio of the image. Raises ``ArgumentError`` unless exactly one layout fits.
    """
    h, w = size
    fits = {
        TokenLayout(count - a * b, a, b)
        for a in range(1, count + 1)
        for b in {a, a * w // h}
        if b > 0 and (a == b or a * w == b * h) and 0 <= count - a * b <= _MOST_EXTRA
    }
    if len(fits) == 1:
        return fits.pop()
    shown = " or ".join(str(tuple(layout)) for layout in sorted(fits)) or "none fits"
    raise ArgumentError(
        explain(
            f"{count} tokens that are one grid, square or like the {h}x{w} image, after at most {_MOST_EXTRA} others",
            f"(extra, h, w) = {shown}",
            "pass tokens=(extra, h, w)",
        )
    )


def split_tokens(tokens: torch.Tensor, layout: TokenLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """``[n, extra + h w, D]`` -> the first rows ``[n, extra, D]`` and the grid ``[n, D, h, w]``.

    Raises ``ArgumentError`` for another number of tokens.
    """
    extra, h, w = layout
    if tokens.shape[1] != extra + h * w:
        raise ArgumentError(
            explain(f"{extra} + {h}x{w} = {extra + h * w} tokens", f"{tokens.shape[1]}", "correct tokens=(extra, h, w)")
        )
    return tokens[:, :extra], tokens[:, extra:].mT.unflatten(-1, (h, w))


def inscribed_disc(height: int, width: int) -> torch.Tensor:
    """Pixels ``[h, w]`` (boolean) whose centre stays among the pixel centres under every rotation of the image."""
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    radius = (min(height, width) - 1) / 2
    return y[:, None].square() + x.square() <= radius**2 * (1 + 1e-12)
