"""Translations and magnification of a window of pixels against closed forms, and the grids of one and three axes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

import equidial as ed
from equidial import equivariant_filter, invariant_filter
from equidial.certificates import certify_weight
from equidial.errors import EquidialError, GroupActionError
from equidial.filters import Constraint
from equidial.groups import C, D, Flip, Group, Scale, Shift, Translation
from equidial.representations import Dual, Pixels, Trivial, parse, tokens
from equidial.representations._window import AxisMap, derivative_matrix
from tests.oracle import factors, oracle
from tests.spaces import full_spectrum, random_weight

ACTIONS = [
    (Translation(1), (5,)),
    (Translation(2), (3, 4)),
    (Translation(3), (2, 3, 4)),
    (Translation(2), (1, 3)),
    (Scale(), (6,)),
    (Scale(), (7, 7)),
    (Scale(), (3, 5)),
]


def cosine(n: int, k: int, x: torch.Tensor) -> torch.Tensor:
    return torch.cos(math.pi * k * (x + 0.5) / n)


def sine(n: int, k: int, x: torch.Tensor) -> torch.Tensor:
    return torch.sin(math.pi * k * (x + 0.5) / n)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 14])
def test_cosines_are_differentiated_exactly(n: int) -> None:
    x = torch.arange(n, dtype=torch.float64)
    for k in range(n):
        exact = -math.pi * k / n * sine(n, k, x)
        assert torch.allclose(derivative_matrix(n) @ cosine(n, k, x), exact, atol=1e-12)
        (a,) = Pixels(Translation(1), (n,)).generators()
        assert torch.allclose(a @ cosine(n, k, x), -exact, atol=1e-12), "towards larger indices"
        (a,) = Pixels(Scale(), (n,)).generators()
        assert torch.allclose(a @ cosine(n, k, x), -(x - (n - 1) / 2) * exact, atol=1e-11), "about the centre"
    # samples of sines are orthogonal as those of cosines are, so the derivative has the singular values pi k / n
    found = torch.linalg.svdvals(derivative_matrix(n)).flip(0)
    assert torch.allclose(found, math.pi / n * x, atol=1e-12)


@pytest.mark.parametrize(("group", "shape"), ACTIONS, ids=str)
def test_generators_act_axis_by_axis_and_elements_are_a_homomorphism(group: Group, shape: tuple[int, ...]) -> None:
    rep = Pixels(group, shape)
    rows = [torch.arange(n, dtype=torch.float64) for n in shape]
    f = torch.zeros(shape, dtype=torch.float64)
    slopes = [torch.zeros(shape, dtype=torch.float64) for _ in shape]
    generator = torch.Generator().manual_seed(0)
    for k in itertools.product(*(range(n) for n in shape)):
        size = torch.randn(1, generator=generator).double()
        waves = [cosine(n, m, x) for n, m, x in zip(shape, k, rows, strict=True)]
        f += size * outer(waves)
        for axis, (n, m, x) in enumerate(zip(shape, k, rows, strict=True)):
            slope = -math.pi * m / n * sine(n, m, x)
            slopes[axis] += size * outer([*waves[:axis], slope, *waves[axis + 1 :]])
    if isinstance(group, Translation):
        expected = [-slope for slope in slopes]
    else:
        grids = torch.meshgrid(*(x - (len(x) - 1) / 2 for x in rows), indexing="ij")
        expected = [-sum((x * slope for x, slope in zip(grids, slopes, strict=True)), torch.zeros(shape))]
    generators = rep.generators()
    assert len(generators) == group.lie_dim
    for a, image in zip(generators, expected, strict=True):
        assert torch.allclose(a @ f.flatten(), image.flatten().double(), atol=1e-11)
        dense = a.to_dense()
        assert torch.allclose(a.T.to_dense(), dense.mT, atol=1e-14)
        assert a.trace() == pytest.approx(float(dense.trace()), abs=1e-12)
        assert float(torch.linalg.matrix_norm(dense, 2)) <= a.norm_bound()
    assert rep.discrete_generators() == ()
    for g, h in itertools.pairwise(group.sample(4, torch.Generator().manual_seed(1))):
        assert torch.allclose(rep.matrix(g) @ rep.matrix(h), rep.matrix(g @ h), atol=1e-11)
        assert torch.allclose(rep.matrix(g.inverse()) @ rep.matrix(g), torch.eye(rep.dim).double(), atol=1e-11)
        t = torch.tensor(g.value, dtype=torch.float64)
        summed = sum((s * a.to_dense() for s, a in zip(t, generators, strict=True)), torch.zeros(rep.dim, rep.dim))
        assert torch.allclose(torch.matrix_exp(summed.double()), rep.matrix(g), atol=1e-11)
        size = float(torch.linalg.matrix_norm(rep.matrix(g), 2))
        assert size <= math.exp(rep.growth * g.distance())
        assert rep.character(g) == pytest.approx(float(rep.matrix(g).trace()), abs=1e-10)
    constant = torch.ones(rep.dim, dtype=torch.float64)
    assert torch.allclose(rep.act(group.sample(1)[0], constant), constant, atol=1e-12)


def outer(factors_: list[torch.Tensor]) -> torch.Tensor:
    out = factors_[0]
    for v in factors_[1:]:
        out = out[..., None] * v
    return out


@pytest.mark.parametrize(("group", "shape"), ACTIONS, ids=str)
def test_growth_is_the_norm_of_the_symmetric_part(group: Group, shape: tuple[int, ...]) -> None:
    rep = Pixels(group, shape)
    matrices = torch.stack([a.to_dense() for a in rep.generators()])
    directions = torch.randn(200, len(matrices), dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    combined = torch.einsum("di,iab->dab", directions, matrices)
    largest = float(torch.linalg.eigvalsh((combined + combined.mT) / 2).abs().max())
    assert largest <= rep.growth <= largest * (1.5 if group == Translation(3) else 1.01) + 1e-12
    assert not rep.is_orthogonal
    assert rep.dual.growth == rep.growth


def test_growth_as_documented() -> None:
    for n, shift, scale in ((7, 1.92, 10.9), (14, 2.23, 25.2)):
        assert Pixels(Translation(2), (n, n)).growth == pytest.approx(shift, abs=0.006)
        assert Pixels(Scale(), (n, n)).growth == pytest.approx(scale, abs=0.06)


@pytest.mark.parametrize(("n", "rim", "most", "cubic_most"), [(7, 2, 1e-2, 2e-2), (14, 3, 5e-4, 1.2e-3)])
def test_smooth_pictures_move_inside_the_window(n: int, rim: int, most: float, cubic_most: float) -> None:
    """Against the exact picture, and against a cubic spline of the pixels, whose own error is the larger one."""
    sigma, c = n / 7, np.arange(n) - (n - 1) / 2
    y, x = np.meshgrid(c, c, indexing="ij")

    def blob(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.exp(-((x - 0.4) ** 2 + (y + 0.3) ** 2) / (2 * sigma**2))

    inside = (slice(rim, -rim), slice(rim, -rim))
    picture = torch.from_numpy(blob(y, x).ravel())
    cases = [(Scale().exp(t), y * math.exp(-t), x * math.exp(-t)) for t in (0.2, -0.2)]
    cases += [(Translation(2).exp(t), y - t[0], x - t[1]) for t in ((0.3, -0.4), (1.0, 0.0))]
    for g, from_y, from_x in cases:
        moved = Pixels(g.group, (n, n)).act(g, picture).numpy().reshape(n, n)[inside]
        exact = blob(from_y, from_x)[inside]
        source = [from_y + (n - 1) / 2, from_x + (n - 1) / 2]
        cubic = map_coordinates(blob(y, x), source, order=3, mode="nearest")[inside]
        size = np.linalg.norm(exact)
        assert np.linalg.norm(moved - exact) < most * size
        assert np.linalg.norm(moved - cubic) < cubic_most * size


@pytest.mark.parametrize(
    ("group", "shape"), [(Scale(), (7, 7)), (Scale(), (9,)), (Translation(2), (4, 5)), (Translation(3), (2, 3, 2))]
)
def test_invariant_filters_equal_the_dense_oracle(group: Group, shape: tuple[int, ...]) -> None:
    for rep in (Pixels(group, shape), Pixels(group, shape).dual, tokens(group, shape)):
        constraint = Constraint.invariants(rep)
        dense, weight = oracle(constraint), random_weight(constraint)
        assert np.allclose(np.sort(dense.sigma), full_spectrum(constraint).values(), atol=1e-10)
        for response in ("hard", "taper", "exponential"):
            for b in (0.0, 0.9, 3.0):
                f = invariant_filter(rep, threshold=b, response=response)
                assert f.method == "dense"
                assert torch.allclose(f(weight), dense.filtered(weight, factors(response, dense.sigma, b)), atol=1e-9)
        nearest = invariant_filter(rep, threshold=0.9, response="nearest")
        assert constraint.defect(nearest(weight)) <= 0.9
        assert nearest.bound() == nearest.bound(group.sample_radius), "the declared set"
        m, r = rep.growth, 0.1
        assert nearest.bound(r) == pytest.approx(min(0.9 * math.expm1(m * r) / m, 1 + math.exp(m * r)), rel=1e-9)


def test_translations_have_a_known_spectrum() -> None:
    """``sigma = pi hypot(j / h, k / w)``; the alternating pattern sees no motion, a flat one does not move."""
    h, w = 4, 5
    rep = Pixels(Translation(2), (h, w))
    known = sorted(math.pi * math.hypot(j / h, k / w) for j in range(h) for k in range(w))
    assert np.allclose(full_spectrum(Constraint.invariants(rep)).values(), known, atol=1e-11)
    alternating = (-1.0) ** torch.arange(h).double()[:, None] * (-1.0) ** torch.arange(w).double()
    for space, expected in ((rep, alternating), (rep.dual, torch.ones(h, w).double())):
        strict = invariant_filter(space, softness=0.0, response="hard")
        assert strict.rank == 1
        assert torch.allclose(strict(expected.flatten()), expected.flatten(), atol=1e-11)
    assert isinstance(rep.dual, Dual)


@pytest.mark.parametrize(
    ("group", "shape"), [(Scale(), (5, 5)), (Scale(), (7, 7)), (Translation(1), (6,)), (Translation(2), (4, 4))]
)
@pytest.mark.parametrize("to_itself", [False, True])
def test_certificates_hold_against_the_worst_elements(group: Group, shape: tuple[int, ...], to_itself: bool) -> None:
    rep = Pixels(group, shape)
    if to_itself and rep.dim > 36:
        rep = Pixels(group, (4, 4))
    constraint = Constraint.equivariants(rep, rep) if to_itself else Constraint.invariants(rep)
    for seed, response in enumerate(("nearest", "hard", "taper")):
        dial = {"threshold": 1.2, "response": response}
        f = equivariant_filter(rep, rep, **dial) if to_itself else invariant_filter(rep, **dial)
        weight = f(random_weight(constraint, copies=(2,), seed=seed))
        matrices = constraint.as_matrices(weight)

        def error(t: np.ndarray, radius: float, matrices: torch.Tensor = matrices) -> float:
            t = t * min(1.0, radius / max(float(np.linalg.norm(t)), 1e-300))
            return float(constraint.difference(group.exp(t.tolist()), matrices).norm() / matrices.norm())

        for radius in (group.sample_radius, 0.05):
            found = certify_weight(constraint, weight, radius)
            rng = np.random.default_rng(seed)
            starts = rng.standard_normal((40, group.lie_dim))
            starts *= radius / np.linalg.norm(starts, axis=1, keepdims=True)
            worst = sorted((error(t, radius), i) for i, t in enumerate(starts))[-1]
            best = minimize(
                lambda t, radius=radius: -error(t, radius),
                starts[worst[1]],
                method="Nelder-Mead",
                options={"maxiter": 60},
            )
            assert max(worst[0], -best.fun) <= found.bound
            assert found.measured <= found.bound <= f.bound(radius) * (1 + 1e-9)
    unit = "log(factor)" if group == Scale() else "px"
    assert unit in found.elements


def test_large_maps_are_matrix_free() -> None:
    rep = Pixels(Scale(), (14, 14))
    weight = torch.randn(196, 196, dtype=torch.float64)
    f = equivariant_filter(rep, rep, threshold=30.0, response="taper", tolerance=1e-6)
    assert f.method == "chebyshev"
    soft = f(weight)
    assert f.defect(soft) < 0.8 * f.defect(weight)
    small = Pixels(Scale(), (4, 4))
    weight = torch.randn(16, 16, dtype=torch.float64)
    for response in ("taper", "exponential"):
        exact = equivariant_filter(small, small, threshold=4.0, response=response, method="dense")(weight)
        method = {"taper": "chebyshev", "exponential": "lanczos"}[response]
        series = equivariant_filter(small, small, threshold=4.0, response=response, method=method, tolerance=1e-5)(
            weight
        )
        assert float((series - exact).norm() / weight.norm()) < 1e-4
    f = equivariant_filter(rep, rep, threshold=8.0, tolerance=1e-6)
    weight = torch.randn(196, 196, dtype=torch.float64)
    assert f.method == "cg"
    soft = f(weight)
    assert f.defect(soft) == pytest.approx(8.0, rel=1e-6)
    assert certify_weight(f.constraint, soft, 0.02).measured <= f.bound(0.02, soft)


def test_what_is_said_of_the_action(tmp_path) -> None:
    rep = Pixels(Scale(), (7, 7))
    assert "band-limited approximation" in rep.exactness
    assert "not orthogonal" in rep.exactness
    assert rep.constructions == rep.dual.constructions == {"cosine-window-1"}
    assert parse("Pixels(7,7)", Scale()) == rep
    assert parse("Dual(Pixels(7,7))", Scale()) == rep.dual
    assert rep.connected == rep
    assert all(isinstance(a, AxisMap) for a in Pixels(Translation(3), (8, 8, 8)).generators())
    x = torch.randn(2, 49)
    assert rep.act(Scale().exp(0.1), x).dtype == torch.float32


class Table(torch.nn.Module):
    """An image network with a 5 x 5 position table."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, 4, 3, stride=3)
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 26, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.patches(x).flatten(2).mT + self.pos_embed[:, 1:]).mean(1)


@pytest.mark.parametrize(("group", "tensors"), [("Scale", 2), ("R2", 1)])
def test_networks_under_groups_without_a_largest_element(group: str, tensors: int, tmp_path) -> None:
    torch.manual_seed(0)
    base = Table()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    model = ed.soften(base, ed.SoftEquivarianceConfig(group=group, softness=0.4, radius=0.05))
    found = ed.certify(model)
    assert len(found.layers) == tensors, "a convolution commutes with translations as it is"
    assert all(row.measured <= row.bound and row.level == "kernel" for row in found.layers)
    assert all("band-limited" in row.notes[0] for row in found.layers)
    ed.save(model, tmp_path / "soft")
    fresh = Table()
    fresh.load_state_dict(state)
    x = torch.randn(1, 1, 15, 15)
    assert torch.equal(ed.load(fresh, tmp_path / "soft")(x), model(x))


ONE_AXIS = [C(1), C(2), D(1), D(2), Flip(), Flip("vertical")]


@pytest.mark.parametrize("group", ONE_AXIS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_one_dimensional_grids(group: Group, n: int) -> None:
    """The half turn and the left-right mirror reverse the order, the top-bottom mirror does nothing."""
    rep = Pixels(group, (n,))
    x = torch.arange(n, dtype=torch.float32)
    for g in group.elements():
        mapped = torch.diag(torch.tensor([1.0, 1.0])).double() if group == C(1) else group.natural_matrix(g.value)
        expected = x.flip(0) if float(mapped[0, 0]) < 0 else x
        assert torch.equal(rep.act(g, x), expected)
    assert rep.is_permutation
    assert rep.constructions == frozenset()
    for space in (rep, tokens(group, (n,), 2)):
        strict = invariant_filter(space, softness=0.0, response="hard")
        weight = torch.randn(3, space.dim, dtype=torch.float64)
        images = torch.stack([space.act(g, weight) for g in group.elements()])
        assert torch.allclose(strict(weight), images.mean(0), atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_shifts_of_one_to_three_axes(shape: tuple[int, ...]) -> None:
    group = Shift(len(shape))
    rep = Pixels(group, shape)
    x = torch.randn(2, *shape)
    steps = tuple(range(1, len(shape) + 1))
    axes = tuple(range(1, len(shape) + 1))
    assert torch.equal(rep.act(group.element(steps), x.flatten(1)), torch.roll(x, steps, axes).flatten(1))
    assert rep.effective_group.radius == sum(n // 2 for n in shape)
    for axis, letter in enumerate(rep.discrete_generators(), start=1):
        assert torch.equal(letter.on_last_axis(x.flatten(1)), torch.roll(x, 1, axis).flatten(1))
    table = tokens(group, shape, 2)
    weight = torch.randn(5, table.dim, dtype=torch.float64)
    strict = invariant_filter(table, softness=0.0, response="hard")(weight)
    assert torch.allclose(strict[:, :2], weight[:, :2], atol=1e-12), "extra tokens stay in place"
    assert torch.allclose(strict[:, 2:], weight[:, 2:].mean(1, keepdim=True).expand(-1, rep.dim), atol=1e-12)
    soft = invariant_filter(rep, softness=0.3)(weight[:, 2:])
    found = certify_weight(Constraint.invariants(rep), soft)
    assert found.kind == "exact"
    assert found.bound <= found.radius * Constraint.invariants(rep).defect(soft) * (1 + 1e-9)
    assert parse(table.name, group) == table


@pytest.mark.parametrize(
    ("group", "shape", "why"),
    [
        (Translation(2), (5,), r"axes of R2(?s:.*)Translation\(1\)"),
        (Translation(1), (3, 3), r"axes of R1(?s:.*)Translation\(2\)"),
        (Shift(3), (3, 3), r"axes of T3(?s:.*)Shift\(2\), cyclic"),
        (Scale(), (3, 3, 3), "1-D or 2-D"),
        (C(4), (5,), "square"),
        (D(4), (6,), "square"),
        (C(3), (5,), "two axes"),
        (D(2), (3, 3, 3), "1-D or 2-D"),
    ],
)
def test_grids_that_do_not_fit_are_refused(group: Group, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(GroupActionError, match=why):
        Pixels(group, shape)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Pixels(Scale(), (0, 3)),
        lambda: Pixels(Scale(), (3, 3), "cosine-window-1"),
        lambda: Pixels(Scale(), (3, 3)).act(Translation(1).exp(0.1), torch.zeros(9)),
        lambda: Pixels(Scale(), (3, 3)).act(Scale().exp(0.1), torch.zeros(8)),
        lambda: Pixels(Translation(2), (3, 3)).act(Translation(2).exp(0.1), torch.zeros(9)),
        lambda: invariant_filter(Pixels(Scale(), (3, 3)), max_error=-0.1),
        lambda: invariant_filter(Pixels(Scale(), (3, 3)), softness=0.1, method="closed_form"),
        lambda: certify_weight(Constraint.invariants(Pixels(Translation(1), (3,))), torch.zeros(3), math.inf),
        lambda: Pixels(Scale(), (3, 3)) + Trivial(Translation(1)),
    ],
)
def test_wrong_use_is_refused(wrong) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()
