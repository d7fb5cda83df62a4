"""Schedules: their values in closed form, their state, and what they refuse when they are constructed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing

import equidial as ed
from equidial.errors import ArgumentError, BudgetError, FileFormatError, NoMatchingTargetError, StateError
from tests.adapters.models import SPACES, VectorMlp, cnn, logits, same_tensors, snapshot
from tests.adapters.training import batches, soft_cnn, train

CURVES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"kind": "constant", "start": 0.3}, [0.3] * 8),
    "constant twice": ({"kind": "constant", "start": 0.3, "end": 0.3, "steps": 2}, [0.3] * 8),
    "down": ({"kind": "linear", "start": 1.0, "end": 0.0, "steps": 4}, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
    "up": ({"kind": "linear", "start": 0.1, "end": 0.7, "steps": 3}, [0.1, 0.3, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7]),
    "cosine": (
        {"kind": "cosine", "start": 1.0, "end": 0.2, "steps": 4},
        [0.2 + 0.4 * (1 + math.cos(math.pi * min(t, 4) / 4)) for t in range(8)],
    ),
    "step": (
        {"kind": "step", "start": 0.9, "end": 0.0, "milestones": [1, 4, 5]},
        [0.9, 0.6, 0.6, 0.6, 0.3, 0, 0, 0],
    ),
    "step, longer": ({"kind": "step", "start": 0.2, "end": 0.4, "milestones": [2], "steps": 9}, [0.2] * 2 + [0.4] * 6),
    "callable": ({"kind": lambda t: 1 / (1 + t), "steps": 3}, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),
    "threshold": (
        {"kind": "linear", "start": 0.4, "end": 0.2, "steps": 2, "dial": "threshold"},
        [0.4, 0.3] + [0.2] * 6,
    ),
    "max_error": (
        {"kind": "linear", "start": 0.4, "end": 0.2, "steps": 2, "dial": "max_error"},
        [0.4, 0.3] + [0.2] * 6,
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_curve_and_the_end(name: str) -> None:
    """Values in closed form; past its end it stays at the end; the model stands where the schedule says."""
    arguments, values = CURVES[name]
    model = soft_cnn(0.5)
    schedule = ed.DialSchedule(model, **arguments)
    for t, expected in enumerate(values):
        assert schedule.value == pytest.approx(expected, abs=1e-15)
        assert schedule.last_step == t
        for row, layer in zip(ed.status(model), ed.certify(model), strict=True):
            if schedule.dial == "softness":
                assert row.dial == f"softness={expected:g}"
            elif schedule.dial == "threshold":
                assert row.threshold == schedule.value
            else:
                assert layer.bound <= schedule.value
        assert schedule.step() == schedule.value
    assert schedule.value == values[-1]


def test_the_end_is_exact_whatever_the_rounding() -> None:
    for start, end, steps in ((0.1, 0.7, 7), (0.9, 0.3, 3), (0.3, 0.9, 11)):
        for kind in ("linear", "cosine"):
            schedule = ed.DialSchedule(soft_cnn(), kind, start, end, steps)
            seen = [schedule.value] + [schedule.step() for _ in range(steps)]
            assert seen[0] == start
            assert seen[-1] == end
            assert seen == sorted(seen, reverse=start > end)


def test_two_schedules_share_a_model() -> None:
    model = soft_cnn(0.5)
    schedules = [
        ed.DialSchedule(model, "linear", 0.8, 0.0, 2, target_modules=["first"]),
        ed.DialSchedule(model, "constant", 0.2, target_modules=["depthwise"]),
    ]
    for schedule in schedules:
        schedule.step()
    assert [row.dial for row in ed.status(model)] == ["softness=0.4", "softness=0.2"]


@pytest.mark.parametrize("name", CURVES)
def test_the_state_goes_on_where_it_stood(name: str) -> None:
    arguments, values = CURVES[name]
    first = ed.DialSchedule(soft_cnn(), **arguments)
    for _ in range(2):
        first.step()
    state = json.loads(json.dumps(first.state_dict()))
    model = soft_cnn()
    second = ed.DialSchedule(model, **arguments)
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    assert list(ed.status(model)) == list(ed.status(first.model))
    assert [second.step() for _ in values[3:]] == pytest.approx(values[3:], abs=1e-15)


def mlp_state() -> Any:
    config = ed.SoftEquivarianceConfig(group="SO2", softness=0.5, representations=SPACES)
    return ed.DialSchedule(ed.soften(VectorMlp(), config), "linear", 1.0, 0.0, 4).state_dict()


FOREIGN = {
    "another model": (lambda s: mlp_state(), "of another model"),
    "another response": (
        lambda s: ed.DialSchedule(soft_cnn(response="hard"), "linear", 1.0, 0.0, 4).state_dict(),
        "of another model",
    ),
    "another end": (lambda s: s | {"end": 0.5}, "end=0.5, of another schedule"),
    "another kind": (lambda s: s | {"kind": "cosine"}, "kind='cosine', of another schedule"),
    "other steps": (lambda s: s | {"steps": 5}, "steps=5, of another schedule"),
    "another dial": (lambda s: s | {"dial": "threshold"}, "of another schedule"),
    "an edited value": (lambda s: s | {"value": 0.4}, "value=0.4"),
    "a negative step": (lambda s: s | {"last_step": -1}, "last_step=-1"),
    "no number": (lambda s: s | {"last_step": "2"}, "last_step='2'"),
    "a missing key": (lambda s: {k: v for k, v in s.items() if k != "value"}, "state of a DialSchedule"),
    "an unknown key": (lambda s: s | {"warmup": 3}, "warmup"),
    "nothing": (lambda s: None, "NoneType"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_states_are_refused(case: str) -> None:
    change, message = FOREIGN[case]
    model = soft_cnn()
    schedule = ed.DialSchedule(model, "linear", 1.0, 0.0, 4)
    schedule.step()
    before, state = snapshot(model), schedule.state_dict()
    with pytest.raises(FileFormatError, match=message) as caught:
        schedule.load_state_dict(change(state))
    assert "do: " in str(caught.value)
    assert schedule.state_dict() == state
    assert same_tensors(snapshot(model), before)


def test_the_state_of_a_function_is_its_value() -> None:
    state = ed.DialSchedule(soft_cnn(), lambda t: 0.5, steps=3).state_dict()
    ed.DialSchedule(soft_cnn(), lambda t: 0.5, steps=3).load_state_dict(state)
    with pytest.raises(FileFormatError, match="the same function"):
        ed.DialSchedule(soft_cnn(), lambda t: 0.6, steps=3).load_state_dict(state)


def biased() -> Any:
    config = ed.SoftEquivarianceConfig(group="SO2", softness=0.5, representations=SPACES)
    return ed.soften(VectorMlp(), config)


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "plain model": (cnn, {"kind": "constant", "start": 0.5}, StateError, "softened model for DialSchedule"),
    "kind": (soft_cnn, {"kind": "sine", "start": 1.0, "end": 0.0, "steps": 3}, ArgumentError, "'sine'"),
    "dial": (soft_cnn, {"kind": "constant", "start": 0.5, "dial": "softnes"}, ArgumentError, "softnes"),
    "start": (soft_cnn, {"kind": "linear", "start": 1.2, "end": 0.0, "steps": 3}, ArgumentError, "1.2"),
    "end": (soft_cnn, {"kind": "linear", "start": 1.0, "end": -0.1, "steps": 3}, ArgumentError, "-0.1"),
    "no end": (soft_cnn, {"kind": "linear", "start": 1.0, "steps": 3}, ArgumentError, "end, a value"),
    "no start": (soft_cnn, {"kind": "constant"}, ArgumentError, "start, a value"),
    "NaN": (soft_cnn, {"kind": "constant", "start": math.nan}, ArgumentError, "nan"),
    "infinity": (
        soft_cnn,
        {"kind": "linear", "start": math.inf, "end": 0.0, "steps": 3, "dial": "threshold"},
        ArgumentError,
        "finite start",
    ),
    "two values": (soft_cnn, {"kind": "constant", "start": 0.5, "end": 0.4}, ArgumentError, "one value"),
    "no steps": (soft_cnn, {"kind": "linear", "start": 1.0, "end": 0.0}, ArgumentError, "at least 1"),
    "zero steps": (soft_cnn, {"kind": "cosine", "start": 1.0, "end": 0.0, "steps": 0}, ArgumentError, "at least 1"),
    "half steps": (soft_cnn, {"kind": "linear", "start": 1.0, "end": 0.0, "steps": 2.5}, ArgumentError, "2.5"),
    "no milestones": (soft_cnn, {"kind": "step", "start": 1.0, "end": 0.0, "steps": 3}, ArgumentError, "milestones"),
    "falling milestones": (
        soft_cnn,
        {"kind": "step", "start": 1.0, "end": 0.0, "milestones": [3, 2]},
        ArgumentError,
        "increasing",
    ),
    "milestones of a line": (
        soft_cnn,
        {"kind": "linear", "start": 1.0, "end": 0.0, "steps": 3, "milestones": [2]},
        ArgumentError,
        "no other",
    ),
    "steps before the last milestone": (
        soft_cnn,
        {"kind": "step", "start": 1.0, "end": 0.0, "milestones": [2, 8], "steps": 5},
        ArgumentError,
        "at least 8",
    ),
    "function out of range": (soft_cnn, {"kind": lambda t: 0.3 * t, "steps": 9}, ArgumentError, "1.2"),
    "function of no number": (soft_cnn, {"kind": lambda t: "half", "steps": 2}, ArgumentError, "'half'"),
    "function with a start": (soft_cnn, {"kind": lambda t: 0.5, "start": 1.0, "steps": 2}, ArgumentError, "no start"),
    "function without steps": (soft_cnn, {"kind": lambda t: 0.5}, ArgumentError, "at least 1"),
    "no match": (
        soft_cnn,
        {"kind": "constant", "start": 0.5, "target_modules": ["frist"]},
        NoMatchingTargetError,
        "frist",
    ),
    "learned": (
        lambda: ed.learn_dial(soft_cnn()),
        {"kind": "constant", "start": 0.5},
        StateError,
        "both for first.weight",
    ),
    "out of reach": (
        biased,
        {"kind": "linear", "start": 2.0, "end": 0.1, "steps": 3, "dial": "threshold"},
        BudgetError,
        "outer.bias",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_errors_when_constructed(case: str) -> None:
    make, arguments, error, message = WRONG[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        ed.DialSchedule(model, **arguments)
    assert "do: " in str(caught.value)
    assert same_tensors(snapshot(model), before)


def test_a_model_folded_or_learning_meanwhile_stops_it() -> None:
    for change, message in ((ed.fold, "plain TinyCnn"), (ed.learn_dial, "both for")):
        model = soft_cnn()
        schedule = ed.DialSchedule(model, "linear", 1.0, 0.0, 4)
        schedule.step()
        change(model)
        with pytest.raises(StateError, match=message):
            schedule.step()


def test_a_turn_that_was_refused_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model sharded meanwhile refuses ``max_error`` at every step, not at the first one only."""
    from equidial.adapters.training import _schedule

    def refusing(*_: Any, **__: Any) -> None:
        raise StateError("sharded")

    model = soft_cnn(0.5)
    schedule = ed.DialSchedule(model, "step", 0.4, 0.2, dial="max_error", milestones=[1])
    with monkeypatch.context() as sharded:
        sharded.setattr(_schedule, "set_dial", refusing)
        for _ in range(2):
            with pytest.raises(StateError, match="sharded"):
                schedule.step()
            assert (schedule.value, schedule.last_step) == (0.4, 0)
        with pytest.raises(StateError, match="sharded"):
            schedule.load_state_dict(schedule.state_dict() | {"last_step": 1, "value": 0.2})
        assert (schedule.value, schedule.last_step) == (0.4, 0)
    assert schedule.step() == 0.2
    assert all(row.bound <= 0.2 for row in ed.certify(model))


def test_moving_the_dial_of_a_compiled_model_recompiles_nothing() -> None:
    for retracting in (False, True):
        model, x = soft_cnn(0.5, torch.float32), batches(1, torch.float32)[0][0]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if retracting:
            ed.retract(model, optimizer)
        schedule = ed.DialSchedule(model, "linear", 1.0, 0.0, 3)
        logits(model, x)  # an eager read caches the basis; the first one after compiling would compile once more
        torch._dynamo.reset()
        count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled: Any = torch.compile(model, backend=count, fullgraph=True)
        frames = set()
        for data in batches(5, torch.float32):
            train(compiled, optimizer, [data], after=schedule.step)
            frames.add(count.frame_count)
            assert torch.allclose(logits(model, x), compiled(x).detach(), atol=1e-5)
        assert len(frames) == 1
        assert ed.certify(model).bound == 0.0
        torch._dynamo.reset()
