"""Filters without a spectrum: a non-normal generator on 14 x 14 -> 14 x 14 pixels, and tensors of O(5)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks._contract import TOTAL, Finding, Rival, Row
from benchmarks._statistics import number
from benchmarks.cases import Settings, case
from benchmarks.circle_action import STEP, bilinear_rotation
from equidial import Filter, equivariant_filter
from equidial.filters import MatrixFreeSpectrum
from equidial.groups import GeneratedGroup, O
from equidial.representations import Representation, Tensor, Vector

TOLERANCE = 1e-6
SIZE = 14
TAPER_TARGET = 0.5
TENSOR_TARGET = 60.0


def bilinear(n: int) -> Representation:
    """The forward difference at 2 degrees of bilinear rotation on ``n x n`` pixels: non-normal, not orthogonal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spectral subspaces that such a group does not keep
        group = GeneratedGroup(f"bilinear{n}", [torch.from_numpy((bilinear_rotation(n, STEP) - np.eye(n * n)) / STEP)])
    return Vector(group)


def largest_sigma(n: int) -> float:
    """The largest singular value of the constraint, by power iteration on the Gram operator."""
    constraint = equivariant_filter(bilinear(n), bilinear(n), threshold=1.0, response="taper").constraint
    x = torch.randn(n * n, n * n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(300):
        x = constraint.gram(x)
        size = float(x.norm())
        x = x / size
    return size**0.5


@case("non-normal-taper", f"taper on a non-normal {SIZE}x{SIZE} -> {SIZE}x{SIZE} generator, Chebyshev, tolerance 1e-6")
def non_normal_taper(settings: Settings) -> Iterator[Row | Finding]:
    """Build (the generator is given) and apply once, at shares of the largest singular value."""
    rep = bilinear(SIZE)
    top = largest_sigma(SIZE)
    weight = settings.weight(SIZE**2, SIZE**2)
    for share in (0.5, 0.25, 0.1):
        b = share * top

        def build(b: float = b) -> Filter:
            return equivariant_filter(rep, rep, threshold=b, response="taper", tolerance=TOLERANCE)

        timings = settings.measure([Rival("ours", {"build": build, "apply": lambda f: f(weight)})])
        spectrum = build().decomposition
        assert isinstance(spectrum, MatrixFreeSpectrum)
        facts = {"b": round(b, 3), "share of the largest sigma": share, "degree": spectrum.degree(b)}
        yield Row(
            "non-normal-taper", f"b = {share} max", "14x14", SIZE**2, "float64", timings.summaries("ours"), None, facts
        )
        if share == 0.5:
            median = timings.summary("ours", TOTAL).median
            yield Finding(
                "non-normal-taper",
                f"b = half of the largest singular value ({number(top)}): {number(median)} s, target {TAPER_TARGET} s",
                {"seconds": median},
                median <= TAPER_TARGET,
            )


@case("tensors", "O(5), T(k) -> T(k), exactly symmetric part: Ritz vectors of the Casimir operator, nothing dense")
def tensors(settings: Settings) -> Iterator[Row | Finding]:
    """Build and apply once at orders 1 to 4; the defect of the result under a random element beside it."""
    group = O(5)
    for order in (1, 2, 3, 4):
        rep = Tensor(group, order)
        weight = settings.weight(rep.dim, rep.dim)

        def build(rep: Tensor = rep) -> Filter:
            return equivariant_filter(rep, rep, softness=0.0, response="taper", method="casimir")

        timings = settings.measure([Rival("ours", {"build": build, "apply": lambda f, w=weight: f(w)})])
        (g,) = group.sample(1, torch.Generator().manual_seed(0))
        found = build()(weight)
        moved = build().constraint.difference(g, found)
        facts = {"weights": rep.dim**2, "invariants": build().rank, "defect": float(moved.norm() / found.norm())}
        yield Row("tensors", "ours", f"T({order})", rep.dim, "float64", timings.summaries("ours"), None, facts)
    median = timings.summary("ours", TOTAL).median
    yield Finding(
        "tensors",
        f"T(4) -> T(4), 390,625 weights: {number(median)} s, target {TENSOR_TARGET:.0f} s",
        {"seconds": median},
        median <= TENSOR_TARGET,
    )


@case("shared", "soften a network of 48 layers with one patch grid: one construction for all")
def shared(settings: Settings) -> Iterator[Row | Finding]:
    """``soften`` on 1 and on 48 convolutions with 15 x 15 kernels under SO2, held by the model."""
    import equidial as ed

    def soften(layers: int) -> torch.nn.Module:
        convolutions = [torch.nn.Conv2d(2, 2, 15, padding=7) for _ in range(layers)]
        config = ed.SoftEquivarianceConfig(group="SO2", softness=0.5)
        return ed.soften(torch.nn.Sequential(*convolutions), config)

    rivals = [Rival("1 layer", {"soften": lambda: soften(1)}), Rival("48 layers", {"soften": lambda: soften(48)})]
    timings = settings.measure(rivals)
    ratio = timings.ratio("48 layers", "1 layer")
    for rival in rivals:
        versus = ratio if rival.name == "48 layers" else None
        yield Row("shared", rival.name, "15x15", 225, "float32", timings.summaries(rival.name), versus)
