"""certify: what is guaranteed of every constrained tensor of a model, as stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import nn

from equidial._version import __version__
from equidial.adapters._certify_layers import layer_rows
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._fold import folded_value
from equidial.adapters._geometry import Window, acts_by_lattice, image_level, sizes_at
from equidial.adapters._life import check_adapters, check_tensors
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.adapters._state import find_root, tensor_hash
from equidial.adapters.targets import Target, resolve_targets
from equidial.certificates import (
    UNIT_ROUNDOFF,
    Certificate,
    LayerCertificate,
    certify_operator,
    certify_weight,
    gamma,
    splits_by_spectrum,
)
from equidial.errors import ArgumentError, EquidialError, NoMatchingTargetError, explain
from equidial.filters import Constraint, Filter, MatrixFreeSpectrum, Spectrum, build_spectrum
from equidial.metrics import interpolation_distance
from equidial.nn import has_continuous_layers
from equidial.representations import Pixels, Representation

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)  # over the neighbours that a patch merging joins

Norm = Literal["frobenius", "spectral", "jacobian"]


def certify(
    model: nn.Module,
    config: SoftEquivarianceConfig | None = None,
    radius: float | None = None,
    norm: Norm = "frobenius",
    dtype: torch.dtype | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Certificate:
    """Bounds of ``sup_g ||W rho_X(g) - rho_Y(g) W|| / ||W||``, one row per constrained tensor.

    Layers of :mod:`equidial.nn` with a continuous kernel get rows of their own, exact from the kernel as it is sampled:
    one for their group axis, under the name of the layer, and one for shifts by whole places where the kernel may vary
    in space, under that name and ``:shifts``. They speak of the samples' own group, whatever the configuration.

    Args:
        model: a softened model (the tensors that ``fold`` would store are certified), or a plain or folded one
            together with its ``config``; one with layers of continuous kernels needs none.
        config: which tensors carry which representation; needed for plain models only.
        radius: largest distance of the elements, in the group's unit (radians, one-pixel steps); default: the
            configured radius, else the whole group. Continuous kernels know only a radius that is given here, radians
            on a group axis and places along translations; default: all samples, and shifts by up to half of the places.
        norm: of numerator and denominator. ``"frobenius"``: of the tensor; ``"spectral"``: of the matrix, a kernel as
            ``[out, in * window]``, so that the bound is one for every input; ``"jacobian"``: Frobenius, of the matrix
            of the whole layer, which with zero padding counts each tap as often as it meets the image (paper A's
            ``||J||_F``; rows for which it has no meaning say so). Continuous kernels keep the Frobenius norm.
        dtype: certify the tensors as they would be after rounding to this storage type; default: as stored.
        image_size: input size in pixels, by which strided layers are judged, and at whose places kernels that vary in
            space are compared (without it these abstain, unless they have a ``domain_size``); default: the configured
            one.

    Convolutions and tables are certified on their own window or grid. A row speaks of the layer and the image only
    for C2, C4, D2, D4 and flips with symmetric strides and padding, see ``level`` and ``notes``. The error of the
    whole network is what :func:`equidial.measure` measures.

    Raises ``ArgumentError`` for a plain model without ``config`` and without such layers, an unknown norm, a dtype that
    stores no floats and an ``image_size`` that the model does not read, ``StateError`` for a softened model that is
    sharded or has adapters of PEFT on softened layers.
    Source: theory 4 (Duhamel and telescoping bounds, rounding).
    """
    rows, size = certified_rows(model, config, radius, norm, dtype, image_size)
    return Certificate(tuple(rows), __version__, size)


def certified_rows(
    model: nn.Module,
    config: SoftEquivarianceConfig | None,
    radius: float | None,
    norm: Norm,
    dtype: torch.dtype | None,
    image_size: int | tuple[int, int] | None,
    layers: bool = True,
) -> tuple[list[LayerCertificate], tuple[int, ...] | None]:
    """The rows of :func:`certify` and the image size that they were judged at; without ``layers`` those of tensors."""
    if norm not in get_args(Norm):
        raise ArgumentError(explain(f"norm out of {get_args(Norm)}", repr(norm), "use norm='frobenius'"))
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(explain("a floating-point dtype", repr(dtype), "e.g. dtype=torch.bfloat16"))
    found = find_root(model)
    born_soft = has_continuous_layers(model)
    if found is None and config is None and not born_soft:
        raise ArgumentError(
            explain(
                "a softened model, or a plain one with its configuration",
                f"a plain {type(model).__name__} without config",
                "pass config=SoftEquivarianceConfig(...), the one it was softened with",
            )
        )
    config = config or (found[1].config if found else None)
    root = found[0] if found else model
    check_adapters(model, "certify")
    check_tensors(model, "certify")
    asked = radius
    if config is not None:
        radius = config.radius if radius is None else radius
        image_size = config.image_size if image_size is None else image_size
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = {id(root.get_submodule(name)): given for name, given in sizes_at(root, image_size).items()}
    rows: list[LayerCertificate] = []
    if config is not None:
        context = _Context(_Levels(config, sizes), radius, norm, dtype)
        if found is not None:
            rows += [_soft_row(context, module, name, link) for module, name, link in constrained(root)]
        else:
            rows += [_plain_row(context, root, target) for target in _targets(root, config, born_soft)]
    if layers:
        rows += layer_rows(root, sizes, asked, norm, dtype)
    return rows, size


def _targets(model: nn.Module, config: SoftEquivarianceConfig, born_soft: bool) -> list[Target]:
    """As :func:`resolve_targets`; none is no fault where other layers have rows and none was named."""
    try:
        return resolve_targets(model, config)
    except NoMatchingTargetError:
        if not born_soft or config.target_modules or config.targets or config.representations:
            raise
        return []


def _soft_row(
    context: _Context,
    module: nn.Module,
    tensor_name: str,
    link: SoftParametrization,
) -> LayerCertificate:
    stored = folded_value(module, tensor_name, link)
    target = Target("", "", link.layout, link.constraint, "")
    row = context.row(link.name, module, target, stored, link.spectrum)
    row = replace(row, response=link.response, dial=str(link.dial))
    if row.norm != "frobenius":
        return row  # what holds for any weight holds in the norm in which it was constrained
    return replace(
        row,
        a_priori=_a_priori(link.filter(), row.radius, "result"),
        a_priori_of_original=_a_priori(link.filter(), row.radius, "original"),
    )


def _plain_row(context: _Context, model: nn.Module, target: Target) -> LayerCertificate:
    module = model.get_submodule(target.module_name)
    stored = module._parameters[target.tensor_name]
    assert stored is not None
    return context.row(target.name, module, target, stored.detach(), None)


class _Context:
    """What all rows of one certificate share: the question, and what was computed once for several tensors."""

    def __init__(self, levels: _Levels, radius: float | None, norm: Norm, dtype: torch.dtype | None):
        self.levels, self.radius, self.norm, self.dtype = levels, radius, norm, dtype
        self.spectra: dict[Constraint, Spectrum | None] = {}
        self.distances: dict[Representation, float | None] = {}

    def row(
        self,
        name: str,
        module: nn.Module,
        target: Target,
        stored: torch.Tensor,
        spectrum: Spectrum | MatrixFreeSpectrum | None,
    ) -> LayerCertificate:
        """Certify one tensor as it would be after rounding to the dtype asked for."""
        # rounding again would part the orbits that fold made equal; a cast keeps equal entries equal
        stored = stored if self.dtype is None else stored.to(self.dtype)
        constraint, layout = target.constraint, target.layout
        weights = layout.weights(stored)
        level, notes = self.levels.of(name, module, target)
        norm, weights, remarks = self._normed(module, layout.kind, level, weights)
        if norm == "spectral":
            found = certify_operator(*_as_operator(constraint, weights), self.radius)
        else:
            found = certify_weight(constraint, weights, self.radius, self._spectrum(constraint, spectrum))
        roundoff = torch.finfo(stored.dtype).eps / 2
        return LayerCertificate(
            name=name,
            bound=found.bound,
            kind=found.kind,
            level=level,
            norm=norm,
            radius=found.radius,
            measured=found.measured,
            absolute=found.absolute,
            a_priori=None,
            allowance=2 * gamma(constraint.rep_in.dim) * roundoff / UNIT_ROUNDOFF,
            group=constraint.rep_in.group.name,
            representation=(
                constraint.rep_in.name
                if constraint.invariant
                else f"{constraint.rep_in.name} -> {constraint.rep_out.name}"
            ),
            response="-",
            dial="-",
            dtype=str(stored.dtype).removeprefix("torch."),
            elements=found.elements,
            notes=(*notes, *remarks),
            hypotheses=found.hypotheses,
            weights=tensor_hash(stored),
            layout=layout.to_tuple(),
            interpolation=self._distance(constraint.rep_in, found.radius),
        )

    def _normed(
        self, module: nn.Module, kind: str, level: str, weights: torch.Tensor
    ) -> tuple[str, torch.Tensor, tuple[str, ...]]:
        """The norm of the row and the weights whose Frobenius norm it is."""
        if self.norm == "frobenius" or kind == "linear":
            return self.norm, weights, ()
        if self.norm == "spectral" and kind == "convolution":
            return self.norm, weights, ()
        if kind != "convolution":
            return "frobenius", weights, (f"norm='{self.norm}' is one of maps: a {kind} keeps the Frobenius norm",)
        counts = self.levels.tap_counts(module) if level == "image" else None
        if counts is None:
            reason = "norm='jacobian' needs a layer that is certified at image level, with zero padding and image_size="
            return "frobenius", weights, (reason,)
        return self.norm, weights.double() * counts.flatten().sqrt().to(weights.device), ()

    def _spectrum(self, constraint: Constraint, known: Spectrum | MatrixFreeSpectrum | None) -> Spectrum | None:
        if not splits_by_spectrum(constraint):
            return None
        if isinstance(known, Spectrum):
            return known
        if constraint not in self.spectra:
            built = build_spectrum(constraint)
            self.spectra[constraint] = built if isinstance(built, Spectrum) else None
        return self.spectra[constraint]

    def _distance(self, rep: Representation, radius: float) -> float | None:
        if rep not in self.distances:
            rotates = isinstance(rep, Pixels) and len(rep.shape) == 2 and rep.is_orthogonal and not rep.is_permutation
            self.distances[rep] = interpolation_distance(rep, radius) if rotates else None
        return self.distances[rep]


def _as_operator(constraint: Constraint, weights: torch.Tensor) -> tuple[Constraint, torch.Tensor]:
    """The map of a patch: a kernel ``[out, in, d]`` of invariant vectors as one matrix ``[out, in d]``."""
    if not constraint.invariant:
        return constraint, weights
    matrix = weights.reshape(weights.shape[0] if weights.ndim > 1 else 1, -1)
    into, out = matrix.shape[1] // constraint.rep_in.dim, matrix.shape[0]
    return Constraint.equivariants(into * constraint.rep_in, out * constraint.rep_out), matrix


def _a_priori(filter_: Filter, radius: float, relative_to: Literal["result", "original"]) -> float | None:
    try:
        return filter_.bound(radius, relative_to=relative_to)
    except EquidialError:
        return None


class _Levels:
    """What a row may speak of: the kernel alone, the layer, or the image."""

    def __init__(self, config: SoftEquivarianceConfig, sizes: Mapping[int, tuple[int, ...]]):
        self.group, self.sizes = config.group_object, sizes

    def tap_counts(self, module: nn.Module) -> torch.Tensor | None:
        """:meth:`Window.tap_counts` of a layer with a known input size; ``None`` where padding is not zeros."""
        window, size = Window.of(module), self.sizes.get(id(module))
        padding = getattr(module, "padding_mode", "zeros")
        if window is None or size is None or padding not in ("zeros", "circular"):
            return None
        return torch.ones(window.kernel, dtype=torch.float64) if padding == "circular" else window.tap_counts(size)

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
        if kind == "table" and not isinstance(module, _NORMS):
            return "image", ()
        return self._convolution(module)

    def _convolution(self, module: nn.Module) -> tuple[str, tuple[str, ...]]:
        window = Window.of(module)
        if window is None or not acts_by_lattice(self.group):
            kind = type(module).__name__.removeprefix("Parametrized")
            return "kernel", (f"no window rule for {kind}: the bound speaks of the kernel alone",)
        reason = image_level(window, self.group, self.sizes.get(id(module)))
        return ("image", ()) if reason is None else ("kernel", (reason,))
