"""O(2) and D(n) on odd squares: exact turns and mirrors, a homomorphism, and filters against dense facts."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import equidial as ed
from equidial import equivariant_filter, invariant_filter
from equidial.certificates import certify_weight
from equidial.errors import EquidialError, GroupActionError
from equidial.filters import Constraint
from equidial.groups import O2, SO2, C, D, Group, by_name
from equidial.metrics import measured_elements, transform_images
from equidial.representations import Pixels, Representation, Trivial, Vector, parse, tokens
from equidial.representations._circle import circle_basis
from equidial.representations._mirror import mirror_basis
from tests.oracle import factors, oracle
from tests.spaces import full_spectrum, random_weight

NAME = "disc-harmonics-mirror-1"
SIZES = (1, 3, 5, 7, 9, 11, 13, 15, 21, 37)


def images(n: int) -> torch.Tensor:
    return torch.eye(n * n, dtype=torch.float64).reshape(-1, n, n)


def turn(n: int) -> torch.Tensor:
    return torch.rot90(images(n), 1, (1, 2)).flatten(1).mT


def mirror(n: int) -> torch.Tensor:
    return images(n).flip(2).flatten(1).mT


def turned_by(rep: Pixels, t: float) -> torch.Tensor:
    """``exp(t A)``; on large grids from the planes of the basis, where the exponential of a matrix takes seconds."""
    if rep.dim < 300:
        return torch.matrix_exp(t * rep.generators()[0].to_dense())
    v, (c, s) = rep.circle.vectors, rep.circle.pairs
    phase = t * rep.circle.frequency.to(torch.float64)
    moved = v * torch.cos(phase)
    moved[:, c] += v[:, s] * torch.sin(phase[c])
    moved[:, s] -= v[:, c] * torch.sin(phase[c])
    return moved @ v.mT


@pytest.mark.parametrize("n", SIZES)
def test_a_real_orthogonal_action_with_exact_turns_and_mirrors(n: int) -> None:
    group = O2()
    rep = Pixels(group, (n, n))
    (generator,), (letter,) = rep.generators(), rep.discrete_generators()
    a, eye = generator.to_dense(), torch.eye(n * n, dtype=torch.float64)
    v = rep.circle.vectors
    assert torch.allclose(v.mT @ v, eye, atol=1e-13)
    assert torch.equal(a, -a.mT)
    assert torch.equal(letter.to_dense(), mirror(n))
    assert torch.allclose(a.reshape(-1, n, n).flip(2).reshape(n, n, -1).flip(1).flatten(0, 1), -a, atol=1e-11), (
        "MAM = -A"
    )
    assert torch.allclose(turned_by(rep, math.pi / 2), turn(n), atol=1e-9)
    assert torch.allclose(turned_by(rep, 2 * math.pi), eye, atol=1e-9)
    assert rep.circle.unpaired == ()
    x = torch.arange(n * n, dtype=torch.float32)
    for k in range(4):
        for f in (0, 1):
            moved = torch.rot90(x.reshape(n, n).flip(1) if f else x.reshape(n, n), k, (0, 1)).flatten()
            assert torch.equal(rep.act(group.element((k * math.pi / 2, f)), x), moved)
    t, s = 0.7, -2.4
    first, second = group.element((t, 1)), group.element((s, 1))
    turned = turned_by(rep, t - s)
    for found in (rep.matrix(first) @ rep.matrix(second), rep.matrix(first @ second)):
        assert torch.allclose(found, turned, atol=1e-9), "R(t) M R(s) M = R(t - s)"
    assert torch.allclose(rep.matrix(first), turned_by(rep, t) @ mirror(n), atol=1e-9)
    assert torch.allclose(rep.matrix(first.inverse()), rep.matrix(first).mT, atol=1e-13)
    assert rep.character(first) == pytest.approx(n), "as many as pixels on the axis of a mirror"


@pytest.mark.parametrize("n", SIZES[:-1])
def test_as_many_vectors_stay_still_as_a_mirror_axis_has_pixels(n: int) -> None:
    """The trace of a mirror is n, and pairs add nothing to it; the constant is one of them, no odd one is."""
    basis = mirror_basis(n)
    still = basis.vectors[:, basis.frequency == 0]
    assert still.shape[1] == n
    assert torch.allclose(mirror(n) @ still, still, atol=1e-13)
    constant = torch.full((n * n,), 1 / n, dtype=torch.float64)
    assert float((still.mT @ constant).norm()) == pytest.approx(1, abs=1e-12)
    c, s = (basis.vectors[:, side] for side in basis.pairs)
    assert torch.allclose(mirror(n) @ c, c, atol=1e-13)
    assert torch.allclose(mirror(n) @ s, -s, atol=1e-13)
    # radial modes are those of the basis without mirrors
    radial = still[:, : n - basis.free_singles]
    other = circle_basis(n, n)
    others = other.vectors[:, other.frequency == 0][:, : radial.shape[1]]
    assert torch.allclose(others.mT @ radial @ radial.mT @ others, torch.eye(others.shape[1]).double(), atol=1e-9)


def test_the_numbered_construction_never_changes() -> None:
    """The energy of a fixed vector at the frequencies 0 to 4: saved models rely on these subspaces."""
    i = torch.arange(49, dtype=torch.float64)
    basis = mirror_basis(7)
    energy = (torch.sin(1 + 2 * i + i.square() / 7) @ basis.vectors).square()
    found = [float(energy[basis.frequency.abs() == m].sum()) for m in range(5)]
    assert found == pytest.approx((5.4480203093, 2.5961039578, 1.7859756991, 1.5755145752, 1.3633446324), abs=2e-10)
    assert torch.equal(basis.vectors, mirror_basis(7).vectors)


@pytest.mark.parametrize("group", [D(3), D(5), D(6), D(8), D(12)], ids=str)
@pytest.mark.parametrize("n", [3, 5, 7])
def test_dihedral_groups_act_by_the_same_basis(group: D, n: int) -> None:
    rep = Pixels(group, (n, n))
    assert not rep.is_permutation
    assert rep.constructions == {NAME}
    matrices = {g: rep.matrix(g) for g in group.elements()}
    full = Pixels(O2(), (n, n))
    for g, m in matrices.items():
        assert torch.allclose(m, full.matrix(O2().element(group.angle_and_mirror(g.value))), atol=1e-12)
        h = group.elements()[-2]
        assert torch.allclose(m @ matrices[h], matrices[g @ h], atol=1e-12)
    assert torch.equal(matrices[group.element((0, 1))], mirror(n))
    assert len(rep.discrete_generators()) == group.n + 1
    if n > 5:
        return
    constraint = Constraint.invariants(rep)
    dense, weight = oracle(constraint), random_weight(constraint)
    for method in ("dense", "isotypic"):
        spectrum = full_spectrum(constraint, method)
        assert np.allclose(spectrum.values(), np.sort(dense.sigma), atol=1e-9)
    for b in (0.0, 1.0, 2.0):
        f = invariant_filter(rep, threshold=b, response="taper")
        assert torch.allclose(f(weight), dense.filtered(weight, factors("taper", dense.sigma, b)), atol=1e-10)
        for g in group.elements()[1::3]:
            assert torch.allclose(rep.act(g, f(weight)), f(rep.act(g, weight)), atol=1e-10)
    soft = invariant_filter(rep, softness=0.3)(weight)
    found = certify_weight(constraint, soft)
    worst = max(float((soft @ m.mT - soft).norm() / soft.norm()) for m in matrices.values())
    assert found.kind == "exact"
    assert worst == pytest.approx(found.bound, rel=1e-9)


def casimir_first(rep_in: Representation, rep_out: Representation) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and vectors by numpy: those of the rotations, and 2/pi on what they keep and mirrors turn."""
    eye_in, eye_out = np.eye(rep_in.dim), np.eye(rep_out.dim)
    a_in, a_out = (r.generators()[0].to_dense().numpy() for r in (rep_in, rep_out))
    m_in, m_out = (r.discrete_generators()[0].to_dense().numpy() for r in (rep_in, rep_out))
    lie = np.kron(eye_out, a_in.T) - np.kron(a_out, eye_in)
    squares, vectors = np.linalg.eigh(lie.T @ lie)
    kept = squares < 1e-9
    null = vectors[:, kept]
    signs, mixed = np.linalg.eigh(null.T @ np.kron(m_out, m_in) @ null)
    sigma = np.sqrt(np.maximum(squares, 0))
    sigma[kept] = (1 - np.round(signs)) / math.pi
    vectors[:, kept] = null @ mixed
    return sigma, vectors


def spaces() -> list[tuple[Representation, Representation | None]]:
    group = O2()
    small, seven = Pixels(group, (3, 3)), Pixels(group, (7, 7))
    return [
        (small, None),
        (seven, None),
        (2 * small + Vector(group), None),
        (tokens(group, (5, 5)), None),
        (small, small),
        (small, Vector(group)),
        (seven, Vector(group) + Trivial(group)),
        (seven, seven),
    ]


@pytest.mark.parametrize("space", spaces(), ids=str)
def test_filters_of_O2_equal_dense_ones_and_commute_with_the_group(space) -> None:
    rep, out = space
    group = O2()
    constraint = Constraint.invariants(rep) if out is None else Constraint.equivariants(rep, out)
    weight = random_weight(constraint, copies=(2,))
    generator = torch.Generator().manual_seed(1)
    elements = [*group.sample(4, generator), group.element((0.4, 0)), group.element((2.5, 1))]

    def build(**dial):
        return invariant_filter(rep, **dial) if out is None else equivariant_filter(rep, out, **dial)

    dense = None
    if constraint.dim <= 400:
        dense = casimir_first(rep, out or Trivial(group))
        spectrum = full_spectrum(constraint, "closed_form")
        assert np.allclose(spectrum.values(), np.sort(dense[0]), atol=1e-6)
    for response in ("hard", "taper", "exponential"):
        for b in (0.0, 0.65, 3.2):
            f = build(threshold=b, response=response, method="closed_form")
            assert f.method == "closed_form"
            found = f(weight)
            if dense is not None:
                sigma = np.where(dense[0] < 1e-6, 0, dense[0])
                kept = (weight.flatten(1).numpy() @ dense[1]) * factors(response, sigma, b)
                assert np.allclose(found.flatten(1).numpy(), kept @ dense[1].T, atol=1e-8)
            for g in elements:
                moved = constraint.from_matrices(constraint.transform(g, constraint.as_matrices(weight)))
                image = constraint.from_matrices(constraint.transform(g, constraint.as_matrices(found)))
                assert torch.allclose(f(moved), image, atol=1e-10), "stable under the group"
    nearest = build(softness=0.4)
    soft = nearest(weight)
    assert nearest.defect(soft) == pytest.approx(0.4 * nearest.defect(weight), rel=1e-9)


def test_what_O2_keeps_is_its_mean_over_the_group() -> None:
    group, n = O2(), 7
    rep = Pixels(group, (n, n))
    count = 4 * int(rep.circle.frequency.max()) + 4
    every = [group.element((2 * math.pi * k / count, f)) for k in range(count) for f in (0, 1)]
    mean = torch.stack([rep.matrix(g) for g in every]).mean(0)
    strict = invariant_filter(rep, softness=0.0, response="hard")
    assert torch.allclose(strict(torch.eye(n * n, dtype=torch.float64)), mean, atol=1e-12)
    assert strict.rank == n
    # an odd still vector would be kept by the rotations, and turned over by the mirrors
    assert full_spectrum(Constraint.invariants(rep.connected)).multiplicity[0] == n


@pytest.mark.parametrize("n", [3, 7])
def test_certificates_are_never_below_what_is_measured(n: int) -> None:
    group = O2()
    rep = Pixels(group, (n, n))
    constraint = Constraint.invariants(rep)
    angles = np.linspace(-math.pi, math.pi, 181)
    for seed, response in enumerate(("nearest", "hard", "taper")):
        weight = invariant_filter(rep, softness=0.3, response=response)(random_weight(constraint, seed=seed))
        for radius in (math.pi, 0.4):
            reached = [group.element((t, f)) for t in angles for f in (0, 1)]
            reached = [g for g in reached if g.distance() <= radius]
            worst = max(float((rep.act(g, weight) - weight).norm() / weight.norm()) for g in reached)
            found = certify_weight(constraint, weight, radius)
            assert worst <= found.bound
            assert found.measured <= found.bound
    strict = invariant_filter(rep, softness=0.0)(random_weight(constraint))
    assert certify_weight(constraint, strict).bound < 1e-9
    odd = strict - strict.reshape(-1, n, n).flip(2).flatten(1) + random_weight(constraint)
    assert certify_weight(constraint, odd).bound > 0.1


def test_rotations_in_the_basis_of_the_mirrors() -> None:
    rep = Pixels(O2(), (7, 7))
    turned = rep.connected
    assert turned is rep.connected
    assert turned == Pixels(SO2(), (7, 7), NAME) == parse(turned.name, SO2())
    assert turned != Pixels(SO2(), (7, 7))
    assert turned.circle is rep.circle
    assert rep.name == "Pixels(7,7)"
    assert Pixels(O2(), (7, 7), NAME) == rep
    assert Pixels(SO2(), (7, 7), "disc-harmonics-1") == Pixels(SO2(), (7, 7))
    assert Pixels(C(8), (12, 12), "rings-1").constructions == {"rings-1"}
    assert rep.constructions == turned.constructions == {NAME}
    assert "quarter turn and mirrors exact" in rep.exactness
    assert "2 unpaired directions kept still" in rep.exactness
    assert not turned.discrete_generators()
    g, h = O2().element((1.1, 0)), SO2().exp(1.1)
    assert torch.equal(rep.matrix(g), turned.matrix(h))


class Network(nn.Module):
    """Convolutions of odd sizes and a table on a 5 x 5 grid behind one class token."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(a, b, k, padding=k // 2) for (a, b), k in zip(CHANNELS, SIDES, strict=True)]
        )
        self.pos_embed = nn.Parameter(torch.randn(1, 26, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        patches = nn.functional.adaptive_avg_pool2d(x, 5).flatten(2).mT
        return self.head((patches + self.pos_embed[:, 1:]).mean(1))


SIDES = (3, 5, 7)
CHANNELS = tuple(pairwise((1, 4, 4, 4)))


def test_a_network_lives_through_the_verbs(tmp_path) -> None:
    torch.manual_seed(0)
    base = Network().double()
    pretrained = {key: value.clone() for key, value in base.state_dict().items()}
    config = ed.SoftEquivarianceConfig(group="O2", softness=0.3, image_size=15)
    model = ed.soften(base, config)
    rows = ed.certify(model).layers
    assert [row.group for row in rows] == ["O2"] * 4
    assert all(row.measured <= row.bound <= 2 for row in rows)
    assert all(row.level == "kernel" for row in rows)
    x = torch.randn(2, 1, 15, 15, dtype=torch.float64)
    scores = ed.measure(model, [(x, torch.zeros(2, dtype=torch.long))], group="O2")
    assert scores["elements"] == 13
    ed.save(model, tmp_path / "soft")
    assert NAME in (tmp_path / "soft" / "soft_equivariance_config.json").read_text()
    fresh = Network().double()
    fresh.load_state_dict(pretrained)
    assert torch.equal(ed.load(fresh, tmp_path / "soft")(x), model(x))
    ed.set_softness(model, 0.0)
    assert float(ed.certify(model).bound) < 1e-9
    expected = model(x)
    folded = ed.fold(model)
    assert torch.allclose(folded(x), expected, atol=1e-12)
    for g in (by_name("O2").element((math.pi / 2, 1)), by_name("O2").element((0.0, 1))):
        for conv in folded.convs:
            assert isinstance(conv, nn.Conv2d)
            assert torch.allclose(transform_images(conv.weight, g), conv.weight, atol=1e-12)
        assert torch.allclose(folded(transform_images(x, g)), expected, atol=1e-9)


def test_measured_elements_hold_the_mirror() -> None:
    assert sum(f for _, f in (g.value for g in measured_elements(O2()))) == 1
    assert len(measured_elements(O2(), 0.5)) == 12, "a mirror lies at distance pi"
    assert len(measured_elements(SO2())) == 12


@pytest.mark.parametrize(
    ("group", "shape", "construction", "why"),
    [
        (O2(), (4, 4), None, "odd square"),
        (O2(), (3, 5), None, "odd square"),
        (O2(), (81, 81), None, "at most 79"),
        (O2(), (7,), None, "odd square"),
        (O2(), (3, 3, 3), None, "1-D or 2-D"),
        (D(8), (6, 6), None, "odd square"),
        (D(3), (5, 7), None, "odd square"),
        (O2(), (5, 5), "disc-harmonics-1", "construction of this action"),
        (O2(), (5, 5), "disc-harmonics-2", "construction of this action"),
        (SO2(), (6, 6), NAME, "construction of this action"),
        (C(4), (5, 5), NAME, "needs no basis"),
    ],
)
def test_what_cannot_act_is_refused(group: Group, shape, construction: str | None, why: str) -> None:
    kind = GroupActionError if construction is None else EquidialError
    with pytest.raises(kind, match=rf"(?s)expected .*{why}.*do: "):
        Pixels(group, shape, construction)


def test_even_kernels_are_refused_before_a_model_is_touched() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 4))
    with pytest.raises(EquidialError, match=r"(?s)0.weight.*odd square.*exclude_modules"):
        ed.soften(model, ed.SoftEquivarianceConfig(group="O2", softness=0.3))
    assert type(model[0]) is nn.Conv2d
