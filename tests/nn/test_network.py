"""Whole networks: samples changed after training, variance at the start, fold, penalty, summary."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.errors import ArgumentError, EquidialWarning, StateError
from equidial.nn import (
    Frequencies,
    GroupConv2d,
    GroupLayerNorm2d,
    GroupPool2d,
    GroupSamples,
    LiftingConv2d,
    PointwiseGroupConv2d,
    SoftConv1d,
    SoftConv2d,
    group_defect,
    plain_layer,
    set_samples,
    summary,
    translation_defect,
)


def strict_network(samples: str | GroupSamples = "C8", omega: float = 2.0) -> nn.Sequential:
    """Low frequencies, which eight samples resolve."""
    low: Any = {"translation": omega, "rotation": 0.5}
    return nn.Sequential(
        LiftingConv2d(1, 4, 5, group=samples, omega={"translation": omega}),
        nn.GELU(),
        GroupConv2d(4, 4, 5, group=samples, omega=low, relative_angle="harmonics"),
        nn.GELU(),
        PointwiseGroupConv2d(4, 4, group=samples, omega={"rotation": 0.5}, relative_angle="harmonics"),
        GroupPool2d("mean"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def smooth_images(n: int = 4, size: int = 17) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    centres = torch.rand(n, 2, 1, 1) - 0.5
    return torch.exp(-3 * ((x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2))[:, None]


@pytest.mark.parametrize("images", ["smooth", "constant"])
def test_a_strict_network_runs_on_with_more_samples(images: str) -> None:
    """The Haar weight keeps every sum: the mean over 16 samples is nearly that over 8, for smooth kernels."""
    net = strict_network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x = smooth_images() if images == "smooth" else torch.ones(2, 1, 17, 17)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        at_8 = net(x)
        assert set_samples(net, 16) is net
        at_16 = net(x)
        assert net[0](x).shape[2] == 16
        set_samples(net, 8)
        assert torch.equal(net(x), at_8)
    assert (at_16 - at_8).abs().max() < 0.03 * at_8.abs().max()


def test_fewer_samples_than_harmonics_alias_and_say_so() -> None:
    net: Any = nn.Sequential(
        LiftingConv2d(1, 2, 3, group="C8"),
        GroupConv2d(2, 2, 3, group="C8", omega_prime={"rotation": 3}, harmonics=True),
    )
    with pytest.warns(EquidialWarning, match="2 samples: .* harmonic 3 is harmonic 1"):
        set_samples(net, 2)
    aliased = net[1].kernel()
    net[1].omega_prime.set("rotation", 1)
    assert torch.equal(net[1].kernel(), aliased)


def test_numbers_of_samples_without_a_meaning_change_nothing() -> None:
    net: Any = nn.Sequential(LiftingConv2d(1, 2, 3, group="C8"))
    x = torch.randn(1, 1, 8, 8)
    y = net(x)
    with pytest.raises(ArgumentError):
        set_samples(net, 0)
    assert torch.equal(net(x), y)
    with pytest.raises(ArgumentError, match="group axis"):
        set_samples(nn.Linear(2, 2), 8)


@pytest.mark.parametrize("kind", ["translation", "C8"])
@pytest.mark.parametrize(("nonlinearity", "act"), [("relu", nn.ReLU()), ("linear", nn.Identity())], ids=str)
def test_the_variance_stays_near_1_through_eight_layers(kind: str, nonlinearity: str, act: Any) -> None:
    logs = torch.zeros(3, 8)
    for seed in range(3):
        torch.manual_seed(seed)
        shared: dict[str, Any] = {"padding": 1, "padding_mode": "circular"}
        x = torch.randn(2, 24, *([4] if kind == "C8" else []), 8, 8)
        x = x.repeat_interleave(2, dim=2) if kind == "C8" else x
        for i in range(8):
            if kind == "C8":
                layer: Any = GroupConv2d(24, 24, 3, group="C8", nonlinearity=nonlinearity, **shared)
            else:
                layer = SoftConv2d(24, 24, 3, nonlinearity=nonlinearity, **shared)
            with torch.no_grad():
                x = layer(act(x))
            logs[seed, i] = x.square().mean().log()
    assert logs.mean(0).abs().max() < math.log(8), logs.exp()


FOLDED = {
    "strict plane": (lambda: SoftConv2d(2, 4, 3, padding=1, omega_prime=0.0, groups=2), (2,)),
    "line": (lambda: SoftConv1d(2, 3, 4, padding="same", omega_prime=0.0), (2,)),
    "even window, same": (lambda: SoftConv2d(2, 3, 4, padding="same", omega_prime=0.0, padding_mode="reflect"), (2,)),
    "lifting": (lambda: LiftingConv2d(2, 3, 3, padding=1, stride=2, group="C8", padding_mode="circular"), (2,)),
    "rotation": (lambda: GroupConv2d(2, 4, 3, group="D4", omega_prime={"rotation": 1.0}, groups=2), (2, 8)),
    "learned": (
        lambda: GroupConv2d(2, 3, 3, group="C4", omega_prime={"rotation": 0.5, "x": 0.0}, learn_omega_prime=True),
        (2, 4),
    ),
    "point-wise": (lambda: PointwiseGroupConv2d(2, 3, group="C4", bias=False), (2, 4)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::equidial.errors.EquidialWarning")
@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_layer_is_made_of_torch_and_equals_the_layer(name: str) -> None:
    make, lead = FOLDED[name]
    layer = make()
    line = name == "line"
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        layer = layer.to(dtype)
        plain = plain_layer(layer)
        assert all(type(m).__module__.startswith("torch.nn") for m in plain.modules())
        x = torch.randn(2, *lead, *([7] if line else [7, 7]), dtype=dtype)
        assert torch.allclose(plain(x), layer(x), atol=tolerance)


def test_fold_takes_a_whole_network_or_nothing() -> None:
    net = strict_network("C4").eval()
    x = smooth_images()
    y = net(x)
    assert ed.fold(net) is net
    assert not ed.nn.has_continuous_layers(net)
    assert torch.allclose(net(x), y, atol=1e-5)
    assert not any(m.training for m in net.modules())
    with pytest.raises(StateError):
        ed.fold(net)
    alone = ed.fold(SoftConv2d(1, 2, 3, omega_prime=0.0))
    assert type(alone) is nn.Conv2d
    shared = SoftConv2d(2, 2, 1, omega_prime=0.0)
    twice = ed.fold(nn.Sequential(shared, nn.ReLU(), shared))
    assert twice[0] is twice[2]
    moving = nn.ModuleDict({"a": SoftConv2d(1, 2, 3, omega_prime=0.0), "b": SoftConv2d(2, 1, 3)})
    with pytest.raises(StateError, match="b"):
        ed.fold(moving)
    assert isinstance(moving["a"], SoftConv2d)


def test_the_penalty_is_the_sum_of_squares_with_shared_frequencies_once() -> None:
    shared: Any = Frequencies({"rotation": 0.5, "translation": 0.0}, learned={"rotation"})
    net: Any = nn.Sequential(
        LiftingConv2d(1, 2, 3, group="C4", omega_prime=shared),
        GroupConv2d(2, 2, 3, group="C4", omega_prime=shared),
        GroupConv2d(2, 2, 3, group="C4", omega_prime={"x": -2.0, "rotation": 1.5}, learn_omega_prime={"x"}),
        GroupConv2d(2, 2, 3, group="C4", omega_prime={"rotation": 1.0}),
    )
    value = ed.relaxation_penalty(net, 2)
    assert value.item() == pytest.approx(0.5**2 + 2.0**2, abs=1e-12)
    value.backward()
    assert shared.rotation.grad.item() == pytest.approx(2 * 0.5)
    assert net[2].omega_prime.x.grad.item() == pytest.approx(-4.0)
    assert ed.relaxation_penalty(net, 1).item() == pytest.approx(2.5)
    with pytest.raises(StateError, match="learn_omega_prime"):
        ed.relaxation_penalty(nn.Sequential(SoftConv2d(1, 1, 3)))


def test_the_summary_says_what_was_learned_and_what_it_breaks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.ModuleDict(
            {
                "lift": LiftingConv2d(1, 2, 3, group="C8"),
                "norm": GroupLayerNorm2d(2),
                "soft": GroupConv2d(2, 2, 3, group="C8", omega_prime={"rotation": 0.5}, learn_omega_prime=True),
                "harmonic": GroupConv2d(2, 2, 3, group="C8", omega_prime={"rotation": 4}, harmonics=True),
                "mirrors": GroupConv2d(2, 2, 3, group="D4", omega_prime={"flip": 1.0}),
                "plane": SoftConv2d(2, 2, 3, omega_prime=1.5),
                "line": SoftConv1d(2, 2, 3, omega_prime=0.0),
            }
        )
    rows = {row.name: row for row in summary(net, 6)}
    assert list(rows) == ["lift", "soft", "harmonic", "mirrors", "plane", "line"]
    assert (rows["lift"].group_defect, rows["lift"].subgroup, rows["lift"].omega_prime) == (0.0, "C8", {})
    assert rows["soft"].omega_prime == {"rotation": 0.5}
    assert rows["soft"].learned == ("rotation",)
    assert rows["soft"].group_defect == group_defect(net["soft"]).supremum > 0  # pyright: ignore[reportArgumentType]
    assert (rows["soft"].subgroup, rows["harmonic"].subgroup) == ("C1", "C4")
    assert "fold" in rows["harmonic"].remark
    assert rows["mirrors"].subgroup == "C4"
    plane = translation_defect(net["plane"], (6, 6), 1)  # pyright: ignore[reportArgumentType]
    assert rows["plane"].translation_defect == plane.supremum > 0
    assert rows["plane"].group_defect is None
    assert rows["line"].translation_defect is None
    text = str(summary(net, (6, 6)))
    assert all(name in text for name in rows)
    assert "rotation 0.5*" in text
    assert "* learned" in text
    assert str(summary(nn.ReLU())) == "no layer with a continuous kernel"
    assert str(summary(SoftConv2d(1, 1, 3))).splitlines()[1].startswith("(the model)")


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "nn.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert len(blocks) == 5
    assert names["y"].shape == (2, 10)
    assert blocks[0].count("ed.nn.") == 3
    printed = capsys.readouterr().out
    assert "rotation 0.5" in printed
    assert "* learned" in printed
