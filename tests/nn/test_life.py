"""What a layer meets in use: sizes, dtypes, copies, files, evaluation that keeps kernels, compilers, checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import equidial as ed
from equidial.errors import EquidialWarning
from equidial.nn import (
    Frequencies,
    GroupConv2d,
    GroupPool2d,
    GroupSamples,
    LiftingConv2d,
    PointwiseGroupConv2d,
    SoftConv1d,
    SoftConv2d,
)

LAYERS: dict[str, Callable[[], Any]] = {
    "strict plane": lambda: SoftConv2d(2, 3, 3, padding=1, omega_prime=0.0),
    "plane": lambda: SoftConv2d(2, 3, 3, padding=1, omega_prime=1.0),
    "learned plane": lambda: SoftConv2d(2, 3, 3, padding=1, omega_prime=0.5, learn_omega_prime=True),
    "line": lambda: SoftConv1d(2, 3, 3, padding=1, kernel="fourier"),
    "lifting": lambda: LiftingConv2d(2, 3, 3, padding=1, group="C4"),
    "rotation": lambda: GroupConv2d(
        2, 3, 3, padding=1, group="C4", omega_prime={"rotation": 1.0}, learn_omega_prime=True
    ),
    "all": lambda: GroupConv2d(2, 3, 3, padding=1, group="D4", omega_prime={"translation": 1.0, "rotation": 1.0}),
    "harmonic": lambda: GroupConv2d(2, 3, 3, padding=1, group="C8", omega_prime={"rotation": 2}, harmonics=True),
    "point-wise": lambda: PointwiseGroupConv2d(2, 3, group="C4", omega_prime={"rotation": 1.0}),
}


def input_of(layer: Any, size: int = 6, batch: int = 2) -> torch.Tensor:
    lead = [batch, layer.in_channels] + ([] if layer.coordinates.lifts else [layer.samples.size])
    return torch.randn(*lead, *(size,) * len(layer.windows.kernel), dtype=layer.weight.dtype)


def fresh(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a layer that keeps nothing says."""
    with torch.enable_grad():
        return layer(x).detach()


@pytest.mark.parametrize("name", LAYERS)
def test_any_image_size_after_construction_and_unbatched_inputs(name: str) -> None:
    layer = LAYERS[name]()
    for size in (3, 8, 5):
        x = input_of(layer, size)
        y = layer(x)
        assert y.shape[-1] == size
        assert torch.allclose(layer(x[0]), y[0], atol=1e-5)


def test_a_domain_keeps_its_pitch_and_says_once_where_it_ends() -> None:
    """Places on a larger image continue the coordinates of the domain; a window of one tap shows the kernel itself."""
    layer = SoftConv1d(1, 1, 1, omega_prime=1.0, domain_size=4, bias=False).double()

    def ones(n: int) -> torch.Tensor:
        return torch.ones(1, 1, n, dtype=torch.float64)

    small = layer(ones(4))
    with pytest.warns(EquidialWarning, match="beyond") as caught:
        large = layer(ones(8))
    assert len(caught) == 1
    assert torch.allclose(large[..., 2:6], small, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(ones(10))
        finer = SoftConv1d(1, 1, 1, omega_prime=1.0, bias=False).double()
        assert torch.allclose(finer(ones(9))[..., ::2], finer(ones(5)), atol=1e-12)  # the same domain, a finer pitch


@pytest.mark.parametrize("name", LAYERS)
def test_copies_files_and_states_give_the_same_layer(name: str) -> None:
    layer = LAYERS[name]()
    x = input_of(layer)
    y = layer(x)
    with torch.no_grad():
        layer.eval()(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._kept is None
        assert torch.equal(other.train()(x), y)
        other.weight.data.add_(1)
        assert not torch.equal(other(x), y)
    torch.manual_seed(7)
    again = LAYERS[name]()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), y)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).train()(x), y)


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name: str) -> None:
    layer = LAYERS[name]()
    x = input_of(layer)
    y = layer(x)
    exact = copy.deepcopy(layer).double()(x.double())
    assert exact.dtype == torch.float64
    assert torch.allclose(y, exact.float(), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert (half.float() - y).abs().max() < 0.1 * y.abs().max()
    assert layer.kernel().dtype == torch.float32
    half.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def changes() -> dict[str, Callable[[Any], None]]:
    """Ways in which a layer may come by another kernel."""

    def by_optimizer(layer: Any) -> None:
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.optim.SGD([layer.weight], lr=0.1).step()

    def by_data(layer: Any) -> None:
        layer.weight.data.mul_(1.5)

    def by_features(layer: Any) -> None:
        next(layer.features.parameters()).data.add_(0.5)

    def by_state(layer: Any) -> None:
        layer.load_state_dict({name: t + 0.1 for name, t in layer.state_dict().items()})

    def by_frequency(layer: Any) -> None:
        layer.omega.set(layer.omega.axes[0], 3.0)

    return {f.__name__: f for f in (by_optimizer, by_data, by_features, by_state, by_frequency)}


@pytest.mark.parametrize("change", changes())
@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_keeps_its_kernel_and_never_a_stale_one(name: str, change: str) -> None:
    layer = LAYERS[name]().eval()
    x = input_of(layer)
    with torch.no_grad():
        y = layer(x)
        kept = layer._kept
        assert kept is not None
        assert torch.equal(layer(x), y)
        assert layer._kept is kept
        changes()[change](layer)
        other = layer(x)
    assert layer._kept is not kept
    assert not torch.allclose(other, y, atol=1e-4)
    assert torch.allclose(other, fresh(layer, x), atol=1e-5)
    layer.train()(x)
    assert layer._kept is None


@pytest.mark.parametrize("name", LAYERS)
def test_a_kept_kernel_follows_the_dtype_and_the_size(name: str) -> None:
    layer = LAYERS[name]().eval()
    with torch.no_grad():
        for size in (6, 4, 6):
            x = input_of(layer, size)
            assert torch.allclose(layer(x), fresh(layer, x), atol=1e-5)
        layer.to(torch.float64)
        x = input_of(layer)
        assert layer(x).dtype == torch.float64
        assert torch.allclose(layer(x), fresh(layer, x), atol=1e-12)


def test_a_kept_kernel_follows_the_samples() -> None:
    layer = LiftingConv2d(1, 2, 3, group="C4").eval()
    x = torch.randn(1, 1, 6, 6)
    with torch.no_grad():
        assert layer(x).shape[2] == 4
        ed.nn.set_samples(layer, 8)
        assert layer(x).shape[2] == 8
        assert torch.allclose(layer(x), fresh(layer, x), atol=1e-6)


def network(samples: GroupSamples) -> nn.Module:
    return nn.Sequential(
        LiftingConv2d(1, 3, 3, padding=1, group=samples, omega_prime={"rotation": 1.0}),
        nn.ReLU(),
        GroupConv2d(3, 3, 3, padding=1, group=samples, omega_prime={"rotation": 1.0}),
        GroupPool2d(),
    )


def test_random_offsets_are_drawn_in_training_for_the_whole_network_and_never_in_evaluation() -> None:
    samples = GroupSamples("C4", random_offset=True)
    net = network(samples)
    x = torch.randn(2, 1, 6, 6)
    outputs, offsets = [], []
    for _ in range(3):
        outputs.append(net(x))
        offsets.append(samples.offset)
        assert 0 <= samples.offset < torch.pi / 2
    assert len(set(offsets)) == 3
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    torch.manual_seed(3)
    first = net(x)
    torch.manual_seed(3)
    assert torch.equal(net(x), first)
    with torch.no_grad():
        net.eval()
        y = net(x)
        assert samples.offset == 0
        assert torch.equal(net(x), y)
    plain = network(GroupSamples("C4"))
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(x), net(x))
    assert GroupSamples("C4").offset == 0


@pytest.mark.parametrize("name", ["plane", "rotation", "all"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    layer = LAYERS[name]()
    x = input_of(layer).requires_grad_()
    tensors = [x, *(p for p in layer.parameters() if p.requires_grad)]
    plain = torch.autograd.grad(layer(x).square().sum(), tensors, allow_unused=True)
    y = checkpoint(layer, x, use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(y.square().sum(), tensors, allow_unused=True), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", ["strict plane", "learned plane", "harmonic", "all"])
def test_compiled_whole_in_training_and_in_evaluation(name: str) -> None:
    layer = LAYERS[name]()
    x = input_of(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), layer(x)
    assert torch.allclose(y, expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.square().sum(), [layer.weight])
    (plain,) = torch.autograd.grad(expected.square().sum(), [layer.weight])
    assert torch.allclose(gradient, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    with torch.no_grad():
        layer.eval()
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
        layer.weight.mul_(2)
        assert torch.allclose(compiled(x), fresh(layer, x), atol=1e-5)


@pytest.mark.parametrize("name", ["strict plane", "plane", "learned plane", "rotation", "all"])
def test_exported(name: str) -> None:
    layer = LAYERS[name]().eval()
    x = input_of(layer)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        assert torch.allclose(program.module()(x), layer(x), atol=1e-5)


def test_meta_device() -> None:
    with torch.device("meta"):
        layer = SoftConv2d(2, 3, 3)
    assert layer.weight.is_meta
    real = layer.to_empty(device="cpu")
    real.features.reset_parameters()  # pyright: ignore[reportCallIssue]
    real.reset_parameters()
    assert torch.isfinite(real(torch.randn(1, 2, 5, 5))).all()


def test_shared_frequencies_are_one_parameter() -> None:
    shared = Frequencies({"translation": 1.0}, learned=True)
    net = nn.Sequential(SoftConv2d(1, 2, 3, omega_prime=shared), SoftConv2d(2, 1, 3, omega_prime=shared))
    assert len(ed.nn.learned_frequencies(net)) == 2
    copied = copy.deepcopy(net)
    assert copied[0].omega_prime is copied[1].omega_prime
    assert copied[0].coordinates.omega_prime is copied[0].omega_prime  # pyright: ignore[reportAttributeAccessIssue]
