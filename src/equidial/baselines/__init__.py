"""Rival methods, written from their mathematics, behind the same words."""

from equidial.baselines._partial import PartialGroupConv2d, PartialLiftingConv2d, PartialSamples

__all__ = ["PartialGroupConv2d", "PartialLiftingConv2d", "PartialSamples"]
