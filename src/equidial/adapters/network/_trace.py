"""The modules and functions of a model in the order in which they act, by torch.fx."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree


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


class _Shaped(fx.Proxy):
    """A proxy that knows its shape at the example, so that control flow on shapes can be followed."""

    @property
    def shape(self) -> Any:
        """Of the example's value."""
        return self._known_or("shape")

    @property
    def ndim(self) -> Any:
        """Of the example's value."""
        return self._known_or("ndim")

    def size(self, *axis: int) -> Any:
        """Of the example's value."""
        found = self.tracer.values.get(self.node)  # type: ignore[attr-defined]
        return found.size(*axis) if isinstance(found, torch.Tensor) else fx.Proxy.__getattr__(self, "size")(*axis)

    def dim(self) -> Any:
        """Of the example's value."""
        return self.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def _known_or(self, name: str) -> Any:
        found = self.tracer.values.get(self.node)  # type: ignore[attr-defined]
        return getattr(found, name) if isinstance(found, torch.Tensor) else fx.Proxy.__getattr__(self, name)


class _Tracer(fx.Tracer):
    def __init__(self, known: Collection[type], leaves: Collection[str], example: torch.Tensor):
        super().__init__()
        self._known, self._leaves, self._example = tuple(known), leaves, example
        self.values: dict[fx.Node, Any] = {}
        self._evaluating = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Shaped(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *more, **options)
        self._evaluating = True  # fx patches the calls and attributes of modules: let them through
        try:
            with torch.no_grad(), contextlib.suppress(Exception):  # a value that cannot be had is only not known
                self.values[node] = self._evaluate(node)
        finally:
            self._evaluating = False
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._example
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.values[n])
        args = pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, args)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        found: Any = self.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found(*args, **kwargs) if node.op == "call_module" else found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._leaves or _has_hooks(m):
            return True
        if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict | _Entry):
            return False
        return isinstance(m, self._known) or type(m).__module__.startswith(("torch.nn", "torch.ao.nn"))

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Untraceable:
            raise
        except Exception as error:
            # whatever a forward does that a proxy cannot follow: control flow on values, numpy, foreign code
            raise _Untraceable(self.path_of_module(m), error) from error


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def trace(
    model: nn.Module, known: Collection[type], example: torch.Tensor
) -> tuple[fx.Graph, nn.Module, dict[str, str]]:
    """The graph of ``model(x)``, the module whose submodules it names, and why some could not be followed.

    Modules of ``known`` types, torch's own and those with hooks are leaves. A module whose forward cannot be traced
    becomes a leaf too; the third result holds the reason under its name in the graph. The model itself is the submodule
    ``"model"``. Shapes are those at the example, so the graph speaks of inputs of its shape. The model is not changed.
    """
    entry = _Entry(model)
    entry.training = False
    reasons: dict[str, str] = {}
    while True:
        try:
            return _Tracer(known, reasons, example).trace(entry), entry, reasons
        except _Untraceable as found:
            reasons[found.name] = f"its forward cannot be traced ({type(found.error).__name__}: {found.error})"


def plain_name(name: str) -> str:
    """A name of the graph as the user knows it."""
    return name.removeprefix("model").removeprefix(".") or "the model itself"
