"""Groups of matrices: the contract of a natural representation, and groups given by generator matrices alone."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import scipy.linalg
import torch

from equidial.errors import ArgumentError, EquidialWarning, GroupActionError, explain
from equidial.groups._base import DiscreteGenerator, Exp, Group, GroupElement, Power, Word, check_count, uniform_in_ball

Entries = tuple[tuple[float, ...], ...]
"""Rows of a matrix: the coordinate of an element, hashable."""

_LOG_TOLERANCE = 1e-8


def entries(matrix: torch.Tensor) -> Entries:
    """The rows of a matrix as tuples; ``-0.0`` becomes ``0.0`` so that equal matrices are equal values."""
    return tuple(tuple(float(x) + 0.0 for x in row) for row in matrix.tolist())


class MatrixGroup(Group):
    """A group of ``n x n`` matrices; the coordinate of an element is the matrix itself, as a tuple of rows.

    Subclasses give ``natural_generators`` (the Lie algebra basis) and ``discrete_generators``. Composition is the
    product of matrices, ``exp(t) = expm(sum_i t_i A_i)``.
    """

    @property
    @abstractmethod
    def natural_dim(self) -> int:
        """Size ``n`` of the matrices."""

    def identity(self) -> GroupElement:
        """The identity matrix."""
        return GroupElement(self, entries(torch.eye(self.natural_dim, dtype=torch.float64)))

    def element(self, value: torch.Tensor | Sequence[Sequence[float]]) -> GroupElement:
        """The element with this matrix; raises ``ArgumentError`` for another size or a matrix outside the group."""
        matrix = torch.as_tensor(value, dtype=torch.float64)
        n = self.natural_dim
        if matrix.shape != (n, n) or not bool(torch.isfinite(matrix).all()):
            raise ArgumentError(
                explain(f"a finite {n} x {n} matrix of {self.name}", f"shape {tuple(matrix.shape)}", "pass its matrix")
            )
        self.check_member(matrix)
        return GroupElement(self, entries(matrix))

    def check_member(self, matrix: torch.Tensor) -> None:
        """Raise ``ArgumentError`` unless the matrix belongs to the group; the default asks for invertibility."""
        if float(torch.linalg.det(matrix).abs()) < 1e-12:
            raise ArgumentError(explain(f"an invertible matrix of {self.name}", "a singular one", "pass an element"))

    def exp(self, t: float | Sequence[float] | torch.Tensor) -> GroupElement:
        """``expm(sum_i t_i A_i)``; raises ``ArgumentError`` for another number of coordinates."""
        algebra = self.natural_generators()
        values = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        if not len(algebra):
            return super().exp(t)
        if values.numel() != len(algebra):
            raise ArgumentError(
                explain(f"{len(algebra)} Lie coordinates of {self.name}", f"{values.numel()}", "pass one per generator")
            )
        combined = torch.tensordot(values, algebra, dims=1).numpy()
        return GroupElement(self, entries(torch.from_numpy(scipy.linalg.expm(combined))))

    def natural_matrix(self, value: Entries) -> torch.Tensor:
        """The matrix, float64."""
        return torch.tensor(value, dtype=torch.float64)

    def compose_values(self, a: Entries, b: Entries) -> Entries:
        """The product of the matrices."""
        return entries(self.natural_matrix(a) @ self.natural_matrix(b))

    def invert_value(self, a: Entries) -> Entries:
        """The inverse matrix."""
        return entries(torch.linalg.inv(self.natural_matrix(a)))

    def lie_coordinates(self, matrix: torch.Tensor) -> torch.Tensor:
        """``t`` with ``expm(sum_i t_i A_i) = matrix``, by the principal logarithm.

        Raises ``GroupActionError`` where the logarithm is not a real combination of the generators (the element
        is not in the image of the exponential, or on the cut where the principal logarithm ends).
        """
        algebra = self.natural_generators()
        n = self.natural_dim
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of an inaccurate result, which is checked below
            log = np.real(scipy.linalg.logm(matrix.numpy()))
        flat = algebra.reshape(len(algebra), n * n).numpy().T
        t = np.linalg.lstsq(flat, log.reshape(-1), rcond=None)[0]
        back = scipy.linalg.expm(np.tensordot(t, algebra.numpy(), axes=1))
        error = float(np.abs(back - matrix.numpy()).max())
        if not error <= _LOG_TOLERANCE * max(1.0, float(matrix.abs().max())):
            raise GroupActionError(
                explain(
                    f"an element of {self.name} that is one exponential",
                    f"a matrix whose logarithm misses it by {error:.1e}",
                    "compose it of exponentials and act with them one after the other",
                )
            )
        return torch.from_numpy(t)

    def word(self, value: Entries) -> Word:
        """One exponential, one letter, or one exponential times a letter; see :meth:`Group.word`."""
        matrix = self.natural_matrix(value)
        if torch.equal(matrix, torch.eye(self.natural_dim, dtype=torch.float64)):
            return ()
        for i, s in enumerate(self.discrete_generators()):
            if s.element.value == value:
                return (Power(i, 1),)
        if self.lie_dim:
            try:
                return (Exp(tuple(self.lie_coordinates(matrix).tolist())),)
            except GroupActionError:
                return self._word_with_letter(matrix)
        return super().word(value)

    def _word_with_letter(self, matrix: torch.Tensor) -> Word:
        """``g = exp(t) s`` for one of the letters."""
        for i, s in enumerate(self.discrete_generators()):
            rest = matrix @ torch.linalg.inv(self.natural_matrix(s.element.value))
            try:
                return (Exp(tuple(self.lie_coordinates(rest).tolist())), Power(i, 1))
            except GroupActionError:
                continue
        raise GroupActionError(
            explain(
                f"an element of {self.name} that is one exponential, or one times a discrete generator",
                "another one",
                "compose it of such elements and act with them one after the other",
            )
        )

    def distance_of_value(self, a: Entries) -> float:
        """Length of the word of the element (an upper bound of the distance)."""
        return self.length_of_word(self.word(a))

    @property
    def _ball_radius(self) -> float:
        """Largest ``||t||`` of a sample: what the longest letter leaves of ``sample_radius``."""
        return self.sample_radius - max((s.length for s in self.discrete_generators()), default=0.0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` elements ``exp(t) s``, ``t`` uniform in a ball, ``s`` a letter or none; within ``sample_radius``."""
        check_count(n)
        out = []
        letters = self.discrete_generators()
        for _ in range(n):
            g = self.identity()
            if self.lie_dim:
                g = self.exp(uniform_in_ball(1, self.lie_dim, self._ball_radius, generator))
            if letters:
                pick = int(torch.randint(len(letters) + 1, (1,), generator=generator))
                g = g @ letters[pick].element if pick < len(letters) else g
            out.append(g)
        return out


class GeneratedGroup(MatrixGroup):
    """A group that the user gives by matrices alone: ``algebra`` ``[n_G, n, n]`` and ``discrete`` matrices.

    ``radius`` defaults to infinity. ``sample_radius``, by default at most 1, bounds ``||t||`` of the declared set of
    elements ``exp(t) s``, of which bounds speak then; a letter adds its length. ``lengths`` of the letters default to
    1. Two groups are equal when all that was given is equal. Checks that all is finite and of one size, and that the
    span of ``algebra`` is closed under the bracket. Spectral subspaces are stable under the group only if the basis
    is orthonormal for an inner product that the group keeps and the letters are closed under conjugation; where they
    are not, ``is_stable`` is false and a warning says so.
    """

    def __init__(
        self,
        name: str,
        algebra: torch.Tensor | Sequence[torch.Tensor] = (),
        discrete: Sequence[torch.Tensor] = (),
        *,
        lengths: Sequence[float] | None = None,
        radius: float = math.inf,
        sample_radius: float | None = None,
    ):
        given = [torch.as_tensor(m, dtype=torch.float64) for m in algebra]
        letters = [torch.as_tensor(m, dtype=torch.float64) for m in discrete]
        self._n = _common_size([*given, *letters])
        self._name = str(name)
        self._algebra = torch.stack(given) if given else torch.zeros(0, self._n, self._n, dtype=torch.float64)
        if not radius > 0:
            raise ArgumentError(explain("a radius > 0", repr(radius), "leave it out for an unbounded group"))
        self._radius = float(radius)
        self._ball = float(sample_radius) if sample_radius is not None else min(self._radius, 1.0)
        if lengths is not None and (len(lengths) != len(letters) or min(lengths, default=1.0) <= 0):
            raise ArgumentError(
                explain(f"{len(letters)} positive lengths", repr(lengths), "give one per discrete generator")
            )
        if given and torch.linalg.matrix_rank(self._algebra.flatten(1)) < len(given):
            raise ArgumentError(
                explain("linearly independent generators", f"{len(given)} dependent ones", "remove the dependent ones")
            )
        self.structure_constants()  # raises where the span is not closed under the bracket
        self._letters = tuple(
            DiscreteGenerator(self.element(m), float(lengths[i]) if lengths is not None else 1.0)
            for i, m in enumerate(letters)
        )
        reason = self._why_unstable
        if reason:
            warnings.warn(
                explain(
                    f"generators of {self._name} whose Gram operator commutes with the group",
                    reason,
                    "expect soft subspaces that the group does not keep; bounds hold all the same",
                ),
                EquidialWarning,
                stacklevel=2,
            )

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    @property
    def natural_dim(self) -> int:
        """Size of the matrices."""
        return self._n

    @property
    def lie_dim(self) -> int:
        """Number of generators in ``algebra``."""
        return len(self._algebra)

    @property
    def order(self) -> None:
        """Not known."""
        return None

    @property
    def radius(self) -> float:
        """The radius given."""
        return self._radius

    @property
    def sample_radius(self) -> float:
        """The ``sample_radius`` given and the longest letter; at most the radius."""
        return min(self._radius, self._ball + max((s.length for s in self._letters), default=0.0))

    @property
    def _ball_radius(self) -> float:
        return self._ball

    @property
    def is_stable(self) -> bool:
        """Whether the checks of the class docstring passed."""
        return self._why_unstable is None

    def natural_generators(self) -> torch.Tensor:
        """``algebra``."""
        return self._algebra

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """``discrete``, with their lengths."""
        return self._letters

    def _given(self) -> tuple[object, ...]:
        letters = tuple((s.element.value, s.length) for s in self._letters)
        algebra = tuple(entries(a) for a in self._algebra)
        return self._name, self._n, algebra, letters, self._radius, self._ball

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneratedGroup) and self._given() == other._given()

    def __hash__(self) -> int:
        return hash((self._name, self._n, self._radius))

    @cached_property
    def _why_unstable(self) -> str | None:
        if len(self._algebra) and not _is_antisymmetric(self.structure_constants()):
            return "a basis that is not orthonormal for an invariant inner product (brackets not antisymmetric)"
        if len(self._algebra) and float((self._algebra + self._algebra.mT).abs().max()) > 1e-9:
            return "generators that are not skew (the group does not act orthogonally)"
        for s in self._letters:
            m, inverse = (self.natural_matrix(v) for v in (s.element.value, self.invert_value(s.element.value)))
            for h in self._letters:
                k = self.natural_matrix(h.element.value)
                moved = k @ m @ torch.linalg.inv(k)
                if not any(_near(moved, x) or _near(torch.linalg.inv(moved), x) for x in self._letter_matrices):
                    return "discrete generators that are not closed under conjugation"
            for a in self._algebra:
                # Ad(s) must map the span of the algebra to itself, and s must commute with it up to the letters
                if not _near(a @ m, m @ a) and not _near(a @ inverse, inverse @ a):
                    return "a discrete generator that the connected part moves (no finite set of letters is closed)"
        return None

    @cached_property
    def _letter_matrices(self) -> list[torch.Tensor]:
        return [self.natural_matrix(s.element.value) for s in self._letters]


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max())))


def _is_antisymmetric(f: torch.Tensor) -> bool:
    """Whether ``f_ijk`` changes sign under ``j <-> k`` too (it does under ``i <-> j``)."""
    return bool((f + f.transpose(1, 2)).abs().max() <= 1e-9 * max(1.0, float(f.abs().max())))


def _common_size(matrices: Sequence[torch.Tensor]) -> int:
    """The size shared by square finite matrices; raises ``ArgumentError``."""
    shapes = {tuple(m.shape) for m in matrices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or len(set(next(iter(shapes)))) != 1:
        raise ArgumentError(
            explain(
                "generators that are square matrices of one size",
                f"shapes {sorted(shapes)}",
                "give every generator in the same representation",
            )
        )
    if not all(bool(torch.isfinite(m).all()) for m in matrices):
        raise ArgumentError(explain("finite generators", "NaN or infinite entries", "check the matrices"))
    return next(iter(shapes))[0]
