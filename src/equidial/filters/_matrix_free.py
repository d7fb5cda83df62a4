"""Filters where no full spectrum can be had: only products with the Gram operator ``Q`` (theory 3).

* ``chebyshev`` (taper): the response as a Chebyshev series in ``Q`` on ``[0, Lambda]``, ``Lambda`` the
  rigorous bound ``sum_s ((||A_X|| + ||A_Y||) / |s|)^2``: Lanczos finds a lower bound of the top eigenvalue only, and
  outside its interval a Chebyshev series explodes. Its error is checked on a fine grid before use. A polynomial is
  never exactly 0 beyond ``b``: no a priori bound.
* ``lanczos`` (exponential, whose kink at 0 makes series converge like 1 / degree): the response on the Ritz values of
  the Krylov space of each weight, which find the few small singular values. Its error is estimated, not bounded: the
  last steps must have moved the result by less than a tenth of the tolerance.
* ``subspace`` (hard, and the exactly symmetric end of every response): an orthonormal basis of the directions with
  ``sigma <= b`` from a block filtered by a Chebyshev series that vanishes beyond ``2 b``. The block grows until it has
  linearly dependent columns after the filter: then it holds all of them, up to the tolerance.
* ``cg`` (nearest): the shifted systems ``(I + mu (Q - beta^2)) W' = W`` of all ``mu`` at once, in the Krylov space of
  ``W`` (conjugate gradients and Lanczos are the same recurrence). The multiplier is solved on the Ritz values, so the
  result obeys ``||L W'|| <= beta ||W'||`` after any number of steps; they go on until the residual is below the
  tolerance.

A tolerance that is not reached raises ``ToleranceError``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch

from equidial.errors import ArgumentError, ToleranceError, explain
from equidial.filters._constraint import Constraint
from equidial.filters._krylov import krylov_function, krylov_nearest, krylov_null
from equidial.filters._responses import subspace_factors

TOLERANCE = 1e-8
"""Default tolerance, relative to the norm of the weight."""

MAX_DEGREE = 1 << 14
"""Largest degree of a Chebyshev series."""

_MAX_BLOCK_BYTES = 2 * 2**30
_MAX_OPERATIONS = 1e13  # some minutes


@dataclass(frozen=True)
class _Series:
    """Chebyshev coefficients of a function of ``q`` on ``[0, top]``."""

    coefficients: np.ndarray
    top: float

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1


class MatrixFreeSpectrum:
    """What stands for a spectrum where multiplicities are unknown; it applies responses directly."""

    def __init__(self, constraint: Constraint, tolerance: float = TOLERANCE, method: str | None = None):
        if not 0 < tolerance < 1:
            raise ArgumentError(explain("a tolerance between 0 and 1", repr(tolerance), "e.g. 1e-8"))
        self.constraint = constraint
        self.tolerance = tolerance
        self.asked = method
        self.top = constraint.scale**2 * (1 + 1e-12)
        self._series: dict[float, _Series] = {}
        self._bases: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}

    def method_for(self, response: str, threshold: float) -> str:
        """The matrix-free method of a response; raises ``ArgumentError`` where another one was asked for."""
        subspace = response == "hard" or threshold == 0
        smooth = "chebyshev" if response == "taper" else "lanczos"
        method = "cg" if response == "nearest" else "subspace" if subspace else smooth
        if self.asked is not None and self.asked != method:
            raise ArgumentError(
                explain(
                    f"method={method!r} for response={response!r} at this setting",
                    f"method={self.asked!r}",
                    "leave method out, or choose another response",
                )
            )
        return method

    def degree(self, threshold: float) -> int:
        """Degree of the Chebyshev series of the taper: the number of products with ``Q`` in each call."""
        return self._chebyshev(threshold).degree

    def basis(self, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Orthonormal columns ``[dim, r]`` of the directions with ``sigma <= threshold``, and their ``sigma``."""
        found = self._bases.get(threshold)
        if found is None:
            found = self._bases[threshold] = self._low_subspace(threshold)
        return found

    def filtered(self, weight: torch.Tensor, response: str, threshold: float, budget: float) -> torch.Tensor:
        """``F(weight)``, float32 or float64; differentiable in the weight."""
        method = self.method_for(response, threshold)
        matrices = self.constraint.as_matrices(weight)
        if method == "cg":
            found = _Nearest.apply(matrices, self, threshold, budget)
        elif method == "chebyshev":
            series = self._chebyshev(threshold)
            found = _Linear.apply(matrices, lambda x: self._apply_series(series, x))
        elif method == "lanczos":
            b = torch.tensor(threshold, dtype=torch.float64)
            found = _Linear.apply(
                matrices,
                lambda x: krylov_function(
                    self.constraint, x, lambda sigma: subspace_factors(response, sigma, b), self.tolerance
                ),
            )
        else:
            columns = self.basis(threshold)[0].to(weight.device, weight.dtype)
            flat = matrices.flatten(-2)
            found = ((flat @ columns) @ columns.mT).reshape(matrices.shape)
        assert isinstance(found, torch.Tensor)
        return self.constraint.from_matrices(found)

    def multiplier(self, weight: torch.Tensor, threshold: float, budget: float) -> tuple[float, float]:
        """``mu`` of the nearest weight (0: untouched) and the largest factor by which a component is amplified."""
        matrices = self.constraint.as_matrices(weight)
        found = krylov_nearest(self.constraint, matrices, threshold, budget, self.tolerance)
        return found.multiplier, found.gain

    def smallest_sigma(self) -> float:
        """The smallest singular value, 0 where the space holds exactly symmetric weights (to the tolerance)."""
        low = self.constraint.scale / 8
        while True:
            _, sigma = self.basis(low)
            if len(sigma):
                return float(sigma[0])
            low *= 2

    def defect_norm(self, weight: torch.Tensor) -> float:
        """``||L W||_F`` in float64."""
        return self.constraint.defect_norm(weight)

    def _chebyshev(self, threshold: float) -> _Series:
        if threshold not in self._series:
            self._series[threshold] = taper_series(threshold, self.top, self.tolerance)
        return self._series[threshold]

    def _apply_series(self, series: _Series, matrices: torch.Tensor) -> torch.Tensor:
        """Clenshaw's recurrence for ``sum_k c_k T_k(2 Q / top - 1) W``."""
        scale = 4.0 / series.top
        c = series.coefficients
        after, last = torch.zeros_like(matrices), torch.zeros_like(matrices)
        for k in range(len(c) - 1, 0, -1):
            # b_k = c_k W + 2 x b_(k+1) - b_(k+2), with 2 x = 4 Q / top - 2
            image = self.constraint.gram(after).mul_(scale).sub_(after, alpha=2.0).sub_(last)
            after, last = image.add_(matrices, alpha=float(c[k])), after
        image = self.constraint.gram(after).mul_(scale / 2).sub_(after).sub_(last)
        return image.add_(matrices, alpha=float(c[0]))

    def _low_subspace(self, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A filtered random block, doubled until the filter makes its columns dependent; then Rayleigh-Ritz.

        The filter is 1 up to the threshold and below 1e-12 beyond twice that (for the null space: beyond a floor that
        is lowered until it separates), so that the block spans all directions below and hardly any above.
        """
        constraint = self.constraint
        dim = constraint.dim
        cut = max(2 * threshold, constraint.scale / 16)
        generator = torch.Generator().manual_seed(0)
        series = taper_series(cut, self.top, 1e-12)
        size = min(16, dim)
        while True:
            self._refuse_work(size, series.degree, cut)
            start = torch.randn(size, constraint.rep_out.dim, constraint.rep_in.dim, generator=generator).double()
            block = self._apply_series(series, start).flatten(1)
            u, s, _ = torch.linalg.svd(block.mT, full_matrices=False)
            rank = int((s > 1e-10 * s[0]).sum()) if float(s[0]) > 0 else 0
            if rank < size or size == dim:
                break
            # x.p(Q) x is the trace of the filter on average: about how many directions there are
            count = float((start.flatten(1) * block).sum()) / size
            size = min(max(2 * size, math.ceil(1.2 * count) + 16), dim)
        columns = u[:, :rank]
        for _ in range(2):  # a second pass removes what the filter's tail left of the other directions
            image = self._apply_series(series, columns.mT.reshape(rank, constraint.rep_out.dim, -1)).flatten(1)
            columns, _ = torch.linalg.qr(image.mT)
        image = constraint.gram(columns.mT.reshape(rank, constraint.rep_out.dim, -1)).flatten(1)
        values, mix = torch.linalg.eigh(columns.mT @ image.mT)
        vectors = columns @ mix
        rounding = 64 * torch.finfo(torch.float64).eps * math.sqrt(dim) * self.top
        sigma = torch.where(values <= rounding, 0.0, values.clamp_min(0.0)).sqrt()
        kept = sigma <= threshold * (1 + 1e-9)
        residual = (image.mT @ mix - vectors * values)[:, kept].norm(dim=0)
        worst = float(residual.max()) if int(kept.sum()) else 0.0
        if worst > self.tolerance * self.top:
            raise ToleranceError(
                explain(
                    f"directions of {constraint.name} with residual below {self.tolerance:g} of the largest sigma^2",
                    f"{worst / self.top:.2e}",
                    "use a looser tolerance, or response='taper'",
                )
            )
        return vectors[:, kept].contiguous(), sigma[kept]

    def _refuse_work(self, size: int, degree: int, cut: float) -> None:
        """Raise ``ToleranceError`` before a block of this size, if it would take too much memory or time."""
        constraint = self.constraint
        operations = 8 * size * degree * constraint.dim * (constraint.rep_in.dim + constraint.rep_out.dim)
        if 24 * size * constraint.dim > _MAX_BLOCK_BYTES or operations > _MAX_OPERATIONS:
            raise ToleranceError(
                explain(
                    f"a low subspace of {constraint.name} within {_MAX_BLOCK_BYTES / 2**30:.0f} GiB and "
                    f"{_MAX_OPERATIONS:.0e} operations",
                    f"about {size} directions with sigma <= {cut:.4g}, by series of degree {degree}",
                    "use response='taper' or 'nearest', or a smaller threshold",
                )
            )

    def __deepcopy__(self, memo: dict[int, object]) -> MatrixFreeSpectrum:
        return self  # immutable but for what it has computed, and large


def taper_series(threshold: float, top: float, tolerance: float) -> _Series:
    """Chebyshev coefficients of the taper at ``threshold`` as a function of ``q = sigma^2`` on ``[0, top]``.

    The degree is the smallest whose neglected coefficients sum to less than half of the tolerance, on grids that double
    until this holds and the series is within the tolerance on a fine grid of ``sigma`` (a step that falls between the
    points of a coarse grid would go unseen). Raises ``ToleranceError`` beyond ``MAX_DEGREE``.
    """
    fine = np.concatenate([np.linspace(0, 2 * threshold, 1001), np.linspace(0, math.sqrt(top), 1001)])
    fine = fine[fine <= math.sqrt(top)]
    expected = _taper(fine, threshold)
    points = 64
    while points <= 4 * MAX_DEGREE:
        angles = (np.arange(points) + 0.5) * np.pi / points
        values = _taper(np.sqrt((np.cos(angles) + 1) * top / 2), threshold)
        coefficients = np.asarray(scipy.fft.dct(values, type=2)) / points
        coefficients[0] /= 2
        tails = np.cumsum(np.abs(coefficients[::-1]))[::-1]
        enough = np.nonzero(tails <= tolerance / 2)[0]
        # an unresolved function is aliased into all coefficients, so that half of them must be idle
        if len(enough) and enough[0] <= min(points // 2, MAX_DEGREE):
            kept = coefficients[: max(int(enough[0]), 1)]
            found = np.polynomial.chebyshev.chebval(2 * fine**2 / top - 1, kept)
            if float(np.abs(found - expected).max()) <= tolerance:
                return _Series(kept, top)
        points *= 2
    raise ToleranceError(
        explain(
            f"a Chebyshev series for the taper at b={threshold:g} with error below {tolerance:g} and degree at most "
            f"{MAX_DEGREE}",
            f"singular values up to {math.sqrt(top):g}, {math.sqrt(top) / threshold:.0f} times the threshold",
            "use a larger threshold, a looser tolerance, or response='nearest'",
        )
    )


def _taper(sigma: np.ndarray, threshold: float) -> np.ndarray:
    b = torch.tensor(threshold, dtype=torch.float64)
    return subspace_factors("taper", torch.from_numpy(sigma), b).numpy()


class _Linear(torch.autograd.Function):
    """A self-adjoint linear map; its backward is itself."""

    @staticmethod
    def forward(ctx, x, apply):
        """``A x``."""
        ctx.map = apply
        return apply(x)

    @staticmethod
    def backward(ctx, grad):
        """``A grad``."""
        return ctx.map(grad), None


class _Nearest(torch.autograd.Function):
    """The nearest certified weight, with the gradient of the implicit function.

    ``M^-1 - u u^T / (u^T z)`` with ``M = I + mu (Q - beta^2)``, ``z = (Q - beta^2) W'``, ``u = M^-1 z``.
    """

    @staticmethod
    def forward(ctx, matrices, spectrum, threshold, budget):
        """``W'``."""
        found = krylov_nearest(spectrum.constraint, matrices.detach(), threshold, budget, spectrum.tolerance)
        ctx.found, ctx.spectrum = found, spectrum
        return found.weight

    @staticmethod
    def backward(ctx, grad):
        """``J grad``."""
        found, spectrum = ctx.found, ctx.spectrum
        if found.multiplier == 0:
            return grad, None, None, None
        if math.isinf(found.multiplier):
            return krylov_null(spectrum.constraint, grad, spectrum.tolerance), None, None, None
        return found.jacobian(grad), None, None, None
