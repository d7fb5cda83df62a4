"""What every parameter of a model carries, decided by the first rule that knows it.

The order: representations that the configuration declares for linear layers, the configuration's own rules
(``targets``), the row of the architecture, the generic rule.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._layouts import Layout
from equidial.adapters._matching import matches, pattern_for
from equidial.adapters._parameter_rules import ParameterRule
from equidial.adapters._parametrization import constrained, original_of
from equidial.adapters._state import find_root
from equidial.adapters.targets._architectures import Architecture, architectures_of
from equidial.adapters.targets._checks import check_pattern_keys, check_patterns, check_tensors, refuse_quantised
from equidial.adapters.targets._generic import CONVOLUTIONS, generic_rule, reads_images
from equidial.adapters.targets._places import Place, place, surroundings
from equidial.adapters.targets._reasons import CHANNELS, SHIFTS
from equidial.adapters.targets._timm import TIMM
from equidial.adapters.targets._transformers import TRANSFORMERS
from equidial.errors import NoMatchingTargetError, TargetError, explain, nearest_names
from equidial.filters import Constraint
from equidial.groups import Group, Shift, Translation
from equidial.representations import Pixels

logger = logging.getLogger("equidial")

ARCHITECTURES: tuple[Architecture, ...] = (*TRANSFORMERS, *TIMM)
GENERIC, USER, DECLARED = "generic", "user", "declared representation"


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
        return _full(self.module_name, self.tensor_name)

    @property
    def matched_name(self) -> str:
        """What patterns are compared with: the layer, or the full name of a bare parameter."""
        return _matched(self.module_name, self.tensor_name)


@dataclass(frozen=True)
class Decision:
    """What was decided of one parameter: a target, or the reason why it is left alone."""

    module_name: str
    tensor_name: str
    tensor: torch.Tensor | None
    role: str
    reason: str
    rule: str
    target: Target | None = None
    refused: bool = False

    @property
    def name(self) -> str:
        """Full name of the tensor."""
        return _full(self.module_name, self.tensor_name)


def resolve_targets(model: nn.Module, config: SoftEquivarianceConfig) -> list[Target]:
    """Every tensor that the configuration names, checked, in the model's order; the model is only read.

    Raises ``StateError`` for a model that is softened already, ``NoMatchingTargetError`` for a pattern or a rule that
    matches nothing, ``TargetError`` for a tensor that cannot be constrained, or a grid on which the group cannot act.
    """
    for name, module in model.named_modules():
        if not isinstance(module, parametrize.ParametrizationList):
            refuse_quantised(name, module, config)
    decisions = decide(model, config)
    for decision in decisions:
        if decision.refused:
            raise TargetError(decision.reason)
    found = {d.target.matched_name for d in decisions if d.target is not None}
    check_patterns(model, config, found)
    targets = [d.target for d in decisions if d.target is not None]
    if not targets:
        raise NoMatchingTargetError(
            explain(
                "a model with convolutions (kernel above 1) or position tables, or declared representations",
                f"{type(model).__name__}, in which nothing is left to constrain",
                "say what its tensors carry: targets=[ParameterRule(...)], representations={pattern: (input, output)}",
            )
        )
    check_pattern_keys(config, [t.matched_name for t in targets])
    check_tensors(model, targets)
    generic = [d for d in decisions if d.rule == GENERIC]
    if generic:
        logger.info(
            "%s: no row of the tables knows %d parameters, e.g. %s; the generic rule was used "
            "(equidial.describe_targets shows what it decided)",
            type(model).__name__,
            len(generic),
            generic[0].name,
        )
    return targets


def decide(model: nn.Module, config: SoftEquivarianceConfig) -> list[Decision]:
    """One decision per parameter, in the model's order, softened models included; the model is only read.

    Where the group cannot act on a grid, or a rule of the user does not fit, the decision is ``refused``, with the
    message. Raises ``NoMatchingTargetError`` for declared representations and rules that match nothing,
    ``TargetError`` for a representation of the wrong size and for a tensor with both.
    """
    declared = _declared(model, config)
    rows = architectures_of(model, ARCHITECTURES)
    images = reads_images(model)
    owned = list(owned_tensors(model))
    _check_rules(config, [_full(name, key) for name, _, key, _ in owned])
    out = []
    for module_name, module, key, tensor in owned:
        name = _full(module_name, key)
        given = next((rule for rule in config.targets if rule.matches(name)), None)
        linear = declared.get((module_name, key))
        if linear is not None:
            if given is not None:
                raise TargetError(
                    explain(
                        f"one statement of what {name} carries",
                        f"a declared representation and the rule {given.pattern!r}",
                        "take one of them away",
                    )
                )
            role = linear.layout.kind
            if matches(config.exclude_modules or (), linear.matched_name):
                out.append(Decision(module_name, key, tensor, "leave", "in exclude_modules", DECLARED))
            else:
                out.append(Decision(module_name, key, tensor, role, "as the configuration says", DECLARED, linear))
            continue
        row = rows[module_name]
        candidates: list[tuple[str, ParameterRule]] = [(USER, given)] if given is not None else []
        candidates += [(row.label, rule) for rule in row.rules if rule.matches(name)] if row is not None else []
        shape = tensor.shape if tensor is not None else _computed_shape(module, key)
        grid_known = images or surroundings(model, module_name).tokens is not None
        candidates.append((GENERIC, generic_rule(module_name, module, key, shape, grid_known)))
        out.append(_first_that_fits(model, config, module_name, key, tensor, shape, candidates))
    return out


def _first_that_fits(
    model: nn.Module,
    config: SoftEquivarianceConfig,
    module_name: str,
    key: str,
    tensor: torch.Tensor | None,
    shape: torch.Size,
    candidates: list[tuple[str, ParameterRule]],
) -> Decision:
    name = _full(module_name, key)
    for label, rule in candidates:
        if rule.role == "leave":
            reason = rule.reason or "left alone, as the configuration says"
            return Decision(module_name, key, tensor, "leave", reason, label)
        found = place(rule, shape, surroundings(model, module_name))
        if isinstance(found, Place):
            return _on_grid(config, module_name, key, tensor, label, rule, found)
        if label == USER:
            text = f"{name}: " + explain(f"a tensor that fits {rule}", found, "correct grid, view or axes of the rule")
            return Decision(module_name, key, tensor, rule.role, text, label, refused=True)
        if rule.role != "kernel":  # a name that stands for a convolution or a norm: the next rule knows the norm
            return Decision(module_name, key, tensor, "leave", found, label)
    raise AssertionError("the generic rule leaves what it does not know")


def _on_grid(
    config: SoftEquivarianceConfig,
    module_name: str,
    key: str,
    tensor: torch.Tensor | None,
    label: str,
    rule: ParameterRule,
    found: Place,
) -> Decision:
    name, matched, group = _full(module_name, key), _matched(module_name, key), config.group_object
    kernel = found.layout.kind == "convolution"

    def left(reason: str) -> Decision:
        return Decision(module_name, key, tensor, "leave", reason, label)

    if max(found.grid) == 1:
        return left(CHANNELS if kernel else "a grid of one place")
    if kernel and isinstance(group, Shift | Translation):
        return left(SHIFTS)
    if config.target_modules is not None and not matches(config.target_modules, matched):
        return left("outside target_modules")
    if matches(config.exclude_modules or (), matched):
        return left("in exclude_modules")
    try:
        constraint = _constraint(group, found.grid, kernel)
    except ValueError as error:
        text = f"{name} ({found.layout.kind}): {error}"
        return Decision(module_name, key, tensor, rule.role, text, label, refused=True)
    target = Target(module_name, key, found.layout, constraint, label)
    return Decision(module_name, key, tensor, rule.role, rule.reason or "as the configuration says", label, target)


def _constraint(group: Group, grid: tuple[int, ...], kernel: bool) -> Constraint:
    # a kernel meets what moves (w^T rho(g) = w^T), a table is itself moved (rho(g) w = w)
    pixels = Pixels(group, grid)
    return Constraint.invariants(pixels if kernel else pixels.dual)


def owned_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor | None]]:
    """``(module name, module, key, tensor)`` of every parameter by its plain name, in the order before ``soften``.

    The weight of a convolution that something else computes (weight_norm) comes with ``None``.
    """
    soft = [(id(module), key) for module, key, _ in constrained(model)]
    root = find_root(model)
    orders = root[1].orders if root is not None else {}
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        own = {key: value for key, value in module._parameters.items() if value is not None}
        own |= {key: original_of(module, key) for identity, key in soft if identity == id(module)}
        keys = [key for key in orders.get(name, ()) if key in own]
        for key in [*keys, *(key for key in own if key not in keys)]:
            yield name, module, key, own[key]
        if isinstance(module, CONVOLUTIONS) and "weight" not in own:
            yield name, module, "weight", None


def _computed_shape(module: nn.Module, key: str) -> torch.Size:
    value = getattr(module, key, None)
    return value.shape if isinstance(value, torch.Tensor) else torch.Size()


def _declared(model: nn.Module, config: SoftEquivarianceConfig) -> dict[tuple[str, str], Target]:
    """Weights and biases of linear layers with declared representations."""
    found: dict[tuple[str, str], Target] = {}
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
        weight = Constraint.equivariants(rep_in, rep_out)
        found[name, "weight"] = Target(name, "weight", Layout("linear"), weight, DECLARED)
        if module.bias is not None:
            # a bias stays where it is, rho(g) b = b; Constraint.invariants speaks of w^T rho(g) = w^T
            bias = Constraint.invariants(rep_out.dual)
            found[name, "bias"] = Target(name, "bias", Layout("bias"), bias, DECLARED)
    for pattern in config.representations:
        if pattern not in used:
            raise NoMatchingTargetError(
                explain(
                    f"a linear layer that matches representations[{pattern!r}]",
                    f"none; nearest linear layers: {nearest_names(pattern, linears)}",
                    "correct the pattern (a regular expression for the end of a layer's name)",
                )
            )
    return found


def _check_rules(config: SoftEquivarianceConfig, names: list[str]) -> None:
    for rule in config.targets:
        if not any(rule.matches(name) for name in names):
            raise NoMatchingTargetError(
                explain(
                    f"a parameter that matches the rule {rule.pattern!r}",
                    f"none; nearest parameters: {nearest_names(rule.pattern, names)}",
                    "correct the pattern (a regular expression for the end of a parameter's full name)",
                )
            )


def _full(module_name: str, tensor_name: str) -> str:
    return f"{module_name}.{tensor_name}" if module_name else tensor_name


def _matched(module_name: str, tensor_name: str) -> str:
    return module_name if tensor_name in ("weight", "bias") else _full(module_name, tensor_name)
