"""Groups with a reflection that moves their connected part: O(n) for even n.

One mirror alone would split irreducible spaces, and no finite set of mirrors is closed under conjugation. So the
Lie generators come first, and the reflection splits what they keep, where all mirrors act alike: ``P_0 W`` into an
even part (sigma 0) and an odd part (sigma ``2 / |s|``). Both are stable under the group (theory 1).

A priori: for a mirror ``s`` and ``W = W_0 + W_1``, ``W_0`` kept by SO(n),

    ||s.W - W||^2 <= ||s.W_0 - W_0||^2 + 4 ||W_1||^2 <= |s|^2 ||L W||^2

because ``||L W_1|| >= ||W_1||`` (the smallest Casimir eigenvalue but 0 is at least 1) and ``4 <= pi^2``.
"""

from __future__ import annotations

import math

import torch

from equidial.filters._casimir import CasimirSpectrum, known_spectrum
from equidial.filters._constraint import Constraint, Letter
from equidial.filters._spectrum import BasisSpectrum, Spectrum, TwoSidedSpectrum

_Coefficients = tuple[object, torch.Tensor]


class ReflectedSpectrum(Spectrum):
    """The spectrum ``inner`` of the connected part, its zero cluster split by an involution ``letter``."""

    def __init__(self, constraint: Constraint, inner: Spectrum, letter: Letter):
        self.inner, self.letter = inner, letter
        self.method = inner.method
        # how many clusters of inner are split: the zero cluster, or none where the connected part keeps nothing
        self._zeros = int(float(inner.sigma[0]) == 0)
        kept, odd = (inner.multiplicity[0], _odd_dimension(constraint, inner, letter)) if self._zeros else (0, 0)
        rest = inner.sigma[self._zeros :]
        self._present = torch.tensor([kept > odd, odd > 0] + [True] * len(rest))
        sigma = torch.cat([torch.tensor([0.0, 2 / letter.length], dtype=torch.float64), rest])
        multiplicity = [kept - odd, odd, *inner.multiplicity[self._zeros :]]
        # the odd part may lie above other values: clusters are kept in ascending order
        self._order = torch.argsort(sigma, stable=True)
        self._order = self._order[self._present[self._order]]
        super().__init__(constraint, sigma[self._order], [multiplicity[i] for i in self._order.tolist()])

    def analyse(self, weight: torch.Tensor) -> _Coefficients:
        """Coefficients of ``inner`` and the odd part ``(P_0 W - s.P_0 W) / 2``."""
        coefficients = self.inner.analyse(weight)
        keep = torch.zeros(len(self.inner.sigma), dtype=weight.dtype, device=weight.device)
        keep[: self._zeros] = 1.0
        kept = self.constraint.as_matrices(self.inner.synthesise(coefficients, keep))
        moved = self.letter.on_input.on_last_axis(kept)
        moved = self.letter.on_output.on_last_axis(moved.mT).mT
        return coefficients, self.constraint.from_matrices((kept - moved) / 2)

    def energies(self, coefficients: _Coefficients) -> torch.Tensor:
        """Those of ``inner``, the first one split."""
        inner, odd = coefficients
        found = self.inner.energies(inner)
        turned = odd.square().sum()
        zero = found[: self._zeros].sum()
        split = torch.stack([(zero - turned).clamp_min(0.0), turned.to(found.dtype)])
        return torch.cat([split, found[self._zeros :]])[self._order.to(found.device)]

    def synthesise(self, coefficients: _Coefficients, factors: torch.Tensor) -> torch.Tensor:
        """``inner`` with the factor of the even part, and the difference on the odd part."""
        inner, odd = coefficients
        spread = factors.new_zeros(len(self._present)).index_copy(0, self._order.to(factors.device), factors)
        even = torch.cat([spread[: self._zeros], spread[2:]])
        return self.inner.synthesise(inner, even) + (spread[1] - spread[0]) * odd

    def defect_norm(self, weight: torch.Tensor) -> float:
        """``sqrt(sum_k sigma_k^2 ||P_k W||^2)``: the reflection counts on what the connected part keeps."""
        self.constraint.check(weight)
        work = weight.detach().to("cpu", torch.float64)
        connected = self.constraint.connected.defect_norm(work)
        _, odd = self.analyse(work)
        return math.hypot(connected, 2 / self.letter.length * float(odd.norm()))

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return ()


def _odd_dimension(constraint: Constraint, inner: Spectrum, letter: Letter) -> int:
    """Dimension of the part of the zero cluster that the letter turns over: ``(dim - trace) / 2``."""
    if isinstance(inner, CasimirSpectrum):
        whole = known_spectrum(constraint)
        assert whole is not None, "known for the connected part, so for the whole group"
        return inner.multiplicity[0] - whole.get(0.0, 0)
    if isinstance(inner, TwoSidedSpectrum):
        on_zero = (inner.index == 0).to(torch.complex128)
        diagonals = []
        for basis, mapped in ((inner.basis_out, letter.on_output), (inner.basis_in, letter.on_input)):
            u = basis.to_dense()
            diagonals.append(torch.einsum("ij,ij->j", u.conj(), mapped.to_dense().to(u.dtype) @ u))
        trace = float((diagonals[0] @ on_zero @ diagonals[1].conj()).real)
    else:
        assert isinstance(inner, BasisSpectrum), "full spectra are of these kinds"
        columns = inner.basis.to_dense()[:, inner.index == 0].mT.reshape(
            -1, constraint.rep_out.dim, constraint.rep_in.dim
        )
        moved = letter.on_output.on_last_axis(letter.on_input.on_last_axis(columns).mT).mT
        trace = float((columns * moved).sum())
    return round((inner.multiplicity[0] - trace) / 2)
