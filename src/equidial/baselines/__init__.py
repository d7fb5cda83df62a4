"""Rival methods, written from their mathematics, behind the same words."""

from equidial.baselines._partial import PartialGroupConv2d, PartialLiftingConv2d, PartialSamples
from equidial.baselines._rpp import ResidualPathway, fold_rpp, residual_pathway_prior, rpp_penalty

__all__ = [
    "PartialGroupConv2d",
    "PartialLiftingConv2d",
    "PartialSamples",
    "ResidualPathway",
    "fold_rpp",
    "residual_pathway_prior",
    "rpp_penalty",
]
