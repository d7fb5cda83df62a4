"""The circle action on pixels: real, orthogonal, a homomorphism, exact at quarter and full turns, and good."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from benchmarks.circle_action import compare

from equidial.filters import Constraint
from equidial.groups import SO2, C
from equidial.representations import Pixels
from equidial.representations._circle import circle_basis, pixel_coordinates
from tests.spaces import full_spectrum

EXACT = (3, 4, 5, 7, 8, 12, 16)
UNPAIRED = (2, 6, 10, 14)


@pytest.mark.parametrize("n", [*EXACT, *UNPAIRED, 1, 9, 11])
def test_circle_action(n: int) -> None:
    rep = Pixels(SO2(), (n, n))
    eye = torch.eye(n * n, dtype=torch.float64)
    generator = rep.generators()[0].to_dense()
    v = rep.circle.vectors
    assert v.dtype == torch.float64
    assert torch.allclose(v.mT @ v, eye, atol=1e-12)
    assert torch.allclose(torch.matrix_exp(2 * math.pi * generator), eye, atol=1e-9)
    quarter = torch.matrix_exp(math.pi / 2 * generator)
    turn = torch.stack([torch.rot90(e.reshape(n, n), 1, (0, 1)).flatten() for e in eye], dim=1)
    if n in UNPAIRED:
        u = v[:, rep.circle.unpaired]
        assert torch.allclose(turn @ u, -u, atol=1e-12)
        assert torch.allclose(quarter @ u, u, atol=1e-12)
        (letter,) = rep.residual_generators()
        assert torch.allclose(quarter @ letter.map.to_dense(), turn, atol=1e-9)
    else:
        assert rep.circle.unpaired == ()
        assert torch.allclose(quarter, turn, atol=1e-9)
        assert torch.equal(rep.matrix(SO2().exp(math.pi / 2)), turn)
    for a, b in ((0.3, 1.1), (2.0, -2.9)):
        g, h = SO2().exp(a), SO2().exp(b)
        assert torch.allclose(rep.matrix(g) @ rep.matrix(h), rep.matrix(g @ h), atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (2, 4), (4, 7), (5, 8)])
def test_rectangles_are_exact_at_the_half_turn(shape: tuple[int, int]) -> None:
    rep = Pixels(SO2(), shape)
    eye = torch.eye(rep.dim, dtype=torch.float64)
    half = torch.matrix_exp(math.pi * rep.generators()[0].to_dense())
    turn = eye.flip(0)
    if (shape[0] * shape[1] // 2) % 2:
        assert "half turn exact but for one direction" in rep.exactness
        half = half @ rep.residual_generators()[0].map.to_dense()
    assert torch.allclose(half, turn, atol=1e-9)


def test_the_unpaired_direction_is_never_kept_as_symmetric() -> None:
    for group in (SO2(), C(8), C(3)):
        rep = Pixels(group, (6, 6))
        u = rep.circle.vectors[:, rep.circle.unpaired].mT
        spectrum = full_spectrum(Constraint.invariants(rep))
        energies = spectrum.energies(spectrum.analyse(u))
        assert float(energies[spectrum.sigma == 0].sum()) < 1e-20
        assert float(spectrum.sigma[energies.argmax()]) == pytest.approx(2 / (math.pi / 2))


def test_the_constant_and_radial_patterns_are_kept() -> None:
    """The strict space holds the constant exactly and radial patterns but for what lies in the corners."""
    basis = circle_basis(16, 16)
    still = basis.vectors[:, basis.frequency == 0].numpy()
    x, y = pixel_coordinates(16, 16)
    r = np.hypot(x, y)
    patterns = {
        "constant": (np.ones(256), 1e-12),
        "blob": (np.exp(-(r**2) / 8), 0.05),
        "ring": (np.exp(-((r - 4) ** 2)), 0.3),
    }
    for name, (pattern, loss) in patterns.items():
        rest = pattern - still @ (still.T @ pattern)
        assert np.linalg.norm(rest) / np.linalg.norm(pattern) < loss, name
    angular = x * np.exp(-(r**2) / 18)
    assert np.linalg.norm(still.T @ angular) < 1e-12 * np.linalg.norm(angular) + 1e-12


def test_the_construction_is_deterministic() -> None:
    first, second = circle_basis(7, 7), circle_basis(7, 7)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.frequency, second.frequency)


@pytest.mark.parametrize(("n", "factor"), [(7, 6.0), (14, 10.0), (16, 10.0)])
def test_invariance_error_against_the_bilinear_difference(n: int, factor: float) -> None:
    """The protocol of the benchmark, at equal dimension, on one set of patch centres."""
    row = compare(n, seed=0)
    assert row.ratio >= factor
    assert row.dimension >= 4
