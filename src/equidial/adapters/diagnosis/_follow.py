"""Follow an image and its moved copies through a network, operation by operation.

Every intermediate tensor is kept with the motion that the group has there. An operation ``f`` on ``h`` is asked whether
``f(rho(g) h) = rho'(g) f(h)``: the difference is what this operation adds, whatever came before. Beside it runs the
network on ``g x`` itself, whose difference is what has arrived so far.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from equidial.adapters.diagnosis._group_layers import ATOMIC, missing_sample, motion_behind
from equidial.adapters.diagnosis._motion import Motion, Still, Vectors
from equidial.adapters.diagnosis._rules import ON_IMAGES, candidates, hand_on
from equidial.adapters.diagnosis._structure import STRUCTURAL, Moved, Source, follow_entries
from equidial.adapters.diagnosis._values import Event, Operation, Value, relative
from equidial.adapters.network._actions import is_trivial
from equidial.groups import GroupElement
from equidial.representations import Representation

_LOST = 0.5  # relative error above which a guessed motion is no motion; unrelated features differ by sqrt(2)
_ROTARY = re.compile(r"rope|rotary|rot_embed", re.IGNORECASE)
ROTARY = "rotary position embedding"


Explain = Callable[[Operation], None]


class Unmatched(Exception):
    """In a dry run: the group takes places out of the tensor on which an operation works."""


@dataclass
class Follower(TorchFunctionMode):
    """A mode under which a model runs on an image that was :meth:`start`-ed.

    Attributes:
        elements: the group elements, numbered.
        tolerance: relative error above which ``explain`` is called.
        watch, explain: called with every operation, and with those that add more error than that.
        declared: spaces of the outputs of linear layers, by module name.
        atomic: modules that are asked as a whole.
        dry: only motions are followed, nothing is moved or compared; an operation on entries that do not stay among
            themselves raises :class:`Unmatched`.
    """

    elements: tuple[GroupElement, ...]
    tolerance: float
    watch: Explain
    explain: Explain
    declared: Mapping[str, Representation] = field(default_factory=dict)
    atomic: tuple[type[nn.Module], ...] = ()
    dry: bool = False
    steps: list[tuple[str, str, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self.values: Any = WeakTensorKeyDictionary()
        self.origins: Any = WeakTensorKeyDictionary()
        self._stack: list[tuple[str, nn.Module]] = []
        self._inside = 0  # depth in atomic modules

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which module acts, and which tensors are parameters, while the model runs."""
        handles = []
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.origins[tensor] = frozenset({name.replace(".parametrizations", "").removesuffix(".original")})
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()

    def start(self, x: torch.Tensor, motion: Motion) -> None:
        """``x`` is the input, moved like this."""
        arrived = () if self.dry else tuple(motion.move(k, x) for k in range(len(self.elements)))
        self.values[x] = Value(motion, (), arrived)

    def error(self, tensor: torch.Tensor, value: Value, motion: Motion | None = None) -> float:
        """How far the network on moved images is from the moved result, relative."""
        motion = motion or value.motion
        assert motion is not None
        with self._aside():
            return max(relative(value.arrived[k], motion.move(k, tensor)) for k in range(len(self.elements)))

    def settled(self, tensor: torch.Tensor) -> tuple[Motion | None, Value] | None:
        """The motion of a tensor, the likeliest where it was lost; ``None`` for one that does not follow the input."""
        value = self.values.get(tensor)
        if value is None or value.motion is not None:
            return None if value is None else (value.motion, value)
        with self._aside():
            motion, _ = self._likeliest(tensor, value.moved)
        return motion, value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, on the image and on what stands for its moved copies."""
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        followed = [x for x in tensors if x in self.values]
        name = _word(func)
        if not followed or self._inside or (name.startswith("get ") and name not in STRUCTURAL):
            out = func(*args, **kwargs)
            self._inherit(out, tensors)
            return out
        values = {id(x): self.values[x] for x in followed}
        if name in STRUCTURAL:
            return self._structural(func, name, args, kwargs, values)
        return self._computed(func, name, args, kwargs, values, tensors)

    def _structural(self, func: Any, name: str, args: Any, kwargs: Any, values: dict[int, Value]) -> Any:
        def known(x: torch.Tensor) -> Source:
            value = values.get(id(x))
            return Source(Still()) if value is None else Source(value.motion, value.piece, value)

        vectors = any(isinstance(v.motion, Vectors) for v in values.values())
        found = None if vectors else follow_entries(func, name, args, kwargs, known, self.elements)
        out = func(*args, **kwargs)
        outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        if found is None:
            motions = [v.motion for v in values.values()]
            first = next(x for x in pytree.tree_leaves((args, kwargs)) if id(x) in values)
            found = [Moved(motions[0] if t.shape == first.shape else None) for t in outputs]
        events = (*_united(values), *self._event(name, args, kwargs, found, values))
        moved = self._shadows(func, args, kwargs, values, "at") if any(m.motion is None for m in found) else []
        arrived = self._shadows(func, args, kwargs, values, "arrived")
        for number, (tensor, one) in enumerate(zip(outputs, found, strict=True)):
            lost = () if one.motion is not None else tuple(m[number] for m in moved)
            kept = () if one.motion is not None and _natural(one.motion) and name != "roll" else events
            self.values[tensor] = Value(one.motion, lost, tuple(a[number] for a in arrived), kept, one.piece)
        return out

    def _computed(
        self, func: Any, name: str, args: Any, kwargs: Any, values: dict[int, Value], tensors: list[torch.Tensor]
    ) -> Any:
        held = {id(x): x for x in tensors}  # in-place operations may change the inputs: their copies are made first
        moved = self._shadows(func, args, kwargs, values, "at")
        arrived = self._shadows(func, args, kwargs, values, "arrived")
        changes_input = _in_place(name) or kwargs.get("inplace") is True
        before = (
            pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args) if changes_input else args
        )
        values = {id(b): values[id(a)] for a, b in _pairs(args, before) if id(a) in values} | values
        origins = {id(b): self.origins.get(a, frozenset()) for a, b in _pairs(args, before)}
        origins |= {key: self.origins.get(x, frozenset()) for key, x in held.items()}
        out = func(*args, **kwargs)
        made = args[0] if out is None and changes_input and args else out
        outputs = [t for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)]
        if name == "multi_head_attention_forward":
            outputs = outputs[:1]  # the weights beside it move with queries and keys
        for number, tensor in enumerate(outputs):
            if any(len(m) <= number or m[number].shape != tensor.shape for m in (*moved, *arrived)):
                continue  # a moved image gives a result of another shape: nothing can be compared
            shadow, far = tuple(m[number] for m in moved), tuple(a[number] for a in arrived)
            self._ask(func, name, before, kwargs, values, origins, tensor, shadow, far)
        return out

    def _ask(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        values: dict[int, Value],
        origins: Mapping[int, frozenset[str]],
        out: torch.Tensor,
        moved: tuple[torch.Tensor, ...],
        arrived: tuple[torch.Tensor, ...],
    ) -> None:
        """Find the motion of one result, compare, and remember."""
        motion = self._guess(func, name, args, kwargs, out, values)
        lost = any(v.motion is None for v in values.values())
        added = 0.0
        if self.dry:
            if lost:
                raise Unmatched
            motion = motion or next(iter(candidates(out.shape, self.elements, out.device)), None)
        elif motion is not None:
            added = max(relative(moved[k], motion.move(k, out)) for k in range(len(self.elements)))
        if not self.dry and motion is None:
            motion, added = self._likeliest(out, moved)
        events = _united(values)
        if motion is None:
            events = (*events, *self._rectangle(name, events, out), *self._unsampled(func, events))
            self.values[out] = Value(None, moved, arrived, events)
            return
        value = Value(motion, (), arrived, () if _natural(motion) else events)
        self.values[out] = value
        so_far = 0.0 if self.dry else self.error(out, value)
        self.steps.append((self.module, name, added, so_far))
        rotary = any(ROTARY in n for ns in origins.values() for n in ns)
        if added > self.tolerance:
            inside = any(_ROTARY.search(type(module).__name__) for _, module in self._stack)
            rotary = rotary or inside or _called_from_rotary()
        operation = Operation(
            name, self.module, func, args, kwargs, out, motion, added, so_far, events, values, origins, rotary
        )
        with self._aside():
            self.watch(operation)
            if added > self.tolerance:
                self.explain(operation)

    def _guess(
        self, func: Any, name: str, args: Any, kwargs: Any, out: torch.Tensor, values: dict[int, Value]
    ) -> Motion | None:
        def known(x: Any) -> Motion | None:
            value = values.get(id(x))
            return Still() if value is None else value.motion

        layer = getattr(func, "__self__", None)
        if isinstance(layer, ATOMIC):
            with self._aside():
                return motion_behind(layer, known(args[0]), out, self.elements)
        if name == "linear" and any(isinstance(v.motion, Vectors) for v in values.values()):
            rep = self.declared.get(self.module)
            return Still() if rep is None or is_trivial(rep) else Vectors(self.elements, rep)
        return hand_on(name, args, kwargs, out, known, self.elements)

    def _likeliest(self, out: torch.Tensor, moved: tuple[torch.Tensor, ...]) -> tuple[Motion | None, float]:
        """The motion with the smallest error among those that the shape allows, if that is small enough."""
        best: tuple[Motion | None, float] = (None, _LOST)
        for motion in candidates(out.shape, self.elements, out.device):
            error = max(relative(moved[k], motion.move(k, out)) for k in range(len(self.elements)))
            if error < best[1] or (isinstance(motion, Still) and best[0] is None):
                best = (motion, error)
        return best

    def _shadows(
        self, func: Any, args: Any, kwargs: Any, values: dict[int, Value], which: str
    ) -> list[list[torch.Tensor]]:
        """The outputs on moved inputs (``at``) or in the network on the moved image (``arrived``), per element."""
        results = []
        for k in () if self.dry else range(len(self.elements)):

            def replaced(x: Any, k: int = k) -> Any:
                value = values.get(id(x))
                if value is None:
                    return x.clone() if isinstance(x, torch.Tensor) and not isinstance(x, nn.Parameter) else x
                return value.at(k, x) if which == "at" else value.arrived[k].clone()

            own_args, own_kwargs = pytree.tree_map(replaced, (args, kwargs))
            made = func(*own_args, **own_kwargs)
            made = own_args[0] if made is None and own_args else made
            results.append([t for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)])
        return results

    @property
    def module(self) -> str:
        """Name of the module that acts now."""
        return self._stack[-1][0] if self._stack else ""

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Operations in here are not followed."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append((name, module))
            if isinstance(module, self.atomic):
                self._inside += 1

        return enter

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        name, _ = self._stack.pop() if self._stack else ("", module)
        if _ROTARY.search(type(module).__name__):
            for tensor in pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor not in self.values:
                    self.origins[tensor] = frozenset({f"{ROTARY} {name}"})
        if isinstance(module, self.atomic):
            self._inside -= 1
            followed = [x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor) and x in self.values]
            if followed and not self._inside and isinstance(out, torch.Tensor):
                self._stack.append((name, module))
                values = {id(x): self.values[x] for x in followed}
                with self._aside():
                    moved = self._shadows(module.forward, args, {}, values, "at")
                    arrived = self._shadows(module.forward, args, {}, values, "arrived")
                shadow, far = tuple(m[0] for m in moved), tuple(a[0] for a in arrived)
                self._ask(module.forward, type(module).__name__, args, {}, values, {}, out, shadow, far)
                self._stack.pop()

    def _inherit(self, out: Any, inputs: list[torch.Tensor]) -> None:
        """What is computed from parameters alone remembers which."""
        names = frozenset().union(*(self.origins.get(x, frozenset()) for x in inputs)) if inputs else frozenset()
        if names:
            for tensor in pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor not in self.origins:
                    self.origins[tensor] = names

    def _event(
        self, name: str, args: Any, kwargs: Any, found: list[Moved], values: dict[int, Value]
    ) -> Iterator[Event]:
        shape = tuple(args[0].shape) if isinstance(args[0], torch.Tensor) else ()
        if name == "pad":
            pads = tuple(kwargs.get("pad", args[1] if len(args) > 1 else ()))
            mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
            if any(pads):
                yield Event("pad", self.module, {"pads": pads, "mode": mode, "shape": shape})
        elif name == "roll":
            shifts = kwargs.get("shifts", args[1] if len(args) > 1 else ())
            first = shifts if isinstance(shifts, int) else next(iter(shifts), 0)
            yield Event("roll", self.module, {"shift": abs(int(first)), "shape": shape})
        elif name in ("pixel_shuffle", "pixel_unshuffle"):
            yield Event("shuffle", self.module, {"shape": shape})
        elif any(m.motion is None for m in found) and all(v.motion is not None for v in values.values()):
            steps = [x.step for x in pytree.tree_leaves(args[1:]) if isinstance(x, slice) and x.step]
            facts = {"name": name, "what": _described(args[1:]), "shape": shape, "steps": steps}
            yield Event("slice", self.module, facts)
        elif len(shape) == 4 and all(m.motion is not None and m.motion.name == "tokens" for m in found):
            yield Event("flat", self.module, {"channels": shape[1], "h": shape[2], "w": shape[3]})

    def _rectangle(self, name: str, events: tuple[Event, ...], out: torch.Tensor) -> Iterator[Event]:
        on_images = out.ndim == 5 or (name in ON_IMAGES and out.ndim == 4)
        rectangle = on_images and out.shape[-1] != out.shape[-2]
        if rectangle and not any(event.kind == "rectangle" for event in events):
            yield Event("rectangle", self.module, {"name": name, "out": tuple(out.shape[-2:])})

    def _unsampled(self, func: Any, events: tuple[Event, ...]) -> Iterator[Event]:
        layer: Any = getattr(func, "__self__", None)
        missing = missing_sample(layer, self.elements)
        if missing is not None and not any(event.kind == "samples" for event in events):
            yield Event("samples", self.module, {"samples": layer.samples.group.name, "element": missing})


def _in_place(name: str) -> bool:
    """``relu_``, ``__iadd__``, ``__setitem__``."""
    return name == "__setitem__" or (name.startswith("__i") if name.endswith("__") else name.endswith("_"))


def _natural(motion: Motion) -> bool:
    return motion.name in ("grid", "samples", "invariant")


def _united(values: Mapping[int, Value]) -> tuple[Event, ...]:
    return tuple(dict.fromkeys(event for value in values.values() for event in value.events))


def _pairs(a: Any, b: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if isinstance(x, torch.Tensor):
            yield x, y


def _word(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f"get {getattr(func.__self__, '__name__', '?')}"
    return name


def _called_from_rotary() -> bool:
    """Whether a function of rotary embeddings is among the callers."""
    frame = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return False
        if _ROTARY.search(frame.f_code.co_name):
            return True
        frame = frame.f_back
    return False


def _described(rest: tuple[Any, ...]) -> str:
    """Indices in the notation of slices."""

    def one(x: Any) -> str:
        if isinstance(x, slice):
            parts = [x.start, x.stop, x.step]
            return ":".join("" if p is None else str(p) for p in parts[: 2 if x.step is None else 3])
        return "..." if x is Ellipsis else f"tensor{tuple(x.shape)}" if isinstance(x, torch.Tensor) else str(x)

    flat = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple) else rest
    return ", ".join(one(x) for x in flat)
