"""The constraint map ``L``: how far a weight is from commuting with the group.

For a weight ``W`` from ``X`` to ``Y`` (paper A, section 3; theory: one mechanism, two cases)

    Lie generator A_i:         L_i W = W d rho_X(A_i) - d rho_Y(A_i) W
    discrete generator s:      L_s W = (W rho_X(s) - rho_Y(s) W) / |s|
    stacked:                   L = [L_1; ..; L_n],  Q = L^T L

An invariant weight ``w`` (``y = w^T x``) is the equivariant one with the trivial output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from equidial.errors import ArgumentError, explain
from equidial.filters._legs import LegGram, leg_gram
from equidial.groups import Group, GroupElement
from equidial.representations import LinearMap, Representation, Trivial


@dataclass(frozen=True)
class Letter:
    """One row block of ``L``: ``W -> (W A_X - A_Y W) / length``.

    A residual letter is no element of the group: it moves the directions that a pixel action misses.
    """

    name: str
    on_input: LinearMap
    on_output: LinearMap
    length: float
    is_lie: bool
    on_invariants: bool = False
    is_residual: bool = False


@dataclass(frozen=True)
class Constraint:
    """The space ``Hom(X, Y)`` with the constraint map of its group.

    Weights have shape ``[..., d_Y, d_X]``, or ``[..., d_X]`` when ``invariant`` (the output is trivial). Leading
    axes are copies: every norm runs over the whole tensor.
    """

    rep_in: Representation
    rep_out: Representation
    invariant: bool

    @classmethod
    def invariants(cls, rep: Representation) -> Constraint:
        """Invariant vectors of ``rep``."""
        return cls(rep, Trivial(rep.group), True)

    @classmethod
    def equivariants(cls, rep_in: Representation, rep_out: Representation) -> Constraint:
        """Linear maps from ``rep_in`` to ``rep_out``; raises ``ArgumentError`` for two groups."""
        if rep_in.group != rep_out.group:
            raise ArgumentError(
                explain(
                    "two representations of one group",
                    f"{rep_in!r} and {rep_out!r}",
                    "build both on the same group",
                )
            )
        return cls(rep_in, rep_out, False)

    @property
    def group(self) -> Group:
        """The quotient of the group through which both representations factor."""
        return self.rep_in.effective_group.common_quotient(self.rep_out.effective_group)

    @property
    def shape(self) -> tuple[int, ...]:
        """Trailing axes of a weight: ``(d_Y, d_X)`` or ``(d_X,)``."""
        return (self.rep_in.dim,) if self.invariant else (self.rep_out.dim, self.rep_in.dim)

    @property
    def dim(self) -> int:
        """Dimension of one weight, ``d_Y d_X``."""
        return self.rep_in.dim * self.rep_out.dim

    @property
    def name(self) -> str:
        """``"Pixels(3,3) of C4"`` or ``"Vector -> 2*Vector of C4"``."""
        if self.invariant:
            return repr(self.rep_in)
        return f"{self.rep_in.name} -> {self.rep_out.name} of {self.rep_in.group.name}"

    @cached_property
    def letters(self) -> tuple[Letter, ...]:
        """Lie generators, then discrete generators, then residual ones."""
        group = self.rep_in.group
        lie = [
            Letter(f"A{i + 1}", x, y, 1.0, True)
            for i, (x, y) in enumerate(zip(self.rep_in.generators(), self.rep_out.generators(), strict=True))
        ]
        discrete = [
            Letter(repr(s.element), x, y, s.length, False, s.on_invariants)
            for s, x, y in zip(
                group.discrete_generators(),
                self.rep_in.discrete_generators(),
                self.rep_out.discrete_generators(),
                strict=True,
            )
        ]
        lengths = {r.name: r.length for rep in (self.rep_in, self.rep_out) for r in rep.residual_generators()}
        residual = [
            Letter(
                name, self.rep_in.residual_map(name), self.rep_out.residual_map(name), length, False, is_residual=True
            )
            for name, length in lengths.items()
        ]
        return (*lie, *discrete, *residual)

    @property
    def connected(self) -> Constraint:
        """The same space under the connected part of the group."""
        return Constraint(self.rep_in.connected, self.rep_out.connected, self.invariant)

    @property
    def is_orthogonal(self) -> bool:
        """Whether both representations are."""
        return self.rep_in.is_orthogonal and self.rep_out.is_orthogonal

    @cached_property
    def scale(self) -> float:
        """An upper bound of the largest singular value of ``L``: ``sqrt(sum_s ((||A_X|| + ||A_Y||) / |s|)^2)``."""
        sizes = [(x.on_input.norm_bound() + x.on_output.norm_bound()) / x.length for x in self.letters]
        return math.hypot(*sizes) if sizes else 0.0

    def check(self, weight: torch.Tensor) -> None:
        """Raise ``ArgumentError`` unless ``weight`` is a real tensor with the trailing axes of this space."""
        if not weight.is_floating_point():
            raise ArgumentError(
                explain("a real floating-point weight", f"dtype {weight.dtype}", "convert it, or leave it out")
            )
        if tuple(weight.shape[-len(self.shape) :]) != self.shape or weight.ndim < len(self.shape):
            raise ArgumentError(
                explain(
                    f"a weight whose last {'axis has' if self.invariant else 'axes have'} size "
                    f"{'x'.join(map(str, self.shape))} ({self.name})",
                    f"shape {tuple(weight.shape)}",
                    "reshape the weight, or build the filter for its size",
                )
            )

    def as_matrices(self, weight: torch.Tensor) -> torch.Tensor:
        """``[..., d_Y, d_X]`` whatever the case."""
        return weight.unsqueeze(-2) if self.invariant else weight

    def from_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`as_matrices`."""
        return matrices.squeeze(-2) if self.invariant else matrices

    def apply(self, letter: Letter, matrices: torch.Tensor) -> torch.Tensor:
        """``(W A_X - A_Y W) / |s|`` for ``[..., d_Y, d_X]`` matrices, in their dtype."""
        right = letter.on_input.T.on_last_axis(matrices)
        left = letter.on_output.on_last_axis(matrices.mT).mT
        return (right - left) / letter.length

    def adjoint(self, letter: Letter, matrices: torch.Tensor) -> torch.Tensor:
        """``(V A_X^T - A_Y^T V) / |s|``, the adjoint of :meth:`apply`."""
        right = letter.on_input.on_last_axis(matrices)
        left = letter.on_output.T.on_last_axis(matrices.mT).mT
        return (right - left) / letter.length

    def gram(self, matrices: torch.Tensor) -> torch.Tensor:
        """``Q W = L^T L W`` for ``[..., d_Y, d_X]`` matrices; cost O(d_Y d_X (d_Y + d_X)) per dense letter."""
        fast = self._leg_gram
        total = torch.zeros_like(matrices) if fast is None else fast(matrices)
        for letter in self.letters:
            if fast is None or not letter.is_lie:
                total = total + self.adjoint(letter, self.apply(letter, matrices))
        return total

    @cached_property
    def _leg_gram(self) -> LegGram | None:
        return leg_gram(self.rep_in, self.rep_out)

    def transform(self, g: GroupElement, matrices: torch.Tensor) -> torch.Tensor:
        """``g . W = rho_Y(g) W rho_X(g)^-1`` for ``[..., d_Y, d_X]`` matrices."""
        inverse = self.rep_in.map_of(g) if self.rep_in.is_orthogonal else self.rep_in.map_of(g.inverse()).T
        right = inverse.on_last_axis(matrices)
        return self.rep_out.map_of(g).on_last_axis(right.mT).mT

    def difference(self, g: GroupElement, matrices: torch.Tensor) -> torch.Tensor:
        """``W rho_X(g) - rho_Y(g) W`` for ``[..., d_Y, d_X]`` matrices."""
        right = self.rep_in.map_of(g).T.on_last_axis(matrices)
        return right - self.rep_out.map_of(g).on_last_axis(matrices.mT).mT

    def defect_norm(self, weight: torch.Tensor) -> float:
        """``||L W||_F`` in float64; letters that act on invariants only are applied to all of ``W``: an upper bound."""
        self.check(weight)
        matrices = self.as_matrices(weight.detach().to("cpu", torch.float64))
        squares = [float(self.apply(letter, matrices).square().sum()) for letter in self.letters]
        return sum(squares) ** 0.5

    def defect(self, weight: torch.Tensor) -> float:
        """``||L W||_F / ||W||_F`` in float64; 0 for the zero weight."""
        norm = float(weight.detach().to("cpu", torch.float64).norm())
        return self.defect_norm(weight) / norm if norm > 0 else 0.0

    def dense(self) -> torch.Tensor:
        """``L`` as a matrix ``[letters * dim, dim]`` on weights flattened row-major; memory 8 letters dim^2."""
        basis = torch.eye(self.dim, dtype=torch.float64).reshape(-1, self.rep_out.dim, self.rep_in.dim)
        rows = [self.apply(letter, basis).reshape(self.dim, self.dim).mT for letter in self.letters]
        return torch.cat(rows) if rows else torch.zeros(1, self.dim, dtype=torch.float64)
