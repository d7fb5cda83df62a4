"""Continuous kernels: feature maps of relative and absolute coordinates, to which a layer is linear.

A kernel is ``k(a, b) = sum_m Theta_m phi_m(a, b)``: ``a`` the coordinates of ``u^-1 v`` (stationary, "filter space"),
``b`` those of ``u`` itself (non-stationary, "domain space"). The layer owns ``Theta``, a feature map computes ``phi``.
Both kinds of coordinates enter the first layer as a sum, so that ``omega' = 0`` adds exact zeros to what a strict
kernel computes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from equidial.errors import ArgumentError, explain, nearest_names


class KernelFeatures(nn.Module):
    """``phi: (a, b) -> R^features``; the interface of every continuous kernel.

    Attributes:
        stationary: number of coordinates of ``u^-1 v``.
        domain: number of coordinates of ``u``, 0 for a strict kernel.
        features: number of features.

    Law: ``phi(a, b) = phi(a, none)`` bit for bit where ``b = 0``.
    """

    def __init__(self, stationary: int, domain: int, features: int):
        super().__init__()
        for name, value, least in (("stationary", stationary, 0), ("domain", domain, 0), ("features", features, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(explain(f"{name} >= {least}, an integer", repr(value), "e.g. 32 features"))
        self.stationary, self.domain, self.features = stationary, domain, features

    @abstractmethod
    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """Features ``[..., features]`` of scaled coordinates ``a [..., stationary]`` and ``b [..., domain]``.

        The leading axes broadcast; ``b=None`` stands for zeros.
        """

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"stationary={self.stationary}, domain={self.domain}, features={self.features}"


class SirenFeatures(KernelFeatures):
    """``sin(V sin(A a + B b + c) + d)``: a network of sines, as deep as asked.

    Args:
        stationary, domain, features: see :class:`KernelFeatures`.
        layers: number of layers of sines, 1 or more, each of width ``features``.
        constant: one further feature that is 1, which makes a bias of the kernel.

    Start: ``A`` uniform in ``+-1/stationary``, ``B`` in ``+-1``, so that a frequency ``omega'`` reaches harmonics up
    to ``omega'``; phases ``c`` uniform in ``+-pi``; deeper weights uniform in ``+-sqrt(6/width)`` with phases 0, which
    keeps the variance of the features at 1/2. Source: Sitzmann et al. 2020 (SIREN); paper B, Eq. 7.
    """

    def __init__(self, stationary: int, domain: int, features: int, layers: int = 2, constant: bool = False):
        super().__init__(stationary, domain, features + constant)
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
            raise ArgumentError(explain("layers >= 1, an integer", repr(layers), "e.g. layers=2"))
        self.constant = constant
        self.relative = nn.Linear(stationary, features) if stationary else None
        self.absolute = nn.Linear(domain, features, bias=False) if domain else None
        self.phase = None if stationary else nn.Parameter(torch.empty(features))
        self.hidden = nn.ModuleList(nn.Linear(features, features) for _ in range(layers - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        if self.relative is not None:
            nn.init.uniform_(self.relative.weight, -1 / self.stationary, 1 / self.stationary)
        nn.init.uniform_(self._phase, -math.pi, math.pi)
        if self.absolute is not None:
            nn.init.uniform_(self.absolute.weight, -1, 1)
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.uniform_(layer.weight, -math.sqrt(6 / layer.in_features), math.sqrt(6 / layer.in_features))
            nn.init.zeros_(layer.bias)

    @property
    def _phase(self) -> torch.Tensor:
        phase = self.relative.bias if self.relative is not None else self.phase
        assert phase is not None
        return phase

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """The sines."""
        z = self.relative(a) if self.relative is not None else self._phase + a.new_zeros(*a.shape[:-1], 1)
        z = torch.sin(z) if self.absolute is None or b is None else sine_of_sum(z, self.absolute(b))
        for layer in self.hidden:
            z = torch.sin(layer(z))
        return with_constant(z) if self.constant else z


class _SineOfSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (torch.sin(x) * torch.cos(y)).addcmul_(torch.cos(x), torch.sin(y))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = ctx.saved_tensors
        slope = torch.addcmul(torch.cos(x) * torch.cos(y), torch.sin(x), torch.sin(y), value=-1)
        found = grads[0] * slope
        return found.sum_to_size(x.shape), found.sum_to_size(y.shape)


def sine_of_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``sin(x + y)`` of two small tensors that broadcast to a large one: no sine of a large tensor, none kept.

    ``sin x cos y + cos x sin y``: exactly ``sin x`` where ``y = 0``. Twice differentiable. Cost: two products of the
    large tensor's size, three backward. A compiler gets the sum, which it fuses with the sine.
    """
    if torch.compiler.is_compiling():
        return torch.sin(x + y)
    found: Any = _SineOfSum.apply(x, y)
    return found


class FourierFeatures(KernelFeatures):
    """Random Fourier features of Eq. 7 with a network on top: ``act(V [gamma(a); gamma(b) - gamma(0)] + c)``.

    ``gamma(a) = sqrt(1/D) [cos(W a); sin(W a)]`` with ``W`` normal and fixed (a buffer), ``V`` and ``c`` trained.
    Coordinates come in radians, which takes the place of the factor ``2 pi`` of the paper; ``gamma(0)`` is a constant
    that only moves ``c``, and without it ``omega' = 0`` adds exact zeros.

    Args:
        stationary, domain, features: see :class:`KernelFeatures`.
        frequencies: ``D``.
        activation: of the network, a function on tensors.
        constant: one further feature that is 1.

    Start: rows of ``V`` normal with variance 2, ``|gamma| = 1``, ``c`` uniform in ``+-1``. Source: paper B, Eq. 7;
    Tancik et al. 2020.
    """

    def __init__(
        self,
        stationary: int,
        domain: int,
        features: int,
        frequencies: int = 32,
        activation: Callable[[torch.Tensor], torch.Tensor] = functional.gelu,
        constant: bool = False,
    ):
        super().__init__(stationary, domain, features + constant)
        if isinstance(frequencies, bool) or not isinstance(frequencies, int) or frequencies < 1:
            raise ArgumentError(explain("frequencies >= 1, an integer", repr(frequencies), "e.g. frequencies=32"))
        self.constant, self.activation = constant, activation
        self.relative_frequencies: torch.Tensor | None
        self.absolute_frequencies: torch.Tensor | None
        self.register_buffer("relative_frequencies", torch.randn(frequencies, stationary) if stationary else None)
        self.register_buffer("absolute_frequencies", torch.randn(frequencies, domain) if domain else None)
        self.relative = nn.Linear(2 * frequencies, features)
        self.absolute = nn.Linear(2 * frequencies, features, bias=False) if domain else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the trained weights anew; the random frequencies stay."""
        nn.init.normal_(self.relative.weight, std=math.sqrt(2))
        nn.init.uniform_(self.relative.bias, -1, 1)
        if self.absolute is not None:
            nn.init.normal_(self.absolute.weight, std=math.sqrt(2))

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """The network on both embeddings."""
        w = self.relative_frequencies
        z = self.relative(embedding(a, w)) if w is not None else self.relative.bias + a.new_zeros(*a.shape[:-1], 1)
        w = self.absolute_frequencies
        if self.absolute is not None and w is not None and b is not None:
            z = z + self.absolute(embedding(b, w) - embedding(torch.zeros_like(b), w))
        z = self.activation(z)
        return with_constant(z) if self.constant else z


KERNELS: dict[str, Callable[..., KernelFeatures]] = {"siren": SirenFeatures, "fourier": FourierFeatures}
"""Feature maps by name; each is called with ``(stationary, domain, features)``."""

Kernel = str | Callable[[int, int, int], KernelFeatures]


def make_features(kernel: Kernel, stationary: int, domain: int, features: int) -> KernelFeatures:
    """The feature map asked for. Raises ``ArgumentError`` for an unknown name or a factory that makes another size."""
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise ArgumentError(
                explain(f"a kernel out of {', '.join(KERNELS)}", repr(kernel), f"try {nearest_names(kernel, KERNELS)}")
            )
        return KERNELS[kernel](stationary, domain, features)
    made = kernel(stationary, domain, features)
    if not isinstance(made, KernelFeatures) or (made.stationary, made.domain) != (stationary, domain):
        raise ArgumentError(
            explain(
                f"KernelFeatures of {stationary} relative and {domain} absolute coordinates",
                repr(made),
                "let the factory pass on its three arguments (stationary, domain, features)",
            )
        )
    return made


def embedding(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """``gamma``: ``[..., d]`` to ``[..., 2 D]`` for frequencies ``[D, d]``."""
    z = x @ frequencies.mT
    return torch.cat((torch.cos(z), torch.sin(z)), dim=-1) / math.sqrt(frequencies.shape[0])


def with_constant(z: torch.Tensor) -> torch.Tensor:
    """One further feature that is 1."""
    return torch.cat((z, torch.ones_like(z[..., :1])), dim=-1)
