"""accelerate: the same weights as a plain loop, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import equidial as ed
from equidial.errors import FileFormatError, StateError
from tests.adapters.models import cnn, same_tensors, snapshot
from tests.adapters.training import batches, soft_cnn, train

MODES = ["constrain", "retract", "learned"]


def build(mode: str) -> tuple[Any, torch.optim.Optimizer, Any]:
    model = soft_cnn(0.8, torch.float32).train()
    if mode == "learned":
        ed.learn_dial(model, ["first"])
    schedule = ed.DialSchedule(model, "linear", 0.8, 0.2, 4, target_modules=["depthwise"])
    return model, torch.optim.AdamW(model.parameters(), lr=0.01), schedule


def loop(accelerator: Accelerator, model: Any, optimizer: Any, schedule: Any, data: list, penalty: float) -> None:
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if penalty:
            loss = loss + penalty * ed.relaxation_penalty(model)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_a_plain_loop_and_resumes_bit_for_bit(mode: str, tmp_path: Path) -> None:
    data, penalty = batches(6, torch.float32), 0.1 if mode == "learned" else 0.0
    plain, optimizer, schedule = build(mode)
    if mode == "retract":
        ed.retract(plain, optimizer)
    train(plain, optimizer, data, penalty, after=schedule.step)

    def prepared(accelerator: Accelerator) -> tuple[Any, Any, Any]:
        model, optimizer, schedule = build(mode)
        model, optimizer = accelerator.prepare(model, optimizer)
        accelerator.register_for_checkpointing(schedule)
        return model, optimizer, schedule

    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = prepared(accelerator)
    if mode == "retract":
        ed.retract(model, optimizer)
    loop(accelerator, model, optimizer, schedule, data[:2], penalty)
    accelerator.save_state(str(tmp_path))
    loop(accelerator, model, optimizer, schedule, data[2:], penalty)
    assert same_tensors(snapshot(accelerator.unwrap_model(model)), snapshot(plain))

    second = Accelerator(cpu=True)
    model, optimizer, schedule = prepared(second)
    second.load_state(str(tmp_path))
    assert schedule.last_step == 2
    if mode == "retract":
        ed.retract(model, optimizer)
    loop(second, model, optimizer, schedule, data[2:], penalty)
    assert same_tensors(snapshot(second.unwrap_model(model)), snapshot(plain))
    assert ed.certify(model).bound == ed.certify(plain).bound


def test_an_optimizer_prepared_before_soften_trains_the_same_parameters() -> None:
    found = []
    for early in (False, True):
        torch.manual_seed(1)
        accelerator, model = Accelerator(cpu=True), cnn().train()
        config = ed.SoftEquivarianceConfig(group="C4", softness=0.3)
        if not early:
            ed.soften(model, config)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        if early:
            ed.soften(model, config)
        loop(accelerator, model, optimizer, ed.DialSchedule(model, "constant", 0.3), batches(3, torch.float32), 0.0)
        found.append(snapshot(ed.fold(accelerator.unwrap_model(model))))
    assert same_tensors(*found)


def test_gathered_batches_are_one_step_of_a_retracted_model() -> None:
    """accelerate passes over every second step of the optimizer, and over the hook with it."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, schedule = build("retract")
    model, optimizer = accelerator.prepare(model, optimizer)
    ed.retract(model, optimizer)
    trained = list(model.parameters())
    changed = []
    for x, y in batches(4, torch.float32):
        before = [parameter.detach().clone() for parameter in trained]
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
        changed.append(not all(torch.equal(a, b) for a, b in zip(before, trained, strict=True)))
        assert all(row.distance < 1e-5 for row in ed.status(model))
    assert changed == [False, True, False, True]
    assert schedule.last_step == 2


def test_what_belongs_to_another_model_is_refused(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model, _, schedule = build("retract")
    other = torch.optim.AdamW(build("retract")[0].parameters(), lr=0.01)
    model, other = accelerator.prepare(model, other)
    before = snapshot(model)
    with pytest.raises(StateError, match=r"(?s)without first\.weight.*do: "):
        ed.retract(model, other)
    assert same_tensors(snapshot(model), before)
    accelerator.register_for_checkpointing(schedule)
    accelerator.save_state(str(tmp_path))
    schedule.end = 0.1  # resumed with another schedule
    with pytest.raises(FileFormatError, match=r"(?s)end=0\.2, of another schedule.*do: "):
        accelerator.load_state(str(tmp_path))
