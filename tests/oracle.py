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


@dataclass(frozen=True)
class Block:
    """``W -> (W A_X - A_Y W) / length``, on all weights or on those that the Lie generators keep."""

    on_input: np.ndarray
    on_output: np.ndarray
    length: float = 1.0
    is_lie: bool = False
    on_invariants: bool = False

    def matrix(self) -> np.ndarray:
        """``[kron(I, A_X^T) - kron(A_Y, I)] / length`` on row-major weights."""
        eye_in, eye_out = np.eye(len(self.on_input)), np.eye(len(self.on_output))
        return (np.kron(eye_out, self.on_input.T) - np.kron(self.on_output, eye_in)) / self.length


def blocks_of(constraint: Constraint) -> list[Block]:
    """Every letter, as matrices."""
    group = constraint.rep_in.group
    rep_in, rep_out = constraint.rep_in, constraint.rep_out
    found = [
        Block(x.to_dense().numpy(), y.to_dense().numpy(), is_lie=True)
        for x, y in zip(rep_in.generators(), rep_out.generators(), strict=True)
    ]
    found += [
        Block(x.to_dense().numpy(), y.to_dense().numpy(), s.length, on_invariants=s.on_invariants)
        for s, x, y in zip(
            group.discrete_generators(), rep_in.discrete_generators(), rep_out.discrete_generators(), strict=True
        )
    ]
    lengths = {r.name: r.length for rep in (rep_in, rep_out) for r in rep.residual_generators()}
    found += [
        Block(rep_in.residual_map(n).to_dense().numpy(), rep_out.residual_map(n).to_dense().numpy(), length)
        for n, length in lengths.items()
    ]
    return found


def kept_by_lie(blocks: list[Block], dim: int) -> np.ndarray:
    """The orthogonal projector on weights that all Lie generators send to 0."""
    lie = [b.matrix() for b in blocks if b.is_lie]
    _, s, vt = np.linalg.svd(np.concatenate(lie) if lie else np.zeros((1, dim)), full_matrices=True)
    null = vt[int((s > 1e-10).sum()) :]
    return null.T @ null


def oracle(constraint: Constraint) -> Oracle:
    """The SVD of ``L`` on row-major weights; letters that act on invariants see the null space of the Lie part."""
    blocks, dim = blocks_of(constraint), constraint.dim
    rows = [b.matrix() for b in blocks]
    if any(b.on_invariants for b in blocks):
        kept = kept_by_lie(blocks, dim)
        rows = [row @ kept if b.on_invariants else row for b, row in zip(blocks, rows, strict=True)]
    stacked = np.concatenate(rows) if rows else np.zeros((1, dim))
    _, s, vt = np.linalg.svd(stacked, full_matrices=True)
    sigma = np.zeros(dim)
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
