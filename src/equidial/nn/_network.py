"""What is asked of all layers of a network at once: learned frequencies, samples, plain layers in their place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from equidial.errors import ArgumentError, EquidialWarning, StateError, explain
from equidial.nn._continuous import ContinuousConv
from equidial.nn._defects import in_float64, moves_in_space
from equidial.nn._frequencies import Frequencies
from equidial.nn._samples import GroupSamples


def learned_frequencies(model: nn.Module) -> list[nn.Parameter]:
    """The learned ``omega'`` of every layer, each once, in module order."""
    found: dict[int, nn.Parameter] = {}
    for frequencies in _each_once(model):
        for axis in frequencies.learned:
            parameter = getattr(frequencies, axis)
            found[id(parameter)] = parameter
    return list(found.values())


def set_samples(model: nn.Module, rotations: int) -> nn.Module:
    """Sample ``rotations`` rotations in every layer from now on; returns the model.

    The Haar weights keep the scale of the sums, so that a trained network runs on with another number; a strict one
    becomes equivariant to the finer grid as far as its layers resolve it. Warns (``EquidialWarning``) where
    frequencies fold or alias at that number. Raises ``ArgumentError`` for a model without samples or a number below 1
    (no layer is changed then).
    """
    samples = {id(m): m for m in model.modules() if isinstance(m, GroupSamples)}
    if not samples:
        raise ArgumentError(explain("a model with layers on a group axis", f"a {type(model).__name__}", "lift first"))
    if isinstance(rotations, bool) or not isinstance(rotations, int) or rotations < 1:
        raise ArgumentError(explain("a number of rotations >= 1", repr(rotations), "e.g. 8"))
    for m in samples.values():
        m.resize(rotations)
    for name, layer in model.named_modules():
        if isinstance(layer, ContinuousConv) and (found := layer.coordinates.alias()):
            warnings.warn(f"{name or type(layer).__name__}: {found}", EquidialWarning, stacklevel=2)
    return model


def has_continuous_layers(model: nn.Module) -> bool:
    """Whether any layer has a continuous kernel."""
    return any(isinstance(m, ContinuousConv) for m in model.modules())


def check_foldable(model: nn.Module) -> None:
    """Raises ``StateError`` naming each layer whose kernel varies in space: it has no plain form of a fixed size."""
    found = [
        n or "(the model)" for n, m in model.named_modules() if isinstance(m, ContinuousConv) and moves_in_space(m)
    ]
    if found:
        raise StateError(
            explain(
                "kernels that are alike in all places, for plain convolutions",
                f"layers relaxed in translation: {', '.join(found)}",
                "keep such a model as it is, or set their omega_prime for x and y to 0",
            )
        )


def fold_layers(model: nn.Module) -> nn.Module:
    """Every layer with a continuous kernel as :func:`plain_layer`; returns the model, or its plain form if it is one.

    All are made before any is put in place. Raises as :func:`check_foldable`.
    """
    check_foldable(model)
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, ContinuousConv)}
    made = {id(m): plain_layer(m).train(m.training) for m in layers.values()}
    if id(model) in made:
        return made[id(model)]
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(layer)])
    return model


def plain_layer(layer: ContinuousConv) -> nn.Module:
    """The same map made of torch's own layers, at the present number of samples: a ``Conv2d`` between reshapes.

    Kernels are computed in float64 and rounded to the dtype of the layer. Raises ``StateError`` where the kernel varies
    in space: such a layer has no plain form of a fixed size.
    """
    check_foldable(layer)
    window, line = layer.windows, len(layer.windows.kernel) == 1
    with torch.no_grad():
        kernel = in_float64(layer).kernel()
    out, u, v = kernel.shape[0], kernel.shape[1], kernel.shape[3]
    padding: object = window.before
    steps: list[nn.Module] = []
    if layer.samples is not None and not layer.coordinates.lifts:
        steps.append(nn.Flatten(-4, -3))
    if window.is_lopsided:
        amounts = [n for pair in zip(reversed(window.before), reversed(window.after), strict=True) for n in pair]
        pads = {"zeros": nn.ZeroPad2d, "circular": nn.CircularPad2d, "reflect": nn.ReflectionPad2d}
        lines = {"zeros": nn.ZeroPad1d, "circular": nn.CircularPad1d, "reflect": nn.ReflectionPad1d}
        pads["replicate"], lines["replicate"] = nn.ReplicationPad2d, nn.ReplicationPad1d
        steps.append((lines if line else pads)[window.mode](tuple(amounts)))
        padding = 0
    make = nn.Conv1d if line else nn.Conv2d
    convolution = make(
        layer.in_channels * v,
        out * u,
        window.kernel,  # pyright: ignore[reportArgumentType]
        window.stride,  # pyright: ignore[reportArgumentType]
        padding,  # pyright: ignore[reportArgumentType]
        window.dilation,  # pyright: ignore[reportArgumentType]
        layer.groups,
        layer.bias is not None,
        window.mode if not window.is_lopsided else "zeros",
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    with torch.no_grad():
        convolution.weight.copy_(kernel.flatten(2, 3).flatten(0, 1))
        if layer.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(layer.bias.repeat_interleave(u))
    steps.append(convolution)
    if layer.samples is not None:
        steps.append(nn.Unflatten(-3, (out, u)))
    return steps[0] if len(steps) == 1 else nn.Sequential(*steps)


def _each_once(model: nn.Module) -> Iterator[Frequencies]:
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, ContinuousConv) and id(module.omega_prime) not in seen:
            seen.add(id(module.omega_prime))
            yield module.omega_prime
