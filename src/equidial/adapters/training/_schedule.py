"""Schedules that turn the dial while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from equidial.adapters._life import check_tensors
from equidial.adapters._soften import matching_links, set_dial, settings_for
from equidial.adapters._state import require_root
from equidial.errors import ArgumentError, FileFormatError, StateError, explain
from equidial.filters import Dial

Kind = Literal["constant", "linear", "cosine", "step"]

_SCANNED = 10_000  # steps at which a callable is tried beforehand, at most


class DialSchedule:
    """Turns the dial of a softened model from ``start`` to ``end`` in ``steps`` steps, and stays there.

    With ``t`` the number of calls of :meth:`step`, at most ``steps``:

        constant   start
        linear     start + (end - start) t / steps
        cosine     end + (start - end) (1 + cos(pi t / steps)) / 2
        step       equal stairs from start to end, one at each of the ``milestones`` that ``t`` has reached
        callable   kind(t)

    Constructing it turns the dial to its first value, as torch's schedulers set the rate; call :meth:`step` after
    each optimizer step (or each epoch, if ``steps`` counts epochs). Past its end it stays at the end. Works in
    constrain and in retract mode; buffers are filled in place, so nothing is recompiled. The dial is turned only when
    the value changes.

    Args:
        model: softened; its fold ends the schedule.
        kind: one of the names, or a function of the step.
        start, end: values of the dial; ``end`` may be left out for ``constant``, both for a callable.
        steps: after how many steps the end is reached; ``constant`` needs none, ``step`` takes its last milestone.
        dial: ``softness``, ``threshold`` or ``max_error``.
        target_modules: only these modules (PEFT's rules); several schedules may share a model so.
        milestones: increasing step numbers, for ``step``.

    Raises:
        ArgumentError: an unknown kind or dial, a value out of range anywhere on the way, wrong steps or milestones.
        StateError: a model that is not softened, a dial that is learned, ``max_error`` of a sharded model.
        NoMatchingTargetError: ``target_modules`` that match nothing.
        BudgetError: a value that a tensor cannot reach.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Kind | Callable[[int], float],
        start: float | None = None,
        end: float | None = None,
        steps: int | None = None,
        dial: str = "softness",
        target_modules: str | Sequence[str] | None = None,
        milestones: Sequence[int] | None = None,
    ):
        _, state = require_root(model, "DialSchedule")
        self.model, self.kind, self.dial, self.target_modules = model, kind, dial, target_modules
        self.start, self.end, self.milestones = start, end, tuple(milestones or ())
        self.steps = self._checked(steps)
        self.last_step = 0
        values = [self.value_at(t) for t in self._scan()]
        self._check_dials()
        if dial == "max_error":
            check_tensors(model, "DialSchedule(dial='max_error')")
        for extreme in {min(values), max(values)}:
            settings_for(matching_links(model, target_modules), self._dial(extreme), state.config.radius)
        self.value = values[0]
        self._turn(values[0])

    def value_at(self, step: int) -> float:
        """The dial's value after ``step`` calls of :meth:`step`; raises ``ArgumentError`` for one out of range."""
        t = min(step, self.steps)
        if callable(self.kind):
            return self._dial(self.kind(t)).value
        assert self.start is not None
        assert self.end is not None
        if self.kind == "step":
            t, whole = sum(m <= t for m in self.milestones), len(self.milestones)
        else:
            whole = self.steps
        if self.kind == "constant" or t == 0:
            return float(self.start)
        if t >= whole:
            return float(self.end)
        share = (1 - math.cos(math.pi * t / whole)) / 2 if self.kind == "cosine" else t / whole
        low, high = sorted((self.start, self.end))
        return min(max(self.start + (self.end - self.start) * share, low), high)

    def step(self) -> float:
        """Count one step, turn the dial if its value changes, and return the value.

        Raises ``StateError`` for a model that was folded or learns its dials by now, or was sharded where the dial
        needs whole tensors (``max_error``); the step does not count then.
        """
        value = self.value_at(self.last_step + 1)
        if value != self.value:
            self._check_dials()
            self._turn(value)
        self.last_step += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint: what the schedule is, for which tensors, and where it stands.

        A callable is not stored, only its value.
        """
        return {**self._identity(), "last_step": self.last_step, "value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule of the same kind, values and tensors stood, and turn the dial there.

        Raises ``FileFormatError`` for the state of another schedule or another model, and for a callable that has
        another value at that step; nothing is turned then.
        """
        mine = self._identity()
        keys = {*mine, "last_step", "value"}
        if not isinstance(state, Mapping) or set(state) != keys:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise FileFormatError(
                explain(f"the state of a DialSchedule, {sorted(keys)}", str(got), "pass what state_dict returned")
            )
        for key, value in mine.items():
            found = list(state[key]) if isinstance(state[key], tuple) else state[key]
            if found != value:
                raise FileFormatError(
                    explain(
                        f"the state of a schedule with {key}={_shown(value)}",
                        f"{key}={_shown(found)}, of another {'model' if key == 'tensors' else 'schedule'}",
                        "build the schedule and the model as they were when the checkpoint was written",
                    )
                )
        last, value = state["last_step"], state["value"]
        if isinstance(last, bool) or not isinstance(last, int) or last < 0 or self.value_at(last) != value:
            raise FileFormatError(
                explain(
                    "a step and the value that this schedule has there",
                    f"last_step={last!r}, value={value!r}",
                    "pass the same function as before, and the state as it was written",
                )
            )
        self._check_dials()
        self._turn(float(value))
        self.last_step = last

    def _identity(self) -> dict[str, Any]:
        links = [link for _, _, link in matching_links(self.model, self.target_modules)]
        return {
            "kind": self.kind if isinstance(self.kind, str) else "callable",
            "start": self.start,
            "end": self.end,
            "steps": self.steps,
            "milestones": list(self.milestones),
            "dial": self.dial,
            "tensors": {link.name: f"{link.constraint.name}, {link.response}" for link in links},
        }

    def _turn(self, value: float) -> None:
        dial = self._dial(value)
        set_dial(self.model, target_modules=self.target_modules, **{dial.kind: dial.value})
        self.value = value  # only now: a turn that was refused is tried again by the next step

    def _dial(self, value: Any) -> Dial:
        return Dial.of(**{self.dial: value})

    def _scan(self) -> Sequence[int]:
        if not callable(self.kind):
            return (0, self.steps)
        return sorted({*range(0, self.steps, max(1, self.steps // _SCANNED)), self.steps})

    def _checked(self, steps: int | None) -> int:
        """The number of steps; raises ``ArgumentError`` for arguments that do not go together."""
        if self.dial not in ("softness", "threshold", "max_error"):
            raise _wrong("dial out of softness, threshold and max_error", self.dial, "e.g. dial='softness'")
        named = isinstance(self.kind, str) and self.kind in get_args(Kind)
        if not named and not callable(self.kind):
            raise _wrong(f"a kind out of {get_args(Kind)}, or a function of the step", self.kind, "e.g. 'cosine'")
        if callable(self.kind):
            if self.start is not None or self.end is not None:
                raise _wrong("no start and end beside a function", (self.start, self.end), "leave them out")
        else:
            if self.kind == "constant" and self.end is None:
                self.end = self.start
            for name, value in (("start", self.start), ("end", self.end)):
                if value is None:
                    raise _wrong(f"{name}, a value of the {self.dial}", None, "e.g. start=1.0, end=0.0")
                if math.isinf(self._dial(value).value):
                    raise _wrong(f"a finite {name}", value, "a schedule cannot pass infinity: start lower")
            if self.kind == "constant" and self.end != self.start:
                raise _wrong("one value for kind='constant'", (self.start, self.end), "leave end out")
        marks = self.milestones
        if (self.kind == "step") != bool(marks):
            raise _wrong("milestones for kind='step', and for no other", marks, "e.g. milestones=[100, 200]")
        if any(isinstance(m, bool) or not isinstance(m, int) or m < 1 for m in marks) or list(marks) != sorted(
            set(marks)
        ):
            raise _wrong("increasing milestones from 1 on", marks, "e.g. milestones=[100, 200]")
        if steps is None and (marks or self.kind == "constant"):
            steps = marks[-1] if marks else 0
        least = marks[-1] if marks else 0 if self.kind == "constant" else 1
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
            raise _wrong(f"steps, a whole number of at least {least}", steps, "how many calls of step() it takes")
        return steps

    def _check_dials(self) -> None:
        learned = [
            link.name
            for _, _, link in matching_links(self.model, self.target_modules)
            if link.learned_softness is not None
        ]
        if learned:
            raise StateError(
                explain(
                    "dials that are scheduled or learned",
                    f"both for {', '.join(learned[:3])}",
                    "call fix_dial, or leave these tensors out with target_modules",
                )
            )


def _wrong(expected: str, got: object, todo: str) -> ArgumentError:
    return ArgumentError(explain(expected, repr(got), todo))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
