"""The generic rule: what the type of a layer and the name of a parameter tell, where no row knows the model."""

from __future__ import annotations

import re

from torch import nn

from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters.targets._reasons import CHANNELS, KERNEL, OFFSETS, PER_CHANNEL, ROPE, TABLE, UNKNOWN

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POSITION_NAMES = (
    "position_embeddings",
    "position_embedding",
    "positional_embedding",
    "positional_emb",
    "pos_embedding",
    "pos_embed",
)
RELATIVE_NAMES = ("relative_position_bias_table",)
_ROTARY = re.compile("Rotary|RoPE|Rope|ROPE")  # and not a Property


def is_rotary(module: nn.Module) -> bool:
    """Whether the name of a module's class says that it embeds positions as rotations."""
    return _ROTARY.search(type(module).__name__) is not None


def generic_rule(
    module_name: str, module: nn.Module, tensor_name: str, shape: tuple[int, ...], grid_known: bool
) -> ParameterRule:
    """The rule for one parameter; its pattern is of no use to others.

    ``grid_known``: the network reads images (:func:`reads_images`), or its configuration tells a grid of tokens.
    """

    def rule(role: str, reason: str) -> ParameterRule:
        return ParameterRule(".+", role, reason=reason)  # pyright: ignore[reportArgumentType]

    if is_rotary(module):
        return rule("leave", ROPE)
    if isinstance(module, CONVOLUTIONS):
        return rule("kernel", KERNEL) if tensor_name == "weight" else rule("leave", PER_CHANNEL)
    table = module_name.rpartition(".")[2] if isinstance(module, nn.Embedding) else tensor_name
    # only a network that reads images has a grid of tokens; a table of words may have a square length, too
    if table in POSITION_NAMES and grid_known and _has_rows(shape):
        return rule("table", TABLE)
    if table in RELATIVE_NAMES and len(shape) == 2:
        return rule("offsets", OFFSETS)
    if isinstance(module, nn.Linear) and tensor_name == "weight":
        return rule("leave", CHANNELS)
    return rule("leave", PER_CHANNEL if len(shape) == 1 and tensor_name in ("weight", "bias") else UNKNOWN)


def reads_images(model: nn.Module) -> bool:
    """Whether some convolution of two axes has a window."""
    return any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules())


def _has_rows(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
