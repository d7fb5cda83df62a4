"""Turn the equivariance dial of any pretrained neural network, with a guarantee.

Group -> Representation -> Constraint -> Spectrum -> Filter -> soften(model) -> certify / measure -> fold -> save
"""

from equidial import adapters, certificates, errors, filters, groups, metrics, nn, representations
from equidial._version import __version__
from equidial.adapters import (
    ParameterRule,
    Scores,
    SoftEquivarianceConfig,
    Status,
    TargetTable,
    certify,
    certify_network,
    certify_statistically,
    describe_targets,
    disabled,
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
    "Filter",
    "LayerCertificate",
    "NetworkCertificate",
    "ParameterRule",
    "Scores",
    "SoftEquivarianceConfig",
    "StatisticalCertificate",
    "Status",
    "TargetTable",
    "__version__",
    "adapters",
    "certificates",
    "certify",
    "certify_network",
    "certify_statistically",
    "describe_targets",
    "disabled",
    "equivariant_filter",
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
