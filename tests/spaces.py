"""Groups, representations and constraint spaces that the tests range over."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st

from equidial.filters import Constraint, Spectrum, build_spectrum
from equidial.groups import SO2, C, D, Flip, Group, Shift
from equidial.representations import Pixels, Representation, Trivial, Vector

GROUPS: tuple[Group, ...] = (
    C(1),
    C(2),
    C(3),
    C(4),
    C(8),
    D(1),
    D(2),
    D(3),
    D(4),
    D(5),
    Flip(),
    Flip("vertical"),
    SO2(),
    Shift(1, (5,)),
    Shift(2, (3, 4)),
    Shift(3, (2, 2, 3)),
)
PLANAR = tuple(g for g in GROUPS if not isinstance(g, Shift))


def representations_of(group: Group, small: bool = False) -> list[Representation]:
    """Representations of one group, sums and copies among them, all that it can act on."""
    if isinstance(group, Shift):
        free = Shift(group.dims)
        shapes = {1: [(5,), (2,)], 2: [(3, 4), (2, 2)], 3: [(2, 2, 3)]}[group.dims]
        found: list[Representation] = [Pixels(free, shape) for shape in shapes]
        return [Trivial(free), *found, found[0] + 2 * Trivial(free)]
    out: list[Representation] = [Trivial(group), Vector(group), 2 * Vector(group) + Trivial(group)]
    shapes = [(1, 1), (3, 3), (2, 2), (4, 4), (2, 3), (3, 2), (5,)] + ([] if small else [(5, 5), (6, 6), (3, 5)])
    for shape in shapes:
        try:
            out.append(Pixels(group, shape))
        except ValueError:
            continue
    if len(out) > 4:
        out.append(2 * (Vector(group) + out[4]) + Trivial(group))
    return out


def all_representations() -> list[Representation]:
    """Every representation of every group above."""
    return [rep for group in GROUPS for rep in representations_of(group)]


def full_spectrum(constraint: Constraint, method: str | None = None) -> Spectrum:
    """The spectrum, where multiplicities are known."""
    found = build_spectrum(constraint, method)
    assert isinstance(found, Spectrum)
    return found


@st.composite
def spaces(draw: st.DrawFn, max_dim: int = 120) -> Constraint:
    """A random constraint space of at most ``max_dim`` dimensions."""
    group = draw(st.sampled_from(GROUPS))
    reps = [rep for rep in representations_of(group, small=True) if rep.dim <= max_dim]
    rep_in = draw(st.sampled_from(reps))
    if draw(st.booleans()):
        return Constraint.invariants(rep_in)
    rep_out = draw(st.sampled_from([rep for rep in reps if rep.dim * rep_in.dim <= max_dim] or [Trivial(rep_in.group)]))
    return Constraint.equivariants(rep_in, rep_out)


def random_space(rng: random.Random, max_dim: int = 64) -> Constraint:
    """The same by a plain generator, for loops over many draws."""
    while True:
        group = rng.choice(GROUPS)
        reps = representations_of(group, small=True)
        rep_in, rep_out = rng.choice(reps), rng.choice(reps)
        if rng.random() < 0.4 and rep_in.dim <= max_dim:
            return Constraint.invariants(rep_in)
        if rep_in.dim * rep_out.dim <= max_dim:
            return Constraint.equivariants(rep_in, rep_out)


def random_weight(constraint: Constraint, copies: tuple[int, ...] = (3,), seed: int = 0) -> torch.Tensor:
    """A Gaussian weight of this space, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*copies, *constraint.shape, generator=generator, dtype=torch.float64)
