"""Layers of equidial.nn in a diagnosis: how their group axis moves, and what in them breaks the symmetry.

Each is asked as a whole. A continuous kernel is asked twice, as it is and with all ``omega'`` at 0: what remains then
comes from windows, padding and strides, the rest from the relaxation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from equidial.adapters._geometry import Window
from equidial.adapters.diagnosis._motion import Motion, Still, grid_at, positions
from equidial.adapters.diagnosis._values import Operation, relative
from equidial.adapters.network._actions import SamplesAction
from equidial.groups import GroupElement
from equidial.metrics import transform_images
from equidial.nn import ContinuousConv, Frequencies, GroupPool2d, OnImages

ATOMIC = (ContinuousConv, GroupPool2d, OnImages)
"""Modules that are asked as a whole."""


@dataclass(frozen=True)
class OnSamples(Motion):
    """Features ``[B, C, U, h, w]``: sample ``g^-1 u`` at place ``g^-1 p``."""

    elements: tuple[GroupElement, ...]
    orders: tuple[tuple[int, ...], ...]

    def move(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """Samples and places permuted."""
        moved = x.index_select(2, torch.tensor(self.orders[k], device=x.device))
        return transform_images(moved, self.elements[k]).contiguous()

    def index(self, k: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """The positions that :meth:`move` reads."""
        return self.move(k, positions(shape, device))

    @property
    def name(self) -> str:
        """``"samples"``."""
        return "samples"


def layer_of(operation: Operation) -> ContinuousConv | OnImages | None:
    """The layer that was asked as a whole, if one was."""
    layer = getattr(operation.func, "__self__", None)
    return layer if isinstance(layer, ContinuousConv | OnImages) else None


def motion_behind(layer: nn.Module, arrives: Motion | None, out: torch.Tensor, elements: Any) -> Motion | None:
    """How the result of a layer moves; ``None`` where its samples, or the grid, do not hold the elements."""
    if isinstance(layer, GroupPool2d):
        return grid_at(elements, (2, 3), out.shape) if out.ndim == 4 else None
    if isinstance(layer, OnImages):
        return arrives if isinstance(arrives, OnSamples) and _square(elements, out) else None
    assert isinstance(layer, ContinuousConv)
    if layer.samples is None:
        if isinstance(arrives, Still):
            return arrives
        return grid_at(elements, (2, 3), out.shape) if out.ndim == 4 else None
    if out.ndim != 5 or not _square(elements, out):
        return None
    orders = sample_orders(layer, elements)
    return None if orders is None else OnSamples(elements, orders)


def sample_orders(layer: ContinuousConv, elements: tuple[GroupElement, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Where ``g^-1 u`` stands for every sample, per element; ``None`` where one is not sampled."""
    assert layer.samples is not None
    orders = []
    for g in elements:
        found = SamplesAction(g.group, layer.samples.group, ()).element(g)
        if found is None:
            return None
        orders.append(tuple(layer.samples.permutation(found).tolist()))
    return tuple(orders)


def _square(elements: Sequence[GroupElement], out: torch.Tensor) -> bool:
    return grid_at(tuple(elements), (-2, -1), out.shape) is not None


def window_of(layer: ContinuousConv | OnImages) -> Window | None:
    """Its window, for :class:`OnImages` that of the layer inside."""
    return Window.of(layer if isinstance(layer, ContinuousConv) else layer.layer)


def strict_and_rest(operation: Operation, elements: int) -> tuple[float, float]:
    """Errors of the layer with every ``omega'`` at 0, and of what the relaxation adds, relative to the result."""
    layer: Any = layer_of(operation)
    strict = _strict(layer)
    norm = float(operation.out.double().norm())
    still = strict.forward(*operation.args)
    windows, rest = 0.0, 0.0
    for k in range(elements):
        args, _ = operation.at(k)
        moved = strict.forward(*args)
        windows = max(windows, relative(moved, operation.motion.move(k, still), norm))
        whole = layer.forward(*args)
        rest = max(rest, relative(whole - moved, operation.motion.move(k, operation.out - still), norm))
    return windows, rest


def _strict(layer: ContinuousConv) -> ContinuousConv:
    """The same layer with every ``omega'`` at 0. It shares all else, and is never called: hooks are shared, too."""
    strict = copy.copy(layer)
    zero = Frequencies(dict.fromkeys(layer.omega_prime.axes, 0.0))
    strict.__dict__["_modules"] = {**layer._modules, "omega_prime": zero}
    strict.coordinates = replace(layer.coordinates, omega_prime=zero)
    return strict


def missing_sample(layer: object, elements: tuple[GroupElement, ...]) -> GroupElement | None:
    """The first element that is not among the samples of a layer."""
    if not isinstance(layer, ContinuousConv) or layer.samples is None:
        return None
    action = [SamplesAction(g.group, layer.samples.group, ()) for g in elements]
    return next((g for g, a in zip(elements, action, strict=True) if a.element(g) is None), None)
