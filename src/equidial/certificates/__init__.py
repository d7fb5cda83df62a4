"""Certificates: bounds of weights and of compositions, with rounding; result objects. Knows nothing of models."""

from equidial.certificates._composition import (
    LIPSCHITZ,
    Bounds,
    concatenated,
    normalisation_gain,
    overlap,
    slope_bound,
)
from equidial.certificates._network import NetworkCertificate, NetworkStep
from equidial.certificates._operator import (
    action_error,
    certified_elements,
    convolution_norm,
    convolution_norms,
    operator_defect,
    spectral_norm,
    spectral_norms,
)
from equidial.certificates._result import Certificate, LayerCertificate
from equidial.certificates._rounding import UNIT_ROUNDOFF, gamma
from equidial.certificates._supremum import Supremum, certify_weight, defect_of_element

__all__ = [
    "LIPSCHITZ",
    "UNIT_ROUNDOFF",
    "Bounds",
    "Certificate",
    "LayerCertificate",
    "NetworkCertificate",
    "NetworkStep",
    "Supremum",
    "action_error",
    "certified_elements",
    "certify_weight",
    "concatenated",
    "convolution_norm",
    "convolution_norms",
    "defect_of_element",
    "gamma",
    "normalisation_gain",
    "operator_defect",
    "overlap",
    "slope_bound",
    "spectral_norm",
    "spectral_norms",
]
