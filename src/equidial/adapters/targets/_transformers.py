"""The table of Hugging Face transformers: a row per ``config.model_type``.

Patterns speak of parameter names since transformers 4.56; older names of the same tensors stand beside newer ones.
"""

from __future__ import annotations

from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters.targets._architectures import Architecture, kernel, leave, linear, norms
from equidial.adapters.targets._reasons import (
    CHANNELS,
    KERNEL,
    MERGING,
    MERGING_NORM,
    NO_PLACE,
    OFFSETS,
    ONE_NUMBER,
    PATCH_WRITER,
    PER_CHANNEL,
    ROPE,
    TABLE,
    TEXT,
)

_NORMS = norms(r"\w*norm\w*|pre_layrnorm|hidden_states_norms\.\w+")
_ATTENTION = linear(r"[qkvo]_proj|out_proj|query|key|value|output\.dense|projection_(q|k|v)")
_MLP = linear(r"fc1|fc2|(up|down|gate)_proj|weights_(in|out)|intermediate\.dense")
_HEADS = linear(r"classifier(\.\d+)?|\w+_classifier|pooler\.dense")
_BLOCKS = (_NORMS, *_ATTENTION, *_MLP, *_HEADS)
_DECODER = leave(r"decoder\.0\.(weight|bias)", PATCH_WRITER)
_TOKENS = leave(r"(\w+_tokens?|class_embedding)", NO_PLACE)
_LAYER_SCALE = leave(r"layer_scale\d\.lambda\d|layer_scale_parameter|layers\.\d+\.gamma", PER_CHANNEL)

_PATCHES = (
    kernel(r"patch_embeddings\.projection\.weight", KERNEL),
    leave(r"patch_embeddings\.projection\.bias", PER_CHANNEL),
)
_POSITIONS = ParameterRule(r"embeddings\.position_embeddings", "table", reason=TABLE)
_VIT = (_POSITIONS, *_PATCHES, _TOKENS, _LAYER_SCALE, *_BLOCKS, _DECODER)

_TOWER = (
    kernel(r"embeddings\.patch_embedding\.weight", KERNEL),
    leave(r"embeddings\.patch_embedding\.bias", PER_CHANNEL),
    ParameterRule(r"embeddings\.position_embedding\.weight", "table", reason=TABLE),
    leave(r"embeddings\.class_embedding|head\.probe", NO_PLACE),
    leave(r"head\.attention\.in_proj_weight", CHANNELS),
    leave(r"head\.attention\.in_proj_bias", PER_CHANNEL),
    *linear(r"visual_projection"),
    *_BLOCKS,
)
_TWO_TOWERS = (
    leave(r"logit_scale|logit_bias", ONE_NUMBER),
    *linear(r"visual_projection|classifier"),
    leave(r"text_projection\.weight", TEXT),
)
_ALL_TEXT = (leave(r".+", TEXT),)

# reduction [2C, 4C] reads [.., column, row, C]: the loop of transformers runs over columns outside, rows inside
_MERGING = (
    ParameterRule(r"downsample\.reduction\.weight", "kernel", view=(0, 2, 2, -1), axes=(2, 1), reason=MERGING),
    ParameterRule(r"downsample\.norm\.(weight|bias)", "table", view=(2, 2, -1), axes=(1, 0), reason=MERGING_NORM),
)

TRANSFORMERS: tuple[Architecture, ...] = (
    Architecture("vit", "transformers", ("vit",), _VIT),
    Architecture("deit", "transformers", ("deit",), _VIT),
    Architecture("dinov2", "transformers", ("dinov2",), _VIT),
    Architecture("dinov2_with_registers", "transformers", ("dinov2_with_registers",), _VIT),
    Architecture(
        "dinov3_vit",
        "transformers",
        ("dinov3_vit",),
        (
            kernel(r"embeddings\.patch_embeddings\.weight", KERNEL),
            leave(r"embeddings\.patch_embeddings\.bias", PER_CHANNEL),
            _TOKENS,
            _LAYER_SCALE,
            *_BLOCKS,
        ),
        abstains=((r"rope_embeddings", ROPE),),
    ),
    Architecture(
        "dinov3_convnext",
        "transformers",
        ("dinov3_convnext",),
        (
            kernel(r"downsample_layers\.\d+\.weight|depthwise_conv\.weight", KERNEL),
            # of the two layers that one name may stand for, the convolution is taken above
            leave(r"downsample_layers\.\d+\.(weight|bias)|depthwise_conv\.bias", PER_CHANNEL),
            _LAYER_SCALE,
            *linear(r"pointwise_conv\d"),
            *_BLOCKS,
        ),
    ),
    Architecture("clip", "transformers", ("clip",), _TWO_TOWERS),
    Architecture("clip_vision_model", "transformers", ("clip_vision_model",), _TOWER),
    Architecture("clip_text_model", "transformers", ("clip_text_model",), _ALL_TEXT),
    Architecture("siglip", "transformers", ("siglip",), _TWO_TOWERS),
    Architecture("siglip_vision_model", "transformers", ("siglip_vision_model",), _TOWER),
    Architecture("siglip_text_model", "transformers", ("siglip_text_model",), _ALL_TEXT),
    Architecture(
        "swin",
        "transformers",
        ("swin",),
        (
            *_MERGING,
            ParameterRule(r"relative_position_bias_table", "offsets", reason=OFFSETS),
            *_VIT,
        ),
    ),
    Architecture(
        "convnext",
        "transformers",
        ("convnext",),
        (
            kernel(r"patch_embeddings\.weight|dwconv\.weight|downsampling_layer\.\d+\.weight", KERNEL),
            leave(r"patch_embeddings\.bias|dwconv\.bias|downsampling_layer\.\d+\.(weight|bias)", PER_CHANNEL),
            _LAYER_SCALE,
            *linear(r"pwconv\d"),
            *_BLOCKS,
        ),
    ),
    Architecture(
        "resnet",
        "transformers",
        ("resnet",),
        (kernel(r"convolution\.weight", KERNEL), leave(r"convolution\.bias", PER_CHANNEL), _NORMS, *_HEADS),
    ),
    Architecture(
        "mobilenet_v2",
        "transformers",
        ("mobilenet_v2",),
        (kernel(r"convolution\.weight", KERNEL), leave(r"convolution\.bias", PER_CHANNEL), _NORMS, *_HEADS),
    ),
    Architecture(
        "segformer",
        "transformers",
        ("segformer",),
        (
            kernel(r"(proj|sequence_reduction|sr|dwconv)\.weight", KERNEL),
            # the projections of the head carry the name of the overlapping patch embeddings, and are linear
            leave(r"proj\.weight", CHANNELS),
            leave(r"(proj|sequence_reduction|sr|dwconv)\.bias", PER_CHANNEL),
            *linear(r"linear_fuse"),
            *_BLOCKS,
        ),
    ),
)
