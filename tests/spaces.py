"""Groups, representations and constraint spaces that the tests range over."""

from __future__ import annotations

import random
import warnings

import torch
from hypothesis import strategies as st

from equidial.errors import EquidialWarning
from equidial.filters import Constraint, Spectrum, build_spectrum
from equidial.groups import (
    O2,
    SE2,
    SO,
    SO2,
    C,
    D,
    Flip,
    GeneratedGroup,
    Group,
    Lorentz,
    O,
    Permutation,
    PlanarGroup,
    Product,
    Scale,
    Shift,
    Translation,
)
from equidial.representations import (
    FactorRepresentation,
    Hom,
    MatrixRepresentation,
    Pixels,
    Regular,
    Representation,
    Tensor,
    Trivial,
    Vector,
)


def _boosts() -> GeneratedGroup:
    """One boost, given by its matrix; it cannot be stable, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)
        return GeneratedGroup("boost", Lorentz().natural_generators()[3:4] / 2**0.5)


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
    O2(),
    SO(3),
    O(3),
    O(4),
    SO(4),
    Permutation(3),
    Permutation(4),
    C(3) * Flip(),
    D(3) * C(2),
)
PLANAR = tuple(g for g in GROUPS if isinstance(g, PlanarGroup))
UNBOUNDED: tuple[Group, ...] = (
    Lorentz(),
    Lorentz(proper=True),
    SE2(),
    Scale(),
    Translation(2),
    _boosts(),
    GeneratedGroup("turns and -1", SO(3).natural_generators(), [-torch.eye(3)], lengths=[3.0]),
)
"""Groups whose representations need not be orthogonal; bounds name a radius."""


def representations_of(group: Group, small: bool = False) -> list[Representation]:
    """Representations of one group, sums and copies among them, all that it can act on."""
    if isinstance(group, Shift):
        free = Shift(group.dims)
        shapes = {1: [(5,), (2,)], 2: [(3, 4), (2, 2)], 3: [(2, 2, 3)]}[group.dims]
        found: list[Representation] = [Pixels(free, shape) for shape in shapes]
        return [Trivial(free), *found, found[0] + 2 * Trivial(free)]
    if not isinstance(group, PlanarGroup):
        return _of_matrices(group, small)
    out: list[Representation] = [Trivial(group), Vector(group), 2 * Vector(group) + Trivial(group)]
    shapes = [(1, 1), (3, 3), (2, 2), (4, 4), (2, 3), (3, 2), (5,)] + ([] if small else [(5, 5), (6, 6), (3, 5)])
    for shape in shapes if not isinstance(group, O2) else ():
        try:
            out.append(Pixels(group, shape))
        except ValueError:
            continue
    if len(out) > 4:
        out.append(2 * (Vector(group) + out[4]) + Trivial(group))
    if group.is_finite and (group.order or 0) <= 6:
        out.append(Regular(group))
    if isinstance(group, O2):
        out += [Tensor(group, 2), Tensor(group, 2) @ (Vector(group) + Trivial(group))]
    return out


def _of_matrices(group: Group, small: bool) -> list[Representation]:
    """Tensors, duals, regular and given matrices; factors for products."""
    out: list[Representation] = [Trivial(group), 3 * Trivial(group)]
    if isinstance(group, Product):
        parts = [FactorRepresentation(group, i, Vector(f)) for i, f in enumerate(group.factors)]
        out += [*parts, parts[0] @ parts[1], 2 * parts[0] + parts[1]]
    elif group.natural_dim:
        v = Vector(group)
        out += [v, 2 * v + Trivial(group), Tensor(group, 2), v.dual + Trivial(group), _turned(group)]
        out += [] if small else [Hom(v, v + Trivial(group)), Hom(Tensor(group, 2), v)]
    if group.is_finite and (group.order or 0) <= (12 if small else 24):
        out.append(Regular(group))
    return out


def _turned(group: Group) -> MatrixRepresentation:
    """Natural vectors in another orthonormal basis, given by matrices."""
    generator = torch.Generator().manual_seed(3)
    n = group.natural_dim or 1
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    letters = [group.natural_matrix(s.element.value) for s in group.discrete_generators()]
    lie, discrete = ([basis @ m @ basis.mT for m in ms] for ms in (group.natural_generators(), letters))
    return MatrixRepresentation(group, lie, discrete)


def all_representations() -> list[Representation]:
    """Every representation of every group above."""
    return [rep for group in (*GROUPS, *UNBOUNDED) for rep in representations_of(group)]


def radius_of(group: Group) -> float:
    """The group's radius, 1 where it has none."""
    return group.radius if group.is_compact else 1.0


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
