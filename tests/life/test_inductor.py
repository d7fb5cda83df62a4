"""The one test that compiles to machine code: everything else about compiling is asked of ``aot_eager``."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

import equidial as ed
from tests.life.networks import gap


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_default_backend_follows_the_dial() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        assert "CI" not in os.environ, "CI has a C++ compiler"
        pytest.skip("no C++ compiler, which torch.compile's default backend needs")
    model = ed.soften(nn.Sequential(nn.Conv2d(2, 3, 3)), ed.SoftEquivarianceConfig(group="C4", softness=0.3))
    x, original = torch.randn(2, 2, 5, 5), model[0].parametrizations.weight.original  # type: ignore[union-attr]
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True)
    for softness in (0.3, 0.0, 1.0):
        ed.set_softness(model, softness)
        y, expected = compiled(x), model(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), original)  # type: ignore[arg-type]
        (wanted,) = torch.autograd.grad(expected.square().sum(), original)  # type: ignore[arg-type]
        assert gap(y, expected) < 1e-5
        assert gap(gradient, wanted) < 1e-5
    torch._dynamo.reset()
