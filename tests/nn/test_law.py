"""The law of the layers, against loops; strict at omega' = 0, pooling at omega = 0 too, free at a large omega'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.nn import GroupConv2d, LiftingConv2d, PointwiseGroupConv2d, SoftConv1d, SoftConv2d
from equidial.nn._features import sine_of_sum
from tests.nn.reference import naive

SPACE = {"translation": 1.3}
LAYERS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "line": (SoftConv1d, (2, 3, 5), {"padding": 2, "omega_prime": 1.7}),
    "strided line in groups": (SoftConv1d, (4, 6, 4), {"stride": 2, "dilation": 2, "padding": 3, "groups": 2}),
    "strict plane": (SoftConv2d, (2, 3, 3), {"padding": 1, "omega_prime": 0.0}),
    "plane": (SoftConv2d, (2, 2, (2, 3)), {"padding": "same", "padding_mode": "circular", "omega_prime": 2.0}),
    "plane along one axis": (SoftConv2d, (2, 2, 3), {"omega_prime": {"y": 2.0}, "stride": 2, "padding": 1}),
    "plane of a fixed pitch": (SoftConv2d, (1, 2, 3), {"omega_prime": 2.0, "domain_size": 4}),
    "lifting": (LiftingConv2d, (2, 2, 3), {"group": "C8", "padding": 1}),
    "soft lifting with mirrors": (LiftingConv2d, (1, 2, 3), {"group": "D4", "omega_prime": {"flip": 1.0}}),
    "soft lifting in space": (LiftingConv2d, (1, 2, 3), {"group": "C4", "omega_prime": SPACE | {"rotation": 1.0}}),
    "strict rotation": (GroupConv2d, (2, 2, 3), {"group": "C8"}),
    "soft rotation": (GroupConv2d, (2, 2, 3), {"group": "C8", "omega_prime": {"rotation": 1.4}, "support": "square"}),
    "harmonic": (GroupConv2d, (2, 2, 4), {"group": "C6", "omega_prime": {"rotation": 2}, "harmonics": True}),
    "strict mirrors": (GroupConv2d, (2, 4, 3), {"group": "D4", "groups": 2, "relative_angle": "harmonics"}),
    "soft mirrors": (GroupConv2d, (1, 1, 3), {"group": "D3", "omega_prime": {"rotation": 0.7, "flip": 0.4}}),
    "soft in all": (GroupConv2d, (2, 1, 3), {"group": "C4", "omega_prime": SPACE | {"rotation": 1.0}, "padding": 1}),
    "point-wise": (PointwiseGroupConv2d, (2, 3), {"group": "D4", "omega_prime": {"rotation": 1.0}}),
}  # fmt: skip


def made(name: str, kernel: str) -> Any:
    cls, sizes, options = LAYERS[name]
    layer = cls(*sizes, kernel=kernel, features=5, **options).double()
    nn.init.normal_(layer.bias)
    return layer


def images(layer: Any, size: int = 5) -> torch.Tensor:
    axes = len(layer.windows.kernel)
    lead = [2, layer.in_channels] + ([] if layer.coordinates.lifts else [layer.samples.size])
    return torch.randn(*lead, *(size + i for i in range(axes)), dtype=layer.weight.dtype)


@pytest.mark.parametrize("kernel", ["siren", "fourier"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_loops_over_its_law_make(name: str, kernel: str) -> None:
    layer = made(name, kernel)
    x = images(layer, 7 if name == "strided line in groups" else 5)
    expected = naive(layer, x)
    for found in (layer(x), layer.eval()(x)):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))


STRICT = {
    "translation": (SoftConv2d, (2, 3, 3), {}, {"translation": 0.0}),
    "translation of a line": (SoftConv1d, (2, 3, 4), {}, {"x": 0.0}),
    "lifting": (LiftingConv2d, (2, 3, 3), {"group": "D4"}, {"rotation": 0.0, "flip": 0.0, "translation": 0.0}),
    "rotation": (GroupConv2d, (2, 3, 5), {"group": "C8"}, {"rotation": 0.0}),
    "rotation in harmonics": (GroupConv2d, (2, 3, 5), {"group": "C8", "harmonics": True}, {"rotation": 0}),
    "mirror": (GroupConv2d, (2, 3, 3), {"group": "D4"}, {"flip": 0.0}),
    "all": (GroupConv2d, (2, 3, 3), {"group": "D6"}, {"rotation": 0.0, "flip": 0.0, "translation": 0.0}),
    "point-wise": (PointwiseGroupConv2d, (2, 3), {"group": "C8"}, {"rotation": 0.0}),
}


@pytest.mark.parametrize("kernel", ["siren", "fourier"])
@pytest.mark.parametrize("name", STRICT)
def test_omega_prime_0_is_the_strict_layer_bit_for_bit(name: str, kernel: str) -> None:
    cls, sizes, options, zero = STRICT[name]
    soft = cls(*sizes, kernel=kernel, omega_prime=zero, **options)
    strict = cls(*sizes, kernel=kernel, omega_prime={}, **{k: v for k, v in options.items() if k != "harmonics"})
    assert not strict.omega_prime.axes
    absent = strict.load_state_dict(soft.state_dict(), strict=False)
    assert not absent.missing_keys
    assert all("absolute" in key for key in absent.unexpected_keys)
    x = images(soft, 6)
    assert torch.equal(soft(x), strict(x))
    with torch.no_grad():
        assert torch.equal(soft.eval()(x), strict.eval()(x))
    for axis in zero:
        soft.omega_prime.set(axis, 1.0)
    assert not torch.allclose(soft(x), strict(x), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in STRICT if "harmonics" not in name])
def test_a_learned_omega_prime_starts_strict_and_leaves_0_by_its_gradient(name: str) -> None:
    cls, sizes, options, zero = STRICT[name]
    layer = cls(*sizes, omega_prime=zero, learn_omega_prime=True, **options).double()
    x = images(layer, 6)
    with torch.no_grad():
        strict = layer(x)
    y = layer(x)
    assert torch.allclose(y, strict, atol=1e-12)
    y.square().sum().backward()
    for axis in layer.omega_prime.learned:
        gradient = getattr(layer.omega_prime, axis).grad
        assert gradient is not None
        assert gradient.abs() > 1e-6
    torch.optim.SGD(layer.omega_prime.parameters(), lr=1e-2).step()
    assert all(layer.omega_prime.value(axis) != 0 for axis in layer.omega_prime.learned)
    assert not torch.allclose(layer(x), strict, atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: SoftConv2d(2, 3, 3, omega=0.0, omega_prime=0.0),
        lambda: LiftingConv2d(2, 3, 5, group="C8", omega={"translation": 0.0}),
        lambda: GroupConv2d(2, 3, 3, group="D4", omega={"translation": 0.0, "rotation": 0.0, "flip": 0.0}),
    ],
)
def test_omega_and_omega_prime_0_are_pooling(layer: Any) -> None:
    pool = layer().double()
    kernel = pool.kernel().detach()
    inside = kernel.flatten(-2)[..., pool.coordinates.taps()]
    assert torch.allclose(inside, inside[:, :1, :, :1, :1].expand_as(inside), rtol=0, atol=1e-15)
    x = images(pool, 6)
    y = pool(x)
    summed = x[:, :, None] if pool.coordinates.lifts else x
    disk = torch.zeros(kernel.shape[-2:], dtype=x.dtype).flatten()
    disk[pool.coordinates.taps()] = 1
    local = nn.functional.conv2d(summed.mean(2).flatten(0, 1)[:, None], disk.view(1, 1, *kernel.shape[-2:])).unflatten(
        0, x.shape[:2]
    )[:, :, 0]
    value = inside[:, 0, :, 0, 0] * pool.coordinates.inputs
    expected = torch.einsum("oc,bchw->bohw", value, local) + pool.bias.detach().view(-1, 1, 1)
    assert torch.allclose(y if pool.samples is None else y[:, :, 0], expected, atol=1e-12)
    if pool.samples is not None:
        assert torch.allclose(y, y[:, :, :1].expand_as(y), atol=1e-12)


def test_a_large_omega_prime_fits_a_map_of_its_own_for_each_pixel() -> None:
    goal = torch.randn(5, 5)
    x = torch.randn(32, 1, 5, 5)
    loss = {}
    for omega_prime in (0.0, 12.0):
        torch.manual_seed(0)
        layer = SoftConv2d(1, 1, 1, omega_prime=omega_prime, features=64, bias=False)
        optimizer = torch.optim.Adam(layer.parameters(), lr=3e-2)
        for _ in range(150):
            optimizer.zero_grad()
            error = (layer(x) - goal * x).square().mean()
            error.backward()
            optimizer.step()
        loss[omega_prime] = float(error.detach())
    assert loss[0.0] > 0.5 * float(goal.var())
    assert loss[12.0] < 1e-3 * float(goal.var())


def test_a_network_of_soft_layers_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        LiftingConv2d(1, 4, 3, padding=1, group="C4", omega_prime={"rotation": 0.1}, learn_omega_prime=True),
        nn.ReLU(),
        GroupConv2d(4, 4, 3, padding=1, group="C4", omega_prime={"rotation": 0.1}, learn_omega_prime=True),
        ed.nn.GroupPool2d("max"),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    x = torch.randn(16, 1, 8, 8)
    labels = torch.arange(16) % 2
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels) + 1e-3 * ed.relaxation_penalty(net, 2)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_sine_of_a_sum_is_that_and_twice_differentiable() -> None:
    x, y = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((3, 1, 4, 5), (2, 1, 5)))
    assert torch.allclose(sine_of_sum(x, y), torch.sin(x + y), rtol=0, atol=1e-14)
    assert torch.equal(sine_of_sum(x, torch.zeros_like(y)), torch.sin(x).expand(3, 2, 4, 5))
    assert torch.autograd.gradcheck(sine_of_sum, (x, y))
    assert torch.autograd.gradgradcheck(sine_of_sum, (x, y))
    large = torch.linspace(-40, 40, 1001)
    exact = torch.sin(large.double()[:, None] + large.double())
    assert (sine_of_sum(large[:, None], large) - exact).abs().max() < 2e-7  # sin(x + y) itself is 4e-6 away
