"""Filters: the constraint map, its spectrum, the responses and the dial.

>>> import torch, equidial as ed
>>> f = ed.invariant_filter(ed.representations.Pixels(ed.groups.C(4), (3, 3)), softness=0.0, response="hard")
>>> f.rank
3
"""

from equidial.filters._constraint import Constraint, Letter
from equidial.filters._dial import Dial, threshold_of_budget, threshold_of_softness
from equidial.filters._filter import (
    TRIVIAL_BOUND,
    Filter,
    Setting,
    apply_filter,
    equivariant_filter,
    invariant_filter,
    nearest_setting,
    resolve_radius,
    resolve_setting,
)
from equidial.filters._responses import RESPONSES, Response, check_response
from equidial.filters._spectrum import Method, Spectrum, build_spectrum

__all__ = [
    "RESPONSES",
    "TRIVIAL_BOUND",
    "Constraint",
    "Dial",
    "Filter",
    "Letter",
    "Method",
    "Response",
    "Setting",
    "Spectrum",
    "apply_filter",
    "build_spectrum",
    "check_response",
    "equivariant_filter",
    "invariant_filter",
    "nearest_setting",
    "resolve_radius",
    "resolve_setting",
    "threshold_of_budget",
    "threshold_of_softness",
]
