"""Architectures: one row of the tables per network, and how a model is matched with a row.

A module of transformers is matched by the ``model_type`` of its configuration, a module of timm by the name of its
class; neither library is imported. A row speaks of the parameters below the module that it matches, down to the next
module with a configuration of its own: the vision tower of a CLIP model has another row than the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters.targets._reasons import CHANNELS, PER_CHANNEL


@dataclass(frozen=True)
class Architecture:
    """One row: which models it speaks of, and the rules for their parameters, the first that matches wins.

    Attributes:
        name: as users know it, e.g. ``"vit"``.
        library: ``"transformers"`` or ``"timm"``.
        match: values of ``config.model_type`` (transformers), or names of classes (timm).
        rules: patterns of parameters.
        abstains: ``(pattern of module names, reason)`` of modules without parameters that break a symmetry.
    """

    name: str
    library: str
    match: tuple[str, ...]
    rules: tuple[ParameterRule, ...]
    abstains: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """``"transformers vit"``."""
        return f"{self.library} {self.name}"


def kernel(pattern: str, reason: str = "") -> ParameterRule:
    """The weight of a convolution."""
    return ParameterRule(pattern, "kernel", reason=reason)


def leave(pattern: str, reason: str) -> ParameterRule:
    """Parameters that stay as they are."""
    return ParameterRule(pattern, "leave", reason=reason)


def linear(names: str) -> tuple[ParameterRule, ParameterRule]:
    """Weight and bias of layers that mix channels; ``names`` is a regular expression."""
    return leave(rf"({names})\.weight", CHANNELS), leave(rf"({names})\.bias", PER_CHANNEL)


def norms(names: str) -> ParameterRule:
    """Scale and shift of normalisation layers; ``names`` is a regular expression."""
    return leave(rf"({names})\.(weight|bias)", PER_CHANNEL)


def architectures_of(model: nn.Module, tables: tuple[Architecture, ...]) -> dict[str, Architecture | None]:
    """The row that speaks of each module, by the module's name; ``None`` where no row does. The model is only read."""
    by_type = {name: row for row in tables if row.library == "transformers" for name in row.match}
    by_class = {name: row for row in tables if row.library == "timm" for name in row.match}
    found: dict[str, Architecture | None] = {}
    for name, module in model.named_modules():
        parent = found.get(name.rpartition(".")[0]) if name else None
        classes = type(module).__mro__
        timm = [c.__name__ for c in classes if c.__module__.startswith("timm.models.") and c.__name__ in by_class]
        kind = _model_type(module)
        if timm:
            found[name] = by_class[timm[0]]
        elif kind is not None:
            found[name] = by_type.get(kind)
        else:
            found[name] = parent
    return found


def _model_type(module: nn.Module) -> str | None:
    """``config.model_type`` of a module of transformers, or of a class derived from one."""
    if not any(c.__module__.startswith("transformers.") for c in type(module).__mro__):
        return None
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return kind if isinstance(kind, str) and kind else None
