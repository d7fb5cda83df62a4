"""Adapters: every verb on a model."""

from equidial.adapters._certify import certify
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._error_curve import ErrorCurve, error_curve
from equidial.adapters._files import load, save
from equidial.adapters._fold import fold, unload
from equidial.adapters._geometry import configured_size, example_images
from equidial.adapters._measure import measure
from equidial.adapters._parametrization import SoftParametrization
from equidial.adapters._push import push
from equidial.adapters._recalibrate import recalibrate
from equidial.adapters._scores import FeatureScores, Scores, SegmentationScores
from equidial.adapters._soften import build_parametrizations, disabled, set_dial, set_softness, soften
from equidial.adapters._statistical import certify_statistically
from equidial.adapters._status import Status, TensorStatus, status
from equidial.adapters._verify import verify
from equidial.adapters.diagnosis import Cause, Diagnosis, diagnose
from equidial.adapters.network import Call, Value, certify_network, set_network_error
from equidial.adapters.targets import ParameterRule, Target, TargetRow, TargetTable, describe_targets, resolve_targets
from equidial.adapters.training import DialSchedule, Retraction, fix_dial, learn_dial, relaxation_penalty, retract

__all__ = [
    "Call",
    "Cause",
    "Diagnosis",
    "DialSchedule",
    "ErrorCurve",
    "FeatureScores",
    "ParameterRule",
    "Retraction",
    "Scores",
    "SegmentationScores",
    "SoftEquivarianceConfig",
    "SoftParametrization",
    "Status",
    "Target",
    "TargetRow",
    "TargetTable",
    "TensorStatus",
    "Value",
    "build_parametrizations",
    "certify",
    "certify_network",
    "certify_statistically",
    "configured_size",
    "describe_targets",
    "diagnose",
    "disabled",
    "error_curve",
    "example_images",
    "fix_dial",
    "fold",
    "learn_dial",
    "load",
    "measure",
    "push",
    "recalibrate",
    "relaxation_penalty",
    "resolve_targets",
    "retract",
    "save",
    "set_dial",
    "set_network_error",
    "set_softness",
    "soften",
    "status",
    "unload",
    "verify",
]
