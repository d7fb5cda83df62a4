"""What the dial promises on whole models: exact at 0, untouched at 1, pure in between, plain after fold."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import equidial as ed
from tests.adapters.models import (
    SPACES,
    VectorMlp,
    build,
    logits,
    relative,
    resnet,
    same_tensors,
    snapshot,
    vit,
)

C4 = ed.SoftEquivarianceConfig(group="C4", softness=0.0)


def soft(softness: float, group: str = "C4", **more: object) -> ed.SoftEquivarianceConfig:
    return ed.SoftEquivarianceConfig(group=group, softness=softness, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("group", ["C4", "D4", "Flip", "C2"])
def test_class_token_of_a_strict_vit_is_invariant(depth: int, group: str) -> None:
    model = ed.soften(vit(depth), soft(0.0, group))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        token = model.vit(x).last_hidden_state[:, 0]
        for g in ed.groups.by_name(group).elements():
            moved = model.vit(ed.metrics.transform_images(x, g)).last_hidden_state[:, 0]
            assert relative(moved, token) < 1e-5
        with ed.disabled(model):
            free = model.vit(x).last_hidden_state[:, 0]
            turned = model.vit(torch.rot90(x, 2, (-2, -1))).last_hidden_state[:, 0]
            assert relative(turned, free) > 1e-2


def test_strict_resnet_is_invariant_at_225_and_told_about_224() -> None:
    model = resnet()
    with pytest.warns(ed.EquidialWarning, match=r"at 224x224 px the stride of .* symmetric at 225x225 px"):
        ed.soften(model, soft(0.0, image_size=224))
    for size, exact in ((225, True), (224, False)):
        x = torch.randn(1, 3, size, size)
        error = relative(logits(model, torch.rot90(x, 1, (-2, -1))), logits(model, x))
        assert (error < 1e-5) == exact
    with pytest.warns(ed.EquidialWarning, match="225x225"):
        ed.measure(model, [torch.randn(1, 3, 224, 224)], "C4", epsilon_images=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ed.measure(model, [torch.randn(1, 3, 225, 225)], "C4", epsilon_images=0)
        ed.unload(model)
        ed.soften(model, soft(0.0, image_size=225))


@pytest.mark.parametrize("name", ["vit", "resnet", "cnn"])
@pytest.mark.parametrize("response", ["nearest", "hard", "taper", "exponential"])
def test_life_of_a_model(name: str, response: str) -> None:
    model, x = build(name)
    before, keys, ids, kind = (
        snapshot(model),
        list(model.state_dict()),
        [id(p) for p in model.parameters()],
        type(model),
    )
    untouched = logits(model, x)
    assert ed.soften(model, soft(0.4, response=response)) is model
    constrained = logits(model, x)
    assert torch.equal(constrained, logits(model, x)), "the same call twice"
    assert relative(constrained, untouched) > 1e-4
    assert {id(p) for p in model.parameters()} == set(ids), "the same Parameter objects"
    ed.set_softness(model, 1.0)
    assert torch.equal(logits(model, x), untouched)
    ed.set_softness(model, 0.4)
    assert torch.equal(logits(model, x), constrained)
    with ed.disabled(model) as free:
        assert free is model
        assert torch.equal(logits(model, x), untouched)
    assert torch.equal(logits(model, x), constrained)

    twin = copy.deepcopy(model)
    assert ed.fold(twin) is twin
    assert type(twin) is kind
    assert list(twin.state_dict()) == keys
    assert [n for n, _ in twin.named_parameters()] == [
        n for n, _ in kind.named_parameters(ed.unload(copy.deepcopy(model)))
    ]
    assert float((logits(twin, x) - constrained).abs().max()) < 1e-6 * max(1.0, float(constrained.abs().max()))
    assert torch.equal(logits(model, x), constrained), "folding a copy leaves the original alone"

    owned = [id(p) for p in model.parameters()]
    ed.fold(model)
    assert sorted(id(p) for p in model.parameters()) == sorted(owned) == sorted(ids)
    assert [id(p) for p in model.parameters()] == ids
    assert list(model.state_dict()) == keys
    assert same_tensors(snapshot(model), snapshot(twin))
    fresh = build(name)[0]
    fresh.load_state_dict(before)
    assert same_tensors(snapshot(ed.unload(ed.soften(fresh, C4))), before)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(fresh, x), logits(model, x))


def test_unload_after_training_gives_the_trained_tensors() -> None:
    model, x = build("cnn")
    ed.soften(model, soft(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    original = model.first.parametrizations.weight.original.detach().clone()
    ed.unload(model)
    assert torch.equal(model.first.weight, original)
    assert isinstance(model.first.weight, nn.Parameter)


def test_the_defect_is_measured_once() -> None:
    """beta = s * delta: neither training nor turning the dial measures again."""
    model, x = build("cnn")
    ed.soften(model, soft(0.5))
    references = [row.reference for row in ed.status(model)]
    thresholds = [row.threshold for row in ed.status(model)]
    assert thresholds == pytest.approx([0.5 * r for r in references])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    rows = list(ed.status(model))
    assert [row.threshold for row in rows] == thresholds
    assert [row.reference for row in rows] == references
    assert all(row.defect <= row.threshold * (1 + 1e-9) for row in rows), "the a priori bound holds through training"
    ed.set_softness(model, 1.0)
    ed.set_softness(model, 0.5)
    assert [row.threshold for row in ed.status(model)] == thresholds
    for row in ed.certify(model):
        assert row.bound <= math.pi * thresholds[0] * 2


def test_a_tensor_that_is_symmetric_already_is_told() -> None:
    """delta = 0: a share of nothing leaves no room, which surprises people with zero-initialised tables."""
    model = vit()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.zero_()
    with pytest.warns(ed.EquidialWarning, match="position_embeddings: exactly symmetric as found"):
        ed.soften(model, soft(0.5))
    ed.unload(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", threshold=0.5))


def test_dials_of_single_modules_and_patterns() -> None:
    model, _ = build("cnn")
    ed.soften(model, soft(0.2, softness_pattern={"depth.*": 0.8}))
    dials = {row.name: row.dial for row in ed.status(model)}
    assert dials == {"first.weight": "softness=0.2", "depthwise.weight": "softness=0.8"}
    ed.set_dial(model, threshold=0.3, target_modules=["first"])
    assert {row.name: row.dial for row in ed.status(model)} == {
        "first.weight": "threshold=0.3",
        "depthwise.weight": "softness=0.8",
    }
    ed.set_dial(model, max_error=0.5)
    for row in ed.certify(model):
        assert 0.1 < row.bound <= 0.5
    ed.set_dial(model, softness=0.0, target_modules="depthwise")
    assert [row.defect for row in ed.status(model)][1] < 1e-15
    ed.set_softness(model, 1.0)
    assert {row.dial for row in ed.status(model)} == {"softness=1"}


@pytest.mark.parametrize("group", ["C4", "SO2", "C8", "D4"])
def test_max_error_holds_after_rounding(group: str) -> None:
    for dtype, budget in ((torch.float32, 0.2), (torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        model = build("cnn")[0].to(dtype)
        ed.soften(model, ed.SoftEquivarianceConfig(group=group, max_error=budget))
        certificate = ed.certify(model)
        assert certificate.bound <= budget
        if budget == 0.2:
            # the a priori bound radius * beta covers every weight, so this one may lie below it, not far
            assert certificate.bound > 0.2 / 6
        ed.fold(model)
        assert ed.certify(model, ed.SoftEquivarianceConfig(group=group, softness=1.0)).bound <= budget


def test_an_impossible_budget_names_the_smallest() -> None:
    model = build("cnn")[0].to(torch.bfloat16)
    before = snapshot(model)
    with pytest.raises(ed.errors.BudgetError, match=r"depthwise\.weight: .*max_error >= 0\.00") as caught:
        ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", max_error=1e-5))
    assert caught.value.smallest is not None
    assert same_tensors(snapshot(model), before)
    ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", max_error=1.5 * caught.value.smallest + 1e-3))
    with pytest.raises(ed.errors.BudgetError):
        ed.set_dial(model, max_error=1e-5)
    exact = ed.soften(build("cnn")[0].to(torch.bfloat16), ed.SoftEquivarianceConfig(group="C4", max_error=0.0))
    assert ed.certify(exact).bound == 0.0


def test_linear_layers_with_declared_representations() -> None:
    model, x = VectorMlp(), torch.randn(5, 11)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        exact = ed.soften(copy.deepcopy(model).to(dtype), soft(0.0, "SO2", representations=SPACES))
        inputs = ed.representations.parse(SPACES["inner"][0], ed.groups.SO(2))
        outputs = ed.representations.parse(SPACES["outer"][1], ed.groups.SO(2))
        for g in ed.groups.SO(2).sample(5, torch.Generator().manual_seed(0)):
            moved = exact(inputs.act(g, x.to(dtype)))
            assert relative(moved, outputs.act(g, exact(x.to(dtype)))) < tolerance
    names = [row.name for row in ed.status(exact)]
    assert names == ["inner.weight", "inner.bias", "outer.weight", "outer.bias"]
    assert torch.equal(exact.outer.bias, torch.zeros(6, dtype=torch.float64)), "3*Vector holds no invariant bias"
    half = ed.soften(copy.deepcopy(model), soft(0.5, "SO2", representations=SPACES))
    assert torch.allclose(half.outer.bias, 0.5 * model.outer.bias, atol=1e-6)
    assert {row.level for row in ed.certify(half)} == {"layer"}
    ed.set_softness(half, 1.0)
    assert torch.equal(half(x), model(x))
    keys = list(model.state_dict())
    ed.set_softness(half, 0.3)
    constrained = half(x)
    ed.fold(half)
    assert list(half.state_dict()) == keys
    assert torch.allclose(half(x), constrained, atol=1e-6)


def test_position_tables_keep_their_other_rows() -> None:
    model = vit()
    table = model.vit.embeddings.position_embeddings.detach().clone()
    ed.soften(model, soft(0.0))
    found = model.vit.embeddings.position_embeddings
    assert torch.equal(found[:, :1], table[:, :1]), "the class row is left alone"
    grid = found[0, 1:].detach().reshape(4, 4, -1)
    assert torch.allclose(grid.rot90(1, (0, 1)), grid, atol=1e-6)


def test_shifts_reach_tables_only() -> None:
    model = ed.soften(vit(), soft(0.0, "T2"))
    assert [row.name for row in ed.status(model)] == ["vit.embeddings.position_embeddings"]
    grid = model.vit.embeddings.position_embeddings[0, 1:]
    assert torch.allclose(grid, grid.mean(0, keepdim=True).expand_as(grid), atol=1e-6)


def test_status_prints_and_tells() -> None:
    model, _ = build("cnn")
    assert str(ed.status(model)) == "no tensor is constrained"
    ed.soften(model, soft(0.25))
    text = str(ed.status(model))
    assert "first.weight" in text
    assert "softness=0.25" in text
    assert "Pixels(5,5)" in text
    with ed.disabled(model):
        assert "(disabled)" in str(ed.status(model))
    row = ed.status(model).tensors[0]
    assert row.group == "C4"
    assert row.nearest
    assert row.defect == pytest.approx(0.25 * row.reference)
    assert 0 < row.distance < 1
    assert "softness=0.25" in repr(model)
