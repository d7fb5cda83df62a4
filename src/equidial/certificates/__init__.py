"""Certificates: bounds of stored weights, with rounding; result objects. Knows nothing of models."""

from equidial.certificates._result import Certificate, LayerCertificate
from equidial.certificates._rounding import UNIT_ROUNDOFF, gamma
from equidial.certificates._supremum import Supremum, certify_weight, defect_of_element

__all__ = [
    "UNIT_ROUNDOFF",
    "Certificate",
    "LayerCertificate",
    "Supremum",
    "certify_weight",
    "defect_of_element",
    "gamma",
]
