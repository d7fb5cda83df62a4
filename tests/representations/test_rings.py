"""The circle action on rings of pixels, on small grids against dense facts and on a large one within its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from equidial import equivariant_filter, invariant_filter
from equidial.certificates import certify_weight
from equidial.errors import EquidialError
from equidial.filters import Constraint
from equidial.groups import SO2, C, D, Flip, Group, Shift
from equidial.representations import Pixels, Trivial, Vector, _circle, _pixels, pixel_coordinates
from equidial.representations._bessel import BesselTables, neumann_zeros
from equidial.representations._circle import circle_basis
from equidial.representations._rings import ring_numbers, rings_basis
from tests.oracle import factors, oracle
from tests.spaces import full_spectrum, random_weight

SHAPES = [(1, 1), (2, 2), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10), (11, 11), (12, 12), (4, 7), (3, 6), (2, 9)]


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of every size take the rings."""
    monkeypatch.setattr(_pixels, "_HARMONICS_LIMIT", 0)


def exact_turn(h: int, w: int) -> torch.Tensor:
    """The matrix of ``torch.rot90`` by a quarter turn, or by a half turn on a rectangle."""
    images = torch.eye(h * w, dtype=torch.float64).reshape(-1, h, w)
    return torch.rot90(images, 1 if h == w else 2, (1, 2)).flatten(1).mT


@pytest.mark.usefixtures("rings")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rings_carry_a_real_orthogonal_circle_action(shape: tuple[int, int]) -> None:
    group = SO2()
    rep = Pixels(group, shape)
    v, eye = rep.circle.vectors, torch.eye(rep.dim, dtype=torch.float64)
    assert v.dtype == torch.float64
    assert torch.allclose(v.mT @ v, eye, atol=1e-13)
    generator = rep.generators()[0].to_dense()
    assert torch.equal(generator, -generator.mT)
    assert torch.allclose(torch.matrix_exp(2 * math.pi * generator), eye, atol=1e-9)
    for a, b in ((0.3, 1.1), (2.0, -2.9)):
        g, h = group.exp(a), group.exp(b)
        assert torch.allclose(rep.matrix(g) @ rep.matrix(h), rep.matrix(g @ h), atol=1e-12)
        assert torch.allclose(rep.matrix(g).mT, rep.matrix(g.inverse()), atol=1e-13)
        assert torch.allclose(torch.matrix_exp(a * generator), rep.matrix(g), atol=1e-10)
        assert rep.character(g) == pytest.approx(float(rep.matrix(g).trace()), abs=1e-11)


@pytest.mark.usefixtures("rings")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_exact_turn_is_met_but_for_the_directions_named(shape: tuple[int, int]) -> None:
    """At most one direction is missed, and none where an exact real action exists (n mod 4 != 2, floor(hw/2) even)."""
    rep = Pixels(SO2(), shape)
    turn = exact_turn(*shape)
    # the dimension of the eigenvalue -1, from the characters of the powers of the turn
    once, twice = float(turn.trace()), float((turn @ turn).trace())
    turned_over = round((rep.dim - 2 * once + twice) / 4 if shape[0] == shape[1] else (rep.dim - once) / 2)
    missed = rep.circle.vectors[:, rep.circle.unpaired]
    assert missed.shape[1] == turned_over % 2
    length = math.pi / 2 if shape[0] == shape[1] else math.pi
    moved = torch.matrix_exp(length * rep.generators()[0].to_dense())
    assert torch.allclose(turn @ missed, -missed, atol=1e-13)
    for residual in rep.residual_generators():
        assert residual.length == length
        moved = moved @ residual.map.to_dense()
    assert torch.allclose(moved, turn, atol=1e-9)
    assert ("but for one direction" in rep.exactness) == bool(missed.shape[1])
    if not missed.shape[1]:
        assert torch.equal(rep.matrix(SO2().exp(length)), turn)
    still = rep.circle.vectors[:, (rep.circle.frequency == 0) & ~torch.isin(torch.arange(rep.dim), missing(rep))]
    assert torch.allclose(turn @ still, still, atol=1e-13), "what is kept as symmetric is still under the exact turn"


def missing(rep: Pixels) -> torch.Tensor:
    return torch.tensor(rep.circle.unpaired, dtype=torch.long)


def test_rings_are_one_pixel_wide_and_their_constants_stay_still() -> None:
    for h, w in ((11, 11), (12, 12), (4, 7)):
        x, y = pixel_coordinates(h, w)
        numbers, radius = ring_numbers(h, w), np.hypot(x, y)
        basis = rings_basis(h, w)
        still = basis.vectors[:, basis.frequency == 0].numpy()
        for number in np.unique(numbers):
            here = numbers == number
            assert np.ptp(radius[here]) < 1
            constant = here / math.sqrt(here.sum())
            assert np.linalg.norm(still.T @ constant) == pytest.approx(1, abs=1e-13)


@pytest.mark.usefixtures("rings")
@pytest.mark.parametrize("group", [SO2(), C(8), C(3)], ids=str)
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (8, 8), (4, 7)], ids=str)
def test_filters_equal_the_dense_oracle(group: Group, shape: tuple[int, int]) -> None:
    if shape == (4, 7) and group == C(8):
        pytest.skip("no quarter turn on a rectangle")
    rep = Pixels(group, shape)
    constraint = Constraint.invariants(rep)
    dense, weight = oracle(constraint), random_weight(constraint)
    for response in ("hard", "taper", "exponential"):
        for b in (0.0, 1.5, 3.2):
            f = invariant_filter(rep, threshold=b, response=response)
            assert f.method == "closed_form"
            assert torch.allclose(f(weight), dense.filtered(weight, factors(response, dense.sigma, b)), atol=1e-11)
    nearest = invariant_filter(rep, softness=0.4)(weight)
    assert constraint.defect(nearest) == pytest.approx(0.4 * constraint.defect(weight), rel=1e-9)
    assert np.allclose(np.sort(dense.sigma), full_spectrum(constraint).values(), atol=1e-10)


@pytest.mark.usefixtures("rings")
def test_equivariant_maps_and_sums_equal_the_dense_oracle() -> None:
    group = SO2()
    rep = 2 * Pixels(group, (3, 3)) + Vector(group)
    for constraint in (Constraint.equivariants(rep, Vector(group) + Trivial(group)), Constraint.invariants(rep)):
        dense, weight = oracle(constraint), random_weight(constraint)
        for b in (0.0, 1.0, 2.5):
            if constraint.invariant:
                f = invariant_filter(rep, threshold=b, response="hard")
            else:
                f = equivariant_filter(rep, constraint.rep_out, threshold=b, response="hard")
            assert torch.allclose(f(weight), dense.filtered(weight, factors("hard", dense.sigma, b)), atol=1e-11)


@pytest.mark.usefixtures("rings")
def test_block_maps_equal_their_matrices_in_every_precision() -> None:
    rep = Pixels(SO2(), (6, 6))
    maps = [*rep.generators(), rep.map_of(SO2().exp(0.7)), *(r.map for r in rep.residual_generators())]
    for mapped in maps:
        matrix = mapped.to_dense()
        x = torch.randn(3, 2, rep.dim, dtype=torch.float64)
        assert torch.allclose(mapped.on_last_axis(x), x @ matrix.mT, atol=1e-12)
        assert torch.allclose(mapped.T.on_last_axis(x), x @ matrix, atol=1e-12)
        assert mapped.on_last_axis(x.float()).dtype == torch.float32
        assert torch.allclose(mapped.on_last_axis(x.float()), (x @ matrix.mT).float(), atol=1e-4)
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= mapped.norm_bound() <= float(matrix.norm()) * 1.001


@pytest.mark.usefixtures("rings")
def test_missed_directions_are_never_kept_at_softness_0_and_count_in_certificates() -> None:
    for group in (SO2(), C(8), C(3)):
        rep = Pixels(group, (6, 6))
        u = rep.circle.vectors[:, rep.circle.unpaired].mT
        assert u.shape == (1, 36)
        constraint = Constraint.invariants(rep)
        for response in ("nearest", "hard", "taper", "exponential"):
            assert float(invariant_filter(rep, softness=0.0, response=response)(u).norm()) < 1e-12
        assert constraint.defect(u) == pytest.approx(2 / (math.pi / 2), rel=1e-9)
        assert certify_weight(constraint, u).bound >= 2 - 1e-9


@pytest.mark.usefixtures("rings")
@pytest.mark.parametrize("shape", [(6, 6), (9, 9), (4, 7)], ids=str)
def test_certificates_are_never_below_what_is_measured(shape: tuple[int, int]) -> None:
    rep = Pixels(SO2(), shape)
    constraint = Constraint.invariants(rep)
    angles = torch.linspace(-math.pi, math.pi, 301)
    for seed, response in enumerate(("nearest", "hard", "taper", "exponential")):
        weight = invariant_filter(rep, softness=0.3, response=response)(random_weight(constraint, seed=seed))
        for radius in (math.pi, 0.4):
            found = certify_weight(constraint, weight, radius)
            worst = max(
                float((weight @ rep.matrix(SO2().exp(float(t))).mT - weight).norm()) for t in angles if abs(t) <= radius
            )
            assert worst / float(weight.norm()) <= found.bound
            assert found.measured <= found.bound
    strict = invariant_filter(rep, softness=0.0)(random_weight(constraint))
    assert certify_weight(constraint, strict).bound < 1e-9


@pytest.mark.parametrize(
    ("build", "shape", "energies"),
    [
        (circle_basis, (7, 7), (2.5509529236, 2.5961039578, 1.7859756991, 1.5755145752, 4.2604120181)),
        (circle_basis, (4, 5), (2.0181535591, 2.9551134784, 2.1367458385, 0.403407914, 1.7287048468)),
        (rings_basis, (7, 7), (2.3421625117, 3.3592597891, 1.7752135412, 3.9045629663, 6.7758685758)),
        (rings_basis, (4, 5), (2.7457420889, 3.7892180748, 2.6637381095, 0.375610421, 0.4741240459)),
    ],
)
def test_numbered_constructions_never_change(build, shape: tuple[int, int], energies: tuple[float, ...]) -> None:
    """The energy of a fixed vector at the frequencies 0 to 4: saved models rely on these subspaces."""
    basis = build(*shape)
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    energy = (torch.sin(1 + 2 * i + i.square() / 7) @ basis.vectors).square()
    for m, expected in enumerate(energies):
        assert float(energy[basis.frequency.abs() == m].sum()) == pytest.approx(expected, abs=2e-10)


def test_rounding_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batches, other rounding, the same rings; and disc harmonics in batches are those taken one by one."""
    first, harmonics = rings_basis(40, 40), circle_basis(12, 12)
    monkeypatch.setattr(_circle, "_BATCH", 7)
    monkeypatch.setattr(_circle, "_ONE_BY_ONE", 0)
    again, batched = rings_basis(40, 40), circle_basis(12, 12)
    assert torch.equal(first.frequency, again.frequency)
    for one, other in zip(first.basis.blocks, again.basis.blocks, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.equal(harmonics.frequency, batched.frequency)
    overlap = (harmonics.vectors * batched.vectors).sum(0).abs()
    assert torch.allclose(overlap, torch.ones(144, dtype=torch.float64), atol=1e-12), "up to the sign of singles"


def test_bessel_tables() -> None:
    x = np.linspace(0, 150, 3001)
    m = np.array([0, 1, 6, 41, 120, 400])
    found = BesselTables(150.0)(m, np.broadcast_to(x, (len(m), len(x))))
    assert np.abs(found - scipy.special.jv(m[:, None], x)).max() < 1e-14


@pytest.mark.parametrize("limit", [3.0, 20.0, 54.0, 130.0])
def test_zeros_are_those_of_the_library(limit: float) -> None:
    """All of them, in any order, against one order at a time."""
    wanted = [(0.0, 0)]
    for m in range(int(limit) + 1):
        wanted += [(float(z), m) for z in scipy.special.jnp_zeros(m, int(limit / 3) + 3) if z <= limit]
    found = sorted(neumann_zeros(range(int(limit) + 1), limit), key=lambda pair: (pair[1], pair[0]))
    wanted.sort(key=lambda pair: (pair[1], pair[0]))
    assert [m for _, m in found] == [m for _, m in wanted]
    assert np.allclose([z for z, _ in found], [z for z, _ in wanted], rtol=1e-14, atol=0)


def test_large_grids_take_the_rings_by_name_and_small_ones_the_harmonics() -> None:
    assert Pixels(SO2(), (81, 80)).constructions == {"rings-1"}
    assert Pixels(C(8), (81, 81)).constructions == {"rings-1"}
    assert Pixels(SO2(), (80, 80)).constructions == {"disc-harmonics-1"}
    assert Pixels(C(4), (81, 81)).constructions == frozenset()


def test_a_large_grid_of_rings_is_filtered_and_certified_without_a_square_matrix() -> None:
    rep = Pixels(SO2(), (90, 90))
    weight = torch.randn(2, rep.dim, dtype=torch.float64)
    f = invariant_filter(rep, softness=0.3, response="taper")
    soft = f(weight)
    assert max(len(block) for block in rep.circle.basis.blocks) < 300
    assert f.defect(soft) <= f.effective_threshold
    found = certify_weight(f.constraint, soft)
    turned = torch.rot90(soft.reshape(2, 90, 90), 1, (1, 2)).flatten(1)
    quarter = rep.act(SO2().exp(math.pi / 2), soft)
    u = rep.circle.basis.coefficients(turned - quarter)
    assert len(rep.circle.unpaired) == 1, "90 mod 4 = 2"
    rest = torch.ones(rep.dim, dtype=torch.bool).index_fill(0, missing(rep), False)
    assert float(u[:, rest].abs().max()) < 1e-10, "the quarter turn of torch but for one direction"
    assert float((turned - soft).norm() / soft.norm()) <= found.bound
    strict = invariant_filter(rep, softness=0.0, response="hard")(weight)
    assert torch.allclose(torch.rot90(strict.reshape(2, 90, 90), 1, (1, 2)).flatten(1), strict, atol=1e-11)
    cut = float(full_spectrum(f.constraint).values()[rep.dim // 3])
    pieces = invariant_filter(rep, threshold=cut, response="hard")(weight)
    assert 0.1 < float(pieces.norm() / weight.norm()) < 0.9


@pytest.mark.parametrize("group", [C(4), D(4), Flip(), Shift(2)], ids=str)
def test_permutations_of_large_grids(group: Group) -> None:
    """Isotypic sums and the FFT beyond the size of dense eigenbases, against rot90, flip and roll."""
    rep = Pixels(group, (70, 70))
    images = torch.randn(2, 70, 70, dtype=torch.float64)
    f = invariant_filter(rep, softness=0.0, response="hard")
    assert f.method == ("closed_form" if isinstance(group, Shift) else "isotypic")
    turns = [torch.rot90(images, k, (1, 2)) for k in range(4)]
    mean = {
        "C4": sum(turns) / 4,
        "D4": (sum(turns) + sum(x.flip(-1) for x in turns)) / 8,
        "Flip": (images + images.flip(-1)) / 2,
        "T2": images.mean((1, 2), keepdim=True).expand_as(images),
    }[group.name]
    strict = f(images.flatten(1))
    assert torch.allclose(strict, mean.flatten(1), atol=1e-13)
    assert f.defect(strict) < 1e-13
    snapped = f.snap(strict.float())
    assert torch.equal(rep.act(rep.effective_group.discrete_generators()[0].element, snapped), snapped)
    soft = invariant_filter(rep, softness=0.4)(images.flatten(1))
    assert f.defect(soft) == pytest.approx(0.4 * f.defect(images.flatten(1)), rel=1e-9)
    found = certify_weight(f.constraint, soft)
    assert found.measured <= found.bound <= 2


@pytest.mark.parametrize("shape", [(4, 5), (6,), (2, 3, 4)], ids=str)
def test_fourier_filters_of_shifts_equal_the_dense_oracle(shape: tuple[int, ...]) -> None:
    rep = Pixels(Shift(len(shape)), shape)
    for constraint in (Constraint.invariants(rep), Constraint.equivariants(rep, Trivial(rep.group) + rep)):
        dense, weight = oracle(constraint), random_weight(constraint)
        f = full_spectrum(constraint, "closed_form")
        assert np.allclose(f.values(), np.sort(dense.sigma), atol=1e-10)
        kept = (f.sigma <= 1.5).to(torch.float64)
        expected = dense.filtered(weight, (dense.sigma <= 1.5 + 1e-9).astype(float))
        assert torch.allclose(f.synthesise(f.analyse(weight), kept), expected, atol=1e-12)


def test_wrong_use_is_refused() -> None:
    rep = Pixels(SO2(), (120, 120))
    wrong = (
        lambda: invariant_filter(rep, softness=0.5, response="hard")(torch.zeros(2, 80)),
        lambda: invariant_filter(rep, softness=0.5, response="hard", method="dense"),
        lambda: invariant_filter(rep, softness=0.5, response="hard", method="isotypic"),
        lambda: rep.act(C(4).element(1), torch.zeros(rep.dim)),
        lambda: Pixels(D(3), (81, 81)),
        lambda: Pixels(C(4), (81, 80)),
    )
    for call in wrong:
        with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
            call()
