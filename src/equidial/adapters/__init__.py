"""Adapters: every verb on a model."""

from equidial.adapters._certify import certify
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._files import load, save
from equidial.adapters._fold import fold, unload
from equidial.adapters._measure import Scores, measure
from equidial.adapters._network import certify_network
from equidial.adapters._parametrization import SoftParametrization
from equidial.adapters._recalibrate import recalibrate
from equidial.adapters._soften import build_parametrizations, disabled, set_dial, set_softness, soften
from equidial.adapters._status import Status, TensorStatus, status
from equidial.adapters._targets import Target, resolve_targets

__all__ = [
    "Scores",
    "SoftEquivarianceConfig",
    "SoftParametrization",
    "Status",
    "Target",
    "TensorStatus",
    "build_parametrizations",
    "certify",
    "certify_network",
    "disabled",
    "fold",
    "load",
    "measure",
    "recalibrate",
    "resolve_targets",
    "save",
    "set_dial",
    "set_softness",
    "soften",
    "status",
    "unload",
]
