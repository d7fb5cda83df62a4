"""Retract mode: where it is constrain mode, where it is not, that every verb works in it, and how it ends."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import equidial as ed
from equidial.adapters._parametrization import constrained, original_of
from equidial.errors import ArgumentError, StateError
from tests.adapters.models import cnn, logits, relative, same_tensors, snapshot
from tests.adapters.training import batches, furthest, kernels, soft_cnn, train

SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampened": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.1},
}


def both(
    softness: float, response: str, make, steps: int = 12
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[float]]]:
    """The constrained tensors after the same training in constrain and in retract mode, and the losses."""
    found, losses = [], []
    for retracting in (False, True):
        model = soft_cnn(softness, response=response)
        optimizer = make(model.parameters())
        if retracting:
            ed.retract(model, optimizer)
        losses.append(train(model, optimizer, batches(steps)))
        found.append(kernels(model))
    return found[0], found[1], losses


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
@pytest.mark.parametrize(("softness", "response"), [(0.5, "hard"), (0.0, "hard"), (0.0, "nearest")])
def test_a_linear_projector_gives_the_weights_of_constrain_mode(softness: float, response: str, options: Any) -> None:
    """P(V - lr P g(P V)) = P V - lr P g: both hold P V, and buffers that are linear in gradients differ off P only."""
    constrain, retract, losses = both(softness, response, lambda p: torch.optim.SGD(p, lr=0.1, **options))
    assert furthest(retract, constrain) < 1e-12
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)],
    ids=["AdamW", "Adam"],
)
def test_adam_takes_another_path_in_the_same_set(make) -> None:
    """Second moments are no linear function of the gradient: they see its part off the set, too."""
    constrain, retract, _ = both(0.0, "hard", make)
    assert 1e-3 < furthest(retract, constrain) < 1.0
    for kernel in constrain + retract:
        assert relative(torch.rot90(kernel, 1, (-2, -1)), kernel) < 1e-12


def test_the_cone_of_nearest_is_curved_so_that_paths_differ_between_the_ends() -> None:
    """Both stay within the bound; constrain steps by -lr J J^T g, retract by -lr J g."""
    for make in (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.01)):
        for retracting in (False, True):
            model = soft_cnn(0.5)
            betas = [row.threshold for row in ed.status(model)]
            optimizer = make(model.parameters())
            if retracting:
                ed.retract(model, optimizer)
            links = [link for _, _, link in constrained(model)]

            def within(links=links, model=model, betas=betas) -> None:
                for link, kernel, beta in zip(links, kernels(model), betas, strict=True):
                    assert link.constraint.defect(link.layout.weights(kernel)) <= beta * (1 + 1e-9)

            train(model, optimizer, batches(6), after=within)
        constrain, retract, _ = both(0.5, "nearest", make, steps=6)
        assert furthest(retract, constrain) > 1e-4


def test_the_forward_pass_reads_the_tensor_as_it_stands() -> None:
    model = soft_cnn(0.3)
    expected = kernels(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = ed.retract(model, optimizer)
    original = model.first.parametrizations.weight.original
    assert model.first.weight is original
    assert all(torch.equal(a, b) for a, b in zip(kernels(model), expected, strict=True)), "F was applied once"
    handle.remove()
    assert model.first.weight is not original
    assert furthest(kernels(model), expected) < 1e-12, "F(W) = W in the set"
    handle.remove()
    assert not handle.active


def test_an_optimizer_made_before_soften_trains_the_same_parameters() -> None:
    """soften keeps the Parameter objects, so both modes accept it."""
    found = []
    for late in (False, True):
        for retracting in (False, True):
            torch.manual_seed(1)
            model = cnn().double()
            early = torch.optim.SGD(model.parameters(), lr=0.1)
            ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if late else early
            if retracting:
                ed.retract(model, optimizer)
            train(model, optimizer, batches(3))
            found.append(kernels(model))
    assert all(furthest(other, found[0]) < 1e-12 for other in found[1:])


def test_every_verb_works_while_retracted(tmp_path: Path) -> None:
    model = soft_cnn(0.4, torch.float32)
    torch.manual_seed(1)
    base = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = ed.retract(model, optimizer)
    train(model, optimizer, batches(3, torch.float32))
    x = batches(1, torch.float32)[0][0]
    assert [row.retracted for row in ed.status(model)] == [True, True]
    assert "(retracted)" in str(ed.status(model))
    assert "(retracted)" in repr(model)
    assert all(row.distance < 1e-5 for row in ed.status(model))
    certificate, y = ed.certify(model), logits(model, x)
    ed.save(model, tmp_path)
    loaded = ed.load(base, tmp_path)
    assert torch.allclose(logits(loaded, x), y, atol=1e-5)
    assert not any(row.retracted for row in ed.status(loaded))
    with ed.disabled(model):
        assert torch.equal(logits(model, x), y), "there is no other network behind it"
    ed.set_softness(model, 0.1)
    rows = ed.status(model)
    assert all(row.distance < 1e-5 for row in rows), "moving the dial applies it to the tensors"
    assert rows.tensors[0].defect == pytest.approx(0.1 * rows.tensors[0].reference, rel=1e-4)
    assert ed.certify(model).bound < certificate.bound
    ed.set_softness(model, 1.0)
    assert ed.status(model).tensors[0].defect == pytest.approx(0.1 * rows.tensors[0].reference, rel=1e-4)
    weight = model.first.weight.detach().clone()
    ed.fold(model)
    assert torch.equal(model.first.weight, weight)
    assert not handle.active


@pytest.mark.parametrize("finish", [ed.fold, ed.unload])
def test_fold_and_unload_end_it(finish) -> None:
    model = soft_cnn(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = ed.retract(model, optimizer)
    weight = model.first.weight
    finish(model)
    assert not handle.active
    assert model.first.weight is weight
    train(model, optimizer, batches(2))
    assert relative(torch.rot90(model.first.weight, 1, (-2, -1)), model.first.weight) > 1e-4, "free again"
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    ed.retract(model, optimizer)


def test_copies_constrain_themselves() -> None:
    model = soft_cnn(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ed.retract(model, optimizer)
    average = AveragedModel(model)
    twin = copy.deepcopy(model)
    assert not any(row.retracted for row in ed.status(twin))
    train(model, optimizer, batches(2), after=lambda: average.update_parameters(model))
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), batches(2))
    assert furthest(kernels(twin), kernels(model)) < 1e-12
    assert ed.certify(average).bound == 0.0


def test_frozen_tensors_need_no_optimizer() -> None:
    model = soft_cnn(0.2)
    original_of(model.first, "weight").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ed.retract(model, optimizer)
    before = model.first.weight.clone()
    train(model, optimizer, batches(2))
    assert torch.equal(model.first.weight, before)
    assert ed.status(model).tensors[0].distance < 1e-12


def of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def retracted(model: Any) -> Any:
    ed.retract(model, of(model))
    return model


def sharded() -> Any:
    model = soft_cnn()
    copied = {"__deepcopy__": lambda self, memo: self.clone()}
    shard = type("DTensor", (torch.Tensor,), {"__module__": "torch.distributed.tensor", **copied})
    chain: Any = model.first.parametrizations.weight
    held = chain.original.detach().as_subclass(shard)
    held._is_param = True
    chain._parameters["original"] = held
    return model


BAD = {
    "sharded": (sharded, of, StateError, "a DTensor, of which each process holds a shard"),
    "plain model": (lambda: cnn(), of, StateError, "softened model for retract"),
    "twice": (lambda: retracted(soft_cnn()), of, StateError, "retract mode already"),
    "learned dial": (lambda: ed.learn_dial(soft_cnn()), of, StateError, "learned one in first.weight"),
    "taper": (lambda: soft_cnn(response="taper"), of, ArgumentError, "shrinks the weights"),
    "exponential": (lambda: soft_cnn(response="exponential"), of, ArgumentError, "shrinks the weights"),
    "optimizer of a copy": (soft_cnn, lambda m: of(copy.deepcopy(m)), StateError, "without first.weight, depthwise"),
    "optimizer of the head": (soft_cnn, lambda m: of(m.head), StateError, "without first.weight"),
    "scheduler": (
        soft_cnn,
        lambda m: torch.optim.lr_scheduler.ConstantLR(of(m.head)),
        ArgumentError,
        "a torch optimizer",
    ),
}


def retracted_links(model: Any) -> list[bool]:
    """As ``status`` says it, which does not read sharded tensors."""
    return [link.retraction is not None for _, _, link in constrained(model)]


@pytest.mark.parametrize("case", BAD)
def test_wrong_models_and_optimizers_are_refused(case: str) -> None:
    make, optimizer_of, error, message = BAD[case]
    model = make()
    before, modes = snapshot(model), retracted_links(model)
    optimizer = optimizer_of(model)
    with pytest.raises(error, match=message) as caught:
        ed.retract(model, optimizer)
    assert "do: " in str(caught.value)
    assert same_tensors(snapshot(model), before)
    assert retracted_links(model) == modes
