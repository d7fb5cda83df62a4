"""How the error of a network grows from module to module: pure propagation, no models.

With ``h_l`` the values at ``x``, ``h'_l`` those at ``rho(g) x``, ``D_l = ||h'_l - rho_l(g) h_l||`` (theory 4)

    linear layer W h + c:      D_l <= K_l D_{l-1} + e_l ||h_{l-1}|| + ||c - rho_l(g) c||,   e_l = ||W rho - rho W||_2
    equivariant, K-Lipschitz:  D_l <= K_l D_{l-1}
    sum of branches:           D <= D_a + D_b,     concatenation:  D^2 = D_a^2 + D_b^2

for any choice of the intermediate actions. Where the value at a centre is at hand, ``e_l ||h||`` is replaced by
``||(W rho - rho W) h_centre|| + e_l ||h - h_centre||`` if that is less. The size ``||h_l||`` comes from one forward
pass at a centre (the input itself, or 0 for a ball) and from how far the value can lie from there,
``reach_l <= K_l reach_{l-1}``: no larger than through ``||h_l|| <= K_l ||h_{l-1}|| + ||f_l(0)||``. What the float64
forward pass may have lost is carried along, ``rounding_l <= K_l rounding_{l-1} + own``, and added to the size. All
results are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from equidial.certificates._operator import up_tensor

LIPSCHITZ: Mapping[str, float] = {
    "relu": 1.0,
    "relu6": 1.0,
    "hardtanh": 1.0,
    "tanh": 1.0,
    "tanhshrink": 1.0,
    "softsign": 1.0,
    "softplus": 1.0,
    "logsigmoid": 1.0,
    "softshrink": 1.0,
    "celu": 1.0,
    "abs": 1.0,
    "sin": 1.0,
    "cos": 1.0,
    "sigmoid": 0.25,
    "hardsigmoid": 0.1666666717,
    "hardswish": 1.5,
    "selu": 1.7580993408473769,
    "gelu": 1.1289041452,
    "gelu_tanh": 1.1289930688,
    "silu": 1.0998393202,
    "mish": 1.0884981613,
}
"""Largest slopes of real functions, rounded up: Lipschitz constants when they act entry by entry.

hardsigmoid: torch rounds its slope 1/6 to float32.
"""


def slope_bound(name: str, parameter: float = 0.0) -> float:
    """The Lipschitz constant of a function of :data:`LIPSCHITZ`, or of one with a parameter.

    ``leaky_relu`` and ``prelu``: ``max(1, |slope|)``; ``elu``: ``max(1, alpha)``. Raises ``KeyError`` for others.
    """
    if name in ("leaky_relu", "prelu", "elu"):
        return max(1.0, abs(parameter))
    return LIPSCHITZ[name]


@dataclass(frozen=True)
class Bounds:
    """What is known of one intermediate value, for ``B`` inputs and ``E`` group elements (1: a supremum over all).

    Attributes:
        center: ``[B]``, norm of the computed value at the centre.
        reach: ``[B]``, how far the value at any input that the statement speaks of lies from it.
        rounding: ``[B]``, how far the computed value lies from the exact one.
        defect: ``[B, E]``, bound of ``||h'(g) - rho(g) h||``.
        parts: the defect by the step that caused it, each ``[B, E]``; they add up to it.
    """

    center: torch.Tensor
    reach: torch.Tensor
    rounding: torch.Tensor
    defect: torch.Tensor
    parts: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def source(cls, center: torch.Tensor, reach: float | torch.Tensor, elements: int, rounding: float = 0.0) -> Bounds:
        """An input, moved as it should be; ``rounding`` is relative to its norm."""
        return cls(center, torch.zeros_like(center) + reach, rounding * center, center.new_zeros(len(center), elements))

    @classmethod
    def constant(cls, center: torch.Tensor, defect: torch.Tensor, step: int) -> Bounds:
        """A constant ``c`` with defects ``||c - rho(g) c||``, ``[E]``, taking part in every input."""
        zero = torch.zeros_like(center)
        whole = defect.expand(len(center), -1)
        return cls(center, zero, zero, whole, {step: whole})

    @property
    def size(self) -> torch.Tensor:
        """``[B]``, bound of ``||h||`` for every input that the statement speaks of."""
        return up_tensor(self.center + self.rounding + self.reach)

    def linear(
        self,
        center: torch.Tensor,
        gain: float | torch.Tensor,
        rounding: torch.Tensor,
        step: int,
        defect: torch.Tensor,
        offset: torch.Tensor | None = None,
        direct: torch.Tensor | None = None,
    ) -> Bounds:
        """After ``W h + c``: ``gain >= ||W||``, ``defect >= ||W rho - rho W||``, ``offset >= ||c - rho c||`` (``[E]``).

        ``center``: norm of the result at the centre; ``rounding``: what computing it lost, ``[B]``; ``direct``: where
        known, ``||(W rho - rho W) h||`` at the computed centre, ``[B, E]``, which may be far below ``defect * size``.
        """
        through = self.lipschitz(center, gain, rounding)
        own = up_tensor(self.size[:, None] * defect)
        if direct is not None:
            own = torch.minimum(own, up_tensor(direct + (self.rounding + self.reach)[:, None] * defect))
        if offset is not None:
            own = up_tensor(own + offset)
        return Bounds(
            through.center,
            through.reach,
            through.rounding,
            up_tensor(through.defect + own),
            {**through.parts, step: own},
        )

    def lipschitz(self, center: torch.Tensor, gain: float | torch.Tensor, rounding: torch.Tensor) -> Bounds:
        """After an equivariant map with Lipschitz constant ``gain``, a number or ``[B]``."""
        k = torch.as_tensor(gain, dtype=torch.float64).expand_as(self.center)
        return Bounds(
            center,
            up_tensor(k * self.reach),
            up_tensor(k * self.rounding + rounding),
            up_tensor(k[:, None] * self.defect),
            {step: up_tensor(k[:, None] * part) for step, part in self.parts.items()},
        )

    def plus(self, other: Bounds, center: torch.Tensor, rounding: torch.Tensor) -> Bounds:
        """After adding two values that the group moves alike."""
        return Bounds(
            center,
            up_tensor(self.reach + other.reach),
            up_tensor(self.rounding + other.rounding + rounding),
            up_tensor(self.defect + other.defect),
            _sum_of_parts([(self, 1.0), (other, 1.0)]),
        )


def concatenated(values: Sequence[Bounds], center: torch.Tensor) -> Bounds:
    """After laying values side by side: every quantity adds in squares."""

    def together(name: str) -> torch.Tensor:
        found = [getattr(v, name) for v in values]
        return up_tensor(sum((f.square() for f in found), start=torch.zeros(())).sqrt())

    defect = together("defect")
    # D = sum_i D_i (D_i / D): what caused D_i caused this share of the whole
    safe = torch.where(defect > 0, defect, torch.ones_like(defect))
    parts = _sum_of_parts([(v, v.defect / safe) for v in values])
    return Bounds(center, together("reach"), together("rounding"), defect, parts)


def _sum_of_parts(values: Sequence[tuple[Bounds, float | torch.Tensor]]) -> dict[int, torch.Tensor]:
    total: dict[int, torch.Tensor] = {}
    for bounds, share in values:
        for step, part in bounds.parts.items():
            total[step] = up_tensor(total[step] + part * share) if step in total else up_tensor(part * share)
    return total


def overlap(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> tuple[int, int]:
    """Along one axis: the most windows that one pixel falls in, and the fewest pixels that one window holds."""
    windows = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    counts, fewest = [0] * size, kernel
    for window in range(windows):
        pixels = [window * stride - before + dilation * tap for tap in range(kernel)]
        inside = [p for p in pixels if 0 <= p < size]
        fewest = min(fewest, len(inside))
        for p in inside:
            counts[p] += 1
    return max(counts, default=0), fewest


def normalisation_gain(centred_norm: torch.Tensor, distance: torch.Tensor, count: int, eps: float) -> torch.Tensor:
    """Lipschitz constant, seen from one point, of ``x -> (x - mean) / sqrt(var + eps)`` on ``count`` numbers.

    With ``v = (x - mean, sqrt(count eps))`` the map is ``sqrt(count) v / |v|`` but for the last entry, and
    ``|v/|v| - w/|w|| <= 2 |v - w| / (|v| + |w|)`` (Dunkl and Williams 1964). ``centred_norm``: ``||x - mean||`` of a
    point within ``distance`` of the one meant. Never more than the global ``1 / sqrt(eps)``.
    """
    least = math.sqrt(count * eps) * (1 - 1e-15)
    there = (centred_norm * (1 - 1e-14) - distance).clamp_min(0)
    return up_tensor(2 * math.sqrt(count) / (torch.hypot(there, torch.full_like(there, least)) + least))
