"""Residual pathway priors: exact where B is 0, two weight decays, plain weights when folded."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.baselines import ResidualPathway, fold_rpp, residual_pathway_prior, rpp_penalty

C4 = ed.SoftEquivarianceConfig(group="C4", softness=0.0)
SPACES = {"0": ("2*Vector", "4*Vector + 3*Trivial"), "2": ("4*Vector + 3*Trivial", "Vector")}
LORENTZ = ed.SoftEquivarianceConfig(group="Lorentz", softness=0.0, representations=SPACES)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))


def linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 19), nn.Identity(), nn.Linear(19, 4))


def pathways(model: nn.Module) -> list[ResidualPathway]:
    return [m for m in model.modules() if isinstance(m, ResidualPathway)]


CASES = pytest.mark.parametrize(
    ("make", "config"), [(convolutions, C4), (linears, LORENTZ)], ids=["convolutions", "linears"]
)


@CASES
def test_it_starts_as_the_exactly_symmetric_model(
    make: Callable[[], nn.Module], config: ed.SoftEquivarianceConfig
) -> None:
    strict = ed.fold(ed.soften(make().double(), config))
    model = residual_pathway_prior(make().double(), config)
    assert len(pathways(model)) == (2 if config is C4 else 4)  # biases of kernels carry nothing of the group
    for name, tensor in strict.named_parameters():
        owner, _, key = name.rpartition(".")
        assert torch.allclose(getattr(model.get_submodule(owner), key), tensor, rtol=0, atol=1e-12)


def test_a_kernel_is_the_mean_over_its_turns_plus_the_residual() -> None:
    plain, model = convolutions().double(), residual_pathway_prior(convolutions().double(), C4)
    residual = pathways(model)[0].residual
    nn.init.normal_(residual)
    weight: Any = plain[0].weight
    turned = torch.stack([torch.rot90(weight, k, (2, 3)) for k in range(4)]).mean(0)
    found: Any = model[0]
    assert torch.allclose(found.weight, turned + residual, rtol=0, atol=1e-12)


def test_lorentz_layers_keep_multiples_of_the_identity() -> None:
    """Schur: Vector to Vector is one number, Vector to Trivial nothing, and no vector stays where it is."""
    plain, model = linears().double(), residual_pathway_prior(linears().double(), LORENTZ)
    first, found = plain.get_submodule("0"), model.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert isinstance(found, nn.Linear)
    blocks = first.weight[:16].reshape(4, 4, 2, 4)
    numbers = torch.einsum("aibi->ab", blocks) / 4
    expected = torch.einsum("ab,ij->aibj", numbers, torch.eye(4, dtype=torch.float64)).reshape(16, 8)
    assert torch.allclose(found.weight[:16], expected, rtol=0, atol=1e-10)
    assert found.weight[16:].abs().max() < 1e-10
    assert found.bias[:16].abs().max() < 1e-10
    assert torch.allclose(found.bias[16:], first.bias[16:], rtol=0, atol=1e-10)


@CASES
def test_the_penalty_is_two_weight_decays(make: Callable[[], nn.Module], config: ed.SoftEquivarianceConfig) -> None:
    model = residual_pathway_prior(make().double(), config, equivariant_variance=4.0, residual_variance=0.25)
    for pathway in pathways(model):
        nn.init.normal_(pathway.residual)
    rpp_penalty(model).backward()
    decayed = 0
    for name, parameter in model.named_parameters():
        if name.endswith("residual"):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, parameter / 0.25)
            decayed += 1
        elif name.endswith("original"):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, parameter / 4.0)
            decayed += 1
        else:
            assert parameter.grad is None
    assert decayed == 2 * len(pathways(model))
    free = residual_pathway_prior(make(), config, math.inf, math.inf)
    assert float(rpp_penalty(free).detach()) == 0


@CASES
def test_both_parts_learn_and_fold_leaves_a_plain_model(
    make: Callable[[], nn.Module], config: ed.SoftEquivarianceConfig
) -> None:
    plain, model = make(), make()
    weights = dict(model.named_parameters())
    residual_pathway_prior(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(3, 8) if config is LORENTZ else torch.randn(3, 1, 6, 6)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        loss = model(x).square().mean() + rpp_penalty(model) / 100
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    replica = copy.deepcopy(model)
    y = model(x)
    assert torch.equal(replica(x), y)
    assert fold_rpp(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter is weights[name] for name, parameter in model.named_parameters())
    assert torch.allclose(model(x), y, rtol=0, atol=1e-6)
    assert torch.equal(replica(x), y)  # a copy is a model of its own
    for pathway in pathways(replica):
        nn.init.zeros_(pathway.residual)
    assert not torch.allclose(replica(x), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "variances", "error", "words"),
    [
        (ed.SoftEquivarianceConfig(group="C4", softness=0.5), (1.0, 1.0), "ArgumentError", "softness=0"),
        (ed.SoftEquivarianceConfig(group="C4", threshold=0.0), (1.0, 1.0), "ArgumentError", "softness=0"),
        (
            ed.SoftEquivarianceConfig(group="C4", softness=0.0, softness_pattern={"0": 0.5}),
            (1.0, 1.0),
            "ArgumentError",
            "softness_pattern",
        ),
        (C4, (0.0, 1.0), "ArgumentError", "equivariant_variance"),
        (C4, (1.0, -1.0), "ArgumentError", "residual_variance"),
        (C4, (1.0, math.nan), "ArgumentError", "residual_variance"),
        (
            ed.SoftEquivarianceConfig(group="C4", softness=0.0, target_modules=["none"]),
            (1.0, 1.0),
            "NoMatchingTargetError",
            "none",
        ),
    ],
    ids=["softness", "threshold", "pattern", "zero", "negative", "nan", "no target"],
)
def test_what_has_no_meaning_is_refused(
    config: ed.SoftEquivarianceConfig, variances: tuple[float, float], error: str, words: str
) -> None:
    model = convolutions()
    with pytest.raises(getattr(ed.errors, error), match=words):
        residual_pathway_prior(model, config, *variances)
    assert not pathways(model)
    assert list(model.state_dict()) == list(convolutions().state_dict())


def test_a_model_is_constrained_once_and_by_one_method() -> None:
    model = residual_pathway_prior(convolutions(), C4)
    for again in (residual_pathway_prior, ed.soften):
        with pytest.raises(ed.errors.StateError, match="parametrized already"):
            again(model, C4)
    with pytest.raises(ed.errors.StateError, match="softened already"):
        residual_pathway_prior(ed.soften(convolutions(), C4), C4)
    for verb in (rpp_penalty, fold_rpp):
        with pytest.raises(ed.errors.StateError, match="residual_pathway_prior"):
            verb(convolutions())
