"""Interrupt and resume: the weights of the uninterrupted training, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import equidial as ed
from tests.adapters.models import cnn, same_tensors, snapshot
from tests.adapters.training import batches, soft_cnn, train

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def build(mode: str, scheduled: bool, optimizer: str, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Model, optimizer and schedule before training; retract mode is entered by the caller."""
    model = soft_cnn(0.8, dtype)
    if mode == "learned":
        ed.learn_dial(model, ["first"])
    chosen = ["depthwise"] if mode == "learned" else None
    schedule = ed.DialSchedule(model, "cosine", 0.8, 0.1, 5, target_modules=chosen) if scheduled else None
    return model, OPTIMIZERS[optimizer](model.parameters()), schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("mode", ["constrain", "retract", "learned"])
def test_resumed_training_gives_the_same_bits(
    mode: str, scheduled: bool, optimizer: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    data, penalty = batches(7, dtype), 0.2 if mode == "learned" else 0.0

    def run(parts: list[tuple[Any, Any, Any, list]]) -> None:
        for model, steps_by, schedule, some in parts:
            if mode == "retract":
                ed.retract(model, steps_by)
            train(model.train(), steps_by, some, penalty, after=None if schedule is None else schedule.step)

    whole = build(mode, scheduled, optimizer, dtype)
    run([(*whole, data)])

    first = build(mode, scheduled, optimizer, dtype)
    run([(*first, data[:3])])
    state = {"model": first[0].state_dict(), "optimizer": first[1].state_dict()}
    if scheduled:
        state["schedule"] = first[2].state_dict()
    torch.save(state, tmp_path / "checkpoint.pt")
    del first

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = build(mode, scheduled, optimizer, dtype)
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    if scheduled:
        second[2].load_state_dict(state["schedule"])
    run([(*second, data[3:])])

    assert same_tensors(snapshot(second[0]), snapshot(whole[0]))
    assert list(ed.status(second[0])) == list(ed.status(whole[0]))
    assert not same_tensors(snapshot(whole[0]), snapshot(build(mode, scheduled, optimizer, dtype)[0]))
    assert same_tensors(snapshot(ed.fold(second[0])), snapshot(ed.fold(whole[0])))


@pytest.mark.parametrize("mode", ["constrain", "learned"])
def test_resumed_from_a_saved_folder(mode: str, tmp_path: Path) -> None:
    """``save`` and ``load`` in place of the state dict; the optimizer's state beside them."""
    data, penalty = batches(6, torch.float32), 0.2 if mode == "learned" else 0.0
    torch.manual_seed(1)
    base = cnn()
    whole = build(mode, False, "AdamW", torch.float32)
    train(whole[0].train(), whole[1], data, penalty)
    first = build(mode, False, "AdamW", torch.float32)
    train(first[0].train(), first[1], data[:2], penalty)
    ed.save(first[0], tmp_path)
    model = ed.load(copy.deepcopy(base), tmp_path)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    optimizer.load_state_dict(first[1].state_dict())
    train(model.train(), optimizer, data[2:], penalty)
    for (name, a), (_, b) in zip(model.named_parameters(), whole[0].named_parameters(), strict=True):
        assert torch.equal(a, b), name
