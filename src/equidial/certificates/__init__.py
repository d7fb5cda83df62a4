"""Certificates: bounds of stored weights, with rounding; result objects. Knows nothing of models."""

from equidial.certificates._result import Certificate, LayerCertificate, Level
from equidial.certificates._rounding import UNIT_ROUNDOFF, evaluation_error, gamma
from equidial.certificates._search import defect_of_element
from equidial.certificates._supremum import Supremum, certify_weight, splits_by_spectrum

__all__ = [
    "UNIT_ROUNDOFF",
    "Certificate",
    "LayerCertificate",
    "Level",
    "Supremum",
    "certify_weight",
    "defect_of_element",
    "evaluation_error",
    "gamma",
    "splits_by_spectrum",
]
