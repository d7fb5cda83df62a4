"""certify: the rows of layers of equidial.nn with a continuous kernel, exact from the kernel as it is sampled.

One row for the group axis, under the name of the layer; one for translations where the kernel may vary in space, under
that name and ``:shifts``.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from equidial.adapters._geometry import Window, image_level
from equidial.adapters._state import tensor_hash
from equidial.certificates import UNIT_ROUNDOFF, LayerCertificate, gamma
from equidial.errors import ArgumentError, explain
from equidial.groups import GroupElement
from equidial.nn import ContinuousConv, LayerDefect, group_defect, moves_in_space, translation_defect

SAMPLES, SHIFTS = "samples", "shifts"
"""Layouts of these rows: what is moved, then the output places at which the kernels were compared."""

_SUFFIX = ":shifts"


def layer_rows(
    model: nn.Module,
    sizes: Mapping[int, tuple[int, ...]],
    radius: float | None = None,
    norm: str = "frobenius",
    dtype: torch.dtype | None = None,
    only: str | None = None,
) -> list[LayerCertificate]:
    """The rows of every layer with a continuous kernel, in module order.

    ``sizes``: of the input of each layer, by ``id``; a kernel that varies in space and has neither a size nor a
    ``domain_size`` abstains. ``radius``: radians on the group axis, places along translations. ``only``: the name of
    one row. Raises ``ArgumentError`` for another radius than a number >= 0 and for weights on the meta device.
    """
    _check(model, radius)
    rows = []
    for name, layer in _layers(model):
        rounded = layer if dtype is None else copy.deepcopy(layer).to(dtype)
        subject = _Subject(name, layer if dtype is None else rounded, sizes.get(id(layer)), norm)
        if layer.samples is not None and only in (None, name):
            rows.append(subject.of_group(radius))
        if layer.varies_in_space and only in (None, name + _SUFFIX):
            rows.append(subject.of_shifts(radius))
    return rows


def layer_row_names(model: nn.Module) -> list[str]:
    """The names of :func:`layer_rows`."""
    return [
        row
        for name, layer in _layers(model)
        for row, present in ((name, layer.samples is not None), (name + _SUFFIX, layer.varies_in_space))
        if present
    ]


def is_layer_row(row: LayerCertificate) -> bool:
    """Whether a row speaks of a layer with a continuous kernel, and not of one tensor."""
    return row.layout[0] in (SAMPLES, SHIFTS)


def amounts(layer: ContinuousConv) -> str:
    """``omega'`` in words: ``"omega' rotation 1.5 (learned), x 0.2"``; ``"strict"`` where no axis is relaxed."""
    found = layer.omega_prime
    words = [f"{axis} {found.value(axis):.6g}{' (learned)' if axis in found.learned else ''}" for axis in found.axes]
    return f"omega' {', '.join(words)}" if words else "strict"


def _layers(model: nn.Module) -> Iterator[tuple[str, ContinuousConv]]:
    for name, module in model.named_modules():
        if isinstance(module, ContinuousConv):
            yield name or "(the model)", module


def _check(model: nn.Module, radius: float | None) -> None:
    if radius is not None and (isinstance(radius, bool) or not isinstance(radius, int | float) or not radius >= 0):
        raise ArgumentError(explain("a radius >= 0", repr(radius), "e.g. radius=math.pi / 2"))
    for name, layer in _layers(model):
        if any(t.is_meta for t in layer.parameters()):
            raise ArgumentError(explain(f"weights in {name}", "meta tensors", "load the weights first"))


class _Subject:
    """One layer, what is known of its input, and what all its rows say."""

    def __init__(self, name: str, layer: ContinuousConv, size: tuple[int, ...] | None, norm: str):
        self.name, self.layer, self.size, self.norm = name, layer, size, norm
        window = Window.of(layer)
        assert window is not None, "layers with a continuous kernel have a window"
        self.window = window
        self.finite = all(bool(torch.isfinite(t).all()) for t in _tensors(layer).values() if t.is_floating_point())

    @property
    def places(self) -> tuple[int, ...] | None:
        """Output places at which kernels that vary in space are compared."""
        return self.layer.coordinates.domain_size if self.size is None else self.window.outputs(self.size)

    def of_group(self, radius: float | None) -> LayerCertificate:
        """All sampled rotations and mirrors."""
        layer, samples = self.layer, self.layer.samples
        assert samples is not None
        group, reach = samples.group, min(math.inf if radius is None else radius, samples.group.radius)
        places = self.places if moves_in_space(layer) else None
        within = "" if reach >= group.radius else f" within {reach:.6g} rad"
        shared = {
            "name": self.name,
            "radius": reach,
            "group": group.name,
            "representation": f"{'images' if layer.coordinates.lifts else group.name + ' samples'} -> "
            f"{group.name} samples",
            "layout": (SAMPLES, *(places or ())),
        }
        if why := self._abstains():
            return self._row(None, f"all of {group.name}" if not within else group.name + within, (why,), **shared)
        found = group_defect(layer, places).within(reach)
        by_name = {str(g): g for g in group.elements()}
        tried = [by_name[word] for word in found.elements]
        asked = [g for g in by_name.values() if g != group.identity() and g.distance() <= reach * (1 + 1e-12)]
        elements = f"all of {group.name}" if not within else group.name + within
        notes = list(self._notes())
        if len(tried) < len(asked):
            assert places is not None
            where = f"{'x'.join(map(str, places))} places"
            if not tried:
                why = f"abstained: the kernel varies in space, and no element of {group.name} permutes {where}"
                return self._row(None, elements, (why,), **shared)
            elements = f"{len(tried)} of {len(asked)} in {elements}: those that permute {where}"
            notes.append("the kernel varies in space: under elements that permute no places nothing is claimed of it")
        level, reasons = self._level(found, tried)
        return self._row(found, elements, (*reasons, *notes), level, **shared)

    def of_shifts(self, radius: float | None) -> LayerCertificate:
        """Shifts by whole places, along rows and columns."""
        layer, places = self.layer, self.places
        axes = len(layer.windows.kernel)
        shared = {"name": self.name + _SUFFIX, "group": f"T{axes}", "representation": "places -> places"}
        border = self._border()
        if not moves_in_space(layer):
            found = LayerDefect(f"T{axes}", (), (), (), 0.0) if self.finite else None
            notes, level = ((), "image") if border is None else ((border,), "kernel")
            shared |= {"radius": 1.0 if radius is None else float(radius), "layout": (SHIFTS,)}
            return self._row(found, "all shifts by whole places", notes, level, **shared)
        if (why := self._abstains()) or places is None:
            return self._row(None, "shifts by whole places", (why,), radius=radius or 0.0, layout=(SHIFTS,), **shared)
        half = max(places) // 2
        reach = half if radius is None else min(int(radius * (1 + 1e-12)), max(places) - 1)
        found = translation_defect(layer, places, reach)
        elements = f"shifts by 1 to {reach} places, by rows or by columns" if reach else "shifts by no place"
        if axes == 1 and reach:
            elements = f"shifts by 1 to {reach} places"
        inside = "each shift is judged on the places that stay in the domain, relative to their kernels"
        notes = (inside, *(() if border is None else (border,)))
        return self._row(found, elements, notes, "kernel", radius=float(reach), layout=(SHIFTS, *places), **shared)

    def _abstains(self) -> str:
        if not self.finite:
            return "abstained: its weights are not finite"
        if moves_in_space(self.layer) and self.places is None:
            return "abstained: the kernel varies in space: pass image_size= to tell its output places"
        return ""

    def _border(self) -> str | None:
        """What breaks translations besides the kernel; ``None`` on a torus without strides."""
        window, mode = self.window, self.layer.windows.mode
        reach = tuple(d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True))
        padded = tuple(b + a for b, a in zip(window.before, window.after, strict=True))
        if window.is_strided:
            return f"places of the output lie {window.stride} pixels apart: shifts by fewer pixels are no part of this"
        if mode == "circular" and padded == reach:
            return None
        if any(padded):
            return f"the padding ({mode}) breaks translations at the border, whatever the kernel"
        return "a shift brings new pixels in at the border"

    def _level(self, found: LayerDefect, tried: list[GroupElement]) -> tuple[str, tuple[str, ...]]:
        samples = self.layer.samples
        assert samples is not None
        permutes = [samples.group.quarter_turns_and_mirror(g) is not None for g in tried]
        if all(permutes):
            why = image_level(self.window, samples.group, self.size)
            return ("image", ()) if why is None else ("kernel", (why,))
        lattice = [v for v, p in zip(found.values, permutes, strict=True) if p]
        alone = f" ({self.name}: {max(lattice):.6g} for those that do)" if lattice else ""
        line = f"not all elements of {samples.group.name} permute pixels: the bound compares kernels{alone}"
        return "kernel", (f"{line}; it says nothing of the image",)

    def _notes(self) -> Iterator[str]:
        coordinates = self.layer.coordinates
        alias = coordinates.alias()
        if alias is not None:
            yield alias
        if coordinates.harmonics and coordinates.harmonic:
            yield f"harmonic {coordinates.harmonic} keeps the rotations of C{coordinates.kept_subgroup()} exact"

    def _row(
        self,
        found: LayerDefect | None,
        elements: str,
        notes: tuple[str, ...],
        level: str = "kernel",
        **shared: object,
    ) -> LayerCertificate:
        layer = self.layer
        fan_in = layer.in_channels // layer.groups * layer.coordinates.inputs * math.prod(layer.windows.kernel)
        if self.norm != "frobenius":
            notes = (*notes, f"norm='{self.norm}': the row of a continuous kernel keeps the Frobenius norm")
        row = LayerCertificate(
            bound=math.nan,
            kind="abstained",
            level=level,
            norm="frobenius",
            measured=0.0,
            absolute=math.nan,
            a_priori=None,
            allowance=2 * gamma(fan_in) * torch.finfo(layer.weight.dtype).eps / 2 / UNIT_ROUNDOFF,
            response="-",
            dial=amounts(layer),
            dtype=str(layer.weight.dtype).removeprefix("torch."),
            elements=elements,
            notes=notes,
            weights=_hash(layer),
            **shared,  # pyright: ignore[reportArgumentType]
        )
        if found is None:
            return row
        rests_on = ["the kernel at the stored weights, every element listed was tried"]
        if any(found.errors):
            rests_on.append(
                "evaluated in float64: features to 1e-14 of their norm for each unit of their largest coordinate, at "
                "least 1e-13, which the bound includes"
            )
        return replace(
            row,
            bound=found.bound,
            kind="exact",
            measured=found.supremum,
            absolute=found.bound * found.norm * (1 + 1e-12),
            hypotheses=tuple(rests_on),
        )


def _tensors(layer: ContinuousConv) -> dict[str, torch.Tensor]:
    """What the kernel depends on."""
    found = dict([*layer.named_parameters(), *layer.named_buffers()])
    found.pop("bias", None)
    return found


def _hash(layer: ContinuousConv) -> str:
    """SHA-256 of every tensor and number that the kernel depends on."""
    given = layer.coordinates
    numbers = [(axis, f.value(axis)) for f in (layer.omega, layer.omega_prime) for axis in f.axes]
    samples = None if layer.samples is None else layer.samples.group.name
    words = (samples, numbers, layer.windows, layer.groups, given.harmonics, given.relative_angle, given.support)
    digest = hashlib.sha256(repr((*words, given.domain_size)).encode())
    for name, tensor in sorted(_tensors(layer).items()):
        digest.update(f"{name} {tensor_hash(tensor)} ".encode())
    return digest.hexdigest()
