"""Layers: equivariant non-linearities."""

from equidial.nn._norm import NORM_FUNCTIONS, NormNonlinearity

__all__ = ["NORM_FUNCTIONS", "NormNonlinearity"]
