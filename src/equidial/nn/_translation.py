"""Convolutions whose kernel may depend on the place: translations made soft, in one and two dimensions."""

from __future__ import annotations

import torch

from equidial.nn._arguments import Size, read_windows, spelled
from equidial.nn._continuous import ContinuousConv, Learned, Scales, as_frequencies
from equidial.nn._coordinates import Coordinates
from equidial.nn._features import Kernel


class _SoftConv(ContinuousConv):
    axes: tuple[str, ...] = ()

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
        omega: Scales | None = None,
        omega_prime: Scales = 1.0,
        learn_omega: Learned = False,
        learn_omega_prime: Learned = False,
        kernel: Kernel = "siren",
        features: int = 32,
        domain_size: Size | None = None,
        nonlinearity: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        axes = self.axes
        windows = read_windows(len(axes), kernel_size, stride, padding, dilation, padding_mode)
        coordinates = Coordinates(
            kernel=windows.kernel,
            samples=None,
            lifts=True,
            relative_axes=axes,
            omega=as_frequencies("omega", omega, axes, learn_omega, dict.fromkeys(axes, 10.0)),
            omega_prime=as_frequencies("omega_prime", omega_prime, axes, learn_omega_prime),
            harmonics=False,
            relative_angle="log",
            support="square",
            domain_size=None if domain_size is None else spelled("domain_size", domain_size, len(axes), 1),
        )
        super().__init__(in_channels, out_channels, windows, coordinates, groups, bias, kernel, features, nonlinearity)
        self.to(device=device, dtype=dtype)


class SoftConv1d(_SoftConv):
    """:class:`SoftConv2d` on sequences: ``[batch, in, length]`` to ``[batch, out, length']``, one axis ``x``."""

    axes = ("x",)


class SoftConv2d(_SoftConv):
    """A convolution whose kernel may depend on the place: ``y(p) = sum_t k(t, p) x(p + t) + bias``.

    ``k(t, p) = sum_m weight_m phi_m(omega t, omega' p)``. ``omega' = 0``: a plain convolution with a continuous
    kernel; ``omega = omega' = 0``: local pooling; a large ``omega'``: a map of its own for every place.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as
            ``torch.nn.Conv2d``.
        omega: frequencies of the offset ``t``, a number or ``{"x": .., "y": ..}`` (``"translation"`` for both);
            offsets run over ``+-1`` across the longest side of the window. Default 10.
        omega_prime: frequencies of the output place ``p``, which runs over ``+-1`` across the domain; a number, or
            only the axes along which the kernel may vary. 0 is strict.
        learn_omega, learn_omega_prime: ``True``, or the axes whose frequency is a parameter.
        kernel: ``"siren"``, ``"fourier"``, or a function of ``(stationary, domain, features)`` that makes
            :class:`KernelFeatures`.
        features: number of features.
        domain_size: the output size that spans ``+-1``. Default: each image spans it, whatever its size, so that a
            larger image is the same domain at a finer pitch. With a size the pitch stays: coordinates of larger
            images run on beyond ``+-1``, where nothing was trained (warned of once).
        nonlinearity: what stands before the layer, ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"`` or ``"linear"``; the
            output starts with variance 1 behind it.
        device, dtype: of the parameters.

    Shapes: ``[batch, in, height, width]`` to ``[batch, out, height', width']``, the batch axis optional. Any image
    size. Raises ``ArgumentError``. Cost: see :func:`position_convolution`; where no kernel varies in space, that of a
    plain convolution. Source: paper B, Eq. 2 and 7, with the output's absolute element.
    """

    axes = ("x", "y")
