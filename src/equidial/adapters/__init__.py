"""Adapters: every verb on a model."""

from equidial.adapters._certify import certify
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._files import load, save
from equidial.adapters._measure import Scores, measure
from equidial.adapters._recalibrate import recalibrate
from equidial.adapters._soften import (
    Status,
    TensorStatus,
    disabled,
    fold,
    set_dial,
    set_softness,
    soften,
    status,
    unload,
)

__all__ = [
    "Scores",
    "SoftEquivarianceConfig",
    "Status",
    "TensorStatus",
    "certify",
    "disabled",
    "fold",
    "load",
    "measure",
    "recalibrate",
    "save",
    "set_dial",
    "set_softness",
    "soften",
    "status",
    "unload",
]
