"""What all layers with a continuous kernel share: the kernel, its dispatch, what evaluation keeps."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.nn._arguments import Windows, check_channels
from equidial.nn._contraction import position_convolution
from equidial.nn._coordinates import SPACE, Coordinates
from equidial.nn._features import Kernel, make_features
from equidial.nn._frequencies import Frequencies, spell_axes
from equidial.nn._initial import DEPTH, NONLINEARITIES, output_power

Scales = float | Mapping[str, float] | Frequencies
Learned = bool | Collection[str]


class ContinuousConv(nn.Module):
    """Base of the layers ``y(u) = sum_v k(u^-1 v, u) x(v) + bias``, ``k = sum_m weight_m phi_m``.

    ``u`` and ``v`` are places of the image and, with ``samples``, rotations and mirrors. The kernel may depend on
    ``u`` along the axes of ``omega_prime``; along all others, and where that frequency is 0, the layer is a strict
    convolution. The absolute element is that of the output; the paper's form with the input's has the same
    expressivity (its App. C.1), and lifting has no other.

    Attributes:
        weight: ``[out_channels, in_channels / groups, features]``, what the layer is linear in.
        bias: ``[out_channels]`` or ``None``, one for all samples of the group axis.
        features: the feature map, see :class:`KernelFeatures`.
        omega, omega_prime: :class:`Frequencies` of ``u^-1 v`` and of ``u``.
        samples: of the group axis, or ``None``.
        windows, coordinates: what the kernel is sampled at.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        windows: Windows,
        coordinates: Coordinates,
        groups: int,
        bias: bool,
        kernel: Kernel,
        features: int,
        nonlinearity: str,
    ):
        super().__init__()
        check_channels(in_channels, out_channels, groups)
        coordinates.check_harmonics()
        if nonlinearity not in NONLINEARITIES:
            known = ", ".join(NONLINEARITIES)
            raise ArgumentError(
                explain(f"a nonlinearity out of {known}", repr(nonlinearity), "name the one nearest to yours")
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.nonlinearity = nonlinearity
        self.windows, self.coordinates = windows, coordinates
        self.samples, self.omega, self.omega_prime = coordinates.samples, coordinates.omega, coordinates.omega_prime
        self.features = make_features(kernel, coordinates.stationary, coordinates.domain, features)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, self.features.features))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._kept: tuple[Any, list[torch.Tensor], torch.Tensor] | None = None
        self._warned_of_size = False
        self.reset_parameters()
        message = coordinates.alias()
        if message is not None and "rotation" not in self.omega_prime.learned:
            warnings.warn(f"{type(self).__name__}: {message}", EquidialWarning, stacklevel=3)

    def reset_parameters(self) -> None:
        """Draw ``weight`` so that the output has variance 1 behind ``nonlinearity`` of such layers; the bias is 0.

        See :func:`equidial.nn._initial.output_power`. The feature map is left as it is.
        """
        if self.weight.is_meta:
            return
        with torch.no_grad():
            power = output_power(*self._depths(), self.nonlinearity)
            fan = self.in_channels // self.groups
            nn.init.normal_(self.weight, std=1 / math.sqrt(fan * max(power, 1e-12)))
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def _depths(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features ``[U, V, kh, kw, M]`` with their Haar weight, of this layer and of others like it, by depth."""
        kernel = self.windows.kernel if len(self.windows.kernel) == 2 else (1, *self.windows.kernel)
        taps, others = self.coordinates.taps(), copy.deepcopy(self.features)
        redraw = getattr(others, "reset_parameters", None)
        made: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(1 if self.coordinates.inputs < self.coordinates.outputs else DEPTH):
                place = torch.rand(1, len(self.windows.kernel), dtype=torch.float64) * 2 - 1
                if callable(redraw):
                    redraw()
                for features, row in zip((self.features, others), made, strict=True):
                    phi = self._evaluate(features, taps, place)[0] / self.coordinates.inputs
                    row.append(self._in_window(phi, taps, -2).cpu().float().unflatten(-2, kernel))
        return made

    @property
    def varies_in_space(self) -> bool:
        """Whether the kernel may depend on the place in the image."""
        return not self.omega_prime.fixed_at_zero([axis for axis in self.omega_prime.axes if axis in SPACE])

    # -- the kernel

    def sampled_features(
        self, places: torch.Tensor | None = None, order: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``phi [U, V, T, M]``, or ``[P, U, V, T, M]`` at places, and the taps ``[T]`` of the window it speaks of."""
        taps = self.coordinates.taps()
        return self._evaluate(self.features, taps, places, order), taps

    def _evaluate(
        self,
        features: nn.Module,
        taps: torch.Tensor,
        places: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> torch.Tensor:
        a = self.coordinates.relative(taps, self.weight)
        b = self.coordinates.absolute(self.weight, places, order)
        phi = features(a, None if b is None else b[..., None, None, :])
        return phi.expand(*(() if places is None else (len(places),)), *phi.shape[-4:])

    def kernel(self, places: torch.Tensor | None = None, order: torch.Tensor | None = None) -> torch.Tensor:
        """The sampled kernel with its Haar weight ``1/V``, ``[out, U, in / groups, V, *kernel_size]``.

        ``places`` ``[P, axes]``, in coordinates of the domain, gives one for each, ``[P, out, ...]``: for inspection,
        it is as large as it looks. ``order`` (see ``samples.permutation``) reads the ``u`` of the second argument in
        another order: the kernel that the layer would have at ``g u``.
        """
        phi, taps = self.sampled_features(places, order)
        found = torch.einsum("...uvtm,ocm->...oucvt", phi, self.weight) / self.coordinates.inputs
        return self._in_window(found, taps, -1).unflatten(-1, self.windows.kernel)

    def _in_window(self, found: torch.Tensor, taps: torch.Tensor, axis: int) -> torch.Tensor:
        """Zeros at the taps outside the support."""
        window = math.prod(self.windows.kernel)
        if len(taps) == window:
            return found
        shape = list(found.shape)
        shape[axis] = window
        return found.new_zeros(shape).index_copy(axis, taps.to(found.device), found)

    def _features_by_place(self, sizes: tuple[int, ...]) -> torch.Tensor:
        """``[U, P, V T, M]`` of the whole window at every output place, with the Haar weight."""
        phi, taps = self.sampled_features(self.coordinates.places(sizes))
        phi = self._in_window(phi, taps, -2).transpose(0, 1).flatten(2, 3)
        return phi if self.coordinates.inputs == 1 else phi / self.coordinates.inputs

    # -- forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of ``[batch, in_channels, *group axis, *image]``, the batch axis optional."""
        axes = len(self.windows.kernel) + (self.samples is not None and not self.coordinates.lifts)
        self._check_input(x, axes)
        batched = x if x.ndim == axes + 2 else x[None]
        if axes == len(self.windows.kernel):
            batched = batched.unsqueeze(2)
        # kernels are made in the dtype of their parameters: sines of large phases have no meaning in half precision
        with _without_autocast(x.device.type):
            y = self._in_space(batched) if self._must_vary() else None
            kernel = self._keep("kernel", self.kernel) if y is None else None
        if kernel is not None:
            y = self._as_convolution(batched, kernel)
        assert y is not None
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, *(1,) * (y.ndim - 2))
        y = y.squeeze(2) if self.samples is None else y
        return y if x.ndim == axes + 2 else y[0]

    def _check_input(self, x: torch.Tensor, axes: int) -> None:
        image = ("height", "width")[-len(self.windows.kernel) :]
        shape = [self.in_channels] + ([self.coordinates.inputs] if axes > len(image) else [])
        fits = x.ndim in (axes + 1, axes + 2) and list(x.shape[x.ndim - axes - 1 :][: len(shape)]) == shape
        if not fits:
            words = ", ".join(["batch", *map(str, shape), *image])
            lifting = "; the second axis is the group axis, which LiftingConv2d makes" if len(shape) == 2 else ""
            raise ArgumentError(
                explain(f"an input [{words}]{lifting}", f"shape {tuple(x.shape)}", "check channels and samples")
            )
        self.windows.check_input(x.shape[-len(image) :])

    def _must_vary(self) -> bool:
        """Whether this pass needs one kernel for each place; a learned frequency that is 0 still needs its gradient."""
        if not self.varies_in_space:
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return True
        return any(self.omega_prime.value(axis) != 0 for axis in self.omega_prime.axes if axis in SPACE)

    def _as_convolution(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        window = self.windows
        if window.mode == "zeros" and not window.is_lopsided:
            padding = window.before
        else:
            x, padding = window.pad(x), 0
        convolve = functional.conv2d if len(window.kernel) == 2 else functional.conv1d
        y = convolve(
            x.flatten(1, 2),
            kernel.flatten(2, 3).flatten(0, 1),
            stride=window.stride,
            padding=padding,
            dilation=window.dilation,
            groups=self.groups,
        )
        return y.unflatten(1, (self.out_channels, self.coordinates.outputs))

    def _in_space(self, x: torch.Tensor) -> torch.Tensor:
        padded = self.windows.pad(x.to(self.weight.dtype))
        line = len(self.windows.kernel) == 1
        padded = padded[..., None, :] if line else padded
        geometry = self.windows.geometry()
        h, w = geometry.outputs((padded.shape[-2], padded.shape[-1]))
        sizes = (w,) if line else (h, w)
        self._warn_of_size(sizes)
        phi = self._keep(sizes, lambda: self._features_by_place(sizes))
        parts = [position_convolution(padded, part, self.weight, geometry, self.groups) for part in phi]
        y = torch.stack(parts, dim=2)
        return (y[..., 0, :] if line else y).to(x.dtype)

    def _warn_of_size(self, sizes: tuple[int, ...]) -> None:
        domain = self.coordinates.domain_size
        if domain is None or self._warned_of_size or all(n <= m for n, m in zip(sizes, domain, strict=True)):
            return
        self._warned_of_size = True
        message = (
            f"{type(self).__name__}: {sizes} places on a domain of {domain}: coordinates run on at the same pitch, "
            "beyond +-1, where the kernel was not trained"
        )
        warnings.warn(message, EquidialWarning, stacklevel=2)

    # -- what evaluation keeps

    def _keep(self, name: object, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """``compute()``, kept in evaluation without gradients until any tensor that it depends on changes.

        The tensors themselves are compared, because a change through ``.data`` leaves no trace in their version.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return compute()
        samples = None if self.samples is None else (self.samples.group, self.samples.offset)
        fixed = [f.value(axis) for f in (self.omega, self.omega_prime) for axis in f.axes if axis not in f.learned]
        key = (name, samples, tuple(fixed))
        tensors = [t for t in (*self.parameters(), *self.buffers()) if t is not self.bias]
        if self._kept is not None and self._kept[0] == key and _same(self._kept[1], tensors):
            return self._kept[2]
        value = compute()
        self._kept = (key, [t.detach().clone() for t in tensors], value)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files go without what evaluation keeps."""
        return self.__dict__ | {"_kept": None}

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        window = self.windows
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, stride={window.stride}"]
        if any((*window.before, *window.after)):
            parts.append(f"padding={(window.before, window.after) if window.is_lopsided else window.before}")
        parts += [f"dilation={window.dilation}"] if set(window.dilation) != {1} else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={window.mode}"] if window.mode != "zeros" else []
        if self.varies_in_space:
            parts.append(f"domain_size={self.coordinates.domain_size or 'each image'}")
        return ", ".join(parts)


def as_frequencies(
    name: str, given: Scales | None, axes: Sequence[str], learned: Learned, defaults: Mapping[str, float] | None = None
) -> Frequencies:
    """Frequencies on the axes of a layer; a number stands for all of them, ``None`` for the defaults.

    Raises ``ArgumentError`` for an axis that the layer has not, and where ``learned`` comes with a ready object.
    """
    if isinstance(given, Frequencies):
        if learned:
            raise ArgumentError(
                explain(f"learn_{name} where {name} is a number or a mapping", "Frequencies", "say so to Frequencies")
            )
        made = given
    else:
        if given is None or isinstance(given, Mapping):
            spelled = dict(defaults or {}) | spell_axes(given or {})
        else:
            spelled = {axis: float(given) for axis in axes}
        made = Frequencies(spelled, learned)
    if extra := [axis for axis in made.axes if axis not in axes]:
        raise ArgumentError(
            explain(f"{name} on the axes {', '.join(axes) or 'none'} of this layer", ", ".join(extra), "leave it out")
        )
    if defaults is not None and (missing := [axis for axis in axes if axis not in made.axes]):
        raise ArgumentError(explain(f"{name} for {', '.join(axes)}", f"none for {', '.join(missing)}", "add them"))
    return made


def _same(kept: list[torch.Tensor], tensors: list[torch.Tensor]) -> bool:
    return len(kept) == len(tensors) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(kept, tensors, strict=True)
    )


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
