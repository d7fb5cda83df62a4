"""When in a model's life a verb may be called.

Soften after loading weights, before anything wraps, splits or compiles the model; verbs that read or rewrite softened
tensors need them whole, and where equidial left them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from equidial.adapters._parametrization import constrained, original_of
from equidial.adapters._shards import is_sharded
from equidial.adapters._state import find_root
from equidial.errors import ArgumentError, StateError, explain

_WRAPPERS = ("OptimizedModule", "PeftModel", "BaseTuner")
PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


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


def check_adapters(model: nn.Module, verb: str, anywhere: bool = False) -> None:
    """Raise ``StateError`` where an adapter of PEFT wraps a softened layer, or with ``anywhere`` any layer.

    PEFT merges by writing to ``weight.data``, which for a softened tensor is computed anew on each read: the adapter
    would vanish without a word. Adapters on other layers do no harm.
    """
    for name, module in model.named_modules():
        if not _is_adapter(module):
            continue
        if next(iter(constrained(module)), None) is not None:
            raise StateError(
                explain(
                    f"softened layers without adapters, for {verb}",
                    f"{name or 'the model'} of PEFT around one; merging it now would lose the adapter",
                    "take it off (unload()), fold, then add LoRA; a trained adapter: save it first, and load it again "
                    "on the folded model",
                )
            )
        if anywhere:
            raise StateError(
                explain(
                    f"a model without adapters, for {verb}",
                    f"{name} of PEFT",
                    "merge the adapter (merge_and_unload) or take it off (unload) first; PEFT saves it by itself",
                )
            )


def check_tensors(model: nn.Module, verb: str) -> None:
    """Raise ``StateError`` where processes hold shards of the softened tensors (``fully_shard``)."""
    for module, key, link in constrained(model):
        if is_sharded(original_of(module, key)):
            raise _sharded(link.name, verb)


def check_unwrapped(model: nn.Module, verb: str) -> None:
    """Raise ``StateError`` where a softened model is wrapped for parallel training or sharded."""
    for name, module in model.named_modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        if "FSDPModule" in names:  # whose tensors are whole at times
            raise _sharded(name or "the model", verb)
        if names & set(PARALLEL):
            inside = f"{name}.module" if name else "model.module"
            raise StateError(
                explain(
                    f"the model itself for {verb}",
                    f"{name or 'the model'} is a {type(module).__name__}",
                    f"training is over: {verb}({inside}), and go on without the wrapper",
                )
            )


def _sharded(name: str, verb: str) -> StateError:
    return StateError(
        explain(
            f"whole tensors for {verb}",
            f"{name}, sharded by fully_shard",
            "soften an unsharded copy of the base model, load the gathered state dict into it "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), "
            f"and call {verb} on that",
        )
    )


def _is_adapter(module: nn.Module) -> bool:
    """A layer of PEFT, not the wrapper around a whole model."""
    classes = type(module).__mro__
    if {cls.__name__ for cls in classes} & set(_WRAPPERS):
        return False
    return any(cls.__module__.split(".")[0] == "peft" for cls in classes)


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
    if names & set(PARALLEL):
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
    if is_sharded(parameter) or is_sharded(parameter.data):
        raise StateError(
            explain(
                f"a whole tensor in {name}",
                "a DTensor, of which each process holds a shard",
                "soften the model first, then shard it, then create the optimizer",
            )
        )
