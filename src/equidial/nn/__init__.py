"""Layers born soft (paper B), layers that respect a group axis, equivariant non-linearities."""

from equidial.nn._continuous import ContinuousConv
from equidial.nn._defects import LayerDefect, group_defect, kernel_error, moves_in_space, translation_defect
from equidial.nn._features import FourierFeatures, KernelFeatures, SirenFeatures
from equidial.nn._frequencies import Frequencies
from equidial.nn._group_axis import (
    GroupBatchNorm2d,
    GroupDropout2d,
    GroupInstanceNorm2d,
    GroupLayerNorm2d,
    GroupPool2d,
    OnImages,
)
from equidial.nn._network import (
    check_foldable,
    fold_layers,
    has_continuous_layers,
    learned_frequencies,
    plain_layer,
    set_samples,
)
from equidial.nn._norm import NORM_FUNCTIONS, NormNonlinearity
from equidial.nn._planar import GroupConv2d, LiftingConv2d, PointwiseGroupConv2d
from equidial.nn._samples import GroupSamples
from equidial.nn._summary import LayerSummary, Summary, summary
from equidial.nn._translation import SoftConv1d, SoftConv2d

__all__ = [
    "NORM_FUNCTIONS",
    "ContinuousConv",
    "FourierFeatures",
    "Frequencies",
    "GroupBatchNorm2d",
    "GroupConv2d",
    "GroupDropout2d",
    "GroupInstanceNorm2d",
    "GroupLayerNorm2d",
    "GroupPool2d",
    "GroupSamples",
    "KernelFeatures",
    "LayerDefect",
    "LayerSummary",
    "LiftingConv2d",
    "NormNonlinearity",
    "OnImages",
    "PointwiseGroupConv2d",
    "SirenFeatures",
    "SoftConv1d",
    "SoftConv2d",
    "Summary",
    "check_foldable",
    "fold_layers",
    "group_defect",
    "has_continuous_layers",
    "kernel_error",
    "learned_frequencies",
    "moves_in_space",
    "plain_layer",
    "set_samples",
    "summary",
    "translation_defect",
]
