"""Wrong arguments and inputs, each with what was expected, what came and what to do; the warnings; the features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from equidial.errors import ArgumentError, EquidialWarning
from equidial.groups import SO2, C, D
from equidial.nn import (
    FourierFeatures,
    Frequencies,
    GroupConv2d,
    GroupPool2d,
    GroupSamples,
    KernelFeatures,
    LiftingConv2d,
    OnImages,
    PointwiseGroupConv2d,
    SirenFeatures,
    SoftConv1d,
    SoftConv2d,
)

R = {"rotation": 1.0}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no channels": (lambda: SoftConv2d(0, 1, 3), "in_channels >= 1"),
    "channels of another type": (lambda: SoftConv2d(1, 2.0, 3), "out_channels >= 1"),  # pyright: ignore[reportArgumentType]
    "groups": (lambda: SoftConv2d(3, 4, 3, groups=2), "2 groups divide"),
    "kernel of no tap": (lambda: SoftConv2d(1, 1, 0), "kernel_size >= 1"),
    "kernel of three axes": (lambda: SoftConv2d(1, 1, (3, 3, 3)), "2 of them"),
    "kernel of a line": (lambda: SoftConv1d(1, 1, (3, 3)), "1 of them"),
    "stride": (lambda: SoftConv2d(1, 1, 3, stride=0), "stride >= 1"),
    "dilation": (lambda: SoftConv2d(1, 1, 3, dilation=True), "dilation >= 1"),
    "padding": (lambda: SoftConv2d(1, 1, 3, padding=-1), "padding >= 0"),
    "padding in words": (lambda: SoftConv2d(1, 1, 3, padding="full"), "'valid', or 'same'"),
    "same with stride": (lambda: SoftConv2d(1, 1, 3, padding="same", stride=2), "'same' with stride 1"),
    "padding mode": (lambda: SoftConv2d(1, 1, 3, padding_mode="zero"), "try 'zeros'|zeros"),
    "domain": (lambda: SoftConv2d(1, 1, 3, domain_size=0), "domain_size >= 1"),
    "kernel by name": (lambda: SoftConv2d(1, 1, 3, kernel="sirene"), "siren"),
    "kernel of another size": (
        lambda: SoftConv2d(1, 1, 3, kernel=lambda a, b, m: SirenFeatures(a + 1, b, m)), "factory",
    ),
    "kernel of another kind": (lambda: SoftConv2d(1, 1, 3, kernel=lambda a, b, m: nn.Linear(a, m)), "factory"),  # pyright: ignore[reportArgumentType]
    "features": (lambda: SoftConv2d(1, 1, 3, features=0), "features >= 1"),
    "nonlinearity": (lambda: SoftConv2d(1, 1, 3, nonlinearity="leaky"), "nonlinearity out of"),
    "frequency": (lambda: SoftConv2d(1, 1, 3, omega_prime={"x": math.nan}), "finite"),
    "axis": (lambda: SoftConv2d(1, 1, 3, omega_prime={"z": 1.0}), "axes out of"),
    "axis of another layer": (lambda: SoftConv2d(1, 1, 3, omega_prime=R), "of this layer"),
    "axis of a line": (lambda: SoftConv1d(1, 1, 3, omega_prime={"y": 1.0}), "of this layer"),
    "a learned axis without value": (lambda: Frequencies({"x": 1.0}, {"y"}), "starting value"),
    "learning what is shared": (
        lambda: SoftConv2d(1, 1, 3, omega_prime=Frequencies({"x": 1.0}), learn_omega_prime=True), "learn_omega_prime",
    ),
    "omega without an axis": (lambda: SoftConv2d(1, 1, 3, omega=Frequencies({"x": 1.0})), "none for y"),
    "a number for several axes": (lambda: GroupConv2d(1, 1, 3, omega_prime=1.0), "by axis"),  # pyright: ignore[reportArgumentType]
    "flip without mirrors": (lambda: GroupConv2d(1, 1, 3, group="C4", omega_prime={"flip": 1.0}), "of this layer"),
    "another group": (lambda: GroupConv2d(1, 1, 3, group=SO2()), "cyclic or dihedral"),
    "no such group": (lambda: GroupConv2d(1, 1, 3, group="Q8"), "Q8"),
    "support": (lambda: GroupConv2d(1, 1, 3, support="ring"), "'disk' or 'square'"),  # pyright: ignore[reportArgumentType]
    "relative angle": (lambda: GroupConv2d(1, 1, 3, relative_angle="cut"), "'log' or 'harmonics'"),  # pyright: ignore[reportArgumentType]
    "half a harmonic": (
        lambda: GroupConv2d(1, 1, 3, omega_prime={"rotation": 1.5}, harmonics=True), "integer harmonic",
    ),
    "harmonics of nothing": (lambda: GroupConv2d(1, 1, 3, harmonics=True), "omega_prime for harmonics"),
    "learned harmonics": (
        lambda: GroupConv2d(1, 1, 3, omega_prime=R, harmonics=True, learn_omega_prime=True), "continuous form",
    ),
    "layers of sines": (lambda: SirenFeatures(1, 0, 4, layers=0), "layers >= 1"),
    "Fourier frequencies": (lambda: FourierFeatures(1, 0, 4, frequencies=0), "frequencies >= 1"),
    "negative coordinates": (lambda: SirenFeatures(-1, 0, 4), "stationary >= 0"),
    "an axis to turn": (lambda: Frequencies({"x": 1.0}).set("rotation", 1.0), "an axis out of"),
    "pooling": (lambda: GroupPool2d("sum"), "'mean', 'max'|mean"),  # pyright: ignore[reportArgumentType]
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_are_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ArgumentError, match=message):
        call()


INPUTS: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "channels": (lambda: SoftConv2d(2, 1, 3), (1, 3, 8, 8), "batch, 2, height, width"),
    "axes": (lambda: SoftConv2d(2, 1, 3), (8, 8), "batch, 2, height, width"),
    "a plane for a line": (lambda: SoftConv1d(2, 1, 3), (1, 2, 8, 8), "batch, 2, width"),
    "no group axis": (lambda: GroupConv2d(2, 1, 3, group="C4"), (1, 2, 8, 8), "LiftingConv2d"),
    "another group axis": (lambda: GroupConv2d(2, 1, 3, group="C4"), (1, 2, 8, 8, 8), "batch, 2, 4, height, width"),
    "a group axis to lift": (lambda: LiftingConv2d(2, 1, 3), (1, 2, 8, 8, 8), "batch, 2, height, width"),
    "smaller than the window": (lambda: SoftConv2d(1, 1, 5), (1, 1, 4, 8), "at least \\(5, 5\\)"),
    "smaller than the mirror": (
        lambda: SoftConv2d(1, 1, 3, padding=4, padding_mode="reflect"), (1, 1, 4, 4), "reflect padding",
    ),
    "smaller than the circle": (
        lambda: GroupConv2d(1, 1, 3, padding=5, padding_mode="circular", group="C4"), (1, 1, 4, 4, 4), "circular pad",
    ),
    "pooled twice": (lambda: GroupPool2d(), (2, 8, 8), "group axis only once"),
    "a layer that mixes": (lambda: OnImages(nn.Conv2d(8, 3, 1)), (1, 2, 4, 6, 6), "keeps 8 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_refused(name: str) -> None:
    make, shape, message = INPUTS[name]
    with pytest.raises(ArgumentError, match=message):
        make()(torch.randn(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupConv2d(1, 1, 3, group="C8", omega_prime={"rotation": 4.0}), "fold back"),
        (lambda: GroupConv2d(1, 1, 3, group="C8", omega_prime={"rotation": -5.0}), "fold back"),
        (lambda: LiftingConv2d(1, 1, 3, group="C4", omega_prime={"rotation": 9.0}), "alias"),
        (lambda: PointwiseGroupConv2d(1, 1, group="C4", omega_prime={"rotation": 4}, harmonics=True), "strict"),
        (lambda: GroupConv2d(1, 1, 4, padding="same"), "not kept"),
        (lambda: GroupConv2d(1, 1, (3, 5)), "not kept"),
        (lambda: LiftingConv2d(1, 1, 3, stride=(1, 2)), "not kept"),
    ],
)
def test_warnings_of_the_constructors(make: Callable[[], Any], message: str) -> None:
    with pytest.warns(EquidialWarning, match=message) as caught:
        layer = make()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = [1, 1] + ([] if layer.coordinates.lifts else [layer.samples.size])
        layer(torch.randn(*shape, 9, 9))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupConv2d(1, 1, 3, group="C8", omega_prime={"rotation": 3.9}),
        lambda: GroupConv2d(1, 1, 3, group="C8", omega_prime={"rotation": 5.0}, learn_omega_prime=True),
        lambda: GroupConv2d(1, 1, 3, group=C(1), omega_prime={"rotation": 5.0}),
        lambda: GroupConv2d(1, 1, 5, padding="same", group=D(4)),
        lambda: GroupConv2d(1, 1, 4, padding=1, stride=2, group=GroupSamples("C4")),
    ],
)
def test_what_needs_no_warning(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


class Polynomials(KernelFeatures):
    """A feature map of one's own: monomials of all coordinates."""

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        z = a.sum(-1, keepdim=True) + (0 if b is None else b.sum(-1, keepdim=True))
        return z ** torch.arange(self.features)


@pytest.mark.parametrize("kernel", [Polynomials, lambda a, b, m: SirenFeatures(a, b, m, layers=3, constant=True)])
def test_a_feature_map_of_ones_own(kernel: Any) -> None:
    layer = SoftConv2d(2, 3, 3, kernel=kernel, features=4, omega_prime=1.0)
    y = layer(torch.randn(2, 2, 6, 6))
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert layer.weight.shape[-1] == layer.features.features


@pytest.mark.parametrize("make", [SirenFeatures, FourierFeatures])
@pytest.mark.parametrize(("stationary", "domain"), [(2, 1), (0, 2), (3, 0)])
def test_features_ignore_coordinates_of_0_bit_for_bit(make: Any, stationary: int, domain: int) -> None:
    phi = make(stationary, domain, 6, constant=True)
    a = torch.randn(5, stationary)
    assert torch.equal(phi(a, torch.zeros(5, domain) if domain else None), phi(a).expand(5, -1))
    assert torch.equal(phi(a)[..., -1], torch.ones_like(phi(a)[..., -1]))
    assert f"stationary={stationary}" in repr(phi)


def test_printed_layers_tell_their_arguments() -> None:
    text = repr(GroupConv2d(2, 4, 3, padding=1, dilation=2, groups=2, bias=False, group="D4", padding_mode="circular",
                            omega_prime={"rotation": 0.5, "x": 1.0}, learn_omega_prime={"x"}))  # fmt: skip
    for part in ("padding=(1, 1)", "dilation=(2, 2)", "groups=2", "bias=False", "circular", "D4", "x=1 (learned)",
                 "rotation=0.5", "domain_size=each image"):  # fmt: skip
        assert part in text
    assert "random_offset=True" in repr(GroupSamples("C4", True))
    assert repr(GroupPool2d("max")) == "GroupPool2d(max)"
