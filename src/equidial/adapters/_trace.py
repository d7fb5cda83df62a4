"""The modules and functions of a model in the order in which they act, by torch.fx."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn


class _Entry(nn.Module):
    """Calls the model with one argument, so that every other argument of its forward keeps its default."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        """The model's output."""
        return self.model(x)


class _Untraceable(Exception):
    def __init__(self, name: str, error: Exception):
        super().__init__(name)
        self.name, self.error = name, error


class _Tracer(fx.Tracer):
    def __init__(self, known: Collection[type], leaves: Collection[str]):
        super().__init__()
        self._known, self._leaves = tuple(known), leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._leaves or _has_hooks(m):
            return True
        if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict | _Entry):
            return False
        return isinstance(m, self._known) or type(m).__module__.startswith(("torch.nn", "torch.ao.nn"))

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Untraceable:
            raise
        except Exception as error:
            # whatever a forward does that a proxy cannot follow: control flow on values, numpy, foreign code
            raise _Untraceable(self.path_of_module(m), error) from error


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def trace(model: nn.Module, known: Collection[type]) -> tuple[fx.Graph, nn.Module, dict[str, str]]:
    """The graph of ``model(x)``, the module whose submodules it names, and why some could not be followed.

    Modules of ``known`` types, torch's own and those with hooks are leaves. A module whose forward cannot be traced
    becomes a leaf too; the third result holds the reason under its name in the graph. The model itself is the submodule
    ``"model"``. Nothing of the model is changed.
    """
    entry = _Entry(model)
    entry.training = False
    reasons: dict[str, str] = {}
    while True:
        try:
            return _Tracer(known, reasons).trace(entry), entry, reasons
        except _Untraceable as found:
            reasons[found.name] = f"its forward cannot be traced ({type(found.error).__name__}: {found.error})"


def plain_name(name: str) -> str:
    """A name of the graph as the user knows it."""
    return name.removeprefix("model").removeprefix(".") or "the model itself"
