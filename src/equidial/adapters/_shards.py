"""Tensors of which each process holds a shard (``fully_shard``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a DTensor; by name, as torch.distributed need not be there."""
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def through_whole(function: Callable[[torch.Tensor], torch.Tensor], shards: Any) -> torch.Tensor:
    """``function`` of the gathered tensor, cut into shards again; every process has to call it.

    Within the forward pass of a sharded module its tensors are whole and nothing is gathered here. Others read them
    outside: the ViT of transformers asks ``projection.weight.dtype`` before it calls the projection.
    """
    from torch.distributed.tensor import DTensor, Replicate

    whole = function(shards.full_tensor())
    copies = [Replicate()] * shards.device_mesh.ndim
    return DTensor.from_local(whole, shards.device_mesh, copies, run_check=False).redistribute(
        placements=shards.placements
    )
