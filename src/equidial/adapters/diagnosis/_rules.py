"""How an operation that computes hands a motion on: one rule for each kind of operation.

A rule says how the group would move the result if the operation commuted with it. Whether it does is measured; a wrong
guess shows as an error, never as a silence. ``None``: no rule applies, see :func:`candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from equidial.adapters.diagnosis._motion import (
    Grid,
    Motion,
    Still,
    extended,
    grid_at,
    places,
    positions,
    projected,
)
from equidial.groups import GroupElement

Known = Callable[[Any], Motion | None]
"""From an argument to its motion: :class:`Still` for what does not depend on the input."""

_MAX_EXTRA_TOKENS = 8

CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})
POOLINGS = frozenset({"max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "lp_pool2d"})
RESIZINGS = frozenset({"interpolate", "upsample", "adaptive_avg_pool2d", "adaptive_max_pool2d", "grid_sample"})
ON_IMAGES = CONVOLUTIONS | POOLINGS | RESIZINGS
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "std", "var", "logsumexp", "prod", "any", "all"})
NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm", "vector_norm"})
ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "mm"})


def hand_on(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    out: torch.Tensor,
    known: Known,
    elements: tuple[GroupElement, ...],
) -> Motion | None:
    """The motion of the result ``out`` of one operation, or ``None``."""
    if name in ON_IMAGES:
        return _on_images(args[0], out, known, elements)
    if name == "linear":
        return _last_axis(args[0], out, known, elements)
    if name in PRODUCTS and len(args) == 2:
        return _product(args[0], args[1], out, known, elements)
    if name == "einsum" and len(args) == 3:
        return _einsum(str(args[0]), args[1], args[2], out, known, elements)
    if name in ATTENTIONS:
        return _like_query(args[0], out, known, elements)
    if name in ("adaptive_avg_pool1d", "adaptive_max_pool1d"):
        return _reduced(args[0], (args[0].ndim - 1,), out, known, elements) if out.shape[-1] == 1 else None
    if name in REDUCTIONS | NORMS:
        dims = _dimensions(args, kwargs, 2 if name in NORMS else 1)
        if dims is not None or out.ndim == 0:
            every = range(args[0].ndim) if dims is None else dims
            return _reduced(args[0], [d % args[0].ndim for d in every], out, known, elements)
    return _entry_by_entry([*args, *kwargs.values()], out, known, elements)


def candidates(shape: Sequence[int], elements: tuple[GroupElement, ...], device: torch.device) -> list[Motion]:
    """Motions that a tensor of this shape may well have: images, tokens with extra rows before, nothing moving."""
    found: list[Motion | None] = []
    if len(shape) == 4:
        found += [grid_at(elements, axes, shape) for axes in ((2, 3), (1, 2))]
    if len(shape) == 3:
        for extra in range(_MAX_EXTRA_TOKENS + 1):
            side = math.isqrt(max(shape[1] - extra, 0))
            if side > 1 and side * side == shape[1] - extra:
                found.append(tokens(elements, shape, extra, (side, side), device))
    if len(shape) <= 2 or math.prod(shape[2:]) == 1:
        found.append(Still())
    return [motion for motion in found if motion is not None]


def tokens(
    elements: tuple[GroupElement, ...],
    shape: Sequence[int],
    extra: int,
    grid: tuple[int, int],
    device: torch.device,
) -> Motion | None:
    """Tokens ``[batch, extra + h*w, channels]``, row-major, with rows of no place before."""
    base = positions(shape, device)
    image = base[:, extra:].reshape(shape[0], *grid, shape[2])
    motion = grid_at(elements, (1, 2), image.shape)
    if motion is None:
        return None
    indices = [torch.cat([base[:, :extra], motion.move(k, image).flatten(1, 2)], dim=1) for k in range(len(elements))]
    return places(indices, elements)


def _on_images(x: torch.Tensor, out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]) -> Motion | None:
    if isinstance(known(x), Still):
        return Still()
    return grid_at(elements, (2, 3), out.shape) if out.ndim == 4 else None


def _last_axis(x: torch.Tensor, out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]) -> Motion | None:
    """A linear map of the last axis: what moves the other axes goes on, with the new last axis inert."""
    motion = known(x)
    if motion is None or isinstance(motion, Still):
        return motion
    if isinstance(motion, Grid) and x.ndim - 1 not in motion.axes:
        return motion
    return _kept(motion, x, range(x.ndim - 1), out, elements, out.shape[-1])


def _reduced(
    x: torch.Tensor, dims: Sequence[int], out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]
) -> Motion | None:
    motion = known(x)
    if motion is None or isinstance(motion, Still):
        return motion
    if isinstance(motion, Grid) and set(motion.axes) <= set(dims):
        return Still()
    return _kept(motion, x, [a for a in range(x.ndim) if a not in dims], out, elements)


def _kept(
    motion: Motion,
    x: torch.Tensor,
    keep: Sequence[int],
    out: torch.Tensor,
    elements: tuple[GroupElement, ...],
    inert: int | None = None,
) -> Motion | None:
    """The motion of the axes ``keep`` alone, in the shape of ``out``."""
    indices = []
    for k in range(len(elements)):
        index = motion.index(k, x.shape, x.device)
        index = None if index is None else projected(index, list(keep))
        if index is None:
            return None
        index = index if inert is None else extended(index, inert)
        if index.numel() != out.numel():
            return None
        indices.append(index.reshape(out.shape))
    return places(indices, elements)


def _like_query(
    query: torch.Tensor, out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]
) -> Motion | None:
    """Attention: its result stands where the query stands."""
    if out.shape == query.shape:
        return known(query)
    return _last_axis(query, out, known, elements) if out.shape[:-1] == query.shape[:-1] else None


def _product(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]
) -> Motion | None:
    """``a @ b``: rows go with ``a``, columns with ``b``."""
    if b.ndim == 2 and isinstance(known(b), Still):
        return _last_axis(a, out, known, elements)
    if a.ndim < 2 or b.ndim < 2:
        return None
    letters = "abcdefgh"
    batch = letters[: out.ndim - 2]
    left, right = batch[len(batch) - (a.ndim - 2) :] + "xy", batch[len(batch) - (b.ndim - 2) :] + "yz"
    return _einsum(f"{left},{right}->{batch}xz", a, b, out, known, elements)


def _einsum(
    equation: str, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]
) -> Motion | None:
    """Each kept label goes with the operand that has it; a label of both must be moved alike."""
    terms, _, result = equation.replace(" ", "").partition("->")
    labels = terms.split(",")
    if "." in equation or not result or len(labels) != 2 or len(result) != out.ndim:
        return None
    moves: list[tuple[Motion, torch.Tensor, str]] = []
    for x, names in ((a, labels[0]), (b, labels[1])):
        motion = known(x)
        if (
            motion is None
            or x.ndim != len(names)
            or any(x.shape[i] != out.shape[result.index(c)] for i, c in enumerate(names) if c in result)
        ):
            return None
        moves.append((motion, x, names))
    if all(isinstance(motion, Still) for motion, _, _ in moves):
        return Still()
    here = torch.unravel_index(positions(out.shape, out.device), out.shape)
    indices = []
    for k in range(len(elements)):
        coordinates: dict[str, torch.Tensor] = {}
        for motion, x, names in moves:
            kept = [i for i, c in enumerate(names) if c in result]
            index = motion.index(k, x.shape, x.device)
            index = None if index is None else projected(index, kept)
            if index is None:
                return None
            flat = torch.zeros_like(here[0])
            for i in kept:
                flat = flat * x.shape[i] + here[result.index(names[i])]
            moved = torch.unravel_index(index.reshape(-1)[flat], [x.shape[i] for i in kept]) if kept else ()
            for i, found in zip(kept, moved, strict=True):
                if names[i] in coordinates and not torch.equal(coordinates[names[i]], found):
                    return None
                coordinates[names[i]] = found
        flat = torch.zeros_like(here[0])
        for axis, label in enumerate(result):
            flat = flat * out.shape[axis] + coordinates[label]
        indices.append(flat)
    return places(indices, elements)


def _entry_by_entry(
    operands: Sequence[Any], out: torch.Tensor, known: Known, elements: tuple[GroupElement, ...]
) -> Motion | None:
    """Operations that broadcast: the result moves like the first operand that moves."""
    still = True
    for x in operands:
        if not isinstance(x, torch.Tensor):
            continue
        motion = known(x)
        if motion is None:
            return None
        if isinstance(motion, Still):
            continue
        still = False
        if x.shape == out.shape:
            return motion
        if isinstance(motion, Grid) and x.ndim == out.ndim and all(x.shape[a] == out.shape[a] for a in motion.axes):
            return motion
        spread = _broadcast(motion, x, out, elements)
        if spread is not None:
            return spread
    return Still() if still else None


def _broadcast(motion: Motion, x: torch.Tensor, out: torch.Tensor, elements: tuple[GroupElement, ...]) -> Motion | None:
    missing = out.ndim - x.ndim
    if missing < 0 or any(n not in (1, m) for n, m in zip(x.shape, out.shape[missing:], strict=True)):
        return None
    here = torch.unravel_index(positions(out.shape, out.device), out.shape)
    indices = []
    for k in range(len(elements)):
        index = motion.index(k, x.shape, x.device)
        if index is None:
            return None
        source = torch.unravel_index(index.expand(out.shape), x.shape)
        flat = torch.zeros_like(here[0])
        for axis in range(out.ndim):
            own = axis >= missing and x.shape[axis - missing] == out.shape[axis] and out.shape[axis] > 1
            flat = flat * out.shape[axis] + (source[axis - missing] if own else here[axis])
        indices.append(flat)
    return places(indices, elements)


def _dimensions(args: Sequence[Any], kwargs: dict[str, Any], place: int) -> list[int] | None:
    """``dim`` of a reduction, by name or at its place; ``None`` where it is not given or is no dimension."""
    found = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else None))
    if isinstance(found, int) and not isinstance(found, bool):
        return [found]
    return list(found) if isinstance(found, list | tuple) and all(isinstance(d, int) for d in found) else None
