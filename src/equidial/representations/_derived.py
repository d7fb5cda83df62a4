"""What a representation made of one other one takes over from it."""

from __future__ import annotations

from equidial.representations._base import Representation


class DerivedRepresentation(Representation):
    """A representation on the space of ``inner`` that acts as exactly as ``inner`` does."""

    inner: Representation

    @property
    def dim(self) -> int:
        """As the inner one."""
        return self.inner.dim

    @property
    def is_orthogonal(self) -> bool:
        """As the inner one."""
        return self.inner.is_orthogonal

    @property
    def growth(self) -> float:
        """As the inner one."""
        return self.inner.growth

    @property
    def exactness(self) -> str:
        """As the inner one."""
        return self.inner.exactness

    @property
    def rounding(self) -> float:
        """As the inner one."""
        return self.inner.rounding

    @property
    def constructions(self) -> frozenset[str]:
        """As the inner one."""
        return self.inner.constructions
