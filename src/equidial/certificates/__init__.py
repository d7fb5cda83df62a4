"""Certificates: bounds of weights and of compositions, with rounding, and from samples; result objects.

Knows nothing of models.
"""

from equidial.certificates._composition import (
    LIPSCHITZ,
    Bounds,
    concatenated,
    normalisation_gain,
    overlap,
    slope_bound,
)
from equidial.certificates._document import Document
from equidial.certificates._network import NetworkCertificate, NetworkStep
from equidial.certificates._operator import (
    certified_elements,
    certify_operator,
    convolution_norm,
    convolution_norms,
    operator_defect,
    spectral_norm,
    spectral_norms,
)
from equidial.certificates._result import Certificate, LayerCertificate, Level
from equidial.certificates._rounding import UNIT_ROUNDOFF, action_error, evaluation_error, gamma
from equidial.certificates._search import defect_of_element
from equidial.certificates._statistical import (
    SAMPLE_HYPOTHESES,
    StatisticalBound,
    StatisticalCertificate,
    bound_samples,
    check_statistics,
    clopper_pearson_upper,
    mean_upper,
    sample_quantiles,
)
from equidial.certificates._supremum import Supremum, certify_weight, splits_by_spectrum

__all__ = [
    "LIPSCHITZ",
    "SAMPLE_HYPOTHESES",
    "UNIT_ROUNDOFF",
    "Bounds",
    "Certificate",
    "Document",
    "LayerCertificate",
    "Level",
    "NetworkCertificate",
    "NetworkStep",
    "StatisticalBound",
    "StatisticalCertificate",
    "Supremum",
    "action_error",
    "bound_samples",
    "certified_elements",
    "certify_operator",
    "certify_weight",
    "check_statistics",
    "clopper_pearson_upper",
    "concatenated",
    "convolution_norm",
    "convolution_norms",
    "defect_of_element",
    "evaluation_error",
    "gamma",
    "mean_upper",
    "normalisation_gain",
    "operator_defect",
    "overlap",
    "sample_quantiles",
    "slope_bound",
    "spectral_norm",
    "spectral_norms",
    "splits_by_spectrum",
]
