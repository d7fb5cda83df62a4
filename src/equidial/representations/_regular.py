"""The regular representation of a finite group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from equidial.errors import GroupActionError, explain
from equidial.groups import Group, GroupElement
from equidial.representations._base import Representation
from equidial.representations._maps import LinearMap, PermutationMap


@dataclass(frozen=True, repr=False)
class Regular(Representation):
    """Functions on a finite group, moved from the left: ``(rho(g) f)(h) = f(g^-1 h)``.

    Coordinates follow ``group.elements()``. A permutation, exact in every dtype. Raises ``GroupActionError`` for a
    group that cannot be listed.
    """

    group: Group

    def __post_init__(self) -> None:
        if not self.group.is_finite:
            raise GroupActionError(
                explain(
                    "a finite group that can be listed, for its regular representation",
                    self.group.name,
                    "use C(n), D(n), Flip, Permutation(n <= 7), cyclic shifts with a period, or their products",
                )
            )

    @property
    def dim(self) -> int:
        """Order of the group."""
        return self.group.order or 0

    @property
    def name(self) -> str:
        """``"Regular"``."""
        return "Regular"

    def generators(self) -> tuple[LinearMap, ...]:
        """None: a finite group has no Lie algebra."""
        return ()

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Permutations of the group by its letters."""
        return tuple(self.map_of(s.element) for s in self.group.discrete_generators())

    def map_of(self, g: GroupElement) -> LinearMap:
        """``out[h] = x[g^-1 h]``."""
        elements = self.group.elements()
        position = {h.value: i for i, h in enumerate(elements)}
        inverse = g.inverse()
        return PermutationMap(torch.tensor([position[(inverse @ h).value] for h in elements]))

    @property
    def is_permutation(self) -> bool:
        """Always."""
        return True
