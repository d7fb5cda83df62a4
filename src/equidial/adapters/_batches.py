"""Batches and outputs in the forms that people's data loaders and models have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from equidial.errors import ArgumentError, explain


def inputs_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``(x, y)`` of a batch: a pair, a dict with ``pixel_values`` and ``labels``, or a tensor without labels."""
    if isinstance(batch, torch.Tensor):
        return batch, None
    if isinstance(batch, Mapping) and "pixel_values" in batch:
        return batch["pixel_values"], batch.get("labels")
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], torch.Tensor):
        return batch[0], batch[1] if len(batch) > 1 else None
    raise ArgumentError(
        explain(
            "batches (x, y), dicts with 'pixel_values' and 'labels', or tensors",
            type(batch).__name__,
            "wrap the data loader so that it yields one of these",
        )
    )


def logits_of(output: Any) -> torch.Tensor:
    """The tensor of a model's output: itself, its ``.logits``, or the entry ``"logits"``."""
    return tensor_of(output, ("logits",), "logits")


def tensor_of(output: Any, names: Sequence[str], what: str) -> torch.Tensor:
    """The tensor of a model's output: itself, or the first of the attributes or entries ``names`` that is one."""
    if isinstance(output, torch.Tensor):
        return output
    for name in names:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    raise ArgumentError(
        explain(
            f"a model that returns a tensor or an object with .{' or .'.join(names)}",
            type(output).__name__,
            f"wrap the model so that it returns its {what}",
        )
    )


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model without any."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside, every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield model
    finally:
        for module, training in modes:
            module.training = training
