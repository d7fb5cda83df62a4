"""Lanczos and conjugate gradients with the Gram operator: the nearest certified weight without a spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from equidial.errors import ToleranceError, explain
from equidial.filters._constraint import Constraint
from equidial.filters._nearest import SHRINK, nearest_factors

MAX_STEPS = 2000
"""Largest dimension of a Krylov space."""


@dataclass(frozen=True)
class KrylovNearest:
    """``W'`` with its multiplier ``mu`` (0: untouched, inf: the exactly symmetric part) and what made it.

    ``gain``: the largest factor by which a component was amplified.
    """

    constraint: Constraint
    weight: torch.Tensor
    multiplier: float
    threshold: float
    budget: float
    tolerance: float
    gain: float = 1.0

    def jacobian(self, direction: torch.Tensor) -> torch.Tensor:
        """``(M^-1 - u u^T / (u^T z)) direction`` with ``z = (Q - beta^2) W'`` and ``u = M^-1 z``."""
        beta2 = (self.threshold * (1 - SHRINK)) ** 2
        z = self.constraint.gram(self.weight) - beta2 * self.weight
        u = self._solve(z)
        projected = self._solve(direction)
        return projected - u * ((u * direction).sum() / (u * z).sum())

    def _solve(self, right: torch.Tensor) -> torch.Tensor:
        """``M^-1 right`` by conjugate gradients."""
        beta2 = (self.threshold * (1 - SHRINK)) ** 2

        def apply(x: torch.Tensor) -> torch.Tensor:
            return x + self.multiplier * (self.constraint.gram(x) - beta2 * x)

        x, residual = _conjugate_gradients(apply, right, self.tolerance * float(right.norm()))
        if x is None:
            raise _unreached("a gradient of the nearest weight", self.constraint, residual, self.tolerance)
        return x


def krylov_nearest(
    constraint: Constraint, matrices: torch.Tensor, threshold: float, budget: float, tolerance: float
) -> KrylovNearest:
    """The projection of ``W`` on ``||L W'|| <= beta ||W'||`` (or ``<= budget``) in the Krylov space of ``Q`` and ``W``.

    In that space ``Q`` is a tridiagonal matrix whose eigenvalues (Ritz values) play the singular values, with the
    energies of ``W`` on them, so the root is the one of the full problem restricted to it: the bound holds exactly, and
    the distance converges from above. Stops when the residual ``||M W' - W||`` is below ``tolerance ||W||``.
    """
    norm = float(matrices.norm())
    if norm == 0:
        return KrylovNearest(constraint, matrices, 0.0, threshold, budget, tolerance)
    if threshold == 0 and budget == 0:
        return KrylovNearest(
            constraint, krylov_null(constraint, matrices, tolerance), math.inf, threshold, budget, tolerance
        )
    space = KrylovSpace(constraint, matrices)
    residual = math.inf
    while len(space.alpha) < MAX_STEPS:
        space.extend()
        steps = len(space.alpha)
        if steps < 8 or steps % 8 == 0 or space.exhausted:
            coordinates, multiplier, gain, residual = _projected(space, norm, threshold, budget)
            if residual <= tolerance or space.exhausted:
                found = (coordinates @ space.basis()).reshape(matrices.shape).to(matrices.dtype)
                return KrylovNearest(constraint, found, multiplier, threshold, budget, tolerance, gain)
    raise _unreached("the nearest weight", constraint, residual, tolerance)


class KrylovSpace:
    """The span of ``W, Q W, Q^2 W, ..`` with an orthonormal basis in which ``Q`` is tridiagonal (Lanczos)."""

    def __init__(self, constraint: Constraint, matrices: torch.Tensor):
        self.constraint = constraint
        work = matrices.to(torch.float64)
        self.shape = work.shape
        self.vectors = [work.flatten() / work.norm()]
        self.alpha: list[float] = []
        self.off: list[float] = []
        self.exhausted = False

    def extend(self) -> None:
        """One application of ``Q``; full reorthogonalisation keeps Ritz values simple."""
        image = self.constraint.gram(self.vectors[-1].reshape(self.shape)).flatten()
        self.alpha.append(float(self.vectors[-1] @ image))
        basis = self.basis()
        for _ in range(2):
            image = image - basis.mT @ (basis @ image)
        following = float(image.norm())
        self.off.append(following)
        floor = 64 * torch.finfo(torch.float64).eps * self.constraint.scale**2
        self.exhausted = following <= floor or len(self.vectors) == image.numel()
        if not self.exhausted:
            self.vectors.append(image / following)

    def basis(self) -> torch.Tensor:
        """``[steps, numel]``, the vectors to which ``Q`` has been applied."""
        return torch.stack(self.vectors[: max(len(self.alpha), 1)])

    def ritz(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues of ``Q`` on the space, ascending, and eigenvectors in its basis as columns."""
        tridiagonal = torch.diag(torch.tensor(self.alpha, dtype=torch.float64))
        if len(self.alpha) > 1:
            side = torch.tensor(self.off[: len(self.alpha) - 1], dtype=torch.float64)
            tridiagonal = tridiagonal + torch.diag(side, 1) + torch.diag(side, -1)
        return torch.linalg.eigh(tridiagonal)


def _projected(space: KrylovSpace, norm: float, beta: float, budget: float) -> tuple[torch.Tensor, float, float, float]:
    """Coordinates of ``W'`` in the basis of the space, ``mu``, the largest factor, the residual of the problem."""
    ritz, mix = space.ritz()
    factors, root = nearest_factors(
        ritz.clamp_min(0.0).sqrt(),
        (norm * mix[0]) ** 2,
        torch.tensor(beta, dtype=torch.float64),
        torch.tensor(budget, dtype=torch.float64),
    )
    coordinates = mix @ (factors * mix[0] * norm)
    # M W' - W = mu * (last off-diagonal) * (last coordinate) * (next vector)
    multiplier = float(root)
    residual = (
        abs(multiplier * space.off[-1] * float(coordinates[-1])) / norm if math.isfinite(multiplier) else math.inf
    )
    return coordinates, multiplier, float(factors.max()), residual


def krylov_function(
    constraint: Constraint,
    matrices: torch.Tensor,
    response: Callable[[torch.Tensor], torch.Tensor],
    tolerance: float,
) -> torch.Tensor:
    """``sum_k f(sigma_k) P_k W`` with ``f`` on the Ritz values of the Krylov space of ``Q`` and ``W``.

    Stops when eight more steps moved the result by less than a tenth of ``tolerance ||W||``, twice in a row, or when
    the space is exhausted: then it is exact.
    """
    norm = float(matrices.norm())
    if norm == 0:
        return matrices
    space = KrylovSpace(constraint, matrices)
    before, quiet, moved = torch.zeros(0, dtype=torch.float64), 0, math.inf
    while len(space.alpha) < MAX_STEPS:
        space.extend()
        if len(space.alpha) % 8 and not space.exhausted:
            continue
        ritz, mix = space.ritz()
        coordinates = mix @ (response(ritz.clamp_min(0.0).sqrt()) * mix[0])
        padded = torch.nn.functional.pad(before, (0, len(coordinates) - len(before)))
        moved = float((coordinates - padded).norm())
        quiet = quiet + 1 if moved <= tolerance / 10 else 0
        if quiet == 2 or space.exhausted:
            return (norm * coordinates @ space.basis()).reshape(matrices.shape).to(matrices.dtype)
        before = coordinates
    raise _unreached("the filtered weight", constraint, moved, tolerance)


def krylov_null(constraint: Constraint, matrices: torch.Tensor, tolerance: float) -> torch.Tensor:
    """``P_0 W``: conjugate gradients on ``Q Z = Q W`` from 0, then ``W - Z``; stops when ``||L W'||`` is rounding."""
    work = matrices.to(torch.float64)
    unit = max(constraint.scale, 1e-300) ** 2  # of the operator
    z, residual = _conjugate_gradients(
        constraint.gram, constraint.gram(work), 1e-6 * tolerance * float(work.norm()) * unit
    )
    if z is None:
        raise _unreached("the exactly symmetric part", constraint, residual / unit, tolerance)
    return (work - z).to(matrices.dtype)


def _conjugate_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, limit: float
) -> tuple[torch.Tensor | None, float]:
    """``x`` with ``||right - A x|| <= limit`` for ``A`` positive semidefinite and ``right`` in its range, from 0.

    ``None`` where ``MAX_STEPS`` do not reach the limit, and the norm of the last residual in any case. A direction
    without curvature is rounding: what is left of ``right`` lies outside the range.
    """
    x = torch.zeros_like(right)
    p = residual = right
    square = float((residual * residual).sum())
    for _ in range(MAX_STEPS):
        if math.sqrt(square) <= limit:
            return x, math.sqrt(square)
        image = apply(p)
        curvature = float((p * image).sum())
        if curvature <= 0:
            return x, math.sqrt(square)
        alpha = square / curvature
        x = x + alpha * p
        residual = residual - alpha * image
        following = float((residual * residual).sum())
        p = residual + (following / square) * p
        square = following
    return None, math.sqrt(square)


def _unreached(what: str, constraint: Constraint, got: float, tolerance: float) -> ToleranceError:
    return ToleranceError(
        explain(
            f"{what} of {constraint.name} to {tolerance:g} within {MAX_STEPS} steps",
            f"a residual of {got:.2e}",
            "use a looser tolerance, a smaller space, or another response",
        )
    )
