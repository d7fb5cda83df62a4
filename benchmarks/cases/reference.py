"""Rotation filter n x n -> n x n: the closed form against the Schur path of the official code, speed and result."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from benchmarks._contract import Finding, Rival, Row
from benchmarks._official import CIRCLE, Official
from benchmarks.cases import Settings, case
from benchmarks.cases.dense import build_ours, generator, memory_of, ours
from equidial.groups import SO2
from equidial.representations import Pixels

TARGET_SIZE = 14
TARGET_RATIO = 20.0
SAME_DTYPE = "ours, float32 weight"
"""Ours on the weight that the official code gets; its basis is built in float64 all the same."""


def commutator(weight: torch.Tensor, action: torch.Tensor) -> float:
    """``||W R - R W||_F / ||W||_F`` in float64."""
    weight = weight.to(torch.float64)
    return float((weight @ action - action @ weight).norm() / weight.norm())


def quarter_turn(n: int) -> torch.Tensor:
    """The permutation of ``n x n`` pixels that every rival claims to commute with."""
    index = torch.rot90(torch.arange(n * n).reshape(n, n), 1, (0, 1)).ravel()
    return torch.eye(n * n, dtype=torch.float64)[index]


def facts(
    result: torch.Tensor,
    weight: torch.Tensor,
    generator_: torch.Tensor,
    rotations: list[torch.Tensor],
    turn: torch.Tensor,
) -> dict[str, float | int | str]:
    """How far the filtered weight is from commuting, and how much of the weight it keeps.

    A filter that keeps little commutes easily; so both numbers stand side by side.
    """
    return {
        "defect, own generator": commutator(result, generator_),
        "worst defect, own rotations": max(commutator(result, r) for r in rotations),
        "defect, exact quarter turn": commutator(result, turn),
        "kept": float(result.to(torch.float64).norm() / weight.norm()),
    }


@case("rotation-reference", "SO(2) on n x n -> n x n pixels, exact space: closed form against the official Schur path")
def rotation_reference(settings: Settings) -> Iterator[Row | Finding]:
    """Four rivals, paired: ours on a float64 and a float32 weight; the official filter (C360); its Schur and
    projector fed with our generator.

    "Own rotations": 10, 20, .. 350 degrees, ours by ``Pixels(SO2).matrix``, theirs by their bilinear matrix.
    """
    name = "rotation-reference"
    if settings.reference is None:
        yield Finding(name, "skipped: --reference names no folder of the official code")
        return
    official = Official(settings.reference)
    yield Finding(
        name, f"the official code has no SO(2) on pixels, its C({CIRCLE}) stands for it; softness 0 throughout"
    )
    if official.shimmed:
        yield Finding(name, "torchvision is absent: an empty module stands in for an import that is never used")
    for n in settings.sizes:
        weight, a, d = settings.weight(n * n, n * n), generator(n), n * n
        single = weight.to(torch.float32)
        rivals = [
            ours(n, weight),
            Rival(SAME_DTYPE, ours(n, single).stages),
            Rival("official", {"build": lambda n=n: official.projector(n), "apply": lambda p, w=single: p(w)}),
            Rival(
                "official, our generator",
                {"build": lambda a=a: official.projector_of(a), "apply": lambda p, w=single: p(w)},
            ),
        ]
        timings = settings.measure(rivals)
        acting, turn = SO2(), quarter_turn(n)
        pixels = Pixels(acting, (n, n))
        degrees = range(10, 360, 10)
        exact = [pixels.matrix(acting.exp(math.radians(t))) for t in degrees]
        bilinear = [official.rotation(n, t) for t in degrees]
        results = {
            "ours": (build_ours(n)(weight), a, exact),
            SAME_DTYPE: (build_ours(n)(single), a, exact),
            "official": (official.projector(n)(single), official.generator(n), bilinear),
            "official, our generator": (official.projector_of(a)(single), a, exact),
        }
        for method, (result, own, rotations) in results.items():
            found = facts(result, weight, own, rotations, turn)
            if n == TARGET_SIZE and method == "ours":
                found |= memory_of("benchmarks.cases.dense:run_ours", [n], settings)
            if n == TARGET_SIZE and method == "official":
                found |= memory_of("benchmarks._official:run", [str(settings.reference), n], settings)
            dtype = "float64" if method == "ours" else "float32"
            ratio = None if method.startswith("ours") else timings.ratio(method, "ours")
            yield Row(name, method, f"{n}x{n}", d, dtype, timings.summaries(method), ratio, found)
        if n == TARGET_SIZE:
            ratio, same = timings.ratio("official", "ours"), timings.ratio("official", SAME_DTYPE)
            yield Finding(
                name,
                f"{n}x{n}: the official code takes {ratio} times ours on a float64 weight, {same} times ours on "
                f"its own float32 weight, target {TARGET_RATIO:g} for the latter",
                {"n": n, "ratio": ratio.to_dict(), "ratio_same_dtype": same.to_dict()},
                same.median >= TARGET_RATIO,
            )


@case("c4-reference", "C(4) on n x n -> n x n pixels: the same exact group on both sides, where results must agree")
def c4_reference(settings: Settings) -> Iterator[Row | Finding]:
    """The official code at its best: quarter turns permute the grid, its generator is exact and normal."""
    name = "c4-reference"
    if settings.reference is None:
        yield Finding(name, "skipped: --reference names no folder of the official code")
        return
    official = Official(settings.reference)
    n = TARGET_SIZE if TARGET_SIZE in settings.sizes else min(settings.sizes)
    weight, turn = settings.weight(n * n, n * n), quarter_turn(n)
    single = weight.to(torch.float32)
    rivals = [
        ours(n, weight, "C4"),
        Rival("official", {"build": lambda: official.projector(n, 4), "apply": lambda p: p(single)}),
    ]
    timings = settings.measure(rivals)
    turns = [torch.linalg.matrix_power(turn, k) for k in (1, 2, 3)]
    mine, theirs = build_ours(n, "C4")(weight), official.projector(n, 4)(single)
    ratio = timings.ratio("official", "ours")
    for method, dtype, result in (("ours", "float64", mine), ("official", "float32", theirs)):
        found = facts(result, weight, (turn - torch.eye(n * n)) * (2 / math.pi), turns, turn)
        if method == "official":
            found["difference from ours"] = float((result - mine).norm() / mine.norm())
            # small here and large above: what it returns is exact, and it drops exact weights that it should keep
            inside = build_ours(n, "C4")(result)
            found["part outside the exact space"] = float((result - inside).norm() / result.norm())
        quotient = ratio if method == "official" else None
        yield Row(name, method, f"{n}x{n}", n * n, dtype, timings.summaries(method), quotient, found)
