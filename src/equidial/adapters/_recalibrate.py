"""recalibrate: batch-norm statistics that fit after the dial moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from equidial.adapters._batches import device_of, evaluation, inputs_and_labels
from equidial.errors import ArgumentError, explain


def recalibrate(model: nn.Module, batches: Iterable[Any], max_batches: int | None = None) -> int:
    """Re-estimate the running statistics of every batch normalisation as plain averages over ``batches``.

    Moving the dial changes the scale of every filtered layer, so stored statistics no longer fit; a hard cut of a
    CIFAR ResNet-20 loses most of its accuracy by that alone. Averages weigh every batch alike. Modes and momenta
    are restored. Returns the number of normalisation layers that keep statistics (0: nothing was read). Raises
    ``ArgumentError`` for empty data, before any statistic is reset.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None or max_batches == 0:
        raise ArgumentError(explain("at least one batch", "none", "pass a data loader that yields batches"))
    device = device_of(model)
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluation(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            batch, count = first, 0
            while batch is not None and (max_batches is None or count < max_batches):
                model(inputs_and_labels(batch)[0].to(device))
                batch, count = next(iterator, None), count + 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)
