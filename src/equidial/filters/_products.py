"""Products of many small weights with one basis, for training: little memory moved, the same numbers up to rounding.

Weights as rows ``X [n, d]`` with ``n`` in the hundred thousands and ``d`` below twenty are bound by memory, not by
arithmetic. Their components ``C = X U`` are therefore made in pieces that stay in the cache, for their energies alone,
and made again for the gradient; the filtered weight is one product with ``U diag(f) U^T``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_PIECE = 1 << 17
"""Entries of one piece, half a megabyte in float32."""


def runs_on_cpu(x: torch.Tensor) -> bool:
    """Whether Python may look at ``x`` and loop over it: no traced graph, no device to wait for."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    traced = tracing or torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)
    return x.device.type == "cpu" and not traced


def energies(rows: torch.Tensor, basis: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """``e_k = sum over n and columns i of cluster k of (X U)_ni^2``, ``[count]``; ``index [d]``: cluster by column."""
    return _Energies.apply(rows, basis, index, count)


def recombined(rows: torch.Tensor, basis: torch.Tensor, index: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """``X U diag(f) U^T`` with ``f = factors[index]``."""
    return _Recombined.apply(rows, basis, index, factors)


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(rows: torch.Tensor, basis: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
        total = rows.new_zeros(len(index))
        for piece in _pieces(rows):
            total = total + (piece @ basis).square().sum(0)
        return rows.new_zeros(count).index_add(0, index, total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        rows, basis, index, _ = inputs
        ctx.save_for_backward(rows, basis, index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, basis, index = ctx.saved_tensors
        (grad,) = grads
        return rows @ ((basis * (2 * grad[index])) @ basis.mT), None, None, None


class _Recombined(torch.autograd.Function):
    @staticmethod
    def forward(rows: torch.Tensor, basis: torch.Tensor, index: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return rows @ ((basis * factors[index]) @ basis.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, basis, index, factors = ctx.saved_tensors
        (grad,) = grads
        by_row = by_factor = None
        if ctx.needs_input_grad[0]:
            by_row = grad @ ((basis * factors[index]) @ basis.mT)
        if ctx.needs_input_grad[3]:
            # diagonal of U^T X^T G U: a derivative needs no digits of small components, so one small matrix does
            total = ((rows.mT @ grad @ basis) * basis).sum(0)
            by_factor = torch.zeros_like(factors).index_add(0, index, total)
        return by_row, None, None, by_factor


def _pieces(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(rows.split(max(1, _PIECE // rows.shape[1])))
