"""The callback for the Trainer of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from equidial.adapters import DialSchedule, Retraction, relaxation_penalty, retract
from equidial.adapters._parametrization import constrained
from equidial.errors import ArgumentError, FileFormatError, StateError, explain

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        explain("transformers, for DialCallback", "none installed", "pip install 'equidial[hf,train]'")
    ) from error


class DialCallback(TrainerCallback, ExportableState):
    """Schedules, learned dials and retract mode in a ``transformers.Trainer``: ``callbacks=[DialCallback(...)]``.

    After each optimizer step the schedules make a step. Before it, the gradient of ``penalty *
    relaxation_penalty(model)`` is added to that of the learned dials: after clipping, once per step however many
    batches it gathers, and not in the logged loss. Each log gets ``dial/<tensor>``, the position as ``status`` tells it
    (softness, else threshold), and ``relaxation_penalty``. The state of the schedules is in the checkpoints of the
    Trainer and is restored when it resumes; learned dials are parameters of the model and need nothing.

    Args:
        schedules: built on the model that the Trainer trains.
        penalty: weight of the relaxation penalty, 0 for none.
        power, of: as :func:`equidial.relaxation_penalty`.
        retract: train in retract mode; constrain mode again when training ends.

    Raises ``ArgumentError`` for a wrong penalty; when training begins ``StateError`` for a model that is not softened,
    an optimizer without the learned dials, fp16 with a penalty (its gradients are scaled), or
    ``restore_callback_states_from_checkpoint`` (the callback restores itself), ``FileFormatError`` for a checkpoint
    of other schedules.
    """

    def __init__(
        self,
        schedules: DialSchedule | Sequence[DialSchedule] = (),
        penalty: float = 0.0,
        power: float = 1,
        of: Any = "softness",
        retract: bool = False,
    ):
        self.schedules = [schedules] if isinstance(schedules, DialSchedule) else list(schedules)
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty < math.inf:
            raise ArgumentError(explain("a penalty >= 0", repr(penalty), "e.g. penalty=0.01"))
        self.penalty, self.power, self.of, self.retract = float(penalty), power, of, retract
        self.restored: list[Any] | None = None
        self._handle: Retraction | None = None

    def state(self) -> dict[str, Any]:
        """For the Trainer's checkpoint: the state of every schedule."""
        return {"args": {}, "attributes": {"restored": [schedule.state_dict() for schedule in self.schedules]}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check, restore the schedules from a checkpoint, enter retract mode."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._check(args, model, optimizer)
        stored = (state.stateful_callbacks or {}).get(type(self).__name__)
        if isinstance(stored, Mapping):
            self._restore(stored.get("attributes", {}).get("restored", []))
        if self._handle is not None:
            self._handle.remove()  # of a training that was broken off
        self._handle = retract(model, optimizer) if self.retract else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty."""
        if self.penalty == 0:
            return
        model = kwargs["model"]
        dials = _dials(model)
        value = self.penalty * relaxation_penalty(model, self.power, self.of)
        for dial, grad in zip(dials, torch.autograd.grad(value, dials), strict=True):
            dial.grad = grad if dial.grad is None else dial.grad + grad

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of every schedule."""
        for schedule in self.schedules:
            schedule.step()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the positions of the dials into the log and its history."""
        model, found = kwargs["model"], {}
        for _, _, link in constrained(model):
            found[f"dial/{link.name}"] = link.dial.value
        if _dials(model):
            found["relaxation_penalty"] = float(relaxation_penalty(model, self.power, self.of).detach())
        for log in (kwargs.get("logs"), state.log_history[-1] if state.log_history else None):
            if isinstance(log, dict):
                log.update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Back to constrain mode."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _check(self, args: Any, model: nn.Module, optimizer: Any) -> None:
        if self.restored is not None and not self.schedules:
            raise StateError(
                explain(
                    "restore_callback_states_from_checkpoint=False",
                    "True, which replaces the callback by one without schedules",
                    "leave it out: DialCallback restores its schedules itself",
                )
            )
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        dials = _dials(model)
        if any(id(dial) not in owned for dial in dials):
            raise StateError(
                explain(
                    "an optimizer that holds the learned dials",
                    "one without them",
                    "call learn_dial before the optimizer is created, or let the Trainer create it",
                )
            )
        if self.penalty and not dials:
            raise StateError(explain("learned dials for a penalty", "none", "call learn_dial before training"))
        if self.penalty and getattr(args, "fp16", False):
            raise StateError(
                explain("bf16 or float32 with a penalty", "fp16, whose gradients are scaled", "train with bf16=True")
            )

    def _restore(self, stored: Sequence[Any]) -> None:
        if len(stored) != len(self.schedules):
            raise FileFormatError(
                explain(
                    f"a checkpoint with {len(self.schedules)} schedules",
                    f"{len(stored)}",
                    "resume with the schedules that the training began with",
                )
            )
        for schedule, state in zip(self.schedules, stored, strict=True):
            schedule.load_state_dict(state)


def _dials(model: nn.Module) -> list[nn.Parameter]:
    """The learned dials that are not frozen."""
    found = [link.learned_softness for _, _, link in constrained(model)]
    return [dial for dial in found if dial is not None and dial.requires_grad]
