"""When in a model's life it may be softened: after loading weights, before anything wraps, splits or compiles it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from equidial.adapters._parametrization import constrained
from equidial.adapters._state import find_root
from equidial.errors import ArgumentError, StateError, explain

_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


def check_life(model: nn.Module) -> None:
    """Raise unless ``model`` is a plain module that may be softened now.

    Raises ``ArgumentError`` for something else than a module, ``StateError`` for a model that is softened, compiled,
    wrapped for parallel training, sharded, adapted by PEFT, or not initialised. Nothing is touched.
    """
    check_whole(model)
    if find_root(model) is not None or next(iter(constrained(model)), None) is not None:
        raise StateError(
            explain(
                "a plain model",
                "one that is softened already",
                "turn its dial with set_dial, or fold or unload it first",
            )
        )


def check_whole(model: nn.Module) -> None:
    """Raise unless ``model`` is a module that nothing has compiled, wrapped, sharded or left uninitialised."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(explain("a torch.nn.Module", type(model).__name__, "pass the model itself"))
    for name, module in model.named_modules():
        _check_module(name or "the model itself", module)
    for name, parameter in model.named_parameters():
        _check_parameter(name, parameter)


def _check_module(name: str, module: nn.Module) -> None:
    classes = type(module).__mro__
    names = {cls.__name__ for cls in classes}
    got = f"{name} is a {type(module).__name__}"
    if "OptimizedModule" in names or getattr(module, "_compiled_call_impl", None) is not None:
        raise StateError(
            explain(
                "a model before torch.compile",
                f"{got}, compiled",
                "soften the model itself first, then compile it (the dial recompiles nothing)",
            )
        )
    if names & set(_PARALLEL):
        raise StateError(
            explain(
                "a model before DistributedDataParallel and FullyShardedDataParallel",
                got,
                "soften the model inside first (.module), then wrap it, then create the optimizer",
            )
        )
    if "FSDPModule" in names or type(module).__name__.startswith("FSDP"):
        raise StateError(
            explain(
                "a model before fully_shard, with whole tensors",
                f"{got}, sharded",
                "soften the model first, then shard it, then create the optimizer",
            )
        )
    if any(cls.__module__.split(".")[0] == "peft" for cls in classes) or "PeftModel" in names:
        raise StateError(
            explain(
                "a model without adapters",
                f"{got}, of PEFT",
                "merge or unload the LoRA adapter first (merge_and_unload, unload): soften the base, fold, "
                "then add LoRA",
            )
        )


def _check_parameter(name: str, parameter: torch.Tensor) -> None:
    if is_lazy(parameter):
        raise StateError(
            explain(
                f"weights in {name}",
                f"{type(parameter).__name__}, a lazy layer before its first call",
                "run the model once, or load its weights, before softening",
            )
        )
    if any(cls.__name__ == "DTensor" for cls in (*type(parameter).__mro__, *type(parameter.data).__mro__)):
        raise StateError(
            explain(
                f"a whole tensor in {name}",
                "a DTensor, of which each process holds a shard",
                "soften the model first, then shard it, then create the optimizer",
            )
        )
