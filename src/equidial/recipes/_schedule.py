"""What fine-tuning of large transformers adds to an optimizer: rates by depth, clipped gradients, averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_AVERAGE = "average"


def depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of every parameter and the largest one.

    The stack of blocks is the list of modules with most parameters: what comes before it has depth 0, block ``i`` has
    ``i + 1``, what comes after it the largest depth. A network without a list of modules has depth 0 everywhere.
    """
    stacks = [
        (sum(p.numel() for p in module.parameters()), name, len(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and name and len(module) > 1
    ]
    if not stacks:
        return {name: 0 for name, _ in model.named_parameters()}, 0
    _, prefix, count = max(stacks, key=lambda stack: stack[0])
    found, after = {}, False
    for name, _ in model.named_parameters():
        inside = name.startswith(f"{prefix}.")
        after = after or inside
        found[name] = int(name[len(prefix) + 1 :].split(".")[0]) + 1 if inside else (count + 1) * after
    return found, count + 1


def layered_adamw(model: nn.Module, rate: float, decay: float, layer_decay: float) -> torch.optim.AdamW:
    """AdamW with ``rate * layer_decay^(top - depth)``, see :func:`depths`; biases and norms are not decayed."""
    depth, top = depths(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth[name], parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "lr": rate * layer_decay ** (top - place), "weight_decay": decay if heavy else 0.0}
            for (place, heavy), found in groups.items()
        ]
    )


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """From now on, every step sees the gradient of all parameters shortened to this norm."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # asked for at each step: FSDP2 puts shards in their place
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    optimizer.register_step_pre_hook(clip)


def average_weights(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on, keep exponential averages of the weights, with ``min(decay, (1 + t) / (10 + t))`` at step ``t``.

    They are part of the optimizer's state, and so of its checkpoints; :func:`use_averages` puts them in place.
    """

    def update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state[p]
                if "step" in state:
                    t = float(state["step"])
                    average = state.setdefault(_AVERAGE, p.detach().clone())
                    average.lerp_(p.detach(), 1 - min(decay, (1 + t) / (10 + t)))

    optimizer.register_step_post_hook(update)


@torch.no_grad()
def use_averages(optimizer: torch.optim.Optimizer) -> None:
    """Set every parameter to its average, if it has one."""
    for p, state in optimizer.state.items():
        if _AVERAGE in state:
            p.copy_(state[_AVERAGE])
