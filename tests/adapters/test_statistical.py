"""certify_statistically: models whose true error is known in closed form, and every way to call it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import nn

import equidial as ed
from equidial.certificates import clopper_pearson_upper
from equidial.errors import ArgumentError, EquidialError
from equidial.metrics import DEFAULT_RADIUS, random_elements, relative_error, total_variation, transform_images
from tests.adapters.models import SPACES, VectorMlp, cnn

HOUSE_STYLE = r"(?s)expected .*got: .*do: "


class Left(nn.Module):
    """Images of two pixels; the logits are (0.7, left pixel)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = x[:, 0, 0, 0]
        return torch.stack([torch.full_like(left, 0.7), left], 1)


def pairs(n: int, seed: int) -> torch.Tensor:
    """Images (u, 0) with u uniform in [0, 1]: the mirror image has the logits (0.7, 0)."""
    x = torch.zeros(n, 1, 1, 2, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x


TAUS = (0.2, 0.6)


def truth() -> list[float]:
    """P(u / sqrt(0.49 + u^2) > tau) for both tau, E of the total variation, P(u > 0.7)."""
    beyond = [1 - 0.7 * tau / math.sqrt(1 - tau**2) for tau in TAUS]
    variation = math.log1p(math.exp(0.3)) - math.log1p(math.exp(-0.7)) - 1 / (1 + math.exp(0.7))
    return [*beyond, variation, 0.3]


def certify(x: torch.Tensor, **options: Any) -> ed.StatisticalCertificate:
    return ed.certify_statistically(Left(), [x], "Flip", **{"tau": TAUS, "alpha": 0.05, "n": len(x)} | options)


def test_the_sample_tends_to_the_truth() -> None:
    found = certify(pairs(4000, 0))
    assert [row.sampled for row in found] == pytest.approx(truth(), abs=0.03)
    assert all(row.bound >= value for row, value in zip(found, truth(), strict=True))
    assert [row.bound for row in found] == pytest.approx(truth(), abs=0.06), "bounds are not vacuous"
    u = pairs(4000, 0)[:, 0, 0, 0]
    assert found.worst == pytest.approx(float((u / (0.49 + u**2).sqrt()).max()))
    assert found[0.6].bound == clopper_pearson_upper(int(found[0.6].count or 0), 4000, 0.05 / 4)
    assert found.elements.startswith("always Flip.element")
    assert found.elements.endswith("permuting pixels")
    assert (found.group, found.radius, found.dtype, found.n) == ("Flip", math.pi, "float64", 4000)
    assert found.error == "||F(g x) - F(x)|| / ||F(x)||"


def test_coverage_of_the_whole_family(draws: int) -> None:
    """On fresh samples, all four numbers hold at once at least as often as promised."""
    trials, alpha = 150 * draws, 0.3
    wrong = 0
    for seed in range(trials):
        found = certify(pairs(30, seed), alpha=alpha)
        wrong += any(row.bound < value for row, value in zip(found, truth(), strict=True))
    assert wrong <= binom.ppf(0.999, trials, alpha)
    assert wrong > 0, "the hypotheses matter: bounds this tight can be wrong"


def test_every_error_is_that_of_its_definition() -> None:
    model, x = cnn(), torch.randn(12, 3, 9, 9)
    drawn = random_elements(ed.groups.C(4), 12, generator=torch.Generator().manual_seed(5)).elements
    with torch.no_grad():
        before = model(x)
        after = torch.cat([model(transform_images(a[None], g)) for a, g in zip(x, drawn, strict=True)])
    log_p, log_q = (torch.log_softmax(z.double(), -1) for z in (before, after))
    expected = {
        "relative": relative_error(before, after),
        "total_variation": total_variation(before, after),
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
    }
    for error, values in expected.items():
        tau = float(values.median()) * 1.001
        found = ed.certify_statistically(model, [x], "C4", tau=tau, alpha=0.1, n=12, error=error, seed=5)
        assert found.rows[0].count == int((values > tau).sum())
        assert found.worst == pytest.approx(float(values.max()), rel=1e-4)
        assert found["mean total variation"].sampled == pytest.approx(
            float(expected["total_variation"].mean()), rel=1e-4
        )
        changed = (before.argmax(-1) != after.argmax(-1)).sum()
        assert found["P(prediction changes)"].count == int(changed)
    assert found.dtype == "float32"
    assert found.elements.startswith("uniform over the 3 elements of C4")


def test_neither_batch_size_nor_format_matters_and_the_seed_does() -> None:
    model, x = cnn().double(), torch.randn(11, 3, 9, 9, dtype=torch.float64)
    options: dict[str, Any] = {"tau": 0.01, "alpha": 0.1, "n": 10}

    def run(batches: Any, seed: int = 0, net: nn.Module = model) -> ed.StatisticalCertificate:
        return ed.certify_statistically(net, batches, "SO2", seed=seed, **options)

    whole = run([x])
    for size in (1, 4, 10):
        for batches in ([(part, None) for part in x.split(size)], [{"pixel_values": part} for part in x.split(size)]):
            parts = run(batches)
            assert parts.quantiles == pytest.approx(whole.quantiles, rel=1e-9)
            assert [row.count for row in parts] == [row.count for row in whole]
    assert run([x]) == whole
    assert run([x], seed=1) != whole

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(x))

    wrapped = Wrapped()
    wrapped.train()
    model.norm.eval()
    assert run([x], net=wrapped) == whole
    assert wrapped.training
    assert model.first.training
    assert not model.norm.training
    assert whole.radius == DEFAULT_RADIUS
    assert "resampled" in whole.elements


def test_exactly_the_first_n_inputs_are_read() -> None:
    x = pairs(10, 0)

    def stream() -> Iterator[torch.Tensor]:
        yield x[:4]
        yield x[4:4]
        yield x[4:]
        pytest.fail("a batch too many was read")

    found = ed.certify_statistically(Left(), stream(), "Flip", tau=TAUS, alpha=0.1, n=7)
    assert found == certify(x[:7], alpha=0.1)
    with pytest.raises(ArgumentError, match=r"(?s)11 inputs.*only 10.*before looking"):
        certify(x, n=11)


def test_strict_networks_reach_the_smallest_bound() -> None:
    model = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    found = ed.certify_statistically(model, [torch.randn(20, 3, 9, 9)], "C4", tau=1e-4, alpha=0.03, n=20)
    assert found.value == 0.0
    assert found.bound == pytest.approx(1 - 0.01 ** (1 / 20))
    assert found.worst < 1e-4


@pytest.mark.parametrize("group", ["SO2", "O2"])
def test_vectors_with_representations(group: str) -> None:
    spaces = {"inner": SPACES["inner"], "outer": SPACES["outer"]}
    config = ed.SoftEquivarianceConfig(group=group, softness=0.0, representations=spaces)
    model, x = ed.soften(VectorMlp().double(), config), torch.randn(30, 11, dtype=torch.float64)
    options: dict[str, Any] = {"tau": (1e-9, 0.5), "alpha": 0.1, "n": 30}
    given = {"representation": SPACES["inner"][0], "output_representation": config.space("3*Vector")}
    strict = ed.certify_statistically(model, [x], group, **options, **given)
    assert [row.count for row in strict] == [0, 0]
    assert strict.radius == math.pi
    assert "4*Vector" in strict.elements
    assert "3*Vector" in strict.error
    free = ed.certify_statistically(ed.unload(model), [x], group, **options, **given)
    assert free[1e-9].count == 30
    # a vector output read as invariant logits changes by the turn itself
    wrong = ed.certify_statistically(model, [x], group, **options, representation=SPACES["inner"][0])
    assert wrong[1e-9].count == 30
    assert len(wrong) == 4


@pytest.mark.parametrize(
    ("name", "radius", "reach"),
    [
        ("SO3", None, math.pi),
        ("SO3", 0.4, 0.4),
        ("O3", 3.5, 3.5),
        ("O2", math.pi, math.pi),
        ("SO+(1,3)", 0.2, 0.2),
        ("S4", 1.0, 1.0),
        ("S10", None, 9.0),
        ("T2[4x4]", None, 4.0),
        ("T2", None, 1.0),
        ("SO3 x S4", 1.5, 1.5),
    ],
)
def test_random_elements_stay_within_the_radius(name: str, radius: float | None, reach: float) -> None:
    group = ed.groups.by_name(name)
    drawn = random_elements(group, 60, radius, torch.Generator().manual_seed(0))
    assert len(drawn.elements) == 60
    assert drawn.radius == pytest.approx(reach)
    assert max(g.distance() for g in drawn.elements) <= reach * (1 + 1e-9)
    assert len({g.value for g in drawn.elements}) > 3
    if name in ("O2", "O3"):
        mirrors = sum(float(torch.linalg.det(group.natural_matrix(g.value))) < 0 for g in drawn.elements)
        assert 10 < mirrors < 50 if name == "O2" else mirrors > 0


class Dense(nn.Module):
    """Logits per pixel from its neighbourhood."""

    def __init__(self, kernel: torch.Tensor):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, kernel.shape[-1], padding=kernel.shape[-1] // 2)
        self.conv.weight.data.copy_(kernel)
        nn.init.constant_(self.conv.bias, 1.0)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_dense_outputs_move_with_the_image() -> None:
    x = torch.randn(16, 1, 8, 8)
    kernel = torch.randn(3, 1, 3, 3)
    symmetric = sum(torch.rot90(kernel, k, (-2, -1)) for k in range(4))
    assert isinstance(symmetric, torch.Tensor)
    options: dict[str, Any] = {"tau": 1e-3, "alpha": 0.1, "n": 16, "output": "image"}
    exact = ed.certify_statistically(Dense(symmetric), [x], "C4", **options)
    assert exact.rows[0].count == 0
    assert exact["mean share of changed pixels"].sampled == 0.0
    broken = ed.certify_statistically(Dense(kernel), [x], "C4", **options)
    assert broken.rows[0].count == 16
    assert 0.1 < broken["mean share of changed pixels"].sampled < 1
    assert len(broken) == 3
    shifted = ed.certify_statistically(Dense(kernel[..., 1:2, 1:2]), [x], "T2", **options)
    assert shifted.rows[0].count == 0
    # a pointwise map commutes with resampling wherever no zero from outside the frame takes part
    turned = ed.certify_statistically(Dense(kernel[..., 1:2, 1:2]), [x], "SO2", **options)
    assert turned.worst < 1e-3
    assert "stay in the frame" in turned.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, None),
        ({"error": "kl", "seed": 3, "radius": 0.1, "group": "SO2"}, None),
        ({"output_representation": "4*Trivial"}, None),
        ({"tau": -1.0}, "tau"),
        ({"alpha": 0.0}, "alpha"),
        ({"n": 0}, "n >= 1"),
        ({"n": 100}, "only 6"),
        ({"error": "absolute"}, "error out of"),
        ({"output": "dense"}, "output out of"),
        ({"output": "image"}, "classes, h, w"),
        ({"output": "image", "representation": "Vector"}, "images in and out"),
        ({"output_representation": "4*Trivial", "error": "kl"}, "error='relative'"),
        ({"output_representation": "3*Trivial"}, "[n, .., 3]"),
        ({"output_representation": "Vektor"}, "NAME one of"),
        ({"representation": ed.groups.SO(3)}, "a representation of C4"),
        ({"representation": ed.representations.Vector(ed.groups.SO(3))}, "a representation of C4"),
        ({"representation": "Vector"}, "last axis of 2"),
        ({"group": "C4x"}, "group name"),
        ({"group": "C4", "radius": 0.1}, "within the radius"),
        ({"group": "SO3"}, "acts on images"),
        ({"group": "SO2", "radius": -1.0}, "radius > 0"),
        ({"batches": []}, "only 0"),
        ({"batches": ["x"]}, "batches (x, y)"),
        ({"batches": [torch.zeros(6, 3)]}, "images [n, .., h, w]"),
    ],
)
def test_arguments_right_and_wrong(arguments: dict[str, Any], message: str | None) -> None:
    given = {"batches": [torch.randn(6, 3, 9, 9)], "group": "C4", "tau": 0.1, "alpha": 0.1, "n": 6} | arguments
    model = cnn().train()
    if message is None:
        assert ed.certify_statistically(model, given.pop("batches"), given.pop("group"), **given).n == 6
    else:
        with pytest.raises(EquidialError, match=HOUSE_STYLE) as caught:
            ed.certify_statistically(model, given.pop("batches"), given.pop("group"), **given)
        assert message in str(caught.value)
    assert model.training


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: torch.full((len(x), 2), math.nan), "input 0"),
        (lambda x: torch.where(x[:, 0, 0, :2] > 8, math.inf, 1.0), "input 3"),
        (lambda x: x.mean((1, 2, 3)), "[n, classes]"),
        (lambda x: x.mean((1, 2, 3))[:, None], "two classes"),
        (lambda x: x.mean((2, 3))[:1], "one output per input"),
        (lambda x: "logits", "returns a tensor"),
    ],
)
def test_outputs_that_prove_nothing(forward: Any, message: str) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(x)

    x = torch.ones(4, 3, 5, 5)
    x[3, 0, 0] = 9.0
    with pytest.raises(ArgumentError, match=HOUSE_STYLE) as caught:
        ed.certify_statistically(Model(), x.split(2), "C4", tau=0.1, alpha=0.1, n=4)
    assert message in str(caught.value)


def test_what_no_sample_can_check_is_written_down() -> None:
    """An n chosen after looking leaves no trace in the numbers, so the document names it as a hypothesis."""
    x = pairs(200, 1)
    lucky = min((certify(x, n=n) for n in range(20, 200, 20)), key=lambda found: found.bound)
    assert any("fixed before any output was seen" in hypothesis for hypothesis in lucky.hypotheses)
    assert "n and the seed were fixed" in str(lucky)
