"""Metrics: pure functions of outputs, and the action of a group on images."""

from equidial.metrics._action import (
    DEFAULT_RADIUS,
    RandomElements,
    element_name,
    measured_elements,
    random_elements,
    rotate_bilinear,
    transform_images,
)
from equidial.metrics._classification import (
    combined_accuracy,
    correct,
    invariance_kl,
    jacobian_norm,
    relative_error,
    soft_invariance,
    total_variation,
)
from equidial.metrics._interpolation import interpolation_distance, resampled_windows

__all__ = [
    "DEFAULT_RADIUS",
    "RandomElements",
    "combined_accuracy",
    "correct",
    "element_name",
    "interpolation_distance",
    "invariance_kl",
    "jacobian_norm",
    "measured_elements",
    "random_elements",
    "relative_error",
    "resampled_windows",
    "rotate_bilinear",
    "soft_invariance",
    "total_variation",
    "transform_images",
]
