"""What a softened model remembers about itself, and how its tensors are named and hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._parametrization import constrained
from equidial.adapters._pretrained import guard_saving, release_saving
from equidial.errors import StateError, explain

_ATTRIBUTE = "_equidial_state"


@dataclass
class SoftState:
    """Kept on the softened model: its configuration, the order of parameters, hashes of what ``soften`` found.

    ``hashes`` are by plain tensor name, those of the model before it was softened.
    """

    config: SoftEquivarianceConfig
    orders: dict[str, list[str]]
    hashes: dict[str, str]


def set_state(model: nn.Module, state: SoftState) -> None:
    """Attach the state to a softened model."""
    object.__setattr__(model, _ATTRIBUTE, state)
    guard_saving(model)


def drop_state(model: nn.Module) -> None:
    """Forget the state."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)
    release_saving(model)


def find_root(model: nn.Module) -> tuple[nn.Module, SoftState] | None:
    """The softened module inside ``model`` (which may wrap it) and its state."""
    for module in model.modules():
        state = module.__dict__.get(_ATTRIBUTE)
        if state is not None:
            return module, state
    return None


def require_root(model: nn.Module, verb: str) -> tuple[nn.Module, SoftState]:
    """The softened module and its state; raises ``StateError`` for a model that is not softened."""
    found = find_root(model)
    if found is None:
        lost = next(iter(constrained(model)), None)
        got = f"a part of one ({type(model).__name__})" if lost is not None else f"a plain {type(model).__name__}"
        raise StateError(explain(f"a softened model for {verb}", got, "pass the model that equidial.soften returned"))
    return found


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under the names of the plain model: originals of softened tensors, the dials left out."""
    soft = {id(link) for _, _, link in constrained(model)}
    out: dict[str, torch.Tensor] = {}
    dials = {f"{name}." for name, module in model.named_modules() if id(module) in soft}
    for key, value in model.state_dict(keep_vars=True).items():
        # quantised layers keep dtypes and packed objects in their state, too
        if not isinstance(value, torch.Tensor) or any(key.startswith(prefix) for prefix in dials):
            continue
        out[plain_name(key)] = value.detach()
    return out


def plain_name(key: str) -> str:
    """``a.parametrizations.weight.original`` -> ``a.weight``; other keys unchanged."""
    head, separator, tail = key.rpartition("parametrizations.")
    if separator and tail.endswith(".original"):
        return head + tail[: -len(".original")]
    return key


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    plain = tensor.detach().to("cpu")
    if plain.is_quantized:
        digest.update(str(plain.dequantize().tolist()).encode())
    elif plain.numel():
        digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hashes_of(model: nn.Module) -> dict[str, str]:
    """The hash of every tensor of the state dict, by plain name."""
    return {name: tensor_hash(tensor) for name, tensor in plain_tensors(model).items()}
