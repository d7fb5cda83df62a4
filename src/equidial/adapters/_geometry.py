"""Strided windows: where a network stops being symmetric whatever its weights are.

A strided window is symmetric along an axis iff  ``pad_after - pad_before = (size + pad_before + pad_after -
dilation (k - 1) - 1) mod stride``  (theory 6): then reversing the input reverses the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from equidial.errors import ArgumentError, explain
from equidial.groups import C, D, Flip, Group
from equidial.nn import ContinuousConv

_WINDOWS = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_SEARCH = 8  # a symmetric size is looked for this far on either side; each trial runs the network once


@dataclass(frozen=True)
class Window:
    """Kernel, stride, padding and dilation of a convolution or a pooling, per axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> Window | None:
        """The window of a module, or ``None`` if it has none."""
        if isinstance(module, ContinuousConv):
            own = module.windows
            return cls(own.kernel, own.stride, own.before, own.after, own.dilation)
        if not isinstance(module, _WINDOWS):
            return None
        axes = 1 if isinstance(module, nn.Conv1d | nn.MaxPool1d | nn.AvgPool1d) else 2
        kernel = _per_axis(module.kernel_size, axes)
        stride = _per_axis(module.stride, axes)
        dilation = _per_axis(getattr(module, "dilation", 1), axes)
        padding = module.padding
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            before = tuple(t // 2 for t in total)
            after = tuple(t - t // 2 for t in total)
        else:
            before = after = (0,) * axes if isinstance(padding, str) else _per_axis(padding, axes)
        return cls(kernel, stride, before, after, dilation, bool(getattr(module, "ceil_mode", False)))

    def is_symmetric(self, size: Sequence[int], axes: Sequence[int]) -> bool:
        """Whether reversing an input of this size along ``axes`` reverses the output."""
        for axis in axes:
            before, after, stride = self.before[axis], self.after[axis], self.stride[axis]
            reach = size[axis] + before + after - self.dilation[axis] * (self.kernel[axis] - 1) - 1
            if self.ceil_mode and reach <= 0:
                continue  # one window that holds every place
            if self.ceil_mode and reach % stride:
                return False
            if after - before != reach % stride:
                return False
        return True

    def fits(self, group: Group, size: Sequence[int]) -> bool:
        """Whether the windows of an image that a lattice group moves are the moved windows."""
        turned = has_quarter_turns(group) and not (self.is_isotropic and len(set(size)) == 1)
        return not turned and self.is_symmetric(size, reversed_axes(group, len(size)))

    def outputs(self, size: Sequence[int]) -> tuple[int, ...]:
        """Places of the output for an input of this size."""
        axes = zip(size, self.kernel, self.stride, self.before, self.after, self.dilation, strict=True)
        return tuple((n + b + a - d * (k - 1) - 1) // s + 1 for n, k, s, b, a, d in axes)

    def tap_counts(self, size: Sequence[int]) -> torch.Tensor:
        """How many output positions each tap of the kernel reads an input pixel at, ``[k...]`` float64.

        The taps that fall into zero padding are left out: ``sum_taps counts ||w_tap||^2`` is the squared Frobenius norm
        of the matrix of the whole layer.
        """
        counts = torch.ones((), dtype=torch.float64)
        for axis, (n, outputs) in enumerate(zip(size, self.outputs(size), strict=True)):
            k, d = self.kernel[axis], self.dilation[axis]
            reads = torch.arange(outputs)[:, None] * self.stride[axis] - self.before[axis] + d * torch.arange(k)
            counts = counts[..., None] * ((reads >= 0) & (reads < n)).sum(0)
        return counts

    @property
    def is_strided(self) -> bool:
        """Whether the symmetry depends on the input size."""
        return any(s > 1 for s in self.stride)

    @property
    def is_isotropic(self) -> bool:
        """Whether both axes are treated alike, as a quarter turn needs."""
        every = (self.kernel, self.stride, self.before, self.after, self.dilation)
        return all(len(set(values)) == 1 for values in every)


def acts_by_lattice(group: Group) -> bool:
    """Whether the group permutes the pixels of an image: C2, C4, D1, D2, D4 and flips."""
    return isinstance(group, Flip) or (isinstance(group, C | D) and group.n in (1, 2, 4))


def has_quarter_turns(group: Group) -> bool:
    """Whether the group contains a quarter turn."""
    return isinstance(group, C | D) and group.n % 4 == 0


def reversed_axes(group: Group, dims: int) -> tuple[int, ...]:
    """Grid axes that some element of a lattice group reverses; a single axis stands for the horizontal one."""
    if isinstance(group, Flip) or group == D(1):
        vertical = isinstance(group, Flip) and group.axis == "vertical"
        return ((-2,) if dims == 2 else ()) if vertical else (-1,)
    return () if group == C(1) else tuple(range(-dims, 0))


def image_level(window: Window, group: Group, size: Sequence[int] | None) -> str | None:
    """Why a bound of a kernel under a lattice group does not speak of the image; ``None`` where it does.

    ``size``: of the input; ``None`` where it is not known.
    """
    if size is None:
        if window.is_strided:
            return "a strided layer keeps the symmetry at some input sizes only: pass image_size= to judge it"
        size = window.kernel
    if window.fits(group, size):
        return None
    return (
        f"stride {window.stride} with padding {window.before}/{window.after} at input {tuple(size)} does not fit "
        f"{group.name}: the bound speaks of the kernel alone"
    )


def configured_size(model: nn.Module) -> tuple[int, int] | None:
    """``config.image_size`` in the manner of transformers; ``None`` where the model does not tell."""
    size = getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def example_images(model: nn.Module, size: int | tuple[int, int]) -> torch.Tensor | None:
    """A batch of one black image of this size, with the channels of the first convolution; ``None`` without one.

    Where that is a :class:`SoftConv1d`, a signal as long as the image is wide; where it reads a group axis, that too.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | ContinuousConv)), None)
    if first is None:
        return None
    sides: tuple[int, ...] = (size, size) if isinstance(size, int) else size
    if isinstance(first, ContinuousConv):
        sides = sides[-len(first.windows.kernel) :]
        sides = sides if first.coordinates.lifts else (first.coordinates.inputs, *sides)
    like = next(model.parameters())
    return torch.zeros(1, first.in_channels, *sides, device=like.device, dtype=like.dtype)


def sizes_at(model: nn.Module, size: int | tuple[int, int] | None) -> dict[str, tuple[int, ...]]:
    """Input size of every window for images of ``size``, or of the size that the model's configuration tells.

    Empty where neither is known, and where a model with a configured size wants other inputs than one image. A size
    that was asked for and that the model refuses raises ``ArgumentError``.
    """
    asked = size is not None
    size = size if size is not None else configured_size(model)
    example = None if size is None else example_images(model, size)
    if example is None:
        return {}
    try:
        return traced_sizes(model, example)
    except Exception as error:
        if not asked:
            return {}
        raise ArgumentError(
            explain(
                f"a model that reads images of {tuple(example.shape)}",
                f"{type(error).__name__}: {error}",
                "give the image_size that the model reads, or none",
            )
        ) from error


def traced_sizes(model: nn.Module, example: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Input size of every window while the model reads ``example``, by module name; nothing is changed."""
    sizes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in model.named_modules():
        window = Window.of(module)
        if window is not None:
            axes = len(window.kernel)

            def record(_: nn.Module, args: tuple[torch.Tensor, ...], name: str = name, axes: int = axes) -> None:
                if args:
                    sizes.setdefault(name, tuple(args[0].shape[-axes:]))

            handles.append(module.register_forward_pre_hook(record))
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return sizes


def asymmetric_windows(model: nn.Module, sizes: dict[str, tuple[int, ...]], group: Group) -> list[str]:
    """Modules whose window breaks the group at these input sizes."""
    broken = []
    for name, size in sizes.items():
        window = Window.of(model.get_submodule(name))
        assert window is not None
        turned = has_quarter_turns(group) and len(set(size)) == 1 and not window.is_isotropic
        if turned or not window.is_symmetric(size, reversed_axes(group, len(size))):
            broken.append(name)
    return broken


def symmetric_size_near(model: nn.Module, example: torch.Tensor, group: Group) -> int | None:
    """The square input size nearest to that of ``example`` at which no window breaks the group, or ``None``.

    Sizes that the model refuses to read are passed over.
    """
    for size in _around(example.shape[-1]):
        trial = example.new_zeros(*example.shape[:-2], size, size)
        try:
            sizes = traced_sizes(model, trial)
        except (RuntimeError, ValueError):
            continue
        if not asymmetric_windows(model, sizes, group):
            return size
    return None


def stride_message(
    model: nn.Module, sizes: dict[str, tuple[int, ...]], example: torch.Tensor | None, group: Group
) -> str | None:
    """What breaks the group at these window sizes, and the nearest input size at which nothing does; else ``None``."""
    if example is None or not sizes or not acts_by_lattice(group):
        return None
    broken = asymmetric_windows(model, sizes, group)
    if not broken:
        return None
    h, w = example.shape[-2:]
    near = symmetric_size_near(model, example[:1], group)
    remedy = f"it is symmetric at {near}x{near} px" if near else f"no size within {_SEARCH} px is symmetric"
    shown = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
    return (
        f"at {h}x{w} px the stride of {shown} does not fit the symmetry {group.name}: the windows of the turned "
        f"image are not the turned windows, so the network is not exactly symmetric at any softness; {remedy}"
    )


def _around(base: int) -> Iterator[int]:
    for distance in range(1, _SEARCH + 1):
        yield base + distance
        if base > distance:
            yield base - distance


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)
