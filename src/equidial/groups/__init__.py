"""Groups: elements, generators, lengths, sampling, radius.

>>> from equidial.groups import C, by_name
>>> by_name("C4") == C(4)
True
"""

from __future__ import annotations

import re

from equidial.errors import ArgumentError, explain, nearest_names
from equidial.groups._base import DiscreteGenerator, Group, GroupElement, IsotypicComponent
from equidial.groups._planar import SO, SO2, C, D, Flip, PlanarGroup
from equidial.groups._shift import Shift

__all__ = [
    "SO",
    "SO2",
    "C",
    "D",
    "DiscreteGenerator",
    "Flip",
    "Group",
    "GroupElement",
    "IsotypicComponent",
    "PlanarGroup",
    "Shift",
    "as_group",
    "by_name",
]

_FIXED = {
    "SO2": SO2(),
    "FLIP": Flip(),
    "FLIPUD": Flip("vertical"),
    "T1": Shift(1),
    "T2": Shift(2),
    "T3": Shift(3),
}
_EXAMPLES = ("C4", "C8", "D4", "SO2", "Flip", "FlipUD", "T1", "T2", "T3")


def by_name(name: str) -> Group:
    """The group with this name: ``C<n>``, ``D<n>``, ``SO2``, ``Flip``, ``FlipUD``, ``T1``, ``T2``, ``T3``.

    Case and parentheses do not matter: ``"SO(2)"`` is ``"SO2"``. Raises ``ArgumentError`` with the list of
    names for anything else.
    """
    if isinstance(name, str):
        key = re.sub(r"[()\s]", "", name).upper()
        if key in _FIXED:
            return _FIXED[key]
        match = re.fullmatch(r"([CD])([1-9][0-9]*)", key)
        if match:
            return (C if match[1] == "C" else D)(int(match[2]))
        periods = re.fullmatch(r"T([123])\[([0-9]+(?:X[0-9]+)*)\]", key)
        if periods:
            return Shift(int(periods[1]), tuple(int(p) for p in periods[2].split("X")))
    raise ArgumentError(
        explain(
            "a group name: C<n> and D<n> for any n >= 1 (C4, D4, ..), SO2, Flip, FlipUD, T1, T2, T3",
            repr(name),
            f"did you mean {nearest_names(str(name), _EXAMPLES)}? Or pass a Group object",
        )
    )


def as_group(group: str | Group) -> Group:
    """The group itself, or the group with this name."""
    return group if isinstance(group, Group) else by_name(group)
