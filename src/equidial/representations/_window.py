"""Translations and magnification of a window of pixels: what leaves it does not come back.

The values on an axis of ``n`` pixels are interpolated by the cosine series

    f(x) = sum_(k < n) a_k cos(pi k (x + 1/2) / n),        x = 0, .., n - 1

(the basis of the DCT-II: even about both ends of the window), differentiated exactly and sampled again. That gives one
matrix ``D`` per axis, and generators that act axis by axis, nothing of size ``d x d`` being formed:

* translation along an axis, towards larger indices: ``-D``, one generator per axis;
* magnification about the centre of the window: ``-sum_axes x_axis D_axis``, ``x`` counted in pixels from the centre.

Their exponentials are exact homomorphisms (up to rounding), and the axes commute. They are not orthogonal, since a
picture gains and loses energy at the border, and not normal. After each infinitesimal step the picture is sampled
again: inside the window, smooth pictures move as they should, at the border they are an approximation. Measured on
Gaussian blobs with sigma = n / 7 pixels, half-way into the interior (two pixels from the border of 7 x 7, three of
14 x 14), relative to the exact picture: 7 x 7 within 0.8 % for a shift by one pixel and 1 % for magnifications by
e^0.2 and e^-0.2 (a cubic spline: 1.4 %); 14 x 14 within 0.02 % and 0.05 % (0.07 %).

``rho(g)`` moves functions. A vector that is invariant in the sense of the filters, ``w^T rho(g) = w^T``, is a way to
read a picture that does not see it move; with a border that the picture can cross there is hardly one (for translations
the alternating pattern, which no derivative contains). Functions that do not move themselves, the constants, are the
invariants of the dual, ``Pixels(..).dual``.

Construction ``"cosine-window-1"``: never changed, only added to, because saved models rely on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from equidial.representations._maps import DenseMap, KroneckerProduct, KroneckerSum, LinearMap

CONSTRUCTION = "cosine-window-1"


def derivative_matrix(n: int) -> torch.Tensor:
    """``D`` ``[n, n]`` float64: samples of ``f`` to samples of ``f'`` for the cosine series through them.

    Units: 1 / pixel. The rows sum to 0 to the last bits: constants have no derivative. Cost O(n^3).
    """
    k = torch.arange(n, dtype=torch.float64)
    phase = math.pi / n * torch.outer(k + 0.5, k)
    scale = torch.full((n,), 2.0 / n, dtype=torch.float64)
    scale[0] = 1.0 / n
    return (-math.pi / n * k * torch.sin(phase)) @ (scale * torch.cos(phase)).mT


class AxisMap(LinearMap):
    """``I (x) A (x) I``: a map of one axis of a grid, with ``before`` and ``after`` numbers of the other axes."""

    def __init__(self, inner: LinearMap, before: int, after: int):
        self.inner, self.before, self.after = inner, before, after
        self.dim = before * inner.dim * after

    def on_last_axis(self, x: torch.Tensor) -> torch.Tensor:
        """The inner map on its axis."""
        legs = x.unflatten(-1, (self.before, self.inner.dim, self.after))
        return self.inner.on_last_axis(legs.mT).mT.reshape(x.shape)

    @property
    def T(self) -> AxisMap:
        """The transposed inner map."""
        return AxisMap(self.inner.T, self.before, self.after)

    def trace(self) -> float:
        """As often as there are rows along the axis."""
        return self.inner.trace() * self.before * self.after

    def norm_bound(self) -> float:
        """That of the inner map."""
        return self.inner.norm_bound()


@dataclass(frozen=True, eq=False)
class Window:
    """A commuting group of exponentials on a grid; ``axes`` holds one ``n x n`` generator per axis of the grid.

    ``joint``: one parameter moves all axes at once (magnification), else each axis has its own (translations).
    """

    axes: tuple[torch.Tensor, ...]
    joint: bool

    @classmethod
    def translations(cls, shape: Sequence[int]) -> Window:
        """``-D`` along each axis."""
        return cls(tuple(-derivative_matrix(n) for n in shape), joint=False)

    @classmethod
    def magnification(cls, shape: Sequence[int]) -> Window:
        """``-x D`` along each axis, ``x`` from the centre."""
        centred = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
        return cls(tuple(-x[:, None] * derivative_matrix(len(x)) for x in centred), joint=True)

    def generators(self) -> tuple[LinearMap, ...]:
        """Sums over the axes; cost of a product O(d n) per vector and axis."""
        if self.joint:
            return (KroneckerSum([DenseMap(a) for a in self.axes]),)
        sizes = [len(a) for a in self.axes]
        return tuple(
            AxisMap(DenseMap(a), math.prod(sizes[:i]), math.prod(sizes[i + 1 :])) for i, a in enumerate(self.axes)
        )

    def element(self, t: Sequence[float]) -> LinearMap:
        """``exp(sum_i t_i A_i)``, one exponential per axis."""
        steps = list(t) * len(self.axes) if self.joint else list(t)
        return KroneckerProduct([DenseMap(torch.matrix_exp(s * a)) for s, a in zip(steps, self.axes, strict=True)])

    def growth(self) -> float:
        """``m`` with ``||exp(sum t_i A_i)||_2 <= e^(m ||t||)``: ``sup`` over unit ``t`` of the symmetric part.

        Eigenvalues of a Kronecker sum are sums of eigenvalues. Jointly: the larger end of their range in absolute
        value. Each axis on its own: ``sum_i |t_i| m_i <= ||t|| sqrt(sum m_i^2)``. Rounding included.
        """
        low, high, squares, error = 0.0, 0.0, 0.0, 0.0
        for a in self.axes:
            symmetric = (a + a.mT) / 2
            values = torch.linalg.eigvalsh(symmetric)
            low, high = low + float(values[0]), high + float(values[-1])
            # eigenvalues are found to a small multiple of n u ||S||
            error += 16 * len(a) * torch.finfo(torch.float64).eps * float(symmetric.norm())
            squares += float(values.abs().max()) ** 2
        return max(-low, high, 0.0) + error if self.joint else math.sqrt(squares) + error
