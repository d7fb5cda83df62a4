"""Exact defects of layers with a continuous kernel, from the sampled kernel alone.

The layer is linear, ``(K f)(u) = sum_v k(u^-1 v, u) f(v)``, and so

    ((K rho(g) - rho(g) K) f)(u) = sum_v [k(u^-1 g v, u) - k(u^-1 g v, g^-1 u)] f(v)

The first arguments run over the same taps and samples in both terms: the defect is the distance between the kernels
at ``u`` and at ``g^-1 u``, summed over ``u``. It needs no image. For quarter turns and mirrors, which permute the
grid of pixels, it is the defect of the layer on images; for other sampled rotations it speaks of the kernel. Along
translations ``u`` and ``g^-1 u`` must both be places of the domain: places that a shift moves out of it do not count.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups import GroupElement
from equidial.nn._continuous import ContinuousConv
from equidial.nn._samples import GroupSamples

_ROUNDING = 1e-11
"""Relative error of a kernel evaluated in float64: sines of phases up to a thousand, a few hundred operations."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class LayerDefect:
    """``||K rho(g) - rho(g) K||_F / ||K||_F`` of one layer for each of some elements.

    Attributes:
        group: ``"C8"``, ``"D4"``, or ``"T1"``, ``"T2"`` for shifts by whole places.
        elements: in words, one per value; the identity is left out.
        distances: of the elements from the identity: radians, or places.
        values: the defects, float64.
        norm: ``||K||_F`` of what the values are relative to.
    """

    group: str
    elements: tuple[str, ...]
    distances: tuple[float, ...]
    values: tuple[float, ...]
    norm: float

    @property
    def supremum(self) -> float:
        """The largest value."""
        return max(self.values, default=0.0)

    @property
    def bound(self) -> float:
        """The largest value with the rounding of its evaluation added; 0 stays 0 (equal kernels bit for bit)."""
        return 0.0 if self.supremum == 0 else self.supremum + _ROUNDING

    def within(self, radius: float) -> LayerDefect:
        """The elements no further from the identity than this."""
        kept = [i for i, d in enumerate(self.distances) if d <= radius * (1 + 1e-12)]
        elements = tuple(self.elements[i] for i in kept)
        distances, values = (tuple(row[i] for i in kept) for row in (self.distances, self.values))
        return LayerDefect(self.group, elements, distances, values, self.norm)


def group_defect(layer: ContinuousConv, size: Sequence[int] | None = None) -> LayerDefect:
    """Defects under every sampled rotation and mirror, with the relaxed translations as they are.

    ``size``: output places, needed where the kernel varies in space, too; then only quarter turns and mirrors of a
    square have a meaning, others are left out. Raises ``ArgumentError`` for a layer without samples, and for a kernel
    that varies in space without ``size``. Cost: the sampled kernel once per element.
    """
    if layer.samples is None:
        raise ArgumentError(explain("a layer with a group axis", f"a {type(layer).__name__}", "ask translation_defect"))
    work, samples = in_float64(layer), layer.samples
    places = _places(work, size) if layer.varies_in_space else None
    base = list(_kernels(work, places, None))
    norm = math.sqrt(sum(float(_square(work, part)) for part in base))
    found: list[tuple[str, float, float]] = []
    for g in samples.group.elements():
        if g == samples.group.identity():
            continue
        moved = None if places is None else _turned(places, g, samples, size)
        if places is not None and moved is None:
            continue
        other = _kernels(work, moved, samples.permutation(g))
        total = sum(float(_square(work, a - b)) for a, b in zip(base, other, strict=True))
        found.append((str(g), g.distance(), math.sqrt(total) / norm if norm else 0.0))
    return _collected(samples.group.name, found, norm)


def translation_defect(layer: ContinuousConv, size: Sequence[int], reach: int | None = None) -> LayerDefect:
    """Defects under shifts along each relaxed axis by ``1 .. reach`` places, relative to the kernels that both share.

    ``size``: output places. ``reach``: default half of the longest axis. All samples are taken together. Raises
    ``ArgumentError`` for a size that is no size of the image axes. Cost: the kernels' features once per place.
    """
    work = in_float64(layer)
    sizes = tuple(size)
    kernels = torch.cat(list(_kernels(work, _places(work, sizes), None))).unflatten(0, sizes)
    name = f"T{len(sizes)}"
    if not layer.varies_in_space:
        return LayerDefect(name, (), (), (), math.sqrt(float(_square(work, kernels))))
    found = []
    most = max(sizes) // 2 if reach is None else reach
    for axis, word in enumerate(("rows", "columns")[-len(sizes) :]):
        for step in range(1, min(most, sizes[axis] - 1) + 1):
            a, b = kernels.narrow(axis, step, sizes[axis] - step), kernels.narrow(axis, 0, sizes[axis] - step)
            base = float(_square(work, a)) + float(_square(work, b))
            value = math.sqrt(float(_square(work, a - b)) / (base / 2)) if base else 0.0
            found.append((f"{step} {word}", float(step), value))
    return _collected(name, found, math.sqrt(float(_square(work, kernels))))


def _collected(group: str, found: list[tuple[str, float, float]], norm: float) -> LayerDefect:
    elements, distances, values = zip(*found, strict=True) if found else ((), (), ())
    return LayerDefect(group, tuple(elements), tuple(distances), tuple(values), norm)


def in_float64(layer: ContinuousConv) -> ContinuousConv:
    """A copy on the CPU in float64, in evaluation, without a random offset."""
    work = copy.deepcopy(layer).to("cpu", torch.float64).eval()
    if work.samples is not None:
        work.samples.offset = 0.0
    return work


def _places(layer: ContinuousConv, size: Sequence[int] | None) -> torch.Tensor:
    axes = len(layer.windows.kernel)
    if size is None or len(size) != axes or any(n < 1 for n in size):
        raise ArgumentError(
            explain(f"size= of {axes} axes for a kernel that varies in space", repr(size), "give the output's size")
        )
    return layer.coordinates.places(tuple(size))


def _kernels(layer: ContinuousConv, places: torch.Tensor | None, order: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Features ``[.., M]`` that stand for the kernel, a few places at a time."""
    with torch.no_grad():
        if places is None:
            yield layer.sampled_features(None, order)[0]
            return
        one = math.prod(layer.sampled_features(places[:1], order)[0].shape)
        for part in places.split(max(1, _CHUNK // one)):
            yield layer.sampled_features(part, order)[0]


def _square(layer: ContinuousConv, phi: torch.Tensor) -> torch.Tensor:
    """``||sum_m weight_m phi_m||^2`` through the Gram matrix of the weight; no kernel is formed."""
    weight = layer.weight.detach()
    gram = torch.einsum("ocm,ocn->mn", weight, weight)
    flat = phi.reshape(-1, phi.shape[-1])
    return ((flat @ gram) * flat).sum().clamp_min(0)


def _turned(
    places: torch.Tensor, g: GroupElement, samples: GroupSamples, size: Sequence[int] | None
) -> torch.Tensor | None:
    """``g^-1 p`` for every place; ``None`` where that is no place."""
    quarters = samples.group.quarter_turns_and_mirror(g)
    if quarters is None or (quarters[0] % 2 and size is not None and len(set(size)) > 1):
        return None
    inverse = samples.group.planar_matrix(g.inverse()).round()
    return places @ inverse.mT
