"""Certificates: bounds of stored weights, with rounding, and from samples; result objects. Knows nothing of models."""

from equidial.certificates._result import Certificate, LayerCertificate, Level
from equidial.certificates._rounding import UNIT_ROUNDOFF, evaluation_error, gamma
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
    "SAMPLE_HYPOTHESES",
    "UNIT_ROUNDOFF",
    "Certificate",
    "LayerCertificate",
    "Level",
    "StatisticalBound",
    "StatisticalCertificate",
    "Supremum",
    "bound_samples",
    "certify_weight",
    "check_statistics",
    "clopper_pearson_upper",
    "defect_of_element",
    "evaluation_error",
    "gamma",
    "mean_upper",
    "sample_quantiles",
    "splits_by_spectrum",
]
