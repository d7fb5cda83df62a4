"""The compact classical groups SO(n) and O(n), and the Lorentz groups."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import scipy.linalg
import torch

from equidial.errors import ArgumentError, explain
from equidial.groups._base import DiscreteGenerator, Exp, Group, GroupElement, Power, Word, check_count
from equidial.groups._matrix import Entries, MatrixGroup, entries
from equidial.groups._weights import orthogonal_invariants, orthogonal_tensor_spectrum

_MEMBER = 1e-9  # how far M^T eta M may be from eta


class _Orthogonal(MatrixGroup):
    """What SO(n) and O(n) share: the basis ``E_ij - E_ji`` (``i < j``, row-major), Haar sampling, logarithms."""

    n: int

    @property
    def natural_dim(self) -> int:
        """``n``."""
        return self.n

    @property
    def order(self) -> None:
        """Infinite."""
        return None

    @property
    def lie_dim(self) -> int:
        """``n (n - 1) / 2``."""
        return self.n * (self.n - 1) // 2

    def natural_generators(self) -> torch.Tensor:
        """``A_ij = E_ji - E_ij`` for ``i < j``: the rotation from axis ``i`` towards axis ``j``."""
        return _planes(self.n)

    def invert_value(self, a: Entries) -> Entries:
        """The transpose."""
        return entries(self.natural_matrix(a).mT)

    def check_member(self, matrix: torch.Tensor) -> None:
        """Raise ``ArgumentError`` unless the matrix is orthogonal, with determinant 1 in SO(n)."""
        error = float((matrix.mT @ matrix - torch.eye(self.n, dtype=torch.float64)).abs().max())
        determinant = float(torch.linalg.det(matrix))
        if error > _MEMBER or (isinstance(self, SpecialOrthogonal) and determinant < 0):
            raise ArgumentError(
                explain(
                    f"an orthogonal matrix of {self.name}",
                    f"one with M^T M off the identity by {error:.1e} and determinant {determinant:.3g}",
                    "pass an element of the group, or use exp()",
                )
            )

    def lie_coordinates(self, matrix: torch.Tensor) -> torch.Tensor:
        """``t`` of smallest norm with ``exp(t) = matrix``; the norm is ``sqrt(sum of squared angles)``."""
        log = _rotation_logarithm(matrix)
        rows, columns = torch.triu_indices(self.n, self.n, 1)
        return log[columns, rows]

    def _haar(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """Haar-distributed orthogonal matrices: QR of a Gaussian, signs of R made positive (Mezzadri 2007)."""
        gaussian = torch.randn(n, self.n, self.n, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        return q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]


@dataclass(frozen=True, repr=False)
class SpecialOrthogonal(_Orthogonal):
    """Rotations of R^n, ``n >= 3``; the coordinate of an element is its matrix. Build it with :func:`SO`.

    Lie basis ``A_ij = E_ji - E_ij``, orthonormal for ``-tr(AB)/2``, so that ``sigma^2`` are Casimir eigenvalues and
    ``||t||`` is the root of the sum of squared rotation angles. Radius ``pi sqrt(floor(n/2))``.
    """

    n: int

    @property
    def name(self) -> str:
        """``"SO<n>"``."""
        return f"SO{self.n}"

    @property
    def radius(self) -> float:
        """``pi sqrt(floor(n/2))``: all angles pi."""
        return math.pi * math.sqrt(self.n // 2)

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """None."""
        return ()

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` rotations from the Haar measure."""
        check_count(n)
        matrices = self._haar(n, generator)
        # a mirror of the last axis carries the Haar measure of the other component to this one
        matrices[:, :, -1] *= torch.linalg.det(matrices).sign()[:, None]
        return [GroupElement(self, entries(m)) for m in matrices]

    def tensor_spectrum(self, order: int) -> dict[float, int]:
        """Casimir eigenvalues ``<l, l + 2 rho>`` on T(order), by repeated tensoring with the vector."""
        return orthogonal_tensor_spectrum(self.n, order)


@dataclass(frozen=True, repr=False)
class Orthogonal(_Orthogonal):
    """Rotations and reflections of R^n, ``n >= 3``; the coordinate is the matrix. Build it with :func:`O`.

    Lie basis of SO(n). Odd ``n``: the letter ``-I`` of length pi, which commutes with everything. Even ``n``: the
    mirror of the last axis, length pi, applied to what SO(n) keeps (see :class:`DiscreteGenerator`).
    """

    n: int

    @property
    def name(self) -> str:
        """``"O<n>"``."""
        return f"O{self.n}"

    @property
    def radius(self) -> float:
        """``pi sqrt(floor(n/2)) + pi`` for odd ``n``; ``pi sqrt(n/2 - 1) + pi`` for even ``n``."""
        angles = self.n // 2 if self.n % 2 else self.n // 2 - 1
        return math.pi * math.sqrt(angles) + math.pi

    @property
    def connected(self) -> Group:
        """SO(n)."""
        return SpecialOrthogonal(self.n)

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """``-I`` or the mirror of the last axis."""
        matrix = torch.eye(self.n, dtype=torch.float64)
        if self.n % 2:
            matrix = -matrix
        else:
            matrix[-1, -1] = -1.0
        return (DiscreteGenerator(GroupElement(self, entries(matrix)), math.pi, on_invariants=self.n % 2 == 0),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[GroupElement]:
        """``n`` orthogonal matrices from the Haar measure."""
        check_count(n)
        return [GroupElement(self, entries(m)) for m in self._haar(n, generator)]

    def word(self, value: Entries) -> Word:
        """``exp(t)``, or ``exp(t) s`` with the letter."""
        matrix = self.natural_matrix(value)
        if float(torch.linalg.det(matrix)) > 0:
            t = tuple(self.lie_coordinates(matrix).tolist())
            return (Exp(t),) if any(t) else ()
        letter = self.natural_matrix(self.discrete_generators()[0].element.value)
        t = tuple(self.lie_coordinates(matrix @ letter).tolist())
        return (Exp(t), Power(0, 1)) if any(t) else (Power(0, 1),)

    def distance_of_value(self, a: Entries) -> float:
        """Rotations as in SO(n). Odd ``n``: pi plus that of ``-g``. Even ``n``: pi plus the rotation that is left

        after the mirror along an eigenvector of -1 (all mirrors have length pi).
        """
        matrix = self.natural_matrix(a)
        if float(torch.linalg.det(matrix)) > 0:
            return float(self.lie_coordinates(matrix).norm())
        if self.n % 2:
            return math.pi + float(self.lie_coordinates(-matrix).norm())
        _, _, vh = torch.linalg.svd(matrix + torch.eye(self.n, dtype=torch.float64))
        axis = vh[-1]
        mirror = torch.eye(self.n, dtype=torch.float64) - 2 * torch.outer(axis, axis)
        return math.pi + float(self.lie_coordinates(matrix @ mirror).norm())

    def tensor_spectrum(self, order: int) -> dict[float, int]:
        """Casimir eigenvalues, ``(2/pi)^2`` higher where the letter turns a tensor over.

        Odd ``n``: on all tensors of odd order. Even ``n``: on the invariants of SO(n) that mirrors turn over (products
        with one totally antisymmetric tensor).
        """
        found = orthogonal_tensor_spectrum(self.n, order)
        step = (2 / math.pi) ** 2
        if self.n % 2:
            return {q + (step if order % 2 else 0.0): m for q, m in found.items()}
        even = orthogonal_invariants(self.n, order)
        odd = found.pop(0.0, 0) - even
        return dict(sorted({**({0.0: even} if even else {}), **({step: odd} if odd else {}), **found}.items()))


@dataclass(frozen=True, repr=False)
class Lorentz(MatrixGroup):
    """The Lorentz group O(1,3) on ``(t, x, y, z)``, or with ``proper`` its connected part SO+(1,3).

    Basis: rotations ``J_x, J_y, J_z``, then boosts ``K_x, K_y, K_z`` (rapidities, symmetric matrices). Letters of
    O(1,3): the parity ``diag(1, -1, -1, -1)`` and the time reversal ``diag(-1, 1, 1, 1)``, length pi each. Not
    compact: samples are ``exp(t) s`` with ``t`` uniform in ``||t|| <= 1``, and a bound needs a radius.
    """

    proper: bool = False

    @property
    def name(self) -> str:
        """``"O(1,3)"`` or ``"SO+(1,3)"``."""
        return "SO+(1,3)" if self.proper else "O(1,3)"

    @property
    def natural_dim(self) -> int:
        """4."""
        return 4

    @property
    def order(self) -> None:
        """Infinite."""
        return None

    @property
    def lie_dim(self) -> int:
        """6."""
        return 6

    @property
    def radius(self) -> float:
        """Infinite."""
        return math.inf

    @property
    def sample_radius(self) -> float:
        """1 (rotations to a radian, rapidities to 0.76 of the speed of light), and pi for the letter of O(1,3)."""
        return 1.0 if self.proper else 1.0 + math.pi

    @property
    def connected(self) -> Group:
        """SO+(1,3)."""
        return Lorentz(proper=True)

    def natural_generators(self) -> torch.Tensor:
        """``J_x, J_y, J_z, K_x, K_y, K_z``."""
        out = torch.zeros(6, 4, 4, dtype=torch.float64)
        for k, (i, j) in enumerate(((2, 3), (3, 1), (1, 2))):
            out[k, j, i], out[k, i, j] = 1.0, -1.0
            out[3 + k, 0, 1 + k] = out[3 + k, 1 + k, 0] = 1.0
        return out

    def discrete_generators(self) -> tuple[DiscreteGenerator, ...]:
        """Parity and time reversal; none for SO+(1,3)."""
        if self.proper:
            return ()
        parity = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64))
        return tuple(DiscreteGenerator(GroupElement(self, entries(m)), math.pi) for m in (parity, -parity))

    def check_member(self, matrix: torch.Tensor) -> None:
        """Raise ``ArgumentError`` unless ``M^T eta M = eta`` (and ``det = 1``, ``M_00 > 0`` for SO+(1,3))."""
        eta = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64))
        error = float((matrix.mT @ eta @ matrix - eta).abs().max()) / max(1.0, float(matrix.abs().max()) ** 2)
        connected = float(torch.linalg.det(matrix)) > 0 and float(matrix[0, 0]) > 0
        if error > _MEMBER or (self.proper and not connected):
            raise ArgumentError(
                explain(f"a matrix of {self.name}", f"one that changes the metric by {error:.1e}", "use exp()")
            )

    def word(self, value: Entries) -> Word:
        """``exp(t)`` times parity, time reversal, both or none, by the signs of ``det`` and ``M_00``."""
        matrix = self.natural_matrix(value)
        future, sign = float(matrix[0, 0]) > 0, float(torch.linalg.det(matrix)) > 0
        pieces: list[Power] = []
        if not self.proper:
            # det < 0, future kept: parity; det < 0, future turned: time reversal; det > 0, future turned: both
            pieces = [Power(0, 1)] * (sign != future) + [Power(1, 1)] * (not future)
            pieces = pieces if (future, sign) != (False, False) else [Power(1, 1)]
        for piece in pieces:
            matrix = matrix @ self.natural_matrix(self.discrete_generators()[piece.letter].element.value)
        t = tuple(self.lie_coordinates(matrix).tolist())
        return ((Exp(t),) if any(t) else ()) + tuple(pieces)


@lru_cache(maxsize=16)
def _planes(n: int) -> torch.Tensor:
    out = torch.zeros(n * (n - 1) // 2, n, n, dtype=torch.float64)
    for k, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        out[k, j, i], out[k, i, j] = 1.0, -1.0
    return out


def _rotation_logarithm(matrix: torch.Tensor) -> torch.Tensor:
    """The skew logarithm of smallest norm of a rotation, from its real Schur form (angles in ``[0, pi]``)."""
    n = len(matrix)
    t, z = scipy.linalg.schur(matrix.numpy(), output="real")[:2]
    log = torch.zeros(n, n, dtype=torch.float64)
    halves: list[int] = []  # eigenvalues -1 that stand alone come in pairs: half turns
    i = 0
    while i < n:
        if i + 1 < n and abs(t[i + 1, i]) > 1e-14:
            angle = math.atan2(float(t[i + 1, i] - t[i, i + 1]) / 2, float(t[i, i] + t[i + 1, i + 1]) / 2)
            log[i + 1, i], log[i, i + 1] = angle, -angle
            i += 2
            continue
        if t[i, i] < 0:
            halves.append(i)
        i += 1
    for a, b in zip(halves[::2], halves[1::2], strict=False):
        log[b, a], log[a, b] = math.pi, -math.pi
    basis = torch.from_numpy(z)
    return basis @ log @ basis.mT
