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
from typing import Any

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups import GroupElement
from equidial.nn._continuous import ContinuousConv
from equidial.nn._coordinates import SPACE
from equidial.nn._samples import GroupSamples

_ROUNDING = 1e-14
"""Error of a feature evaluated in float64, relative to the features and to the largest scaled coordinate.

A sum of ``n`` products loses at most ``n u`` of its terms, and sines hand errors on with slope 1: 90 ``u`` per unit of
phase, for sums of up to ten terms behind which layers multiply errors by nine. At least ten units are counted. Measured
against extended precision, kernels of SIREN features lose a thousandth of it.
"""

_CHUNK = 1 << 22
_HELD = 1 << 26


@dataclass(frozen=True)
class LayerDefect:
    """``||K rho(g) - rho(g) K||_F / ||K||_F`` of one layer for each of some elements.

    Attributes:
        group: ``"C8"``, ``"D4"``, or ``"T1"``, ``"T2"`` for shifts by whole places.
        elements: in words, one per value; the identity is left out.
        distances: of the elements from the identity: radians, or places.
        values: the defects, float64; exactly 0 where both kernels have the same coordinates bit for bit.
        norm: ``||K||_F`` of what the values are relative to.
        errors: what evaluating the kernels may have lost of each value, 0 where it is exactly 0.
    """

    group: str
    elements: tuple[str, ...]
    distances: tuple[float, ...]
    values: tuple[float, ...]
    norm: float
    errors: tuple[float, ...] = ()

    @property
    def supremum(self) -> float:
        """The largest value."""
        return max(self.values, default=0.0)

    @property
    def bound(self) -> float:
        """The largest value with the rounding of its evaluation added; 0 where every value is exactly 0."""
        errors = self.errors or (0.0,) * len(self.values)
        return max((v + e for v, e in zip(self.values, errors, strict=True)), default=0.0)

    def within(self, radius: float) -> LayerDefect:
        """The elements no further from the identity than this."""
        kept = [i for i, d in enumerate(self.distances) if d <= radius * (1 + 1e-12)]
        elements = tuple(self.elements[i] for i in kept)
        distances, values = (tuple(row[i] for i in kept) for row in (self.distances, self.values))
        return LayerDefect(self.group, elements, distances, values, self.norm, tuple(self.errors[i] for i in kept))


def group_defect(layer: ContinuousConv, size: Sequence[int] | None = None) -> LayerDefect:
    """Defects under every sampled rotation and mirror, with the relaxed translations as they are.

    ``size``: output places, needed where the kernel varies in space, too; then only quarter turns and mirrors of a
    square have a meaning, others are left out. Raises ``ArgumentError`` for a layer without samples, and for a kernel
    that varies in space without ``size``. Cost: the sampled kernel twice per element.
    """
    if layer.samples is None:
        raise ArgumentError(explain("a layer with a group axis", f"a {type(layer).__name__}", "ask translation_defect"))
    work, samples = _Kernels(layer), layer.samples
    places = work.places(size) if work.moves else None
    norm, length = work.norms(places)
    found: list[tuple[str, float, float, float]] = []
    for g in samples.group.elements():
        if g == samples.group.identity():
            continue
        moved = None if places is None else _turned(places, g, samples, size)
        if places is not None and moved is None:
            continue
        order = samples.permutation(g)
        if work.alike((places, None), (moved, order)):
            found.append((str(g), g.distance(), 0.0, 0.0))
            continue
        parts = zip(work.features(places, None), work.features(moved, order), strict=True)
        total = sum(work.square(a - b) for a, b in parts)
        found.append((str(g), g.distance(), _ratio(total, norm), work.lost(places, length, norm)))
    return _collected(samples.group.name, found, norm / work.layer.coordinates.inputs)


def translation_defect(layer: ContinuousConv, size: Sequence[int], reach: int | None = None) -> LayerDefect:
    """Defects under shifts along each relaxed axis by ``1 .. reach`` places, relative to the kernels that both share.

    ``size``: output places. ``reach``: default half of the longest axis. All samples are taken together; places that a
    shift moves out of the domain do not count. Raises ``ArgumentError`` for a size that is no size of the image axes.
    Cost: the kernels' features once per place, where they need more than half a gigabyte once per place and shift.
    """
    work = _Kernels(layer)
    sizes = tuple(size)
    places = work.places(sizes)
    norm, length = work.norms(places)
    name = f"T{len(sizes)}"
    if not work.moves:
        return LayerDefect(name, (), (), (), norm / work.layer.coordinates.inputs)
    held = work.held(places)
    numbers = torch.arange(len(places)).unflatten(0, sizes)
    found = []
    most = max(sizes) // 2 if reach is None else reach
    for axis, word in enumerate(("rows", "columns")[-len(sizes) :]):
        for step in range(1, min(most, sizes[axis] - 1) + 1):
            a = numbers.narrow(axis, step, sizes[axis] - step).flatten()
            b = numbers.narrow(axis, 0, sizes[axis] - step).flatten()
            if work.alike((places[a], None), (places[b], None)):
                found.append((f"{step} {word}", float(step), 0.0, 0.0))
                continue
            apart, together = 0.0, 0.0
            for i, j in zip(*(work.split(places, rows) for rows in (a, b)), strict=True):
                first, second = (held[k] if held is not None else work.at(places[k]) for k in (i, j))
                apart += work.square(first - second)
                together += (work.square(first) + work.square(second)) / 2
            shared = math.sqrt(together)
            found.append((f"{step} {word}", float(step), _ratio(apart, shared), work.lost(places, length, shared)))
    return _collected(name, found, norm / work.layer.coordinates.inputs)


def _ratio(square: float, norm: float) -> float:
    return math.sqrt(square) / norm if norm else 0.0


def _collected(group: str, found: list[tuple[str, float, float, float]], norm: float) -> LayerDefect:
    elements, distances, values, errors = zip(*found, strict=True) if found else ((), (), (), ())
    return LayerDefect(group, tuple(elements), tuple(distances), tuple(values), norm, tuple(errors))


def in_float64(layer: ContinuousConv) -> ContinuousConv:
    """A copy on the CPU in float64, in evaluation, without a random offset."""
    work = copy.deepcopy(layer).to("cpu", torch.float64).eval()
    if work.samples is not None:
        work.samples.offset = 0.0
    return work


def moves_in_space(layer: ContinuousConv) -> bool:
    """Whether the kernel differs from place to place, at the present frequencies."""
    return any(layer.omega_prime.value(axis) for axis in SPACE)


class _Kernels:
    """The sampled kernels of a layer, in float64, a few places at a time; places stand first."""

    def __init__(self, layer: ContinuousConv):
        self.layer = in_float64(layer)
        self.moves = moves_in_space(layer)
        weight = self.layer.weight.detach().flatten(0, 1)
        # ||weight phi|| = ||R phi||: not through the Gram matrix, whose root forgets half of the digits
        self.root = torch.linalg.qr(weight, mode="r").R

    def places(self, size: Sequence[int] | None) -> torch.Tensor:
        axes = len(self.layer.windows.kernel)
        if size is None or len(size) != axes or any(n < 1 for n in size):
            raise ArgumentError(
                explain(f"size= of {axes} axes for a kernel that varies in space", repr(size), "give the output's size")
            )
        return self.layer.coordinates.places(tuple(size))

    def at(self, places: torch.Tensor | None, order: torch.Tensor | None = None) -> torch.Tensor:
        """Features ``[.., M]`` that stand for the kernel."""
        with torch.no_grad():
            return self.layer.sampled_features(places, order)[0]

    def features(self, places: torch.Tensor | None, order: torch.Tensor | None) -> Iterator[torch.Tensor]:
        if places is None:
            yield self.at(None, order)
            return
        for part in self.split(places, places):
            yield self.at(part, order)

    def split(self, places: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one = self.at(places[:1]).numel()
        return rows.split(max(1, _CHUNK // one))

    def held(self, places: torch.Tensor) -> torch.Tensor | None:
        """All features, where they are not too many."""
        if self.at(places[:1]).numel() * len(places) > _HELD:
            return None
        return torch.cat(list(self.features(places, None)))

    def square(self, phi: torch.Tensor) -> float:
        """``||sum_m weight_m phi_m||^2``; no kernel is formed."""
        return float((phi.reshape(-1, phi.shape[-1]) @ self.root.mT).square().sum())

    def norms(self, places: torch.Tensor | None) -> tuple[float, float]:
        """``||K||`` and ``||phi||``."""
        squares = [(self.square(phi), float(phi.square().sum())) for phi in self.features(places, None)]
        return math.sqrt(sum(s for s, _ in squares)), math.sqrt(sum(s for _, s in squares))

    def alike(self, a: tuple[Any, Any], b: tuple[Any, Any]) -> bool:
        """Whether the kernels at these places and samples have the same coordinates, bit for bit."""
        with torch.no_grad():
            first, second = (self.layer.coordinates.absolute(self.layer.weight, *given) for given in (a, b))
        return first is None or second is None or torch.equal(first, second)

    def lost(self, places: torch.Tensor | None, length: float, norm: float) -> float:
        """What a difference of two kernels may have lost, relative to ``norm``."""
        return 2 * self.error(places, length) / norm if norm else 0.0

    def error(self, places: torch.Tensor | None, length: float) -> float:
        """What the kernels, of features of norm ``length``, may have lost."""
        with torch.no_grad():
            given = self.layer.coordinates
            a = given.relative(given.taps(), self.layer.weight)
            b = given.absolute(self.layer.weight, places)
            phase = max(float(x.abs().max()) if x is not None and x.numel() else 0.0 for x in (a, b))
        return _ROUNDING * max(phase, 10.0) * float(self.root.norm()) * length


def kernel_error(layer: ContinuousConv, size: Sequence[int] | None = None) -> float:
    """What the kernel may lose when it is evaluated in float64, Frobenius; with ``size`` those of all output places."""
    work = _Kernels(layer)
    places = None if size is None else work.places(size)
    return work.error(places, work.norms(places)[1]) / work.layer.coordinates.inputs


def _turned(
    places: torch.Tensor, g: GroupElement, samples: GroupSamples, size: Sequence[int] | None
) -> torch.Tensor | None:
    """``g^-1 p`` for every place; ``None`` where that is no place."""
    quarters = samples.group.quarter_turns_and_mirror(g)
    if quarters is None or (quarters[0] % 2 and size is not None and len(set(size)) > 1):
        return None
    inverse = samples.group.planar_matrix(g.inverse()).round()
    return places @ inverse.mT
