"""Representations: how a group acts on the last axis of a tensor.

>>> from equidial import groups, representations
>>> rep = 8 * representations.Vector(groups.C(4)) + representations.Trivial(groups.C(4))
>>> rep.dim
17
"""

from __future__ import annotations

import re

from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.representations._base import DirectSum, Eigenbasis, Representation, ResidualGenerator
from equidial.representations._circle import CircleBasis, pixel_coordinates
from equidial.representations._elementary import Trivial, Vector
from equidial.representations._maps import BlockBasis, LinearMap, map_blocks
from equidial.representations._pixels import Pixels
from equidial.representations._unitary import UnitaryMap

__all__ = [
    "BlockBasis",
    "CircleBasis",
    "DirectSum",
    "Eigenbasis",
    "LinearMap",
    "Pixels",
    "Representation",
    "ResidualGenerator",
    "Trivial",
    "UnitaryMap",
    "Vector",
    "map_blocks",
    "parse",
    "pixel_coordinates",
]

_TERM = re.compile(r"(?:(?P<copies>\d+)\s*\*\s*)?(?P<name>[A-Za-z]+)(?:\(\s*(?P<shape>\d+(?:\s*,\s*\d+)*)\s*,?\s*\))?")


def parse(text: str, group: Group) -> Representation:
    """The representation written ``"8*Vector + 4*Trivial"`` or ``"3*Pixels(14,14)"``, for this group.

    Terms are joined by ``+``; each is ``[copies*]Trivial``, ``[copies*]Vector`` or ``[copies*]Pixels(h,w)``.
    Raises ``ArgumentError`` for anything else.
    """
    rep: Representation | None = None
    for part in text.split("+"):
        match = _TERM.fullmatch(part.strip())
        name = match["name"] if match else None
        shape = match["shape"] if match else None
        if match is None or name not in ("Trivial", "Vector", "Pixels") or (name == "Pixels") != (shape is not None):
            raise ArgumentError(
                explain(
                    "terms '[copies*]Trivial', '[copies*]Vector' or '[copies*]Pixels(h,w)' joined by '+'",
                    repr(text),
                    "e.g. '8*Vector + 4*Trivial'",
                )
            )
        if shape is not None:
            term: Representation = Pixels(group, tuple(int(n) for n in shape.split(",")))
        else:
            term = Vector(group) if name == "Vector" else Trivial(group)
        if match["copies"]:
            term = int(match["copies"]) * term
        rep = term if rep is None else rep + term
    assert rep is not None
    return rep
