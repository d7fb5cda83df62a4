"""Metrics: pure functions of outputs, and the action of a group on images."""

from equidial.metrics._action import (
    DEFAULT_RADIUS,
    RandomElements,
    element_name,
    in_frame,
    is_permutation,
    measured_elements,
    random_elements,
    rotate_bilinear,
    transform_images,
    transform_labels,
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
from equidial.metrics._dense import (
    TokenLayout,
    inscribed_disc,
    masked_relative_error,
    split_tokens,
    token_layout,
)
from equidial.metrics._interpolation import interpolation_distance, resampled_windows
from equidial.metrics._segmentation import confusion_counts, mean_iou, pixel_accuracy, pixel_kl
from equidial.metrics._trajectories import constant_velocity, displacement_errors

__all__ = [
    "DEFAULT_RADIUS",
    "RandomElements",
    "TokenLayout",
    "combined_accuracy",
    "confusion_counts",
    "constant_velocity",
    "correct",
    "displacement_errors",
    "element_name",
    "in_frame",
    "inscribed_disc",
    "interpolation_distance",
    "invariance_kl",
    "is_permutation",
    "jacobian_norm",
    "masked_relative_error",
    "mean_iou",
    "measured_elements",
    "pixel_accuracy",
    "pixel_kl",
    "random_elements",
    "relative_error",
    "resampled_windows",
    "rotate_bilinear",
    "soft_invariance",
    "split_tokens",
    "token_layout",
    "total_variation",
    "transform_images",
    "transform_labels",
]
