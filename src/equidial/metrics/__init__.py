"""Metrics: pure functions of outputs, and the action of a group on images."""

from equidial.metrics._action import DEFAULT_RADIUS, measured_elements, rotate_bilinear, transform_images
from equidial.metrics._classification import (
    combined_accuracy,
    correct,
    invariance_kl,
    jacobian_norm,
    soft_invariance,
)
from equidial.metrics._interpolation import interpolation_distance, resampled_windows

__all__ = [
    "DEFAULT_RADIUS",
    "combined_accuracy",
    "correct",
    "interpolation_distance",
    "invariance_kl",
    "jacobian_norm",
    "measured_elements",
    "resampled_windows",
    "rotate_bilinear",
    "soft_invariance",
    "transform_images",
]
