"""Traps of torch parametrizations: copies, casts, autocast, compile, state dicts, averages, training."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.optim.swa_utils import AveragedModel

import equidial as ed
from equidial.adapters._parametrization import constrained
from equidial.filters import Spectrum
from tests.adapters.models import build, cnn, logits, relative, same_tensors, snapshot


def soft(softness: float, **more: object) -> ed.SoftEquivarianceConfig:
    return ed.SoftEquivarianceConfig(group="C4", softness=softness, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("finish", [ed.fold, ed.unload])
@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_copies_live_apart(name: str, finish) -> None:
    model, x = build(name)
    ed.soften(model, soft(0.3))
    y = logits(model, x)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    finish(first)
    assert torch.equal(logits(model, x), y)
    assert torch.equal(logits(second, x), y)
    ed.set_softness(second, 0.9)
    assert torch.equal(logits(model, x), y)
    finish(model)
    assert not torch.equal(logits(second, x), y)
    finish(second)
    third = copy.deepcopy(copy.deepcopy(ed.soften(build(name)[0], soft(0.5))))
    finish(third)


def test_copies_share_the_bases() -> None:
    model = ed.soften(cnn(), soft(0.3))
    twin = copy.deepcopy(model)
    ours, theirs = [[link.spectrum for _, _, link in constrained(m)] for m in (model, twin)]
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_one_spectrum_per_space() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(5)), nn.Conv2d(3, 3, 5))
    ed.soften(model, soft(0.3))
    assert len({id(link.spectrum) for _, _, link in constrained(model)}) == 2


def test_averaged_models_are_independent() -> None:
    model, x = build("cnn")
    ed.soften(model, soft(0.3))
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    assert not torch.equal(logits(average, x), logits(model, x))
    y = logits(average, x)
    ed.fold(average.module)
    assert torch.allclose(logits(average, x), y, atol=1e-6)
    ed.set_softness(model, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_leave_the_dial_and_the_bases_alone(dtype: torch.dtype) -> None:
    model = ed.soften(cnn(), soft(0.3))
    before = [row.threshold for row in ed.status(model)]
    model.to(dtype)
    assert [row.threshold for row in ed.status(model)] == before
    for _, _, link in constrained(model):
        assert link.threshold.dtype == torch.float64
        assert isinstance(link.spectrum, Spectrum)
        assert link.spectrum.sigma.dtype == torch.float64
    x = torch.randn(1, 3, 9, 9, dtype=dtype)
    assert logits(model, x).dtype == dtype
    assert model.first.weight.dtype == dtype
    assert all(row.bound < 1.0 for row in ed.certify(model))
    ed.fold(model)
    assert model.first.weight.dtype == dtype


def test_bf16_weights_are_softened_and_exact_at_zero() -> None:
    model = cnn().to(torch.bfloat16)
    ed.soften(model, soft(0.0))
    assert ed.certify(model).bound == 0.0
    weight = ed.fold(model).first.weight
    assert torch.equal(torch.rot90(weight, 1, (-2, -1)), weight)


def test_autocast_does_not_reach_the_filter() -> None:
    model = ed.soften(cnn(), soft(0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = model.first.weight
    assert weight.dtype == torch.float32
    assert relative(torch.rot90(weight, 1, (-2, -1)), weight) < 1e-6


def test_compiled_graph_is_whole_and_turning_the_dial_does_not_recompile() -> None:
    model, x = build("cnn")
    ed.soften(model, soft(0.3))
    torch._dynamo.reset()
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=count, fullgraph=True)
    found = {}
    for s in (0.3, 0.0, 0.7, 1.0):
        ed.set_softness(model, s)
        found[s] = logits(compiled, x)  # type: ignore[arg-type]
        assert count.frame_count == 1, "compiled once, and no position of the dial compiles anew"
    logits(copy.deepcopy(model), x)  # eager copies share the bases
    logits(compiled, x)  # type: ignore[arg-type]
    with ed.disabled(model):  # a switch, not a position: one graph more
        off = logits(compiled, x)  # type: ignore[arg-type]
    logits(compiled, x)  # type: ignore[arg-type]
    assert count.frame_count == 2
    for s, y in found.items():
        ed.set_softness(model, s)
        assert torch.allclose(y, logits(model, x), atol=1e-5)
    assert torch.allclose(off, found[1.0], atol=1e-5)
    torch._dynamo.reset()


def test_compiled_training_step_equals_the_eager_one() -> None:
    model, x = build("cnn")
    ed.soften(model, soft(0.3))
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    model(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)
    torch._dynamo.reset()


def test_a_state_dict_carries_the_dial_and_status_reads_it() -> None:
    """Loading a checkpoint made at another dial must not leave the old dial on display."""
    strict, soft_model = ed.soften(cnn(), soft(0.0)), ed.soften(cnn(), soft(0.8))
    keys = [k for k in strict.state_dict() if "parametrizations" in k]
    assert sum(k.endswith("threshold") for k in keys) == 2
    assert not any(k.endswith(("basis", "vectors")) for k in keys), "bases are no state"
    soft_model.load_state_dict(strict.state_dict())
    rows = list(ed.status(soft_model))
    assert [row.dial for row in rows] == ["softness=0"] * 2
    assert all(row.defect < 1e-15 for row in rows)


def test_assigning_a_weight_sets_the_unconstrained_tensor() -> None:
    model = ed.soften(cnn(), soft(0.0))
    fresh = torch.randn(8, 3, 3, 3)
    model.first.weight = fresh
    assert torch.equal(model.first.parametrizations.weight.original, fresh)
    weight = model.first.weight
    assert torch.allclose(torch.rot90(weight, 1, (-2, -1)), weight, atol=1e-6)


def test_training_stays_in_the_set_and_forward_writes_nothing() -> None:
    model, x = build("cnn")
    ed.soften(model, soft(0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        before = snapshot(model)
        loss = model(x).square().sum()
        assert same_tensors(snapshot(model), before), "forward writes no tensor"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weight = model.first.weight.detach()
        assert relative(torch.rot90(weight, 1, (-2, -1)), weight) < 1e-6
    assert ed.certify(model).bound == 0.0


def test_gradients_reach_frozen_neighbours_and_freezing_is_kept() -> None:
    model, x = build("cnn")
    model.first.weight.requires_grad_(False)
    ed.soften(model, soft(0.3))
    model(x).sum().backward()
    assert not model.first.parametrizations.weight.original.requires_grad
    assert model.depthwise.parametrizations.weight.original.grad is not None
    ed.fold(model)
    assert not model.first.weight.requires_grad
    assert model.depthwise.weight.requires_grad


def test_nothing_is_kept_alive_by_the_library() -> None:
    import weakref

    model = ed.soften(cnn(), soft(0.3))
    logits(model, torch.randn(1, 3, 9, 9))
    spectrum = weakref.ref(next(constrained(model))[2].spectrum)
    ed.fold(model)
    gc.collect()
    assert spectrum() is None, "no global cache"


def test_a_softened_part_of_a_larger_model() -> None:
    body = cnn()
    whole = nn.ModuleDict({"body": body, "other": nn.Conv2d(3, 3, 3)})
    ed.soften(body, soft(0.2))
    ed.set_softness(whole, 0.6)
    assert {row.dial for row in ed.status(whole)} == {"softness=0.6"}
    assert len(ed.certify(whole)) == 2
    ed.fold(whole)
    assert "parametrizations" not in str(list(whole.state_dict()))
