"""The layer suite holds for the library's layers and catches broken ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from equidial.nn import ContinuousConv, GroupConv2d, KernelFeatures, LiftingConv2d, PointwiseGroupConv2d
from equidial.testing import LayerConformance, failures


class Lifting(LayerConformance):
    kind: Any = LiftingConv2d
    more: Mapping[str, Any] = {"kernel": "siren"}

    def make(self, group: str, omega_prime: Mapping[str, float]) -> ContinuousConv:
        window = (
            {} if self.kind is PointwiseGroupConv2d else {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        )
        return self.kind(2, 3, group=group, omega_prime=omega_prime, **window, **self.more)


class TestLifting(Lifting):
    """The inherited tests."""


class TestGroup(Lifting):
    kind = GroupConv2d


class TestPointwise(Lifting):
    kind = PointwiseGroupConv2d


class TestFourier(Lifting):
    more = {"kernel": "fourier", "features": 8}  # noqa: RUF012


class TestRelaxedInSpaceAndLearned(Lifting):
    kind = GroupConv2d
    groups = ("C4", "D4")
    relaxed = {"rotation": 0.3, "translation": 0.4}  # noqa: RUF012

    def make(self, group: str, omega_prime: Mapping[str, float]) -> ContinuousConv:
        window: dict[str, Any] = {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        return GroupConv2d(2, 3, group=group, omega_prime=omega_prime, learn_omega_prime=bool(omega_prime), **window)


class Absolute(KernelFeatures):
    """Depends on the absolute element even at ``omega' = 0``."""

    def __init__(self, stationary: int, domain: int, features: int):
        super().__init__(stationary, domain, features)
        self.map = torch.nn.Linear(stationary, features)

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        z = torch.sin(self.map(a))
        return z if b is None else z + torch.cos(b.sum(-1, keepdim=True))


class Broken(LiftingConv2d):
    how = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.how == "ramp":
            return y + torch.arange(y.shape[-1])
        if self.how == "noise":
            return y + 1e-3 * torch.randn_like(y)
        if self.how == "square":
            return y + y.square()
        if self.how == "first sample":
            return torch.cat((2 * y[:, :, :1], y[:, :, 1:]), 2)
        return y if self.how != "no gradient" else y.detach() + 0 * y.sum()


EXPECTED = {
    "ramp": {"test_strict_layers_commute"},
    "noise": {"test_deterministic", "test_linear", "test_strict_layers_commute"},
    "square": {"test_linear"},
    "first sample": {"test_strict_layers_commute", "test_the_defect_is_that_of_the_matrix"},
    "no gradient": {"test_gradients_are_finite"},
    "": set(),
}


@pytest.mark.parametrize("how", EXPECTED)
def test_broken_layers_are_caught(how: str) -> None:
    class Suite(Lifting):
        kind = type("Made", (Broken,), {"how": how})
        groups = ("C4",)

    assert EXPECTED[how] <= set(failures(Suite))
    assert bool(EXPECTED[how]) == bool(failures(Suite))


def test_kernels_that_are_not_strict_at_0_are_caught() -> None:
    class Suite(Lifting):
        more = {"kernel": Absolute}  # noqa: RUF012
        groups = ("C4",)

    assert set(failures(Suite)) == {"test_zero_is_strict"}


def test_a_suite_without_a_layer_says_so() -> None:
    assert all("a subclass gives the layer" in text for text in failures(LayerConformance).values())
