"""Operator norms against dense matrices, Lipschitz constants against slopes, the document."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from equidial.certificates import (
    LIPSCHITZ,
    Bounds,
    NetworkCertificate,
    NetworkStep,
    certified_elements,
    concatenated,
    convolution_norm,
    normalisation_gain,
    operator_defect,
    overlap,
    slope_bound,
    spectral_norm,
)
from equidial.errors import EquidialError, FileFormatError
from equidial.filters import Constraint
from equidial.groups import SO, SO2, C, Lorentz, O
from equidial.representations import Tensor, Vector
from tests.spaces import UNBOUNDED, radius_of, random_space, random_weight, representations_of

FUNCTIONS = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
}


def dense_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


@pytest.mark.parametrize("name", [*LIPSCHITZ, "elu", "leaky_relu"])
def test_no_slope_exceeds_its_constant(name: str) -> None:
    f = FUNCTIONS.get(name) or getattr(functional, name)
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    bound = slope_bound(name, 1.0 if name == "elu" else 0.01)
    steepest = float(slope.abs().max())
    assert steepest <= bound <= steepest * (1 + 1e-6) + 1e-4


def test_spectral_norms_are_upper_bounds_and_tight(draws: int) -> None:
    rng = random.Random(0)
    for _ in range(30 * draws):
        m, n = rng.randint(1, 12), rng.randint(1, 12)
        matrix = torch.randn(m, n, dtype=torch.float64) * 10.0 ** rng.randint(-30, 30)
        if rng.random() < 0.3:
            matrix = matrix[:, :1] @ matrix[:1] / float(matrix.abs().max())
        true = dense_norm(matrix)
        assert true <= spectral_norm(matrix) <= true * (1 + 1e-10)
    assert spectral_norm(torch.zeros(3, 2)) == 0


def test_convolution_norms_are_upper_bounds_of_the_operator(draws: int) -> None:
    rng = random.Random(1)
    for draw in range(40 * draws):
        torch.manual_seed(draw)
        axes = rng.choice([1, 2])
        kernel = [rng.randint(1, 4) for _ in range(axes)]
        stride = [rng.randint(1, 3) for _ in range(axes)]
        dilation = [rng.randint(1, 2) for _ in range(axes)]
        padding = [rng.randint(0, 2) for _ in range(axes)]
        groups = rng.choice([1, 2])
        sizes = [d * (k - 1) + 1 + rng.randint(0, 5) for k, d in zip(kernel, dilation, strict=True)]
        weight = torch.randn(2 * groups, rng.randint(1, 2), *kernel, dtype=torch.float64)
        inputs = weight.shape[1] * groups
        basis = torch.eye(inputs * math.prod(sizes), dtype=torch.float64).reshape(-1, inputs, *sizes)
        f = functional.conv1d if axes == 1 else functional.conv2d
        operator = f(basis, weight, None, stride, padding, dilation, groups).flatten(1)
        padded = [n + 2 * p for n, p in zip(sizes, padding, strict=True)]
        true = dense_norm(operator)
        bound = convolution_norm(weight, stride, padded, dilation, groups)
        whatever_size = convolution_norm(weight, stride, None, dilation, groups)
        assert true <= bound
        assert true <= whatever_size
        if not any(padding):  # with padding a tap may meet no pixel at all, and the operator may be 0
            assert bound <= 2.5 * true


def test_a_large_torus_is_sampled_and_still_covered() -> None:
    weight = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    transfer = torch.fft.fft2(weight, s=(211, 211)).movedim((0, 1), (2, 3))
    true = float(torch.linalg.matrix_norm(transfer, ord=2).max())
    assert true <= convolution_norm(weight, 1, 211) <= 1.02 * true


def test_operator_defects_cover_every_element(draws: int) -> None:
    """Random spaces of finite and Lie groups; elements sampled within the radius, spectral norm of each."""
    rng = random.Random(3)
    for draw in range(60 * draws):
        constraint = random_space(rng)
        weight = random_weight(constraint, (), draw)
        radius = rng.choice([1.0, 0.3]) * constraint.rep_in.group.radius
        if math.isinf(radius):
            radius = 2.0
        found = operator_defect(constraint, weight, radius)
        matrix = constraint.as_matrices(weight)
        elements = certified_elements(constraint.rep_in.group, radius)
        if elements is not None:
            assert len(found) == len(elements)
            for bound, g in zip(found.tolist(), elements, strict=True):
                assert dense_norm(constraint.difference(g, matrix)) <= bound
        else:
            generator = torch.Generator().manual_seed(draw)
            near = [g for g in constraint.rep_in.group.sample(30, generator) if g.distance() <= radius]
            assert all(dense_norm(constraint.difference(g, matrix)) <= float(found) for g in near)
        assert float(found.max() if len(found) else 0) <= 2.0000001 * dense_norm(matrix)


@pytest.mark.parametrize("group", UNBOUNDED, ids=str)
def test_operator_defects_of_actions_that_are_not_orthogonal(group) -> None:
    generator = torch.Generator().manual_seed(0)
    radius = min(1.0, radius_of(group))
    for rep in representations_of(group, small=True)[:3]:
        constraint = Constraint.equivariants(rep, rep)
        weight = random_weight(constraint, ())
        try:
            found = float(operator_defect(constraint, weight, radius))
        except EquidialError:
            continue
        for g in [g for g in group.sample(40, generator) if g.distance() <= radius]:
            assert dense_norm(constraint.difference(g, weight)) <= found


def test_the_symmetric_part_costs_nothing() -> None:
    """A large symmetric weight with a small disturbance: twice the disturbance, not radius times its generators."""
    constraint = Constraint.equivariants(Tensor(O(5), 2), Tensor(O(5), 2))
    noise = 1e-3 * random_weight(constraint, ())
    found = float(operator_defect(constraint, 10 * torch.eye(25, dtype=torch.float64) + noise))
    assert found <= 2.1 * spectral_norm(noise)
    for group in (SO2(), SO(3)):
        constraint = Constraint.equivariants(Vector(group), Vector(group))
        assert float(operator_defect(constraint, torch.eye(group.natural_dim or 0))) < 1e-12


def test_overlap_and_normalisation() -> None:
    assert overlap(7, 3, 2, 1, 1, 1) == (2, 2)
    assert overlap(8, 2, 2, 1, 0, 0) == (1, 2)
    eps, count = 1e-5, 6
    point = torch.randn(1, count, dtype=torch.float64)
    centred = (point - point.mean()).norm(dim=1)
    gain = float(normalisation_gain(centred, torch.zeros(1), count, eps))
    for scale in (1e-4, 0.1, 1.0, 10.0):
        other = point + scale * torch.randn(500, count, dtype=torch.float64)
        moved = functional.layer_norm(other, (count,)) - functional.layer_norm(point, (count,))
        assert float((moved.norm(dim=1) / (other - point).norm(dim=1)).max()) <= gain
    assert float(normalisation_gain(torch.zeros(1), torch.zeros(1), count, eps)) <= 1.0001 / math.sqrt(eps)


def test_propagation_by_hand() -> None:
    one = torch.ones(1, dtype=torch.float64)
    start = Bounds.source(2 * one, 0.0, 1)
    first = start.linear(one, 3.0, 0 * one, 0, 0.5 * one)  # D = .5 * 2
    second = first.linear(one, 2.0, 0 * one, 1, 0.1 * one, 0.2 * one)  # D = 2 * 1 + .1 * 1 + .2
    assert float(second.defect) == pytest.approx(2.3)
    assert {k: float(v) for k, v in second.parts.items()} == pytest.approx({0: 2.0, 1: 0.3})
    assert float(first.plus(second, one, 0 * one).defect) == pytest.approx(3.3)
    both = concatenated([first, second], one)
    assert float(both.defect) == pytest.approx(math.hypot(1.0, 2.3))
    assert sum(float(v) for v in both.parts.values()) == pytest.approx(float(both.defect))


def document(**changes: object) -> NetworkCertificate:
    made = NetworkCertificate(
        kind="upper",
        scope="inputs",
        bounds=(0.5, 2.0),
        composed_each=(0.5, 2.5),
        relatives=(0.1, math.inf),
        measured_each=(0.25, 0.5),
        allowance=1e-15,
        ball=None,
        radius=math.pi,
        elements="all of C4",
        group="C4",
        dtype="float32",
        steps=(NetworkStep("conv1", "Conv2d", 1.5, 0.2, 1.5), NetworkStep("head", "Linear", 1.0, 0.1, 0.5)),
        hypotheses=("exact arithmetic",),
        library="0.1.0",
    )
    return replace(made, **changes)


def test_the_document_round_trips_and_draws(tmp_path: Path) -> None:
    found = document()
    assert (found.bound, found.measured, found.slack, found.level) == (2.0, 0.5, 4.0, "network")
    found.save(tmp_path / "n.json")
    assert NetworkCertificate.load(tmp_path / "n.json") == found
    json.loads((tmp_path / "n.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert "conv1" in str(found)
    assert len(found.plot().axes[0].patches) == 2
    with pytest.raises(FileFormatError):
        NetworkCertificate.from_dict({**found.to_dict(), "steps": [{"x": 1}]})
    with pytest.raises(EquidialError):
        found.plot(max_rows=0)


def test_an_abstention_holds_no_number(tmp_path: Path) -> None:
    found = document(
        kind="abstained",
        bounds=(),
        composed_each=(),
        relatives=(),
        measured_each=(),
        steps=(),
        abstained_at="block",
        reason="softmax",
    )
    assert all(math.isnan(v) for v in (found.bound, found.relative, found.measured, found.slack))
    assert "abstained at block: softmax" in str(found)
    found.save(tmp_path / "n.json")
    assert NetworkCertificate.load(tmp_path / "n.json") == found
    with pytest.raises(EquidialError):
        found.plot()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: spectral_norm(torch.zeros(3)),
        lambda: convolution_norm(torch.zeros(3, 3)),
        lambda: convolution_norm(torch.zeros(3, 3, 3), groups=2),
        lambda: operator_defect(Constraint.invariants(Vector(C(4))), torch.zeros(2, 2)),
        lambda: operator_defect(Constraint.invariants(Vector(C(4))), torch.zeros(3)),
        lambda: operator_defect(Constraint.invariants(Vector(Lorentz())), torch.zeros(4), radius=math.inf),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()
