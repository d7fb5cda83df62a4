"""The verbs that turn the dial of a model: soften, set_softness, set_dial, disabled."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._geometry import configured_size, example_images, sizes_at, stride_message
from equidial.adapters._life import check_adapters, check_life, check_tensors
from equidial.adapters._matching import matches, pattern_for
from equidial.adapters._parametrization import (
    SoftParametrization,
    attach,
    constrained,
    detach,
    original_of,
)
from equidial.adapters._state import SoftState, hashes_of, require_root, set_state
from equidial.adapters.targets import Target, resolve_targets
from equidial.certificates import certify_weight
from equidial.errors import (
    BudgetError,
    EquidialWarning,
    NoMatchingTargetError,
    explain,
    nearest_names,
)
from equidial.filters import Dial, MatrixFreeSpectrum, Setting, Spectrum, build_spectrum, relative_defect

logger = logging.getLogger("equidial")
Model = TypeVar("Model", bound=nn.Module)


def soften(model: Model, config: SoftEquivarianceConfig) -> Model:
    """Constrain the weights of ``model`` as ``config`` says, in place, and return the same object.

    Each target tensor ``W`` is read as ``F(W)`` from now on, through a torch parametrization: training goes
    through ``F``, the Parameter objects stay the same, ``fold`` makes the constraint final and ``unload`` takes it
    away. For ``nearest`` the defect of every tensor is measured here, once.

    Call it after loading weights, before creating optimizers, compiling and wrapping.

    Raises:
        StateError: a model softened before, compiled, wrapped, sharded or adapted by PEFT, or a tensor parametrized by
            others.
        NoMatchingTargetError: a pattern or a rule that matches nothing, with the nearest names.
        TargetError: a tensor that cannot be constrained (NaN, tied, quantised, a window the group cannot turn).
        BudgetError: a ``max_error`` or threshold that cannot be reached, with the smallest that can.

    Warns (``EquidialWarning``) where strides break a lattice symmetry at the image size that the configuration or the
    model tells, and where a tensor is symmetric already. Everything is checked before the model is touched; on failure
    it is left whole. Cost: one spectrum per distinct representation, one forward pass where the image size is known.
    """
    check_life(model)
    targets = resolve_targets(model, config)
    parametrizations = build_parametrizations(model, targets, config)
    for target, parametrization in zip(targets, parametrizations, strict=True):
        dial = dial_for(target, config)
        parametrization.turn(dial, _choose(parametrization, dial, _tensor(model, target), config.radius))
    hashes = hashes_of(model)
    size = config.image_size or configured_size(model)
    example = None if size is None else example_images(model, size)
    strides = stride_message(model, sizes_at(model, config.image_size), example, config.group_object)
    attach_all(model, config, targets, parametrizations, hashes)
    for message in filter(None, (strides, _already_symmetric(parametrizations))):
        warnings.warn(message, EquidialWarning, stacklevel=2)
    logger.debug("softened %d tensors of %s under %s", len(targets), type(model).__name__, config.group)
    return model


def build_parametrizations(
    model: nn.Module, targets: Sequence[Target], config: SoftEquivarianceConfig
) -> list[SoftParametrization]:
    """One parametrization per target, not yet attached; spectra are shared by all tensors of one space."""
    spectra: dict[object, Spectrum | MatrixFreeSpectrum] = {}
    built = []
    for target in targets:
        spectrum = spectra.get(target.constraint)
        if spectrum is None:
            spectrum = spectra[target.constraint] = build_spectrum(target.constraint)
        weights = target.layout.weights(_tensor(model, target))
        if spectrum.smallest_sigma() > 0:
            reference = spectrum.defect_norm(weights)
        else:
            reference = relative_defect(spectrum, weights)
        built.append(
            SoftParametrization(target.name, target.layout, spectrum, config.response, reference).to(weights.device)
        )
    return built


def attach_all(
    model: nn.Module,
    config: SoftEquivarianceConfig,
    targets: Sequence[Target],
    parametrizations: Sequence[SoftParametrization],
    hashes: dict[str, str],
) -> None:
    """Register every parametrization and the state; take all of them off again if one fails."""
    orders = {target.module_name: list(model.get_submodule(target.module_name)._parameters) for target in targets}
    done: list[Target] = []
    try:
        for target, parametrization in zip(targets, parametrizations, strict=True):
            tensor = _tensor(model, target)
            attach(model.get_submodule(target.module_name), target.tensor_name, parametrization)
            done.append(target)
            parametrization.prepare(tensor.device, tensor.dtype)
    except Exception:
        for target in reversed(done):
            detach(model.get_submodule(target.module_name), target.tensor_name, orders[target.module_name])
        raise
    set_state(model, SoftState(config, orders, hashes))


def set_softness(model: nn.Module, softness: float, target_modules: str | Sequence[str] | None = None) -> None:
    """Turn the dial of all softened tensors, or of those that match, to a softness in [0, 1].

    Raises ``ArgumentError`` for a value outside, ``StateError`` for a model that is not softened.
    """
    set_dial(model, softness=softness, target_modules=target_modules)


def set_dial(
    model: nn.Module,
    *,
    softness: float | None = None,
    threshold: float | None = None,
    max_error: float | None = None,
    target_modules: str | Sequence[str] | None = None,
) -> None:
    """Turn the dial: exactly one of ``softness``, ``threshold`` and ``max_error``; weights are not touched.

    ``target_modules`` restricts it to matching tensors (PEFT's rules). A compiled model follows without compiling anew;
    under DistributedDataParallel and ``fully_shard`` every process turns its dial (``max_error`` needs whole tensors:
    before sharding). A learned dial goes on learning from there. In retract mode the tensors are brought into the new
    set, in place. Raises as :func:`soften`, and leaves every dial where it was on failure.
    """
    dial = Dial.of(softness, threshold, max_error)
    _, state = require_root(model, "set_dial")
    check_adapters(model, "set_dial")
    if dial.kind == "max_error":
        check_tensors(model, "set_dial(max_error=...)")
    chosen = matching_links(model, target_modules)
    settings = settings_for(chosen, dial, state.config.radius)
    for (module, name, link), setting in zip(chosen, settings, strict=True):
        link.turn(dial, setting)
        link.settle(original_of(module, name))
    if target_modules is None:
        one = {"softness": None, "threshold": None, "max_error": None, dial.kind: dial.value}
        state.config = replace(state.config, softness_pattern={}, **one)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context the model computes with its unconstrained tensors, for comparison."""
    require_root(model, "disabled")
    check_adapters(model, "disabled")
    links = [link for _, _, link in constrained(model)]
    before = [link.enabled for link in links]
    try:
        for link in links:
            link.enabled = False
        yield model
    finally:
        for link, enabled in zip(links, before, strict=True):
            link.enabled = enabled


def _choose(link: SoftParametrization, dial: Dial, original: torch.Tensor, radius: float | None) -> Setting:
    """The setting of a dial; for ``max_error`` checked against the certificate of the rounded result."""
    setting = link.setting_for(dial, radius)
    if dial.kind != "max_error" or math.isinf(setting.threshold):
        return setting
    weights = link.layout.weights(original)  # read here only: the other dials also turn on a shard
    # radius * beta covers exact arithmetic; the stored tensor is rounded, so its certificate decides
    before = (link.dial, link.setting)
    found = math.inf
    try:
        for share in (1.0, 1 - 1e-6, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0):
            candidate = Setting(setting.threshold * share)
            link.turn(dial, candidate)
            filter_ = link.filter()
            work = weights.detach().to("cpu", torch.float64)
            stored = filter_.snap(filter_(work).to(weights.dtype))
            found = certify_weight(link.constraint, stored, radius).bound
            if found <= dial.value:
                return candidate
    finally:
        link.turn(*before)
    raise BudgetError(
        f"{link.name}: "
        + explain(
            f"max_error >= {found:.3g}, what rounding to {weights.dtype} leaves of an exactly symmetric weight",
            f"max_error={dial.value:g}",
            f"use max_error={found:.3g} or more, or a wider dtype",
        ),
        found,
    )


def dial_for(target: Target, config: SoftEquivarianceConfig) -> Dial:
    """The configured dial of one target: its softness_pattern, else the common dial."""
    pattern = pattern_for(config.softness_pattern, target.matched_name)
    return config.dial if pattern is None else Dial.of(softness=config.softness_pattern[pattern])


def settings_for(
    links: Sequence[tuple[nn.Module, str, SoftParametrization]], dial: Dial, radius: float | None
) -> list[Setting]:
    """What a dial means for each of these tensors; raises as :func:`set_dial` and turns nothing."""
    return [_choose(link, dial, original_of(module, name), radius) for module, name, link in links]


def matching_links(
    model: nn.Module, target_modules: str | Sequence[str] | None
) -> list[tuple[nn.Module, str, SoftParametrization]]:
    """The softened tensors that match, all of them for ``None``; raises ``NoMatchingTargetError`` for none."""
    links = list(constrained(model))
    if target_modules is None:
        return links
    names = {id(link): {link.name, link.name.rpartition(".")[0]} for _, _, link in links}
    chosen = [item for item in links if any(matches(target_modules, n) for n in names[id(item[2])] if n)]
    if not chosen:
        known = sorted(set().union(*names.values()))
        raise NoMatchingTargetError(
            explain(
                f"a softened tensor that matches {target_modules!r}",
                f"none; nearest: {nearest_names(str(target_modules), known)}",
                "correct the pattern",
            )
        )
    return chosen


def _already_symmetric(links: Sequence[SoftParametrization]) -> str | None:
    """Tensors whose softness leaves no room, because what they are a share of is 0."""
    names = [
        link.name
        for link in links
        if link.response == "nearest"
        and not math.isnan(float(link.softness))
        and not math.isinf(float(link.threshold))
        and float(link.reference) == 0
        and link.constraint.scale > 0
    ]
    if not names:
        return None
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"{shown}: exactly symmetric as found, so any softness below 1 keeps it so through training; "
        "set_dial(model, threshold=..., target_modules=[...]) gives it room"
    )


def _tensor(model: nn.Module, target: Target) -> torch.Tensor:
    tensor = model.get_submodule(target.module_name)._parameters[target.tensor_name]
    assert tensor is not None, "resolve_targets has checked it"
    return tensor
