"""save_pretrained of a softened model: refused, because from_pretrained knows none of its keys."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from equidial.adapters._parametrization import constrained
from equidial.errors import StateError, explain

_METHOD = "save_pretrained"


def guard_saving(model: nn.Module) -> None:
    """Make ``save_pretrained`` of the softened parts of ``model`` refuse; ``push_to_hub`` calls it and refuses with it.

    A state dict given explicitly, as trainers do for the checkpoints they resume from, is written as ever.
    """
    for module in model.modules():
        own = callable(getattr(type(module), _METHOD, None)) and _METHOD not in module.__dict__
        if own and next(iter(constrained(module)), None) is not None:
            module.__dict__[_METHOD] = MethodType(_refuse, module)


def release_saving(model: nn.Module) -> None:
    """Give every module its own ``save_pretrained`` back."""
    for module in model.modules():
        if getattr(module.__dict__.get(_METHOD), "__func__", None) is _refuse:
            del module.__dict__[_METHOD]


def _refuse(module: Any, *args: Any, **kwargs: Any) -> Any:
    if "state_dict" in kwargs:
        return getattr(type(module), _METHOD)(module, *args, **kwargs)
    raise StateError(
        explain(
            f"a folded model for {_METHOD}",
            f"a softened {type(module).__name__}: from_pretrained would not find its keys and leave weights random",
            f"fold it, or a copy: equidial.fold(copy.deepcopy(model)).{_METHOD}(...); equidial.save keeps it soft; "
            "state_dict=model.state_dict() writes a checkpoint of the softened model",
        )
    )
