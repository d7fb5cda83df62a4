"""set_network_error: within the budget, never worse than one share for all or than a grid of shares."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from equidial import SoftEquivarianceConfig, certify_network, set_network_error, set_softness, soften
from equidial.adapters._parametrization import constrained, original_of
from equidial.adapters.network._certify import answer, ask, plain_copy
from equidial.errors import BudgetError, EquidialError, TargetError
from tests.adapters.models import same_tensors, snapshot


def small_net(symmetric: float) -> nn.Sequential:
    """Two convolutions, the second the more symmetric the larger the constant that is added to it."""
    second = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        second.weight.add_(symmetric)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), second, nn.GELU()).eval()


BALL: dict[str, Any] = {"ball": 1.0, "input_shape": (1, 6, 6)}


def composed_bound(model: nn.Module) -> float:
    """Of the network as its dials stand, not compared with the trivial bound."""
    question = ask(model, None, None, 1.0, (1, 6, 6), None, None, 0)
    return answer(plain_copy(model), question, "", {}, search=False, trivial=False).bound


def change(model: nn.Module) -> float:
    """The objective: sum over tensors of the squared relative change."""
    total = 0.0
    for module, name, link in constrained(model):
        original = original_of(module, name).detach().double()
        total += float(((link(original) - original).square().sum() / original.square().sum()).detach())
    return total


@pytest.mark.parametrize(("symmetric", "share"), [(0.0, 0.7), (0.3, 0.3)])
def test_no_worse_than_the_even_split_and_a_grid(symmetric: float, share: float) -> None:
    net = small_net(symmetric)
    model = soften(copy.deepcopy(net), SoftEquivarianceConfig(group="C4", softness=0.2))
    before = certify_network(net, SoftEquivarianceConfig(group="C4", softness=1.0), **BALL)
    budget = share * before.bound
    found = set_network_error(model, budget, **BALL)
    assert found.bound <= budget
    assert found.bound == certify_network(model, **BALL).bound
    reached = change(model)
    trial = soften(copy.deepcopy(net), SoftEquivarianceConfig(group="C4", softness=0.2))
    links = [link.name for _, _, link in constrained(trial)]
    grid = [k / 5 for k in range(6)]
    for shares in itertools.product(grid, repeat=len(links)):
        for name, s in zip(links, shares, strict=True):
            set_softness(trial, s, target_modules=[name])
        if change(trial) < reached * (1 - 1e-3):
            assert composed_bound(trial) > budget


def test_relative_budgets_of_inputs_and_declared_layers() -> None:
    spaces = {"0": ("2*Vector", "3*Vector + Trivial"), "1": ("3*Vector + Trivial", "Vector")}
    net = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 2)).double()
    model = soften(net, SoftEquivarianceConfig(group="SO2", softness=0.9, representations=spaces))
    x = torch.randn(3, 4, dtype=torch.float64)
    found = set_network_error(model, 0.5, inputs=x, relative=True)
    assert 0.3 < found.relative <= 0.5
    assert certify_network(model, inputs=x).relative <= 0.5


def test_a_generous_budget_leaves_the_weights_alone() -> None:
    net = small_net(0.0)
    model = soften(copy.deepcopy(net), SoftEquivarianceConfig(group="C4", softness=0.1))
    set_network_error(model, 1e6, **BALL)
    assert torch.equal(model.get_parameter("0.parametrizations.weight.original"), net.get_parameter("0.weight"))
    assert change(model) == 0


def test_a_budget_below_every_softness_names_the_smallest() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()  # the head cannot be softened
    model = soften(net, SoftEquivarianceConfig(group="C4", softness=0.5))
    before = snapshot(model)
    with pytest.raises(BudgetError, match="softness 0") as caught:
        set_network_error(model, 1e-3, **BALL)
    assert same_tensors(before, snapshot(model))
    smallest = caught.value.smallest
    assert smallest is not None
    assert set_network_error(model, 1.01 * smallest, **BALL).bound <= 1.01 * smallest


def test_an_abstaining_network_names_the_module() -> None:
    model = soften(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(1)), SoftEquivarianceConfig(group="C4", softness=0.5))
    before = snapshot(model)
    with pytest.raises(TargetError, match="abstains at 1: Softmax"):
        set_network_error(model, 0.1, **BALL)
    assert same_tensors(before, snapshot(model))


@pytest.mark.parametrize(
    ("max_error", "arguments"),
    [
        (-1.0, BALL),
        (float("nan"), BALL),
        (True, BALL),
        (0.1, {}),
        (0.1, {**BALL, "relative": True}),
        (0.1, {"ball": 1.0}),
    ],
)
def test_wrong_arguments_are_refused(max_error: float, arguments: dict[str, Any]) -> None:
    model = soften(small_net(0.0), SoftEquivarianceConfig(group="C4", softness=0.5))
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        set_network_error(model, max_error, **arguments)


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(EquidialError, match="softened model"):
        set_network_error(small_net(0.0), 0.1, **BALL)
