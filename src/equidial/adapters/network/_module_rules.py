"""Rules of modules: how each commutes with an action, its Lipschitz constant, its defect.

A rule gets a :class:`~equidial.adapters.network._walk.Call` and returns a value, or abstains with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from equidial.adapters._geometry import Window, acts_by_lattice
from equidial.adapters._matching import pattern_for
from equidial.adapters.network._actions import (
    Action,
    GridAction,
    SamplesAction,
    TrivialAction,
    VectorAction,
    grid_action,
    vector_action,
)
from equidial.adapters.network._walk import Call, Rule, Value, norms_of
from equidial.certificates import (
    action_error,
    certify_weight,
    convolution_norm,
    convolution_norms,
    gamma,
    normalisation_gain,
    operator_defect,
    overlap,
    slope_bound,
    spectral_norm,
)
from equidial.filters import Constraint
from equidial.nn import NormNonlinearity
from equidial.representations import Pixels, Representation, Trivial


def require_symmetric(call: Call, window: Window, size: tuple[int, ...]) -> None:
    """Abstain unless the windows of a moved image are the moved windows."""
    if not window.fits(call.walk.group, size):
        call.abstain(
            f"stride {window.stride} with padding {window.before}/{window.after} at input {size} does not fit "
            f"{call.walk.group.name}: the windows of a moved image are not the moved windows"
        )


def image_grid(call: Call, axes: int) -> GridAction | None:
    """The grid action of an image ``[B, C, n..]``, ``None`` where nothing moves; abstains for other actions."""
    x = call.x
    if isinstance(x.action, TrivialAction):
        return None
    if not isinstance(x.action, GridAction) or x.action.axes != tuple(range(2, 2 + axes)) or x.tensor.ndim != 2 + axes:
        call.abstain(f"{call.label} expects an image that the group moves, and meets {x.action.name}")
    return x.action


def on_grid(call: Call, tensor: torch.Tensor, axes: int) -> Action:
    """The action on a result ``[B, C, n..]``."""
    return grid_action(call.walk.group, tuple(tensor.shape[-axes:]), 2)


def convolution(call: Call) -> Value:
    """``Conv1d``, ``Conv2d``: the defect of ``g`` is the convolution with ``g w - w``."""
    module: Any = call.module
    axes = len(module.kernel_size)
    if call.x.tensor.ndim != 2 + axes:
        call.abstain(f"{call.label} of inputs without a batch axis")
    action = image_grid(call, axes)
    window = Window.of(module)
    assert window is not None, "registered for Conv1d and Conv2d"
    size = tuple(call.x.tensor.shape[2:])
    mixes_channels = max(window.kernel) == max(window.stride) == 1 and max(*window.before, *window.after) == 0
    if action is not None and not mixes_channels:
        if not acts_by_lattice(call.walk.group):
            call.abstain(
                f"{call.walk.group.name} moves no image pixels: a bound of this kernel on its own window says nothing "
                "of the image"
            )
        require_symmetric(call, window, size)
    weight = module.weight.detach()
    padded = tuple(n + b + a for n, b, a in zip(size, window.before, window.after, strict=True))
    spread = 1.0 if module.padding_mode == "zeros" else padding_gain(module.padding_mode, size, window)

    key = (padded, spread, window.stride, window.dilation, module.groups)
    gain = spread * call.walk.remembered(
        "convolution",
        weight,
        key,
        compute=lambda: convolution_norm(weight, window.stride, padded, window.dilation, module.groups),
    )
    taps, fan_in = math.prod(window.kernel), weight[0].numel()
    defect, direct = call.no_defect(), None
    if action is not None and max(window.kernel) > 1:
        moved = moved_kernels(call, weight)
        sizes = (window.stride, padded, window.dilation, module.groups)
        defect = spread * call.walk.remembered(
            "moved kernels", weight, key, compute=lambda: convolution_norms(moved, *sizes)
        )
        # also what rounding the differences themselves may hide
        lengths = moved.flatten(1).norm(dim=1) * gamma(fan_in + 4) * spread * math.sqrt(taps)
        defect = defect + lengths
        direct = _without_bias(call, moved) * (1 + gamma(fan_in)) + call.x.bounds.center[:, None] * lengths
    bias = 0.0 if module.bias is None else float(module.bias.detach().norm())
    tensor = call.result()
    positions = math.sqrt(math.prod(tensor.shape[2:]))
    lost = gamma(fan_in + 4) * (
        spread * math.sqrt(taps) * float(weight.norm()) * call.x.bounds.center + bias * positions
    )
    after = action and on_grid(call, tensor, axes)
    return call.linear(gain, lost, defect, action=after, tensor=tensor, direct=direct)


def _without_bias(call: Call, kernels: torch.Tensor) -> torch.Tensor:
    """``||kernel * h||`` at the centre for each of several kernels in place of the module's, ``[B, E]``."""
    module: Any = call.module
    return torch.stack([norms_of(module._conv_forward(call.x.tensor, kernel, None)) for kernel in kernels], dim=1)


def moved_kernels(call: Call, weight: torch.Tensor) -> torch.Tensor:
    """``g w - w`` for every element, ``[E, out, in/groups, k..]``."""
    assert call.walk.elements is not None, "lattice groups are finite"
    pixels = Pixels(call.walk.group, tuple(weight.shape[2:]))
    flat = weight.flatten(2)
    return torch.stack([(pixels.map_of(g).on_last_axis(flat) - flat).reshape(weight.shape) for g in call.walk.elements])


def padding_gain(mode: str, size: tuple[int, ...], window: Window) -> float:
    """Norm of padding by copies: the root of how often one pixel is copied at most."""
    copies = 1
    for n, before, after in zip(size, window.before, window.after, strict=True):
        index = torch.arange(n, dtype=torch.float64)[None, None]
        padded = nn.functional.pad(index, (before, after), mode=mode)
        copies *= int(torch.bincount(padded.long().flatten(), minlength=n).max())
    return math.sqrt(copies) * (1 + 1e-15)


def linear(call: Call) -> Value:
    """``Linear``: between declared representations, to invariants, or position by position on channels."""
    module, action, walk = call.module, call.x.action, call.walk
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    gain = walk.remembered("matrix", weight, compute=lambda: spectral_norm(weight))
    positions = math.sqrt(call.x.tensor[0].numel() / call.x.tensor.shape[-1])
    length = 0.0 if bias is None else float(bias.norm()) * positions
    lost = gamma(module.in_features + 4) * (float(weight.norm()) * call.x.bounds.center + length)
    pattern = pattern_for(walk.config.representations, call.where)
    if pattern is not None:
        rep_in, rep_out = (walk.config.space(given) for given in walk.config.representations[pattern])
        arrives = vector_action(rep_in)
        if arrives != action:
            call.abstain(f"its declared input is {rep_in.name}, and what arrives is {action.name}")
        return _between(call, gain, lost, positions, rep_in, rep_out)
    if isinstance(action, VectorAction):
        rep = action.rep
        if not rep.is_permutation:
            call.abstain(f"it has no declared output space; add representations={{{call.where!r}: ({rep.name!r}, ..)}}")
        return _between(call, gain, lost, positions, rep, module.out_features * Trivial(rep.group))
    if isinstance(action, GridAction | SamplesAction) and call.x.tensor.ndim - 1 in action.axes:
        call.abstain(f"it mixes the points of {action.name}; pool or flatten before it")
    return call.linear(gain, lost, call.no_defect())


def _between(
    call: Call, gain: float, lost: torch.Tensor, positions: float, rep_in: Representation, rep_out: Representation
) -> Value:
    walk, weight = call.walk, call.module.weight.detach()
    constraint = Constraint.equivariants(rep_in, rep_out)
    defect = walk.remembered(
        "operator", weight, constraint, walk.radius, compute=lambda: operator_defect(constraint, weight, walk.radius)
    )
    offset = None
    if call.module.bias is not None:
        bias = call.module.bias.detach()
        offset = positions * walk.remembered("bias", bias, rep_out, compute=lambda: _vector_defect(call, rep_out, bias))
    direct = None
    if walk.elements is not None and not (rep_in.residual_generators() or rep_out.residual_generators()):
        moved = torch.stack([constraint.difference(g, weight) for g in walk.elements])
        applied = torch.einsum("eij,b...j->be...i", moved, call.x.tensor).flatten(2).norm(dim=2)
        lengths = moved.flatten(1).norm(dim=1) * gamma(rep_in.dim + 4) + action_error(constraint, float(weight.norm()))
        direct = applied * (1 + gamma(call.x.tensor[0].numel())) + call.x.bounds.center[:, None] * lengths
    return call.linear(gain, lost, defect, offset, action=vector_action(rep_out), direct=direct)


def _vector_defect(call: Call, rep: Representation, vector: torch.Tensor) -> torch.Tensor:
    """``||c - rho(g) c||``, ``[E]``, rounding included."""
    work = vector.to(torch.float64)
    if call.walk.elements is None:
        # certify_weight speaks of w^T rho(g) = w^T: the dual turns it into rho(g) c = c
        found = certify_weight(Constraint.invariants(rep.dual), work, call.walk.radius).absolute
        return torch.tensor([found], dtype=torch.float64)
    lost = 0.0 if rep.is_permutation else gamma(rep.dim + 2) * math.sqrt(rep.dim) + 2 * rep.rounding
    found = torch.stack([(rep.map_of(g).on_last_axis(work) - work).norm() for g in call.walk.elements])
    return found * (1 + gamma(rep.dim + 4)) + lost * float(work.norm())


def batch_norm(call: Call) -> Value:
    """In evaluation an affine map per channel: ``max |gamma / sqrt(var + eps)|``."""
    module: Any = call.module
    if module.running_var is None:
        call.abstain(f"{call.label} without running statistics depends on the other inputs of the batch")
    action = call.x.action
    if isinstance(action, VectorAction) or (isinstance(action, GridAction) and 1 in action.axes):
        call.abstain(f"{call.label} scales the entries of {action.name} one by one")
    scale = (module.running_var + module.eps).rsqrt()
    shift = -module.running_mean * scale
    if module.affine:
        scale, shift = scale * module.weight.detach(), shift * module.weight.detach() + module.bias.detach()
    gain = float(scale.abs().max()) * (1 + 1e-14)
    positions = math.sqrt(call.x.tensor[0, 0].numel())
    lost = gamma(16) * (
        gain * call.x.bounds.center + positions * float((shift.abs() + scale.abs() * module.running_mean.abs()).norm())
    )
    return call.linear(gain, lost, call.no_defect())


def layer_norm(call: Call) -> Value:
    """Rows of the last axes: commutes with what moves whole rows; constant through eps and the rows at hand."""
    module: Any = call.module
    axes = len(module.normalized_shape)
    action = call.x.action
    if isinstance(action, VectorAction) or (
        isinstance(action, GridAction | SamplesAction) and max(action.axes) >= call.x.tensor.ndim - axes
    ):
        call.abstain(f"{call.label} normalises over the entries of {action.name}")
    call.require_permutation()
    rows = call.x.tensor.flatten(-axes)
    return normalised(call, rows.reshape(len(rows), -1, rows.shape[-1]), module.weight, module.eps)


def group_norm(call: Call) -> Value:
    """Groups of channels over all positions: commutes with permutations of the positions."""
    module: Any = call.module
    action = call.x.action
    if isinstance(action, VectorAction) or (isinstance(action, GridAction) and 1 in action.axes):
        call.abstain(f"{call.label} normalises over the entries of {action.name}")
    call.require_permutation()
    x = call.x.tensor
    return normalised(call, x.reshape(len(x), module.num_groups, -1), module.weight, module.eps)


def normalised(call: Call, rows: torch.Tensor, scale: torch.Tensor | None, eps: float) -> Value:
    count = rows.shape[-1]
    centred = (rows - rows.mean(-1, keepdim=True)).norm(dim=-1).amin(1)
    distance = call.x.bounds.rounding + call.x.bounds.reach + gamma(count + 8) * call.x.bounds.center
    factor = 1.0 if scale is None else float(scale.detach().abs().max())
    gain = normalisation_gain(centred, distance, count, eps) * factor
    whole = factor * math.sqrt(rows[0].numel())  # a normalised row is no longer than the root of its size
    return call.lipschitz(gain, lost=gamma(count + 16) * gain * call.x.bounds.center + gamma(16) * whole)


def pooling(call: Call) -> Value:
    """``MaxPool``: the root of the windows a pixel falls in. ``AvgPool``: that divided by the root of the area."""
    module: Any = call.module
    window = Window.of(module)
    assert window is not None, "registered for pooling windows"
    axes = len(window.kernel)
    action = image_grid(call, axes)
    size = tuple(call.x.tensor.shape[2:])
    if window.ceil_mode and window.is_strided:
        call.abstain(f"{call.label} with ceil_mode, whose last windows are cut")
    if action is not None:
        call.require_permutation()
        require_symmetric(call, window, size)
    spans = [
        overlap(size[i], window.kernel[i], window.stride[i], window.dilation[i], window.before[i], window.after[i])
        for i in range(axes)
    ]
    windows = math.prod(most for most, _ in spans)
    tensor = call.result()
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
        return call.lipschitz(math.sqrt(windows), action and on_grid(call, tensor, axes), tensor)
    area = math.prod(window.kernel)
    divisor = getattr(module, "divisor_override", None) or area
    fewest = math.prod(least for _, least in spans)
    # sum over windows of (sum of pixels / divisor)^2 <= windows * pixels / divisor^2 * ||x||^2
    square = windows / max(fewest, 1) if not module.count_include_pad else windows * area / divisor**2
    gain = math.sqrt(square) * (1 + 1e-15)
    return call.lipschitz(gain, action and on_grid(call, tensor, axes), tensor, summed(call, area, gain))


def adaptive_pooling(call: Call) -> Value:
    """One value per channel: ``1 / sqrt(pixels)`` for means, 1 for maxima; nothing moves it."""
    axes = 1 if isinstance(call.module, nn.AdaptiveAvgPool1d | nn.AdaptiveMaxPool1d) else 2
    image_grid(call, axes)
    call.require_permutation()
    tensor = call.result()
    if max(tensor.shape[2:]) != 1:
        if tuple(tensor.shape[2:]) == tuple(call.x.tensor.shape[2:]):
            return call.lipschitz(1.0, tensor=tensor)
        call.abstain(f"{call.label} to {tuple(tensor.shape[2:])}, whose windows differ; pool to one value")
    pixels = math.prod(call.x.tensor.shape[2:])
    is_mean = isinstance(call.module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
    gain = (1 + 1e-15) / math.sqrt(pixels) if is_mean else 1.0
    return call.lipschitz(gain, TrivialAction(), tensor, summed(call, pixels, gain))


def summed(call: Call, terms: int, gain: float) -> torch.Tensor:
    """What float64 sums of so many terms lose, ``[B]``."""
    return gamma(terms + 2) * gain * call.x.bounds.center


def norm_nonlinearity(call: Call) -> Value:
    """Commutes with the representation that it was built for."""
    module: Any = call.module
    action = call.x.action
    if vector_action(module.representation) != action:
        call.abstain(f"it is built for {module.representation.name}, and what arrives is {action.name}")
    return call.lipschitz(module.lipschitz)


def unchanged(call: Call) -> Value:
    """``Identity``, and ``Dropout`` in evaluation."""
    return call.moved_only()


def _slope(name: str) -> Rule:
    return lambda call: call.pointwise(slope_bound(name))


def _slope_of(name: str, parameter: str) -> Rule:
    return lambda call: call.pointwise(slope_bound(name, float(getattr(call.module, parameter))))


def _gelu(call: Call) -> Value:
    return call.pointwise(slope_bound("gelu" if call.module.approximate == "none" else "gelu_tanh"))


def _prelu(call: Call) -> Value:
    slopes = call.module.weight.detach().abs()
    if len(slopes) > 1 and isinstance(call.x.action, VectorAction):
        call.abstain(f"PReLU with a slope of its own for each entry of {call.x.action.name}")
    return call.pointwise(slope_bound("prelu", float(slopes.max())))


ACTIVATIONS: Mapping[type[nn.Module], Callable[[Call], Any]] = {
    nn.ReLU: _slope("relu"),
    nn.ReLU6: _slope("relu6"),
    nn.Hardtanh: _slope("hardtanh"),
    nn.Tanh: _slope("tanh"),
    nn.Tanhshrink: _slope("tanhshrink"),
    nn.Sigmoid: _slope("sigmoid"),
    nn.LogSigmoid: _slope("logsigmoid"),
    nn.Hardsigmoid: _slope("hardsigmoid"),
    nn.Softplus: _slope("softplus"),
    nn.Softsign: _slope("softsign"),
    nn.Softshrink: _slope("softshrink"),
    nn.SiLU: _slope("silu"),
    nn.Mish: _slope("mish"),
    nn.SELU: _slope("selu"),
    nn.CELU: _slope("celu"),
    nn.Hardswish: _slope("hardswish"),
    nn.GELU: _gelu,
    nn.ELU: _slope_of("elu", "alpha"),
    nn.LeakyReLU: _slope_of("leaky_relu", "negative_slope"),
    nn.PReLU: _prelu,
}

MODULE_RULES: Mapping[type[nn.Module], Callable[[Call], Any]] = {
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Linear: linear,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.MaxPool1d: pooling,
    nn.MaxPool2d: pooling,
    nn.AvgPool1d: pooling,
    nn.AvgPool2d: pooling,
    nn.AdaptiveAvgPool1d: adaptive_pooling,
    nn.AdaptiveAvgPool2d: adaptive_pooling,
    nn.AdaptiveMaxPool1d: adaptive_pooling,
    nn.AdaptiveMaxPool2d: adaptive_pooling,
    NormNonlinearity: norm_nonlinearity,
    nn.Identity: unchanged,
    nn.Dropout: unchanged,
    nn.Dropout1d: unchanged,
    nn.Dropout2d: unchanged,
    nn.AlphaDropout: unchanged,
    **ACTIVATIONS,
}
