"""measure, soften, fold and save on networks with layers of a continuous kernel, beside certificates of the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.nn import GroupConv2d, GroupPool2d, LiftingConv2d


class Net(nn.Module):
    """Features of invariant channels, and classes from them."""

    def __init__(self, group: str = "C4", features: bool = False, stride: int = 1, **relaxed: float):
        super().__init__()
        self.lift = LiftingConv2d(1, 4, 5, padding=2, group=group, omega_prime=relaxed)
        self.conv = GroupConv2d(4, 6, 3, stride=stride, padding=1, group=group, omega_prime=relaxed)
        self.pool, self.features = GroupPool2d(), features
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pool(torch.relu(self.conv(torch.relu(self.lift(x)))))
        return y if self.features else self.head(y.mean((2, 3)))


def batches(size: int = 9) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 1, size, size, generator=generator), torch.arange(6) % 3) for _ in range(2)]


@pytest.mark.parametrize(
    ("samples", "group", "relaxed", "strict"),
    [
        ("C4", "C4", {}, True),
        ("C8", "C4", {"rotation": 0.0}, True),
        ("D4", "D4", {}, True),
        ("C4", "C4", {"rotation": 0.5}, False),
        ("D4", "D4", {"flip": 0.5, "translation": 0.3}, False),
        ("C4", "C8", {}, False),  # turns by 45 degrees resample the image
    ],
)
def test_measure_on_classes_and_on_features(samples: str, group: str, relaxed: Any, strict: bool) -> None:
    model = Net(samples, **relaxed)
    scores = ed.measure(model, batches(), group, epsilon_images=4, probes=4)
    assert model.training, "the mode is restored"
    assert (scores.iErr < 1e-6) == strict
    assert (scores.epsilon < 1e-5) == strict
    again = ed.measure(model, batches(), group, epsilon_images=4, probes=4)
    assert again == scores
    features = ed.measure(Net(samples, features=True, **relaxed), [x for x, _ in batches()], group, task="features")
    assert (features.eErr_rel < 1e-5) == strict


def test_measure_warns_of_strides_that_do_not_fit() -> None:
    with pytest.warns(ed.EquidialWarning, match="stride of conv does not fit"):
        found = ed.measure(Net(stride=2), batches(8), "C4")
    assert found.iErr > 1e-6
    ed.measure(Net(stride=2), batches(9), "C4")


def test_what_is_certified_is_what_is_measured() -> None:
    """A bound of the whole network, and the largest error of the scores' elements on the same images."""
    model = Net(rotation=0.2)
    x = batches()[0][0]
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.0)
    certificate = ed.certify_network(model, config, inputs=x)
    with torch.no_grad():
        errors = torch.stack([(model(torch.rot90(x, k, (2, 3))) - model(x)).norm(dim=1) for k in (1, 2, 3)]).amax(0)
    assert bool((errors.double() <= torch.tensor(certificate.bounds) + 1e-5).all())
    assert torch.allclose(errors.double(), torch.tensor(certificate.measured_each, dtype=torch.float64), atol=1e-5)
