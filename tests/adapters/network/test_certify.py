"""certify_network: never below what a search finds, 0 at softness 0, abstentions by name, the model left alone."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial import SoftEquivarianceConfig, certify_network, soften
from equidial.adapters import Call
from equidial.errors import EquidialError
from equidial.nn import NormNonlinearity
from equidial.representations import parse
from tests.adapters.models import SPACES, VectorMlp, build, randomise_norms, same_tensors, snapshot


class Residual(nn.Module):
    """x + f(x), with batch norm between."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.second(self.act(self.norm(self.first(x)))))


class Parallel(nn.Module):
    """Two branches side by side, scaled, with a table of positions."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.left = nn.Conv2d(channels, channels, 3, padding=1)
        self.right = nn.Conv2d(channels, channels, 1)
        self.table = nn.Parameter(0.1 * torch.randn(1, 2 * channels, size, size))
        self.scale = nn.Parameter(torch.rand(2 * channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.left(x).tanh(), self.right(x) / 2], dim=1)
        return torch.sigmoid(both * self.scale + self.table)


class Shortcut(nn.Module):
    """A strided shortcut without weights, channels padded with zeros."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = self.conv.in_channels // 2
        return nn.functional.gelu(self.conv(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad)))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "chain": (
        lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.SiLU(), *head(4)],
        (2, 7, 7),
    ),
    "maps": (
        lambda: [
            nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"),
            nn.Mish(),
            nn.Conv2d(3, 2, 5, padding=4, dilation=2),
        ],
        (1, 7, 7),
    ),
    "residual": (lambda: [nn.Conv2d(1, 4, 3), Residual(4), nn.MaxPool2d(3, 2, 1), *head(4)], (1, 9, 9)),
    "parallel": (
        lambda: [Parallel(2, 6), nn.Conv2d(4, 4, 3, groups=2), nn.ELU(), nn.AvgPool2d(2), *head(4)],
        (2, 6, 6),
    ),
    "shortcut": (lambda: [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Shortcut(2), Shortcut(4), *head(8)], (1, 9, 9)),
    "norms": (
        lambda: [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), *head(4)],
        (1, 7, 7),
    ),
    "flattened": (
        lambda: [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3)],
        (1, 6, 6),
    ),
}


def network(name: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    make, shape = NETS[name]
    net = nn.Sequential(*make()).eval()
    randomise_norms(net)
    return net, shape


def o5_network() -> tuple[nn.Sequential, dict[str, tuple[str, str]]]:
    """Vectors and tensors of O(5) to scalars."""
    spaces = ["2*Vector + Tensor(2)", "3*Vector + Tensor(2) + 3*Trivial", "3*Vector + 4*Trivial", "2*Trivial"]
    reps = [parse(text, ed.groups.O(5)) for text in spaces]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(reps):
        layers += [nn.Linear(a.dim, b.dim, bias=b.dim > 2), NormNonlinearity(b)]
    declared = {str(2 * i): (spaces[i], spaces[i + 1]) for i in range(3)}
    return nn.Sequential(*layers[:-1]).double(), declared


def check(found: ed.NetworkCertificate) -> None:
    assert found.kind == "upper", found.reason
    assert found.bound >= 0
    for bound, measured in zip(found.bounds, found.measured_each, strict=True):
        assert measured <= bound + found.allowance
    whole = sum(step.contribution for step in found.steps)
    assert whole == pytest.approx(found.bound, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("group", ["C4", "D4", "Flip"])
@pytest.mark.parametrize("name", NETS)
def test_no_image_bound_is_below_the_worst_error_found(name: str, group: str) -> None:
    """Elements are all tried, inputs of the ball improved by gradient ascent."""
    net, shape = network(name)
    x = torch.randn(3, *shape)
    for softness in (0.4, 1.0):
        model = soften(copy.deepcopy(net), SoftEquivarianceConfig(group=group, softness=softness))
        check(certify_network(model, inputs=x))
        found = certify_network(model, ball=2.0, input_shape=shape)
        check(found)
        inside = torch.randn(20, *shape, dtype=torch.float64)
        inside = 2.0 * inside / inside.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        each = certify_network(model, inputs=inside)
        assert each.measured <= found.bound + found.allowance + each.allowance


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("group", ["C4", "Flip"])
def test_exactly_symmetric_weights_leave_only_rounding(name: str, group: str) -> None:
    net, shape = network(name)
    if isinstance(net[0], Parallel):
        nn.init.zeros_(net.get_parameter("0.table"))  # its name does not tell that it is a table of positions
    if name == "flattened":
        net[4] = nn.Identity()  # a linear head on flattened images is symmetric only by chance
        net[5] = nn.Identity()
    model = soften(net, SoftEquivarianceConfig(group=group, softness=0.0))
    check(certify_network(model, inputs=torch.randn(2, *shape)))
    assert certify_network(model, ball=1.0, input_shape=shape).bound < 1e-12


@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_an_o5_network_is_covered(softness: float) -> None:
    net, declared = o5_network()
    config = SoftEquivarianceConfig(group="O5", softness=softness, representations=declared)
    model = soften(net, config)
    x = torch.randn(3, 35, dtype=torch.float64)
    for found in (
        certify_network(model, inputs=x, radius=None if softness else 0.5),
        certify_network(model, ball=1.0, input_shape=(35,)),
    ):
        check(found)
        assert softness > 0 or found.bound < 1e-8
        assert found.slack < 1000 or softness == 0


@pytest.mark.parametrize("group", ["SO2", "C8", "D4"])
def test_vectors_of_the_plane(group: str) -> None:
    spaces = {"0": ("3*Vector", "4*Vector + 2*Trivial"), "2": ("4*Vector + 2*Trivial", "2*Vector")}
    rep = parse(spaces["0"][1], ed.groups.by_name(group))
    net = nn.Sequential(nn.Linear(6, 10), NormNonlinearity(rep, bias=True), nn.Linear(10, 4, bias=False)).double()
    model = soften(net, SoftEquivarianceConfig(group=group, softness=0.5, representations=spaces))
    x = torch.randn(4, 5, 6, dtype=torch.float64)  # five vectors per input share the weights
    check(certify_network(model, inputs=x))
    check(certify_network(model, ball=1.0, input_shape=(6,)))


def test_relative_bounds_and_plain_models() -> None:
    net, shape = network("chain")
    config = SoftEquivarianceConfig(group="C4", softness=0.5)
    x = torch.randn(3, *shape)
    found = certify_network(net, config, inputs=x)
    outputs = net.double()(x.double()).detach()
    wanted = [b / float(y.norm()) for b, y in zip(found.bounds, outputs, strict=True)]
    assert found.relatives == pytest.approx(wanted)
    near = certify_network(net, config, inputs=x, radius=math.pi / 2)
    assert near.bound <= found.bound
    assert near.elements == "C4 within 1.5708"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0]


class ByHand(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, dim=1)


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


class Weighted(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight / self.weight.norm(), self.bias)


def doubled(module: nn.Module, args: Any, output: Any) -> Any:
    return 2 * output


def hooked() -> nn.Module:
    module = nn.ReLU()
    module.register_forward_hook(doubled)
    return module


CONV = (2, 4, 3)
ABSTENTIONS = {
    "attention": ("C4", lambda: [nn.Conv2d(*CONV), Attention()], "1.attention", "MultiheadAttention has no rule"),
    "softmax": ("C4", lambda: [nn.Conv2d(*CONV), ByHand()], "1", "softmax has no rule"),
    "control flow": ("C4", lambda: [nn.Conv2d(*CONV), Untraceable()], "1", "cannot be traced"),
    "unknown": ("C4", lambda: [nn.Conv2d(*CONV), nn.Softmin(1)], "1", "Softmin has no rule"),
    "subclass": ("C4", lambda: [nn.Conv2d(*CONV), Weighted(4, 4, 3)], "1", "Weighted has no rule"),
    "hooks": ("C4", lambda: [nn.Conv2d(*CONV), hooked()], "1", "forward hooks"),
    "rotations": ("C8", lambda: [nn.Conv2d(*CONV), nn.ReLU()], "0", "moves no image pixels"),
    "stride": ("C4", lambda: [nn.Conv2d(2, 4, 3, stride=2, padding=1)], "0", "does not fit C4"),
    "one axis": ("C4", lambda: [nn.Conv2d(*CONV), nn.AvgPool2d((1, 2))], "1", "does not fit C4"),
    "flat grid": ("C4", lambda: [nn.Conv2d(*CONV), nn.Flatten(2), nn.Linear(36, 2)], "2", "mixes the points"),
    "running": ("C4", lambda: [nn.Conv2d(*CONV), nn.BatchNorm2d(4, track_running_stats=False)], "1", "running stat"),
}


@pytest.mark.parametrize("case", ABSTENTIONS)
def test_abstentions_name_the_module_and_the_reason(case: str) -> None:
    group, make, where, reason = ABSTENTIONS[case]
    net = nn.Sequential(*make()).eval()
    found = certify_network(net, SoftEquivarianceConfig(group=group, softness=0.5), inputs=torch.randn(2, 2, 8, 8))
    assert found.kind == "abstained"
    assert (found.abstained_at, found.bounds, found.steps) == (where, (), ())
    assert reason in found.reason
    assert math.isnan(found.bound)


def test_control_flow_on_shapes_is_followed() -> None:
    """A Hugging Face ResNet; its ViT has attention and abstains."""
    net, x = build("resnet")
    config = SoftEquivarianceConfig(group="C4", softness=0.0)
    found = certify_network(soften(net, config), inputs=x)
    assert found.kind == "upper", found.reason
    assert found.bound < 1e-6
    assert certify_network(build("vit")[0], config, inputs=x[..., :32, :32]).kind == "abstained"


def test_a_pointwise_function_does_not_commute_with_vectors() -> None:
    net = nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 1))
    declared = {"0": ("Vector", "2*Vector"), "2": ("2*Vector", "Trivial")}
    config = SoftEquivarianceConfig(group="O5", softness=0.5, representations=declared)
    found = certify_network(net, config, inputs=torch.randn(2, 5))
    assert (found.kind, found.abstained_at) == ("abstained", "1")
    assert found.reason.startswith("ReLU does not commute with Vector of O5; use an equivariant non-linearity")
    gated = certify_network(
        VectorMlp(),
        SoftEquivarianceConfig(group="SO2", softness=0.5, representations=SPACES),
        inputs=torch.randn(2, 11),
    )
    assert gated.kind == "abstained"


def test_rules_of_your_own() -> None:
    """A module that the library does not know, with its law stated by the user."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softmin(1), *head(4)).eval()
    config = SoftEquivarianceConfig(group="C4", softness=0.5)

    def rule(call: Call) -> Any:
        return call.lipschitz(1.0)  # softmax over channels is 1-Lipschitz, and the grid moves no channels

    x = torch.randn(2, 2, 8, 8)
    check(certify_network(net, config, inputs=x, rules={nn.Softmin: rule}))
    assert certify_network(net, config, inputs=x).kind == "abstained"


@pytest.mark.parametrize("inside", [False, True])
def test_the_model_is_left_as_it_is(inside: bool) -> None:
    net, shape = network("residual")
    net.train()
    model = soften(net, SoftEquivarianceConfig(group="C4", softness=0.5))
    wrapped = nn.Sequential(model) if inside else model
    before, modes = snapshot(wrapped), [m.training for m in wrapped.modules()]
    check(certify_network(wrapped, inputs=torch.randn(2, *shape)))
    assert same_tensors(before, snapshot(wrapped))
    assert modes == [m.training for m in wrapped.modules()]
    assert all(p.requires_grad and p.grad is None for p in wrapped.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in wrapped.modules())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"inputs": torch.zeros(1, 2, 7, 7), "ball": 1.0},
        {"inputs": torch.zeros(1, 2, 7, 7), "input_shape": (2, 7, 7)},
        {"inputs": torch.zeros(2)},
        {"inputs": torch.zeros(0, 2, 7, 7)},
        {"inputs": torch.zeros(1, 2, 7, 7, dtype=torch.long)},
        {"inputs": torch.full((1, 2, 7, 7), math.nan)},
        {"inputs": [1.0]},
        {"inputs": torch.zeros(1, 3, 7, 7)},
        {"inputs": torch.zeros(1, 2, 7, 8)},
        {"inputs": torch.zeros(1, 2, 7, 7), "radius": -1.0},
        {"inputs": torch.zeros(1, 2, 7, 7), "radius": 0.1},
        {"ball": 1.0},
        {"ball": -1.0, "input_shape": (2, 7, 7)},
        {"ball": math.inf, "input_shape": (2, 7, 7)},
        {"ball": True, "input_shape": (2, 7, 7)},
        {"ball": 1.0, "input_shape": (2, 0, 7)},
        {"ball": 1.0, "input_shape": (9, 7, 7)},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    net, _ = network("chain")
    model = soften(net, SoftEquivarianceConfig(group="C4", softness=0.5))
    before = snapshot(model)
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        certify_network(model, **arguments)
    assert same_tensors(before, snapshot(model))


def test_a_plain_model_needs_its_configuration() -> None:
    with pytest.raises(EquidialError, match="config="):
        certify_network(network("chain")[0], inputs=torch.zeros(1, 2, 7, 7))
    with pytest.raises(EquidialError, match=r"torch\.nn\.Module"):
        certify_network("chain", inputs=torch.zeros(1, 2, 7, 7))  # type: ignore[arg-type]
