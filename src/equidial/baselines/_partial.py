"""Partial group convolutions: layers that keep a learned part of the rotations (Romero and Lohit, NeurIPS 2022).

Written from the mathematics: ``h(u) = sum_v k(u^-1 v) f(v)`` for ``u`` in the support ``[-pi s, pi s]`` alone, where
``s`` in ``(0, 1]`` is learned, one per layer. Here the samples of a layer are the uniform grid shrunk by ``s``: every
sample depends on ``s``, all of the gradient reaches it, evaluation is deterministic, and the number of samples never
changes. ``s = 1`` is the strict group convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from equidial.errors import ArgumentError, explain
from equidial.groups import C
from equidial.nn import ContinuousConv, GroupSamples
from equidial.nn._arguments import Size, read_windows
from equidial.nn._continuous import as_frequencies
from equidial.nn._coordinates import Coordinates
from equidial.nn._features import Kernel
from equidial.nn._planar import OMEGA

_LEAST = 1e-3


class PartialSamples(GroupSamples):
    """``N`` rotations spread evenly over ``[-pi s, pi s]``, the identity among them; ``s`` is learned.

    Args:
        group: ``C(n)`` or its name.
        support: ``s`` at the start, in ``(0, 1]``; 1 is the whole circle.
        learned: whether ``s`` is a parameter.

    Law: sample ``j`` lies at ``s`` times the principal angle ``2 pi j / n``. ``s`` is clamped to ``[0.001, 1]``; the
    gradient passes the clamp as long as it points inside. Raises ``ArgumentError`` for groups with mirrors.
    """

    def __init__(self, group: str | C = "C8", support: float = 1.0, learned: bool = True):
        super().__init__(group)
        if self.has_mirrors:
            raise ArgumentError(explain("a cyclic group", self.group.name, "partial support is one of rotations"))
        if not 0 < support <= 1:
            raise ArgumentError(explain("a support in (0, 1]", repr(support), "1 is the whole circle"))
        value = torch.tensor(float(support))
        self.support: torch.Tensor
        if learned:
            self.support = nn.Parameter(value)
        else:
            self.register_buffer("support", value)

    @property
    def share(self) -> float:
        """The support as it acts, within ``[0.001, 1]``."""
        return float(_clamped(self.support.detach()))

    def angles(self, like: torch.Tensor) -> torch.Tensor:
        """``[N]``, with the gradient of the support."""
        share = _clamped(self.support).to(like)
        return share * self.table.angle.to(like)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.group.name}, support={self.share:.3g}"


@dataclass
class PartialCoordinates(Coordinates):
    """Coordinates of ``u^-1 v``, ``u`` in ``samples`` and ``v`` in ``source``, differentiable in both supports."""

    source: PartialSamples | None = None

    def relative(self, taps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """``[U, V, T, stationary]``."""
        assert isinstance(self.samples, PartialSamples)
        angle = self.samples.angles(like)
        offsets = self.grid()[taps].to(like)
        c, s = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
        shape = (self.outputs, self.inputs, len(taps))
        x = (c * offsets[:, 0] + s * offsets[:, 1])[:, None].expand(shape)
        y = (c * offsets[:, 1] - s * offsets[:, 0])[:, None].expand(shape)
        columns = {"x": x, "y": y}
        if self.source is not None:
            between = self.source.angles(like)[None] - angle[:, None]
            turns = torch.round(between.detach() / (2 * torch.pi) - 1e-6)  # principal, in (-pi, pi] up to rounding
            columns["rotation"] = (between - 2 * torch.pi * turns)[..., None].expand(shape)
        scale = self.omega(self.relative_axes, like)
        return torch.stack([scale[i] * columns[axis] for i, axis in enumerate(self.relative_axes)], dim=-1)


class _PartialConv(ContinuousConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        source: PartialSamples | None,
        samples: PartialSamples,
        stride: Size,
        padding: Size | str,
        groups: int,
        bias: bool,
        padding_mode: str,
        kernel: Kernel,
        features: int,
        nonlinearity: str,
    ):
        if source is not None and source.size != samples.size:
            raise ArgumentError(
                explain("as many samples before as after", f"{source.size} and {samples.size}", "use one group")
            )
        windows = read_windows(2, kernel_size, stride, padding, 1, padding_mode)
        axes = ("x", "y") if windows.kernel != (1, 1) or source is None else ()
        axes += () if source is None else ("rotation",)
        coordinates = PartialCoordinates(
            kernel=windows.kernel,
            samples=samples,
            lifts=source is None,
            relative_axes=axes,
            omega=as_frequencies("omega", None, axes, False, {axis: OMEGA[axis] for axis in axes}),
            omega_prime=as_frequencies("omega_prime", {}, (), False),
            harmonics=False,
            relative_angle="log",
            support="disk",
            domain_size=None,
            source=source,
        )
        super().__init__(in_channels, out_channels, windows, coordinates, groups, bias, kernel, features, nonlinearity)
        self.source = source


class PartialLiftingConv2d(_PartialConv):
    """:class:`equidial.nn.LiftingConv2d` onto a learned part of the rotations.

    Args:
        samples: of the output, :class:`PartialSamples`; give the same object as ``source`` of the next layer.
        kernel, features, nonlinearity: as the strict layer; all others as ``torch.nn.Conv2d``.

    Shapes: ``[batch, in, height, width]`` to ``[batch, out, N, height', width']``. Raises ``ArgumentError``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        samples: PartialSamples,
        stride: Size = 1,
        padding: Size | str = 0,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        kernel: Kernel = "siren",
        features: int = 32,
        nonlinearity: str = "relu",
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, None, samples, stride, padding, groups, bias, padding_mode,
            kernel, features, nonlinearity,
        )  # fmt: skip


class PartialGroupConv2d(_PartialConv):
    """:class:`equidial.nn.GroupConv2d` from the samples of one layer to a learned part of the rotations.

    Args:
        source: the samples of the input.
        samples: those of the output.
        others: as :class:`PartialLiftingConv2d`.

    Shapes: ``[batch, in, N, height, width]`` to ``[batch, out, N, height', width']``. A kernel of one pixel sees the
    relative angle alone. Raises ``ArgumentError``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        source: PartialSamples,
        samples: PartialSamples,
        stride: Size = 1,
        padding: Size | str = 0,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        kernel: Kernel = "siren",
        features: int = 32,
        nonlinearity: str = "relu",
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, source, samples, stride, padding, groups, bias, padding_mode,
            kernel, features, nonlinearity,
        )  # fmt: skip


class _ClampedInside(torch.autograd.Function):
    """Clamp to ``[_LEAST, 1]``; at an end the gradient passes where a step along it leads inside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(_LEAST, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (grad,) = grads
        outwards = ((x >= 1) & (grad < 0)) | ((x <= _LEAST) & (grad > 0))  # a descent step goes against the gradient
        return torch.where(outwards, torch.zeros_like(grad), grad)


def _clamped(x: torch.Tensor) -> torch.Tensor:
    return _ClampedInside.apply(x)
