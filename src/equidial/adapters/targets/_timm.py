"""The table of timm: a row per class of ``timm.models``."""

from __future__ import annotations

from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters.targets._architectures import Architecture, kernel, leave, linear, norms
from equidial.adapters.targets._reasons import (
    KERNEL,
    MERGING,
    MERGING_NORM,
    NO_PLACE,
    OFFSETS,
    PER_CHANNEL,
    TABLE,
)

_NORMS = norms(r"\w*norm\w*|bn\d*|norm\.0")
_HEADS = linear(r"head|head\.fc|head\.pre_logits\.fc|head_dist|fc|classifier")
_PATCHES = (kernel(r"patch_embed\.proj\.weight", KERNEL), leave(r"patch_embed\.proj\.bias", PER_CHANNEL))
_BLOCKS = (
    *linear(r"attn\.(qkv|proj|gate)|attn_pool\.(q|kv|proj)|mlp\.(fc1|fc2|fc1_g|fc1_x|w1|w2|w3)"),
    leave(r"(ls\d|layer_scale)\.gamma|blocks\.\d+\.gamma|grn\.(weight|bias)", PER_CHANNEL),
    _NORMS,
    *_HEADS,
)
_VIT = (
    ParameterRule(r"pos_embed", "table", reason=TABLE),
    *_PATCHES,
    leave(r"(cls|reg|dist)_token|attn_pool\.latent", NO_PLACE),
    *_BLOCKS,
)
_SQUEEZE = linear(r"se\.(fc\d?|conv|conv_reduce|conv_expand)")
_INVERTED = (
    kernel(r"(conv|conv_\w+|dw_\w+\.conv|pw_\w+\.conv)\.weight", KERNEL),
    leave(r"(conv|conv_\w+|dw_\w+\.conv|pw_\w+\.conv)\.bias", PER_CHANNEL),
    leave(r"(layer_scale)\.gamma", PER_CHANNEL),
    _NORMS,
    *_HEADS,
)

TIMM: tuple[Architecture, ...] = (
    Architecture("vit", "timm", ("VisionTransformer",), _VIT),
    Architecture("deit", "timm", ("VisionTransformerDistilled",), _VIT),
    Architecture(
        "resnet",
        "timm",
        ("ResNet",),
        (
            *_SQUEEZE,
            kernel(r"(conv\d|downsample)(\.\d+)?\.weight", KERNEL),
            # of the layers that one name may stand for, the convolution is taken above
            leave(r"(conv\d|downsample)(\.\d+)?\.(weight|bias)", PER_CHANNEL),
            _NORMS,
            *_HEADS,
        ),
    ),
    Architecture(
        "convnext",
        "timm",
        ("ConvNeXt",),
        (
            kernel(r"(stem\.\d+|downsample\.\d+|conv_dw|shortcut(\.conv)?)\.weight", KERNEL),
            leave(r"(stem\.\d+|downsample\.\d+|conv_dw|shortcut(\.conv)?)\.(weight|bias)", PER_CHANNEL),
            *_BLOCKS,
        ),
    ),
    Architecture(
        "swin",
        "timm",
        ("SwinTransformer",),
        (
            # reduction [2C, 4C] reads [.., column, row, C], as that of transformers
            ParameterRule(r"downsample\.reduction\.weight", "kernel", view=(0, 2, 2, -1), axes=(2, 1), reason=MERGING),
            ParameterRule(
                r"downsample\.norm\.(weight|bias)", "table", view=(2, 2, -1), axes=(1, 0), reason=MERGING_NORM
            ),
            ParameterRule(r"relative_position_bias_table", "offsets", reason=OFFSETS),
            *_PATCHES,
            *_BLOCKS,
        ),
    ),
    Architecture("mobilenet", "timm", ("MobileNetV3",), (*_SQUEEZE, *_INVERTED)),
    # timm builds MobileNetV2 by this class, too
    Architecture("efficientnet", "timm", ("EfficientNet",), (*_SQUEEZE, *_INVERTED)),
)
