"""The walk through a traced network: every value with its action and its bounds, every operation with a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._state import tensor_hash
from equidial.adapters.network._actions import Action, VectorAction, moved_terms
from equidial.adapters.network._trace import plain_name
from equidial.certificates import UNIT_ROUNDOFF, Bounds, gamma
from equidial.groups import Group, GroupElement


class Abstention(Exception):
    """No bound: the module at ``where`` has no rule that holds here."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class Value:
    """An intermediate value ``[B, ...]`` in float64, how the group moves it, and what is known of it."""

    tensor: torch.Tensor
    action: Action
    bounds: Bounds

    @property
    def norms(self) -> torch.Tensor:
        """``[B]``."""
        return norms_of(self.tensor)


def norms_of(tensor: torch.Tensor) -> torch.Tensor:
    """Norm of each input's value, ``[B]``, rounded up."""
    flat = tensor.reshape(len(tensor), -1)
    return flat.norm(dim=1) * (1 + gamma(flat.shape[1] + 4))


Rule = Callable[["Call"], Any]
"""From a call to its :class:`Value`, or to plain data such as a shape; raises through ``call.abstain``."""


@dataclass(frozen=True)
class Step:
    """A row of the certificate before the contributions are known; ``defect`` is ``[E]``."""

    module: str
    rule: str
    gain: float
    defect: torch.Tensor


@dataclass
class Walk:
    """What all rules know: the group, its elements, the configuration; and the rows so far."""

    group: Group
    radius: float
    elements: tuple[GroupElement, ...] | None
    config: SoftEquivarianceConfig
    inputs: int
    cache: dict[Any, Any]
    steps: list[Step] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Number of elements, or 1 for a supremum over all."""
        return 1 if self.elements is None else len(self.elements)

    def remembered(self, kind: str, weight: torch.Tensor, *key: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, once for each weight: norms cost far more than the forward pass."""
        full = (kind, tensor_hash(weight), *key)
        if full not in self.cache:
            self.cache[full] = compute()
        return self.cache[full]


@dataclass(frozen=True)
class Call:
    """One operation that meets a rule: what is called, on what, and the ways in which its result is bounded.

    Attributes:
        walk: what all rules know.
        where: name of the module.
        label: what is called, in words.
        module: the module called, ``None`` for functions and methods.
        args, kwargs: arguments; tensors that depend on the input are :class:`Value`.
    """

    walk: Walk
    where: str
    label: str
    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    execute: Callable[..., Any]

    input: Value | None = None

    @property
    def x(self) -> Value:
        """The value that the operation acts on, by default the first argument."""
        if self.input is not None:
            return self.input
        if not self.args or not isinstance(self.args[0], Value):
            self.abstain(f"{self.label} meets its input in a place that no rule expects")
        return self.args[0]

    def of(self, value: Value) -> Call:
        """The same call, with :attr:`x` another one of its arguments."""
        return replace(self, input=value)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def abstain(self, reason: str) -> NoReturn:
        """There is no bound, and this is why."""
        raise Abstention(self.where, reason)

    def result(self) -> torch.Tensor:
        """What the operation computes at the centre; arguments are copied, in case it works in place."""
        with torch.no_grad():
            args, kwargs = pytree.tree_map(_plain, (self.args, self.kwargs))
            found = self.execute(*args, **kwargs)
        if not isinstance(found, torch.Tensor):
            self.abstain(f"{self.label} returns {type(found).__name__} and not one tensor")
        return found

    def lipschitz(
        self,
        gain: float | torch.Tensor,
        action: Action | None = None,
        tensor: torch.Tensor | None = None,
        lost: torch.Tensor | float = 0.0,
    ) -> Value:
        """The operation commutes with the action and has this Lipschitz constant (a number or ``[B]``).

        ``action``: that of the result, by default that of the input. The allowance for its own rounding is
        ``16 u (||h|| + ||f(h)||)``, more than four units in the last place of each elementary function, and ``lost``
        for operations that sum.
        """
        tensor = self.result() if tensor is None else tensor
        center = self._center(tensor)
        lost = 16 * UNIT_ROUNDOFF * (center + self.x.bounds.center) + lost
        largest = float(torch.as_tensor(gain, dtype=torch.float64).max())
        if largest != 1:
            self.walk.steps.append(Step(self.where, self.label, largest, torch.zeros(self.walk.width)))
        return Value(tensor, action or self.x.action, self.x.bounds.lipschitz(center, gain, lost))

    def moved_only(self, tensor: torch.Tensor | None = None, action: Action | None = None) -> Value:
        """The operation only selects or reorders entries: nothing is rounded."""
        tensor = self.result() if tensor is None else tensor
        center = self._center(tensor)
        return Value(tensor, action or self.x.action, self.x.bounds.lipschitz(center, 1.0, torch.zeros_like(center)))

    def pointwise(self, gain: float | torch.Tensor) -> Value:
        """The operation acts entry by entry with this slope at most: commutes with permutations."""
        self.require_permutation()
        return self.lipschitz(gain)

    def linear(
        self,
        gain: float,
        lost: torch.Tensor,
        defect: torch.Tensor,
        offset: torch.Tensor | None = None,
        action: Action | None = None,
        tensor: torch.Tensor | None = None,
        direct: torch.Tensor | None = None,
    ) -> Value:
        """The operation is ``W h + c``: norm, rounding ``[B]``, and defects ``[E]`` of both parts.

        ``direct``: the defect applied to the value at the centre, ``[B, E]``, where it is known.
        """
        tensor = self.result() if tensor is None else tensor
        shown = defect if offset is None or bool((defect > 0).any()) else offset
        self.walk.steps.append(Step(self.where, self.label, gain, shown.expand(self.walk.width)))
        step = len(self.walk.steps) - 1
        bounds = self.x.bounds.linear(self._center(tensor), gain, lost, step, defect, offset, direct)
        return Value(tensor, action or self.x.action, bounds)

    def require_permutation(self) -> None:
        """Abstain unless the group permutes the entries of the input."""
        action = self.x.action
        if action.permutes:
            return
        if isinstance(action, VectorAction):
            self.abstain(
                f"{self.label} does not commute with {moved_terms(action.rep)}; use an equivariant non-linearity, "
                "e.g. equidial.nn.NormNonlinearity"
            )
        self.abstain(f"{self.label} does not commute with {action.name}, which moves no image pixels")

    def no_defect(self) -> torch.Tensor:
        """``[E]`` zeros."""
        return torch.zeros(self.walk.width, dtype=torch.float64)

    def _center(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 0 or len(tensor) != self.walk.inputs:
            self.abstain(f"{self.label} does not keep the batch axis first (result of shape {tuple(tensor.shape)})")
        return norms_of(tensor)


def _plain(x: Any) -> Any:
    return x.tensor.clone() if isinstance(x, Value) else x


class Network:
    """A traced model and the rules for what is in it."""

    def __init__(self, graph: fx.Graph, entry: nn.Module, untraced: Mapping[str, str], rules: Mapping[Any, Rule]):
        self.graph, self.entry, self.untraced, self.rules = graph, entry, untraced, rules
        self.modules = dict(entry.named_modules())

    def called_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Leaves in the order in which they act, by the names that the user knows."""
        for node in self.graph.nodes:
            if node.op == "call_module":
                yield plain_name(str(node.target)), self.modules[str(node.target)]

    def run(self, walk: Walk, source: Value) -> Any:
        """The output: a :class:`Value`, or a structure with one. Raises :class:`Abstention`."""
        known: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                known[node] = source
                continue
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: known[n])
            if node.op == "output":
                return args[0]
            if node.op == "get_attr":
                known[node] = _attribute(self.entry, str(node.target))
                continue
            known[node] = self._call(walk, node, tuple(args), dict(kwargs))
        raise AssertionError("a graph ends with its output")

    def _call(self, walk: Walk, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        execute: Any = module if module is not None else node.target
        if node.op == "call_method":
            execute = _method(str(node.target))
        if not any(isinstance(leaf, Value) for leaf in pytree.tree_leaves((args, kwargs))):
            with torch.no_grad():
                return execute(*args, **kwargs)
        label = type(module).__name__.removeprefix("Parametrized") if module is not None else _word(node.target)
        where = plain_name(str(node.target)) if module is not None else _owner(node)
        call = Call(walk, where, label, module, args, kwargs, execute)
        if str(node.target) in self.untraced and module is not None:
            call.abstain(self.untraced[str(node.target)])
        rule = self._module_rule(call) if module is not None else self.rules.get(node.target)
        if rule is None:
            call.abstain(f"{label} has no rule: its Lipschitz constant or how it commutes is not known")
        try:
            return rule(call)
        except Abstention:
            raise
        except Exception as error:  # a form of call that the rule does not expect: no bound, and said why
            raise Abstention(where, f"the rule of {label} fails ({type(error).__name__}: {error})") from error

    def _module_rule(self, call: Call) -> Rule | None:
        module = call.module
        if module._forward_hooks or module._forward_pre_hooks:
            call.abstain(f"{call.label} has forward hooks, which may change what it computes")
        for kind in type(module).__mro__:
            rule = self.rules.get(kind)
            if rule is None:
                continue
            if any(getattr(type(module), n, None) is not getattr(kind, n, None) for n in ("forward", "_conv_forward")):
                return None  # a subclass that computes something else
            return None if "forward" in module.__dict__ else rule
        return None


def _attribute(entry: nn.Module, path: str) -> Any:
    found: Any = entry
    for part in path.split("."):
        found = getattr(found, part)
    return found.detach() if isinstance(found, torch.Tensor) else found


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _word(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _owner(node: fx.Node) -> str:
    """The module in whose forward a function is called."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [name for name, _ in stack.values()] if stack else [""]
    return plain_name(names[-1])
