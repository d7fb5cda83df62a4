"""Filters: the constraint map, its spectrum, the responses and the dial.

>>> import torch, equidial as ed
>>> f = ed.invariant_filter(ed.representations.Pixels(ed.groups.C(4), (3, 3)), softness=0.0, response="hard")
>>> f.rank
3
"""

from equidial.filters._choice import build_spectrum
from equidial.filters._constraint import Constraint, Letter
from equidial.filters._dial import Dial, threshold_of_budget, threshold_of_softness
from equidial.filters._filter import Filter, apply_filter, equivariant_filter, invariant_filter
from equidial.filters._growth import growth_factor, trivial_bound
from equidial.filters._matrix_free import MatrixFreeSpectrum
from equidial.filters._responses import RESPONSES, Response, check_response
from equidial.filters._setting import Setting, nearest_setting, relative_defect, resolve_radius, resolve_setting
from equidial.filters._spectrum import Method, Spectrum, two_sided_coefficients

__all__ = [
    "RESPONSES",
    "Constraint",
    "Dial",
    "Filter",
    "Letter",
    "MatrixFreeSpectrum",
    "Method",
    "Response",
    "Setting",
    "Spectrum",
    "apply_filter",
    "build_spectrum",
    "check_response",
    "equivariant_filter",
    "growth_factor",
    "invariant_filter",
    "nearest_setting",
    "relative_defect",
    "resolve_radius",
    "resolve_setting",
    "threshold_of_budget",
    "threshold_of_softness",
    "trivial_bound",
    "two_sided_coefficients",
]
