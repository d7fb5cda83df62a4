"""accelerate: the same weights as a plain loop, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import equidial as ed
from tests.adapters.models import same_tensors, snapshot
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
