"""Convolutions on SE(2) and E(2): lifting, group convolutions, and point-wise ones, each soft where asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.nn._arguments import Size, read_windows, spelled, warn_of_broken_turns
from equidial.nn._continuous import ContinuousConv, Learned, Scales, as_frequencies
from equidial.nn._coordinates import Coordinates, RelativeAngle, Support
from equidial.nn._features import Kernel
from equidial.nn._frequencies import Frequencies
from equidial.nn._samples import GroupSamples

OMEGA = {"x": 10.0, "y": 10.0, "rotation": 10 / math.pi, "flip": 1.0}
"""Frequencies of ``u^-1 v`` that a layer takes unless told otherwise."""


class _PlanarConv(ContinuousConv):
    lifts = False
    pointwise = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group: str | Group | GroupSamples = "C8",
        omega: Mapping[str, float] | Frequencies | None = None,
        omega_prime: Mapping[str, float] | Frequencies | None = None,
        learn_omega: Learned = False,
        learn_omega_prime: Learned = False,
        harmonics: bool = False,
        relative_angle: RelativeAngle = "log",
        kernel: Kernel = "siren",
        features: int = 32,
        support: Support = "disk",
        domain_size: Size | None = None,
        nonlinearity: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        samples = group if isinstance(group, GroupSamples) else GroupSamples(group)
        windows = read_windows(2, kernel_size, stride, padding, dilation, padding_mode)
        axes = () if self.pointwise else ("x", "y")
        if not self.lifts:
            axes += ("rotation", "flip") if samples.has_mirrors else ("rotation",)
        absolute = ("x", "y", "rotation", "flip") if samples.has_mirrors else ("x", "y", "rotation")
        for name, value in (("omega", omega), ("omega_prime", omega_prime)):
            if isinstance(value, int | float):
                raise ArgumentError(
                    explain(
                        f"{name} by axis, because a group has several",
                        f"the number {value:g}",
                        f'e.g. {name}={{"rotation": {value:g}}}',
                    )
                )
        if support not in ("disk", "square") or relative_angle not in ("log", "harmonics"):
            raise ArgumentError(
                explain(
                    "support 'disk' or 'square' and relative_angle 'log' or 'harmonics'",
                    f"{support!r} and {relative_angle!r}",
                    "leave them out for the defaults, the first ones",
                )
            )
        given: Scales = omega_prime if omega_prime is not None else {}
        coordinates = Coordinates(
            kernel=windows.kernel,
            samples=samples,
            lifts=self.lifts,
            relative_axes=axes,
            omega=as_frequencies("omega", omega, axes, learn_omega, {axis: OMEGA[axis] for axis in axes}),
            omega_prime=as_frequencies("omega_prime", given, absolute, learn_omega_prime),
            harmonics=harmonics,
            relative_angle=relative_angle,
            support=support,
            domain_size=None if domain_size is None else spelled("domain_size", domain_size, 2, 1),
        )
        super().__init__(in_channels, out_channels, windows, coordinates, groups, bias, kernel, features, nonlinearity)
        warn_of_broken_turns(type(self).__name__, windows)
        self.to(device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution; a lifting layer draws the random offset of the samples in training."""
        assert self.samples is not None
        if self.lifts:
            self.samples.draw()
        return super().forward(x)


class LiftingConv2d(_PlanarConv):
    """From an image to a feature on sampled SE(2) or E(2): ``y(p, u) = sum_t k(u^-1 t, p, u) x(p + t) + bias``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as
            ``torch.nn.Conv2d``. Windows or padding that no quarter turn keeps are warned of once.
        group: ``"C8"``: eight rotations; ``"D8"``: with their mirrors; or :class:`GroupSamples`, shared between the
            layers of a network where it draws random offsets.
        omega: frequencies of ``u^-1 v`` by axis: ``"translation"`` (or ``"x"``, ``"y"``), 10 by default; for
            :class:`GroupConv2d` ``"rotation"``, 10/pi, and ``"flip"``, 1.
        omega_prime: frequencies of ``u`` on the axes that are relaxed: ``"rotation"``, ``"flip"``,
            ``"translation"``. Axes left out are strict for good; 0 is strict and can be turned or learned.
        learn_omega, learn_omega_prime: ``True``, or the axes whose frequency is a parameter.
        harmonics: the absolute angle enters as integer harmonic ``k = omega'``, which keeps the rotations of
            ``C(gcd(k, N))`` exact. Without it, the angle itself enters, cut at pi: opposite sides of the cut differ
            unless the frequencies are integers. A harmonic has no gradient.
        relative_angle: ``"log"``, the principal angle of ``u^-1 v``, or ``"harmonics"``, its cosine and sine.
        kernel, features, domain_size, nonlinearity, device, dtype: as :class:`SoftConv2d`.
        support: ``"disk"``: taps within the circle that touches the sides; ``"square"``: all, which only quarter
            turns keep.

    Shapes: ``[batch, in, height, width]`` to ``[batch, out, U, height', width']`` with ``U`` samples in the order of
    ``group.elements()``. Law, strict layer: ``f(g x)[.., u, p] = f(x)[.., g^-1 u, g^-1 p]``. Raises ``ArgumentError``.
    Source: paper B, Eq. 2, 7 and section 3.4.
    """

    lifts = True


class GroupConv2d(_PlanarConv):
    """On features with a group axis: ``y(p, u) = 1/V sum_{v, t} k(u^-1 (t, v), p, u) x(p + t, v) + bias``.

    Arguments as :class:`LiftingConv2d`. Shapes: ``[batch, in, U, height, width]`` to
    ``[batch, out, U, height', width']``. Law, strict layer: it commutes with ``x[.., u, p] -> x[.., g^-1 u, g^-1 p]``.
    Cost: that of a plain convolution from ``in * U`` to ``out * U`` channels, soft or strict in rotation; relaxed in
    translation, that of ``U`` times :class:`SoftConv2d` on ``in * U`` channels.
    """


class PointwiseGroupConv2d(_PlanarConv):
    """A group convolution at each place alone: one tap, ``k(u^-1 v, p, u)``; for shortcuts and bottlenecks.

    Arguments as :class:`LiftingConv2d` without kernel size, padding, dilation and support. Exactly equivariant to all
    sampled rotations along the group axis, not to quarter turns alone.
    """

    pointwise = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        group: str | Group | GroupSamples = "C8",
        omega: Mapping[str, float] | Frequencies | None = None,
        omega_prime: Mapping[str, float] | Frequencies | None = None,
        learn_omega: Learned = False,
        learn_omega_prime: Learned = False,
        harmonics: bool = False,
        relative_angle: RelativeAngle = "log",
        kernel: Kernel = "siren",
        features: int = 32,
        domain_size: Size | None = None,
        nonlinearity: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            1,
            stride,
            groups=groups,
            bias=bias,
            group=group,
            omega=omega,
            omega_prime=omega_prime,
            learn_omega=learn_omega,
            learn_omega_prime=learn_omega_prime,
            harmonics=harmonics,
            relative_angle=relative_angle,
            kernel=kernel,
            features=features,
            domain_size=domain_size,
            nonlinearity=nonlinearity,
            device=device,
            dtype=dtype,
        )
