"""The one test that compiles to machine code: everything else about compiling is asked of ``aot_eager``."""

from __future__ import annotations

import os

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

import equidial as ed
from tests.life.networks import build, evaluate, gap, loss_of


def test_the_default_backend_follows_the_dial() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        assert "CI" not in os.environ, "CI has a C++ compiler"
        pytest.skip("no C++ compiler, which torch.compile's default backend needs")
    net = build("vector MLP")
    model = net.softened()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for softness in (0.3, 0.0, 1.0):
        ed.set_softness(model, softness)
        assert gap(evaluate(compiled, net.x), evaluate(model, net.x)) < 1e-5  # type: ignore[arg-type]
    loss_of(compiled, net.x).backward()  # type: ignore[arg-type]
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    loss_of(model, net.x).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert gap(found, expected) < 1e-5
    torch._dynamo.reset()
