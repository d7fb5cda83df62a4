"""How the group moves an intermediate value of a network: on a grid, on vectors, or not at all."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from equidial.adapters._geometry import acts_by_lattice
from equidial.groups import C, D, Group, GroupElement, PlanarGroup
from equidial.representations import DirectSum, Pixels, Representation, Trivial


class Action(ABC):
    """What an element does to a tensor ``[B, ...]``; it leaves the batch axis alone."""

    @abstractmethod
    def move(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """``rho(g) x``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The action in words, for messages."""

    @property
    def permutes(self) -> bool:
        """Whether every element permutes entries: then maps that act entry by entry commute."""
        return True

    @property
    def keeps_norms(self) -> bool:
        """Whether every element is orthogonal."""
        return self.permutes


@dataclass(frozen=True)
class TrivialAction(Action):
    """Nothing moves."""

    def move(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """``x``."""
        return x

    @property
    def name(self) -> str:
        """``"Trivial"``."""
        return "Trivial"


@dataclass(frozen=True)
class VectorAction(Action):
    """A representation on the last axis."""

    rep: Representation

    def move(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """``rho(g)`` on the last axis."""
        return self.rep.act(g, x)

    @property
    def name(self) -> str:
        """E.g. ``"8*Vector of O5"``."""
        return repr(self.rep)

    @property
    def permutes(self) -> bool:
        """As the representation says."""
        return self.rep.is_permutation

    @property
    def keeps_norms(self) -> bool:
        """As the representation says."""
        return self.rep.is_orthogonal


@dataclass(frozen=True)
class GridAction(Action):
    """A grid of ``shape`` that starts at axis ``axis``; one axis for all of it if ``flat``."""

    group: Group
    shape: tuple[int, ...]
    axis: int
    flat: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the tensor that hold the grid."""
        return (self.axis,) if self.flat else tuple(range(self.axis, self.axis + len(self.shape)))

    def move(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """Permute grid points."""
        last = x if self.flat else x.flatten(self.axis, self.axis + len(self.shape) - 1)
        moved = self.pixels.map_of(g).on_last_axis(last.movedim(self.axis, -1)).movedim(-1, self.axis)
        return moved.reshape(x.shape)

    @property
    def pixels(self) -> Pixels:
        """The representation on one channel."""
        return Pixels(self.group, self.shape)

    @property
    def name(self) -> str:
        """E.g. ``"a 7x7 grid of C4"``."""
        return f"a {'x'.join(map(str, self.shape))} grid of {self.group.name}"

    @property
    def permutes(self) -> bool:
        """For lattice groups only: other rotations mix pixels, or move none."""
        return acts_by_lattice(self.group)


@dataclass(frozen=True)
class SamplesAction(Action):
    """Features ``[B, C, U, *shape]`` on sampled rotations and mirrors: ``(g f)[.., u, p] = f[.., g^-1 u, g^-1 p]``.

    ``samples``: the group whose elements stand along the axis ``U``, in their order.
    """

    group: Group
    samples: C | D
    shape: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the tensor that move."""
        return tuple(range(2, 3 + len(self.shape)))

    def element(self, g: GroupElement) -> GroupElement | None:
        """The sample that moves the plane as ``g`` does, ``None`` where there is none."""
        if not isinstance(g.group, PlanarGroup):
            return None
        angle, mirrored = g.group.angle_and_mirror(g.value)
        steps = angle * self.samples.n / (2 * math.pi)
        if abs(steps - round(steps)) > 1e-9 or (mirrored and not isinstance(self.samples, D)):
            return None
        k = round(steps) % self.samples.n
        return self.samples.element((k, int(mirrored))) if isinstance(self.samples, D) else self.samples.element(k)

    def move(self, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """Permute samples and places."""
        found = self.element(g)
        assert found is not None, "rules abstain where an element is not sampled"
        order = torch.tensor(_order(found), device=x.device)
        moved = x.index_select(2, order)
        return GridAction(self.group, self.shape, 3).move(g, moved) if self.shape else moved

    @property
    def name(self) -> str:
        """E.g. ``"C8 samples on a 7x7 grid of C4"``."""
        grid = f" on a {'x'.join(map(str, self.shape))} grid" if self.shape else ""
        return f"{self.samples.name} samples{grid} of {self.group.name}"

    @property
    def permutes(self) -> bool:
        """For lattice groups only."""
        return acts_by_lattice(self.group)


@functools.lru_cache(maxsize=64)
def _order(g: GroupElement) -> tuple[int, ...]:
    """Where ``g^-1 u`` stands, for every ``u``."""
    places = {u: i for i, u in enumerate(g.group.elements())}
    return tuple(places[g.inverse() @ u] for u in places)


def vector_action(rep: Representation) -> Action:
    """The action of a representation on the last axis, trivial where it moves nothing."""
    return TrivialAction() if is_trivial(rep) else VectorAction(rep)


def grid_action(group: Group, shape: tuple[int, ...], axis: int, flat: bool = False) -> Action:
    """The action on a grid, trivial on a single point."""
    return TrivialAction() if max(shape) == 1 else GridAction(group, shape, axis, flat)


def is_trivial(rep: Representation) -> bool:
    """Whether a representation is a sum of trivial ones."""
    if isinstance(rep, DirectSum):
        return all(is_trivial(term) for _, term in rep.terms)
    return isinstance(rep, Trivial)


def moved_terms(rep: Representation) -> str:
    """The first term of a representation that is neither trivial nor a permutation, for messages."""
    if isinstance(rep, DirectSum):
        return next(moved_terms(term) for _, term in rep.terms if not term.is_permutation)
    return repr(rep)
