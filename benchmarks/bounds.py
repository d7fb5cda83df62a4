"""Our bounds beside paper A's, and beside the worst element that a search finds.

    python -m benchmarks.bounds [--summary] [--weights FILE.safetensors] [--json FILE]

For a weight ``W`` with ``||L W|| <= b ||W||``, elements within ``r``, ``n_G`` generators and ``d'`` outputs (1 for
invariant weights), relative to ``||W||_F``:

    a priori        r b                      from the setting of the filter alone
    a posteriori    certify_weight           from the stored weight, rounding included
    measured        the largest error that the certificate met (``Supremum.measured``)
    searched        the largest error of a search over elements: a lower bound of the truth
    A, no residual  r b sqrt(n_G d')         paper A's bound with its Taylor residual delta_G left out
    A, own residual the same plus sup_g ||W R_X(g) - R_Y(g) W|| / ||W||, the residual of this very weight
    A, worst        the same plus delta_G = sup over g and all weights

``R(g)`` is ``rho(g)`` less its first-order part: ``rho(g) - I - sum_i t_i A_i`` for ``g = exp(t.A)``, and
``rho(g) - I - sum_s n_s (rho(s) - I)`` for a shortest word with exponents ``n_s``. Both suprema are taken over a list
of elements, so they are too small if anything, which favours paper A. ``b`` and ``r`` are the same for both sides; for
``hard`` and ``taper`` ``b`` is the largest singular value kept. No bound is cut at the trivial one (2) but ours, which
never says more.

Exit code 1 where one of ours exceeds paper A's without residual, or an error exceeds its bound.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks._contract import add_json_option, write_json
from benchmarks._taylor import own_residual, words, worst_residual
from equidial import equivariant_filter, invariant_filter
from equidial.certificates import certify_weight
from equidial.errors import ArgumentError, explain
from equidial.filters import Constraint, Spectrum
from equidial.groups import SO, SO2, C, D, GroupElement, Lorentz, O
from equidial.representations import Pixels, Representation, Tensor, Trivial, Vector

RESPONSES = ("hard", "taper", "nearest")
TOLERANCE = 1e-9
"""What rounding may add to a certificate; paper A's bound speaks of exact arithmetic."""


@dataclass(frozen=True)
class Row:
    """One weight at one setting; every number but ``radius`` and ``b`` is relative to ``||W||_F``.

    ``a_priori`` is the library's, ``own`` and ``worst`` the Taylor residuals of this weight and of all weights
    (``None`` where paper A does not apply: actions that are not orthogonal).
    """

    space: str
    response: str
    softness: float
    b: float
    radius: float
    generators: int
    outputs: int
    a_priori: float
    a_posteriori: float
    measured: float
    searched: float
    own: float | None
    worst: float | None

    @property
    def paper(self) -> float | None:
        """Paper A's bound without its residual, ``r b sqrt(n_G d')``."""
        return None if self.worst is None else self.radius * self.b * math.sqrt(self.generators * self.outputs)

    @property
    def paper_own(self) -> float | None:
        """The same with the residual of this weight."""
        return None if self.paper is None or self.own is None else self.paper + self.own

    @property
    def paper_worst(self) -> float | None:
        """The same with the residual of the worst weight."""
        return None if self.paper is None or self.worst is None else self.paper + self.worst

    def faults(self) -> list[str]:
        """What contradicts the claims; empty where they hold."""
        found = []
        if self.paper is not None:
            if self.a_priori > self.paper * (1 + 1e-12):
                found.append("the a priori bound exceeds paper A's")
            if self.a_posteriori > self.paper + TOLERANCE:
                found.append("the a posteriori bound exceeds paper A's")
        if max(self.measured, self.searched) > self.a_posteriori * (1 + 1e-12):
            found.append("an element exceeds the a posteriori bound")
        if self.a_posteriori > self.a_priori * (1 + TOLERANCE) + TOLERANCE:
            found.append("the a posteriori bound exceeds the a priori one")
        return [f"{self.space}, {self.response} at {self.softness:g}: {text}" for text in found]


@dataclass(frozen=True)
class Space:
    """A space of weights; ``rep_out`` is ``None`` for invariant ones."""

    rep_in: Representation
    rep_out: Representation | None = None

    @property
    def constraint(self) -> Constraint:
        """Its constraint."""
        if self.rep_out is None:
            return Constraint.invariants(self.rep_in)
        return Constraint.equivariants(self.rep_in, self.rep_out)

    @property
    def name(self) -> str:
        """``"Pixels(3,3) of C4"``."""
        return self.constraint.name

    def draw(self, seed: int) -> torch.Tensor:
        """A Gaussian weight: eight copies for invariant ones."""
        generator = torch.Generator().manual_seed(seed)
        shape = (8, self.rep_in.dim) if self.rep_out is None else self.constraint.shape
        return torch.randn(shape, dtype=torch.float64, generator=generator)


def spaces(sizes: Iterable[int]) -> list[Space]:
    """Windows of every size under C4, C8, SO2 and D4 (C8 and SO2: real circle action), and equivariant maps."""
    found = [Space(Pixels(group, (n, n))) for n in sizes for group in (C(4), C(8), SO2(), D(4))]
    for group in (SO(3), O(3), O(5)):
        found += [Space(Vector(group) + Trivial(group), Vector(group) + Trivial(group))]
        found += [Space(Tensor(group, 2), Vector(group) + Trivial(group))]
    lorentz = Lorentz(proper=True)
    return [*found, Space(Tensor(SO(3), 2), Tensor(SO(3), 2)), Space(Vector(lorentz), Vector(lorentz))]


def row_of(space: Space, weight: torch.Tensor, response: str, softness: float) -> Row:
    """Filter a float64 weight, then bound, certify and search the result. The zero result is certified as such."""
    if not 0 <= softness < 1:
        raise ArgumentError(
            explain("softness in [0, 1): at 1 there is no setting to bound", repr(softness), "e.g. 0.3")
        )
    constraint = space.constraint
    build = (
        invariant_filter(space.rep_in, softness=softness, response=response)
        if space.rep_out is None
        else equivariant_filter(space.rep_in, space.rep_out, softness=softness, response=response)
    )
    found = build.at(weight)
    result = found(weight)
    spectrum = found.decomposition if isinstance(found.decomposition, Spectrum) else None
    certificate = certify_weight(constraint, result, spectrum=spectrum)
    group = constraint.group
    applies = constraint.is_orthogonal
    return Row(
        space=space.name,
        response="strict" if softness == 0 else response,
        softness=softness,
        b=found.threshold if response == "nearest" else found.effective_threshold,
        radius=certificate.radius,
        generators=group.lie_dim + len(group.discrete_generators()),
        outputs=constraint.rep_out.dim,
        a_priori=found.bound(),
        a_posteriori=certificate.bound,
        measured=certificate.measured,
        searched=search(constraint, result, certificate.radius),
        own=max(own_residual(constraint, result, word) for word in words(group)) if applies else None,
        worst=worst_residual(constraint) if applies else None,
    )


def search(constraint: Constraint, weight: torch.Tensor, radius: float, seed: int = 0) -> float:
    """The largest ``||W rho_X(g) - rho_Y(g) W|| / ||W||`` met within ``radius``: all elements of a finite group.

    Otherwise samples, random directions and their products with letters, then 40 random steps uphill from each of the
    three best, shorter where nothing is gained.
    """
    norm = float(weight.norm())
    if norm == 0:
        return 0.0
    matrices = constraint.as_matrices(weight)

    def error(g: GroupElement) -> float:
        return float(constraint.difference(g, matrices).norm()) / norm

    group = constraint.group
    if group.is_finite:
        return max(error(g) for g in group.elements())
    generator = torch.Generator().manual_seed(seed)
    if group.lie_dim == 1:
        candidates = [group.exp(radius * k / 360) for k in range(1, 361)]
    else:
        directions = torch.randn(64, group.lie_dim, dtype=torch.float64, generator=generator)
        turned = [group.exp(radius * d / d.norm()) for d in directions]
        turned += [g @ s.element for g in turned for s in group.discrete_generators()]
        candidates = [g for g in [*group.sample(128, generator), *turned] if g.distance() <= radius]
    best = 0.0
    for found, g in sorted(((error(g), g) for g in candidates), key=lambda pair: -pair[0])[:3]:
        step = 0.2
        for _ in range(40):
            moved = group.exp(step * torch.randn(group.lie_dim, dtype=torch.float64, generator=generator)) @ g
            if moved.distance() <= radius and (higher := error(moved)) > found:
                found, g = higher, moved
            else:
                step *= 0.9
        best = max(best, found)
    return best


def table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table, columns padded to one width."""
    cells = [list(titles), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def full_table(rows: Iterable[Row]) -> str:
    """One line per row."""
    titles = ("space", "response", "softness", "b", "a priori", "a posteriori", "measured", "searched")
    lines = [
        (
            row.space,
            row.response,
            f"{row.softness:g}",
            *map(_number, (row.b, row.a_priori, row.a_posteriori, row.measured, row.searched)),
            *map(_number, (row.paper, row.paper_own, row.paper_worst)),
            _ratio(row.paper, row.a_priori),
            _ratio(row.a_posteriori, row.searched),
        )
        for row in rows
    ]
    return table((*titles, "A, no residual", "A, own residual", "A, worst", "A / a priori", "slack"), lines)


def summary(rows: Iterable[Row]) -> str:
    """One line per space and softness: ranges over responses (and over kernels of one size)."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.space, row.softness), []).append(row)
    columns: list[tuple[str, Callable[[Row], float | None]]] = [
        ("a priori", lambda row: row.a_priori),
        ("a posteriori", lambda row: row.a_posteriori),
        ("searched", lambda row: row.searched),
        ("A, no residual", lambda row: row.paper),
        ("A, own residual", lambda row: row.paper_own),
        ("A, worst", lambda row: row.paper_worst),
        ("slack", lambda row: row.a_posteriori / row.searched if row.searched > TOLERANCE else None),
    ]
    lines = [
        (space, f"{softness:g}", str(len(found)), *(_range(value(row) for row in found) for _, value in columns))
        for (space, softness), found in groups.items()
    ]
    return table(("space", "softness", "rows", *(title for title, _ in columns)), lines)


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _range(values: Iterable[float | None]) -> str:
    known = sorted(v for v in values if v is not None)
    ends = [_number(v) for v in (known[:1] + known[-1:])]
    return "-" if not known else ends[0] if ends[0] == ends[-1] else "..".join(ends)


def _ratio(top: float | None, bottom: float) -> str:
    return "-" if top is None or bottom <= TOLERANCE else f"{top / bottom:.2f}"


def kernels(path: Path) -> list[tuple[str, torch.Tensor]]:
    """Square convolution kernels larger than 1x1 of a checkpoint, as ``[out * in, k * k]`` float64 weights."""
    from safetensors.torch import load_file

    found = [(name, t.double()) for name, t in load_file(path).items() if t.ndim == 4 and t.shape[2] == t.shape[3] > 1]
    if not found:
        raise ArgumentError(explain("a checkpoint with convolution kernels", str(path.name), "choose another file"))
    return [(name, t.reshape(-1, t.shape[2] * t.shape[3])) for name, t in found]


def layers(arguments: argparse.Namespace) -> Iterator[tuple[Space, torch.Tensor]]:
    """Spaces with one weight each: drawn, or the kernels of a checkpoint under C4, C8, SO2 and D4."""
    if arguments.weights is None:
        yield from ((space, space.draw(arguments.seed)) for space in spaces(arguments.sizes))
        return
    stored = kernels(arguments.weights)
    for group in (C(4), C(8), SO2(), D(4)):
        for _, weight in stored:
            n = math.isqrt(weight.shape[1])
            yield Space(Pixels(group, (n, n))), weight


def main(argv: list[str] | None = None) -> int:
    """Print the table (or its summary), the verdict and the largest ratios; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[3, 5, 7, 14, 16], help="sides of the windows")
    parser.add_argument("--softness", type=float, nargs="+", default=[0.0, 0.1, 0.3, 0.5, 0.8])
    parser.add_argument("--responses", nargs="+", default=list(RESPONSES), choices=RESPONSES)
    parser.add_argument("--seed", type=int, default=0, help="of the weights that are drawn")
    parser.add_argument("--weights", type=Path, help="certify the convolution kernels of this safetensors file")
    parser.add_argument("--summary", action="store_true", help="ranges per space and softness only")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    for space, weight in layers(arguments):
        for softness in arguments.softness:
            # all responses agree on the exactly symmetric end
            chosen = arguments.responses[:1] if softness == 0 else arguments.responses
            rows += [row_of(space, weight, response, softness) for response in chosen]
    print(summary(rows) if arguments.summary else full_table(rows))
    faults = [text for row in rows for text in row.faults()]
    compared = [row for row in rows if row.paper is not None]
    vacuous = sum((row.paper_worst or 0) >= 2 for row in compared)
    helpless = sum((row.paper_own or 0) >= 2 for row in compared)
    ours = sum(row.a_posteriori >= 2 for row in compared)
    gains = [row.paper / row.a_priori for row in compared if row.paper is not None and row.a_priori > TOLERANCE]
    slack = [row.a_posteriori / row.searched for row in rows if row.searched > TOLERANCE]
    print(f"\n{len(rows)} weights, {len(compared)} of them within paper A's hypotheses (orthogonal actions).")
    if gains:
        print(f"paper A without residual / a priori: {min(gains):.2f} to {max(gains):.2f}")
    if slack:
        print(f"a posteriori / searched: median {statistics.median(slack):.3f}, {min(slack):.3f} to {max(slack):.3f}")
    print(
        f"at or above the trivial bound 2: paper A with the worst residual {vacuous}, with the weight's own {helpless},"
    )
    print(f"a posteriori {ours}, of {len(compared)}")
    print(
        "claim: ours <= paper A's without residual, no element above its bound: " + ("VIOLATED" if faults else "holds")
    )
    for text in faults:
        print(f"  {text}")
    if arguments.json:
        write_json(arguments.json, "bounds", arguments, [{**asdict(row), "paper": row.paper} for row in rows])
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
