"""The Gram operator of Lie generators on tensors, pair of legs by pair of legs.

A weight between tensor products is one tensor whose legs a generator moves one at a time, ``L_i = sum_l B_il``, so

    Q = sum_i L_i^T L_i = sum_l D_l + sum_(l<m) P_lm
    D_l = sum_i B_il^T B_il,   P_lm = sum_i B_il^T (x) B_im + B_il (x) B_im^T

The sums over generators are done once, on matrices of size ``n`` and ``n^2``: the cost of ``Q W`` no longer grows with
the number of generators.
"""

from __future__ import annotations

import itertools
import math

import torch

from equidial.representations import Representation, TensorProduct, Trivial

_LARGEST_LEG = 16


class LegGram:
    """``Q W`` for weights ``[..., d_Y, d_X]`` with ``rep_in`` and ``rep_out`` products of small legs."""

    def __init__(self, rep_in: Representation, rep_out: Representation):
        legs_out, legs_in = legs_of(rep_out), legs_of(rep_in)
        self.sizes = [leg.dim for leg in (*legs_out, *legs_in)]
        # output legs carry -A, input legs A^T (W A contracts the last index of W with the first of A)
        moves = [torch.stack([-a.to_dense() for a in leg.generators()]) for leg in legs_out]
        moves += [torch.stack([a.to_dense().mT for a in leg.generators()]) for leg in legs_in]
        own = [torch.einsum("iab,iac->bc", b, b) for b in moves]
        eyes = [torch.eye(size, dtype=torch.float64) for size in self.sizes]
        self._matrices = {}
        for (l, a), (m, b) in itertools.combinations(enumerate(moves), 2):
            pair = torch.einsum("iba,icd->acbd", a, b) + torch.einsum("iab,idc->acbd", a, b)
            # each leg stands in one pair fewer than there are legs: D_l is shared out among them
            alone = torch.einsum("ab,cd->acbd", own[l], eyes[m]) + torch.einsum("ab,cd->acbd", eyes[l], own[m])
            size = self.sizes[l] * self.sizes[m]
            self._matrices[l, m] = (pair + alone / (len(moves) - 1)).reshape(size, size)

    def __call__(self, matrices: torch.Tensor) -> torch.Tensor:
        """``Q W``; cost ``O(d_Y d_X sum_(l<m) n_l n_m)``."""
        x = matrices.reshape(-1, *self.sizes)
        total = torch.zeros_like(x)
        for (l, m), matrix in self._matrices.items():
            moved = x.movedim((l + 1, m + 1), (-2, -1))
            image = moved.reshape(-1, len(matrix)) @ matrix.to(x.device, x.dtype).mT
            total += image.reshape(moved.shape).movedim((-2, -1), (l + 1, m + 1))
        return total.reshape(matrices.shape)


def legs_of(rep: Representation) -> tuple[Representation, ...]:
    """The factors of a tensor product; the representation itself otherwise, nothing for a scalar."""
    if isinstance(rep, TensorProduct):
        return tuple(leg for leg in rep.factors if not isinstance(leg, Trivial))
    return () if isinstance(rep, Trivial) else (rep,)


def leg_gram(rep_in: Representation, rep_out: Representation) -> LegGram | None:
    """The operator, where there are several generators and at least three small legs; else ``None``."""
    legs = (*legs_of(rep_in), *legs_of(rep_out))
    small = all(leg.dim <= _LARGEST_LEG for leg in legs)
    if len(legs) < 3 or not small or rep_in.group.lie_dim < 2 or math.prod(leg.dim for leg in legs) < 64:
        return None
    return LegGram(rep_in, rep_out)
