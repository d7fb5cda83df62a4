"""The numbers quoted in docs/theory.md, and its inequalities over random draws where no other test looks."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
import scipy.special
import scipy.stats
import torch
from benchmarks.circle_action import bilinear_rotation
from torch.nn import functional

import equidial as ed
from equidial.errors import EquidialWarning
from equidial.filters import Constraint, growth_factor
from equidial.filters._matrix_free import _taper
from equidial.groups import O2, SO, SO2, C, D, GeneratedGroup, Lorentz
from equidial.representations import MatrixRepresentation, Pixels, Representation, Tensor, Trivial, Vector


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def instability(constraint: Constraint, moves: list[torch.Tensor]) -> float:
    """``max ||P_k T - T P_k||_2`` over eigenspaces of ``Q`` and the given ``T`` on weights."""
    dense = constraint.dense()
    values, vectors = torch.linalg.eigh(dense.mT @ dense)
    cuts = [0, *(i for i in range(1, len(values)) if values[i] - values[i - 1] > 1e-8 * values[-1]), len(values)]
    projectors = [vectors[:, a:b] @ vectors[:, a:b].mT for a, b in pairwise(cuts)]
    return max(float(torch.linalg.matrix_norm(p @ t - t @ p, ord=2)) for p in projectors for t in moves)


def on_weights(x: Representation, y: Representation, t: tuple[float, ...]) -> torch.Tensor:
    g = x.group.exp(t)
    return torch.kron(y.matrix(g), x.matrix(g))


def test_stability_and_its_counterexamples() -> None:
    """Proposition 2: the Casimir operator is stable, a doubled generator or a lone mirror is not."""
    turns = [tuple(t.tolist()) for t in randn(5, 3)]
    vector = Vector(SO(3))
    space = Constraint.equivariants(vector, vector @ vector)
    assert instability(space, [on_weights(vector, vector @ vector, t) for t in turns]) < 1e-13
    spectrum = ed.equivariant_filter(vector, vector @ vector, threshold=1.0, method="dense").decomposition
    assert getattr(spectrum, "multiplicity", None) == (1, 9, 10, 7)
    algebra = SO(3).natural_generators().clone()
    algebra[0] *= 2
    with pytest.warns(EquidialWarning, match="Gram operator"):
        scaled = Vector(GeneratedGroup("scaled", algebra))
    moves = [on_weights(scaled, scaled @ scaled, t) for t in turns]
    assert instability(Constraint.equivariants(scaled, scaled @ scaled), moves) > 0.99

    pixels = Pixels(D(4), (3, 3))
    r, f = (pixels.matrix(D(4).element(value)) for value in ((1, 0), (0, 1)))
    assert instability(Constraint.invariants(pixels), [r, f]) < 1e-13
    quarter, mirror = Vector(D(4)).matrix(D(4).element((1, 0))), Vector(D(4)).matrix(D(4).element((0, 1)))
    with pytest.warns(EquidialWarning, match="Gram operator"):
        two = GeneratedGroup("two letters", (), [quarter, mirror], lengths=[math.pi / 2, math.pi])
    assert instability(Constraint.invariants(MatrixRepresentation(two, [], [r, f])), [r, f]) > 0.99


@pytest.mark.parametrize("response", ["hard", "taper", "exponential", "nearest"])
def test_the_closed_form_is_the_dense_filter(response: str) -> None:
    """Proposition 3, on a 7 x 11 weight of SO(2)."""
    x, y = Vector(SO2()) + Pixels(SO2(), (3, 3)), Trivial(SO2()) + 3 * Vector(SO2())
    weight = randn(7, 11)
    fast, dense = (
        ed.equivariant_filter(x, y, threshold=0.5, response=response, method=method)(weight)
        for method in ("closed_form", "dense")
    )
    assert float((fast - dense).norm() / weight.norm()) < 1e-14


def test_the_block_rule_differs() -> None:
    """After Proposition 3: frequencies 1 and 2 at b = 1.5."""
    plane, double = (MatrixRepresentation(SO2(), [k * torch.tensor([[0.0, -1], [1, 0]])]) for k in (1, 2))
    found = ed.equivariant_filter(plane, double, threshold=1.5, response="hard")
    assert found.spectrum.tolist() == pytest.approx([1, 1, 3, 3])
    assert found.rank == 2


def test_mirrors_of_a_group_without_a_closed_set_of_them() -> None:
    """After Proposition 2: ``||T(m)W - W|| <= pi ||LW||`` for every mirror of O(2), on every weight."""
    for seed in range(5):
        window = Pixels(O2(), (5, 5))
        space = Constraint.invariants(window)
        found = ed.invariant_filter(window, threshold=1.0, response="hard")
        weight = randn(1, 25, seed=seed)
        for g in O2().sample(20, torch.Generator().manual_seed(seed)):
            bound = math.pi * found.decomposition.defect_norm(weight[0])
            assert float(space.difference(g, weight).norm()) <= bound * (1 + 1e-12)


def test_a_coset_of_a_mirror_on_a_grid() -> None:
    """Proposition 8: ``sqrt(max E^2 + ||LW||^2 dt^2 / 4)`` holds for the coset, on a coarse grid of a whole period."""
    window = Pixels(O2(), (5, 5))
    space = Constraint.invariants(window)
    for seed in range(3):
        weight = randn(1, 25, seed=seed)

        def error(t: float, weight: torch.Tensor = weight) -> float:
            return float(space.difference(O2().element((t, 1)), weight).norm())

        lie = space.connected.defect_norm(weight[0])
        coarse = max(error(2 * math.pi * k / 16) for k in range(16))
        fine = max(error(2 * math.pi * k / 400) for k in range(400))
        assert fine <= math.hypot(coarse, lie * (2 * math.pi / 16) / 2)


def test_growth_with_letters_between_exponentials() -> None:
    """Proposition 6 (b): words ``exp(t) s exp(t')`` of the Lorentz group within ``phi(r) ||LW||``."""
    group = Lorentz()
    vector = Vector(group)
    space = Constraint.equivariants(vector, vector)
    for seed in range(10):
        weight, t = randn(4, 4, seed=seed), 0.4 * randn(2, 6, seed=100 + seed)
        for s in group.discrete_generators():
            first, last = (vector.matrix(group.exp(x)) for x in t)
            g = first @ vector.matrix(s.element) @ last
            length = float(t.norm(dim=1).sum()) + s.length
            error = float((weight @ g - g @ weight).norm())
            assert error <= growth_factor(space, length) * space.defect_norm(weight)


def test_the_gram_refinement() -> None:
    """After Proposition 6: ``E <= ||t|| sqrt(lambda_max Gram)``, and what it gains."""
    shares = []
    for group in (SO(3), SO(5)):
        y = Vector(group) + Trivial(group)
        for x in (y, Tensor(group, 2)):
            space = Constraint.equivariants(x, y)
            weight = ed.equivariant_filter(x, y, softness=0.1)(randn(*space.shape))
            rows = torch.stack([space.apply(letter, weight).flatten() for letter in space.letters])
            refined = math.sqrt(float(torch.linalg.eigvalsh(rows @ rows.mT)[-1]))
            shares.append(refined / space.defect_norm(weight))
            for t in randn(5, group.lie_dim):
                error = float(space.difference(group.exp(t), weight).norm())
                assert error <= float(t.norm()) * refined * (1 + 1e-12)
    assert shares == pytest.approx([0.677, 0.669, 0.433, 0.389], abs=1e-3)


def test_errors_of_the_taper_series() -> None:
    """After Proposition 11: b = 2, sigma_max = 10."""
    points = 4096
    angles = (np.arange(points) + 0.5) * np.pi / points
    series = np.asarray(scipy.fft.dct(_taper(np.sqrt((np.cos(angles) + 1) * 50), 2.0), type=2)) / points
    series[0] /= 2
    sigma = np.linspace(0, 10, 5001)
    exact = _taper(sigma, 2.0)
    for degree, expected in ((20, 0.22), (60, 0.020), (100, 3.75e-4), (400, 5.9e-9)):
        error = np.abs(np.polynomial.chebyshev.chebval(sigma**2 / 50 - 1, series[: degree + 1]) - exact).max()
        assert error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("gelu", 1.128905),
        ("gelu_tanh", 1.128994),
        ("silu", 1.099840),
        ("mish", 1.088499),
        ("hardswish", 1.5),
        ("selu", 1.758100),
        ("relu", 1.0),
        ("elu", 1.0),
        ("tanh", 1.0),
        ("softplus", 1.0),
    ],
)
def test_lipschitz_constants_are_least_upper_bounds(name: str, constant: float) -> None:
    z = torch.linspace(-40, 40, 2_000_001, dtype=torch.float64, requires_grad=True)
    if name == "gelu_tanh":
        out = functional.gelu(z, approximate="tanh")
    else:
        out = torch.tanh(z) if name == "tanh" else getattr(functional, name)(z)
    slope = float(torch.autograd.grad(out.sum(), z)[0].abs().max())
    assert slope <= constant * (1 + 1e-12)
    assert slope >= constant - (1e-6 if constant > 1 and name != "hardswish" else 1e-4)


def test_constants_of_pooling_and_of_layer_norm() -> None:
    def norm_of(f, x: torch.Tensor) -> float:
        jacobian = torch.autograd.functional.jacobian(f, x)
        assert isinstance(jacobian, torch.Tensor)
        return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), ord=2))

    image = randn(1, 1, 9, 9)
    assert norm_of(lambda x: functional.max_pool2d(x, 3, 2, 1), image) <= 2
    peaks = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    peaks[..., 1::4, 1::4] = 1 + torch.rand(2, 2, dtype=torch.float64)  # a peak that four windows share
    assert norm_of(lambda x: functional.max_pool2d(x, 3, 2, 1), peaks) == pytest.approx(2)
    assert norm_of(lambda x: functional.avg_pool2d(x, 3, 2, 1), image) <= math.sqrt(4 / 9)
    tiny, eps = 1e-4 * randn(8), 1e-2
    assert norm_of(lambda x: functional.layer_norm(x, (8,), eps=eps), tiny) == pytest.approx(1 / math.sqrt(eps), 1e-3)
    assert norm_of(lambda x: functional.layer_norm(x, (8,), eps=eps), randn(8)) < 1 / math.sqrt(eps)


def test_statistical_limits() -> None:
    """Proposition 13 at n = 1,000 and alpha = 0.05."""

    def kl_limit(mean: float, n: int, alpha: float) -> float:
        grid = np.linspace(mean + 1e-9, 0.2, 2_000_001)
        kl = scipy.special.rel_entr(mean, grid) + scipy.special.rel_entr(1 - mean, 1 - grid)
        return float(grid[n * kl <= math.log(1 / alpha)].max())

    exact = [float(scipy.stats.beta.ppf(0.95, k + 1, 1000 - k)) for k in (0, 50)]
    assert [*exact, kl_limit(0.0, 1000, 0.05), kl_limit(0.05, 1000, 0.05)] == pytest.approx(
        [0.0030, 0.0629, 0.0030, 0.0687], abs=5e-5
    )


def test_rotations_of_a_kernel_do_not_lift_to_the_image() -> None:
    """After Proposition 15: 13x13 images, zero padding, at 30 and 90 degrees."""
    image, strict = Pixels(SO2(), (13, 13)), ed.invariant_filter(Pixels(SO2(), (3, 3)), softness=0.0)
    defects, pointwise = [], []
    turn = image.matrix(SO2().element(math.radians(30)))
    for seed in range(3):
        x = randn(169, seed=seed)
        pointwise.append(float((torch.relu(turn @ x) - turn @ torch.relu(x)).norm() / torch.relu(x).norm()))
        kernel = strict(randn(9, seed=seed)).reshape(1, 1, 3, 3)
        basis = torch.eye(169, dtype=torch.float64).reshape(-1, 1, 13, 13)
        conv = functional.conv2d(basis, kernel, padding=1).reshape(169, 169).mT
        for degrees in (30, 90):
            g = image.matrix(SO2().element(math.radians(degrees)))
            defects.append(float((conv @ g - g @ conv).norm() / conv.norm()))
    assert defects == pytest.approx([0.36, 0, 1.06, 0, 0.46, 0], abs=5e-3)
    assert pointwise == pytest.approx([0.51, 0.51, 0.56], abs=5e-3)


def test_padding_weighs_the_taps() -> None:
    """Proposition 14 on 8x8 with padding 1: the corner taps meet 49 positions, the centre 64."""
    kernel = randn(3, 3)
    basis = torch.eye(64, dtype=torch.float64).reshape(-1, 1, 8, 8)
    conv = functional.conv2d(basis, kernel[None, None], padding=1)
    count = torch.tensor([7.0, 8.0, 7.0], dtype=torch.float64)
    assert float(conv.square().sum()) == pytest.approx(float((count[:, None] * count * kernel**2).sum()))


def test_circle_actions_exist_where_the_proposition_says() -> None:
    """Proposition 16: the exact turn misses no direction unless ``n mod 4 = 2`` (``floor(hw / 2)`` odd)."""
    assert [n for n in range(3, 17) if Pixels(SO2(), (n, n)).circle.unpaired] == [6, 10, 14]
    for h, w in ((3, 4), (3, 5), (2, 5), (4, 5), (5, 7)):
        assert len(Pixels(SO2(), (h, w)).circle.unpaired) == (h * w // 2) % 2
    turn = bilinear_rotation(14, math.radians(20))
    eye = np.eye(196)
    assert np.linalg.norm(np.linalg.matrix_power(turn, 18) - eye) / 14 == pytest.approx(0.97, abs=0.005)
    assert np.linalg.svd(turn - eye)[1][-1] > 1e-3
    difference = bilinear_rotation(14, math.radians(2)) - eye
    symmetric = (difference + difference.T) / 2
    assert (np.linalg.norm(symmetric) / np.linalg.norm(difference)) ** 2 == pytest.approx(0.84, abs=0.005)


def test_quarter_turns_on_three_pixels() -> None:
    found = ed.invariant_filter(Pixels(C(4), (3, 3)), threshold=1.0).spectrum
    assert sorted(set(found.round(decimals=3).tolist())) == [0.0, 0.9, 1.273]


def test_harmonics_of_a_non_stationary_layer() -> None:
    """Proposition 18 on eight positions: random two-layer kernels of the offset and the harmonic ``q`` of the place."""
    n, draws = 8, 200
    place = torch.arange(n, dtype=torch.float64)
    offset = 2 * math.pi / n * (place[None, :] - place[:, None])
    one, worst = torch.zeros(n + 1), torch.zeros(n + 1)
    for q in range(1, n + 1):
        generator = torch.Generator().manual_seed(0)
        at = (2 * math.pi / n * q * place).expand(n, n)
        features = torch.stack([offset.cos(), offset.sin(), at.cos(), at.sin()], -1)
        for _ in range(draws):
            a, b, c = (torch.randn(s, dtype=torch.float64, generator=generator) for s in ((16, 4), (16,), (16,)))
            k = torch.tanh(features @ a.mT + b) @ c
            errors = [float((k.roll((s, s), (0, 1)) - k).norm() / k.norm()) for s in range(1, n)]
            one[q] += errors[0] / draws
            worst[q] += max(errors) / draws
            exact = [s for s in range(1, n) if errors[s - 1] < 1e-12]
            assert len(exact) + 1 == math.gcd(q, n)
    # exact: q and N - q agree, and the worst error knows gcd(q, N) only
    assert torch.allclose(one[1:8], one[1:8].flip(0))
    assert torch.allclose(worst[[3, 5, 7]], worst[1])
    assert torch.allclose(worst[6], worst[2])
    assert one[8] < 1e-12
    assert one[1:5].tolist() == pytest.approx([0.51, 0.87, 1.08, 1.05], abs=6e-3)
    assert worst[[1, 2, 4]].tolist() == pytest.approx([1.15, 1.14, 1.05], abs=6e-3)
