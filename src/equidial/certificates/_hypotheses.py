"""Hypotheses of the bounds, tried on the representation itself before anything is claimed of it.

A certificate speaks of the elements ``rho(g)`` and is computed from the generators; a sign, a factor or a missing term
in either would make it a claim about another group. Each check applies a few elements to a fixed vector.
"""

from __future__ import annotations

import torch

from equidial.errors import GroupActionError, explain
from equidial.groups import GroupElement
from equidial.representations import LinearMap, Representation

_STEP = 2.0**-12  # of the central difference, in units of 1 / ||A||: its error is about its square
_DERIVATIVE_TOLERANCE = 1e-5
_TOLERANCE = 1e-7


def check_hypotheses(rep: Representation) -> None:
    """Raise ``GroupActionError`` unless elements, generators and declared properties of ``rep`` agree.

    On one random vector: ``d/dt rho(exp(t A_i)) = d rho(A_i)`` at 0, the letters are the elements that they name,
    ``rho(g h) = rho(g) rho(h)`` for a product of letters and exponentials, and norms are kept where the action is
    declared orthogonal. Cost: a few applications of each generator.
    """
    group = rep.effective_group
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rep.dim, generator=generator, dtype=torch.float64)
    x = x / x.norm()
    near: list[GroupElement] = []
    for i, a in enumerate(rep.generators()):
        image = a.on_last_axis(x)
        size = max(a.norm_bound(), 1e-300)
        t = torch.zeros(group.lie_dim, dtype=torch.float64)
        t[i] = _STEP / max(size, 1.0)
        forward, backward = (rep.map_of(group.exp(s * t)).on_last_axis(x) for s in (1, -1))
        slope = (forward - backward) / (2 * float(t[i]))
        if float((slope - image).norm()) > _DERIVATIVE_TOLERANCE * max(size, 1.0):
            raise _disagreement(rep, f"generator {i + 1} is the derivative of its elements", slope, image)
        near.append(group.exp(t * max(size, 1.0)))
    for s, letter in _letters(rep):
        image, moved = letter.on_last_axis(x), rep.map_of(s).on_last_axis(x)
        if float((moved - image).norm()) > _TOLERANCE * max(float(image.norm()), 1.0):
            raise _disagreement(rep, f"letter {s!r} is the element that it names", moved, image)
        near.append(s)
    for g, h in zip(near, reversed(near), strict=True):
        image = rep.map_of(g).on_last_axis(rep.map_of(h).on_last_axis(x))
        product = rep.map_of(g @ h).on_last_axis(x)
        allowed = _TOLERANCE * max(float(image.norm()), 1.0) + 2 * rep.rounding
        if float((product - image).norm()) > allowed:
            raise _disagreement(rep, f"the product {g!r} @ {h!r} acts as one after the other", product, image)
        if rep.is_orthogonal and abs(float(image.norm()) - 1) > allowed:
            raise _disagreement(rep, "elements keep norms, as declared (is_orthogonal)", image, x)


def _letters(rep: Representation) -> list[tuple[GroupElement, LinearMap]]:
    if rep.effective_group != rep.group:
        return []  # the letters belong to the larger group, whose elements act through the quotient
    pairs = zip(rep.group.discrete_generators(), rep.discrete_generators(), strict=True)
    return [(s.element, letter) for s, letter in pairs]


def _disagreement(rep: Representation, law: str, got: torch.Tensor, wanted: torch.Tensor) -> GroupActionError:
    return GroupActionError(
        explain(
            f"a representation in which {law} ({rep!r})",
            f"a difference of {float((got - wanted).norm()):.2e} on a unit vector",
            "correct the representation (equidial.testing tells what it breaks); no bound holds for it",
        )
    )
