"""retract: constrain by an optimizer hook, so that forward and backward hold no filter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from equidial.adapters._parametrization import SoftParametrization, constrained, original_of
from equidial.adapters._shards import is_sharded
from equidial.adapters._state import require_root
from equidial.errors import ArgumentError, StateError, explain

Held = tuple[nn.Module, str, SoftParametrization]

_PROJECTIONS = ("nearest", "hard")


class Retraction:
    """What :func:`retract` returns; :meth:`remove` ends it. A copy of the model is in constrain mode."""

    def __init__(self, held: list[Held], optimizer: Optimizer):
        self._held = held
        for module, name, link in held:
            link.retraction = self
            link.settle(original_of(module, name))
        self._hook = optimizer.register_step_post_hook(self._after_step)

    @property
    def active(self) -> bool:
        """Whether the hook still keeps a tensor; false after :meth:`remove`, ``fold`` and ``unload``."""
        return any(link.retraction is self for _, _, link in self._held)

    def remove(self) -> None:
        """Back to constrain mode: the filter is in the forward pass again. A second call does nothing."""
        self._hook.remove()
        for _, _, link in self._held:
            if link.retraction is self:
                link.retraction = None
        self._held = []

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._held = [item for item in self._held if item[2].retraction is self]
        if not self._held:
            self._hook.remove()
        with torch.no_grad():
            for module, name, link in self._held:
                original = original_of(module, name)
                if original.requires_grad:  # a frozen one stands where it was
                    original.copy_(link.filtered(original))

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """Nothing: no optimizer keeps the tensors of a copy, so its own filter must."""


def retract(model: nn.Module, optimizer: Optimizer) -> Retraction:
    """Retract mode: after every step of ``optimizer`` each constrained tensor ``W`` is replaced by ``F(W)``, in place.

    Forward and backward read the tensor as it stands, without a filter: exact, because ``F`` is applied once now and
    after each step, and moving the dial applies it again. So the pretrained tensors are given up (``unload`` returns
    what stands), softening is not undone by turning the dial up, and ``disabled`` shows no other network.
    ``certify``, ``status``, ``save``, ``set_dial`` and schedules work as before; ``fold`` and ``unload`` end it, and
    ``handle.remove()`` returns to constrain mode. Call it again after loading a checkpoint into a new model: tensors
    that are in their set up to rounding keep their bits.

    With ``response="hard"``, and with ``nearest`` at softness 0, ``F`` is an orthogonal projector and the weights are
    those of constrain mode up to rounding for SGD, momentum, Nesterov and weight decay (docs/training.md). Elsewhere
    both stay in the same set on different paths; AdamW's second moments see the whole gradient here.

    Args:
        optimizer: any torch optimizer, or accelerate's wrapper of one; it must hold every constrained tensor that
            requires a gradient.

    Raises:
        StateError: a model that is not softened, retracted already, sharded, or that learns its dials; an optimizer
            that lacks a constrained tensor.
        ArgumentError: no optimizer; a response whose filter is no projection (``taper``, ``exponential``), which
            would shrink the weights a little more at each step.

    Cost: one filter per tensor and step, with neither backward nor stored activations.
    """
    require_root(model, "retract")
    inner: Any = optimizer
    while isinstance(inner, Optimizer) and isinstance(inside := getattr(inner, "optimizer", None), Optimizer):
        inner = inside  # accelerate's wrapper: the hooks are those of the one inside
    if not isinstance(inner, Optimizer):
        raise ArgumentError(
            explain("a torch optimizer", type(optimizer).__name__, "pass the one that trains the model")
        )
    held = list(constrained(model))
    owned = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    missing = []
    for module, name, link in held:
        original = original_of(module, name)
        _check(link, original)
        if original.requires_grad and id(original) not in owned:
            missing.append(link.name)
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise StateError(
            explain(
                "an optimizer that holds every constrained tensor",
                f"one without {shown}: made for another model, or for a copy",
                "create the optimizer from this model's parameters(), after soften, load and moving it",
            )
        )
    return Retraction(held, inner)


def _check(link: SoftParametrization, original: torch.Tensor) -> None:
    if link.retraction is not None:
        raise StateError(
            explain("a model in constrain mode", "one in retract mode already", "call remove() on the first handle")
        )
    if link.learned_softness is not None:
        raise StateError(
            explain(
                "fixed dials",
                f"a learned one in {link.name}, which would get no gradient without a filter in the forward pass",
                "stay in constrain mode, or call fix_dial first",
            )
        )
    if link.response not in _PROJECTIONS:
        raise ArgumentError(
            explain(
                f"a response that is a projection, out of {_PROJECTIONS}",
                f"response={link.response!r} in {link.name}: applied at each step it shrinks the weights on and on",
                "soften with response='nearest' or 'hard', or stay in constrain mode",
            )
        )
    if is_sharded(original) or is_sharded(original.data):
        raise StateError(
            explain(
                f"a whole tensor in {link.name}",
                "a DTensor, of which each process holds a shard",
                "stay in constrain mode, whose filter sees the gathered tensor",
            )
        )
