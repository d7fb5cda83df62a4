"""Representations: how a group acts on the last axis of a tensor.

>>> from equidial import groups, representations
>>> rep = 8 * representations.Vector(groups.C(4)) + representations.Trivial(groups.C(4))
>>> rep.dim
17
"""

from __future__ import annotations

from equidial.representations._base import DirectSum, Representation, ResidualGenerator
from equidial.representations._blocks import BlockBasis
from equidial.representations._circle import CircleBasis, pixel_coordinates
from equidial.representations._eigenbasis import Eigenbasis
from equidial.representations._elementary import Trivial, Vector
from equidial.representations._maps import FunctionMap, LinearMap, SparseMap, map_blocks
from equidial.representations._matrices import FactorRepresentation, MatrixRepresentation
from equidial.representations._pixels import Pixels
from equidial.representations._regular import Regular
from equidial.representations._tensor import Dual, Hom, Tensor, TensorProduct
from equidial.representations._text import parse, tokens
from equidial.representations._unitary import UnitaryMap

__all__ = [
    "BlockBasis",
    "CircleBasis",
    "DirectSum",
    "Dual",
    "Eigenbasis",
    "FactorRepresentation",
    "FunctionMap",
    "Hom",
    "LinearMap",
    "MatrixRepresentation",
    "Pixels",
    "Regular",
    "Representation",
    "ResidualGenerator",
    "SparseMap",
    "Tensor",
    "TensorProduct",
    "Trivial",
    "UnitaryMap",
    "Vector",
    "map_blocks",
    "parse",
    "pixel_coordinates",
    "tokens",
]
