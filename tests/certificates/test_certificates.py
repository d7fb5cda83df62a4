"""Certificates: never below what is measured, exact where said, rounding included, result objects that keep."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equidial import Certificate, invariant_filter
from equidial.certificates import LayerCertificate, certify_weight, defect_of_element, evaluation_error, gamma
from equidial.errors import EquidialError, FileFormatError
from equidial.filters import Constraint, trivial_bound
from equidial.groups import SO, SO2, C, Group, Shift
from equidial.representations import Pixels, Trivial, Vector
from tests.certificates.hunt import attack, hunt
from tests.spaces import UNBOUNDED, random_weight, representations_of


def searched(constraint: Constraint, weight: torch.Tensor, radius: float) -> float:
    """The largest error that the hunt's search over elements finds, relative to the weight."""
    generator = torch.Generator().manual_seed(1)
    return attack(constraint, constraint.as_matrices(weight), radius, generator)[0] / float(weight.norm())


def test_the_hunt_finds_no_violation(draws: int) -> None:
    """Random spaces, responses, dials, dtypes and radii; every group takes part. Whole: ``tests.certificates.hunt``."""
    found = hunt(range(250 * draws))
    assert [draw for draw in found if draw.is_violation] == []
    assert {draw.dtype for draw in found} == {"float64", "float32", "bfloat16", "float16"}
    assert sum(draw.bound > 1.5 * draw.worst for draw in found if draw.worst > 1e-6) < 0.3 * len(found), "and is tight"


def test_the_hunt_sees_a_bound_that_is_too_small() -> None:
    """A test that cannot fail is a defect: the same draws with bounds a thousandth lower."""
    found = [replace(draw, bound=draw.bound * 0.999) for draw in hunt(range(60))]
    assert sum(draw.is_violation for draw in found) > 20
    spectral = [d for d in hunt(range(200)) if d.worst_input > 1e-6]
    lower = [replace(d, spectral_bound=d.spectral_bound * 0.99) for d in spectral]
    assert sum(d.is_violation for d in lower) > len(lower) // 4


@pytest.mark.parametrize("group", [C(4), C(8), Shift(2, (3, 4))], ids=str)
def test_finite_groups_are_exact(group) -> None:
    rep = Pixels(group, (3, 4) if isinstance(group, Shift) else (4, 4))
    constraint = Constraint.invariants(rep)
    weight = random_weight(constraint)
    found = certify_weight(constraint, weight)
    worst = searched(constraint, weight, math.inf)
    assert found.kind == "exact"
    assert found.bound == pytest.approx(worst, rel=1e-10)
    assert found.measured == pytest.approx(worst, rel=1e-12)


def test_one_parameter_groups_are_within_a_tenth_of_a_percent() -> None:
    for seed, shape in enumerate([(3, 3), (4, 4), (5, 5), (7, 7)]):
        constraint = Constraint.invariants(Pixels(SO2(), shape))
        weight = random_weight(constraint, (2,), seed)
        for radius in (math.pi, math.pi / 6, 0.01):
            found = certify_weight(constraint, weight, radius)
            worst = max(searched(constraint, weight, radius), found.measured)
            assert found.kind == "upper"
            assert worst <= found.bound <= worst * 1.002


def test_closed_form_of_two_frequencies() -> None:
    """W = diag-free map from Vector to Trivial: ||W R(t) - W|| / ||W|| = 2 sin(t / 2)."""
    constraint = Constraint.equivariants(Vector(SO2()), Trivial(SO2()))
    weight = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    for radius in (0.3, 1.0, math.pi):
        found = certify_weight(constraint, weight, radius)
        assert found.bound == pytest.approx(2 * math.sin(radius / 2), rel=1e-3)
        assert found.bound >= 2 * math.sin(radius / 2)


def test_the_unpaired_direction_counts() -> None:
    """A kernel along it is still under the circle action and turned over by the true quarter turn."""
    for group in (SO2(), C(8)):
        rep = Pixels(group, (6, 6))
        constraint = Constraint.invariants(rep)
        found = certify_weight(constraint, rep.circle.vectors[:, rep.circle.unpaired].mT)
        assert found.bound == pytest.approx(2.0, abs=1e-6)


def test_a_large_group_is_bounded_by_its_generators() -> None:
    constraint = Constraint.invariants(Pixels(Shift(2), (70, 60)))
    weight = torch.randn(1, 4200, dtype=torch.float64)
    found = certify_weight(constraint, weight, radius=2.0)
    assert found.kind == "upper"
    for value in ((1, 1), (2, 0), (0, -2)):
        g = Shift(2).element(value)
        assert defect_of_element(constraint, constraint.as_matrices(weight), g) / float(weight.norm()) <= found.bound
    strict = certify_weight(constraint, torch.ones(1, 4200))
    assert strict.bound < 1e-10


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_strict_permutation_symmetry_survives_any_dtype(dtype: torch.dtype) -> None:
    f = invariant_filter(Pixels(C(4), (5, 5)), softness=0.0)
    rounded = f(torch.randn(8, 25, dtype=torch.float64)).to(dtype)
    snapped = f.at(rounded).snap(rounded)
    found = certify_weight(f.constraint, snapped)
    assert found.bound == 0.0
    assert found.measured == 0.0
    assert float((snapped.double() - rounded.double()).abs().max()) <= 4 * torch.finfo(dtype).eps


def test_rounding_to_a_storage_type_is_seen() -> None:
    f = invariant_filter(Pixels(SO2(), (5, 5)), softness=0.0)
    exact = f(torch.randn(8, 25, dtype=torch.float64))
    bounds = [certify_weight(f.constraint, exact.to(d)).bound for d in (torch.float64, torch.float32, torch.bfloat16)]
    assert bounds[0] < 1e-12 < bounds[1] < 1e-6 < 1e-4 < bounds[2] < 1e-2


def test_gamma() -> None:
    assert gamma(1) == pytest.approx(2.0**-53)
    assert gamma(1000) > 1000 * 2.0**-53


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: certify_weight(Constraint.invariants(Vector(C(4))), torch.zeros(3)),
        lambda: certify_weight(Constraint.invariants(Vector(C(4))), torch.zeros(2, dtype=torch.int8)),
        lambda: certify_weight(Constraint.invariants(Vector(C(4))), torch.ones(2), radius=-1.0),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()


def row(name: str = "conv.weight", bound: float = 0.5) -> LayerCertificate:
    return LayerCertificate(
        name=name,
        bound=bound,
        kind="exact",
        level="image",
        norm="frobenius",
        radius=math.pi,
        measured=bound / 2,
        absolute=bound,
        a_priori=None,
        allowance=1e-6,
        group="C4",
        representation="Pixels(3,3)",
        response="nearest",
        dial="softness=0.5",
        dtype="float32",
        elements="all of C4",
        notes=("a note",),
    )


def test_round_trip_plot_and_text(tmp_path: Path) -> None:
    certificate = Certificate((row(), row("b.weight", 0.7)), "0.1.0")
    assert float(certificate.bound) == 0.7
    assert certificate["b.weight"].bound == 0.7
    assert len(certificate) == 2
    path = tmp_path / "certificate.json"
    certificate.save(path)
    assert Certificate.load(path) == certificate
    assert json.loads(path.read_text())["bound"] == 0.7
    figure = certificate.plot()
    (axes,) = figure.axes
    assert len(axes.patches) == 4
    assert axes.get_yticklabels()[0].get_text().startswith("b.weight")
    text = str(certificate)
    assert "b.weight" in text
    assert "a note" in text
    with pytest.raises(KeyError):
        certificate["c"]
    with pytest.raises(EquidialError):
        certificate.plot(max_rows=0)
    assert Certificate(()).bound == 0.0


@pytest.mark.parametrize(
    "change", [{"format_version": 1}, {"document": "sample"}, {"format_version": None}, {"layers": [{"name": "x"}]}]
)
def test_foreign_certificates_are_refused(change: dict[str, object]) -> None:
    data = Certificate((row(),)).to_dict() | change
    with pytest.raises(FileFormatError):
        Certificate.from_dict(data)


@pytest.mark.parametrize("group", UNBOUNDED, ids=str)
def test_bounds_of_groups_that_are_not_compact(group: Group, draws: int) -> None:
    """Over a radius; never below what a search finds, never above the trivial bound."""
    rng = random.Random(5)
    reps = [rep for rep in representations_of(group, small=True) if rep.dim <= 16]
    for draw in range(8 * draws):
        rep_in, rep_out = rng.choice(reps), rng.choice(reps)
        if rep_in.dim * rep_out.dim > 64:
            continue
        constraint = Constraint.equivariants(rep_in, rep_out)
        weight = random_weight(constraint, (2,), draw)
        radius = rng.choice([0.1, 0.7, 1.3, 4.5])
        found = certify_weight(constraint, weight, radius)
        worst = searched(constraint, weight, found.radius) - evaluation_error(constraint, 1.0, found.radius)
        assert worst <= found.bound <= trivial_bound(constraint, radius)
        assert found.measured <= found.bound
        assert found.radius == min(radius, group.radius)
        declared = certify_weight(constraint, weight)
        assert declared.radius == group.sample_radius, "the declared set"
        with pytest.raises(EquidialError, match="finite radius"):
            certify_weight(constraint, weight, math.inf)


def test_the_measured_error_uses_the_whole_radius() -> None:
    """Within a small radius of a large group, elements at the radius itself are tried."""
    constraint = Constraint.invariants(Vector(SO(3)) + Trivial(SO(3)))
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = certify_weight(constraint, weight, 0.3)
    assert 0.95 * 2 * math.sin(0.15) <= found.measured <= 2 * math.sin(0.15) * (1 + 1e-12)
