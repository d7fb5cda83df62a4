"""fold and unload: a plain model again, with the constraint made final or taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from equidial.adapters._life import check_adapters, check_unwrapped
from equidial.adapters._parametrization import SoftParametrization, constrained, detach, original_of
from equidial.adapters._state import SoftState, drop_state, find_root, require_root
from equidial.errors import StateError, explain
from equidial.nn import check_foldable, fold_layers, has_continuous_layers

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """Make the constraint final: plain weights, same class, same keys in the same order, same Parameter objects.

    Computed in float64, then rounded to each tensor's own dtype; where the dial stands at exact symmetry and the
    group permutes coordinates, orbits are made equal bit for bit. Layers of :mod:`equidial.nn` with a continuous
    kernel become plain convolutions between reshapes (:func:`equidial.nn.plain_layer`), at their present number of
    samples. Raises ``StateError`` for a model that is neither softened nor has such layers, has one relaxed in
    translation, is wrapped for parallel training, sharded, has adapters of PEFT on softened layers, or in which a
    constrained weight is not finite (the model is left as it is).
    """
    born_soft = has_continuous_layers(model)
    if born_soft and find_root(model) is None:
        check_unwrapped(model, "fold")
        return cast(Model, fold_layers(model))
    if born_soft:
        check_foldable(model)
    fold_tensors(model)
    return cast(Model, fold_layers(model)) if born_soft else model


def fold_tensors(model: nn.Module) -> None:
    """:func:`fold` of the softened tensors alone: layers with a continuous kernel stay. Raises as that."""
    root, state = _checked_root(model, "fold")
    links = list(constrained(root))
    values = [folded_value(module, name, link) for module, name, link in links]
    for (_, _, link), value in zip(links, values, strict=True):
        if not bool(torch.isfinite(value).all()):
            raise StateError(
                explain(f"finite weights in {link.name}", "NaN or infinity", "reload the last good checkpoint")
            )
    _detach_all(root, state, values)


def unload(model: Model) -> Model:
    """Take the constraint away: the unconstrained tensors as they stand, bit for bit.

    Those are the pretrained ones if nothing was trained. Raises ``StateError`` as :func:`fold`.
    """
    root, state = _checked_root(model, "unload")
    _detach_all(root, state, None)
    return model


def _checked_root(model: nn.Module, verb: str) -> tuple[nn.Module, SoftState]:
    found = require_root(model, verb)
    check_unwrapped(model, verb)
    check_adapters(model, verb)
    return found


def folded_value(module: nn.Module, tensor_name: str, link: SoftParametrization) -> torch.Tensor:
    """The tensor that :func:`fold` would store, in its own dtype and on its own device."""
    original = original_of(module, tensor_name).detach()
    if math.isinf(link.setting.threshold):
        return original.clone()
    work = original.to("cpu", torch.float64)
    filter_ = link.filter()
    weights = filter_(link.layout.weights(work)).to(original.dtype)
    value = link.layout.tensor(filter_.snap(weights), original.to("cpu"))
    return value.to(original.device).contiguous()


def _detach_all(root: nn.Module, state: SoftState, values: Sequence[torch.Tensor] | None) -> None:
    names = {id(module): name for name, module in root.named_modules()}
    for i, (module, tensor_name, link) in enumerate(list(constrained(root))):
        link.retraction = None  # the optimizer hook leaves what it finds so
        parameter = detach(module, tensor_name, state.orders[names[id(module)]])
        if values is not None:
            with torch.no_grad():
                parameter.copy_(values[i])
    drop_state(root)
