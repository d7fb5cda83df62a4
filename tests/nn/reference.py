"""A naive reference for layers with a continuous kernel: loops in numpy, with its own arithmetic of rotations.

It reads the parameters of a layer and nothing else of it: no table, no coordinate, no feature code of the library.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

PAD: dict[str, Any] = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def elements(n: int, mirrors: bool) -> list[tuple[int, int]]:
    """Steps and mirror of ``R(2 pi k / n) M^r``, rotations first."""
    return [(k, r) for r in range(1 + mirrors) for k in range(n)]


def matrix(g: tuple[int, int], n: int) -> np.ndarray:
    """2 x 2, x to the right, y up."""
    angle = 2 * math.pi * g[0] / n
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag([-1.0 if g[1] else 1.0, 1.0])


def compose(a: tuple[int, int], b: tuple[int, int], n: int) -> tuple[int, int]:
    """``R(s) M = M R(-s)``."""
    return ((a[0] + (-b[0] if a[1] else b[0])) % n, (a[1] + b[1]) % 2)


def invert(g: tuple[int, int], n: int) -> tuple[int, int]:
    """A mirror is its own inverse."""
    return g if g[1] else (-g[0] % n, 0)


def principal(steps: int, n: int) -> float:
    """The angle in ``(-pi, pi]``."""
    angle = 2 * math.pi * (steps % n) / n
    return angle if angle <= math.pi + 1e-12 else angle - 2 * math.pi


def features(layer: Any, a: list[float], b: list[float]) -> np.ndarray:
    """SIREN, or Eq. 7 with a GELU network, written out."""
    f = layer.features
    w = {name: t.detach().double().numpy() for name, t in (*f.named_parameters(), *f.named_buffers())}
    if "phase" in w or "hidden.0.weight" in w:
        z = w["relative.weight"] @ a + w["relative.bias"] if a else w["phase"]
        z = np.sin(z + (w["absolute.weight"] @ b if b else 0))
        return np.sin(w["hidden.0.weight"] @ z + w["hidden.0.bias"])

    def gamma(frequencies: np.ndarray, at: Any) -> np.ndarray:
        z = frequencies @ np.asarray(at)
        return np.concatenate((np.cos(z), np.sin(z))) / math.sqrt(len(frequencies))

    z = w["relative.weight"] @ gamma(w["relative_frequencies"], a) + w["relative.bias"]
    if b:
        v = w["absolute_frequencies"]
        z = z + w["absolute.weight"] @ (gamma(v, b) - gamma(v, [0.0] * len(b)))
    return np.array([0.5 * q * (1 + math.erf(q / math.sqrt(2))) for q in z])


def naive(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The output for ``[batch, in, (V), *image]``, by the law, in float64."""
    samples, window = layer.samples, layer.windows
    n, mirrors = (samples.rotations, samples.has_mirrors) if samples is not None else (1, False)
    us = elements(n, mirrors)
    lifts = samples is None or type(layer).__name__ == "LiftingConv2d"
    vs = [(0, 0)] if lifts else us
    image = np.asarray(x.double())
    image = image[:, :, None] if lifts else image
    kernel = window.kernel
    pads = [(0, 0)] * 3 + list(zip(window.before, window.after, strict=True))
    image = np.pad(image, pads, mode=PAD[window.mode])
    sizes = [
        (m - d * (k - 1) - 1) // s + 1
        for m, k, s, d in zip(image.shape[3:], kernel, window.stride, window.dilation, strict=True)
    ]
    weight = layer.weight.detach().double().numpy()
    out, per = weight.shape[0], weight.shape[1]
    y = np.zeros((len(image), out, len(us), *sizes))
    half = max(max(kernel) - 1, 1) / 2
    prime = {axis: layer.omega_prime.value(axis) for axis in layer.omega_prime.axes}
    spans = layer.coordinates.domain_size or sizes
    for place in itertools.product(*(range(m) for m in sizes)):
        at = [(i - (m - 1) / 2) / max((s - 1) / 2, 0.5) for i, m, s in zip(place, sizes, spans, strict=True)]
        where = {"x": at[-1], "y": -at[0]} if len(at) == 2 else {"x": at[0]}
        # the disk touches the outermost taps next to the axes
        reach = np.hypot(1.0, 0.0 if max(kernel) % 2 or max(kernel) == 1 else 0.5 / half) + 1e-9
        for (iu, u), tap in itertools.product(enumerate(us), itertools.product(*(range(k) for k in kernel))):
            offset = [(i - (k - 1) / 2) / half for i, k in zip(tap, kernel, strict=True)]
            vector = np.array([offset[-1], -offset[0] if len(offset) == 2 else 0.0])
            if samples is not None and layer.coordinates.support == "disk" and np.hypot(*vector) > reach:
                continue
            turned = matrix(u, n).T @ vector  # u^-1 t
            b: list[float] = []
            for axis, scale in prime.items():
                if axis in where:
                    b.append(scale * where[axis])
                elif axis == "flip":
                    b.append(scale * u[1])
                elif layer.coordinates.harmonics:
                    angle = scale * 2 * math.pi * u[0] / n
                    b += [math.cos(angle) - 1, math.sin(angle)]
                else:
                    b.append(scale * principal(u[0], n))
            index = tuple(i * s + j * d for i, s, j, d in zip(place, window.stride, tap, window.dilation, strict=True))
            for iv, v in enumerate(vs):
                k, r = compose(invert(u, n), v, n)
                coordinates = {"x": turned[0], "y": turned[1], "rotation": principal(k, n), "flip": float(r)}
                a: list[float] = []
                for axis in layer.coordinates.relative_axes:
                    value = layer.omega.value(axis)
                    if axis == "rotation" and layer.coordinates.relative_angle == "harmonics":
                        a += [value * math.cos(coordinates[axis]), value * math.sin(coordinates[axis])]
                    else:
                        a.append(value * coordinates[axis])
                k_oc = weight @ features(layer, a, b) / len(vs)
                for o in range(out):
                    first = o // (out // layer.groups) * per
                    seen = image[(slice(None), slice(first, first + per), iv, *index)]
                    y[(slice(None), o, iu, *place)] += seen @ k_oc[o]
    if layer.bias is not None:
        y += layer.bias.detach().double().numpy().reshape(1, -1, *(1,) * (y.ndim - 2))
    return torch.from_numpy(y[:, :, 0] if samples is None else y)
