"""Groups: elements, generators, lengths, sampling, radius.

>>> from equidial.groups import C, by_name
>>> by_name("C4") == C(4)
True
"""

from __future__ import annotations

import re

from equidial.errors import ArgumentError, explain, nearest_names
from equidial.groups._affine import SE2, Scale, Translation
from equidial.groups._base import (
    DiscreteGenerator,
    Exp,
    Group,
    GroupElement,
    IsotypicComponent,
    Power,
    Word,
    uniform_in_ball,
)
from equidial.groups._matrix import GeneratedGroup, MatrixGroup
from equidial.groups._orthogonal import Lorentz, Orthogonal, SpecialOrthogonal
from equidial.groups._permutation import Permutation
from equidial.groups._planar import C, D, Flip, PlanarGroup
from equidial.groups._product import Product
from equidial.groups._rotation import O2, SO, SO2, O
from equidial.groups._shift import Shift

__all__ = [
    "O2",
    "SE2",
    "SO",
    "SO2",
    "C",
    "D",
    "DiscreteGenerator",
    "Exp",
    "Flip",
    "GeneratedGroup",
    "Group",
    "GroupElement",
    "IsotypicComponent",
    "Lorentz",
    "MatrixGroup",
    "O",
    "Orthogonal",
    "Permutation",
    "PlanarGroup",
    "Power",
    "Product",
    "Scale",
    "Shift",
    "SpecialOrthogonal",
    "Translation",
    "Word",
    "as_group",
    "by_name",
    "uniform_in_ball",
]

_FIXED = {
    "FLIP": Flip(),
    "FLIPUD": Flip("vertical"),
    "LORENTZ": Lorentz(),
    "O1,3": Lorentz(),
    "SO+1,3": Lorentz(proper=True),
    "SE2": SE2(),
    "SCALE": Scale(),
}
_FAMILIES = {"C": C, "D": D, "SO": SO, "O": O, "S": Permutation, "T": Shift, "R": Translation}
_EXAMPLES = (
    *("C4", "C8", "D4", "SO2", "SO3", "O2", "O3", "S4", "Flip", "FlipUD"),
    *("T1", "T2", "T3", "R2", "SE2", "Scale", "Lorentz"),
)


def by_name(name: str) -> Group:
    """The group with this name, the inverse of :attr:`Group.name`; case, blanks and parentheses do not matter.

    ``C<n>``, ``D<n>``, ``SO<n>``, ``O<n>``, ``S<n>`` (permutations), ``T<d>`` (cyclic shifts in ``d`` dimensions),
    ``R<d>`` (translations), ``Flip``, ``FlipUD``, ``Lorentz`` or ``O(1,3)``, ``SO+(1,3)``, ``SE2``, ``Scale``, and
    products ``"SO3 x S4"``. Raises ``ArgumentError`` with the list of names for anything else.
    """
    if isinstance(name, str):
        parts = re.split(r"\s+[xX]\s+", name.strip())
        if len(parts) > 1:
            return Product(tuple(by_name(part) for part in parts))
        key = re.sub(r"[()\s]", "", name).upper()
        if key in _FIXED:
            return _FIXED[key]
        match = re.fullmatch(r"(SO|[CDOSTR])([1-9][0-9]*)", key)
        if match and not (match[1] in "TR" and int(match[2]) > 3) and not (match[1] in ("SO", "O") and match[2] == "1"):
            return _FAMILIES[match[1]](int(match[2]))
        periods = re.fullmatch(r"T([123])\[([0-9]+(?:X[0-9]+)*)\]", key)
        if periods:
            return Shift(int(periods[1]), tuple(int(p) for p in periods[2].split("X")))
    raise ArgumentError(
        explain(
            "a group name: C<n> and D<n> for any n >= 1 (C4, D4, ..), SO<n>, O<n>, S<n> (SO2, O3, S4, ..), "
            "Flip, FlipUD, T1, T2, T3, R1, R2, R3, Lorentz, SO+(1,3), SE2, Scale, or a product 'SO3 x S4'",
            repr(name),
            f"did you mean {nearest_names(str(name), _EXAMPLES)}? Or pass a Group object",
        )
    )


def as_group(group: str | Group) -> Group:
    """The group itself, or the group with this name."""
    return group if isinstance(group, Group) else by_name(group)
