"""Rules of the layers of equidial.nn: continuous kernels, and what lives on a group axis.

With ``(g f)[.., u, p] = f[.., g^-1 u, g^-1 p]`` the defect of a layer with the kernel ``k(u^-1 v, u)`` is

    ((K rho(g) - rho(g) K) f)(u) = sum_v [k(u^-1 v, u) - k(u^-1 v, g^-1 u)] (rho(g) f)(v)

a layer of the same kind with the difference of two kernels, and so bounded as any convolution is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from equidial.adapters._geometry import Window, acts_by_lattice
from equidial.adapters.network._actions import Action, GridAction, SamplesAction, TrivialAction, grid_action
from equidial.adapters.network._module_rules import (
    adaptive_pooling,
    batch_norm,
    image_grid,
    moved_kernels,
    normalised,
    padding_gain,
    pooling,
    require_symmetric,
    summed,
    unchanged,
)
from equidial.adapters.network._walk import Call, Value, norms_of
from equidial.certificates import convolution_norm, convolution_norms, gamma, overlap, spectral_norms
from equidial.nn import (
    ContinuousConv,
    GroupBatchNorm2d,
    GroupConv2d,
    GroupDropout2d,
    GroupInstanceNorm2d,
    GroupPool2d,
    LiftingConv2d,
    OnImages,
    PointwiseGroupConv2d,
    SoftConv1d,
    SoftConv2d,
    kernel_error,
    moves_in_space,
)

_MOST = 1 << 26
"""Numbers of all kernels of a layer that varies in space, above which they are not formed."""


def continuous(call: Call) -> Value:
    """A layer with a continuous kernel: its sampled kernel is one of a convolution."""
    layer: ContinuousConv = call.module
    axes = len(layer.windows.kernel)
    reads_samples = layer.samples is not None and not layer.coordinates.lifts
    if call.x.tensor.ndim != 2 + axes + reads_samples:
        call.abstain(f"{call.label} of inputs without a batch axis")
    size = tuple(call.x.tensor.shape[-axes:])
    window = Window.of(layer)
    assert window is not None, "layers with a continuous kernel have a window"
    action = _arrives(call, layer, size)
    if action is not None:
        if not acts_by_lattice(call.walk.group):
            call.abstain(
                f"{call.walk.group.name} moves no image pixels: a bound of this kernel on its samples says nothing of "
                "the image"
            )
        require_symmetric(call, window, size)
    spread = 1.0 if layer.windows.mode == "zeros" else padding_gain(layer.windows.mode, size, window)
    places = window.outputs(size)
    found = (_by_place if moves_in_space(layer) else _everywhere)(call, layer, window, size, action, spread)
    gain, lost, defect, direct = found
    tensor = call.result()
    if layer.bias is not None:
        length = float(layer.bias.detach().norm()) * math.sqrt(layer.coordinates.outputs * math.prod(places))
        lost = lost + gamma(_fan_in(layer) + 4) * length
    after: Action | None = action and grid_action(call.walk.group, places, 2)
    if layer.samples is not None:
        after = SamplesAction(call.walk.group, layer.samples.group, places)
    return call.linear(gain, lost, defect, action=after, tensor=tensor, direct=direct)


_Bounds = tuple[float, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Norm of the layer, rounding ``[B]``, defects ``[E]``, defects at the centre ``[B, E]``."""


def _arrives(call: Call, layer: ContinuousConv, size: tuple[int, ...]) -> Action | None:
    """The action on the input, ``None`` where nothing moves; abstains where it is none that the layer is made for."""
    action, group = call.x.action, call.walk.group
    if layer.samples is None:
        return image_grid(call, len(size))
    samples = layer.samples.group
    wanted: Action = SamplesAction(group, samples, size)
    if layer.coordinates.lifts:
        wanted = GridAction(group, size, 2)
        action = wanted if isinstance(action, TrivialAction) and max(size) == 1 else action
    if action != wanted:
        call.abstain(f"{call.label} expects {wanted.name}, and meets {action.name}")
    missing = [g for g in call.walk.elements or () if SamplesAction(group, samples, size).element(g) is None]
    if missing and acts_by_lattice(group):
        call.abstain(f"its {samples.name} samples hold no {missing[0]}: sample a group that contains {group.name}")
    return wanted


def _everywhere(
    call: Call, layer: ContinuousConv, window: Window, size: tuple[int, ...], action: Action | None, spread: float
) -> _Bounds:
    """A kernel that is alike in all places."""
    walk, center = call.walk, call.x.bounds.center
    kernel = _matrix_form(layer.kernel().detach())
    padded = tuple(n + b + a for n, b, a in zip(size, window.before, window.after, strict=True))
    sizes = (window.stride, padded, window.dilation, layer.groups)
    key = (padded, spread, window.stride, window.dilation, layer.groups)
    gain = spread * walk.remembered("convolution", kernel, key, compute=lambda: convolution_norm(kernel, *sizes))
    error = walk.remembered("kernel error", kernel, compute=lambda: kernel_error(layer))
    taps, fan_in = math.prod(window.kernel), _fan_in(layer)
    reach = spread * math.sqrt(taps)
    lost = reach * (gamma(fan_in + 4) * float(kernel.norm()) + error) * center
    if action is None:
        return gain, lost, call.no_defect(), None
    if layer.samples is None:
        moved, exact = moved_kernels(call, kernel), call.no_defect().bool()
        inputs = [call.x.tensor] * walk.width
    else:
        others = [_other(layer, g) for g in walk.elements or ()]
        moved = torch.stack([k - kernel for k, _ in others])
        exact = torch.tensor([same for _, same in others])
        inputs = [action.move(g, call.x.tensor) for g in walk.elements or ()]
    norms = walk.remembered("moved kernels", moved, key, compute=lambda: convolution_norms(moved, *sizes))
    # what rounding the kernels and their differences may hide; nothing where both are one kernel by its coordinates
    lengths = reach * (moved.flatten(1).norm(dim=1) * gamma(fan_in + 4) + torch.where(exact, 0.0, 2 * error))
    with torch.no_grad():
        applied = [norms_of(_apply(layer, x, k)) for x, k in zip(inputs, moved, strict=True)]
    direct = torch.stack(applied, dim=1) * (1 + gamma(fan_in)) + center[:, None] * lengths
    return gain, lost, spread * norms + lengths, direct


def _other(layer: ContinuousConv, g: Any) -> tuple[torch.Tensor, bool]:
    """The kernel with the absolute elements ``g^-1 u``, and whether that is the same by its coordinates."""
    assert layer.samples is not None
    order = layer.samples.permutation(_sampled(layer, g))
    here, there = (layer.coordinates.absolute(layer.weight, None, o) for o in (None, order))
    same = here is None or there is None or torch.equal(here, there)
    return _matrix_form(layer.kernel(order=order).detach()), same


def _sampled(layer: ContinuousConv, g: Any) -> Any:
    assert layer.samples is not None
    found = SamplesAction(g.group, layer.samples.group, ()).element(g)
    assert found is not None, "checked when the input arrived"
    return found


def _apply(layer: ContinuousConv, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The convolution with another kernel ``[out U, in / groups V, *window]`` and no bias."""
    window = layer.windows
    flat = x if x.ndim == 2 + len(window.kernel) else x.flatten(1, 2)
    convolve = nn.functional.conv2d if len(window.kernel) == 2 else nn.functional.conv1d
    return convolve(window.pad(flat), kernel, None, window.stride, 0, window.dilation, layer.groups)


def _by_place(
    call: Call, layer: ContinuousConv, window: Window, size: tuple[int, ...], action: Action | None, spread: float
) -> _Bounds:
    """A kernel for each place: ``||K|| <= sqrt(windows that a pixel falls in) max_p ||K_p||``."""
    outputs = window.outputs(size)
    if layer.samples is None and action is not None:
        call.abstain(f"its kernel varies in space ({_amounts(layer)}), and has no group axis that moves with it")
    per_place = layer.weight.shape[0] * layer.coordinates.outputs * _fan_in(layer)
    if per_place * math.prod(outputs) > _MOST:
        call.abstain(
            f"its kernel varies in space ({_amounts(layer)}): {math.prod(outputs)} kernels of {per_place} numbers are "
            "not formed; set omega' of x and y to 0, or ask for smaller images"
        )
    spans = [
        overlap(size[i], window.kernel[i], window.stride[i], window.dilation[i], window.before[i], window.after[i])[0]
        for i in range(len(size))
    ]
    # with other padding than zeros a pixel is read at its copies too, which `spread` counts
    spans = spans if layer.windows.mode == "zeros" else [min(k, o) for k, o in zip(window.kernel, outputs, strict=True)]
    reach = spread * math.sqrt(math.prod(spans)) * (1 + 1e-15)
    error, largest, norm, differences = call.walk.remembered(
        "kernels by place",
        layer.weight,
        call.where,
        outputs,
        compute=lambda: _place_norms(call, layer, outputs, action),
    )
    lost = reach * (gamma(_fan_in(layer) + 4) * largest + error) * call.x.bounds.center
    defects = call.no_defect() + differences * (1 + gamma(_fan_in(layer) + 4))
    return reach * (norm + error), lost, reach * (defects + 2 * error if action is not None else defects), None


def _place_norms(
    call: Call, layer: ContinuousConv, outputs: tuple[int, ...], action: Action | None
) -> tuple[float, float, float, torch.Tensor]:
    """What the kernels lose, their largest Frobenius and spectral norms, and those of the differences, ``[E]``."""
    places = layer.coordinates.places(outputs)
    kernels = layer.kernel(places).detach()
    found = call.no_defect()
    for i, g in enumerate(call.walk.elements or ()) if action is not None else ():
        assert layer.samples is not None
        sampled = _sampled(layer, g)
        moved = places @ sampled.group.planar_matrix(sampled.inverse()).round().mT  # g^-1 p
        found[i] = _norms(layer, layer.kernel(moved, layer.samples.permutation(sampled)).detach() - kernels).max()
    largest = float(kernels.flatten(1).norm(dim=1).max())
    return kernel_error(layer, outputs), largest, float(_norms(layer, kernels).max()), found


def _norms(layer: ContinuousConv, kernels: torch.Tensor) -> torch.Tensor:
    """Spectral norms of ``[P, out, U, in / groups, V, *window]`` as matrices, the largest over groups, ``[P]``."""
    matrices = kernels.flatten(3).flatten(1, 2)
    return spectral_norms(matrices.unflatten(1, (layer.groups, -1))).amax(1)


def _matrix_form(kernel: torch.Tensor) -> torch.Tensor:
    """``[out U, in / groups V, *window]``."""
    return kernel.flatten(2, 3).flatten(0, 1)


def _fan_in(layer: ContinuousConv) -> int:
    return layer.in_channels // layer.groups * layer.coordinates.inputs * math.prod(layer.windows.kernel)


def _amounts(layer: ContinuousConv) -> str:
    return ", ".join(f"omega' {axis} {layer.omega_prime.value(axis):g}" for axis in layer.omega_prime.axes)


def group_pool(call: Call) -> Value:
    """Mean over samples: ``1 / sqrt(U)``; maximum: 1. What is left is an image."""
    action = _samples(call)
    mode, count = call.module.mode, action.samples.order
    gain = (1 + 1e-15) / math.sqrt(count) if mode == "mean" else 1.0
    after = grid_action(call.walk.group, action.shape, 2)
    return call.lipschitz(gain, after, lost=summed(call, count, gain) if mode == "mean" else 0.0)


def group_instance_norm(call: Call) -> Value:
    """Each channel over samples and places; with running statistics as batch normalisation."""
    module: Any = call.module
    if module.running_var is not None:
        return batch_norm(call)
    call.require_permutation()
    x = call.x.tensor
    return normalised(call, x.reshape(*x.shape[:2], -1), module.weight, module.eps)


def on_images(call: Call) -> Value:
    """A pooling of the image of each sample: it treats all channels alike, so samples may be permuted."""
    action, inner = _samples(call), call.module.layer
    rule = _ON_IMAGES.get(type(inner))
    if rule is None or inner._forward_hooks or inner._forward_pre_hooks:
        known = ", ".join(kind.__name__ for kind in _ON_IMAGES)
        call.abstain(f"{type(inner).__name__} on the images of samples has no rule; these have: {known}")
    channels, samples = call.x.tensor.shape[1:3]
    images = Value(call.x.tensor.flatten(1, 2), grid_action(action.group, action.shape, 2), call.x.bounds)
    label, where = type(inner).__name__, f"{call.where}.layer"
    asked = replace(call, module=inner, execute=inner, label=label, where=where, args=(images,), input=None)
    found = rule(asked)
    tensor = found.tensor.unflatten(1, (channels, samples))
    return Value(tensor, SamplesAction(action.group, action.samples, tuple(tensor.shape[3:])), found.bounds)


def _samples(call: Call) -> SamplesAction:
    action = call.x.action
    if not isinstance(action, SamplesAction) or len(action.shape) != 2:
        call.abstain(f"{call.label} expects features with a group axis, and meets {action.name}")
    return action


_ON_IMAGES: Mapping[type[nn.Module], Callable[[Call], Value]] = {
    nn.MaxPool2d: pooling,
    nn.AvgPool2d: pooling,
    nn.AdaptiveAvgPool2d: adaptive_pooling,
    nn.AdaptiveMaxPool2d: adaptive_pooling,
    nn.Identity: unchanged,
}

GROUP_RULES: Mapping[type[nn.Module], Callable[[Call], Any]] = {
    SoftConv1d: continuous,
    SoftConv2d: continuous,
    LiftingConv2d: continuous,
    GroupConv2d: continuous,
    PointwiseGroupConv2d: continuous,
    GroupPool2d: group_pool,
    GroupBatchNorm2d: batch_norm,
    GroupInstanceNorm2d: group_instance_norm,
    GroupDropout2d: unchanged,
    OnImages: on_images,
}
"""Rules by module; :class:`GroupLayerNorm2d` is a ``GroupNorm`` and has that one's."""
