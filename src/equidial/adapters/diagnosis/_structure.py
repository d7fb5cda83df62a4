"""Operations that only move entries: what they do to a motion is found by sending positions through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from equidial.adapters.diagnosis._motion import Grid, Motion, Plane, carried, places, positions
from equidial.groups import GroupElement

JOINING = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"})
_SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "contiguous"}
_AXES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "get T", "get mT"}
_PARTS = {"chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select", "__getitem__", "diagonal"}
_COPIES = {"expand", "expand_as", "repeat", "tile", "repeat_interleave", "detach", "clone", "get data"}
_MOVES = {"roll", "flip", "fliplr", "flipud", "rot90", "gather", "take_along_dim", "pad", "unfold"}
_SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
STRUCTURAL = frozenset(JOINING | _SHAPES | _AXES | _PARTS | _COPIES | _MOVES | _SHUFFLES)


@dataclass(frozen=True)
class Piece:
    """Entries of a larger tensor that the group mixes with the rest of it: neighbours that will be joined again.

    ``gather``: the flat position in the source of every entry; ``moves``: the source's permutations, flat.
    """

    source: object
    gather: torch.Tensor
    moves: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Source:
    """What is known of an input: its motion, the piece that it is, and an object that stands for the tensor."""

    motion: Motion | None
    piece: Piece | None = None
    owner: object = None


@dataclass(frozen=True)
class Moved:
    """What a structural operation makes of one output: its motion, or the piece that it is."""

    motion: Motion | None
    piece: Piece | None = None


def follow_entries(
    func: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Callable[[torch.Tensor], Source],
    elements: tuple[GroupElement, ...],
) -> list[Moved]:
    """The motions of the outputs of an operation that moves entries, in the order of its tensors.

    ``known``: what is known of an input. An output whose entries do not stay among themselves has no motion; it is a
    piece of the source, so that a later concatenation of all pieces has one again.
    """
    sources, rest = (list(args[0]), args[1:]) if name in JOINING else ([args[0]], args[1:])
    facts = [known(source) for source in sources]
    if name == "pad" and isinstance(facts[0].motion, Grid) and facts[0].motion.axes == (2, 3):
        rest, kwargs = _padded_with_nothing(rest, kwargs)
        return [_padded(func, sources[0], facts[0].motion, rest, kwargs, elements)]
    device = sources[0].device
    encoded, moves, origin = _encode(sources, facts, len(elements), device)
    if encoded is None:
        made = pytree.tree_leaves(func(*args, **kwargs))
        return [Moved(None) for t in made if isinstance(t, torch.Tensor)]
    if name == "pad":
        rest, kwargs = _padded_with_nothing(rest, kwargs)
    # one more than the position, so that what padding fills in (0) is no position
    shifted = [e.double() + 1 for e in encoded]
    made = func(shifted, *rest, **kwargs) if name in JOINING else func(shifted[0], *rest, **kwargs)
    outputs = [t for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)]
    return [_moved(t.long() - 1, moves, origin, elements) for t in outputs]


def _padded(
    func: Callable[..., Any],
    x: torch.Tensor,
    grid: Grid,
    rest: tuple[Any, ...],
    kwargs: dict[str, Any],
    elements: tuple[GroupElement, ...],
) -> Moved:
    """An image with padding: one channel tells what happens to all."""
    one = x[:1, :1]
    encoded = positions(one.shape, x.device)
    gather = func(encoded.double() + 1, *rest, **kwargs).long() - 1
    if gather.shape[:2] != one.shape[:2]:
        return Moved(None)
    indices = []
    for k in range(len(elements)):
        move = grid.index(k, one.shape, x.device).reshape(-1)
        index = carried(gather, torch.where(gather < 0, gather, move[gather.clamp_min(0)]))
        if index is None:
            return Moved(None)
        indices.append(index)
    found = places(indices, elements)
    return Moved(found if isinstance(found, Grid) else Plane(tuple(index[0, 0] for index in indices), (2, 3)))


def _encode(
    sources: list[torch.Tensor],
    facts: list[Source],
    count: int,
    device: torch.device,
) -> tuple[list[torch.Tensor] | None, tuple[torch.Tensor, ...], object]:
    """Positions that stand for the entries of every source, the flat permutations of all positions, and their owner."""
    pieces = [fact.piece for fact in facts]
    owners = {id(piece.source) for piece in pieces if piece is not None}
    if all(piece is not None for piece in pieces) and len(owners) == 1:
        first = pieces[0]
        assert first is not None
        return [piece.gather for piece in pieces if piece is not None], first.moves, first.source
    if any(fact.motion is None for fact in facts):
        return None, (), None
    encoded, moves, offset = [], [[] for _ in range(count)], 0
    for source, fact in zip(sources, facts, strict=True):
        assert fact.motion is not None
        encoded.append(positions(source.shape, device) + offset)
        for k in range(count):
            index = fact.motion.index(k, source.shape, device)
            if index is None:
                return None, (), None
            moves[k].append(index.reshape(-1) + offset)
        offset += source.numel()
    return encoded, tuple(torch.cat(parts) for parts in moves), facts[0].owner if len(facts) == 1 else object()


def _moved(
    gather: torch.Tensor, moves: tuple[torch.Tensor, ...], origin: object, elements: tuple[GroupElement, ...]
) -> Moved:
    if gather.numel() == 0:
        return Moved(None)
    indices = []
    for move in moves:
        # entries of no source (-1) stay entries of no source
        index = carried(gather, torch.where(gather < 0, gather, move[gather.clamp_min(0)]))
        if index is None:
            return Moved(None, Piece(origin, gather, moves))
        indices.append(index)
    return Moved(places(indices, elements))


def _padded_with_nothing(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``pad`` with the fill 0, whatever the fill."""
    kwargs = {key: value for key, value in kwargs.items() if key != "value"}
    return rest[:2], kwargs
