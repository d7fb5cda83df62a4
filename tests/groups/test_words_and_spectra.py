"""Counts of invariants against characters integrated here, spectra of tensors, logarithms, and wrong groups."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from equidial.errors import EquidialError, EquidialWarning, GroupActionError
from equidial.groups import (
    O2,
    SE2,
    SO,
    C,
    D,
    Flip,
    GeneratedGroup,
    Group,
    GroupElement,
    Lorentz,
    O,
    Orthogonal,
    Permutation,
    Product,
    Scale,
    SpecialOrthogonal,
    Translation,
)


def at(group: Group, value: object) -> GroupElement:
    """The element with this coordinate."""
    return group.element(value)


def rotation_average(n: int, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Average over SO(n) of a function of ``(trace, trace of g^2)`` by Weyl's integration formula.

    Class functions live on the angles of a maximal torus, with density ``prod |cos a - cos b|^2`` (even ``n``), times
    ``prod (1 - cos a)`` (odd ``n``). Trapezoids are exact for these trigonometric polynomials.
    """
    nodes = 2 * np.pi * np.arange(64) / 64
    angles = np.array(list(itertools.product(nodes, repeat=n // 2)))
    cosines = np.cos(angles)
    density = np.ones(len(angles))
    for i, j in itertools.combinations(range(n // 2), 2):
        density *= (cosines[:, i] - cosines[:, j]) ** 2
    if n % 2:
        density *= np.prod(1 - cosines, axis=1)
    trace = 2 * cosines.sum(1) + n % 2
    square = 2 * np.cos(2 * angles).sum(1) + n % 2
    return float((function(trace, square) * density).sum() / density.sum())


def reflection_average(n: int, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Average over the elements of O(n) with determinant -1: ``-SO(n)`` for odd ``n``; else eigenvalues 1, -1 and

    angles with the density of the compact symplectic group of rank ``n/2 - 1``.
    """
    if n % 2:
        return rotation_average(n, lambda trace, _: function(-trace))
    nodes = 2 * np.pi * np.arange(64) / 64
    angles = np.array(list(itertools.product(nodes, repeat=n // 2 - 1))).reshape(-1, n // 2 - 1)
    cosines = np.cos(angles)
    density = np.prod(np.sin(angles) ** 2, axis=1)
    for i, j in itertools.combinations(range(n // 2 - 1), 2):
        density *= (cosines[:, i] - cosines[:, j]) ** 2
    return float((function(2 * cosines.sum(1)) * density).sum() / density.sum())


def invariants_by_characters(group: Group, order: int) -> float:
    """Dimension of the invariants of T(order): the average of the ``order``-th power of the trace."""
    if isinstance(group, SpecialOrthogonal):
        return rotation_average(group.n, lambda trace, _: trace**order)
    if isinstance(group, Orthogonal):
        whole = rotation_average(group.n, lambda trace, _: trace**order)
        return (whole + reflection_average(group.n, lambda trace: trace**order)) / 2
    traces = [float(group.natural_matrix(g.value).trace()) for g in group.elements()]
    return float(np.mean(np.array(traces) ** order))


@pytest.mark.parametrize("group", [SO(3), SO(4), SO(5), O(3), O(4), O(5), Permutation(3), Permutation(4)], ids=str)
@pytest.mark.parametrize("order", range(6))
def test_invariants_of_tensors_are_those_of_the_characters(group: Group, order: int) -> None:
    found = group.tensor_spectrum(order)
    assert found is not None
    assert found.get(0.0, 0) == pytest.approx(invariants_by_characters(group, order), abs=1e-9)


@pytest.mark.parametrize(
    ("group", "order", "count"),
    [
        (O(5), 2, 1),
        (O(5), 4, 3),
        (O(5), 3, 0),
        (SO(3), 3, 1),
        (O(3), 3, 0),
        (SO(4), 4, 4),
        (O(4), 4, 3),
        (SO(5), 5, 1),
        (O(3), 4, 3),
        (O(7), 6, 15),
        (O(3), 6, 15),
        (O(3), 8, 91),
    ],
)
def test_known_numbers_of_invariants(group: Group, order: int, count: int) -> None:
    """Pairings ``(k - 1)!!`` while they are independent, and the determinant of SO(n)."""
    found = group.tensor_spectrum(order)
    assert found is not None
    assert found.get(0.0, 0) == count


@pytest.mark.parametrize(("order", "bell"), [(0, 1), (1, 1), (2, 2), (3, 5), (4, 15), (5, 52), (6, 203)])
def test_invariants_of_permutations_are_bell_numbers(order: int, bell: int) -> None:
    """One invariant for each partition of the legs, where there are objects enough."""
    for n in (max(order, 1), order + 2, order + 3):
        assert Permutation(n).tensor_spectrum(order)[0.0] == bell


@pytest.mark.parametrize(
    "group", [SO(3), SO(4), SO(5), SO(6), O(3), O(4), O(5), Permutation(3), Permutation(5)], ids=str
)
@pytest.mark.parametrize("order", range(5))
def test_tensor_spectra_have_the_moments_of_the_operator(group: Group, order: int) -> None:
    """Whole, and ``tr Q`` as computed from traces of generators and letters alone (any size)."""
    found = group.tensor_spectrum(order)
    assert found is not None
    n = group.natural_dim or 0
    assert sum(found.values()) == n**order
    expected = 0.0
    for a in group.natural_generators():
        # tr of the square of sum_l I .. A .. I: cross terms hold tr(A) = 0
        expected += order * float(a.square().sum()) * n ** (order - 1) if order else 0.0
    for s in group.discrete_generators():
        if not s.on_invariants:
            expected += (2 * n**order - 2 * float(group.natural_matrix(s.element.value).trace()) ** order) / s.length**2
    got = sum(q * m for q, m in found.items())
    if any(s.on_invariants for s in group.discrete_generators()):
        kept = SO(n).tensor_spectrum(order)
        assert kept is not None
        expected += (kept.get(0.0, 0) - found.get(0.0, 0)) * (2 / math.pi) ** 2
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_logarithms_of_rotations_are_the_shortest(n: int) -> None:
    """Angles near and at a half turn, repeated and alone: ``exp(log g) = g`` and ``||t||^2`` sums squared angles."""
    group = SpecialOrthogonal(n)
    planes = n // 2
    choices = ([0.0] * planes, [math.pi] * planes, [math.pi - 1e-9] * planes, [1e-9] * planes, [math.pi / 2] * planes)
    for seed, angles in enumerate([*choices, [math.pi, *[0.3] * (planes - 1)], [2.0 + 0.1 * i for i in range(planes)]]):
        matrix = torch.eye(n, dtype=torch.float64)
        for i, angle in enumerate(angles):
            c, s = math.cos(angle), math.sin(angle)
            matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        basis = group.natural_matrix(group.sample(1, torch.Generator().manual_seed(seed))[0].value)
        g = group.element(basis @ matrix @ basis.mT)
        assert g.distance() == pytest.approx(math.hypot(*angles), abs=2e-7), angles
        t = group.lie_coordinates(group.natural_matrix(g.value))
        assert torch.allclose(group.natural_matrix(group.exp(t).value), group.natural_matrix(g.value), atol=1e-7)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_reflections_are_letters_and_rotations(n: int) -> None:
    """Every mirror is pi away (odd ``n``: minus a half turn), and no element is further than the radius."""
    group = Orthogonal(n)
    axis = torch.nn.functional.normalize(torch.randn(n, dtype=torch.float64), dim=0)
    mirror = torch.eye(n, dtype=torch.float64) - 2 * torch.outer(axis, axis)
    expected = math.pi if n % 2 == 0 else math.pi + math.pi * math.sqrt(n // 2)
    assert group.element(mirror).distance() == pytest.approx(expected, abs=1e-6)
    assert group.element(-torch.eye(n)).distance() == pytest.approx(
        math.pi if n % 2 else math.pi * math.sqrt(n / 2), abs=1e-6
    )
    for g in group.sample(100, torch.Generator().manual_seed(n)):
        assert g.distance() <= group.radius + 1e-9


def test_samples_of_so_and_o_are_haar() -> None:
    """Second and fourth moments of the trace: 1 and 3 for O(n), n >= 4; half of O(n) has determinant -1."""
    matrices = torch.stack([O(4).natural_matrix(g.value) for g in O(4).sample(20000, torch.Generator().manual_seed(0))])
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    assert float(trace.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert float(trace.pow(4).mean()) == pytest.approx(3.0, abs=0.35)
    assert float((torch.linalg.det(matrices) < 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    third = [float(SO(3).natural_matrix(g.value).trace()) ** 3 for g in SO(3).sample(20000, torch.Generator())]
    assert float(np.mean(third)) == pytest.approx(1.0, abs=0.1)


def test_radii_are_reached() -> None:
    """``sup_g`` is attained, so that no smaller radius would do."""
    for n in (3, 4, 5):
        half = torch.diag(torch.tensor([-1.0] * (n - n % 2) + [1.0] * (n % 2)))
        assert at(SO(n), half).distance() == pytest.approx(SO(n).radius)
    assert at(O(4), torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0]))).distance() == pytest.approx(O(4).radius)
    assert at(O(3), torch.diag(torch.tensor([-1.0, 1.0, 1.0]))).distance() == pytest.approx(O(3).radius)
    assert Permutation(5).element((1, 2, 3, 4, 0)).distance() == Permutation(5).radius


def test_generators_that_are_stable_pass_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turns = SO(3).natural_generators()
        group = GeneratedGroup("turns", turns, [-torch.eye(3)], lengths=[math.pi], radius=7.0)
        assert group.is_stable
        assert group == GeneratedGroup("turns", turns.clone(), [-torch.eye(3)], lengths=[math.pi], radius=7.0)
        assert group != GeneratedGroup("turns", turns, [-torch.eye(3)], lengths=[3.0], radius=7.0)
        assert hash(group) == hash(GeneratedGroup("turns", turns, [-torch.eye(3)], lengths=[math.pi], radius=7.0))
        assert GeneratedGroup("mirrors of a square", discrete=[D(4).natural_matrix((k, 1)) for k in range(4)]).is_stable


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            lambda: GeneratedGroup("G", 2 * SO(3).natural_generators() * torch.tensor([1.0, 2, 3])[:, None, None]),
            "basis",
        ),
        (lambda: GeneratedGroup("G", Lorentz().natural_generators()[3:4]), "not skew"),
        (lambda: GeneratedGroup("G", discrete=[D(4).natural_matrix(v) for v in ((1, 0), (0, 1))]), "conjugation"),
        (lambda: GeneratedGroup("G", [O2().natural_generators()[0]], [D(1).natural_matrix((0, 1))]), "moves"),
    ],
)
def test_an_unstable_set_of_generators_warns(given, why: str) -> None:
    with pytest.warns(Warning, match=why) as caught:
        group = given()
    assert all(issubclass(w.category, EquidialWarning) for w in caught)
    assert not group.is_stable


SKEW = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: GeneratedGroup("G", [SKEW, torch.zeros(3, 3)]), "one size"),
        (lambda: GeneratedGroup("G", [torch.zeros(2, 3)]), "square"),
        (lambda: GeneratedGroup("G"), "square"),
        (lambda: GeneratedGroup("G", SO(3).natural_generators()[:2]), "closed under the bracket"),
        (lambda: GeneratedGroup("G", [SKEW, 2 * SKEW]), "independent"),
        (lambda: GeneratedGroup("G", [0 * SKEW]), "independent"),
        (lambda: GeneratedGroup("G", [SKEW * math.nan]), "finite"),
        (lambda: GeneratedGroup("G", [SKEW], [math.inf * torch.eye(2)]), "finite"),
        (lambda: GeneratedGroup("G", [SKEW], [torch.zeros(2, 2)]), "invertible"),
        (lambda: GeneratedGroup("G", [SKEW], [-torch.eye(2)], lengths=[1.0, 2.0]), "lengths"),
        (lambda: GeneratedGroup("G", [SKEW], [-torch.eye(2)], lengths=[0.0]), "lengths"),
        (lambda: GeneratedGroup("G", [SKEW], radius=0.0), "radius"),
        (lambda: GeneratedGroup("G", [SKEW], radius=math.nan), "radius"),
        (lambda: C(4) * O2(), "closed under conjugation"),
        (lambda: O(4) * C(4), "closed under conjugation"),
        (lambda: Product((C(4),)), "two factors"),
        (lambda: Product((C(4), "C4")), "groups as factors"),  # type: ignore[arg-type]
        (lambda: at(SO(3), -torch.eye(3)), "orthogonal matrix"),
        (lambda: at(SO(3), torch.ones(3, 3)), "orthogonal matrix"),
        (lambda: at(SO(3), torch.eye(4)), "3 x 3"),
        (lambda: at(O(3), 2 * torch.eye(3)), "orthogonal matrix"),
        (lambda: at(O(3), torch.full((3, 3), math.nan)), "finite"),
        (lambda: Lorentz(proper=True).element(-torch.eye(4)), "SO"),
        (lambda: Lorentz().element(torch.diag(torch.tensor([2.0, 1, 1, 1]))), "matrix of"),
        (lambda: SE2().element(2 * torch.eye(3)), "homogeneous"),
        (lambda: Permutation(3).element((0, 0, 1)), "in some order"),
        (lambda: Permutation(0), "n >= 1"),
        (lambda: Permutation(8).elements(), "finite group"),
        (lambda: Translation(4), "dims"),
        (lambda: Translation(2).element((1.0,)), "coordinates"),
        (lambda: Scale().exp(math.inf), "finite"),
        (lambda: SO(3).exp([0.1, 0.2]), "3 Lie coordinates"),
        (lambda: (SO(3) * C(4)).exp([0.1]), "3 Lie coordinates"),
        (lambda: (SO(3) * C(4)).element((SO(3).identity().value,)), "2 coordinates"),
    ],
)
def test_wrong_groups_and_elements_are_refused(wrong, why: str) -> None:
    with pytest.raises(EquidialError, match=rf"(?s)expected .*{why}.*got: .*do: "):
        wrong()


def test_elements_that_are_no_word_say_so() -> None:
    group = GeneratedGroup("mirrors", discrete=[D(4).natural_matrix((k, 1)) for k in range(4)])
    a, b = (s.element for s in group.discrete_generators()[:2])
    assert a.distance() == 1.0
    with pytest.raises(GroupActionError, match="as a word"):
        (a @ b).distance()


def test_products_flatten_and_combine() -> None:
    group = SO(3) * (C(4) * Flip())
    assert isinstance(group, Product)
    assert group == (SO(3) * C(4)) * Flip()
    assert len(group.factors) == 3
    assert group.radius == pytest.approx(math.pi + math.pi + math.pi)
    assert (SO(3) * SO(4)).radius == pytest.approx(math.pi * math.sqrt(3))
    assert (C(3) * Flip()).order == 6
