"""diagnose: which modules break the symmetry of a network, by how much, why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from equidial.adapters._batches import device_of, evaluation, inputs_and_labels
from equidial.adapters._certify import certify
from equidial.adapters._certify_layers import SAMPLES, is_layer_row
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._geometry import acts_by_lattice
from equidial.adapters._life import check_whole
from equidial.adapters._matching import pattern_for
from equidial.adapters._parametrization import constrained
from equidial.adapters._state import find_root
from equidial.adapters.diagnosis._causes import RELAXED, Causes, relaxed_layer
from equidial.adapters.diagnosis._follow import Follower, Unmatched
from equidial.adapters.diagnosis._group_layers import ATOMIC
from equidial.adapters.diagnosis._motion import Grid, Motion, Vectors
from equidial.adapters.diagnosis._result import Cause, Diagnosis, LayerError, OutputError
from equidial.adapters.diagnosis._sizes import REACH, contradiction, symmetric_sizes
from equidial.adapters.diagnosis._values import Operation
from equidial.adapters.targets import Target, describe_targets, resolve_targets
from equidial.errors import ArgumentError, GroupActionError, NoMatchingTargetError, TargetError, explain
from equidial.groups import C, D, Group, GroupElement, PlanarGroup, as_group
from equidial.metrics import element_name, random_elements, transform_images
from equidial.nn import NormNonlinearity
from equidial.representations import Representation

_ATOMIC = (NormNonlinearity, *ATOMIC)
_SAMPLES = 4  # elements of a group that has no few generators which permute


def diagnose(
    model: nn.Module,
    example: Any,
    group: str | Group = "C4",
    config: SoftEquivarianceConfig | None = None,
    tolerance: float | None = None,
) -> Diagnosis:
    """Find what breaks the symmetry of a network: run it on moved inputs, operation by operation.

    Every operation ``f`` is given its input ``h`` moved exactly, and what it adds is
    ``||f(rho(g) h) - rho'(g) f(h)|| / ||f(h)||``, whatever came before it. What adds more than ``tolerance`` gets a
    cause by name, its arithmetic and a remedy (see :class:`Cause`). Convolutions are asked twice, with the kernel
    averaged over the group and with the rest, so that windows and weights are told apart.

    Args:
        model: an image model, plain, folded or softened; or one on vectors whose linear layers have representations.
        example: images ``[n, c, h, w]`` (the first is used), or a batch as :func:`measure` takes; for representations
            ``[n, .., d]``.
        group: groups that turn and mirror images, or any group with declared representations. Where the group moves
            images by interpolation (SO2, C8, ..), its largest part that permutes pixels is tried, and the weights are
            judged under the group itself.
        config: targets and representations of a plain model; a softened one has its own.
        tolerance: default 100 units in the last place of the model's dtype, 1e-5 for float32.

    The model is run in evaluation mode without gradients, and is left as it was. Raises ``ArgumentError`` for an
    example that the model does not read and an output without tensors that follow the input; ``GroupActionError`` for
    a group that moves no pixels and a quarter turn of a rectangle; ``StateError`` for a compiled or sharded model.
    Cost: about ten forward passes, and at most one for each of 64 input sizes where a stride breaks the symmetry.
    Source: theory 6.
    """
    check_whole(model)
    empty = next((name for name, tensor in model.named_parameters() if tensor.is_meta), None)
    if empty is not None:
        raise ArgumentError(explain(f"weights in {empty}", "a meta tensor", "load the weights before the diagnosis"))
    group = as_group(group)
    found = find_root(model)
    config = config or (found[1].config if found else SoftEquivarianceConfig(group=group, softness=1.0))
    x = _example(example).to(device_of(model))
    setting = _setting(model, x, group, config)
    if tolerance is None:
        dtype = x.dtype if x.is_floating_point() else torch.float32
        tolerance = 100 * torch.finfo(dtype).eps
    found_run = _run(model, x, setting, tolerance)
    sizes, causes = (), tuple(found_run.causes.found)
    if any(c.mend in ("size", "padding") for c in causes):
        sizes, causes = _with_sizes(model, x, setting, found_run.causes)
    notes = list(setting.notes)
    if setting.group != group:
        causes = (*causes, *_weights_under(model, group, config, causes, tolerance))
    return Diagnosis(
        group.name,
        tuple(element_name(g) for g in setting.elements),
        tuple(x.shape),
        found_run.outputs,
        found_run.layers,
        causes,
        sizes,
        tolerance,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Weights:
    """Tensors that are softened or configured, names of all that rules know, and where dials stand, by name."""

    targets: Mapping[str, Target]
    known: frozenset[str]
    dials: Mapping[str, str]


@dataclass(frozen=True)
class _Setting:
    """What is moved, by which elements, and what is known of the weights."""

    group: Group
    elements: tuple[GroupElement, ...]
    motion: Motion
    weights: _Weights
    declared: Mapping[str, Representation]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    causes: Causes
    outputs: tuple[OutputError, ...]
    layers: tuple[LayerError, ...]


def _example(example: Any) -> torch.Tensor:
    x, _ = inputs_and_labels(example)
    if x.ndim < 2 or len(x) == 0:
        raise ArgumentError(
            explain("an example [n, c, h, w] with n >= 1", f"shape {tuple(x.shape)}", "add the batch axis: x[None]")
        )
    return x[:1].detach()


def _setting(model: nn.Module, x: torch.Tensor, group: Group, config: SoftEquivarianceConfig) -> _Setting:
    weights = _weights(model, group, config)
    if config.representations:
        return _on_vectors(model, x, group, config, weights)
    if x.ndim != 4:
        raise ArgumentError(
            explain(
                "images [n, c, h, w], or representations of the model's linear layers in config",
                f"an example of shape {tuple(x.shape)}",
                "add the axis that lacks, or declare representations",
            )
        )
    part = _lattice_part(group)
    elements = _generating(part)
    for g in elements:
        transform_images(x, g)  # a quarter turn of a rectangle is refused here
    notes = []
    if part != group:
        notes.append(
            f"{group.name} moves images by interpolation: operations were tried under its part {part.name}, which "
            f"permutes pixels, weights under {group.name} itself; see error_curve for all angles"
        )
    return _Setting(part, elements, Grid(elements, (2, 3)), weights, {}, tuple(notes))


def _on_vectors(
    model: nn.Module,
    x: torch.Tensor,
    group: Group,
    config: SoftEquivarianceConfig,
    weights: _Weights,
) -> _Setting:
    declared = {}
    first: Representation | None = None
    for name, module in model.named_modules():
        pattern = pattern_for(config.representations, name) if isinstance(module, nn.Linear) else None
        if pattern is not None:
            rep_in, rep_out = (config.space(given) for given in config.representations[pattern])
            first = first or rep_in
            declared[name] = rep_out
    if first is None or first.dim != x.shape[-1]:
        raise ArgumentError(
            explain(
                f"an example whose last axis is the input space {first.name if first else '?'}"
                f" ({first.dim if first else 0})",
                f"shape {tuple(x.shape)}",
                "pass vectors in the space of the first declared linear layer",
            )
        )
    elements = tuple(random_elements(group, _SAMPLES, generator=torch.Generator().manual_seed(0)).elements)
    return _Setting(group, elements, Vectors(elements, first), weights, declared, ())


def _weights(model: nn.Module, group: Group, config: SoftEquivarianceConfig) -> _Weights:
    """The tensors that could be softened, and where the dials of those stand that are."""
    every = describe_targets(model, SoftEquivarianceConfig(group=group, softness=0.0))
    known = frozenset(row.name for row in every if row.representation is not None)
    links = [link for _, _, link in constrained(model)]
    if links:
        targets = {}
        for link in links:
            module, _, tensor = link.name.rpartition(".")
            targets[link.name] = Target(module, tensor, link.layout, link.constraint, "softened")
        return _Weights(targets, known | targets.keys(), {link.name: str(link.dial) for link in links})
    try:
        found = resolve_targets(model, replace(config, group=group))
    except (NoMatchingTargetError, TargetError):
        found = []
    targets = {target.name: target for target in found}
    return _Weights(targets, known | targets.keys(), {})


def _run(model: nn.Module, x: torch.Tensor, setting: _Setting, tolerance: float) -> _Run:
    tensors = {name: tensor.detach() for name, tensor in _effective(model)}
    w = setting.weights
    causes = Causes(setting.group, tolerance, len(setting.elements), w.targets, w.known, w.dials, tensors)

    follower = Follower(setting.elements, tolerance, causes.watch, causes.explain, setting.declared, _ATOMIC)
    with evaluation(model), torch.no_grad():
        try:
            model(x)
        except Exception as error:  # whatever a foreign forward raises on input that it does not read
            raise ArgumentError(
                explain(
                    f"a model that reads an input of shape {tuple(x.shape)}",
                    f"{type(model).__name__}: {type(error).__name__}: {error}",
                    "pass an example of the shape that the model reads",
                )
            ) from error
        with follower.watching(model):
            follower.start(x, setting.motion)
            output = model(x)
        outputs = tuple(_outputs(output, follower, causes))
    if not outputs:
        raise ArgumentError(
            explain(
                "an output with floating-point tensors that depend on the input",
                f"{type(output).__name__}",
                "wrap the model so that it returns its logits or features",
            )
        )
    layers = tuple(LayerError(module, name, added, arrived) for module, name, added, arrived in follower.steps)
    return _Run(causes, outputs, layers)


def _outputs(output: Any, follower: Follower, causes: Causes) -> Iterator[OutputError]:
    for path, tensor in pytree.tree_flatten_with_path(output)[0]:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        settled = follower.settled(tensor)
        if settled is None:
            continue
        motion, value = settled
        name = "".join(str(key) for key in path).strip(".[]'\"") or "output"
        if motion is None:
            causes.blame(value.events, math.nan)
            yield OutputError(name, "unknown", float("nan"))
        else:
            yield OutputError(name, motion.name, follower.error(tensor, value, motion))


def _fits(model: nn.Module, x: torch.Tensor, causes: Causes) -> bool:
    """Whether the model reads ``x`` and no window, padding or slice on the way breaks the group, by arithmetic."""

    def check(operation: Operation) -> None:
        if causes.is_broken(operation):
            raise Unmatched

    elements = _generating(causes.group)[:1]
    follower = Follower(elements, causes.tolerance, check, check, atomic=_ATOMIC, dry=True)
    with evaluation(model), torch.no_grad(), follower.watching(model):
        follower.start(x, Grid(elements, (2, 3)))
        try:
            model(x)
        except Exception:  # Unmatched, or whatever a foreign forward raises at a size that it does not read
            return False
    return True


def _with_sizes(
    model: nn.Module, x: torch.Tensor, setting: _Setting, causes: Causes
) -> tuple[tuple[int, ...], tuple[Cause, ...]]:
    """The symmetric sizes near that of the example, and the causes with them in their remedies."""
    why_not = contradiction(causes.conditions)
    sizes: tuple[int, ...] = ()
    if why_not is None and setting.declared == {}:
        shape = (1, x.shape[1])
        sizes = symmetric_sizes(x.shape[-1], lambda n: _fits(model, x.new_zeros(*shape, n, n), causes))
    if sizes:
        advice = f"use an input of {' or '.join(f'{n}x{n}' for n in sizes)} px"
    else:
        advice = why_not or f"no input within {REACH} px is symmetric"
    return sizes, tuple(
        replace(c, remedy="; or ".join(filter(None, (advice, c.remedy)))) if c.mend in ("size", "padding") else c
        for c in causes.found
    )


def _weights_under(
    model: nn.Module, group: Group, config: SoftEquivarianceConfig, known: tuple[Cause, ...], tolerance: float
) -> Iterator[Cause]:
    """Weights that the permuting part of the group does not see, but the group itself does."""
    softened = find_root(model) is not None
    try:
        certificate = certify(model) if softened else certify(model, replace(config, group=group))
    except (NoMatchingTargetError, TargetError):
        return
    named = {cause.parameter for cause in known}
    relaxed = {cause.module for cause in known if cause.cause == RELAXED}
    for row in certificate:
        if is_layer_row(row):
            if row.layout[0] == SAMPLES and row.measured > tolerance and row.name not in relaxed:
                yield relaxed_layer(row.name, row.measured, row.dial, row.measured, row.group)
            continue
        if row.name not in named and row.measured > tolerance:
            kind = "kernel" if row.layout[0] == "convolution" else "position table"
            why = f"its certified defect under {group.name} is {row.bound:.3g}, although none under the part tried"
            yield Cause(kind, row.name.rpartition(".")[0], row.measured, why, f"soften {row.name}", "weights", row.name)


def _effective(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters as the network reads them: behind a parametrization its result."""
    soft = {link.name: getattr(module, name) for module, name, link in constrained(model)}
    for name, tensor in model.named_parameters():
        plain = name.replace(".parametrizations", "").removesuffix(".original")
        yield plain, soft.get(plain, tensor)


def _lattice_part(group: Group) -> Group:
    """The largest part of a group of turns and mirrors that permutes the pixels of a square image."""
    if acts_by_lattice(group):
        return group
    if isinstance(group, PlanarGroup):
        if isinstance(group, C | D):
            n = math.gcd(group.n, 4)
            part = type(group)(n)
        else:
            part = D(4) if group.discrete_generators() else C(4)
        if part.order is not None and part.order > 1:
            return part
    raise GroupActionError(
        explain(
            "a group with elements that permute pixels (C2, C4, D4, Flip, SO2, O2, ..), or declared representations",
            group.name,
            "use certify for the weights and measure for the network",
        )
    )


def _generating(group: Group) -> tuple[GroupElement, ...]:
    """A few elements that generate a finite group."""
    chosen: list[GroupElement] = []
    reached = {group.identity()}
    for letter in group.discrete_generators():
        if letter.element not in reached:
            chosen.append(letter.element)
            while True:
                more = {a @ b for a in reached for b in chosen} - reached
                if not more:
                    break
                reached |= more
    return tuple(chosen)
