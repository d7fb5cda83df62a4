"""Checks of what the rules found: the tensors themselves, and every pattern of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._matching import matches, pattern_for, unmatched
from equidial.adapters.targets._generic import CONVOLUTIONS
from equidial.errors import NoMatchingTargetError, StateError, TargetError, explain, nearest_names

QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torchao", "bitsandbytes", "optimum.quanto", "auto_gptq")


class Named(Protocol):
    """A tensor of a model, by the module that owns it."""

    @property
    def module_name(self) -> str:
        """Full name of the module."""
        ...

    @property
    def tensor_name(self) -> str:
        """Name of the tensor in it."""
        ...

    @property
    def name(self) -> str:
        """Full name of the tensor."""
        ...

    @property
    def matched_name(self) -> str:
        """What patterns of modules are compared with."""
        ...


def check_tensors(model: nn.Module, targets: Sequence[Named]) -> None:
    """Raise unless every target is a plain, finite, untied floating-point parameter of its own."""
    # one owner is one module: a module that stands in two places of the model may be constrained once for both
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    for target in targets:
        module = model.get_submodule(target.module_name)
        if parametrize.is_parametrized(module, target.tensor_name):
            raise StateError(
                explain(
                    f"a plain parameter {target.name}",
                    "one that is parametrized already",
                    "remove its parametrization first (torch.nn.utils.parametrize.remove_parametrizations)",
                )
            )
        tensor = module._parameters.get(target.tensor_name)
        if tensor is None:
            raise TargetError(
                explain(
                    f"a parameter {target.name}",
                    "a tensor that something else computes (weight_norm, a quantised layer, a buffer)",
                    "undo that first, or leave it out with exclude_modules",
                )
            )
        _check_kind(target.name, tensor)
        if not bool(torch.isfinite(tensor).all()):
            raise TargetError(
                explain(
                    f"finite weights in {target.name}",
                    "NaN or infinite entries",
                    "repair or reload the weights",
                )
            )
        others = [name for name in owners[id(tensor)] if name != target.name]
        if others:
            raise TargetError(
                explain(
                    f"{target.name} to have one owner",
                    f"a parameter tied to {', '.join(others)}",
                    "untie it (clone the parameter), or leave it out with exclude_modules",
                )
            )


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    kind = f"{type(tensor).__name__} of {tensor.dtype}"
    if type(tensor).__module__.startswith(QUANTISED) or not tensor.is_floating_point():
        raise TargetError(
            explain(
                f"floating-point weights in {name}",
                f"{kind}, a quantised tensor",
                "soften the model before quantising it, or leave the tensor out with exclude_modules",
            )
        )
    if type(tensor) is not nn.Parameter:
        raise TargetError(
            explain(
                f"a plain parameter {name}",
                f"{kind}, a tensor wrapped by another library",
                "soften the model before wrapping it, or leave the tensor out with exclude_modules",
            )
        )
    if tensor.is_meta:
        raise TargetError(
            explain(f"weights in {name}", "a meta tensor, which has none", "load the weights before softening")
        )


def refuse_quantised(name: str, module: nn.Module, config: SoftEquivarianceConfig) -> None:
    """A quantised convolution is no ``nn.Conv2d`` any more: without this it would be passed over in silence."""
    kernel = getattr(module, "kernel_size", 1)
    windowed = max((kernel,) if isinstance(kernel, int) else kernel) > 1 and hasattr(module, "in_channels")
    asked = config.target_modules is not None and matches(config.target_modules, name)
    if not type(module).__module__.startswith(QUANTISED) or matches(config.exclude_modules or (), name):
        return
    if asked or (windowed and config.target_modules is None):
        raise TargetError(
            explain(
                f"floating-point weights in {name}",
                f"the quantised layer {type(module).__name__}",
                "soften the model before quantising it, or leave the layer out with exclude_modules",
            )
        )


def check_patterns(model: nn.Module, config: SoftEquivarianceConfig, found: set[str]) -> None:
    """Every pattern must name something, and what it names must be something that can be constrained.

    ``found``: the matched names of the targets, excluded ones included.
    """
    modules = dict(model.named_modules())
    names = [name for name in modules if name] + [name for name, _ in model.named_parameters()]
    for field in ("target_modules", "exclude_modules"):
        patterns = getattr(config, field)
        for pattern in unmatched(patterns, names) if patterns is not None else ():
            raise NoMatchingTargetError(
                explain(
                    f"a module or parameter that matches {field} {pattern!r}",
                    f"none; nearest names: {nearest_names(pattern, names)}",
                    "correct the pattern (a list matches dotted suffixes, a string is a regular expression)",
                )
            )
    if config.target_modules is None:
        return
    asked = [name for name in names if matches(config.target_modules, name)]
    for name in asked:
        module = modules.get(name)
        if module is None or name in found or matches(config.exclude_modules or (), name):
            continue
        if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) == 1:
            raise TargetError(
                explain(
                    f"something to constrain in {name}",
                    "a 1x1 convolution, which mixes channels on which the group acts trivially",
                    "leave it out of target_modules",
                )
            )
        if isinstance(module, nn.Linear):
            raise TargetError(
                explain(
                    f"a representation for the linear layer {name}",
                    "none declared",
                    f"add representations={{{name!r}: ('input', 'output')}}, or a ParameterRule to targets",
                )
            )
    if not found:
        raise NoMatchingTargetError(
            explain(
                "target_modules that name convolutions, position tables or declared linear layers",
                f"{config.target_modules!r}, which names {', '.join(asked[:4])}",
                "name the layers that hold the weights, or declare representations for linear layers",
            )
        )


def check_pattern_keys(config: SoftEquivarianceConfig, names: Sequence[str]) -> None:
    """Every key of ``softness_pattern`` must match a target."""
    for pattern in config.softness_pattern:
        if not any(pattern_for([pattern], name) for name in names):
            raise NoMatchingTargetError(
                explain(
                    f"a target that matches softness_pattern {pattern!r}",
                    f"none; nearest targets: {nearest_names(pattern, names)}",
                    "correct the pattern (a regular expression for the end of a target's name)",
                )
            )
