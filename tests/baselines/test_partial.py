"""Partial group convolutions: the whole support is the strict layer, and every gradient reaches the support."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.baselines import PartialGroupConv2d, PartialLiftingConv2d, PartialSamples


def pair(support: float = 1.0, learned: bool = True) -> tuple[PartialLiftingConv2d, PartialGroupConv2d]:
    torch.manual_seed(0)
    before, after = PartialSamples("C8", support, learned), PartialSamples("C8", support, learned)
    lift = PartialLiftingConv2d(2, 3, 5, before, padding=2).double()
    return lift, PartialGroupConv2d(3, 4, 3, before, after, padding=1).double()


def test_the_whole_support_is_the_strict_layer() -> None:
    lift, conv = pair()
    strict_lift = ed.nn.LiftingConv2d(2, 3, 5, padding=2, group="C8").double()
    strict_conv = ed.nn.GroupConv2d(3, 4, 3, padding=1, group="C8").double()
    strict_lift.load_state_dict(lift.state_dict(), strict=False)
    strict_conv.load_state_dict(conv.state_dict(), strict=False)
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    assert torch.allclose(lift(x), strict_lift(x), rtol=0, atol=1e-12)
    h = strict_lift(x)
    assert torch.allclose(conv(h), strict_conv(h), rtol=0, atol=1e-12)


def test_a_small_support_keeps_the_identity_alone() -> None:
    lift, _ = pair(1e-3)
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    y = lift(x)
    assert (y - y[:, :, :1]).abs().max() < 0.1 * y.abs().max()  # every sample lies within 0.2 degrees of the identity
    turned = lift(torch.rot90(x, 1, (-2, -1)))
    assert (turned.mean(2) - torch.rot90(y.mean(2), 1, (-2, -1))).norm() > 0.3 * y.mean(2).norm()


def test_the_gradient_of_the_support_is_exact() -> None:
    lift, conv = pair(0.6)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    loss = conv(lift(x)).square().sum()
    supports = [m.support for m in (lift.samples, conv.samples) if isinstance(m, PartialSamples)]
    assert len(supports) == 2
    grads = torch.autograd.grad(loss, supports)
    for support, grad in zip(supports, grads, strict=True):
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                support += sign * step
                values.append(float(conv(lift(x)).square().sum()))
                support -= sign * step
        assert float(grad) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(("start", "pull", "moves"), [(1.0, -1.0, False), (1.0, 1.0, True), (0.5, -1.0, True)])
def test_the_support_stays_within_the_circle(start: float, pull: float, moves: bool) -> None:
    samples = PartialSamples("C4", start)
    (pull * samples.angles(torch.zeros(1)).abs().sum()).backward()
    assert isinstance(samples.support, nn.Parameter)
    assert samples.support.grad is not None
    assert bool(samples.support.grad != 0) == moves


def test_evaluation_is_deterministic_and_follows_the_support() -> None:
    lift, _ = pair(0.7)
    lift.eval()
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        first = lift(x)
        assert torch.equal(first, lift(x))
        assert isinstance(lift.samples, PartialSamples)
        lift.samples.support.data.fill_(0.2)
        assert not torch.allclose(first, lift(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PartialSamples("D4"), "cyclic"),
        (lambda: PartialSamples("C4", 0.0), "support"),
        (lambda: PartialSamples("C4", 1.5), "support"),
        (lambda: PartialSamples("SO3"), "cyclic"),
        (lambda: PartialGroupConv2d(2, 2, 3, PartialSamples("C4"), PartialSamples("C8")), "as many samples"),
        (lambda: PartialLiftingConv2d(0, 2, 3, PartialSamples("C4")), "in_channels"),
    ],
)
def test_what_has_no_meaning_is_refused(make: object, words: str) -> None:
    with pytest.raises(ed.errors.ArgumentError, match=words):
        make()  # pyright: ignore[reportCallIssue]
