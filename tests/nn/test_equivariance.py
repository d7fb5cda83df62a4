"""Strict layers commute with turns and mirrors of images; harmonics keep a subgroup; the defect follows omega'."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from equidial.errors import ArgumentError
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
    group_defect,
    translation_defect,
)
from tests.nn.reference import compose, elements, invert


def turned(x: torch.Tensor, g: tuple[int, int], n: int) -> torch.Tensor:
    """The image under ``R(2 pi k / n) M^r``, a quarter turn or a mirror, exactly."""
    quarters, rest = divmod(4 * g[0], n)
    assert rest == 0
    return torch.rot90(x.flip(-1) if g[1] else x, quarters, (-2, -1))


def moved(y: torch.Tensor, g: tuple[int, int], n: int, mirrors: bool, image: bool = True) -> torch.Tensor:
    """``(g f)[u, p] = f[g^-1 u, g^-1 p]`` on ``[.., U, height, width]``."""
    order = elements(n, mirrors)
    source = [order.index(compose(invert(g, n), u, n)) for u in order]
    y = y[..., source, :, :]
    return turned(y, g, n) if image else y


def symmetries(n: int, mirrors: bool) -> list[tuple[int, int]]:
    """The quarter turns and mirrors of the grid in C(n) or D(n)."""
    return [g for g in elements(n, mirrors) if 4 * g[0] % n == 0]


WINDOWS: dict[str, tuple[dict[str, Any], int]] = {
    "zeros": ({"kernel_size": 5, "padding": 2}, 8),
    "circular": ({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, 8),
    "replicate": ({"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}, 7),
    "reflect, dilated": ({"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"}, 8),
    "stride 2": ({"kernel_size": 3, "padding": 1, "stride": 2}, 9),
    "stride 2, even window": ({"kernel_size": 4, "padding": 1, "stride": 2}, 8),
    "whole window": ({"kernel_size": 3, "support": "square"}, 6),
    "groups": ({"kernel_size": 3, "padding": "same", "groups": 2}, 8),
}


@pytest.mark.parametrize("kernel", ["siren", "fourier"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["C4", "C8", "D4", "D8"])
def test_strict_layers_commute_with_turns_and_mirrors_of_images(name: str, window: str, kernel: str) -> None:
    options, size = WINDOWS[window]
    n, mirrors = int(name[1:]), name[0] == "D"
    lift = LiftingConv2d(2, 4, group=name, kernel=kernel, features=8, **options)
    conv = GroupConv2d(4, 4, group=name, kernel=kernel, features=8, **options)
    point = PointwiseGroupConv2d(4, 2, group=name, kernel=kernel, features=8)
    x, f = torch.randn(2, 2, size, size), torch.randn(2, 4, n * (1 + mirrors), size, size)
    with torch.no_grad():
        lifted, convolved = lift(x), conv(f)
        for g in symmetries(n, mirrors):
            assert (lift(turned(x, g, n)) - moved(lifted, g, n, mirrors)).abs().max() < 1e-5
            assert (conv(moved(f, g, n, mirrors)) - moved(convolved, g, n, mirrors)).abs().max() < 1e-5
            together = point(conv(moved(f, g, n, mirrors))) - moved(point(convolved), g, n, mirrors)
            assert together.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["C8", "D8", "C5"])
def test_every_sampled_rotation_is_exact_on_the_group_axis_alone(name: str) -> None:
    """Point-wise layers see no grid, and so commute with turns by 45 degrees as with all others."""
    n, mirrors = int(name[1:]), name[0] == "D"
    layer = PointwiseGroupConv2d(3, 4, group=name).double()
    f = torch.randn(2, 3, n * (1 + mirrors), 1, 1, dtype=torch.float64).expand(-1, -1, -1, 4, 4)
    y = layer(f)
    for g in elements(n, mirrors):
        assert torch.allclose(layer(moved(f, g, n, mirrors, False)), moved(y, g, n, mirrors, False), atol=1e-13)


@pytest.mark.parametrize("cls", [LiftingConv2d, GroupConv2d])
def test_the_kernel_itself_turns_by_45_degrees(cls: Any) -> None:
    """``k(u^-1 t)`` at ``u`` and at ``g u``: by quarter turns taps move onto taps, by 45 degrees between them."""
    layer = cls(1, 1, 3, group="C8", omega={"translation": 2.0}).double()
    kernel = layer.kernel().detach()  # [1, U, 1, V, 3, 3]
    for k in (2, 4, 6):
        expected = torch.rot90(kernel, k // 2, (-2, -1)).roll(k, 1)
        if cls is GroupConv2d:
            expected = expected.roll(k, 3)
        assert torch.allclose(kernel, expected, atol=1e-13)
    # what is sampled between the taps is the same function: the defect of the kernel is exactly 0
    found = group_defect(layer)
    assert found.elements
    assert len(found.values) == 7
    assert set(found.values) == {0.0}
    assert found.bound == 0.0


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (lambda: GroupPool2d("mean"), 0),
        (lambda: GroupPool2d("max"), 0),
        (lambda: GroupBatchNorm2d(3), 1),
        (lambda: GroupInstanceNorm2d(3, affine=True), 1),
        (lambda: GroupLayerNorm2d(3), 1),
        (lambda: GroupDropout2d(0.5), 1),
        (lambda: OnImages(nn.MaxPool2d(2)), 1),
        (lambda: OnImages(nn.AvgPool2d(2)), 1),
    ],
)
def test_layers_on_the_group_axis_commute(layer: Any, sizes: int) -> None:
    f = layer().double().train()
    x = torch.randn(4, 3, 8, 6, 6, dtype=torch.float64)
    for g in symmetries(4, True):
        torch.manual_seed(1)
        y = f(x)
        torch.manual_seed(1)
        other = f(moved(x, g, 4, True))
        expected = moved(y, g, 4, True) if sizes else turned(y, g, 4)
        assert torch.allclose(other, expected, atol=1e-12)


@pytest.mark.parametrize("kernel", ["siren", "fourier"])
@pytest.mark.parametrize(("n", "k"), [(8, k) for k in range(9)] + [(6, 4), (6, 3), (12, 8), (5, 2)])
def test_a_harmonic_keeps_its_subgroup_exact_and_breaks_the_rest(n: int, k: int, kernel: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = GroupConv2d(
            2, 2, 3, group=f"C{n}", omega_prime={"rotation": k}, harmonics=True, kernel=kernel, features=8
        )
    kept = math.gcd(k, n)
    assert layer.coordinates.kept_subgroup() == kept
    found = group_defect(layer)
    for step, value in enumerate(found.values, start=1):
        if step * k % n == 0:
            assert value == 0.0
        else:
            assert value > 1e-3
    assert sum(value == 0 for value in found.values) == kept - 1
    if n % 4 == 0 and kept % 4 == 0:  # and so on images: quarter turns are in the subgroup
        x = torch.randn(1, 2, n, 6, 6)
        y = layer(x)
        assert (layer(moved(x, (n // 4, 0), n, False)) - moved(y, (n // 4, 0), n, False)).abs().max() < 1e-5


def test_the_defect_of_one_step_rises_to_the_fold_and_falls_again() -> None:
    """``k`` and ``n - k`` are one harmonic on ``n`` samples: no monotone softness."""
    for n, seed in itertools.product((8, 7), range(3)):
        torch.manual_seed(seed)
        layer = PointwiseGroupConv2d(3, 3, group=f"C{n}", omega_prime={"rotation": 0}, harmonics=True)
        found = []
        for k in range(n + 1):
            layer.omega_prime.set("rotation", k)
            found.append(group_defect(layer).within(2 * math.pi / n).supremum)
        assert found[0] == found[n] == 0.0
        assert all(b > a for a, b in itertools.pairwise(found[: n // 2 + 1])), found
        for k in range(1, n):
            assert found[k] == pytest.approx(found[n - k], rel=1e-9)


def test_the_defect_rises_from_0_with_a_continuous_frequency() -> None:
    layer = GroupConv2d(2, 2, 3, group="C8", omega_prime={"rotation": 0.0})
    found = []
    for k in (0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0):
        layer.omega_prime.set("rotation", k)
        found.append(group_defect(layer).supremum)
    assert found[0] == 0.0
    assert all(b > a for a, b in itertools.pairwise(found))
    assert found[2] / found[1] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("harmonics", [False, True])
def test_the_cut_lies_at_pi_and_harmonics_have_none(harmonics: bool) -> None:
    """From one sample to the next the continuous coordinate moves by one step, at pi by ``N - 1`` steps back."""
    n = 16
    layer = PointwiseGroupConv2d(2, 2, group=f"C{n}", omega_prime={"rotation": 1}, harmonics=harmonics).double()
    if not harmonics:
        layer.omega_prime.set("rotation", 0.01)
    angles = layer.coordinates.absolute(layer.weight)
    assert angles is not None
    steps = (angles.roll(-1, 0) - angles).norm(dim=-1)
    if harmonics:
        assert torch.allclose(steps, steps[:1].expand(n), atol=1e-12)
    else:
        expected = torch.full((n,), 0.01 * 2 * math.pi / n, dtype=torch.float64)
        expected[n // 2] *= n - 1  # from pi to the next sample
        assert torch.allclose(steps, expected, atol=1e-12)


def dense(layer: Any, size: int) -> torch.Tensor:
    """The matrix of a linear layer, from its own outputs on unit images."""
    shape = [layer.in_channels] + ([] if layer.coordinates.lifts else [layer.samples.size]) + [size, size]
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return layer(units)


@pytest.mark.parametrize("relaxed", [{"rotation": 1.0}, {"rotation": 0.5, "translation": 1.0}, {"flip": 1.0}])
@pytest.mark.parametrize("cls", [LiftingConv2d, GroupConv2d])
def test_the_defect_is_that_of_the_layer_on_images(cls: Any, relaxed: dict[str, float]) -> None:
    """Circular padding leaves out nothing: ``||K rho(g) - rho(g) K|| / ||K||`` from the matrix of the layer."""
    layer = cls(1, 1, 3, padding=1, padding_mode="circular", group="D4", omega_prime=relaxed, bias=False).double()
    size = 4
    columns = dense(layer, size)
    found = group_defect(layer, (size, size))
    shape = columns.shape[1:]
    for g, value in zip(symmetries(4, True)[1:], found.values, strict=True):
        units = torch.eye(len(columns), dtype=torch.float64).view(
            len(columns), 1, *((8,) if cls is GroupConv2d else ()), size, size
        )
        move = turned if cls is LiftingConv2d else lambda x, g, n: moved(x, g, n, True)
        with torch.no_grad():
            difference = layer(move(units, g, 4)) - moved(columns, g, 4, True)
        assert difference.shape[1:] == shape
        assert float(difference.norm() / columns.norm()) == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cls", [SoftConv1d, SoftConv2d])
def test_shifts_are_kept_exactly_where_omega_prime_is_0_and_broken_elsewhere(cls: Any) -> None:
    size = (8,) * len(cls.axes)
    assert translation_defect(cls(1, 1, 3, omega_prime=0.0), size).values == ()
    soft = cls(1, 1, 3, omega_prime=1.0)
    found = translation_defect(soft, size)
    assert all(value > 1e-3 for value in found.values)
    by_axis = found.values[:4]
    assert list(by_axis) == sorted(by_axis)  # the further, the more, as long as no phase comes round
    if cls is SoftConv2d:
        half = SoftConv2d(1, 1, 3, omega_prime={"x": 1.0})
        rows = translation_defect(half, size).values
        assert rows[:4] == (0.0,) * 4
        assert min(rows[4:]) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_defect(SoftConv2d(1, 1, 3)), "group axis"),
        (lambda: group_defect(GroupConv2d(1, 1, 3, omega_prime={"x": 1.0})), "size="),
        (lambda: translation_defect(SoftConv2d(1, 1, 3), (4,)), "2 axes"),
        (lambda: translation_defect(SoftConv2d(1, 1, 3), (4, 0)), "2 axes"),
    ],
)
def test_questions_without_an_answer_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
