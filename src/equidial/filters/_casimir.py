"""Spectra of Gram operators with few, known eigenvalues: exact by polynomials (theory 3).

On tensors the Gram operator of a compact group is its Casimir operator (of the symmetric group: the sum of all
transpositions), with a small known set of eigenvalues ``q_1 .. q_K``. A polynomial that is 1 at ``q_k`` and 0 at the
others is the projector ``P_k`` exactly, and ``K - 1`` applications of ``Q`` give all of them.
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from equidial.filters._constraint import Constraint
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
    """Projectors as polynomials in ``Q``, in Newton form at Leja points.

    Cost ``K - 1`` applications of ``Q`` per call and memory ``2 K`` weights, ``K`` the number of eigenvalues; nothing
    of size ``d x d`` is formed.
    """

    method: Method = "casimir"

    def __init__(self, constraint: Constraint, eigenvalues: dict[float, int]):
        values = sorted(eigenvalues)
        sigma = torch.tensor([math.sqrt(q) for q in values], dtype=torch.float64)
        super().__init__(constraint, sigma, [eigenvalues[q] for q in values])
        self._nodes = _leja(values)
        span = max(values) - min(values)
        self._step = span / 4 if span > 0 else 1.0  # the capacity of the interval keeps Newton's products near 1
        newton = torch.zeros(len(values), len(values), dtype=torch.float64)
        for i, x in enumerate(self._nodes):
            product = 1.0
            for j, node in enumerate(self._nodes):
                newton[i, j] = product
                product *= (x - node) / self._step
        # row k: the polynomial that is 1 at node k and 0 at the others, in Newton's basis
        identity = torch.eye(len(values), dtype=torch.float64)
        polynomials = torch.linalg.solve_triangular(newton, identity, upper=False).mT
        order = sorted(range(len(values)), key=self._nodes.__getitem__)
        self._polynomials = polynomials[order]

    def analyse(self, weight: torch.Tensor) -> torch.Tensor:
        """The components themselves, ``[K, ..., d_Y, d_X]``."""
        matrices = self.constraint.as_matrices(weight)
        powers = [matrices]
        for node in self._nodes[:-1]:
            powers.append((self.constraint.gram(powers[-1]) - node * powers[-1]) / self._step)
        return torch.tensordot(self.tensors(weight)[1], torch.stack(powers), dims=1)

    def energies(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Squared norms of the components."""
        return coefficients.flatten(1).square().sum(1)

    def synthesise(self, coefficients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the components."""
        return self.constraint.from_matrices(torch.tensordot(factors, coefficients, dims=1))

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return (self._polynomials.to(device, dtype),)


def _leja(values: list[float]) -> list[float]:
    """The values in Leja's order: each next one is farthest, in the product of distances, from those before."""
    chosen = [max(values, key=abs)]
    rest = [v for v in values if v != chosen[0]]
    while rest:
        following = max(rest, key=lambda v: sum(math.log(abs(v - c)) for c in chosen))
        chosen.append(following)
        rest.remove(following)
    return chosen
