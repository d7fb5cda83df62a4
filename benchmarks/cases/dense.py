"""Rotation filter n x n -> n x n: the closed form against the dense SVD of the constraint (n^4 unknowns)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from benchmarks._contract import TOTAL, Finding, Rival, Row
from benchmarks._memory import peak_memory
from benchmarks._statistics import PowerLaw, number
from benchmarks.cases import Settings, case
from equidial import Filter, equivariant_filter
from equidial.groups import SO2, C, Group
from equidial.representations import Pixels

THRESHOLD = 0.5
"""Below the smallest non-zero singular value of either group at every size, so all rivals compute the exact space."""

TARGET_SIZE = 14
TARGET_RATIO = 1000.0


def build_ours(n: int, group: str = "SO2") -> Filter:
    """The filter, built from nothing: group, pixel action, eigenbasis, singular values. No cache outlives the call."""
    acting: Group = SO2() if group == "SO2" else C(4)
    pixels = Pixels(acting, (n, n))
    return equivariant_filter(pixels, pixels, threshold=THRESHOLD, response="hard")


def ours(n: int, weight: torch.Tensor, group: str = "SO2") -> Rival:
    """Stages ``build`` and ``apply`` (once, the first application, which also prepares the basis for its dtype)."""
    return Rival("ours", {"build": lambda: build_ours(n, group), "apply": lambda filter_: filter_(weight)})


def generator(n: int) -> torch.Tensor:
    """The dense skew generator of the circle action on ``n x n`` pixels, float64."""
    (found,) = Pixels(SO2(), (n, n)).generators()
    return found.to_dense()


def build_dense(a: torch.Tensor) -> torch.Tensor:
    """Right singular vectors ``[kept, d^2]`` with ``sigma <= THRESHOLD`` of ``vec W -> vec(W A - A W)``."""
    eye = torch.eye(len(a), dtype=a.dtype)
    constraint = torch.kron(eye, a.mT.contiguous()) - torch.kron(a, eye)  # on W flattened row by row
    _, sigma, vh = torch.linalg.svd(constraint)
    return vh[sigma <= THRESHOLD]


def apply_dense(kept: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The orthogonal projection of ``weight`` on the span of the rows of ``kept``."""
    return ((kept @ weight.flatten()) @ kept).reshape(weight.shape)


def run_ours(n: int, group: str = "SO2") -> None:
    """Build and apply once, for the memory measurement."""
    build_ours(n, group)(torch.ones(n * n, n * n, dtype=torch.float64))


def run_dense(n: int) -> None:
    """Build and apply once, for the memory measurement; the generator is made here, too."""
    apply_dense(build_dense(generator(n)), torch.ones(n * n, n * n, dtype=torch.float64))


def memory_of(target: str, arguments: list[object], settings: Settings) -> dict[str, float | int | str]:
    """The memory facts of a row: what the call took beyond the imports, and the peak of its process."""
    if not settings.memory:
        return {}
    found = peak_memory(target, arguments, settings.threads)
    return {"call MiB": round(found["peak_mib"] - found["before_mib"], 1), "peak MiB": found["peak_mib"]}


@case(
    "rotation-dense", "SO(2) on n x n -> n x n pixels, exact space: closed form against a dense SVD of the constraint"
)
def rotation_dense(settings: Settings) -> Iterator[Row | Finding]:
    """Both, paired, where the SVD fits; ours alone beyond; a power law of the SVD's total in ``d = n^2``.

    The rival gets its generator for nothing. At ``n mod 4 = 2`` ours also meets the exact quarter turn on the one
    direction that the circle action misses, which the rival leaves out: it has the smaller problem there.
    """
    name = "rotation-dense"
    totals: dict[int, float] = {}
    ours_at: dict[int, float] = {}
    for n in settings.dense_sizes:
        a, weight, d = generator(n), settings.weight(n * n, n * n), n * n
        rival = Rival(
            "dense SVD", {"build": lambda a=a: build_dense(a), "apply": lambda kept, w=weight: apply_dense(kept, w)}
        )
        timings = settings.measure([ours(n, weight), rival])
        difference = build_ours(n)(weight) - apply_dense(build_dense(a), weight) if n % 4 != 2 else None
        agreement = {} if difference is None else {"difference from ours": float(difference.norm() / weight.norm())}
        last = n == max(settings.dense_sizes)
        memory = [
            memory_of(f"{__name__}:{function}", [n], settings) if last else {} for function in ("run_ours", "run_dense")
        ]
        yield Row(name, "ours", f"{n}x{n}", d, "float64", timings.summaries("ours"), None, memory[0])
        ratio = timings.ratio("dense SVD", "ours")
        facts = {"unknowns": d * d, **agreement, **memory[1]}
        yield Row(name, "dense SVD", f"{n}x{n}", d, "float64", timings.summaries("dense SVD"), ratio, facts)
        totals[n], ours_at[n] = timings.summary("dense SVD").median, timings.summary("ours").median
    for n in settings.sizes:
        if n not in ours_at:
            timings = settings.measure([ours(n, settings.weight(n * n, n * n))])
            facts = memory_of(f"{__name__}:run_ours", [n], settings) if n == max(settings.sizes) else {}
            yield Row(name, "ours", f"{n}x{n}", n * n, "float64", timings.summaries("ours"), None, facts)
            ours_at[n] = timings.summary("ours", TOTAL).median
    if len(totals) >= 3:
        yield from _extrapolate(name, totals, ours_at)


def _extrapolate(name: str, totals: dict[int, float], ours_at: dict[int, float]) -> Iterator[Finding]:
    law = PowerLaw.fit([n * n for n in totals], list(totals.values()))
    before, last = sorted(totals)[-2:]
    slope = math.log(totals[last] / totals[before]) / (2 * math.log(last / before))
    yield Finding(
        name,
        f"dense SVD grows as d^({law.exponent:.2f} +- {law.exponent_error:.2f}), fitted to medians at n = "
        f"{', '.join(map(str, totals))} (fixed costs at small sizes flatten it, in the rival's favour: between the "
        f"last two it is d^{slope:.2f}, in theory d^6)",
        {"law": law.to_dict(), "last_slope": slope},
    )
    for n, mine in ours_at.items():
        if n in totals:
            continue
        fitted, (low, high) = law.at(n * n), law.interval(n * n)
        target = n == TARGET_SIZE
        yield Finding(
            name,
            f"{n}x{n}: dense SVD EXTRAPOLATED, not run: {number(fitted)} s (95 %: {number(low)}..{number(high)}); "
            f"ours measured {number(mine)} s: {number(fitted / mine)} times "
            f"({number(low / mine)} from the lower end)" + (", target 1,000" if target else ""),
            {"n": n, "extrapolated_s": fitted, "low_s": low, "high_s": high, "ours_s": mine, "ratio": fitted / mine},
            fitted / mine >= TARGET_RATIO if target else None,
        )
