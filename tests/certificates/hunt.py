"""A hunt for certificates that are too small: random draws, each improved by a search over element and input.

    python -m tests.certificates.hunt --draws 100000 --seed 0 --workers 2

A draw is a group, two representations, a weight, a response, a dial, a storage type and a radius. Its certificate is
compared with the largest error that can be found, ``||W rho_X(g) - rho_Y(g) W||_F / ||W||_F``, and for single weights
in the spectral norm with ``||(W rho_X(g) - rho_Y(g) W) x|| / (||W||_2 ||x||)`` over inputs ``x`` as well: elements by
listing, samples and steps of shrinking length; inputs by taking the worst one for the element at hand, and the worst
element for that input, in turn. What float64 may add to a measured error (``evaluation_error``) is granted, no more.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from equidial.certificates import certify_operator, certify_weight, evaluation_error, splits_by_spectrum
from equidial.errors import EquidialError
from equidial.filters import Constraint, Dial, Filter, Spectrum, resolve_setting
from equidial.groups import Group, GroupElement
from tests.spaces import GROUPS, UNBOUNDED, full_spectrum, representations_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RESPONSES = ("nearest", "hard", "taper", "exponential")
MAX_DIM = 64


@dataclass(frozen=True)
class Draw:
    """One draw and what came of it; errors relative to the weight's norm."""

    seed: int
    group: str
    space: str
    response: str
    dtype: str
    kind: str
    bound: float
    prior: float | None
    worst: float
    granted: float
    spectral_bound: float = math.inf
    worst_input: float = 0.0
    spectral_granted: float = 0.0

    @property
    def is_violation(self) -> bool:
        """Whether more was found than certified, a posteriori or, in float64, a priori."""
        beyond = self.worst - self.granted
        promised = self.prior is not None and self.dtype == "float64" and beyond > self.prior * (1 + 1e-11) + 1e-13
        on_input = self.worst_input - self.spectral_granted > self.spectral_bound
        return beyond > self.bound or promised or on_input


class Spaces:
    """Spaces and their spectra, built once per process."""

    def __init__(self) -> None:
        self.reps = {group: representations_of(group, small=True) for group in (*GROUPS, *UNBOUNDED)}
        self.spectra: dict[Constraint, Spectrum] = {}

    def draw(self, rng: random.Random) -> Constraint:
        """A space of at most ``MAX_DIM`` dimensions."""
        while True:
            reps = self.reps[rng.choice(tuple(self.reps))]
            rep_in, rep_out = rng.choice(reps), rng.choice(reps)
            if rng.random() < 0.4 and rep_in.dim <= MAX_DIM:
                return Constraint.invariants(rep_in)
            if rep_in.dim * rep_out.dim <= MAX_DIM:
                return Constraint.equivariants(rep_in, rep_out)

    def spectrum(self, constraint: Constraint) -> Spectrum:
        """The full spectrum of a space."""
        if constraint not in self.spectra:
            self.spectra[constraint] = full_spectrum(constraint)
        return self.spectra[constraint]


def one(spaces: Spaces, seed: int) -> Draw:
    """Draw, certify, attack."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    constraint = spaces.draw(rng)
    spectrum = spaces.spectrum(constraint)
    copies = (rng.choice([1, 2, 3]),) if rng.random() < 0.7 else ()
    weight = torch.randn(*copies, *constraint.shape, generator=generator, dtype=torch.float64)
    weight = weight * 10 ** rng.uniform(-3, 2)
    response = rng.choice(RESPONSES)
    f = _filter(spectrum, response, rng)
    dtype = rng.choice(DTYPES)
    stored = f(weight).to(dtype)
    reach = constraint.group.sample_radius
    radius = reach if rng.random() < 0.5 else rng.random() * reach
    found = certify_weight(
        constraint, stored, radius, spectrum if rng.random() < 0.5 and splits_by_spectrum(constraint) else None
    )
    exact = constraint.as_matrices(stored.double())
    norm = float(exact.norm())
    worst, worst_input = attack(constraint, exact, found.radius, generator) if norm else (0.0, 0.0)
    try:
        prior = f.at(weight).bound(radius)
    except EquidialError:
        prior = None
    allowed = evaluation_error(constraint, norm, found.radius)
    spectral: dict[str, float] = {}
    if norm and not copies and rng.random() < 0.5:
        gain = float(torch.linalg.matrix_norm(exact, ord=2))
        bound = certify_operator(constraint, stored, radius).bound
        spectral = {"spectral_bound": bound, "worst_input": worst_input / gain, "spectral_granted": allowed / gain}
    return Draw(
        seed,
        constraint.group.name,
        constraint.name,
        response,
        str(dtype).removeprefix("torch."),
        found.kind,
        found.bound,
        prior,
        worst / norm if norm else 0.0,
        allowed / norm if norm else 0.0,
        **spectral,
    )


def _filter(spectrum: Spectrum, response: str, rng: random.Random) -> Filter:
    softness = rng.choice([0.0, 1.0, rng.random(), rng.random()])
    dial = Dial("softness", softness)
    if rng.random() < 0.3:
        low, high = float(spectrum.sigma[0]), float(spectrum.sigma[-1])
        dial = Dial("threshold", low + rng.random() * (high - low))
    return Filter(spectrum, response, dial, resolve_setting(spectrum, response, dial))


def attack(
    constraint: Constraint, matrices: torch.Tensor, radius: float, generator: torch.Generator
) -> tuple[float, float]:
    """The largest ``||D(g)||_F``, and the largest ``||D(g) x|| / ||x||``, that were found."""

    def difference(point: Point) -> torch.Tensor:
        return constraint.difference(point.element(), matrices).reshape(-1, constraint.rep_in.dim)

    start = max(_starts(constraint.group, radius, generator), key=lambda p: float(difference(p).norm()))
    point, worst = _climb(start, lambda p: float(difference(p).norm()), generator)
    found = difference(point)
    seen = 0.0
    for _ in range(2):  # worst input for this element, worst element for this input
        x = torch.linalg.svd(found, full_matrices=False).Vh[0]
        point, seen = _climb(point, lambda p, x=x: float((difference(p) @ x).norm()), generator)
        found = difference(point)
    return max(worst, float(found.norm())), seen


@dataclass(frozen=True)
class Point:
    """``exp(t) s`` with ``||t||`` at most ``reach``; ``t`` is ``None`` in discrete groups, which do not move."""

    group: Group
    t: torch.Tensor | None
    s: GroupElement
    reach: float

    def element(self) -> GroupElement:
        """The element."""
        return self.s if self.t is None else self.group.exp(self.t) @ self.s

    def moved(self, by: torch.Tensor) -> Point:
        """The point a step further, inside the ball."""
        assert self.t is not None
        t = self.t + by
        return Point(self.group, t * min(1.0, self.reach / max(float(t.norm()), 1e-300)), self.s, self.reach)


def _starts(group: Group, radius: float, generator: torch.Generator) -> list[Point]:
    """All of a small finite group, samples of a large one; exponentials times letters of the others."""
    limit = radius * (1 + 1e-12)
    if group.is_finite and (group.order or 0) <= 200:
        return [Point(group, None, g, 0.0) for g in group.elements() if g.distance() <= limit]
    letters = [(s.element, s.length) for s in group.discrete_generators() if s.length <= radius]
    if not group.lie_dim:
        near = [g for g in group.sample(24, generator) if g.distance() <= limit]
        return [Point(group, None, g, 0.0) for g in (group.identity(), *near, *(s for s, _ in letters))]
    out = []
    for s, length in [(group.identity(), 0.0), *letters]:
        for k, d in enumerate(torch.randn(12, group.lie_dim, generator=generator, dtype=torch.float64)):
            share = (radius - length) * (1.0 if k % 2 else float(torch.rand((), generator=generator)))
            out.append(Point(group, share * d / d.norm(), s, radius - length))
    return out


def _climb(
    point: Point, value: Callable[[Point], float], generator: torch.Generator, steps: int = 24
) -> tuple[Point, float]:
    """Random steps of shrinking length, kept where they find more."""
    best, step = value(point), 0.3 * min(point.reach, 1.0)
    if point.t is None:
        return point, best
    for _ in range(steps):
        direction = torch.randn(point.group.lie_dim, generator=generator, dtype=torch.float64)
        moved = point.moved(step * direction / direction.norm())
        tried = value(moved)
        if tried > best:
            point, best = moved, tried
        else:
            step *= 0.75
    return point, best


def hunt(seeds: Iterable[int]) -> list[Draw]:
    """All draws of these seeds, in this process, on one thread."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces = Spaces()
        return [one(spaces, seed) for seed in seeds]


def report(draws: list[Draw]) -> str:
    """Violations and slack by group, response and storage type."""
    lines = []
    for title in ("group", "response", "dtype", "kind"):
        lines.append(
            f"{title:<18} {'draws':>7} {'violations':>10} {'slack: median':>14} {'95 %':>8}  largest error/bound"
        )
        rows: dict[str, list[Draw]] = defaultdict(list)
        for draw in draws:
            rows[getattr(draw, title)].append(draw)
        for name, found in sorted(rows.items()):
            seen = [d for d in found if d.worst > 1e-9]
            slack = sorted(d.bound / d.worst for d in seen) or [1.0]
            tightest = max(((d.worst - d.granted) / d.bound for d in seen), default=0.0)
            broken, high = sum(d.is_violation for d in found), slack[int(0.95 * (len(slack) - 1))]
            middle = statistics.median(slack)
            lines.append(f"{name:<18} {len(found):>7} {broken:>10} {middle:>14.4f} {high:>8.3f}  {tightest:.9f}")
        lines.append("")
    spectral = sorted(d.spectral_bound / d.worst_input for d in draws if d.worst_input > 1e-9)
    if spectral:
        median, high = statistics.median(spectral), spectral[int(0.95 * (len(spectral) - 1))]
        lines.append(
            f"spectral norm, worst input: {len(spectral)} draws, slack {median:.4f} (median), {high:.3f} (95 %)"
        )
    violations = [d for d in draws if d.is_violation]
    lines.append(f"{len(draws)} draws, {len(violations)} violations")
    return "\n".join([*lines, *(repr(d) for d in violations[:20])])


def main() -> int:
    """Hunt, print the report; the exit code is 1 where a certificate was broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    started = time.perf_counter()
    first = arguments.seed * 10_000_000
    count = min(4 * arguments.workers, arguments.draws)  # each block builds its spaces anew
    blocks = [range(first + i, first + arguments.draws, count) for i in range(count)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        draws = [draw for found in pool.map(hunt, blocks) for draw in found]
    print(report(draws))
    print(f"{time.perf_counter() - started:.0f} s, {arguments.workers} workers")
    return int(any(d.is_violation for d in draws))


if __name__ == "__main__":
    raise SystemExit(main())
