"""Network certificates through layers with a continuous kernel and a group axis."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.groups import GroupElement, by_name
from equidial.metrics import transform_images
from equidial.nn import (
    GroupBatchNorm2d,
    GroupConv2d,
    GroupDropout2d,
    GroupInstanceNorm2d,
    GroupLayerNorm2d,
    GroupPool2d,
    LiftingConv2d,
    OnImages,
    PointwiseGroupConv2d,
    SoftConv1d,
    SoftConv2d,
)

SIZE = 9


class Net(nn.Module):
    """Lift, a group convolution, whatever is put between, pooling, classes."""

    def __init__(self, group: str, middle: Any = None, pool: Any = "mean", **relaxed: Any):
        super().__init__()
        amount = {"group": group, "omega_prime": relaxed}
        self.lift = LiftingConv2d(1, 3, 3, padding=1, **amount)
        self.norm = GroupBatchNorm2d(3)
        self.conv = GroupConv2d(3, 4, 3, stride=2, padding=1, **amount)
        self.middle = nn.Identity() if middle is None else middle
        self.point = PointwiseGroupConv2d(4, 4, **amount)
        self.pool = GroupPool2d(pool)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.lift(x)))
        x = self.middle(torch.relu(self.conv(x)))
        return self.head(self.pool(torch.tanh(self.point(x) + x)).mean((2, 3)))


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def config(group: str) -> ed.SoftEquivarianceConfig:
    return ed.SoftEquivarianceConfig(group=group, softness=0.0)


def drawn(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elements(group: str) -> list[GroupElement]:
    return [g for g in by_name(group).elements() if not g.is_identity]


CASES = [
    ("C4", "C4", {}),
    ("C8", "C4", {}),
    ("D4", "D4", {}),
    ("D8", "Flip", {}),
    ("C2", "C2", {}),
    ("C4", "C4", {"rotation": 0.3}),
    ("C8", "C2", {"rotation": 1.0}),
    ("D4", "D4", {"rotation": 0.2, "flip": 0.4}),
    ("D2", "Flip", {"flip": 1.0}),
    ("C4", "C4", {"translation": 0.5}),
    ("D4", "D4", {"translation": 0.1, "rotation": 0.1, "flip": 0.1}),
]


@pytest.mark.parametrize(("samples", "group", "relaxed"), CASES)
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_the_bound_holds_on_random_inputs_and_elements(
    samples: str, group: str, relaxed: dict[str, float], pool: str
) -> None:
    model: Any = Net(samples, pool=pool, **relaxed).double().eval()
    with torch.no_grad():
        model.norm.running_var.mul_(1.7)
        model.norm.weight.mul_(0.9)
        x = drawn((4, 1, SIZE, SIZE))
        found = ed.certify_network(model, config(group), inputs=x)
        assert found.kind == "upper", found
        errors = torch.stack([(model(transform_images(x, g)) - model(x)).norm(dim=1) for g in elements(group)]).amax(0)
    bounds = torch.tensor(found.bounds)
    if not any(relaxed.values()):
        assert bounds.max() == 0
        assert found.measured <= found.allowance < 1e-8
        assert errors.max() <= found.allowance
    else:
        assert bool((errors <= bounds + found.allowance).all()), (errors, bounds)
        assert errors.max() > 1e-4
    if pool == "max":
        return
    ball = ed.certify_network(model, config(group), ball=1.0, input_shape=(1, SIZE, SIZE))
    assert ball.measured <= ball.bound + ball.allowance
    assert (ball.bound == 0) == (not any(relaxed.values()))


SINGLE = {
    "lift": (lambda r, **k: LiftingConv2d(2, 3, 3, group="C4", omega_prime=r, **k), False),
    "group": (lambda r, **k: GroupConv2d(2, 3, 3, group="C4", omega_prime=r, **k), True),
    "mirrors": (lambda r, **k: LiftingConv2d(1, 2, 3, group="D4", omega_prime=r, **k), False),
    "point": (lambda r, **k: PointwiseGroupConv2d(2, 3, group="C4", omega_prime=r), True),
    "grouped": (lambda r, **k: GroupConv2d(2, 4, 3, groups=2, group="C4", omega_prime=r, **k), True),
    "even": (lambda r, **k: LiftingConv2d(2, 3, 2, group="C4", omega_prime=r, **k), False),
}


WINDOWS = [{}, {"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 1, "padding_mode": "circular"}]


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("relaxed", [{"rotation": 0.6}, {"translation": 0.6}, {"rotation": 0.5, "x": 0.4}])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_defect_of_one_layer_is_at_least_that_of_its_matrix(
    kind: str, relaxed: dict[str, float], window: dict[str, Any]
) -> None:
    """``||K rho - rho K||_2`` and ``||K||_2`` of the dense matrices, zero padding and strides included."""
    build, reads_samples = SINGLE[kind]
    layer: Any = build(relaxed, **window).double().eval()
    size = 6 if kind == "even" and window.get("stride") == 2 else 5
    samples = layer.samples.group
    shape = (layer.in_channels, *((samples.order,) if reads_samples else ()), size, size)
    lift = nn.Identity()
    if reads_samples:  # a strict lifting whose matrix is known puts the group axis there
        lift = LiftingConv2d(1, 2, 1, group="C4", bias=False).double()
        shape = (1, size, size)
    model = nn.Sequential(lift, layer).eval()
    found = ed.certify_network(model, config(samples.name), inputs=drawn((1, *shape)))
    assert found.kind == "upper", found.reason
    step = found.steps[-1]
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        zero = model(torch.zeros_like(units[:1]))
        matrix = (model(units) - zero).flatten(1).T
        gain = float(torch.linalg.matrix_norm(matrix, 2))
        worst = 0.0
        for g in elements(samples.name):
            moved = model(transform_images(units, g)) - zero
            back = transform_images((model(units) - zero)[:, :, layer.samples.permutation(g)], g)
            worst = max(worst, float(torch.linalg.matrix_norm((moved - back).flatten(1).T, 2)))
    through = found.steps[0].gain if reads_samples else 1.0
    assert gain <= step.gain * through * (1 + 1e-12)
    assert worst <= step.defect * through * (1 + 1e-12)
    assert found.bound >= found.measured - found.allowance
    if not reads_samples and window == {"padding": 1} and set(relaxed) == {"rotation"}:
        assert step.defect <= 1.5 * worst  # no trivial number


MIDDLES: dict[str, tuple[Any, str]] = {
    # of a strict network: the middle, and "" or why it abstains
    "max pool": (lambda: OnImages(nn.MaxPool2d(3, 2, 1)), ""),
    "average pool": (lambda: OnImages(nn.AvgPool2d(3, 1, 1)), ""),
    "to one pixel": (lambda: OnImages(nn.AdaptiveAvgPool2d(1)), ""),
    "identity on images": (lambda: OnImages(nn.Identity()), ""),
    "instance norm": (lambda: GroupInstanceNorm2d(4, affine=True), ""),
    "running instance norm": (lambda: GroupInstanceNorm2d(4, track_running_stats=True), ""),
    "layer norm": (lambda: GroupLayerNorm2d(4, 2), ""),
    "dropout": (lambda: GroupDropout2d(0.5), ""),
    "activations": (lambda: nn.Sequential(nn.GELU(), nn.PReLU(4), nn.LeakyReLU()), ""),
    "scale": (lambda: Do(lambda x: 2 * x + 1), ""),
    "two channels": (lambda: Do(lambda x: torch.cat((x[:, :, :], x), 1)), "pool the group axis"),
    "side by side": (lambda: Do(lambda x: torch.cat((x, -x), 1)), "side"),
    "samples side by side": (lambda: Do(lambda x: torch.cat((x, x), 2)[:, :, :4]), "along the grid axis"),
    "flatten": (lambda: Do(lambda x: x.flatten(1, 2).unflatten(1, (4, 4))), "pool the group axis"),
    "transpose": (lambda: Do(lambda x: x.transpose(3, 4)), "pool the group axis"),
    "slice": (lambda: Do(lambda x: x[..., ::2, ::2]), "pool the group axis"),
    "pad": (lambda: Do(lambda x: nn.functional.pad(x, (1, 1, 1, 1))), "pool the group axis"),
    "linear": (lambda: nn.Linear(5, 5), "mixes the points"),
    "layer norm of rows": (lambda: nn.LayerNorm(5), "normalises over the entries"),
    "pool at a wrong size": (lambda: OnImages(nn.MaxPool2d(2, 2)), "does not fit C4"),
    "depthwise": (lambda: OnImages(nn.Conv2d(16, 16, 3, padding=1, groups=16)), "has no rule"),
    "a table of places": (lambda: Do(lambda x: x + torch.arange(25.0).view(1, 1, 1, 5, 5)), "table"),
    "mean over half of the places": (lambda: Do(lambda x: x - x.mean(3, keepdim=True)), "over a part"),
    "mean over samples": (lambda: Do(lambda x: x - x.mean(2, keepdim=True)), "over a part"),
    "group pool twice": (lambda: nn.Sequential(GroupPool2d(), GroupPool2d()), "refused"),
    "soft convolution": (lambda: SoftConv2d(4, 4, 3), "refused"),
    "other samples": (lambda: GroupConv2d(4, 4, 1, group="D2"), "expects D2 samples"),
    "even": (lambda: GroupConv2d(4, 4, 2, padding="same", group="C4"), "does not fit C4"),
    "oblong": (lambda: GroupConv2d(4, 4, (1, 3), padding=(0, 1), group="C4"), "does not fit C4"),
}


@pytest.mark.filterwarnings("ignore:GroupConv2d. .*turns of the image:equidial.EquidialWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", MIDDLES)
def test_what_may_stand_between_the_layers(case: str) -> None:
    build, reason = MIDDLES[case]
    model = Net("C4", build())
    if reason == "side":
        model.point, reason = PointwiseGroupConv2d(8, 8, group="C4"), ""
        model.head = nn.Linear(8, 3)
    x = drawn((2, 1, SIZE, SIZE))
    model = model.double().eval()
    if case in ("two channels",):
        model.point, model.head = PointwiseGroupConv2d(8, 8, group="C4").double(), nn.Linear(8, 3).double()
    if reason == "refused":
        with pytest.raises(ed.EquidialError, match="reads inputs of shape"):
            ed.certify_network(model, config("C4"), inputs=x)
        return
    found = ed.certify_network(model, config("C4"), inputs=x)
    if reason == "table":
        assert found.bound > found.measured > 0.01
    elif reason:
        assert found.kind == "abstained"
        assert found.reason is not None
        assert reason in found.reason, found
    else:
        assert found.kind == "upper", found
        assert found.bound == 0
        assert found.measured <= found.allowance < 1e-8


HEADS: dict[str, tuple[Any, bool]] = {
    "samples, then places": (lambda x: x.mean(2).mean((2, 3)), True),
    "places, then samples": (lambda x: x.mean((3, 4)).mean(2), True),
    "all at once": (lambda x: x.mean((2, 3, 4)), True),
    "largest": (lambda x: x.amax((2, 3, 4)), True),
    "places with their axes": (lambda x: x.sum((3, 4), keepdim=True), True),
    "features": (lambda x: x, True),
    "images": (lambda x: x.mean(2), True),
    "samples alone": (lambda x: x.mean((3, 4)), True),
    "channels": (lambda x: x.mean(1, keepdim=True), True),
    "channels away": (lambda x: x.mean(1), False),
    "a row": (lambda x: x.mean(3), False),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("relaxed", [0.0, 0.4])
def test_averages_over_samples_and_places(case: str, relaxed: float) -> None:
    head, composes = HEADS[case]
    lift = LiftingConv2d(1, 3, 3, padding=1, group="D4", omega_prime={"rotation": relaxed})
    model = nn.Sequential(lift, nn.ReLU(), Do(head)).double()
    found = ed.certify_network(model, config("D4"), inputs=drawn((2, 1, 7, 7)))
    assert (found.kind == "upper") == composes, found
    if composes:
        assert found.measured <= found.bound + found.allowance
        assert (found.bound == 0) == (relaxed == 0)
        assert relaxed == 0 or found.measured > 1e-3


@pytest.mark.parametrize(
    ("model", "group", "shape", "where", "reason"),
    [
        (lambda: Net("C6"), "C4", (1, 9, 9), "lift", "C6 samples hold no"),
        (lambda: Net("C4"), "D4", (1, 9, 9), "lift", "C4 samples hold no"),
        (lambda: Net("C8"), "C8", (1, 9, 9), "lift", "moves no image pixels"),
        (lambda: Net("C4"), "C4", (1, 8, 8), "conv", "does not fit C4"),
        (lambda: nn.Sequential(SoftConv2d(1, 2, 3, omega_prime=0.5)), "C4", (1, 9, 9), "0", "varies in space"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(162, 2)), "C4", (1, 9, 9), None, ""),
        (lambda: nn.Sequential(LiftingConv2d(1, 2, 3, group="C4"), nn.Unfold(3)), "C4", (1, 9, 9), None, ""),
    ],
)
def test_it_abstains_at_the_layer_to_blame(model: Any, group: str, shape: Any, where: str | None, reason: str) -> None:
    built = model().double()
    if where is None and isinstance(built[-1], nn.Unfold):
        with pytest.raises(ed.EquidialError):
            ed.certify_network(built, config(group), inputs=drawn((2, *shape)))
        return
    found = ed.certify_network(built, config(group), inputs=drawn((2, *shape)))
    if where is None:
        assert found.kind == "upper"
        return
    assert (found.kind, found.abstained_at) == ("abstained", where)
    assert reason in (found.reason or "")


@pytest.mark.parametrize(
    ("layer", "shape", "group"),
    [
        (lambda: SoftConv2d(1, 3, 3, padding=1, omega_prime=0.0), (1, 9, 9), "C4"),
        (lambda: SoftConv2d(1, 3, 3, padding=1, omega_prime={}), (1, 9, 9), "D4"),
        (lambda: SoftConv1d(1, 3, 3, padding=1, omega_prime=0.0), (1, 9), "Flip"),
    ],
)
def test_plain_continuous_kernels_are_bounded_as_any_kernel(layer: Any, shape: tuple[int, ...], group: str) -> None:
    model = nn.Sequential(layer(), nn.ReLU()).double()
    plain = ed.fold(nn.Sequential(*list(model))).double()
    x = drawn((3, *shape))
    found, folded = (ed.certify_network(m, config(group), inputs=x) for m in (model, plain))
    assert found.measured <= found.bound + found.allowance
    assert found.bound == pytest.approx(folded.bound, rel=1e-9)
    assert found.bound > 0.01


def test_softened_tensors_beside_them_are_certified_as_fold_stores_them_and_share_a_budget() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.soft = nn.Conv2d(1, 2, 3, padding=1)
            self.lift = LiftingConv2d(2, 3, 3, padding=1, group="C4")
            self.pool = GroupPool2d()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(torch.relu(self.lift(torch.relu(self.soft(x))))).mean((2, 3))

    model = ed.soften(Mixed(), ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    x = drawn((2, 1, 7, 7)).float()
    found = ed.certify_network(model, inputs=x)
    assert found.kind == "upper"
    assert isinstance(model.lift, LiftingConv2d), "the model itself is not folded"
    assert any("continuous" in h for h in found.hypotheses)
    assert 0 < found.measured <= found.bound
    budget = found.bound / 4
    made = ed.set_network_error(model, budget, inputs=x)
    assert 0 < made.bound <= budget
    ed.set_softness(model, 0.0)
    strict = ed.certify_network(model, inputs=x)
    assert strict.bound < 1e-5  # symmetric weights as float32 stores them
    assert strict.measured <= strict.bound + strict.allowance
