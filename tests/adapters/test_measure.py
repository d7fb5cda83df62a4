"""measure, certify and recalibrate on whole models."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from tests.adapters.models import cnn, logits, randomise_norms


class Counting(nn.Module):
    """Counts forward passes; answers by the mean brightness of the left half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.modes.append(self.training)
        left = x[..., : x.shape[-1] // 2].mean((1, 2, 3))
        return self.scale * torch.stack([left, -left], dim=1)


def test_scores_of_a_model_known_by_hand() -> None:
    """Images bright on the left are class 0; a mirror turns every answer over."""
    x = torch.zeros(4, 1, 6, 6)
    x[..., :3] = 1.0
    x[..., 3:] = -1.0
    y = torch.zeros(4, dtype=torch.long)
    model = Counting().train()
    scores = ed.measure(model, [(x[:2], y[:2]), {"pixel_values": x[2:], "labels": y[2:]}], "Flip")
    assert scores.Acc == 1.0
    assert scores["aAcc"] == 0.0
    assert scores.cAcc == 0.0
    p = torch.softmax(torch.tensor([1.0, -1.0], dtype=torch.float64), 0)
    assert scores.iErr == pytest.approx(float((p * (p / p.flip(0)).log()).sum()))
    # f is linear: ||f(gx) - f(x)|| = 2 sqrt2, ||J||_F^2 = 2 * 18 / 18^2, ||x|| = 6
    assert scores.epsilon == pytest.approx(2 * math.sqrt(2) / (math.sqrt(2 / 18) * 6), rel=1e-5)
    assert scores.epsilon_mean == pytest.approx(scores.epsilon)
    assert (scores.images, scores.elements) == (4, 1)
    assert dict(scores)["Acc"] == 1.0
    assert model.training
    assert not any(model.modes)
    assert "aAcc 0.0000" in str(scores)
    with pytest.raises(KeyError):
        scores["accuracy"]


def test_every_element_of_every_image_counts() -> None:
    x, y = torch.randn(5, 1, 6, 6), torch.zeros(5, dtype=torch.long)
    model = Counting()
    scores = ed.measure(model, [(x, y)], "C4", epsilon_images=0)
    expected = torch.stack([(logits(model, torch.rot90(x, k, (-2, -1))).argmax(-1) == y).float() for k in (1, 2, 3)])
    assert scores.aAcc == pytest.approx(float(expected.mean()))
    assert scores.cAcc == pytest.approx(math.sqrt(scores.Acc * scores.aAcc))
    assert math.isnan(scores.epsilon)
    only = ed.measure(model, [(x, y)], "C4", elements=[ed.groups.C(4).element(2)], epsilon_images=0)
    assert only.aAcc == pytest.approx(float(expected[1].mean()))
    near = ed.measure(model, [(x, y)], "C4", radius=math.pi / 2, epsilon_images=0)
    assert near.aAcc == pytest.approx(float(expected[[0, 2]].mean()))
    assert ed.measure(model, [(x, y)], ed.groups.SO(2), epsilon_images=0).elements == 12
    unlabelled = ed.measure(model, [x], "C4", epsilon_images=0)
    assert math.isnan(unlabelled.Acc)
    assert unlabelled.iErr == pytest.approx(scores.iErr)


def test_deterministic_under_the_seed_and_batching_does_not_matter() -> None:
    x, y = torch.randn(6, 3, 9, 9), torch.randint(0, 4, (6,))
    model = cnn()
    once = ed.measure(model, [(x, y)], "C4", probes=2, seed=3)
    assert once == ed.measure(model, [(x, y)], "C4", probes=2, seed=3)
    assert once.epsilon != ed.measure(model, [(x, y)], "C4", probes=2, seed=4).epsilon
    parts = ed.measure(model, [(x[:4], y[:4]), (x[4:], y[4:])], "C4", probes=16)
    whole = ed.measure(model, [(x, y)], "C4", probes=16)
    for score in whole:
        assert parts[score] == pytest.approx(whole[score], abs=1e-6)


def test_outputs_with_logits_and_restored_modes() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = cnn()

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(x))

    model = Wrapped()
    model.inner.norm.train()
    model.inner.first.eval()
    x = torch.randn(2, 3, 9, 9)
    assert ed.measure(model, [x], "C4").iErr == pytest.approx(ed.measure(model.inner, [x], "C4").iErr)
    assert model.inner.norm.training
    assert not model.inner.first.training


def test_strict_networks_measure_zero() -> None:
    model = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    scores = ed.measure(model, [torch.randn(4, 3, 9, 9)], "C4")
    assert scores.iErr < 1e-10
    assert scores.epsilon < 1e-5
    free = ed.measure(ed.unload(model), [torch.randn(4, 3, 9, 9)], "C4")
    assert free.iErr > 1e-6


def test_certificates_of_models() -> None:
    model = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="C4", softness=0.3))
    certificate = ed.certify(model)
    for row, state in zip(certificate, ed.status(model), strict=True):
        assert row.name == state.name
        assert row.kind == "exact"
        assert row.measured <= row.bound <= row.measured * (1 + 1e-6)
        assert row.a_priori == pytest.approx(math.pi * state.threshold)
        assert row.bound <= row.a_priori  # type: ignore[operator]
        assert row.dial == "softness=0.3"
        assert row.dtype == "float32"
        assert row.radius == math.pi
    near = ed.certify(model, radius=math.pi / 2)
    assert all(a.bound <= b.bound for a, b in zip(near, certificate, strict=True))
    assert near["first.weight"].elements == "C4 within 1.5708 rad"
    half = ed.certify(model, dtype=torch.bfloat16)
    assert {row.dtype for row in half} == {"bfloat16"}
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.3)
    ed.fold(model)
    folded = ed.certify(model, config)
    for a, b in zip(folded, certificate, strict=True):
        assert a.bound == b.bound
        assert a.a_priori is None
    exponential = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="C4", softness=0.3, response="exponential"))
    assert {row.a_priori for row in ed.certify(exponential)} == {None}
    limited = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="SO2", softness=0.3, radius=0.5))
    assert {row.radius for row in ed.certify(limited)} == {0.5}


def test_certificates_cover_the_layer_for_lattice_groups() -> None:
    """||layer(g x) - g layer(x)|| <= bound ||w|| ||patches||: the kernel's bound lifts to the image."""
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    row = ed.certify(layer, ed.SoftEquivarianceConfig(group="C4", softness=1.0))["weight"]
    assert row.level == "image"
    x = torch.randn(16, 3, 12, 12, dtype=torch.float64)
    layer = layer.double()
    patches = nn.functional.unfold(x, 3, padding=1)
    for k in (1, 2, 3):
        difference = layer(torch.rot90(x, k, (-2, -1))) - torch.rot90(layer(x), k, (-2, -1))
        assert float(difference.detach().norm()) <= row.bound * float(layer.weight.detach().norm() * patches.norm())


def test_recalibration_is_the_plain_average() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.BatchNorm2d(2, track_running_stats=False)
    )
    randomise_norms(model[:2])
    model.train()
    model[2].eval()
    batches = [torch.randn(8, 1, 4, 4) + i for i in range(3)]
    assert ed.recalibrate(model, [(x, None) for x in batches]) == 1
    features = [model[0](x).detach() for x in batches]
    norm = model[1]
    assert torch.allclose(norm.running_mean, torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([f.var((0, 2, 3)) for f in features]).mean(0), atol=1e-4)
    assert norm.momentum == 0.1
    assert [m.training for m in model] == [True, True, False, True]
    mean = norm.running_mean.clone()
    ed.recalibrate(model, batches, max_batches=1)
    assert not torch.allclose(norm.running_mean, mean)
    assert ed.recalibrate(nn.Linear(2, 2), []) == 0


def test_recalibration_gives_a_cut_network_its_scale_back() -> None:
    model, data = cnn(), [torch.randn(32, 3, 9, 9) for _ in range(4)]
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    ed.recalibrate(model, data)
    with torch.no_grad():
        h = model.norm(model.first(torch.cat(data)))
    spread = h.transpose(0, 1).flatten(1).std(1) / model.norm.weight.detach().abs()
    assert torch.allclose(spread, torch.ones(8), atol=0.05)
