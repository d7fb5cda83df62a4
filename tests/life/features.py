"""The rows of the compatibility matrix that one process can check.

A feature is one function of a freshly built network: it carries the feature out and asserts its law. It returns the
message where the law is that equidial refuses, else nothing; :class:`NotApplicable` says why a network has no such
feature. Tolerances are relative and for float32; laws without rounding are asked for exactly.
"""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import equidial as ed
from equidial.adapters._parametrization import constrained
from tests.adapters.models import same_tensors, snapshot
from tests.life.networks import SOFTNESS, Network, evaluate, gap, loss_of, refused, run

POSITIONS = (0.0, 0.7, 1.0)
ROUNDING = 1e-4


def after_a_call_where_untouched_needs_one(law: Callable[[Network], None]) -> Callable[[Network], None]:
    """The law on the network as built; called once before, where the untouched network does not compile either without.

    transformers hooks some models (SegFormer) at their first call, under a lock, which no graph can hold.
    """

    @functools.wraps(law)
    def either(net: Network) -> None:
        try:
            law(copy.deepcopy(net))
        except Unsupported:
            assert not _compiles(copy.deepcopy(net.model), net.x), "the untouched network compiles"
            evaluate(net.model, net.x)
            assert _compiles(net.model, net.x), "the untouched network compiles after a call"
            law(net)

    return either


def _compiles(model: nn.Module, x: torch.Tensor) -> bool:
    torch._dynamo.reset()
    whole: Any = torch.compile(model, backend="eager", fullgraph=True)
    try:
        evaluate(whole, x)
    except Unsupported:
        return False
    finally:
        torch._dynamo.reset()
    return True


@after_a_call_where_untouched_needs_one
def compiled(net: Network) -> None:
    """One whole graph, outputs and gradients those of the eager model; the dial moves and nothing compiles again."""
    # In float64: a compiler orders sums anew, and the deepest networks of the table carry a rounding of their weights
    # to the output four thousand times as large, which in float32 hides what the law asks.
    model, x = net.softened().double(), net.x.double()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    count = CompileCounterWithBackend("aot_eager")
    fast: Any = torch.compile(model, backend=count, fullgraph=True)
    outputs = []
    for softness in (SOFTNESS, *POSITIONS):
        ed.set_softness(fast, softness)
        ed.set_softness(twin, softness)
        loss_of(fast, x).backward()
        loss_of(twin, x).backward()
        outputs.append(run(fast, x))
        assert gap(outputs[-1], run(twin, x)) < 1e-9
    assert gap(_gradients(model), _gradients(twin)) < 1e-9
    assert count.frame_count == 1
    assert all(gap(a, b) > 1e-3 for a, b in pairwise(outputs)), "the dial was followed"
    torch._dynamo.reset()


def softened_after_compiling(net: Network) -> str:
    """Refused, whichever part is compiled; the model stays as it is."""
    before = snapshot(net.model)
    wrapper: Any = torch.compile(net.model, backend="eager")
    net.model.compile(backend="eager")
    for model in (nn.Sequential(wrapper), net.model, wrapper):
        with refused("before torch.compile", "then compile it") as said:
            ed.soften(model, net.config)
    assert same_tensors(snapshot(net.model), before)
    return said[0]


def checkpointed(net: Network) -> None:
    """Gradient checkpointing, of the whole network and the library's own, recomputes and gives the same gradients."""
    model = net.softened()
    _freeze_norms(model.train())
    expected = copy.deepcopy(model)
    loss_of(expected, net.x).backward()
    own = getattr(model, "supports_gradient_checkpointing", False)
    for library in (False, True) if own else (False,):
        twin = copy.deepcopy(model)
        if library:
            enable = getattr(twin, "activation_checkpointing_enable", None) or twin.gradient_checkpointing_enable
            enable()
        calls: dict[str, int] = {}
        for name, module in twin.named_modules():
            module.register_forward_hook(lambda *_, name=name, n=calls: n.__setitem__(name, n.get(name, 0) + 1))
        loss = loss_of(twin, net.x) if library else checkpoint(loss_of, twin, net.x, use_reentrant=False)
        before = dict(calls)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        again = [name for name, count in before.items() if calls[name] > count]
        assert again, "nothing was computed twice"
        assert library or any("parametrizations" in name for name in again), "the filters among it"
        assert gap(_gradients(twin), _gradients(expected)) < ROUNDING


def autocast_bf16(net: Network) -> None:
    """Under autocast to bfloat16 the filter works in its own precision, and the network as the folded one does."""
    _autocast(net, torch.bfloat16)


def autocast_fp16(net: Network) -> None:
    """The same in float16."""
    _autocast(net, torch.float16)


def _autocast(net: Network, dtype: torch.dtype) -> None:
    model = net.softened()
    plain = ed.fold(copy.deepcopy(model))
    weights = [getattr(module, key) for module, key, _ in constrained(model)]
    with torch.autocast("cpu", dtype=dtype):
        cast = [getattr(module, key) for module, key, _ in constrained(model)]
        loss = loss_of(model, net.x)
        y, z = evaluate(model, net.x), evaluate(plain, net.x)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(weights, cast, strict=True))
    assert gap(y, evaluate(model, net.x)) > 1e-6, "autocast did something"
    # both round each layer once, from weights that differ in their last bit
    assert gap(y, z) < 16 * torch.finfo(dtype).eps
    loss.backward()
    for module, key, _ in constrained(model):
        grad = module.parametrizations[key].original.grad  # type: ignore[union-attr, index]
        assert grad is not None
        assert grad.dtype == torch.float32
        assert bool(torch.isfinite(grad).all())


def deep_copied(net: Network) -> None:
    """Copies turn, train and fold apart from one another, bit for bit."""
    model = net.softened()
    y = evaluate(model, net.x)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    ed.set_softness(first, 1.0)
    assert gap(evaluate(first, net.x), y) > 1e-3
    assert torch.equal(evaluate(model, net.x), y)
    ed.fold(second)
    assert gap(evaluate(second, net.x), y) < ROUNDING
    assert torch.equal(evaluate(model, net.x), y)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert gap(evaluate(second, net.x), y) < ROUNDING
    ed.unload(model)
    ed.unload(first)
    assert type(model) is type(first) is type(second)


def averaged(net: Network) -> None:
    """An exponential moving average keeps a dial and weights of its own, the average of what was trained."""
    model = net.softened()
    start = copy.deepcopy(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    average.update_parameters(model)
    for a, b, c in zip(average.module.parameters(), model.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, (b + c) / 2, atol=1e-6)
    y, z = evaluate(model, net.x), evaluate(average, net.x)
    assert gap(y, z) > 1e-3
    ed.set_softness(average, 1.0)
    assert torch.equal(evaluate(model, net.x), y)
    ed.set_softness(average, SOFTNESS)
    ed.fold(average.module)
    assert gap(evaluate(average, net.x), z) < ROUNDING
    ed.set_softness(model, 0.0)


def state_dict(net: Network) -> None:
    """A state dict carries weights and dial through ``torch.save`` into another softened model, bit for bit."""
    model, twin = net.softened(), copy.deepcopy(net.model)
    ed.set_softness(model, 0.6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    twin.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(evaluate(twin, net.x), evaluate(model, net.x))
    assert {row.dial for row in ed.status(twin)} == {"softness=0.6"}


def saved_and_loaded(net: Network) -> None:
    """``equidial.save`` and ``equidial.load`` onto the base model give the same outputs, bit for bit."""
    base = copy.deepcopy(net.model)
    model = net.softened()
    ed.set_softness(model, 0.6)
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    with tempfile.TemporaryDirectory() as folder:
        ed.save(model, Path(folder) / "soft")
        again = ed.load(base, Path(folder) / "soft")
    assert torch.equal(evaluate(again, net.x), evaluate(model, net.x))


def folded(net: Network) -> None:
    """``fold`` leaves the class, the keys in their order and the Parameter objects of the plain model."""
    kinds, keys = [type(m) for m in net.model.modules()], list(net.model.state_dict())
    parameters = list(net.model.parameters())
    model = net.softened()
    y = evaluate(model, net.x)
    model = ed.fold(model)
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert gap(evaluate(model, net.x), y) < ROUNDING


@after_a_call_where_untouched_needs_one
def folded_when_compiled(net: Network) -> None:
    """Folding a compiled model compiles it anew, with the right outputs."""
    model = net.softened()
    torch._dynamo.reset()
    count = CompileCounterWithBackend("eager")
    fast: Any = torch.compile(model, backend=count, fullgraph=True)
    soft = evaluate(fast, net.x)
    ed.fold(fast)
    assert gap(evaluate(fast, net.x), soft) < ROUNDING
    assert count.frame_count == 2
    assert not list(constrained(model))
    torch._dynamo.reset()


def _freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _gradients(model: nn.Module) -> torch.Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found)
