"""The residual ``delta_G`` of paper A: what a first-order expansion along a word leaves of a group element."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from equidial.errors import ArgumentError, explain
from equidial.filters import Constraint
from equidial.groups import Exp, Group, Word
from equidial.representations import Representation


@lru_cache(maxsize=64)
def words(group: Group) -> tuple[Word, ...]:
    """Elements as shortest words: all of a finite group; else the farthest of a maximal torus, and samples.

    The norm of a residual over all weights is the same for conjugate elements, so that for SO(n) and O(n) a torus is
    enough; the samples serve the residual of one weight.
    """
    if group.is_finite:
        return tuple(group.word(g.value) for g in group.elements() if not g.is_identity)
    if group.lie_dim == 1:
        return tuple((Exp((group.radius * k / 16,)),) for k in range(1, 17))
    assert group.natural_dim is not None, "groups of matrices"
    n = group.natural_dim
    planes = [(i, j) for i in range(n) for j in range(i + 1, n)]
    torus = [planes.index((i, i + 1)) for i in range(0, n - 1, 2)]
    letters: list[Word] = [(), *(group.word(s.element.value) for s in group.discrete_generators())]
    found: list[Word] = []
    for shares in torch.cartesian_prod(*[torch.linspace(0, 1, 5)] * len(torus)).reshape(-1, len(torus)).tolist():
        t = [0.0] * group.lie_dim
        for index, share in zip(torus, shares, strict=True):
            t[index] = math.pi * share
        found += [(Exp(tuple(t)), *letter) for letter in letters]
    generator = torch.Generator().manual_seed(0)
    return (*found, *(group.word(g.value) for g in group.sample(64, generator)))


def taylor_residual(rep: Representation, word: Word) -> torch.Tensor:
    """``R(g)``: ``rho(g)`` less its first-order part along the word, ``[d, d]`` float64."""
    eye = torch.eye(rep.dim, dtype=torch.float64)
    letters = rep.group.discrete_generators()
    whole, linear = eye, torch.zeros_like(eye)
    for piece in word:
        if isinstance(piece, Exp):
            whole = whole @ rep.matrix(rep.group.exp(piece.t))
            linear = linear + sum(t * a.to_dense() for t, a in zip(piece.t, rep.generators(), strict=True))
        else:
            one = rep.matrix(letters[piece.letter].element)
            step = one if piece.exponent > 0 else one.mT
            whole = whole @ torch.linalg.matrix_power(step, abs(piece.exponent))
            linear = linear + piece.exponent * (one - eye)
    return whole - eye - linear


def own_residual(constraint: Constraint, weight: torch.Tensor, word: Word) -> float:
    """``||W R_X(g) - R_Y(g) W|| / ||W||`` of one element; 0 for the zero weight."""
    norm = float(weight.norm())
    matrices = constraint.as_matrices(weight)
    on_input, on_output = _residuals(constraint.rep_in, word), _residuals(constraint.rep_out, word)
    return float((matrices @ on_input - on_output @ matrices).norm()) / norm if norm > 0 else 0.0


@lru_cache(maxsize=8)
def worst_residual(constraint: Constraint) -> float:
    """``delta_G``: the same for the worst weight and the worst of :func:`words`.

    ``R_X`` and ``R_Y`` act on different sides, so that for normal ones the norm of ``W -> W R_X - R_Y W`` is the
    largest difference of their eigenvalues. Raises ``ArgumentError`` for residuals that are not normal.
    """
    largest = 0.0
    for word in words(constraint.group):
        sides = [_residuals(rep, word) for rep in (constraint.rep_in, constraint.rep_out)]
        for side in sides:
            if float((side @ side.mT - side.mT @ side).norm()) > 1e-8 * max(1.0, float(side.norm()) ** 2):
                raise ArgumentError(
                    explain("Taylor residuals that are normal", f"one of {constraint.name}", "leave this space out")
                )
        x, y = (torch.linalg.eigvals(side) for side in sides)
        largest = max(largest, float((x[None, :] - y[:, None]).abs().max()))
    return largest


@lru_cache(maxsize=256)
def _residuals(rep: Representation, word: Word) -> torch.Tensor:
    return taylor_residual(rep, word)
