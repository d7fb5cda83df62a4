"""Turn the equivariance dial of any pretrained neural network, with a guarantee.

Group -> Representation -> Constraint -> Spectrum -> Filter -> soften(model) -> certify / measure -> fold -> save
"""

from equidial import adapters, certificates, errors, filters, groups, metrics, nn, representations
from equidial._version import __version__
from equidial.adapters import (
    ErrorCurve,
    FeatureScores,
    Scores,
    SegmentationScores,
    SoftEquivarianceConfig,
    Status,
    certify,
    certify_network,
    certify_statistically,
    disabled,
    error_curve,
    fold,
    load,
    measure,
    recalibrate,
    save,
    set_dial,
    set_network_error,
    set_softness,
    soften,
    status,
    unload,
    verify,
)
from equidial.certificates import Certificate, LayerCertificate, NetworkCertificate, StatisticalCertificate
from equidial.errors import EquidialError, EquidialWarning
from equidial.filters import Filter, equivariant_filter, invariant_filter

__all__ = [
    "Certificate",
    "EquidialError",
    "EquidialWarning",
    "ErrorCurve",
    "FeatureScores",
    "Filter",
    "LayerCertificate",
    "NetworkCertificate",
    "Scores",
    "SegmentationScores",
    "SoftEquivarianceConfig",
    "StatisticalCertificate",
    "Status",
    "__version__",
    "adapters",
    "certificates",
    "certify",
    "certify_network",
    "certify_statistically",
    "disabled",
    "equivariant_filter",
    "error_curve",
    "errors",
    "filters",
    "fold",
    "groups",
    "invariant_filter",
    "load",
    "measure",
    "metrics",
    "nn",
    "recalibrate",
    "representations",
    "save",
    "set_dial",
    "set_network_error",
    "set_softness",
    "soften",
    "status",
    "unload",
    "verify",
]
