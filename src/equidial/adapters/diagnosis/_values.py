"""What the follower knows: values, events on their way, and the operations that were asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from equidial.adapters.diagnosis._motion import Motion
from equidial.adapters.diagnosis._structure import Piece


@dataclass(frozen=True, eq=False)
class Event:
    """Something on the way to an operation that may be to blame for its error.

    ``kind``: ``pad``, ``roll``, ``shuffle``, ``slice`` or ``rectangle``; ``facts``: what was done, by kind.
    """

    kind: str
    module: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """What is known of an intermediate tensor.

    ``moved``: the tensor on moved inputs, where no motion is known; ``arrived``: the same in the network run on the
    moved image; ``events``: since the motion was last an image or nothing.
    """

    motion: Motion | None
    moved: tuple[torch.Tensor, ...]
    arrived: tuple[torch.Tensor, ...]
    events: tuple[Event, ...] = ()
    piece: Piece | None = None

    def at(self, k: int, tensor: torch.Tensor) -> torch.Tensor:
        """``rho(g_k) tensor``, or what stands there on moved inputs."""
        return self.moved[k] if self.motion is None else self.motion.move(k, tensor)


@dataclass(frozen=True)
class Operation:
    """One operation that was asked: its name, place, arguments, and the errors that were found.

    ``origins``: the parameters from which an argument was computed, by ``id``.
    """

    name: str
    module: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: torch.Tensor
    motion: Motion
    added: float
    arrived: float
    events: tuple[Event, ...]
    values: Mapping[int, Value]
    origins: Mapping[int, frozenset[str]]
    rotary: bool

    def motion_of(self, x: Any) -> Motion | None:
        """Of an argument; ``None`` for what does not depend on the input or has none."""
        value = self.values.get(id(x))
        return None if value is None else value.motion

    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters and buffers in it that do not move with the input."""
        tensors = [x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, torch.Tensor)]
        fixed = [x for x in tensors if id(x) not in self.values]
        return tuple(sorted(frozenset().union(*(self.origins.get(id(x), frozenset()) for x in fixed))))

    def at(self, k: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, moved by element ``k``."""
        return pytree.tree_map(
            lambda x: self.values[id(x)].at(k, x) if id(x) in self.values else x, (self.args, self.kwargs)
        )


def relative(a: torch.Tensor, b: torch.Tensor, norm: float | None = None) -> float:
    """``||a - b|| / ||b||`` summed in float64, or relative to ``norm``; 0 for equal ones."""
    if not a.is_floating_point():
        return float((a != b).any())
    difference = float(torch.linalg.vector_norm(a - b, dtype=torch.float64))
    scale = float(torch.linalg.vector_norm(b, dtype=torch.float64)) if norm is None else norm
    return 0.0 if difference == 0 else difference / scale if scale else float("inf")
