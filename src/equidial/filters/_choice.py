"""The one place that chooses how a constraint is decomposed, from its size, normality and response."""

from __future__ import annotations

from typing import get_args

import torch

from equidial.errors import ArgumentError, explain
from equidial.filters._blocks import BlocksSpectrum, Summands
from equidial.filters._casimir import CasimirSpectrum, known_spectrum
from equidial.filters._constraint import Constraint
from equidial.filters._matrix_free import TOLERANCE, MatrixFreeSpectrum
from equidial.filters._reflected import ReflectedSpectrum
from equidial.filters._spectrum import BasisSpectrum, IsotypicSpectrum, Method, Spectrum, TwoSidedSpectrum, cluster
from equidial.representations import BlockBasis, DirectSum, Eigenbasis, Representation

DENSE_LIMIT = 1024
"""Largest dimension of the weight space at which the dense method is chosen unasked."""

_SMALL = 256  # the same where the Casimir spectrum is known

_DENSE_MEMORY = 4 * 2**30  # bytes that an explicit method="dense" may take

_MATRIX_FREE = ("chebyshev", "lanczos", "subspace", "cg")


def build_spectrum(
    constraint: Constraint, method: str | None = None, tolerance: float = TOLERANCE
) -> Spectrum | MatrixFreeSpectrum:
    """The decomposition of a constraint by the cheapest exact method, or by the one asked for.

    Order of choice: ``closed_form`` where all generators have a common eigenbasis (normal and commuting), ``dense``
    up to a weight space of ``DENSE_LIMIT`` dimensions, ``isotypic`` sums of a finite group with a character table,
    ``blocks`` where the summands of a direct sum are that small pair by pair, ``casimir`` where the eigenvalues of the
    Gram operator are known, else matrix-free: ``chebyshev`` for ``taper``, ``lanczos`` for ``exponential``,
    ``subspace`` for ``hard`` and exact symmetry, ``cg`` for ``nearest``. What those lose is said in
    :mod:`equidial.filters._matrix_free`. Raises ``ArgumentError`` where the method asked for cannot treat the
    constraint, or where the dense one would not fit in memory.
    """
    if method is not None and method not in get_args(Method):
        raise ArgumentError(explain(f"a method out of {get_args(Method)}", repr(method), "or None to choose"))
    if method in _MATRIX_FREE:
        _refuse_reflection(constraint, method)
        return MatrixFreeSpectrum(constraint, tolerance, method)
    if method == "blocks" or (method is None and _eigenbases(constraint) is None and _prefers_blocks(constraint)):
        return _blocks(constraint)
    letters = [letter for letter in constraint.letters if letter.on_invariants]
    if letters:
        inner = build_spectrum(constraint.connected, method, tolerance)
        if isinstance(inner, MatrixFreeSpectrum):
            _refuse_reflection(constraint, "a matrix-free method")
            return inner
        return ReflectedSpectrum(constraint, inner, letters[0])
    if method is None:
        method = _choose(constraint)
    if method == "closed_form":
        found = _eigenbases(constraint)
        if found is None:
            raise _unavailable(method, constraint, "has generators without a common eigenbasis", "dense")
        return _closed_form(constraint, *found)
    if method == "isotypic":
        if not _is_isotypic(constraint):
            raise _unavailable(
                method, constraint, "has no finite group with a character table that acts exactly", "closed_form"
            )
        return IsotypicSpectrum(constraint)
    if method == "casimir":
        known = known_spectrum(constraint)
        if known is None:
            raise _unavailable(
                method, constraint, "is no sum of tensor powers of a group with a known Casimir spectrum", "dense"
            )
        return CasimirSpectrum(constraint, known)
    if method == "dense":
        return _dense(constraint)
    return MatrixFreeSpectrum(constraint, tolerance)


def _choose(constraint: Constraint) -> str:
    if _eigenbases(constraint) is not None:
        return "closed_form"
    known = known_spectrum(constraint) is not None
    if constraint.dim <= (_SMALL if known else DENSE_LIMIT):
        return "dense"
    if _is_isotypic(constraint):
        return "isotypic"
    return "casimir" if known else "matrix_free"


def _prefers_blocks(constraint: Constraint) -> bool:
    """A large space, no finite group with characters, and summands that are small pair by pair."""
    if _is_isotypic(constraint) or not isinstance(constraint.rep_in, DirectSum) | isinstance(
        constraint.rep_out, DirectSum
    ):
        return False
    known = known_spectrum(constraint) is not None
    sides = [Summands.of(rep).kinds for rep in (constraint.rep_in, constraint.rep_out)]
    largest = max(rep.dim for rep, _ in sides[0]) * max(rep.dim for rep, _ in sides[1])
    return constraint.dim > (_SMALL if known else DENSE_LIMIT) and largest <= (_SMALL if known else DENSE_LIMIT)


def _blocks(constraint: Constraint) -> Spectrum:
    on_input, on_output = Summands.of(constraint.rep_in), Summands.of(constraint.rep_out)
    pairs = []
    for rep_out, _ in on_output.kinds:
        row = [build_spectrum(Constraint.equivariants(rep_in, rep_out)) for rep_in, _ in on_input.kinds]
        if any(isinstance(spectrum, MatrixFreeSpectrum) for spectrum in row):
            raise _unavailable("blocks", constraint, "has summands too large for a full spectrum", "chebyshev")
        pairs.append([spectrum for spectrum in row if isinstance(spectrum, Spectrum)])
    return BlocksSpectrum(constraint, on_input, on_output, pairs)


def _eigenbases(constraint: Constraint) -> tuple[Eigenbasis, Eigenbasis] | None:
    basis_in = constraint.rep_in.eigenbasis()
    if basis_in is None:
        return None
    basis_out = constraint.rep_out.eigenbasis()
    return None if basis_out is None else (basis_in, basis_out)


def _is_isotypic(constraint: Constraint) -> bool:
    # residual letters are no elements of the group, so that its characters do not know them
    residual = constraint.rep_in.residual_generators() or constraint.rep_out.residual_generators()
    group = constraint.group
    return not residual and group.is_finite and group.isotypic_components() is not None and constraint.is_orthogonal


def _refuse_reflection(constraint: Constraint, method: str) -> None:
    if any(letter.on_invariants for letter in constraint.letters):
        raise ArgumentError(
            explain(
                f"a group without a reflection that moves its connected part, for {method}",
                constraint.name,
                "use its connected part (SO2 for O2, SO(n) for O(n)), tensors of it, or method='dense'",
            )
        )


def _dense(constraint: Constraint) -> Spectrum:
    need = 8 * constraint.dim**2 * (2 * max(len(constraint.letters), 1) + 1)
    if need > _DENSE_MEMORY:
        raise ArgumentError(
            explain(
                f"a dense constraint of at most {_DENSE_MEMORY / 2**30:.0f} GiB",
                f"{need / 2**30:.1f} GiB for {constraint.name} ({constraint.dim} dimensions)",
                "use method=None to choose, 'closed_form', 'isotypic' or 'casimir', or a matrix-free one: "
                "'chebyshev' (taper), 'lanczos' (exponential), 'subspace' (hard), 'cg' (nearest)",
            )
        )
    matrix = constraint.dense()
    if len(matrix) > 2 * constraint.dim:  # the triangular factor has the same right singular vectors
        matrix = torch.linalg.qr(matrix, mode="r").R
    elif len(matrix) < constraint.dim:
        matrix = torch.cat([matrix, matrix.new_zeros(constraint.dim - len(matrix), constraint.dim)])
    _, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return BasisSpectrum(constraint, BlockBasis((vh.mT.contiguous(),)), sigma, "dense")


def _closed_form(constraint: Constraint, basis_in: Eigenbasis, basis_out: Eigenbasis) -> Spectrum:
    """``sigma_jk^2 = sum_s |lambda_Y,j(s) - lambda_X,k(s)|^2 / |s|^2``, once for each pair of distinct eigenvalues."""
    (on_input, at_input), (on_output, at_output) = (
        _distinct(_eigenvalues(constraint, basis)) for basis in (basis_in, basis_out)
    )
    lengths = torch.tensor([letter.length for letter in constraint.letters], dtype=torch.float64)
    difference = (on_output[:, :, None] - on_input[:, None, :]).abs() / lengths[:, None, None]
    sigma = difference.square().sum(0).sqrt()
    if constraint.invariant and basis_in.paired and not isinstance(constraint.rep_in, DirectSum):
        return BasisSpectrum(constraint, basis_in.real_basis(), sigma[0, at_input], "closed_form")
    values, label = cluster(sigma, constraint)
    return TwoSidedSpectrum(constraint, basis_in, basis_out, values, label[at_output[:, None], at_input[None, :]])


def _eigenvalues(constraint: Constraint, basis: Eigenbasis) -> torch.Tensor:
    """``[letters, d]`` complex: those of generators in order, of residual letters by name (1 where there is none)."""
    rows = []
    known = {name for rep in (constraint.rep_in, constraint.rep_out) for name in _residual_names(rep)}
    generators = iter(basis.values)
    for letter in constraint.letters:
        if letter.name in known:
            rows.append(basis.residuals.get(letter.name, torch.ones(basis.dim, dtype=torch.complex128)))
        else:
            rows.append(next(generators))
    return torch.stack(rows) if rows else torch.zeros(0, basis.dim, dtype=torch.complex128)


def _residual_names(rep: Representation) -> list[str]:
    return [residual.name for residual in rep.residual_generators()]


def _distinct(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct columns ``[letters, count]`` and, for each column, which one it is; equal to the last bit."""
    if not len(values):
        return values[:, :1], torch.zeros(values.shape[1], dtype=torch.long)
    flat, index = torch.unique(torch.view_as_real(values.mT).flatten(1), dim=0, return_inverse=True)
    return torch.view_as_complex(flat.reshape(len(flat), -1, 2)).mT, index


def _unavailable(method: str, constraint: Constraint, why: str, other: str) -> ArgumentError:
    return ArgumentError(
        explain(
            f"a constraint that method={method!r} can treat",
            f"{constraint.name}, which {why}",
            f"use method={other!r}, or None to let the library choose",
        )
    )
