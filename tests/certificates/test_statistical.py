"""Bounds from samples: exact arithmetic, scipy and simulation as oracles; the document."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from equidial.certificates import (
    SAMPLE_HYPOTHESES,
    Certificate,
    StatisticalBound,
    StatisticalCertificate,
    bound_samples,
    check_statistics,
    clopper_pearson_upper,
    mean_upper,
    sample_quantiles,
)
from equidial.errors import ArgumentError, EquidialError, FileFormatError

HOUSE_STYLE = r"(?s)expected .*got: .*do: "


def tail(k: int, n: int, p: float) -> Fraction:
    """``P(Binomial(n, p) <= k)`` for the very float ``p``, in exact arithmetic."""
    a, d = p.as_integer_ratio()
    return Fraction(sum(math.comb(n, i) * a**i * (d - a) ** (n - i) for i in range(k + 1)), d**n)


@pytest.mark.parametrize("n", [1, 2, 10, 97, 400])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, 1e-12])
def test_clopper_pearson_holds_in_exact_arithmetic_and_no_smaller_number_does(n: int, alpha: float) -> None:
    for k in sorted({0, 1, n // 3, n - 1} & set(range(n))):
        p = clopper_pearson_upper(k, n, alpha)
        assert tail(k, n, p) <= Fraction(alpha)
        assert tail(k, n, p * (1 - 1e-6)) > Fraction(alpha)
        if alpha > 1e-6:  # scipy takes the confidence 1 - alpha, which loses the digits of a small alpha
            theirs = binomtest(k, n, alternative="less").proportion_ci(1 - alpha, "exact").high
            assert p == pytest.approx(theirs, rel=1e-8)
        assert mean_upper(k / n, n, alpha) >= p * (1 - 1e-8), "Chernoff is never below the exact bound"
    assert clopper_pearson_upper(n, n, alpha) == 1.0


@pytest.mark.parametrize("n", [1, 30, 1000, 10**7])
@pytest.mark.parametrize("alpha", [0.3, 0.01, 1e-9])
def test_closed_forms_without_any_event_and_with_nothing_else(n: int, alpha: float) -> None:
    closed = -math.expm1(math.log(alpha) / n)
    for bound in (clopper_pearson_upper(0, n, alpha), mean_upper(0.0, n, alpha)):
        assert bound >= closed * (1 - 1e-15)
        assert bound == pytest.approx(closed, rel=2e-8)
    assert mean_upper(1.0, n, alpha) == 1.0
    means = [0.0, 5e-324, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-12, math.nextafter(1, 0), 1.0]
    bounds = [mean_upper(mean, n, alpha) for mean in means]
    assert bounds == sorted(bounds)
    assert all(mean <= bound <= 1 for mean, bound in zip(means, bounds, strict=True))


@pytest.mark.parametrize(("mean", "n", "alpha"), [(0.3, 100, 0.05), (0.001, 1000, 0.01), (0.97, 50, 1e-6)])
def test_the_mean_bound_solves_its_equation(mean: float, n: int, alpha: float) -> None:
    q = mean_upper(mean, n, alpha)
    entropy = mean * math.log(mean / q) + (1 - mean) * math.log((1 - mean) / (1 - q))
    assert n * entropy == pytest.approx(-math.log(alpha), rel=1e-8)


@pytest.mark.parametrize("alpha", [0.2, 0.05])
@pytest.mark.parametrize("truth", [0.02, 0.4, 0.9])
def test_coverage_by_simulation(truth: float, alpha: float, draws: int) -> None:
    """Of certificates on fresh samples, no more than a share alpha is wrong, up to the noise of the simulation."""
    rng, trials, n = np.random.default_rng(7), 4000 * draws, 60
    allowed = int(binom.ppf(0.9999, trials, alpha))
    wrong = sum(clopper_pearson_upper(int(k), n, alpha) < truth for k in rng.binomial(n, truth, trials))
    assert wrong <= allowed
    # two points are the worst case of a mean; a beta variable is the usual one
    for sample in (rng.random((trials, n)) < truth, rng.beta(truth, 1 - truth, (trials, n))):
        assert sum(mean_upper(float(m), n, alpha) < truth for m in sample.mean(1)) <= allowed


def test_clopper_pearson_is_not_vacuous() -> None:
    """Near a probability where the binomial tail meets alpha, the bound is wrong almost as often as it may be."""
    n, alpha, k = 60, 0.2, 10
    truth = clopper_pearson_upper(k, n, alpha) * (1 + 1e-6)
    wrong = sum(
        clopper_pearson_upper(int(j), n, alpha) < truth for j in np.random.default_rng(3).binomial(n, truth, 4000)
    )
    assert wrong > 0.8 * alpha * 4000


def test_all_numbers_hold_at_once() -> None:
    """Bonferroni: dependent rows, and still no more than a share alpha of the families has a wrong one."""
    rng, trials, n, alpha = np.random.default_rng(11), 1500, 40, 0.3
    wrong = 0
    for _ in range(trials):
        u = rng.random(n)
        rows = bound_samples(
            u.tolist(),
            error="uniform",
            tau=[0.9, 0.5],
            alpha=alpha,
            bounded={"mean": u.tolist()},
            events={"event": (u > 0.3).tolist()},
        )
        wrong += any(row.bound < truth for row, truth in zip(rows, (0.5, 0.1, 0.5, 0.7), strict=True))
    assert wrong <= binom.ppf(0.9999, trials, alpha)


def test_rows_by_hand() -> None:
    errors = [0.0, 0.1, 0.2, math.inf]
    rows = bound_samples(
        errors,
        error="relative",
        tau=(0.2, 0.05),
        alpha=0.04,
        events={"changed": [True] * 4},
        bounded={"m": [0, 0, 0, 1]},
    )
    assert [row.quantity for row in rows] == ["P(relative error > 0.05)", "P(relative error > 0.2)", "m", "changed"]
    assert [row.count for row in rows] == [3, 1, None, 4], "beyond tau, not at it"
    assert [row.sampled for row in rows] == [0.75, 0.25, 0.25, 1.0]
    expected = [clopper_pearson_upper(3, 4, 0.01), clopper_pearson_upper(1, 4, 0.01), mean_upper(0.25, 4, 0.01), 1.0]
    assert [row.bound for row in rows] == pytest.approx(expected)
    assert sample_quantiles([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
    assert len(sample_quantiles(range(1000))) == 201
    assert sample_quantiles(range(1000))[-1] == 999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, None),
        ({"tau": (0.5, 0.0, 2)}, None),
        ({"tau": [1]}, None),
        ({"alpha": 1e-300}, None),
        ({"n": 1}, None),
        ({"tau": -0.1}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"tau": math.inf}, "tau"),
        ({"tau": ()}, "tau"),
        ({"tau": (0.1, 0.1)}, "distinct"),
        ({"tau": "0.1"}, "tau"),
        ({"tau": True}, "tau"),
        ({"tau": None}, "tau"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": "0.1"}, "alpha"),
        ({"n": 0}, "n >= 1"),
        ({"n": 10.0}, "n >= 1"),
        ({"n": True}, "n >= 1"),
    ],
)
def test_tau_alpha_and_n(arguments: dict[str, Any], message: str | None) -> None:
    given = {"tau": 0.1, "alpha": 0.05, "n": 10} | arguments
    if message is None:
        thresholds = check_statistics(**given)
        assert list(thresholds) == sorted(thresholds)
        return
    with pytest.raises(ArgumentError, match=HOUSE_STYLE) as caught:
        check_statistics(**given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: clopper_pearson_upper(3, 2, 0.1),
        lambda: clopper_pearson_upper(-1, 2, 0.1),
        lambda: clopper_pearson_upper(1, 2, 0.0),
        lambda: mean_upper(1.1, 2, 0.1),
        lambda: mean_upper(math.nan, 2, 0.1),
        lambda: mean_upper(0.5, 0, 0.1),
        lambda: bound_samples([], error="e", tau=0.1, alpha=0.1),
        lambda: bound_samples([math.nan], error="e", tau=0.1, alpha=0.1),
        lambda: bound_samples([0.1], error="e", tau=0.1, alpha=0.1, events={"x": [True, False]}),
        lambda: bound_samples([0.1], error="e", tau=0.1, alpha=0.1, bounded={"x": [1.5]}),
        lambda: bound_samples([0.1], error="e", tau=0.1, alpha=0.1, bounded={"x": [math.nan]}),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=HOUSE_STYLE):
        wrong()


def certificate(errors: tuple[float, ...] = (0.0, 0.1, 0.3, math.inf)) -> StatisticalCertificate:
    return StatisticalCertificate(
        rows=bound_samples(
            errors, error="relative", tau=(0.05, 0.2), alpha=0.1, events={"changed": [False] * len(errors)}
        ),
        n=len(errors),
        alpha=0.1,
        seed=3,
        error="||F(g x) - F(x)|| / ||F(x)||",
        group="C4",
        radius=math.pi,
        elements="uniform over all",
        dtype="float32",
        worst=max(errors),
        quantiles=sample_quantiles(errors),
        library="0.1.0",
    )


def test_the_document(tmp_path: Path) -> None:
    found = certificate()
    found.save(tmp_path / "c.json")
    assert StatisticalCertificate.load(tmp_path / "c.json") == found
    data = json.loads((tmp_path / "c.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (data["kind"], data["level"], data["alpha_each"]) == ("statistical", "network", 0.1 / 3)
    assert (found.kind, found.level, found.value, found.bound) == ("statistical", "network", 0.75, found.rows[0].bound)
    assert found[0.2].count == found["P(relative error > 0.2)"].count == 2
    assert len(list(found)) == len(found) == 3
    with pytest.raises(KeyError):
        found[0.3]
    text = str(found)
    assert all(hypothesis in text for hypothesis in SAMPLE_HYPOTHESES)
    assert "confidence 0.9" in text
    assert "bounds nothing" in text


def test_kinds_are_never_mixed() -> None:
    statistical, analytic = certificate(), Certificate(())
    assert not hasattr(statistical, "layers")
    with pytest.raises(FileFormatError):
        Certificate.from_dict(statistical.to_dict())
    with pytest.raises(FileFormatError, match="a statistical certificate"):
        StatisticalCertificate.from_dict(analytic.to_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"document": "certificate"},
        {"rows": [{"quantity": "x"}]},
        {"rows": []},
        {"n": 40},
        {"alpha": 0.01},
        {"alpha": 0.0},
        {"worst": None},
        {"worst": 0.01},
    ],
)
def test_foreign_and_edited_documents_are_refused(change: dict[str, Any]) -> None:
    """A bound that the counts, n and alpha of the same document do not give is no certificate."""
    data = certificate().to_dict()
    assert StatisticalCertificate.from_dict(data) == certificate()
    with pytest.raises(FileFormatError):
        StatisticalCertificate.from_dict(data | change)


def test_a_bound_cannot_be_lowered_by_hand() -> None:
    found = certificate()
    row = found.rows[0]
    lowered = StatisticalBound(row.quantity, row.sampled, row.bound / 2, row.threshold, row.count)
    with pytest.raises(ArgumentError, match="as the sample gives"):
        replace(found, rows=(lowered, *found.rows[1:]))


def test_the_plot() -> None:
    axes: Any = certificate().plot().axes[0]
    curve, points = axes.lines[0].get_xydata().tolist(), axes.lines[-1].get_xydata().tolist()
    assert np.allclose(curve, [[0.0, 1.0], [0.0, 0.75], [0.1, 0.5], [0.3, 0.25], [0.315, 0.25]]), (
        "the infinite error is beyond the picture"
    )
    assert points == [[row.threshold, row.bound] for row in certificate().rows[:2]]
    assert "confidence 0.9" in axes.figure.get_suptitle()
    certificate((0.0, 0.0)).plot()
    certificate((math.inf,)).plot()
