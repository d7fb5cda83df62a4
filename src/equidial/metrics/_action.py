"""How group elements move images: exactly where they permute pixels, by interpolation elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from equidial.errors import ArgumentError, GroupActionError, explain
from equidial.groups import Group, GroupElement, PlanarGroup, Scale, Shift, Translation

DEFAULT_RADIUS = math.pi / 6
"""Radius of rotations measured when none is given: 30 degrees, the protocol of paper A."""

_ANGLES = 12
_IN_FRAME = 1 - 1e-4  # of a resampled image of ones: these pixels saw nothing of the zeros outside
_LISTED = 4096  # a finite group with more elements is drawn by its own sample(), the identity included


def transform_images(images: torch.Tensor, g: GroupElement) -> torch.Tensor:
    """``g . x`` for images ``[..., h, w]``.

    Convention: counterclockwise as seen, about the centre. Quarter turns, mirrors and cyclic shifts permute pixels;
    other rotations are bilinear with zero fill (``align_corners=False``), and so is magnification about the centre.
    Translations by whole pixels move them, those by parts of a pixel are linear along each axis; zeros come in at the
    border. Raises ``GroupActionError`` for a quarter turn of a rectangle and ``ArgumentError`` for fewer than two image
    axes.
    """
    return _transform(images, g, "bilinear")


def transform_labels(labels: torch.Tensor, g: GroupElement, fill: int) -> torch.Tensor:
    """``g . y`` for integer masks ``[..., h, w]``: as :func:`transform_images`, but each pixel takes the nearest label.

    Pixels whose source lies outside the frame take ``fill``. Returns int64. Raises as :func:`transform_images`.
    """
    labels = labels.long()
    if is_permutation(g):
        return transform_images(labels, g)
    inside = _transform(torch.ones(labels.shape[-2:], dtype=torch.float64), g, "nearest") > 0.5
    return torch.where(inside.to(labels.device), _transform(labels.double(), g, "nearest").round().long(), fill)


def in_frame(size: Sequence[int], g: GroupElement) -> torch.Tensor:
    """Places ``[h, w]`` of a grid moved by ``g`` that saw nothing of the zeros outside; boolean, on the CPU.

    All of them where ``g`` permutes the grid. Raises as :func:`transform_images`.
    """
    return transform_images(torch.ones(*size, dtype=torch.float64), g) > _IN_FRAME


def is_permutation(g: GroupElement) -> bool:
    """Whether ``g`` moves pixels to pixels: quarter turns, mirrors along the axes, cyclic shifts."""
    return isinstance(g.group, Shift) or (
        isinstance(g.group, PlanarGroup) and g.group.quarter_turns_and_mirror(g) is not None
    )


def _transform(images: torch.Tensor, g: GroupElement, mode: str) -> torch.Tensor:
    if images.ndim < 2:
        raise ArgumentError(explain("images [..., h, w]", f"shape {tuple(images.shape)}", "add the image axes"))
    if isinstance(g.group, Shift):
        axes = tuple(range(-g.group.dims, 0))
        return torch.roll(images, g.value, axes)
    if isinstance(g.group, Translation):
        return _translate(images, g.value, mode)
    if isinstance(g.group, Scale):
        return _warp(images, math.exp(-g.value[0]) * torch.eye(2, dtype=torch.float64), mode)
    if not isinstance(g.group, PlanarGroup):
        raise GroupActionError(
            explain("a group that acts on images", g.group.name, "use C(n), D(n), SO2, O2, Flip, T2, R2, Scale")
        )
    lattice = g.group.quarter_turns_and_mirror(g)
    if lattice is not None:
        quarters, reflected = lattice
        h, w = images.shape[-2:]
        if quarters % 2 and h != w:
            raise GroupActionError(
                explain("square images for quarter turns", f"{h}x{w} images", "crop them, or measure C2 or Flip")
            )
        return torch.rot90(images.flip(-1) if reflected else images, quarters, (-2, -1))
    angle, reflected = g.group.angle_and_mirror(g.value)
    return _rotate(images.flip(-1) if reflected else images, angle, mode)


def rotate_bilinear(images: torch.Tensor, angle: float) -> torch.Tensor:
    """Rotate images ``[..., h, w]`` counterclockwise by ``angle`` radians about their centre, zero outside."""
    return _rotate(images, angle, "bilinear")


def _rotate(images: torch.Tensor, angle: float, mode: str) -> torch.Tensor:
    turn = torch.tensor(angle, dtype=torch.float64)
    cos, sin = torch.cos(turn), torch.sin(turn)
    return _warp(images, torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])]), mode)  # y points down


def _warp(images: torch.Tensor, back: torch.Tensor, mode: str) -> torch.Tensor:
    """Each output pixel at ``p = (x, y)`` from the centre, ``y`` down, reads the input at ``back p``; zeros outside."""
    h, w = images.shape[-2:]
    flat = images.reshape(1, -1, h, w)
    # coordinates are scaled to [-1, 1], whose units differ for h != w
    (a, b), (c, d) = back.tolist()
    theta = torch.tensor([[a, b * h / w, 0.0], [c * w / h, d, 0.0]], dtype=flat.dtype, device=flat.device)
    grid = functional.affine_grid(theta[None], [1, 1, h, w], align_corners=False)
    moved = functional.grid_sample(flat, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved.reshape(images.shape)


def _translate(images: torch.Tensor, steps: Sequence[float], mode: str) -> torch.Tensor:
    """Towards larger indices of the last axes, one after the other; zeros come in."""
    if images.ndim < len(steps):
        raise ArgumentError(explain(f"{len(steps)} axes to move", f"shape {tuple(images.shape)}", "add them"))
    for axis, step in zip(range(-len(steps), 0), steps, strict=True):
        whole = math.floor(step + 0.5 * (mode == "nearest"))
        part = 0.0 if mode == "nearest" else step - whole
        near = _shift(images, axis, whole)
        images = near if part == 0 else (1 - part) * near + part * _shift(images, axis, whole + 1)
    return images


def _shift(images: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    size, moved = images.shape[axis], torch.zeros_like(images)
    kept = size - abs(step)
    if kept > 0:
        moved.narrow(axis, max(step, 0), kept).copy_(images.narrow(axis, max(-step, 0), kept))
    return moved


def measured_elements(group: Group, radius: float | None = None) -> list[GroupElement]:
    """The elements that ``measure`` tries when none are given, the identity left out.

    Finite groups: every element within ``radius``. SO(2): twelve equal angles in ``[-radius, radius]`` without 0,
    radius 30 degrees. O(2): those, and the mirror unless ``radius`` is below its length pi. Shifts and translations:
    every one by whole pixels, of at most ``radius`` steps of one pixel, one by default. Scale: twelve factors
    ``e^t``, ``t`` equally spaced in ``[-radius, radius]`` without 0, radius ``log(1.25)``.
    """
    if isinstance(group, Shift | Translation) and not group.is_finite:
        steps = Shift(group.dims).elements_within(1.0 if radius is None else radius)
        elements = [group.element(g.value) for g in steps]
    elif group.is_finite:
        limit = float("inf") if radius is None else radius * (1 + 1e-12)
        elements = [g for g in group.elements() if g.distance() <= limit]
    else:
        default = group.sample_radius if isinstance(group, Scale) else DEFAULT_RADIUS
        reach = default if radius is None else min(radius, group.radius)
        half = _ANGLES // 2
        elements = [group.exp(sign * reach * k / half) for sign in (-1, 1) for k in range(1, half + 1)]
        elements += [s.element for s in group.discrete_generators() if radius is None or s.length <= radius]
    elements = [g for g in elements if not g.is_identity]
    if not elements:
        raise ArgumentError(
            explain(
                f"an element of {group.name} other than the identity within the radius",
                f"radius={radius!r}",
                "give a larger radius",
            )
        )
    return elements


def element_name(g: GroupElement) -> str:
    """An element of a group that moves images, in words: ``"rotation by 90°"``, ``"mirror"``, ``"shift by (1, 0)"``."""
    if isinstance(g.group, Scale):
        return f"magnification by {math.exp(g.value[0]):.3g}"
    if isinstance(g.group, Translation):
        return f"translation by ({', '.join(f'{step:g}' for step in g.value)})"
    if not isinstance(g.group, PlanarGroup):
        return f"shift by {g.value}" if isinstance(g.group, Shift) else repr(g)
    angle, reflected = g.group.angle_and_mirror(g.value)
    turn = f"rotation by {math.degrees(angle):.0f}°"
    return f"mirror and {turn}" if reflected and angle else "mirror" if reflected else turn


class RandomElements(NamedTuple):
    """Elements drawn at random, the distribution in words, and the largest distance that it allows."""

    elements: list[GroupElement]
    distribution: str
    radius: float


def random_elements(
    group: Group, n: int, radius: float | None = None, generator: torch.Generator | None = None
) -> RandomElements:
    """``n`` independent elements from a distribution that is named.

    Finite groups: uniform over :func:`measured_elements`, all but the identity within ``radius`` (above 4096 elements
    and without ``radius``: uniform over the group). Shifts: uniform over those of at most ``radius`` steps, one by
    default. Others: :meth:`Group.sample_within`, or :meth:`Group.sample` without ``radius``.

    Raises ``ArgumentError`` for ``n < 0``, where no element but the identity lies within ``radius``, and for a
    ``radius`` of a large finite group.
    """
    if n < 0:
        raise ArgumentError(explain("a number of elements n >= 0", repr(n), "pass a non-negative integer"))
    listed = group.order is not None and group.order <= _LISTED
    if listed or isinstance(group, Shift):
        choice = measured_elements(group, radius)
        picks = torch.randint(len(choice), (n,), generator=generator).tolist()
        reach = max(g.distance() for g in choice)
        whole = listed and len(choice) == (group.order or 0) - 1
        among = f"uniform over the {len(choice)} elements of {group.name} other than the identity"
        words = among + ("" if whole else f" within distance {reach:.6g}")
        words = words if len(choice) > 1 else f"always {choice[0]!r}"
        return RandomElements([choice[i] for i in picks], words, reach)
    if radius is None:
        words = f"{group.name}.sample(): the Haar measure or the set declared there, within {group.sample_radius:.6g}"
        return RandomElements(group.sample(n, generator), words, group.sample_radius)
    if group.is_finite:
        got = f"{group.name}, of order {group.order}"
        raise ArgumentError(
            explain(f"a finite group of at most {_LISTED} elements for a radius", got, "leave out the radius")
        )
    reach = min(radius, group.radius)
    words = f"{group.name}: exp(t), t uniform in ||t|| <= {reach:.6g}"
    if any(s.length <= reach for s in group.discrete_generators()):
        words += ", times the identity or a letter, each as likely, kept within that distance"
    return RandomElements(group.sample_within(n, reach, generator), words, reach)
