"""A dense oracle, written apart from the library: numpy, Kronecker products and the SVD.

Only the matrices of generators come from representations (and are tested on their own against rot90, flip, roll).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from equidial.filters import Constraint


@dataclass(frozen=True)
class Oracle:
    """Singular values and right singular vectors of ``L`` for one space."""

    sigma: np.ndarray
    vectors: np.ndarray

    def components(self, weight: torch.Tensor) -> np.ndarray:
        """``[copies, dim]`` components of a weight."""
        return weight.numpy().reshape(-1, len(self.sigma)) @ self.vectors

    def filtered(self, weight: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
        """``sum_k f_k P_k W``."""
        found = (self.components(weight) * factors) @ self.vectors.T
        return torch.from_numpy(found.reshape(weight.shape))


def generator_pairs(constraint: Constraint) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """``(A_X, A_Y, length)`` of every letter, as matrices."""
    group = constraint.rep_in.group
    rep_in, rep_out = constraint.rep_in, constraint.rep_out
    pairs = [
        (x.to_dense().numpy(), y.to_dense().numpy(), 1.0)
        for x, y in zip(rep_in.generators(), rep_out.generators(), strict=True)
    ]
    pairs += [
        (x.to_dense().numpy(), y.to_dense().numpy(), s.length)
        for s, x, y in zip(
            group.discrete_generators(), rep_in.discrete_generators(), rep_out.discrete_generators(), strict=True
        )
    ]
    lengths = {r.name: r.length for rep in (rep_in, rep_out) for r in rep.residual_generators()}
    pairs += [
        (rep_in.residual_map(n).to_dense().numpy(), rep_out.residual_map(n).to_dense().numpy(), length)
        for n, length in lengths.items()
    ]
    return pairs


def oracle(constraint: Constraint) -> Oracle:
    """The SVD of ``L = [kron(I, A_X^T) - kron(A_Y, I)] / |s|`` on row-major weights."""
    d_in, d_out = constraint.rep_in.dim, constraint.rep_out.dim
    blocks = [
        (np.kron(np.eye(d_out), a_in.T) - np.kron(a_out, np.eye(d_in))) / length
        for a_in, a_out, length in generator_pairs(constraint)
    ]
    stacked = np.concatenate(blocks) if blocks else np.zeros((1, d_in * d_out))
    _, s, vt = np.linalg.svd(stacked, full_matrices=True)
    sigma = np.zeros(d_in * d_out)
    sigma[: len(s)] = s[: len(sigma)]
    top = sigma.max(initial=0.0)
    sigma[sigma <= 1e-12 * max(top, 1.0) * len(sigma)] = 0.0
    return Oracle(sigma, vt.T)


def factors(response: str, sigma: np.ndarray, b: float) -> np.ndarray:
    """The responses from their definitions; the taper's step by numerical integration of ``(t (1 - t))^7``."""
    if math.isinf(b):
        return np.ones_like(sigma)
    if b == 0:
        return (sigma == 0).astype(float)
    if response == "hard":
        return (sigma <= b * (1 + 1e-9)).astype(float)
    if response == "exponential":
        return np.exp(-sigma / b)
    nodes, weights = np.polynomial.legendre.leggauss(16)  # exact for the degree 14 of the integrand

    def step(u: float) -> float:
        u = min(max(u, 0.0), 1.0)
        t = u * (nodes + 1) / 2
        whole = math.factorial(7) ** 2 / math.factorial(15)
        return float((weights * (t * (1 - t)) ** 7).sum() * u / 2 / whole)

    return np.array([1 - step(2 * s / b - 1) for s in sigma])
