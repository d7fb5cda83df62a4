"""Non-linearities that commute with any orthogonal representation: they scale vectors by a function of their norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from equidial.errors import ArgumentError, GroupActionError, explain, nearest_names
from equidial.representations import DirectSum, Representation, Trivial

NORM_FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "softsign": lambda x: x / (1 + x.abs()),
    "relu": torch.relu,
    "identity": lambda x: x,
}
"""Real functions ``phi`` with ``phi(0) = 0``, slopes in [0, 1], and ``phi >= 0`` on ``[0, inf)``."""


class NormNonlinearity(nn.Module):
    """``v -> v phi(|v|) / |v|`` on every copy of a non-trivial summand, ``phi`` itself on trivial parts.

    Args:
        representation: an orthogonal one, on the last axis; a direct sum is treated summand by summand and copy by
            copy, each copy one vector ``v``.
        function: ``phi``, a name out of :data:`NORM_FUNCTIONS`.
        bias: one learned threshold per copy of a non-trivial summand, ``phi(max(|v| - |b|, 0))`` in place of
            ``phi(|v|)``, and one learned shift per trivial part, ``phi(v + b)``; 0 at the start.

    Law: ``f(rho(g) v) = rho(g) f(v)`` because ``|rho(g) v| = |v|``, and ``||f(v) - f(w)|| <= ||v - w||``
    (:attr:`lipschitz`). Proof of the second: let ``psi`` be the function of the norm, increasing with slope at most 1
    and ``psi(0) = 0``. With ``r = |v|``, ``s = |w|`` and ``c`` the cosine of the angle,
    ``|f(v) - f(w)|^2 = (psi(r) - psi(s))^2 + 2 psi(r) psi(s) (1 - c)
    <= (r - s)^2 + 2 r s (1 - c) = |v - w|^2``. Different copies add in squares.

    Shapes: ``[..., representation.dim]`` to the same. Raises ``ArgumentError`` for an unknown function or another size
    of the last axis, ``GroupActionError`` for a representation that is not orthogonal. Cost O(dim). Source: norm
    non-linearities of Worrall et al. 2017 (Harmonic Networks) and Weiler and Cesa 2019.
    """

    def __init__(self, representation: Representation, function: str = "tanh", bias: bool = False):
        super().__init__()
        if function not in NORM_FUNCTIONS:
            raise ArgumentError(
                explain(
                    f"a function out of {', '.join(NORM_FUNCTIONS)}",
                    repr(function),
                    f"try {nearest_names(str(function), NORM_FUNCTIONS)}",
                )
            )
        if not representation.is_orthogonal:
            raise GroupActionError(
                explain(
                    "an orthogonal representation, whose elements keep norms",
                    repr(representation),
                    "use a compact group",
                )
            )
        self.representation, self.function = representation, function
        self._blocks = tuple(_blocks(representation))
        count = sum(copies for copies, _, _ in self._blocks)
        self.bias = nn.Parameter(torch.zeros(count)) if bias else None

    @property
    def lipschitz(self) -> float:
        """1."""
        return 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The result in the shape and dtype of ``x``."""
        dim = self.representation.dim
        if x.ndim == 0 or x.shape[-1] != dim:
            raise ArgumentError(
                explain(f"a last axis of {dim} ({self.representation.name})", f"shape {tuple(x.shape)}", "reshape it")
            )
        phi = NORM_FUNCTIONS[self.function]
        parts, unit = [], 0
        # one split: the gradient of a slice is as large as x, block by block
        blocks = x.split([copies * size for copies, size, _ in self._blocks], dim=-1)
        for block, (copies, size, moved) in zip(blocks, self._blocks, strict=True):
            v = block.unflatten(-1, (copies, size))
            b = None if self.bias is None else self.bias[unit : unit + copies, None]
            unit += copies
            if not moved:
                parts.append(phi(v if b is None else v + b).flatten(-2))
                continue
            square = v.square().sum(-1, keepdim=True)
            # at v = 0 the factor is finite and the result 0; the guard keeps the gradient finite as well
            norm = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
            kept = norm if b is None else (norm - b.abs()).clamp_min(0)
            parts.append((v * (phi(kept) / norm)).flatten(-2))
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.representation!r}, function={self.function}, bias={self.bias is not None}"


def _blocks(rep: Representation) -> Iterator[tuple[int, int, bool]]:
    """``(copies, size, moved)`` of each summand in the order of the last axis."""
    if not isinstance(rep, DirectSum):
        yield 1, rep.dim, not isinstance(rep, Trivial)
        return
    for copies, term in rep.terms:
        if isinstance(term, DirectSum):
            yield from list(_blocks(term)) * copies
        else:
            yield copies, term.dim, not isinstance(term, Trivial)
