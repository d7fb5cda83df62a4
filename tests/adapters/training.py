"""Small trainings that the tests of modes, schedules and learned dials share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import equidial as ed
from tests.adapters.models import cnn


def soft_cnn(softness: float = 0.5, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """The tiny network, softened under C4, the same weights every time."""
    torch.manual_seed(1)
    model = cnn().to(dtype)
    return ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=softness, **config))


def batches(steps: int, dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images ``[8, 3, 9, 9]`` with labels, the same every time."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(steps, 8, 3, 9, 9, generator=generator).to(dtype)
    y = torch.randint(4, (steps, 8), generator=generator)
    return list(zip(x, y, strict=True))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    penalty: float = 0.0,
    after: Callable[[], Any] | None = None,
) -> list[float]:
    """A plain loop; ``after`` is called behind each optimizer step. Returns the losses."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        total = loss + penalty * ed.relaxation_penalty(model) if penalty else loss
        total.backward()
        optimizer.step()
        if after is not None:
            after()
        losses.append(float(loss.detach()))
    return losses


def kernels(model: Any) -> list[torch.Tensor]:
    """The constrained tensors as the model reads them."""
    with torch.no_grad():
        return [model.first.weight.clone(), model.depthwise.weight.clone()]


def furthest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest relative distance of two lists of tensors."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))
