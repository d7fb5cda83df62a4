"""Conformance suites: what every group, representation, spectrum, filter and layer keeps, as tests to inherit.

    class TestMyGroup(equidial.testing.GroupConformance):
        def make(self):
            return MyGroup()

A test runner that collects classes by name (pytest) runs the inherited tests; :func:`failures` runs them without one.
Plain assertions, no dependency on a runner. Import it by name: ``import equidial.testing``.
"""

from equidial.testing._filters import FilterConformance
from equidial.testing._groups import GroupConformance
from equidial.testing._layers import LayerConformance
from equidial.testing._representations import RepresentationConformance
from equidial.testing._spectra import SpectrumConformance
from equidial.testing._suite import Conformance, failures

__all__ = [
    "Conformance",
    "FilterConformance",
    "GroupConformance",
    "LayerConformance",
    "RepresentationConformance",
    "SpectrumConformance",
    "failures",
]
