"""Upper bounds of operator norms: of matrices, of convolutions, and of what a linear map lacks of commuting.

Every number is computed in float64, widened by what that may have lost, and rounded up. Norms are spectral: the largest
``||A x|| / ||x||``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from equidial.certificates._generators import low_part
from equidial.certificates._rounding import UNIT_ROUNDOFF, action_error, application_error, gamma, up
from equidial.certificates._search import worst_element
from equidial.certificates._supremum import Supremum, certify_weight, describe_elements
from equidial.errors import ArgumentError, explain
from equidial.filters import (
    Constraint,
    Dial,
    Filter,
    Setting,
    Spectrum,
    build_spectrum,
    growth_factor,
    resolve_radius,
    trivial_bound,
)
from equidial.groups import Group, GroupElement

MAX_ELEMENTS = 512
"""A finite group with more elements is bounded as a whole, not element by element."""

_MAX_SPLIT = 4096  # largest weight space whose spectrum is computed for a bound
_FREQUENCY_WORK = 4e8  # multiplications that the frequencies of one convolution may cost
_ANGLES = 33  # of the grid of a one-parameter group


def up_tensor(x: torch.Tensor, relative: float = 8 * UNIT_ROUNDOFF) -> torch.Tensor:
    """Entry by entry above ``x (1 + relative)`` for ``x >= 0``; 0 stays 0."""
    return x * (1 + relative + 2 * UNIT_ROUNDOFF)


def spectral_norms(matrices: torch.Tensor) -> torch.Tensor:
    """Upper bounds of ``||A||_2`` for float64 or complex128 matrices ``[..., m, n]``, shape ``[...]``.

    The root of the largest eigenvalue of the smaller Gram matrix, at most the Frobenius norm. What is added covers
    the products, ``gamma_k ||A||_F^2``, and the backward error of the symmetric eigenvalue solver, taken as
    ``16 k u ||A||_F^2`` (LAPACK Users' Guide, section 4.7). Cost O(m n min(m, n)) each.
    """
    if matrices.numel() == 0:
        return torch.zeros(matrices.shape[:-2], dtype=torch.float64)
    scale = matrices.abs().amax((-2, -1)).clamp_min(torch.finfo(torch.float64).tiny)
    a = matrices / scale[..., None, None]
    if a.shape[-2] > a.shape[-1]:
        a = a.mT
    rows, columns = a.shape[-2:]
    square = a.abs().square().sum((-2, -1))
    frobenius = (square * (1 + gamma(2 * rows * columns + 8))).sqrt()
    if rows == 1:
        top = frobenius
    else:
        largest = torch.linalg.eigvalsh(a @ a.mH)[..., -1].clamp_min(0)
        top = torch.minimum((largest + (gamma(4 * columns + 8) + 16 * rows * UNIT_ROUNDOFF) * square).sqrt(), frobenius)
    return up_tensor(top * scale)


def spectral_norm(matrix: torch.Tensor) -> float:
    """An upper bound of ``||A||_2`` of one real matrix, rounding included; raises ``ArgumentError`` for other shapes.

    Tight to 1e-9 relative. Cost O(m n min(m, n)).
    """
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise ArgumentError(
            explain("a real matrix [m, n]", f"{matrix.dtype} of shape {tuple(matrix.shape)}", "reshape or convert it")
        )
    return float(spectral_norms(matrix.detach().to("cpu", torch.float64)))


def convolution_norm(
    kernel: torch.Tensor,
    stride: int | Sequence[int] = 1,
    size: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> float:
    """An upper bound of the spectral norm of a zero-padded convolution ``[out, in/groups, k...]`` as a map of images.

    Args:
        kernel: one or two window axes.
        stride, dilation: per axis or one for all.
        size: size of the padded input per axis; ``None``: a bound for every size.
        groups: as in torch.

    The least of three bounds. A strided convolution is first written as one of stride 1 on the phases of its input.
    (a) The sum over taps of ``||w_tap||_2``. (b) ``sqrt(taps) ||w as [out, in * taps]||_2``, because each pixel lies in
    that many windows at most. (c) The largest ``||sum_tap w_tap e^(-i tap omega)||_2``: a zero-padded convolution is a
    compression of the circular one on any torus that holds the padded input, whose norm is the largest over the
    torus's frequencies. On large tori the frequencies are sampled, ``M`` per axis, and the result divided by
    ``cos(pi n / M)`` per axis for ``n = (k - 1) / 2``, half the degree (Duffin and Schaeffer 1938).
    Cost: at most 4e8 multiplications. Raises ``ArgumentError`` for a tensor that is no kernel.
    """
    if kernel.ndim not in (3, 4) or not kernel.is_floating_point() or kernel.shape[0] % groups:
        raise ArgumentError(
            explain(
                "a real kernel [out, in/groups, k] or [out, in/groups, kh, kw]",
                f"{kernel.dtype} of shape {tuple(kernel.shape)} with groups={groups}",
                "pass the weight of a Conv1d or Conv2d",
            )
        )
    work = kernel.detach().to("cpu", torch.float64)[None]
    return float(convolution_norms(work, stride, size, dilation, groups)[0])


def convolution_norms(
    kernels: torch.Tensor,
    stride: int | Sequence[int] = 1,
    size: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """:func:`convolution_norm` of several float64 kernels ``[n, out, in/groups, k...]``, shape ``[n]``."""
    axes = kernels.ndim - 3
    strides, dilations = _per_axis(stride, axes), _per_axis(dilation, axes)
    taps = _phases(kernels, strides, dilations, groups)  # [n, groups, T1.., out/groups, in/groups * phases]
    extents = taps.shape[2:-2]
    flat = taps.flatten(2, -3)
    used = flat.abs().amax((-2, -1)) > 0
    bound = up_tensor(spectral_norms(flat).sum(-1), gamma(flat.shape[2] + 1))
    together = spectral_norms(flat.movedim(2, -2).flatten(-2))
    bound = torch.minimum(bound, up_tensor(together * used.sum(-1).sqrt()))
    if flat.shape[2] > 1:
        sizes = None if size is None else _per_axis(size, axes)
        tori = None if sizes is None else tuple(-(-n // s) for n, s in zip(sizes, strides, strict=True))
        sampled = _by_frequency(taps, extents, tori)
        bound = bound if sampled is None else torch.minimum(bound, sampled)
    return bound.amax(-1)


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _phases(kernels: torch.Tensor, strides: Sequence[int], dilations: Sequence[int], groups: int) -> torch.Tensor:
    """The same convolution with stride 1 on the ``prod(strides)`` phases of its input, taps before matrix axes."""
    n, out, into = kernels.shape[:3]
    shape, inside = [], []
    for k, s, d in zip(kernels.shape[3:], strides, dilations, strict=True):
        shape.append(-(-(d * (k - 1) + 1) // s) * s)
        inside.append(slice(0, d * (k - 1) + 1, d))
    wide = kernels.new_zeros(n, out, into, *shape)
    wide[(..., *inside)] = kernels
    split = [n, groups, out // groups, into]
    for length, s in zip(shape, strides, strict=True):
        split += [length // s, s]
    axes = len(strides)
    outer = [4 + 2 * i for i in range(axes)]
    inner = [5 + 2 * i for i in range(axes)]
    return wide.reshape(split).permute(0, 1, *outer, 2, 3, *inner).flatten(3 + axes)


def _by_frequency(taps: torch.Tensor, extents: Sequence[int], tori: Sequence[int] | None) -> torch.Tensor | None:
    """Bound (c), ``[n, groups]``; ``None`` where even a coarse grid of frequencies costs too much."""
    n, groups, out, into = taps.shape[0], taps.shape[1], taps.shape[-2], taps.shape[-1]
    each = n * groups * out * into * (min(out, into) + 1)
    for fineness in (32, 16, 8, 4):
        counts = []
        for i, t in enumerate(extents):
            wanted = fineness * (t - 1) if t > 1 else 1
            torus = wanted if tori is None else max(tori[i], t)
            counts.append(min(wanted, torus))
        if math.prod(counts) * each <= _FREQUENCY_WORK:
            break
    else:
        return None
    transfer = taps.to(torch.complex128)
    widening = 1.0
    for axis, (t, count) in enumerate(zip(extents, counts, strict=True)):
        exact = t == 1 or (tori is not None and count >= tori[axis])
        widening /= 1.0 if exact else math.cos(math.pi * (t - 1) / 2 / count)
        frequencies = count // 2 + 1 if axis == len(extents) - 1 else count  # real kernels: the rest is conjugate
        phase = torch.outer(torch.arange(frequencies), torch.arange(t)).to(torch.float64) * (-2 * math.pi / count)
        wave = torch.polar(torch.ones_like(phase), phase)
        transfer = (transfer.movedim(2 + axis, -1) @ wave.mT).movedim(-1, 2 + axis)
    flat = transfer.flatten(2, -3)
    lost = gamma(4 * math.prod(extents) + 64) * taps.flatten(2, -3).norm(dim=(-2, -1)).sum(-1)
    return up_tensor((spectral_norms(flat).amax(-1) + lost) * widening, 16 * UNIT_ROUNDOFF)


def certified_elements(group: Group, radius: float) -> tuple[GroupElement, ...] | None:
    """The elements within ``radius`` that a bound lists one by one, the identity left out.

    ``None`` for infinite groups and those with more than ``MAX_ELEMENTS`` elements: they are bounded as a whole.
    """
    if not group.is_finite or (group.order or 0) > MAX_ELEMENTS:
        return None
    return tuple(g for g in group.elements() if not g.is_identity and g.distance() <= radius * (1 + 1e-12))


def operator_defect(constraint: Constraint, weight: torch.Tensor, radius: float | None = None) -> torch.Tensor:
    """Upper bounds of ``||W rho_X(g) - rho_Y(g) W||_2`` for one weight ``[d_Y, d_X]``, absolute.

    Finite groups: one number per element, in the order of :func:`certified_elements`. Other groups: one number for
    all elements within ``radius``, the least of

    * the Frobenius bound of :func:`certify_weight`;
    * ``phi(radius)`` times the larger of ``||[L_1 W; ..; L_n W]||_2`` (stacked either way) and the letters'
      ``||L_s W||_2``, ``phi = radius`` for orthogonal actions (theory 4, the integral in the spectral norm);
    * ``bound(V) + trivial ||W - V||_2`` for the symmetric part ``V``, and for what lies below a cut of the spectrum;
    * one parameter: ``max ||..||_2`` on a grid of angles plus half a step times ``||L W||_2``.

    Raises ``ArgumentError`` for a weight of another space. Cost: a spectrum and a few O(d^3).
    """
    constraint.check(weight)
    radius = resolve_radius(constraint, radius)
    stored = weight.detach().to("cpu", torch.float64)
    if stored.ndim != len(constraint.shape):
        raise ArgumentError(
            explain("one weight, without copies", f"shape {tuple(weight.shape)}", "certify the copies one by one")
        )
    matrix = constraint.as_matrices(stored)
    elements = certified_elements(constraint.rep_in.group, radius)
    residual = _has_residual(constraint)
    if elements is None or residual:
        whole = torch.tensor([_of_all(constraint, stored, matrix, radius, residual)], dtype=torch.float64)
        return whole.expand(1 if elements is None else len(elements))
    if not elements:
        return torch.zeros(0, dtype=torch.float64)
    moved = torch.stack([constraint.difference(g, matrix) for g in elements])
    return spectral_norms(moved) * (1 + gamma(constraint.dim + 2)) + action_error(constraint, float(matrix.norm()))


def certify_operator(constraint: Constraint, weight: torch.Tensor, radius: float | None = None) -> Supremum:
    """:func:`certify_weight` in the spectral norm: ``sup_g ||W rho_X(g) - rho_Y(g) W||_2 / ||W||_2``, one weight.

    The largest error that any input can suffer, relative to the largest gain. Finite groups: exact up to rounding.
    Raises and costs as :func:`operator_defect`.
    """
    radius = resolve_radius(constraint, radius)
    defects = operator_defect(constraint, weight, radius)
    matrix = constraint.as_matrices(weight.detach().to("cpu", torch.float64))
    elements = describe_elements(constraint, radius)
    gain = _largest_gain(matrix)
    if gain == 0:
        return Supremum(0.0, "exact", 0.0, 0.0, radius, elements, ("the weight is 0",))
    absolute = float(defects.max()) if len(defects) else 0.0
    listed = certified_elements(constraint.rep_in.group, radius)
    kind = "upper" if listed is None or _has_residual(constraint) else "exact"
    if kind == "exact":
        found = max((spectral_defect(constraint, matrix, g) for g in listed or ()), default=0.0)
    else:
        found = worst_element(constraint, matrix, radius, spectral_defect)
    trivial = trivial_bound(constraint, radius)
    bound = min(up(absolute / gain), trivial)
    rests_on = (
        "every element was applied" if kind == "exact" else "a word no longer than the radius reaches every element"
    )
    return Supremum(bound, kind, min(found / gain, bound), absolute, radius, elements, (rests_on,))


def spectral_defect(constraint: Constraint, matrix: torch.Tensor, g: GroupElement) -> float:
    """``||W rho_X(g) - rho_Y(g) W||_2`` by applying ``g``."""
    return float(spectral_norms(constraint.difference(g, matrix)))


def _largest_gain(matrix: torch.Tensor) -> float:
    """A lower bound of ``||W||_2``: what ``W`` makes of its first right singular vector."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    top = torch.linalg.eigh(small @ small.mT)[1][:, -1]
    return float((top @ small).norm() / top.norm()) * (1 - gamma(4 * sum(matrix.shape) + 16))


def _has_residual(constraint: Constraint) -> bool:
    return bool(constraint.rep_in.residual_generators() or constraint.rep_out.residual_generators())


def _of_all(constraint: Constraint, stored: torch.Tensor, matrix: torch.Tensor, radius: float, residual: bool) -> float:
    size = float(matrix.norm())
    if size == 0:
        return 0.0
    built = None if residual or constraint.dim > _MAX_SPLIT else build_spectrum(constraint)
    spectrum = built if isinstance(built, Spectrum) else None
    bounds = [
        certify_weight(constraint, stored, radius, spectrum).absolute,
        up(trivial_bound(constraint, radius) * float(spectral_norms(matrix))),
    ]
    if not residual:
        bounds.append(_by_generators(constraint, matrix, radius, size))
        if spectrum is not None:
            bounds += _by_split(constraint, stored, matrix, radius, spectrum)
        if constraint.is_orthogonal:
            bounds += _by_angles(constraint, matrix, radius, size)
    return min(bounds)


def _lie_norm(constraint: Constraint, matrix: torch.Tensor, size: float) -> float:
    """``sup over unit t of ||sum_i t_i L_i W||_2`` at most: the stack of all ``L_i W``, either way."""
    lie = [constraint.apply(letter, matrix) for letter in constraint.letters if letter.is_lie]
    if not lie:
        return 0.0
    stacks = (torch.cat(lie, dim=0), torch.cat(lie, dim=1))
    return up(min(float(spectral_norms(stack)) for stack in stacks) + application_error(constraint, size))


def _element_norm(constraint: Constraint, matrix: torch.Tensor, g: GroupElement, size: float) -> float:
    """``||W rho_X(g) - rho_Y(g) W||_2``."""
    return up(float(spectral_norms(constraint.difference(g, matrix))) + 2 * action_error(constraint, size, g))


def _by_generators(constraint: Constraint, matrix: torch.Tensor, radius: float, size: float) -> float:
    lie, letters = _lie_norm(constraint, matrix, size), constraint.group.discrete_generators()
    if not any(s.on_invariants for s in letters):
        defects = [lie]
        for s in letters:
            elements = (s.element,) if constraint.is_orthogonal else (s.element, s.element.inverse())
            defects += [_element_norm(constraint, matrix, g, size) / s.length for g in elements]
        return up(growth_factor(constraint, radius) * max(defects))
    # g = exp(t) s with the one letter s, as in certify_weight: no claim about its conjugates is needed
    reach = constraint.group.connected.radius
    jumps = [_element_norm(constraint, matrix, s.element, size) for s in letters if s.length <= radius]
    return up(reach * lie + max(jumps)) if jumps else up(min(radius, reach) * lie)


def _by_split(
    constraint: Constraint, stored: torch.Tensor, matrix: torch.Tensor, radius: float, spectrum: Spectrum
) -> list[float]:
    """``bound(V) + trivial ||W - V||_2`` holds for any ``V``: the symmetric part, and what lies below the best cut."""
    parts = [low_part(constraint, matrix, radius, spectrum)]
    if spectrum.smallest_sigma() == 0:
        parts.append(constraint.as_matrices(Filter(spectrum, "hard", Dial("threshold", 0.0), Setting(0.0))(stored)))
    trivial, found = trivial_bound(constraint, radius), []
    for part in parts:
        if part is not None:
            rest = float(spectral_norms(matrix - part)) * (1 + gamma(constraint.dim + 2))
            found.append(up(trivial * rest + _by_generators(constraint, part, radius, float(part.norm()))))
    return found


def _by_angles(constraint: Constraint, matrix: torch.Tensor, radius: float, size: float) -> list[float]:
    group = constraint.group
    if group.lie_dim != 1 or group.discrete_generators():
        return []
    step = radius / (_ANGLES - 1)
    elements = [group.exp(k * step) for k in range(1, _ANGLES)]  # one at a time: a layer may be large
    largest = max(float(spectral_norms(constraint.difference(g, matrix))) for g in elements)
    slope = _lie_norm(constraint, matrix, size)
    return [up(largest + slope * step / 2 + action_error(constraint, size))]
