"""Every cause, planted in a network that is otherwise exact, is found where it is, by its name, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from tests.adapters.diagnosis.networks import SIZE, Do, Flat, Plain, Table, Tokens, Windows, symmetric


def same_pad(x: torch.Tensor) -> torch.Tensor:
    return functional.pad(x, (0, 1, 0, 1))


def strided(size: int = 3, stride: int = 2, padding: int = 1) -> nn.Module:
    return nn.Conv2d(6, 6, size, stride=stride, padding=padding)


# name of the case: (network, side of the image, {(cause, module)}, what has to change)
PLANTED: dict[str, tuple[Any, int, set[tuple[str, str]], str]] = {
    "nothing": (lambda: Plain(nn.Identity()), SIZE, set(), ""),
    "even kernel": (lambda: Plain(nn.Conv2d(6, 6, 4, padding="same")), SIZE, {("even kernel", "plant")}, "padding"),
    "reflect pad": (
        lambda: Plain(nn.Sequential(nn.ReflectionPad2d((0, 2, 0, 2)), nn.Conv2d(6, 6, 3))),
        SIZE, {("asymmetric padding", "plant.1")}, "padding",
    ),
    "anisotropic resize": (
        lambda: Plain(Do(lambda x: functional.interpolate(x, (9, SIZE), mode="bilinear"))),
        SIZE, {("anisotropic resize", "plant")}, "code",
    ),
    "table left alone": (lambda: Plain(Table()), SIZE, {("position table", "plant")}, "weights"),
    "fixed code": (
        lambda: Plain(Do(lambda x: x + torch.linspace(0, 1, SIZE))), SIZE, {("fixed position code", "plant")}, "code",
    ),
    "tensorflow same": (
        lambda: Plain(nn.Sequential(Do(same_pad), strided(padding=0)), before=strided(5, stride=1, padding=2)),
        SIZE + 1, {("asymmetric padding", "plant.1")}, "padding",
    ),
    "tensorflow same at an odd size": (
        lambda: Plain(nn.Sequential(Do(same_pad), strided(padding=0))), SIZE, set(), "",
    ),
    "stride": (lambda: Plain(strided()), SIZE + 1, {("stride", "plant")}, "size"),
    "stride at an odd size": (lambda: Plain(strided()), SIZE, set(), ""),
    "ceil mode": (lambda: Plain(nn.MaxPool2d(2, ceil_mode=True)), SIZE, {("ceil mode", "plant")}, "code"),
    "subsampling": (lambda: Plain(Do(lambda x: x[:, :, ::2, ::2])), SIZE + 1, {("subsampling", "plant")}, "size"),
    "subsampling at an odd size": (lambda: Plain(Do(lambda x: x[:, :, ::2, ::2])), SIZE, set(), ""),
    "crop": (lambda: Plain(Do(lambda x: x[:, :, 1:, 1:])), SIZE, {("crop", "plant")}, "code"),
    "centred crop": (lambda: Plain(Do(lambda x: x[:, :, 1:-1, 1:-1])), SIZE, set(), ""),
    "pixel shuffle": (
        lambda: Plain(nn.Sequential(nn.Conv2d(6, 24, 1), nn.PixelShuffle(2))), SIZE,
        {("pixel shuffle", "plant.1")}, "code",
    ),
    "nearest": (
        lambda: Plain(Do(lambda x: functional.interpolate(x, (12, 12)))), SIZE, {("nearest resize", "plant")}, "code",
    ),
    "bilinear": (lambda: Plain(Do(lambda x: functional.interpolate(x, (12, 12), mode="bilinear"))), SIZE, set(), ""),
    "norm with places": (
        lambda: Plain(nn.LayerNorm([6, SIZE, SIZE])), SIZE, {("place-dependent parameter", "plant")}, "weights",
    ),
    "rectangular kernel": (
        lambda: Plain(nn.Conv2d(6, 6, (3, 5), padding=(1, 2))), SIZE, {("rectangular kernel", "plant")}, "code",
    ),
    "anisotropic window": (
        lambda: Plain(nn.AvgPool2d(3, stride=(1, 2), padding=1)), SIZE, {("anisotropic resize", "plant")}, "code",
    ),
    "flatten": (Flat, SIZE, {("flatten", "head")}, "weights"),
    "rotary": (lambda: Tokens(rotary=True), 16, {("rotary position embedding", "rope")}, "none"),
    "no rotary": (Tokens, 16, set(), ""),
    "odd window shift": (lambda: Plain(Windows(3, 1)), 18, {("window shift", "plant")}, "none"),
    "even window shift": (lambda: Plain(Windows(4, 2)), 16, set(), ""),
    "windows without shift": (lambda: Plain(Windows(3, 0)), 18, set(), ""),
    "reflect pad on both sides": (
        lambda: Plain(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")), SIZE, set(), "",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("group", ["C4", "D4"])
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_cause_is_found_and_nothing_else(case: str, group: str) -> None:
    build, size, expected, mend = PLANTED[case]
    model = symmetric(build(), exclude_modules=["plant"] if case == "rectangular kernel" else None)
    x = torch.randn(1, 3, size, size)
    found = ed.diagnose(model, x, group=group)
    assert {(c.cause, c.module) for c in found} == expected, str(found)
    assert all(c.mend == mend for c in found)
    assert all(c.error > 1e-3 for c in found)
    (output,) = found.outputs
    assert output.kind == "invariant"
    # what diagnosis says of the output is what the model does on the moved image
    with torch.no_grad():
        turned = (model(torch.rot90(x, 1, (2, 3))) - model(x)).norm() / model(x).norm()
    if group == "C4":
        assert output.error == pytest.approx(float(turned), rel=1e-3, abs=1e-6)
    assert (output.error < 1e-5) == (not expected)


@pytest.mark.parametrize(
    ("build", "size", "sizes"),
    [
        (lambda: Plain(strided()), 18, (17, 19)),
        (lambda: Plain(strided(), after=strided()), 18, (17, 21)),
        (lambda: Plain(nn.Sequential(Do(same_pad), strided(padding=0))), 18, (17, 19)),
        (lambda: Plain(Do(lambda x: x[:, :, ::4, ::4])), 16, (13, 17)),
    ],
)
def test_the_sizes_it_names_are_symmetric(build, size: int, sizes: tuple[int, ...]) -> None:
    model = symmetric(build())
    found = ed.diagnose(model, torch.randn(1, 3, size, size))
    assert found.sizes == sizes
    assert all(f"{sizes[0]}x{sizes[0]}" in c.remedy for c in found)
    for side in sizes:
        assert not ed.diagnose(model, torch.randn(1, 3, side, side)).causes


def test_two_strides_that_no_size_satisfies_are_told_with_their_arithmetic() -> None:
    """As SegFormer: one window needs a grid divisible by its stride, another on the same grid an odd one."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys = nn.Conv2d(3, 3, 2, stride=2)
            self.merge = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.keys(x).mean((2, 3)) + self.merge(x).mean((2, 3))

    found = ed.diagnose(symmetric(Both()), torch.randn(1, 3, 16, 16))
    assert found.sizes == ()
    (cause,) = found.causes
    assert cause.module == "merge"
    assert "merge needs a grid n = 1 (mod 2) and keys n = 0 (mod 2) of the same grid, here 16" in cause.remedy


def test_kernels_and_tables_are_told_apart_from_windows() -> None:
    model = symmetric(Plain(strided()))
    with torch.no_grad():
        model.first.weight.add_(torch.randn_like(model.first.weight))
    found = ed.diagnose(model, torch.randn(1, 3, 18, 18))
    assert {(c.cause, c.module) for c in found} == {("kernel", "first"), ("stride", "plant")}
    assert found.targets == ("first",)
    with pytest.warns(ed.EquidialWarning, match="symmetric as found"):
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    (cause,) = ed.diagnose(model, torch.randn(1, 3, 17 + 1, 17 + 1)).causes
    assert cause.cause == "stride"
    ed.set_softness(model, 0.5)
    kernels = ed.diagnose(model, torch.randn(1, 3, 17, 17)).of("kernel")
    assert [c.module for c in kernels] == ["first"]
    assert "softness=0.5" in kernels[0].remedy
