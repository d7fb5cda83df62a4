"""From an operation that does not commute with the group to the cause by its name, the arithmetic and a remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from equidial.adapters._certify_layers import amounts
from equidial.adapters._geometry import has_quarter_turns
from equidial.adapters.diagnosis._catalogue import CATALOGUE
from equidial.adapters.diagnosis._group_layers import layer_of, strict_and_rest
from equidial.adapters.diagnosis._motion import Still, Vectors, projected
from equidial.adapters.diagnosis._result import Cause, Mend
from equidial.adapters.diagnosis._rules import ATTENTIONS, CONVOLUTIONS, ON_IMAGES, POOLINGS, PRODUCTS
from equidial.adapters.diagnosis._values import Event, Operation, relative
from equidial.adapters.diagnosis._windows import Called, called_window
from equidial.adapters.targets import Target
from equidial.errors import GroupActionError
from equidial.groups import Group
from equidial.metrics import element_name, transform_images
from equidial.nn import ContinuousConv, OnImages, group_defect

_MIXING = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "mul", "mul_", "__mul__", "__rmul__"})


RELAXED = "relaxed layer"


def relaxed_layer(module: str, error: float, amount: str, defect: float, group: str) -> Cause:
    """The cause of a layer that is relaxed, by its amount ``omega'`` and its exact defect."""
    entry = CATALOGUE[RELAXED]
    return Cause(
        RELAXED, module, error, entry.why.format(amount=amount, defect=defect, group=group), entry.remedy, "weights"
    )


@dataclass(frozen=True)
class Condition:
    """A strided window fits grids of size ``remainder`` modulo ``stride``."""

    module: str
    grid: int
    remainder: int
    stride: int


@dataclass
class Causes:
    """Collects the causes of every operation that is asked.

    Attributes:
        group: that permutes pixels; ``tolerance`` as the follower's.
        targets: every tensor that is softened, or that the configuration names, by name.
        known: names of all tensors that some rule could soften.
        dials: where the dial of a softened tensor stands, by name.
        tensors: the parameters as the network reads them, by name.
    """

    group: Group
    tolerance: float
    elements: int
    targets: Mapping[str, Target]
    known: Collection[str]
    dials: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    found: list[Cause] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)

    def watch(self, operation: Operation) -> None:
        """Note the condition that a strided window sets, whether it is met or not."""
        called = called_window(operation)
        if called is None or not any(s > 1 for s in called.window.stride):
            return
        remainder, stride = called.condition(0)
        if stride > 1:
            self.conditions.append(Condition(operation.module, called.size[0], remainder, stride))

    def is_broken(self, operation: Operation) -> bool:
        """Whether the windows of an operation do not fit the group, whatever its weights are."""
        called = called_window(operation)
        return called is not None and not (called.turns(self.group) and called.broken_axis(self.group) is None)

    def explain(self, operation: Operation) -> None:
        """Name what breaks the symmetry in this operation."""
        name = operation.name
        layer = layer_of(operation)
        if layer is not None:
            self._layer(operation, layer)
        elif name in CONVOLUTIONS:
            self._convolution(operation)
        elif name in POOLINGS:
            self._window(operation, operation.added)
        elif isinstance(operation.motion, Vectors) or any(
            isinstance(v.motion, Vectors) for v in operation.values.values()
        ):
            self._on_vectors(operation)
        elif operation.rotary:
            self.add(operation, "rotary position embedding", operation.added)
        elif name in ATTENTIONS:
            self._attention(operation)
        elif name not in ON_IMAGES and self._split_windows(operation):
            pass  # attention that is written out: products, masks, softmax over windows
        elif name in ("linear", *PRODUCTS):
            self._linear(operation)
        elif name in ("interpolate", "upsample"):
            self._resize(operation)
        elif not self.blame(operation.events, operation.added):
            self._place_dependent(operation)

    def add(
        self, where: Operation | Event, cause: str, error: float, parameter: str | None = None, **facts: Any
    ) -> None:
        """Keep a cause of the catalogue; of one module and name the largest."""
        entry = CATALOGUE[cause]
        facts |= {"parameter": parameter, "module": where.module}
        remedy, mend = entry.remedy.format(**facts), entry.mend
        if mend == "weights" and not remedy:
            remedy, mend = self._soften(parameter, cause)
        self._keep(Cause(cause, where.module, error, entry.why.format(**facts), remedy, mend, parameter))

    def _keep(self, new: Cause) -> None:
        for number, old in enumerate(self.found):
            if (old.cause, old.module, old.parameter) == (new.cause, new.module, new.parameter):
                self.found[number] = max(old, new, key=lambda c: c.error)
                return
        self.found.append(new)

    def blame(self, events: Sequence[Event], error: float) -> bool:
        """Add what happened on the way as the cause; whether there was something to blame."""
        for event in reversed(events):
            facts = event.facts
            if event.kind == "rectangle":
                self.add(event, "anisotropic resize", error, h=facts["out"][0], w=facts["out"][1])
            elif event.kind == "slice":
                step = max(facts["steps"], default=1)
                n, shape = max(facts["shape"][-2:]), "x".join(map(str, facts["shape"]))
                if step > 1:
                    rest = (n - 1) % step
                    self.add(event, "subsampling", error, what=facts["what"], shape=shape, n=n, step=step, rest=rest)
                else:
                    self.add(event, "crop", error, name=facts["name"], what=facts["what"], shape=shape)
            elif event.kind == "shuffle":
                self.add(event, "pixel shuffle", error)
            elif event.kind == "samples":
                element = element_name(facts["element"])
                self.add(event, "missing samples", error, samples=facts["samples"], element=element)
            elif event.kind == "roll":
                self.add(event, "cyclic shift", error, shift=facts["shift"])
            elif event.kind == "pad":
                left, right, top, bottom = (*facts["pads"], 0, 0)[:4]
                before, after = f"({top}, {left})", f"({bottom}, {right})"
                same = "pad the same on both sides"
                by = f"a padding of {facts['pads']}"
                self.add(
                    event, "asymmetric padding", error, arithmetic="", before=before, after=after, by=by, padding=same
                )
            else:
                continue
            return True
        return False

    def _convolution(self, operation: Operation) -> None:
        """The kernel and the windows apart: with the kernel averaged over the group the windows' error remains."""
        weight = operation.args[1] if len(operation.args) > 1 else operation.kwargs["weight"]
        parameter = next(iter(sorted(operation.origins.get(id(weight), frozenset()))), None)
        size = "x".join(map(str, weight.shape[2:]))
        average = self._average(weight)
        if average is None:
            self.add(operation, "rectangular kernel", operation.added, size=size)
            return
        windows, kernel = self._with_weight(operation, average), self._with_weight(operation, weight - average)
        if windows > self.tolerance:
            self._window(operation, windows)
        if kernel > self.tolerance or windows <= self.tolerance:
            share = float((weight - average).double().norm() / weight.double().norm())
            self.add(operation, "kernel", kernel, parameter, share=share, size=size)

    def _layer(self, operation: Operation, layer: ContinuousConv | OnImages) -> None:
        """A layer of equidial.nn: windows by their arithmetic, the rest is what relaxes it."""
        if isinstance(layer, OnImages):
            self._window(operation, operation.added)
            return
        called = called_window(operation)
        fits = called is None or not self.is_broken(operation)
        if layer.samples is None:
            if not fits:
                self._window(operation, operation.added)
            self.add(operation, "continuous kernel", operation.added, amount=amounts(layer))
            return
        windows, rest = strict_and_rest(operation, self.elements)
        if windows > self.tolerance:
            oblong = has_quarter_turns(self.group) and len(set(layer.windows.kernel)) > 1
            if oblong:
                self.add(operation, "rectangular kernel", windows, size="x".join(map(str, layer.windows.kernel)))
            else:
                self._window(operation, windows)
        if rest > self.tolerance or windows <= self.tolerance:
            places = None if called is None else called.window.outputs(called.size)
            defect, group = group_defect(layer, places).supremum, layer.samples.group.name
            self._keep(relaxed_layer(operation.module, rest, amounts(layer), defect, group))

    def _with_weight(self, operation: Operation, weight: torch.Tensor) -> float:
        """The error of the same convolution with another weight and no bias, relative to what it computes."""

        def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
            kwargs = {key: value for key, value in kwargs.items() if key not in ("weight", "bias")}
            rest = args[3:] if len(args) > 3 else ()
            return operation.func(args[0], weight, None, *rest, **kwargs)

        still = run(operation.args, operation.kwargs)
        norm = float(operation.out.double().norm())
        return max(relative(run(*operation.at(k)), operation.motion.move(k, still), norm) for k in range(self.elements))

    def _average(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The kernel averaged over the group, ``None`` where the group cannot turn its window."""
        try:
            moved = [transform_images(weight.double(), g) for g in self.group.elements()]
        except GroupActionError:
            return None
        return (sum(moved[1:], moved[0]) / len(moved)).to(weight.dtype)

    def _window(self, operation: Operation, error: float) -> None:
        called = called_window(operation)
        axis = None if called is None else called.broken_axis(self.group)
        if called is not None and not called.turns(self.group):
            w = called.window
            pads = f"{w.before}/{w.after}"
            self.add(
                operation, "anisotropic window", error, kernel=w.kernel, stride=w.stride, pads=pads, grid=called.size
            )
        elif called is None or axis is None:
            self._otherwise(operation, error)
        else:
            self._broken_window(operation, error, called, axis)

    def _broken_window(self, operation: Operation, error: float, called: Called, axis: int) -> None:
        w = called.window
        before, after, k, s = w.before[axis], w.after[axis], w.kernel[axis], w.stride[axis]
        fitting = called.symmetric_padding(axis)
        facts: dict[str, Any] = {
            "arithmetic": called.arithmetic(axis),
            "padding": "" if fitting is None else f"pad {fitting} on both sides",
        }
        if before == after:
            self.add(operation, "ceil mode" if w.ceil_mode else "stride", error, **facts)
            return
        even = s == 1 and (w.dilation[axis] * (k - 1)) % 2 == 1
        facts["arithmetic"] = "" if s == 1 else f"{facts['arithmetic']}; "
        facts |= {"before": before, "after": after, "by": called.padded_by, "taps": k}
        self.add(operation, "even kernel" if even else "asymmetric padding", error, **facts)

    def _attention(self, operation: Operation) -> None:
        named = self._split_windows(operation)
        for table in [name for name in operation.parameters() if name in self.targets or name in self.known]:
            if self._defect(table) > self.tolerance:
                self.add(operation, "relative-position table", operation.added, table)
                named = True
        if not named and not self.blame(operation.events, operation.added):
            self._place_dependent(operation)

    def _split_windows(self, operation: Operation) -> bool:
        """Whether the group takes the places of one window apart, and the cause added if it does."""
        query = operation.args[0]
        if not isinstance(query, torch.Tensor) or query.ndim < 3 or id(query) not in operation.values:
            return False
        motion = operation.motion_of(query)
        index = None if motion is None else motion.index(0, query.shape, query.device)
        if index is not None and projected(index, (0,)) is not None:
            return False
        window = math.isqrt(query.shape[-2])
        for event in reversed(operation.events):
            if event.kind == "roll":
                shift = event.facts["shift"]
                rest = 2 * shift % window
                self.add(operation, "window shift", operation.added, window=window, shift=shift, rest=rest)
                return True
            if event.kind == "pad" and operation.name in ATTENTIONS:
                h, w = event.facts["shape"][1:3]
                self.add(operation, "window padding", operation.added, window=window, h=h, w=w)
                return True
        return False

    def _defect(self, name: str) -> float:
        """``||rho(g) w - w|| / ||w||`` of a table, the largest over the group; infinite where no space is known."""
        target = self.targets.get(name)
        if target is None:
            return math.inf
        weights = target.layout.weights(self.tensors[name].to("cpu", torch.float64))
        rep = target.constraint.rep_in
        moved = [rep.act(g, weights) - weights for g in rep.group.elements()]
        return max(float(m.norm() / weights.norm()) for m in moved)

    def _linear(self, operation: Operation) -> None:
        x = operation.args[0]
        motion = operation.motion_of(x)
        index = None if motion is None else motion.index(0, x.shape, x.device)
        last = None if index is None else list(torch.unravel_index(index, x.shape))[-1]
        if last is None or torch.equal(last, torch.arange(x.shape[-1], device=x.device).expand(x.shape)):
            self._otherwise(operation, operation.added)
            return
        parameter = self._weight(operation)
        if not isinstance(operation.motion, Still):
            self.add(operation, "patch kernel", operation.added, parameter)
            return
        flat = next((e.facts for e in reversed(operation.events) if e.kind == "flat"), None)
        spaces = f"{flat['channels']}*Pixels({flat['h']},{flat['w']})" if flat else "C*Pixels(h,w)"
        self.add(
            operation, "flatten", operation.added, parameter,
            inputs=x.shape[-1], outputs=operation.out.shape[-1], spaces=spaces,
        )  # fmt: skip

    def _resize(self, operation: Operation) -> None:
        args = list(operation.args)
        mode = operation.kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
        if str(mode).startswith("nearest") and not operation.events:
            n, m = args[0].shape[-1], operation.out.shape[-1]
            self.add(operation, "nearest resize", operation.added, n=n, m=m)
        else:
            self._otherwise(operation, operation.added)

    def _on_vectors(self, operation: Operation) -> None:
        if operation.name == "linear":
            self.add(operation, "linear map", operation.added, self._weight(operation))
            return
        space = next(v.motion.name for v in operation.values.values() if isinstance(v.motion, Vectors))
        self.add(operation, "non-linearity", operation.added, name=operation.name, space=space)

    def _place_dependent(self, operation: Operation) -> None:
        """An operation with something that does not move: a table, a norm with a weight for each place, a constant."""
        parameters = operation.parameters()
        known = [n for n in parameters if n in self.known] or [n for n in parameters if n in self.tensors]
        if known:
            table = known[0] in self.known or operation.name in _MIXING
            self.add(operation, "position table" if table else "place-dependent parameter", operation.added, known[0])
        elif parameters or (operation.name in _MIXING and self._has_constant(operation)):
            self.add(operation, "fixed position code", operation.added)
        else:
            self.add(operation, "unknown", operation.added, name=operation.name)

    @staticmethod
    def _has_constant(operation: Operation) -> bool:
        tensors = [x for x in operation.args if isinstance(x, torch.Tensor)]
        return any(id(x) not in operation.values for x in tensors)

    def _otherwise(self, operation: Operation, error: float) -> None:
        """No rule of this kind of operation names the cause: what happened on the way, or nothing that is known."""
        if not self.blame(operation.events, error):
            self.add(operation, "unknown", error, name=operation.name)

    def _soften(self, parameter: str | None, cause: str) -> tuple[str, Mend]:
        """What to do about a tensor."""
        if parameter is None:
            return "it is computed from the input or by other code: no parameter to soften", "code"
        if parameter in self.dials:
            return f"turn its dial down: it stands at {self.dials[parameter]}", "weights"
        if parameter in self.known and self.dials:
            return f"it was left out: add {parameter} to the targets", "weights"
        if parameter in self.known:
            return f"soften {parameter}: softness 0 takes this away, its defect bounds what is left", "weights"
        if cause == "linear map":
            return f"declare its spaces in representations and soften {parameter}", "weights"
        pattern, role = re.escape(parameter), "kernel" if "kernel" in cause else "table"
        return f"no rule names it: soften with targets=[ed.ParameterRule(r'{pattern}', '{role}')]", "weights"

    @staticmethod
    def _weight(operation: Operation) -> str | None:
        return next((name for name in operation.parameters() if not name.endswith("bias")), None)
