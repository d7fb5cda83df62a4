"""Spectra of the constraint map: singular values of ``L`` and the filters that they allow.

A full spectrum knows the distinct singular values ``sigma_1 < .. < sigma_K`` (whole clusters: numerically equal
values are never parted) with their multiplicities, and splits any weight into its components ``P_k W``. All
filters are ``sum_k f_k P_k W``. Ways to get there, chosen by :mod:`equidial.filters._choice`:

* ``closed_form``: all generators diagonal in unitary bases of X and Y: ``f(|lambda_Y,j - lambda_X,k|)`` entry by
  entry (theory 2). Cost O(d^3) once, four products per call. A single invariant space uses one real basis.
* ``dense``: the SVD of the matrix of ``L``. Cost O(dim^3) once; any generators, small spaces.
* ``isotypic``: sums over a finite group with its characters; nothing of size ``d x d`` is formed.
* ``blocks``: pair by pair of the summands of direct sums (:mod:`._blocks`).
* ``casimir``: polynomials in the Gram operator, where its few eigenvalues are known (:mod:`._casimir`).
* matrix-free, where no full spectrum is known (:mod:`._matrix_free`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

import torch

from equidial.filters._constraint import Constraint
from equidial.filters._products import energies, recombined, runs_on_cpu
from equidial.representations import BlockBasis, Eigenbasis

Method = Literal["closed_form", "dense", "isotypic", "blocks", "casimir", "chebyshev", "lanczos", "subspace", "cg"]
"""How components are computed; the last four are matrix-free, see :mod:`equidial.filters._matrix_free`."""


def cluster(sigma: torch.Tensor, constraint: Constraint) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct values ``[K]`` ascending and, for each entry of ``sigma``, its cluster.

    Values at most ``64 u d scale`` are zero, ``scale`` being a bound of the largest; a gap above ``1e-9 sigma_max``
    separates two clusters.
    """
    flat = sigma.flatten().to(torch.float64)
    dim = max(constraint.rep_in.dim, constraint.rep_out.dim)
    rounding = 64 * torch.finfo(torch.float64).eps * dim * constraint.scale
    flat = torch.where(flat <= rounding, 0.0, flat)
    ordered, order = torch.sort(flat)
    new = torch.ones(len(ordered), dtype=torch.bool)
    new[1:] = ordered.diff() > 1e-9 * flat.max()
    new[1:] |= (ordered[1:] > 0) & (ordered[:-1] == 0)
    label = torch.cumsum(new, 0) - 1
    count = int(label[-1]) + 1 if len(label) else 0
    # the largest member stands for the cluster, so that no bound is ever taken from a smaller one
    values = torch.zeros(count, dtype=torch.float64).scatter_reduce(0, label, ordered, "amax")
    index = torch.empty_like(label)
    index[order] = label
    return values, index.reshape(sigma.shape)


class Spectrum(ABC):
    """Singular values of a constraint and the components of a weight that belong to them."""

    method: Method

    def __init__(self, constraint: Constraint, sigma: torch.Tensor, multiplicity: Sequence[int]):
        self.constraint = constraint
        self.sigma = sigma
        self.multiplicity = tuple(int(m) for m in multiplicity)
        self._cache: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    @abstractmethod
    def analyse(self, weight: torch.Tensor) -> Any:
        """Coefficients of a float32 or float64 weight, linear in it; only this class reads them."""

    @abstractmethod
    def energies(self, coefficients: Any) -> torch.Tensor:
        """``||P_k W||^2`` for each cluster, ``[K]``, over all copies."""

    @abstractmethod
    def synthesise(self, coefficients: Any, factors: torch.Tensor) -> torch.Tensor:
        """``sum_k factors[k] P_k W`` as a weight."""

    def split(self, weight: torch.Tensor) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
        """``energies()`` and ``recombine(factors)`` of one weight: what a filter does, in the cheapest way."""
        coefficients = self.analyse(weight)
        return lambda: self.energies(coefficients), lambda factors: self.synthesise(coefficients, factors)

    def smallest_sigma(self) -> float:
        """The smallest singular value; 0 where the space holds exactly symmetric weights."""
        return float(self.sigma[0])

    def defect_norm(self, weight: torch.Tensor) -> float:
        """``||L W||_F`` in float64."""
        return self.constraint.defect_norm(weight)

    @abstractmethod
    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]: ...

    def tensors(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``(sigma, ...)`` on the device and in the real dtype of ``like``; built once per pair."""
        key = (like.device, like.dtype)
        found = self._cache.get(key)
        if found is None:
            found = (self.sigma.to(like.device, like.dtype), *self._build_tensors(like.device, like.dtype))
            if not torch.compiler.is_compiling():  # a graph that writes to the cache would be compiled twice
                self._cache[key] = found
        return found

    def values(self) -> torch.Tensor:
        """All singular values with multiplicity, ascending, float64."""
        return self.sigma.repeat_interleave(torch.tensor(self.multiplicity))

    def __deepcopy__(self, memo: dict[int, object]) -> Spectrum:
        # immutable but for the cache, and large: copies of a model share it
        return self


_WIDTH = 18
"""Columns up to which weights are laid side by side; measured: a product 9 wide costs twice one 18 wide."""


_MANY = 4
"""Rows per column from which components are made in pieces."""


class BasisSpectrum(Spectrum):
    """A real orthonormal basis of the weight space, columns with a singular value each.

    Kernels of few entries are many rows of few columns, which matrix products are slow at: several rows are laid side
    by side and multiplied by a block-diagonal basis instead.
    """

    def __init__(self, constraint: Constraint, basis: BlockBasis, sigma: torch.Tensor, method: Method):
        values, index = cluster(sigma, constraint)
        super().__init__(constraint, values, torch.bincount(index, minlength=len(values)).tolist())
        self.method = method
        self.basis = basis
        self.index = index
        whole = len(basis.blocks) == 1 and basis.order is None
        self._abreast = max(_WIDTH // basis.dim, 1) if whole else 1
        self._wide = BlockBasis((torch.block_diag(*basis.blocks * self._abreast),)) if self._abreast > 1 else basis

    def analyse(self, weight: torch.Tensor) -> torch.Tensor:
        """``[..., dim]``: components in the basis."""
        flat = self._flat(weight)
        basis, rows, _, tensors = self._laid_out(flat)
        return basis.coefficients(rows, tensors).reshape(flat.shape)

    def energies(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Sums of squares by cluster."""
        _, rows, index, _ = self._laid_out(coefficients)
        total = rows.square().reshape(-1, rows.shape[-1]).sum(0)
        return coefficients.new_zeros(len(self.sigma)).index_add(0, index, total)

    def synthesise(self, coefficients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Two products with the basis in all."""
        basis, rows, index, tensors = self._laid_out(coefficients)
        flat = basis.combine(rows * factors[index], tensors).reshape(coefficients.shape)
        return flat if self.constraint.invariant else flat.unflatten(-1, self.constraint.shape)

    def split(self, weight: torch.Tensor) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
        """Where many rows meet a small basis and Python runs: without the components in memory."""
        flat = self._flat(weight)
        basis, rows, index, tensors = self._laid_out(flat)
        if (
            len(basis.blocks) > 1
            or basis.order is not None
            or rows.numel() < _MANY * rows.shape[-1]
            or not runs_on_cpu(rows)
        ):
            return super().split(weight)
        rows, columns = rows.reshape(-1, rows.shape[-1]), tensors[0]

        def recombine(factors: torch.Tensor) -> torch.Tensor:
            found = recombined(rows, columns, index, factors).reshape(flat.shape)
            return found if self.constraint.invariant else found.unflatten(-1, self.constraint.shape)

        return lambda: energies(rows, columns, index, len(self.sigma)), recombine

    def _laid_out(self, flat: torch.Tensor) -> tuple[BlockBasis, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """The basis, ``flat`` with rows side by side where their number allows it, clusters, tensors of the basis."""
        count = len(self.basis.blocks) + (self.basis.order is not None)
        _, index, *tensors = self.tensors(flat)
        if self._abreast == 1 or flat.numel() % (self._abreast * self.basis.dim):
            return self.basis, flat, index, tuple(tensors[:count])
        rows = flat.reshape(-1, self._abreast * self.basis.dim)
        return self._wide, rows, tensors[-1], tuple(tensors[count:-1])

    def _flat(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self.constraint.invariant else weight.flatten(-2)

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        plain = (self.index.to(device), *self.basis.tensors(device, dtype))
        if self._abreast == 1:
            return plain
        return *plain, *self._wide.tensors(device, dtype), self.index.repeat(self._abreast).to(device)


def two_sided_coefficients(
    matrices: torch.Tensor,
    basis_in: Eigenbasis,
    basis_out: Eigenbasis,
    tensors_in: Sequence[Sequence[torch.Tensor]] | None = None,
    tensors_out: Sequence[Sequence[torch.Tensor]] | None = None,
) -> torch.Tensor:
    """``U_Y^* W U_X`` for real ``W`` ``[..., d_Y, d_X]``, complex; ``tensors``: those of the bases, if at hand."""
    if tensors_in is None or tensors_out is None:
        tensors_in = basis_in.tensors(matrices.device, matrices.dtype)
        tensors_out = basis_out.tensors(matrices.device, matrices.dtype)
    real = basis_out.to_real(basis_in.to_real(matrices, tensors_in).mT, tensors_out).mT
    right = basis_in.to_complex(real.to(torch.promote_types(matrices.dtype, torch.complex64)), tensors_in)
    # (U^* V)^T is the conjugate of conj(V)^T U
    return basis_out.to_complex(right.mT.conj(), tensors_out).conj().mT


_WHOLE = 1 << 22
"""Multiplications up to which two products with whole matrices cost less than many with the blocks of sums."""


def _pieces(basis: Eigenbasis) -> int:
    return sum(copies for copies, _ in basis.blocks)


class TwoSidedSpectrum(Spectrum):
    """Unitary eigenbases on both sides: ``F(W) = U_Y (M o (U_Y^* W U_X)) U_X^*`` (theory 2)."""

    method: Method = "closed_form"

    def __init__(
        self,
        constraint: Constraint,
        basis_in: Eigenbasis,
        basis_out: Eigenbasis,
        values: torch.Tensor,
        index: torch.Tensor,
    ):
        super().__init__(constraint, values, torch.bincount(index.flatten(), minlength=len(values)).tolist())
        d_out, d_in = index.shape
        if max(_pieces(basis_in), _pieces(basis_out)) > 1 and d_out * d_in * (d_out + d_in) <= _WHOLE:
            basis_in, basis_out = basis_in.whole(), basis_out.whole()
        self.basis_in, self.basis_out, self.index = basis_in, basis_out, index
        self._counts = [[len(tensors) for tensors in basis.tensors()] for basis in (basis_in, basis_out)]

    def analyse(self, weight: torch.Tensor) -> torch.Tensor:
        """``U_Y^* W U_X``, complex ``[..., d_Y, d_X]``."""
        tensors_in, tensors_out = self._bases(weight)
        matrices = self.constraint.as_matrices(weight)
        return two_sided_coefficients(matrices, self.basis_in, self.basis_out, tensors_in, tensors_out)

    def energies(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Sums of squared moduli by cluster."""
        square = coefficients.real.square() + coefficients.imag.square()
        total = square.reshape(-1, self.constraint.dim).sum(0)
        index = self.tensors(total)[1].flatten()
        return total.new_zeros(len(self.sigma)).index_add(0, index, total)

    def synthesise(self, coefficients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The real part of ``U_Y (M o C) U_X^*``; its imaginary part is rounding."""
        masked = coefficients * factors[self.tensors(factors)[1]]
        tensors_in, tensors_out = self._bases(factors)
        right = self.basis_in.from_complex(masked, tensors_in)
        real = self.basis_out.from_complex(right.mT.conj(), tensors_out).real
        real = self.basis_in.from_real(self.basis_out.from_real(real, tensors_out).mT, tensors_in)
        return self.constraint.from_matrices(real)

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        bases = (self.basis_in, self.basis_out)
        return (self.index.to(device), *(t for basis in bases for ts in basis.tensors(device, dtype) for t in ts))

    def _bases(self, like: torch.Tensor) -> list[list[tuple[torch.Tensor, ...]]]:
        """The tensors of both bases on the device of ``like``, block by block."""
        _, _, *flat = self.tensors(like)
        rest = iter(flat)
        return [[tuple(islice(rest, count)) for count in counts] for counts in self._counts]


class IsotypicSpectrum(Spectrum):
    """Isotypic components of a finite group: ``P W = sum_g c_g rho_Y(g) W rho_X(g)^-1``, ``c`` from characters.

    Exact for generator sets closed under conjugation (their class sums are scalars on each component). Cost
    O(|G|) group actions a call, memory |G| weights.
    """

    method: Method = "isotypic"

    def __init__(self, constraint: Constraint):
        components = constraint.group.isotypic_components()
        assert components is not None, "checked by build_spectrum"
        self.elements = constraint.group.elements()
        sigma = torch.tensor([c.sigma for c in components], dtype=torch.float64)
        values, index = cluster(sigma, constraint)
        self.coefficients = torch.zeros(len(values), len(self.elements), dtype=torch.float64)
        self.coefficients.index_add_(0, index, torch.tensor([c.coefficients for c in components], dtype=torch.float64))
        characters = torch.tensor(
            [constraint.rep_in.character(g) * constraint.rep_out.character(g) for g in self.elements],
            dtype=torch.float64,
        )
        multiplicity = (self.coefficients @ characters).round().long()
        present = multiplicity > 0
        self.coefficients = self.coefficients[present]
        super().__init__(constraint, values[present], multiplicity[present].tolist())

    def analyse(self, weight: torch.Tensor) -> torch.Tensor:
        """The components themselves, ``[K, ..., d_Y, d_X]``."""
        matrices = self.constraint.as_matrices(weight)
        orbit = torch.stack([self.constraint.transform(g, matrices) for g in self.elements])
        return torch.tensordot(self.tensors(weight)[1], orbit, dims=1)

    def energies(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Squared norms of the components."""
        return coefficients.flatten(1).square().sum(1)

    def synthesise(self, coefficients: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the components."""
        return self.constraint.from_matrices(torch.tensordot(factors, coefficients, dims=1))

    def _build_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return (self.coefficients.to(device, dtype),)
