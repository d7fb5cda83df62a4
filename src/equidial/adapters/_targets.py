"""Targets: which tensor of a model carries which representation.

The default rules, in the order of :data:`RULES`, look at the type of a layer and the name of a bare parameter:

* convolutions with a kernel above 1, patch embeddings included: the kernel is an invariant vector on its window;
* learned position tables: invariant vectors on the token grid, class and register rows left alone;
* relative-position tables: invariant vectors on the grid of offsets.

1x1 convolutions, attention and MLP weights mix channels on which a spatial group acts trivially: nothing to
constrain, unless the configuration declares representations for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._layouts import Layout
from equidial.adapters._matching import matches, pattern_for, unmatched
from equidial.errors import NoMatchingTargetError, StateError, TargetError, explain, nearest_names
from equidial.filters import Constraint
from equidial.groups import Group, Shift, Translation
from equidial.representations import Pixels, Representation

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
_MAX_EXTRA_TOKENS = 8
_QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torchao", "bitsandbytes", "optimum.quanto", "auto_gptq")


@dataclass(frozen=True)
class Candidate:
    """A tensor that a rule recognises: how its weights lie, and on which grid."""

    layout: Layout
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A tensor to be constrained: the owner module, where its weights lie, and their space."""

    module_name: str
    tensor_name: str
    layout: Layout
    constraint: Constraint
    rule: str

    @property
    def name(self) -> str:
        """Full name of the tensor."""
        return f"{self.module_name}.{self.tensor_name}" if self.module_name else self.tensor_name

    @property
    def matched_name(self) -> str:
        """What patterns are compared with: the layer, or the full name of a bare parameter."""
        return self.module_name if self.tensor_name in ("weight", "bias") else self.name


@dataclass(frozen=True)
class Rule:
    """A named way to recognise tensors of a module."""

    name: str
    find: Callable[[str, nn.Module, nn.Module], Iterator[tuple[str, Candidate]]]


def resolve_targets(model: nn.Module, config: SoftEquivarianceConfig) -> list[Target]:
    """Every tensor that the configuration names, checked; the model is only read.

    Raises ``StateError`` for a model that is softened already, ``NoMatchingTargetError`` for a pattern that matches
    nothing, ``TargetError`` for a tensor that cannot be constrained and ``GroupActionError`` wording for a
    grid on which the group cannot act.
    """
    group = config.group_object
    targets = [*_declared(model, config, group), *_by_rule(model, config, group)]
    _check_patterns(model, config, targets)
    targets = [t for t in targets if not matches(config.exclude_modules or (), t.matched_name)]
    if not targets:
        raise NoMatchingTargetError(
            explain(
                "a model with convolutions (kernel above 1) or position tables, or declared representations",
                f"{type(model).__name__}, in which nothing is left to constrain",
                "declare linear layers with representations={pattern: (input, output)}, or widen the targets",
            )
        )
    _check_pattern_keys(config, targets)
    check_tensors(model, targets)
    order = {id(module): i for i, module in enumerate(model.modules())}
    return sorted(targets, key=lambda t: order[id(model.get_submodule(t.module_name))])


def check_tensors(model: nn.Module, targets: list[Target]) -> None:
    """Raise unless every target is a plain, finite, untied floating-point parameter of its own."""
    # one owner is one module: a module that stands in two places of the model may be constrained once for both
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    for target in targets:
        module = model.get_submodule(target.module_name)
        if parametrize.is_parametrized(module, target.tensor_name):
            raise StateError(
                explain(
                    f"a plain parameter {target.name}",
                    "one that is parametrized already",
                    "remove its parametrization first (torch.nn.utils.parametrize.remove_parametrizations)",
                )
            )
        tensor = module._parameters.get(target.tensor_name)
        if tensor is None:
            raise TargetError(
                explain(
                    f"a parameter {target.name}",
                    "a tensor that something else computes (weight_norm, a quantised layer, a buffer)",
                    "undo that first, or leave it out with exclude_modules",
                )
            )
        if type(tensor) is not nn.Parameter or not tensor.is_floating_point():
            raise TargetError(
                explain(
                    f"floating-point weights in {target.name}",
                    f"{type(tensor).__name__} of {tensor.dtype}, a quantised or wrapped tensor",
                    "soften the model before quantising or sharding it, or leave the tensor out",
                )
            )
        if tensor.is_meta:
            raise TargetError(
                explain(f"weights in {target.name}", "a meta tensor", "load the weights before softening")
            )
        if not bool(torch.isfinite(tensor).all()):
            raise TargetError(
                explain(
                    f"finite weights in {target.name}",
                    "NaN or infinite entries",
                    "repair or reload the weights",
                )
            )
        others = [name for name in owners[id(tensor)] if name != target.name]
        if others:
            raise TargetError(
                explain(
                    f"{target.name} to have one owner",
                    f"a parameter tied to {', '.join(others)}",
                    "untie it (clone the parameter), or leave it out with exclude_modules",
                )
            )


def _declared(model: nn.Module, config: SoftEquivarianceConfig, group: Group) -> Iterator[Target]:
    """Weights and biases of linear layers with declared representations."""
    used: set[str] = set()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, module in linears.items():
        pattern = pattern_for(config.representations, name)
        if pattern is None:
            continue
        used.add(pattern)
        rep_in, rep_out = (config.space(given) for given in config.representations[pattern])
        if (rep_out.dim, rep_in.dim) != (module.out_features, module.in_features):
            raise TargetError(
                explain(
                    f"representations of size {module.in_features} -> {module.out_features} for {name}",
                    f"{rep_in.name} ({rep_in.dim}) -> {rep_out.name} ({rep_out.dim})",
                    f"correct representations[{pattern!r}]",
                )
            )
        rule = "declared representation"
        yield Target(name, "weight", Layout("linear"), Constraint.equivariants(rep_in, rep_out), rule)
        if module.bias is not None:
            # a bias stays where it is, rho(g) b = b; Constraint.invariants speaks of w^T rho(g) = w^T
            yield Target(name, "bias", Layout("bias"), Constraint.invariants(rep_out.dual), rule)
    for pattern in config.representations:
        if pattern not in used:
            raise NoMatchingTargetError(
                explain(
                    f"a linear layer that matches representations[{pattern!r}]",
                    f"none; nearest linear layers: {nearest_names(pattern, linears)}",
                    "correct the pattern (a regular expression for the end of a layer's name)",
                )
            )


def _by_rule(model: nn.Module, config: SoftEquivarianceConfig, group: Group) -> Iterator[Target]:
    for module_name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        _refuse_quantised(module_name, module, config)
        for rule in RULES:
            for tensor_name, candidate in rule.find(module_name, module, model):
                full = f"{module_name}.{tensor_name}" if module_name else tensor_name
                matched = module_name if tensor_name == "weight" else full
                if isinstance(group, Shift | Translation) and candidate.layout.kind == "convolution":
                    continue  # a convolution commutes with shifts as it is
                if config.target_modules is not None and not matches(config.target_modules, matched):
                    continue
                if matches(config.exclude_modules or (), matched):
                    continue
                yield Target(
                    module_name,
                    tensor_name,
                    candidate.layout,
                    Constraint.invariants(_grid_representation(full, candidate, group)),
                    rule.name,
                )


def _grid_representation(name: str, candidate: Candidate, group: Group) -> Representation:
    try:
        grid = Pixels(group, candidate.grid)
        # a kernel meets what moves (w^T rho(g) = w^T), a table is itself moved (rho(g) w = w)
        return grid if candidate.layout.kind == "convolution" else grid.dual
    except ValueError as error:
        raise TargetError(f"{name} ({candidate.layout.kind}): {error}") from error


def _refuse_quantised(name: str, module: nn.Module, config: SoftEquivarianceConfig) -> None:
    """A quantised convolution is no ``nn.Conv2d`` any more: without this it would be passed over in silence."""
    kernel = getattr(module, "kernel_size", 1)
    windowed = max((kernel,) if isinstance(kernel, int) else kernel) > 1 and hasattr(module, "in_channels")
    asked = config.target_modules is not None and matches(config.target_modules, name)
    if not type(module).__module__.startswith(_QUANTISED) or matches(config.exclude_modules or (), name):
        return
    if asked or (windowed and config.target_modules is None):
        raise TargetError(
            explain(
                f"floating-point weights in {name}",
                f"the quantised layer {type(module).__name__}",
                "soften the model before quantising it, or leave the layer out with exclude_modules",
            )
        )


def _convolution(name: str, module: nn.Module, model: nn.Module) -> Iterator[tuple[str, Candidate]]:
    if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1:
        yield "weight", Candidate(Layout("convolution"), tuple(module.kernel_size))


def _position_table(name: str, module: nn.Module, model: nn.Module) -> Iterator[tuple[str, Candidate]]:
    if isinstance(module, nn.Embedding):
        parent = model.get_submodule(name.rpartition(".")[0])
        tables = [("weight", module.weight, parent)] if name.rpartition(".")[2] in POSITION_NAMES else []
    else:
        own = module.named_parameters(recurse=False)
        tables = [(key, parameter, module) for key, parameter in own if key in POSITION_NAMES]
    for key, table, owner in tables:
        found = _token_grid(table, _configured_grid(owner) or _configured_grid(model), model)
        if found is not None:
            yield key, found


def _token_grid(table: torch.Tensor, grid: tuple[int, int] | None, model: nn.Module) -> Candidate | None:
    """The grid of a table ``[1, extra + h*w, D]`` or ``[extra + h*w, D]``: the configured one, else a square."""
    if table.ndim not in (2, 3) or (table.ndim == 3 and table.shape[0] != 1):
        return None
    axis = table.ndim - 2
    rows = table.shape[axis]
    if grid is None or not 0 <= rows - math.prod(grid) <= _MAX_EXTRA_TOKENS:
        # only a network that reads images has a grid of tokens; a table of words may have a square length, too
        if not any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules()):
            return None
        sides = [math.isqrt(rows - extra) for extra in range(_MAX_EXTRA_TOKENS + 1) if rows - extra >= 4]
        squares = [side for extra, side in enumerate(sides) if side * side == rows - extra]
        if not squares:
            return None
        grid = (squares[0], squares[0])
    size = math.prod(grid)
    return Candidate(Layout("table", axis, rows - size, size), grid)


def _configured_grid(module: nn.Module) -> tuple[int, int] | None:
    """``image_size // patch_size`` of a configuration in the manner of transformers."""
    config = getattr(module, "config", None)
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image is None or patch is None:
        return None
    images = (image, image) if isinstance(image, int) else tuple(image)
    patches = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(images) != 2 or len(patches) != 2:
        return None
    return images[0] // patches[0], images[1] // patches[1]


def _relative_table(name: str, module: nn.Module, model: nn.Module) -> Iterator[tuple[str, Candidate]]:
    for key, parameter in module.named_parameters(recurse=False):
        side = math.isqrt(parameter.shape[0]) if parameter.ndim == 2 else 0
        if key in RELATIVE_NAMES and side % 2 == 1 and side * side == parameter.shape[0]:
            yield key, Candidate(Layout("table", 0, 0, side * side), (side, side))


RULES: tuple[Rule, ...] = (
    Rule("convolution", _convolution),
    Rule("position table", _position_table),
    Rule("relative-position table", _relative_table),
)


def _check_patterns(model: nn.Module, config: SoftEquivarianceConfig, targets: list[Target]) -> None:
    """Every pattern must name something, and what it names must be something that can be constrained."""
    modules = dict(model.named_modules())
    names = [name for name in modules if name] + [name for name, _ in model.named_parameters()]
    for field in ("target_modules", "exclude_modules"):
        patterns = getattr(config, field)
        if patterns is None:
            continue
        for pattern in unmatched(patterns, names):
            raise NoMatchingTargetError(
                explain(
                    f"a module or parameter that matches {field} {pattern!r}",
                    f"none; nearest names: {nearest_names(pattern, names)}",
                    "correct the pattern (a list matches dotted suffixes, a string is a regular expression)",
                )
            )
    if config.target_modules is None:
        return
    found = {t.matched_name for t in targets}
    asked = [name for name in names if matches(config.target_modules, name)]
    for name in asked:
        module = modules.get(name)
        if module is None or name in found or matches(config.exclude_modules or (), name):
            continue
        if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) == 1:
            raise TargetError(
                explain(
                    f"something to constrain in {name}",
                    "a 1x1 convolution, which mixes channels on which the group acts trivially",
                    "leave it out of target_modules",
                )
            )
        if isinstance(module, nn.Linear):
            raise TargetError(
                explain(
                    f"a representation for the linear layer {name}",
                    "none declared",
                    f"add representations={{{name!r}: ('input', 'output')}}",
                )
            )
    if not found:
        raise NoMatchingTargetError(
            explain(
                "target_modules that name convolutions, position tables or declared linear layers",
                f"{config.target_modules!r}, which names {', '.join(asked[:4])}",
                "name the layers that hold the weights, or declare representations for linear layers",
            )
        )


def _check_pattern_keys(config: SoftEquivarianceConfig, targets: list[Target]) -> None:
    names = [t.matched_name for t in targets]
    for pattern in config.softness_pattern:
        if not any(pattern_for([pattern], name) for name in names):
            raise NoMatchingTargetError(
                explain(
                    f"a target that matches softness_pattern {pattern!r}",
                    f"none; nearest targets: {nearest_names(pattern, names)}",
                    "correct the pattern (a regular expression for the end of a target's name)",
                )
            )
