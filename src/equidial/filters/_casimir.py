"""Spectra of Gram operators with few, known eigenvalues (theory 3).

On tensors the Gram operator of a compact group is its Casimir operator (of the symmetric group: the sum of all
transpositions), with a small known set of eigenvalues ``q_1 .. q_K``. So the Krylov space of ``Q`` and any weight has
at most ``K`` dimensions, and its Ritz vectors are the components ``P_k W`` themselves. (The polynomial that is 1 at
``q_k`` and 0 at the other eigenvalues gives the same in exact arithmetic, but it is so steep at its zeros that rounding
of ``Q`` costs half of the digits.)
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from equidial.filters._constraint import Constraint
from equidial.filters._krylov import KrylovSpace
from equidial.filters._spectrum import Method, Spectrum


def known_spectrum(constraint: Constraint) -> dict[float, int] | None:
    """Eigenvalues of ``Q`` with multiplicities where the group knows them: sums of tensor powers; else ``None``."""
    orders_in, orders_out = constraint.rep_in.tensor_orders(), constraint.rep_out.tensor_orders()
    if orders_in is None or orders_out is None or not constraint.is_orthogonal:
        return None
    group = constraint.group
    total: Counter[float] = Counter()
    for a, m in orders_in.items():
        for b, n in orders_out.items():
            found = group.tensor_spectrum(a + b)
            if found is None:
                return None
            for value, multiplicity in found.items():
                total[value] += m * n * multiplicity
    return dict(sorted(total.items()))


class CasimirSpectrum(Spectrum):
    """Components of a weight as Ritz vectors of ``Q`` in its Krylov space; nothing of size ``d x d`` is formed.

    Cost: at most ``K`` applications of ``Q`` a call, memory ``2 K`` weights, ``K`` the number of eigenvalues; ``K``
    times that for a gradient. Exact up to rounding, ``u sigma_max^2 / gap``.
    """

    method: Method = "casimir"

    def __init__(self, constraint: Constraint, eigenvalues: dict[float, int]):
        values = sorted(eigenvalues)
        sigma = torch.tensor([math.sqrt(q) for q in values], dtype=torch.float64)
        super().__init__(constraint, sigma, [eigenvalues[q] for q in values])

    def analyse(self, weight: torch.Tensor) -> torch.Tensor:
        """The components themselves, ``[K, ..., d_Y, d_X]``."""
        found = _Components.apply(self.constraint.as_matrices(weight), self)
        assert isinstance(found, torch.Tensor)
        return found

    def components(self, matrices: torch.Tensor) -> torch.Tensor:
        """``P_k W`` for all ``k``, in float64, by Lanczos with full reorthogonalisation."""
        out = torch.zeros(len(self.sigma), *matrices.shape, dtype=torch.float64)
        norm = float(matrices.norm())
        if norm == 0:
            return out
        values = self.sigma.square()
        space = KrylovSpace(self.constraint, matrices)
        while len(space.alpha) < len(values) and not space.exhausted:
            space.extend()
        ritz, mix = space.ritz()
        basis = space.basis()
        nearest = (ritz[:, None] - values[None, :]).abs().argmin(1)
        for k in range(len(values)):
            vectors = mix[:, nearest == k]
            # the Ritz vectors that belong to q_k, weighted by what the weight has of them
            out[k] = ((vectors @ vectors[0]) * norm @ basis).reshape(matrices.shape)
        return out

    def energies(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Squared norms of the components."""
        return coefficients.flatten(1).square().sum(1)

    def synthesise(self, coefficients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the components."""
        return self.constraint.from_matrices(torch.tensordot(factors, coefficients, dims=1))

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return ()


class _Components(torch.autograd.Function):
    """All components at once: linear, with the adjoint ``(G_k) -> sum_k P_k G_k``."""

    @staticmethod
    def forward(ctx, matrices, spectrum):
        """``[K, ...]`` in the dtype of the weight."""
        ctx.spectrum = spectrum
        return spectrum.components(matrices.detach().to("cpu", torch.float64)).to(matrices.device, matrices.dtype)

    @staticmethod
    def backward(ctx, grad):
        """One Krylov space for each component."""
        total = torch.zeros_like(grad[0])
        for k, part in enumerate(grad):
            total += ctx.spectrum.components(part.to("cpu", torch.float64))[k].to(grad.device, grad.dtype)
        return total, None
