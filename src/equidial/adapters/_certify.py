"""certify: what is guaranteed of every constrained tensor of a model, as stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import nn

from equidial._version import __version__
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._fold import folded_value
from equidial.adapters._geometry import (
    Window,
    acts_by_lattice,
    has_quarter_turns,
    reversed_axes,
    sizes_at,
)
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.adapters._state import find_root
from equidial.adapters._targets import Target, resolve_targets
from equidial.certificates import Certificate, LayerCertificate, certify_weight, gamma
from equidial.errors import ArgumentError, EquidialError, explain
from equidial.filters import Filter

Norm = Literal["frobenius"]


def certify(
    model: nn.Module,
    config: SoftEquivarianceConfig | None = None,
    radius: float | None = None,
    norm: str = "frobenius",
    dtype: torch.dtype | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Certificate:
    """Bounds of ``sup_g ||W rho_X(g) - rho_Y(g) W|| / ||W||``, one row per constrained tensor.

    Args:
        model: a softened model (the tensors that ``fold`` would store are certified), or a plain or folded one
            together with its ``config``.
        config: which tensors carry which representation; needed for plain models only.
        radius: largest distance of the elements, in the group's unit (radians, one-pixel steps); default: the
            configured radius, else the whole group.
        norm: ``"frobenius"``.
        dtype: certify the tensors as they would be after rounding to this storage type; default: as stored.
        image_size: input size in pixels, by which strided layers are judged; default: the configured one.

    Convolutions and tables are certified on their own window or grid. A row speaks of the layer and the image only
    for C2, C4, D2, D4 and flips with symmetric strides and padding, see ``level`` and ``notes``. The error of the
    whole network is what :func:`equidial.measure` measures.

    Raises ``ArgumentError`` for a plain model without ``config``, an unknown norm or a dtype that stores no floats.
    Source: theory 4 (Duhamel and telescoping bounds, rounding).
    """
    if norm not in get_args(Norm):
        raise ArgumentError(explain(f"norm out of {get_args(Norm)}", repr(norm), "use norm='frobenius'"))
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(explain("a floating-point dtype", repr(dtype), "e.g. dtype=torch.bfloat16"))
    found = find_root(model)
    if found is None and config is None:
        raise ArgumentError(
            explain(
                "a softened model, or a plain one with its configuration",
                f"a plain {type(model).__name__} without config",
                "pass config=SoftEquivarianceConfig(...), the one it was softened with",
            )
        )
    config = config or (found[1].config if found else None)
    assert config is not None
    root = found[0] if found else model
    radius = config.radius if radius is None else radius
    levels = _Levels(root, config, image_size)
    if found is not None:
        rows = [_soft_row(levels, module, name, link, radius, dtype) for module, name, link in constrained(root)]
    else:
        rows = [_plain_row(levels, root, target, radius, dtype) for target in resolve_targets(root, config)]
    return Certificate(tuple(rows), __version__)


def _soft_row(
    levels: _Levels,
    module: nn.Module,
    tensor_name: str,
    link: SoftParametrization,
    radius: float | None,
    dtype: torch.dtype | None,
) -> LayerCertificate:
    stored = folded_value(module, tensor_name, link)
    filter_ = link.filter()
    weights = link.layout.weights(stored)
    if dtype is not None:
        # rounding again would part the orbits that fold made equal; a cast keeps equal entries equal
        weights = weights.to(dtype)
    target = Target("", "", link.layout, link.constraint, "")
    row = _row(levels, link.name, module, target, weights, radius)
    return replace(row, response=link.response, dial=str(link.dial), a_priori=_a_priori(filter_, row.radius))


def _plain_row(
    levels: _Levels, model: nn.Module, target: Target, radius: float | None, dtype: torch.dtype | None
) -> LayerCertificate:
    module = model.get_submodule(target.module_name)
    stored = module._parameters[target.tensor_name]
    assert stored is not None
    weights = target.layout.weights(stored.detach())
    return _row(levels, target.name, module, target, weights if dtype is None else weights.to(dtype), radius)


def _row(
    levels: _Levels,
    name: str,
    module: nn.Module,
    target: Target,
    weights: torch.Tensor,
    radius: float | None,
) -> LayerCertificate:
    constraint = target.constraint
    found = certify_weight(constraint, weights, radius)
    level, notes = levels.of(name, module, target)
    roundoff = torch.finfo(weights.dtype).eps / 2
    accumulated = 2 * gamma(constraint.rep_in.dim) * roundoff / 2.0**-53
    return LayerCertificate(
        name=name,
        bound=found.bound,
        kind=found.kind,
        level=level,
        norm="frobenius",
        radius=found.radius,
        measured=found.measured,
        absolute=found.absolute,
        a_priori=None,
        allowance=accumulated,
        group=constraint.rep_in.group.name,
        representation=(
            constraint.rep_in.name if constraint.invariant else f"{constraint.rep_in.name} -> {constraint.rep_out.name}"
        ),
        response="-",
        dial="-",
        dtype=str(weights.dtype).removeprefix("torch."),
        elements=found.elements,
        notes=notes,
    )


def _a_priori(filter_: Filter, radius: float) -> float | None:
    try:
        return filter_.bound(radius)
    except EquidialError:
        return None


class _Levels:
    """What a row may speak of: the kernel alone, the layer, or the image."""

    def __init__(self, model: nn.Module, config: SoftEquivarianceConfig, image_size: int | tuple[int, int] | None):
        self.group = config.group_object
        traced = sizes_at(model, image_size if image_size is not None else config.image_size)
        self.sizes = {id(model.get_submodule(name)): found for name, found in traced.items()}

    def of(self, name: str, module: nn.Module, target: Target) -> tuple[str, tuple[str, ...]]:
        """Level and notes of one tensor."""
        kind = target.layout.kind
        if kind in ("linear", "bias"):
            return "layer", ()
        rep = target.constraint.rep_in
        if not rep.is_permutation:
            return "kernel", (
                f"{self.group.name} acts on each {'window' if kind == 'convolution' else 'grid'} by the "
                f"{rep.exactness}; it moves no image pixels, so nothing is claimed of the image",
            )
        if kind == "table":
            return "image", ()
        return self._convolution(module)

    def _convolution(self, module: nn.Module) -> tuple[str, tuple[str, ...]]:
        window = Window.of(module)
        if window is None or not acts_by_lattice(self.group):
            kind = type(module).__name__.removeprefix("Parametrized")
            return "kernel", (f"no window rule for {kind}: the bound speaks of the kernel alone",)
        size = self.sizes.get(id(module))
        axes = reversed_axes(self.group, len(window.kernel))
        if size is None:
            if window.is_strided:
                return "kernel", (
                    "a strided layer keeps the symmetry at some input sizes only: pass image_size= to judge it",
                )
            size = window.kernel
        if window.is_symmetric(size, axes) and not (
            has_quarter_turns(self.group) and not (window.is_isotropic and _is_square(size, window))
        ):
            return "image", ()
        reason = (
            f"stride {window.stride} with padding {window.before}/{window.after} at input {size} does not fit "
            f"{self.group.name}: the bound speaks of the kernel alone"
        )
        return "kernel", (reason,)


def _is_square(size: tuple[int, ...], window: Window) -> bool:
    return size == window.kernel or len(set(size)) == 1
