"""Networks of layers with a group axis: strict ones have no cause, and what is planted in one is found there alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.nn import (
    GroupBatchNorm2d,
    GroupConv2d,
    GroupInstanceNorm2d,
    GroupLayerNorm2d,
    GroupPool2d,
    LiftingConv2d,
    OnImages,
    PointwiseGroupConv2d,
    SoftConv2d,
    group_defect,
)
from tests.adapters.diagnosis.networks import Do

SIZE = 9
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*turns of the image are not kept:equidial.EquidialWarning"),
    pytest.mark.filterwarnings("ignore:.*frequencies fold back:equidial.EquidialWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


class Net(nn.Module):
    """Lift, norm, convolve, something planted, pool, classes."""

    def __init__(self, group: str, plant: nn.Module | None = None, relaxed: Any = None, pool: Any = "mean"):
        super().__init__()
        self.lift = LiftingConv2d(1, 4, 5, padding=2, group=group, omega_prime=relaxed)
        self.norm = GroupBatchNorm2d(4)
        self.conv = GroupConv2d(4, 4, 3, padding=1, group=group)
        self.plant = plant or nn.Identity()
        self.pool = GroupPool2d(pool)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.lift(x)))
        x = self.plant(torch.relu(self.conv(x)) + x)
        return self.head(self.pool(x).mean((2, 3)))


def same(**more: Any) -> nn.Module:
    return GroupConv2d(4, 4, **({"kernel_size": 3, "padding": 1, "group": "C4"} | more))


# name: (plant, group, side, {(cause, module)}, what has to change)
PLANTED: dict[str, tuple[Any, str, int, set[tuple[str, str]], str]] = {
    "nothing": (lambda: None, "C4", SIZE, set(), ""),
    "nothing, mirrors": (lambda: None, "D4", SIZE, set(), ""),
    "nothing, eight turns": (lambda: None, "C8", SIZE, set(), ""),
    "sixteen samples": (lambda: None, "D8", SIZE, set(), ""),
    "half turns": (lambda: None, "C2", SIZE, set(), ""),
    "norms": (
        lambda: nn.Sequential(GroupInstanceNorm2d(4), nn.ReLU(), GroupLayerNorm2d(4), nn.ReLU()), "C4", SIZE, set(), "",
    ),
    "pooling on images": (lambda: OnImages(nn.MaxPool2d(3, 2, 1)), "C4", SIZE, set(), ""),
    "point-wise": (lambda: PointwiseGroupConv2d(4, 4, group="C4"), "C4", SIZE, set(), ""),
    "stride that fits": (lambda: same(stride=2), "C4", SIZE, set(), ""),
    "omega' of 0": (lambda: same(omega_prime={"rotation": 0.0, "x": 0.0}), "C4", SIZE, set(), ""),
    "a symmetric table": (lambda: Do(lambda x: x + torch.ones(1, 4, 1, SIZE, SIZE)), "C4", SIZE, set(), ""),
    "relaxed": (
        lambda: same(omega_prime={"rotation": 0.5}), "C4", SIZE, {("relaxed layer", "plant")}, "weights",
    ),
    "relaxed in space": (
        lambda: same(omega_prime={"translation": 0.5}), "C4", SIZE, {("relaxed layer", "plant")}, "weights",
    ),
    "relaxed at a point": (
        lambda: PointwiseGroupConv2d(4, 4, group="C4", omega_prime={"rotation": 1.0}), "C4", SIZE,
        {("relaxed layer", "plant")}, "weights",
    ),
    "a harmonic that keeps the quarter turns": (
        lambda: same(group="C8", omega_prime={"rotation": 4.0}, harmonics=True), "C8", SIZE,
        {("relaxed layer", "plant")}, "weights",
    ),
    "stride": (lambda: same(stride=2), "C4", SIZE + 1, {("stride", "plant")}, "size"),
    "stride inside": (lambda: OnImages(nn.MaxPool2d(2)), "C4", SIZE, {("stride", "plant")}, "size"),
    "even kernel": (lambda: same(kernel_size=4, padding="same"), "C4", SIZE, {("even kernel", "plant")}, "padding"),
    "padded before": (
        lambda: nn.Sequential(Do(lambda x: nn.functional.pad(x, (0, 2, 0, 2))), same(padding=0)), "C4", SIZE,
        {("asymmetric padding", "plant.1")}, "padding",
    ),
    "rectangular kernel": (
        lambda: same(kernel_size=(3, 5), padding=(1, 2)), "C4", SIZE, {("rectangular kernel", "plant")}, "code",
    ),
    "anisotropic window": (
        lambda: same(padding=(1, 0), kernel_size=3), "C4", SIZE, {("anisotropic resize", "plant")}, "code",
    ),
    "samples that are too few": (
        lambda: Do(lambda x: x), "C6", SIZE, {("missing samples", "lift")}, "code",
    ),
    "depthwise on images": (
        lambda: OnImages(nn.Conv2d(16, 16, 3, padding=1, groups=16)), "C4", SIZE, {("unknown", "plant")}, "none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_cause_is_found_and_nothing_else(case: str, pool: Any) -> None:
    build, group, size, expected, mend = PLANTED[case]
    model = Net(group, build(), pool=pool).eval()
    x = torch.randn(1, 1, size, size)
    asked = "C4" if group == "C6" else "D4" if group == "D8" else group
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = ed.diagnose(model, x, group=asked)
    assert {(c.cause, c.module) for c in found} == expected, str(found)
    assert all(c.mend == mend for c in found)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    (output,) = found.outputs
    assert output.kind == "invariant"
    with torch.no_grad():
        turns = 2 if group == "C2" else 1
        turned = (model(torch.rot90(x, turns, (2, 3))) - model(x)).norm() / model(x).norm()
    if asked != "D4":
        assert output.error == pytest.approx(float(turned), rel=1e-3, abs=1e-6)
    if not expected:
        assert output.error < 1e-5
        assert {row.module for row in found.layers} >= {"lift", "conv", "pool"}
    str(found)


def test_the_amount_the_defect_and_the_remedy_are_told() -> None:
    model: Any = Net("D4", relaxed={"rotation": 0.75, "flip": 0.25})
    (cause,) = ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE), group="D4")
    assert "omega' rotation 0.75, flip 0.25" in cause.arithmetic
    assert f"{group_defect(model.lift).supremum:.3g}" in cause.arithmetic
    assert "lower its omega'" in cause.remedy
    assert "set it to 0" in cause.remedy
    assert cause.parameter is None
    model.lift.omega_prime.set("rotation", 0.0)
    model.lift.omega_prime.set("flip", 0.0)
    assert not ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE), group="D4").causes


def test_windows_and_relaxation_in_one_layer_are_told_apart() -> None:
    model = Net("C4", same(stride=2, omega_prime={"rotation": 0.5, "translation": 0.1}))
    found = ed.diagnose(model, torch.randn(1, 1, 10, 10))
    assert {(c.cause, c.mend) for c in found} == {("stride", "size"), ("relaxed layer", "weights")}
    assert found.sizes == (9, 11)
    assert found.targets == ()


def test_a_continuous_kernel_without_a_group_axis_is_no_equivariant_layer() -> None:
    model = nn.Sequential(SoftConv2d(1, 4, 3, padding=1, omega_prime=0.3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    (cause,) = ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE))
    assert (cause.cause, cause.module, cause.mend) == ("continuous kernel", "0", "code")
    assert "omega' x 0.3, y 0.3" in cause.arithmetic


@pytest.mark.parametrize("relaxed", [None, {"rotation": 0.4}])
def test_outputs_on_a_group_axis_are_compared_as_such(relaxed: Any) -> None:
    model = nn.Sequential(LiftingConv2d(1, 2, 3, group="C8", omega_prime=relaxed), nn.GELU())
    found = ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE), group="C4")
    assert found.outputs[0].kind == "samples"
    assert (found.outputs[0].error < 1e-5) == (relaxed is None)
    assert bool(found.causes) == (relaxed is not None)
    assert type(found).from_dict(found.to_dict()) == found


def test_softened_tensors_and_layers_born_soft_are_found_side_by_side() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), LiftingConv2d(2, 2, 3, group="C4", omega_prime={"rotation": 1.0})
    )
    found = ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE))
    assert [(c.cause, c.module) for c in found] == [("kernel", "0"), ("relaxed layer", "1")]
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    assert [c.module for c in ed.diagnose(model, torch.randn(1, 1, SIZE, SIZE))] == ["1"]
