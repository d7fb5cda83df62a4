"""Norm non-linearities: they commute with every orthogonal representation and never stretch."""

from __future__ import annotations

import pytest
import torch

from equidial.errors import EquidialError
from equidial.groups import SO, SO2, C, Lorentz, O
from equidial.nn import NORM_FUNCTIONS, NormNonlinearity
from equidial.representations import Pixels, Trivial, Vector, parse

SPACES = [
    parse("3*Vector + 2*Trivial", C(4)),
    parse("2*Vector + Tensor(2) + Trivial", O(5)),
    2 * (Vector(SO(3)) + 2 * Trivial(SO(3))),
    Pixels(SO2(), (3, 3)) + Trivial(SO2()),
    Trivial(C(4)),
]


def layer(rep, function: str, bias: bool) -> NormNonlinearity:
    made = NormNonlinearity(rep, function, bias).double()
    if made.bias is not None:
        torch.nn.init.normal_(made.bias, std=0.3)
    return made


@pytest.mark.parametrize("rep", SPACES, ids=str)
@pytest.mark.parametrize("function", NORM_FUNCTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_it_commutes_and_never_stretches(rep, function: str, bias: bool) -> None:
    f = layer(rep, function, bias)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 40, rep.dim, generator=generator, dtype=torch.float64)
    for scale in (1e-8, 0.1, 1.0, 10.0):
        for g in rep.group.sample(5, generator):
            moved = f(rep.act(g, scale * x))
            assert torch.allclose(moved, rep.act(g, f(scale * x)), atol=1e-12 * max(scale, 1))
        near = scale * (x + 0.01 * y)
        for other in (scale * y, near):
            apart, before = (f(scale * x) - f(other)).norm(dim=-1), (scale * x - other).norm(dim=-1)
            assert bool((apart <= f.lipschitz * (1 + 1e-9) * before + 1e-14).all())


def test_a_copy_is_a_vector_of_its_own() -> None:
    f = NormNonlinearity(2 * Vector(C(4)), "tanh")
    x = torch.tensor([3.0, 4.0, 0.0, 0.5], dtype=torch.float64)
    wanted = torch.tensor([0.6, 0.8], dtype=torch.float64) * torch.tanh(torch.tensor(5.0, dtype=torch.float64))
    assert torch.allclose(f(x)[:2], wanted)
    assert torch.allclose(f(x)[3], torch.tanh(x[3]))


def test_gradients_are_finite_at_zero() -> None:
    f = layer(2 * Vector(C(4)) + Trivial(C(4)), "tanh", True)
    x = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    f(x).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NormNonlinearity(Vector(C(4)), "gelu"),
        lambda: NormNonlinearity(Vector(Lorentz())),
        lambda: NormNonlinearity(Vector(C(4)))(torch.zeros(3)),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()
