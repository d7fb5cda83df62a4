"""Kernels that vary in space: the product in bands against kernels that are built, its gradients, what it may cost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from equidial.nn import GroupConv2d, LiftingConv2d, PointwiseGroupConv2d, SoftConv1d, SoftConv2d, _contraction
from equidial.nn._contraction import Geometry, position_convolution

MODES = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


def dense(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Every kernel built, and applied to the unfolded input by one einsum."""
    window, groups = layer.windows, layer.groups
    batched = x.unsqueeze(2) if layer.coordinates.lifts else x
    line = len(window.kernel) == 1
    amounts = [n for pair in zip(reversed(window.before), reversed(window.after), strict=True) for n in pair]
    lead = batched.shape[:3]
    padded = functional.pad(batched.flatten(0, 1), amounts, mode=MODES[window.mode]).unflatten(0, lead[:2])
    padded = padded[..., None, :] if line else padded
    (kh, kw), (sh, sw), (dh, dw) = (
        (1, *v) if line else v for v in (window.kernel, window.stride, window.dilation)
    )  # fmt: skip
    columns = functional.unfold(padded.flatten(1, 2), (kh, kw), (dh, dw), 0, (sh, sw))
    columns = columns.view(len(x), groups, layer.in_channels // groups, lead[2], kh * kw, -1)
    sizes = tuple(
        (n + b + a - d * (k - 1) - 1) // s + 1
        for n, b, a, d, k, s in zip(
            x.shape[-len(window.kernel) :], window.before, window.after, window.dilation, window.kernel, window.stride,
            strict=True,
        )
    )  # fmt: skip
    kernels = layer.kernel(layer.coordinates.places(sizes)).flatten(5)  # [P, out, U, in / g, V, T]
    kernels = kernels.unflatten(1, (groups, -1))
    y = torch.einsum("bgcvtp,pgoucvt->bgoup", columns, kernels).flatten(1, 2).unflatten(-1, sizes)
    y = y + layer.bias.view(-1, *(1,) * (y.ndim - 2))
    return y.squeeze(2) if layer.samples is None else y


def drawn(seed: int) -> tuple[Any, torch.Tensor]:
    """A layer relaxed in translation with random windows, and an input for it."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    cls: Any = choose.choice([SoftConv1d, SoftConv2d, SoftConv2d, LiftingConv2d, GroupConv2d])
    axes = len(cls.axes) if hasattr(cls, "axes") else 2

    def pick(most: int) -> tuple[int, ...]:
        return tuple(choose.randint(1, most) for _ in range(axes))

    kernel, dilation, groups = pick(4), pick(3), choose.choice([1, 2])
    options: dict[str, Any] = {
        "stride": pick(3),
        "dilation": dilation,
        "groups": groups,
        "padding": tuple(choose.randint(0, 2) for _ in range(axes)),
        "padding_mode": choose.choice(list(MODES)),
        "kernel": choose.choice(["siren", "fourier"]),
        "features": 4,
    }
    if axes == 2 and cls is not SoftConv2d:
        options |= {"group": choose.choice(["C3", "D2"]), "omega_prime": {"translation": 1.0, "rotation": 0.5}}
        options |= {"support": "square" if kernel == (2, 2) else choose.choice(["disk", "square"])}
    layer: Any = cls(2 * groups, groups * choose.randint(1, 2), kernel, **options).double()
    nn.init.normal_(layer.bias)
    lead = [choose.randint(1, 3), 2 * groups] + ([] if layer.coordinates.lifts else [layer.samples.size])
    size = [d * (k - 1) + 1 + choose.randint(2, 5) for k, d in zip(kernel, dilation, strict=True)]
    return layer, torch.randn(*lead, *size, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore::equidial.errors.EquidialWarning")
@pytest.mark.parametrize("band", [1, 2000, 1 << 22])
@pytest.mark.parametrize("seed", range(16))
def test_it_equals_the_kernels_applied_one_by_one(seed: int, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_contraction._BAND_BYTES, "cpu", band)
    layer, x = drawn(seed)
    x.requires_grad_()
    tensors = [x, *layer.parameters()]
    found, expected = layer(x), dense(layer, x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max() + 1))
    direction = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, tensors, direction, allow_unused=True),
        torch.autograd.grad(expected, tensors, direction, allow_unused=True),
        strict=True,
    )
    for mine, other in pairs:
        if other is None:
            assert mine is None or not mine.any()
        else:
            assert mine is not None
            assert torch.allclose(mine, other, rtol=0, atol=1e-11 * float(other.abs().max() + 1))


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradients_of_the_product_alone(wanted: tuple[bool, ...]) -> None:
    geometry = Geometry((2, 3), (2, 1), (1, 2))
    h, w = geometry.outputs((5, 7))
    shapes = ((2, 4, 2, 5, 7), (h * w, 12, 3), (2, 2, 3))
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=r) for s, r in zip(shapes, wanted, strict=True)]

    def product(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return position_convolution(x, phi, weight, geometry, 2)

    assert torch.autograd.gradcheck(product, inputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SoftConv2d(1, 2, 2, omega_prime=0.7, learn_omega_prime=True, learn_omega=True, features=3),
        lambda: SoftConv1d(2, 2, 3, padding=1, omega_prime=0.0, learn_omega_prime=True, kernel="fourier", features=3),
        lambda: GroupConv2d(1, 1, 2, group="C3", omega_prime={"translation": 0.5, "rotation": 0.4},
                            learn_omega_prime=True, features=3, support="square"),
        lambda: GroupConv2d(1, 1, 3, group="D2", omega_prime={"rotation": 0.4, "flip": 0.3}, learn_omega_prime=True,
                            learn_omega=True, features=3),
        lambda: PointwiseGroupConv2d(1, 1, group="C6", omega_prime={"rotation": 2}, harmonics=True, features=3),
    ],
)  # fmt: skip
def test_gradients_of_whole_layers(make: Callable[[], Any]) -> None:
    layer = make().double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    shape = [2, layer.in_channels] + ([] if layer.coordinates.lifts else [layer.samples.size])
    x = torch.randn(*shape, *(3,) * len(layer.windows.kernel), dtype=torch.float64, requires_grad=True)

    def forward(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *(p.detach().requires_grad_() for p in parameters)))


def test_no_kernel_and_no_unfolded_input_is_ever_built() -> None:
    """The largest tensor of forward and backward stays far below both."""
    layer = SoftConv2d(8, 8, 5, padding=2, features=4)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    x = torch.randn(8, 8, 16, 16, requires_grad=True)
    with Largest():
        layer(x).sum().backward()
    kernels, unfolded = 4 * 16**2 * 25 * 8 * 8, 4 * 16**2 * 25 * 8 * len(x)
    assert largest < 0.3 * min(kernels, unfolded)


@pytest.mark.parametrize("shape", [(0, 2, 6, 6), (1, 2, 3, 3), (2, 6, 6)])
def test_empty_smallest_and_unbatched_inputs(shape: tuple[int, ...]) -> None:
    layer = SoftConv2d(2, 3, 3)
    y = layer(torch.randn(shape, requires_grad=True))
    assert y.shape == (*shape[:-3], 3, shape[-2] - 2, shape[-1] - 2)
    y.sum().backward()
