"""Metrics: the action on images, divergences and Jacobians against independent definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from scipy.stats import chisquare, entropy, kstest

from equidial.errors import EquidialError
from equidial.groups import O2, SO2, C, D, Flip, Permutation, Shift
from equidial.metrics import (
    combined_accuracy,
    correct,
    invariance_kl,
    jacobian_norm,
    measured_elements,
    random_elements,
    relative_error,
    rotate_bilinear,
    soft_invariance,
    total_variation,
    transform_images,
)
from equidial.representations import Pixels


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 10), (9, 5)])
def test_bilinear_rotation_has_the_sign_and_centre_of_rot90(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    assert torch.allclose(rotate_bilinear(x, 0.0), x, atol=1e-12)
    assert torch.allclose(rotate_bilinear(x, math.pi), torch.rot90(x, 2, (-2, -1)), atol=1e-10)
    if shape[0] == shape[1]:
        for k in (1, 2, 3):
            assert torch.allclose(rotate_bilinear(x, k * math.pi / 2), torch.rot90(x, k, (-2, -1)), atol=1e-10)


def test_bilinear_rotation_against_scipy() -> None:
    """scipy.ndimage.rotate (order 1, zero outside) inside the disc that both see; its angles run the same way."""
    x = torch.randn(20, 20, dtype=torch.float64)
    for degrees in (10, 37, -75):
        ours = rotate_bilinear(x, math.radians(degrees)).numpy()
        theirs = rotate(x.numpy(), degrees, reshape=False, order=1, mode="grid-constant")
        inside = np.hypot(*np.meshgrid(np.arange(20) - 9.5, np.arange(20) - 9.5)) < 8.5
        assert np.abs(ours - theirs)[inside].max() < 1e-9


@pytest.mark.parametrize("group", [C(4), D(4), Flip(), Flip("vertical"), Shift(2, (6, 6))], ids=str)
def test_images_move_as_the_representation_says(group) -> None:
    x = torch.randn(2, 6, 6)
    rep = Pixels(Shift(2) if isinstance(group, Shift) else group, (6, 6))
    for g in group.elements():
        assert torch.equal(transform_images(x, g).flatten(1), rep.act(g, x.flatten(1)))


def test_measured_elements() -> None:
    assert len(measured_elements(C(4))) == 3
    assert len(measured_elements(D(4))) == 7
    assert len(measured_elements(C(8), radius=math.pi / 4)) == 2
    angles = sorted(g.value for g in measured_elements(SO2()))
    assert len(angles) == 12
    assert angles[0] == pytest.approx(-math.pi / 6)
    assert angles[-1] == pytest.approx(math.pi / 6)
    assert 0.0 not in angles
    assert np.allclose(np.diff([a for a in angles if a > 0]), math.pi / 36)
    assert len(measured_elements(Shift(2))) == 4
    assert len(measured_elements(Shift(2), radius=2)) == 12


def test_random_elements_have_the_distribution_named() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = random_elements(C(4), 3000, generator=generator)
    assert chisquare(np.bincount([g.value for g in drawn.elements], minlength=4)[1:]).pvalue > 1e-3
    assert drawn.distribution == "uniform over the 3 elements of C4 other than the identity"
    assert not any(g.is_identity for g in drawn.elements)
    near = random_elements(D(4), 20, math.pi / 2, generator)
    assert near.radius == pytest.approx(math.pi / 2)
    assert near.distribution.endswith("the 2 elements of D4 other than the identity within distance 1.5708")
    angles = [g.value for g in random_elements(SO2(), 2000, 0.4, generator).elements]
    assert kstest(np.array(angles) / 0.8 + 0.5, "uniform").pvalue > 1e-3
    turns, mirrors = zip(*[g.value for g in random_elements(O2(), 2000, math.pi, generator).elements], strict=True)
    assert chisquare(np.bincount(mirrors)).pvalue > 1e-3
    assert kstest(np.array(turns) / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-3
    assert random_elements(Flip(), 2, generator=generator).distribution.startswith("always")


def test_total_variation_and_relative_error() -> None:
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    p, q = torch.softmax(a.double(), -1), torch.softmax(b.double(), -1)
    subsets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 5)
    assert torch.allclose(total_variation(a, b), ((p - q) @ subsets.mT).amax(1)), "over all sets of classes"
    opposite = torch.tensor([[1e6, 0.0]])
    assert float(total_variation(opposite, opposite.flip(-1))) == 1.0
    zero = torch.zeros(2, 3)
    assert relative_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]])).tolist() == [0.8]
    assert relative_error(zero, torch.tensor([[0.0, 0, 0], [1, 0, 0]])).tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: measured_elements(C(4), radius=0.1),
        lambda: measured_elements(C(1)),
        lambda: random_elements(C(4), 3, radius=0.1),
        lambda: random_elements(Permutation(10), 3, radius=2.0),
        lambda: random_elements(SO2(), 3, radius=0.0),
        lambda: random_elements(C(4), -1),
        lambda: C(4).sample_within(3, 1.0),
        lambda: SO2().sample_within(-1, 1.0),
        lambda: SO2().sample_within(3, math.inf),
        lambda: transform_images(torch.zeros(3, 4), C(4).element(1)),
        lambda: transform_images(torch.zeros(4), C(4).element(1)),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()


def test_divergence_is_that_of_scipy() -> None:
    p, q = torch.randn(5, 7), torch.randn(5, 7)
    expected = entropy(torch.softmax(p.double(), -1), torch.softmax(q.double(), -1), axis=-1)
    assert np.allclose(invariance_kl(p, q), expected, atol=1e-12)
    assert torch.equal(invariance_kl(p, p), torch.zeros(5, dtype=torch.float64))


def test_accuracies() -> None:
    logits = torch.tensor([[0.1, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert correct(logits, torch.tensor([1, 1, 1])).tolist() == [True, False, True]
    assert combined_accuracy(0.9, 0.4) == pytest.approx(math.sqrt(0.36))


def test_jacobian_norm_is_exact_for_few_outputs_and_unbiased_for_many() -> None:
    weight = torch.randn(6, 12, dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.flatten(1) @ weight.mT)

    x = torch.randn(3, 3, 4, dtype=torch.float64)
    expected = [torch.autograd.functional.jacobian(lambda z: function(z[None])[0], sample).norm() for sample in x]
    found = jacobian_norm(function, x, probes=6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.stack(expected), atol=1e-10)
    rough = jacobian_norm(function, x, probes=5, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(rough, found, atol=1e-6)
    many = torch.stack(
        [jacobian_norm(function, x, 5, torch.Generator().manual_seed(s)).square() for s in range(400)]
    ).mean(0)
    assert torch.allclose(many, found.square(), rtol=0.05)


def test_soft_invariance_of_a_linear_map() -> None:
    """f(x) = A x: epsilon = ||A (g x - x)|| / (||A||_F ||x||)."""
    a = torch.randn(4, 9, dtype=torch.float64)
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    moved = torch.rot90(x, 1, (-2, -1))
    difference = (moved - x).flatten(1) @ a.mT
    jacobian = jacobian_norm(lambda z: z.flatten(1) @ a.mT, x, 4, torch.Generator())
    expected = difference.norm(dim=1) / (a.norm() * x.flatten(1).norm(dim=1))
    assert torch.allclose(soft_invariance(difference, jacobian, x), expected)
    assert torch.equal(soft_invariance(0 * difference, 0 * jacobian, x), torch.zeros(2, dtype=torch.float64))
