"""Targets: which tensor of a model carries which representation.

The tables of rules are :mod:`._transformers` and :mod:`._timm`, one row per architecture; a rule for the rest looks at
the type of a layer and the name of a parameter, and says that it was used.
"""

from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters.targets._architectures import Architecture
from equidial.adapters.targets._checks import check_tensors
from equidial.adapters.targets._describe import TargetRow, TargetTable, describe_targets
from equidial.adapters.targets._resolve import ARCHITECTURES, Target, resolve_targets

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ParameterRule",
    "Target",
    "TargetRow",
    "TargetTable",
    "check_tensors",
    "describe_targets",
    "resolve_targets",
]
