"""Rules of functions, operators and tensor methods: what a forward does between its modules."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from equidial.adapters._geometry import Window, acts_by_lattice
from equidial.adapters.network._actions import (
    Action,
    GridAction,
    SamplesAction,
    TrivialAction,
    VectorAction,
    grid_action,
    vector_action,
)
from equidial.adapters.network._module_rules import summed
from equidial.adapters.network._walk import Call, Value, norms_of
from equidial.certificates import UNIT_ROUNDOFF, concatenated, slope_bound
from equidial.representations import Trivial


def add(call: Call) -> Value:
    """Two values that move alike, or a value and a constant with a defect of its own."""
    left, right = call.args[0], call.args[1]
    if float(call.argument(2, "alpha", 1.0)) != 1.0:
        call.abstain(f"{call.label} with alpha, which no rule expects")
    if not (isinstance(left, Value) and isinstance(right, Value)):
        value, other = (left, right) if isinstance(left, Value) else (right, left)
        return _add_constant(call, value, other)
    if left.action != right.action:
        call.abstain(f"{call.label} of {left.action.name} and {right.action.name}, which move differently")
    if left.tensor.shape != right.tensor.shape:
        call.abstain(f"{call.label} of shapes {tuple(left.tensor.shape)} and {tuple(right.tensor.shape)}")
    tensor = call.result()
    center = norms_of(tensor)
    bounds = left.bounds.plus(right.bounds, center, 2 * UNIT_ROUNDOFF * center)
    return Value(tensor, left.action, bounds)


def _add_constant(call: Call, value: Value, constant: Any) -> Value:
    tensor = call.result()
    if tensor.shape != value.tensor.shape:
        call.abstain(f"{call.label} of a constant that widens {tuple(value.tensor.shape)} to {tuple(tensor.shape)}")
    given = torch.as_tensor(constant, dtype=torch.float64)
    if given.ndim == tensor.ndim and given.shape[0] != 1:
        call.abstain(f"{call.label} of a constant for each input of the batch")
    table = given.expand(1, *tensor.shape[1:])
    center = norms_of(tensor)
    lost = 2 * UNIT_ROUNDOFF * center
    if (given.numel() == 1 and value.action.permutes) or isinstance(value.action, TrivialAction):
        bounds = value.bounds.lipschitz(center, 1.0, lost)
        return Value(tensor, value.action, bounds)
    if call.walk.elements is None:
        call.abstain(f"{call.label} of a constant to {value.action.name}; make it the bias of a declared linear layer")
    defect = torch.stack([(value.action.move(g, table) - table).norm() for g in call.walk.elements])
    defect = defect * (1 + 1e-12) + (0.0 if value.action.permutes else 1e-12 * float(table.norm()))
    return call.of(value).linear(1.0, lost, call.no_defect(), defect, tensor=tensor)


def subtract(call: Call) -> Value:
    """As a sum; the sign changes no bound."""
    return add(call)


def multiply(call: Call) -> Value:
    """A value times a constant number, or times a constant tensor that the group may move."""
    left, right = call.args[0], call.args[1]
    if isinstance(left, Value) and isinstance(right, Value):
        call.abstain(f"{call.label} of two values, which has no Lipschitz constant; gate by a module with a rule")
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    assert isinstance(value, Value), "rules are asked only where a value takes part"
    call = call.of(value)
    factor = torch.as_tensor(constant, dtype=torch.float64)
    if call.label in ("truediv", "div", "div_"):
        if not isinstance(left, Value):
            call.abstain(f"{call.label} by a value, which has no Lipschitz constant")
        factor = 1 / factor
    gain = float(factor.abs().max()) * (1 + 4 * UNIT_ROUNDOFF)
    tensor = call.result()
    if factor.numel() == 1 or isinstance(value.action, TrivialAction):
        return call.lipschitz(gain, tensor=tensor)
    if tensor.shape != value.tensor.shape or (factor.ndim == tensor.ndim and factor.shape[0] != 1):
        call.abstain(
            f"{call.label} by a constant that widens {tuple(value.tensor.shape)}, or differs from input to input"
        )
    call.require_permutation()
    if call.walk.elements is None:
        call.abstain(f"{call.label} by a constant tensor on {value.action.name}")
    table = factor.expand(1, *tensor.shape[1:])
    defect = torch.stack([(value.action.move(g, table) - table).abs().max() for g in call.walk.elements])
    return call.linear(gain, 4 * UNIT_ROUNDOFF * norms_of(tensor), defect * (1 + 1e-12), tensor=tensor)


def negate(call: Call) -> Value:
    """``-h``."""
    return call.moved_only()


def concatenate(call: Call) -> Value:
    """Side by side on an axis that no element moves, or on the axis of representations."""
    values: Sequence[Any] = call.args[0]
    if not all(isinstance(v, Value) for v in values):
        call.abstain(f"{call.label} of values and constants, e.g. a class token; nothing is claimed of what it does")
    call = call.of(values[0])
    axis = int(call.argument(1, "dim", 0)) % values[0].tensor.ndim
    tensor = call.result()
    center = norms_of(tensor)
    actions = [v.action for v in values]
    action: Action = actions[0]
    if any(isinstance(a, VectorAction) for a in actions) and axis == tensor.ndim - 1:
        if any(isinstance(a, GridAction) for a in actions):
            call.abstain(f"{call.label} of {' and '.join(a.name for a in actions)}")
        trivial = Trivial(call.walk.group)
        reps = [v.action.rep if isinstance(v.action, VectorAction) else v.tensor.shape[-1] * trivial for v in values]
        action = vector_action(functools.reduce(operator.add, reps))
    elif any(a != action for a in actions):
        call.abstain(f"{call.label} of {' and '.join(dict.fromkeys(a.name for a in actions))}, which move differently")
    elif isinstance(action, GridAction | SamplesAction) and axis in action.axes:
        call.abstain(f"{call.label} along the grid axis of {action.name}")
    if axis == 0 or len(tensor) != call.walk.inputs:
        call.abstain(f"{call.label} along the batch axis")
    return Value(tensor, action, concatenated([v.bounds for v in values], center))


def mean(call: Call) -> Value:
    """Over grid axes: ``1 / sqrt(points)``, and nothing moves the result; over others: the grid stays."""
    x = call.x
    given = call.argument(1, "dim")
    if given is None:
        call.abstain(f"{call.label} over everything, the batch included")
    axes = sorted({a % x.tensor.ndim for a in ([given] if isinstance(given, int) else given)})
    if 0 in axes:
        call.abstain(f"{call.label} over the batch axis")
    tensor = call.result()
    count = math.prod(x.tensor.shape[a] for a in axes)
    action = _without(call, axes, bool(call.argument(2, "keepdim", False)))
    gain = {"mean": 1 / math.sqrt(count), "sum": math.sqrt(count)}.get(call.label, 1.0) * (1 + 1e-15)
    return call.lipschitz(1.0 if call.label in ("amax", "amin") else gain, action, tensor, summed(call, count, gain))


def _without(call: Call, axes: Sequence[int], keepdim: bool) -> Action:
    action = call.x.action
    if isinstance(action, TrivialAction):
        return action
    if isinstance(action, GridAction):
        inside = set(axes) & set(action.axes)
        if not inside:
            below = 0 if keepdim else sum(a < action.axis for a in axes)
            return GridAction(action.group, action.shape, action.axis - below, action.flat)
        if inside == set(action.axes):
            call.require_permutation()
            return TrivialAction()
        call.abstain(f"{call.label} over a part of {action.name}; average over all its axes at once")
    if isinstance(action, SamplesAction):
        return _without_samples(call, action, axes, keepdim)
    if call.x.tensor.ndim - 1 in axes:
        call.abstain(f"{call.label} over the entries of {action.name}")
    return action


def _without_samples(call: Call, action: SamplesAction, axes: Sequence[int], keepdim: bool) -> Action:
    """Over the samples an image is left, over all places the samples, over both nothing that moves."""
    inside, places = set(axes) & set(action.axes), set(action.axes) - {2}
    if not inside and (keepdim or min(axes) > max(action.axes)):
        return action
    call.require_permutation()
    if inside == set(action.axes):
        return TrivialAction()
    if inside == {2} and len(axes) == 1 and not keepdim:
        return grid_action(action.group, action.shape, 2)
    if inside == places and len(axes) == len(places):
        return SamplesAction(action.group, action.samples, tuple(1 for _ in places) if keepdim else ())
    call.abstain(f"{call.label} over a part of {action.name}; average over samples, over all places, or over both")


def _refuse_samples(call: Call) -> None:
    if isinstance(call.x.action, SamplesAction):
        call.abstain(f"{call.label} of {call.x.action.name}; pool the group axis before it (GroupPool2d)")


def reshape(call: Call) -> Value:
    """``flatten``, ``view``, ``reshape``, ``squeeze``..: the grid must stay whole, or become part of a vector."""
    _refuse_samples(call)
    x = call.x
    tensor = call.result()
    old, new = tuple(x.tensor.shape), tuple(tensor.shape)
    if not new or new[0] != old[0]:
        call.abstain(f"{call.label} from {old} to {new}, which does not keep the batch axis")
    return call.moved_only(tensor, _reshaped(call, old, new))


def _reshaped(call: Call, old: tuple[int, ...], new: tuple[int, ...]) -> Action:
    action = call.x.action
    if isinstance(action, TrivialAction):
        return action
    if isinstance(action, VectorAction):
        if new[-1] != old[-1]:
            call.abstain(f"{call.label} from {old} to {new} takes the entries of {action.name} apart")
        return action
    assert isinstance(action, GridAction), "samples are refused above, and there are three other kinds of actions"
    before = math.prod(old[: action.axis])
    points = math.prod(action.shape)
    for axis in range(1, len(new)):
        if math.prod(new[:axis]) != before:
            continue
        if new[axis : axis + len(action.shape)] == action.shape:
            return GridAction(action.group, action.shape, axis)
        if new[axis] == points:
            return GridAction(action.group, action.shape, axis, flat=True)
    channels = math.prod(old[1 : action.axis])
    if action.axes[-1] == len(old) - 1 and len(new) == 2 and acts_by_lattice(action.group):
        return vector_action(channels * action.pixels)
    call.abstain(f"{call.label} from {old} to {new} takes {action.name} apart")


def permute(call: Call) -> Value:
    """``permute``, ``transpose``, ``movedim``: the grid axes stay together and in order."""
    _refuse_samples(call)
    x = call.x
    tensor = call.result()
    # axes of distinct sizes tell where each one goes
    probe = torch.empty(*range(2, 2 + x.tensor.ndim), device="meta")
    order = [n - 2 for n in call.execute(probe, *call.args[1:], **call.kwargs).shape]
    if order[0] != 0:
        call.abstain(f"{call.label} moves the batch axis")
    action = x.action
    if isinstance(action, GridAction):
        places = [order.index(a) for a in action.axes]
        if places != list(range(places[0], places[0] + len(places))):
            call.abstain(f"{call.label} takes {action.name} apart")
        action = GridAction(action.group, action.shape, places[0], action.flat)
    elif isinstance(action, VectorAction) and order[-1] != len(order) - 1:
        call.abstain(f"{call.label} moves the entries of {action.name} off the last axis")
    return call.moved_only(tensor, action)


def take(call: Call) -> Any:
    """``h[..]``: slices of axes that do not move; strided slices of a grid where they are symmetric."""
    if not isinstance(call.args[0], Value):
        call.abstain(f"{call.label} by a value")
    _refuse_samples(call)
    x, given = call.x, call.args[1]
    index = list(given) if isinstance(given, tuple) else [given]
    if any(i is Ellipsis for i in index):
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        missing = x.tensor.ndim - sum(i is not None and i is not Ellipsis for i in index)
        index[at : at + 1] = [slice(None)] * missing
    if not all(isinstance(i, int | slice) for i in index):
        call.abstain(f"{call.label} by a tensor or a new axis, which no rule expects")
    index += [slice(None)] * (x.tensor.ndim - len(index))
    if index[0] != slice(None):
        call.abstain(f"{call.label} picks inputs of the batch")
    action = x.action
    tensor = call.result()
    if isinstance(action, VectorAction):
        if index[-1] != slice(None):
            call.abstain(f"{call.label} takes {action.name} apart")
    elif isinstance(action, GridAction):
        action = _sliced(call, action, index, tensor)
    return call.moved_only(tensor, action)


def _sliced(call: Call, action: GridAction, index: Sequence[int | slice], tensor: torch.Tensor) -> Action:
    chosen = [index[a] for a in action.axes]
    gone = sum(isinstance(i, int) for i in index[: action.axis])
    if all(i == slice(None) for i in chosen):
        return GridAction(action.group, action.shape, action.axis - gone, action.flat)
    steps = [i.step or 1 for i in chosen if isinstance(i, slice) and i.start in (None, 0) and i.stop is None]
    if action.flat or len(steps) != len(chosen):
        call.abstain(f"{call.label} picks points of {action.name}")
    ones, zeros = (1,) * len(steps), (0,) * len(steps)
    window = Window(ones, tuple(steps), zeros, zeros, ones)
    if not window.fits(call.walk.group, action.shape):
        call.abstain(f"{call.label} in steps of {tuple(steps)} does not fit {action.name}: the last point is left out")
    axis = action.axis - gone
    return grid_action(action.group, tuple(tensor.shape[axis : axis + len(steps)]), axis)


def pad(call: Call) -> Value:
    """Zeros around axes that do not move, or around a grid on both sides alike."""
    if call.argument(2, "mode", "constant") != "constant" or (call.argument(3, "value") or 0) != 0:
        call.abstain(f"{call.label} with other values than zeros")
    _refuse_samples(call)
    amounts, x = list(call.args[1]), call.x
    action, last = x.action, x.tensor.ndim - 1
    pairs = {last - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    tensor = call.result()
    if isinstance(action, VectorAction) and pairs.get(last, (0, 0)) != (0, 0):
        call.abstain(f"{call.label} widens the entries of {action.name}")
    if isinstance(action, GridAction):
        around = [pairs.get(a, (0, 0)) for a in action.axes]
        if any(pair != (0, 0) for pair in around):
            ones = (1,) * len(around)
            before, after = zip(*around, strict=True)
            if action.flat or not Window(ones, ones, before, after, ones).fits(call.walk.group, action.shape):
                call.abstain(f"{call.label} by {around}, which does not fit {action.name}")
            action = grid_action(
                action.group, tuple(tensor.shape[action.axis : action.axis + len(around)]), action.axis
            )
    return call.moved_only(tensor, action)


def shape_of(call: Call) -> Any:
    """``x.shape``, ``x.size()``, ``x.dtype``..: plain data."""
    args = [a.tensor if isinstance(a, Value) else a for a in call.args]
    found = call.execute(*args, **call.kwargs)
    if isinstance(found, torch.Tensor):
        call.abstain(f"{call.label} {call.args[1:]} of a value")
    return found


def same(call: Call) -> Value:
    """Copies, casts and placements: the certificate speaks of exact arithmetic."""
    return call.x


def dropout(call: Call) -> Value:
    """Nothing in evaluation."""
    if call.argument(2, "training", True):
        call.abstain("dropout that is on in evaluation; pass training=self.training")
    return call.x


def _slope(name: str) -> Callable[[Call], Any]:
    return lambda call: call.pointwise(slope_bound(name))


def _gelu(call: Call) -> Value:
    return call.pointwise(slope_bound("gelu" if call.argument(1, "approximate", "none") == "none" else "gelu_tanh"))


def _leaky(call: Call) -> Value:
    return call.pointwise(slope_bound("leaky_relu", float(call.argument(1, "negative_slope", 0.01))))


def _elu(call: Call) -> Value:
    return call.pointwise(slope_bound("elu", float(call.argument(1, "alpha", 1.0))))


_SHAPES = (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
_SHAPE_METHODS = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten")
_SAME = ("contiguous", "clone", "detach", "to", "float", "double", "type_as", "cpu")
_NAMED = {
    "relu": (torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"),
    "relu6": (functional.relu6,),
    "tanh": (torch.tanh, functional.tanh, "tanh", "tanh_"),
    "sigmoid": (torch.sigmoid, functional.sigmoid, "sigmoid", "sigmoid_"),
    "hardtanh": (functional.hardtanh,),
    "hardsigmoid": (functional.hardsigmoid,),
    "hardswish": (functional.hardswish,),
    "softplus": (functional.softplus,),
    "softsign": (functional.softsign,),
    "logsigmoid": (functional.logsigmoid,),
    "silu": (functional.silu,),
    "mish": (functional.mish,),
    "selu": (functional.selu, torch.selu),
    "celu": (functional.celu,),
    "abs": (torch.abs, "abs"),
    "sin": (torch.sin, "sin"),
    "cos": (torch.cos, "cos"),
}

FUNCTION_RULES: Mapping[Any, Callable[[Call], Any]] = {
    **{target: _slope(name) for name, targets in _NAMED.items() for target in targets},
    functional.gelu: _gelu,
    functional.leaky_relu: _leaky,
    functional.elu: _elu,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), multiply),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), multiply),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), negate),
    **dict.fromkeys((torch.cat, torch.concat), concatenate),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"), mean),
    **dict.fromkeys((*_SHAPES, *_SHAPE_METHODS), reshape),
    torch.nn.Flatten: reshape,
    torch.nn.Unflatten: reshape,
    **dict.fromkeys((torch.permute, torch.transpose, torch.movedim, "permute", "transpose", "movedim"), permute),
    operator.getitem: take,
    functional.pad: pad,
    **dict.fromkeys((getattr, "size", "dim"), shape_of),
    **dict.fromkeys(_SAME, same),
    functional.dropout: dropout,
}
"""Rules by function, by method name, and of the modules that only reshape."""
