"""Pixels: functions on a grid, moved by rotations, mirrors, shifts or magnification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from equidial.errors import ArgumentError, GroupActionError, explain
from equidial.groups import O2, SO2, C, D, Flip, Group, GroupElement, PlanarGroup, Scale, Shift, Translation
from equidial.representations import _circle, _mirror, _rings, _window
from equidial.representations._base import Eigenbasis, Representation, ResidualGenerator
from equidial.representations._blocks import PlanesMap
from equidial.representations._circle import CircleBasis
from equidial.representations._maps import LinearMap, PermutationMap, identity_map
from equidial.representations._orbits import orbit_eigenbasis
from equidial.representations._unitary import FourierUnitary, PairedUnitary
from equidial.representations._window import Window

# Above this size a dense eigenbasis (16 d^2 bytes) is left aside; finite groups then use their group sums.
_DENSE_LIMIT = 4096

# Up to this many pixels the circle acts through the disc harmonics, whose cost grows as d^3; beyond through rings.
_HARMONICS_LIMIT = 6400


@dataclass(frozen=True, repr=False)
class Pixels(Representation):
    """Functions on a grid of ``shape`` pixels, row-major; ``(rho(g) f)(p) = f(g^-1 p)``.

    Convention: rotations are counterclockwise as the image is seen (``torch.rot90(x, 1, (-2, -1))`` is the
    quarter turn), about the centre of the grid. Shifts move towards larger indices and come back at the border.

    * C(2), C(4), D(1), D(2), D(4), Flip and cyclic shifts permute pixels, exactly, in every dtype.
    * SO(2) and the other C(n) act by a real orthogonal circle action (:mod:`equidial.representations._circle`; on
      more than 6400 pixels :mod:`equidial.representations._rings`): a homomorphism, equal to the exact quarter turn
      of a square (half turn of a rectangle) at its angle. Where that is impossible, ``exactness`` says so and
      ``residual_generators`` holds the missing letter.
    * O(2) and the other D(n) act on odd squares up to 79 x 79 by a circle action of their own
      (:mod:`equidial.representations._mirror`) that is exact at quarter turns and mirrors.
    * Translation and Scale act by exponentials of band-limited derivatives (:mod:`equidial.representations._window`):
      homomorphisms, not orthogonal, an approximation near the border. Translations count pixels along each axis;
      Scale magnifies grids of one or two axes about their centre. ``growth`` in 1 / unit of distance: translations of
      7x7 and 14x14 pixels 1.92 and 2.23, magnification 10.9 and 25.2, since a picture that shrinks draws in what its
      cosine series says beyond the border.

    ``shape`` is ``(h, w)``, or ``(n,)`` for one dimension (half turn and left-right mirror reverse the order, the
    top-bottom mirror does nothing), or up to three axes for shifts and translations. ``construction`` names the
    numbered basis of the circle action, ``None`` the one that goes with group and size: saved models record it. Raises
    ``GroupActionError`` where the group cannot act on the grid, ``ArgumentError`` for a construction that is no basis
    of this action.
    """

    group: Group
    shape: tuple[int, ...]
    construction: str | None = None

    def __post_init__(self) -> None:
        raw = (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)
        if not raw or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in raw):
            raise ArgumentError(explain("a grid shape of integers >= 1", repr(self.shape), "e.g. (3, 3)"))
        object.__setattr__(self, "shape", raw)
        self._check_action()
        self._check_construction()

    def _check_action(self) -> None:
        text = "x".join(map(str, self.shape))
        if isinstance(self.group, Shift | Translation):
            if len(self.shape) != self.group.dims or getattr(self.group, "period", None) not in (None, self.shape):
                family = type(self.group).__name__
                raise GroupActionError(
                    explain(
                        f"a grid with the axes of {self.group.name}",
                        f"a {text} grid",
                        f"use {family}({len(self.shape)})" + (", cyclic on the grid" if family == "Shift" else ""),
                    )
                )
            return
        if isinstance(self.group, Scale) and len(self.shape) <= 2:
            return
        if not isinstance(self.group, PlanarGroup) or len(self.shape) > 2:
            raise GroupActionError(
                explain(
                    "a group of the plane or Scale on a 1-D or 2-D grid, or Shift or Translation with as many axes",
                    f"{self.group.name} on a {text} grid",
                    "choose another group or grid",
                )
            )
        h, w = self._hw
        maps = [self.group.quarter_turns_and_mirror(s.element) for s in self.group.discrete_generators()]
        quarter = isinstance(self.group, C) and self.group.n % 4 == 0
        quarter = quarter or any(found is not None and found[0] % 2 for found in maps)
        if quarter and h != w:
            raise GroupActionError(
                explain(
                    f"a square grid, because {self.group.name} contains quarter turns",
                    f"a {text} grid, which a quarter turn does not map to itself",
                    "use C2, D2 or Flip on it, or leave this tensor out (exclude_modules)",
                )
            )
        if not self.is_permutation and isinstance(self.group, O2 | D) and not self._mirrors_fit:
            raise GroupActionError(
                explain(
                    "a dihedral group that permutes the grid (D1, D2, D4), or an odd square of at most "
                    f"{math.isqrt(_HARMONICS_LIMIT) - 1} pixels a side",
                    f"{self.group.name} on a {text} grid, where mirrors leave vectors of the rotations without partner",
                    "use an odd square size, D4, the rotations SO2 or C(n) alone, or leave it out (exclude_modules)",
                )
            )
        if not self.is_permutation and min(h, w) == 1 and max(h, w) > 1:
            raise GroupActionError(
                explain(
                    f"a grid with two axes for {self.group.name}",
                    f"a {text} grid, which no rotation but the half turn keeps",
                    "use C2 or Flip on one-dimensional grids",
                )
            )

    @property
    def _mirrors_fit(self) -> bool:
        h, w = self._hw
        return h == w and h % 2 == 1 and self.dim <= _HARMONICS_LIMIT

    def _check_construction(self) -> None:
        """Keep only what differs from the default, so that equal actions compare equal."""
        if self.construction is None:
            return
        allowed = []
        if isinstance(self.group, PlanarGroup) and not self.is_permutation:
            allowed = [_mirror.CONSTRUCTION] if self._mirrors_fit else []
            if not isinstance(self.group, O2 | D):
                allowed += [_circle.CONSTRUCTION, _rings.CONSTRUCTION]
        if self.construction not in allowed:
            raise ArgumentError(
                explain(
                    f"a construction of this action: {', '.join(allowed) or 'none, the action needs no basis'}",
                    f"{self.construction!r} for {self.group.name} on {'x'.join(map(str, self.shape))}",
                    "leave construction out",
                )
            )
        if self.construction == self._default_construction:
            object.__setattr__(self, "construction", None)

    @property
    def _default_construction(self) -> str:
        if isinstance(self.group, O2 | D):
            return _mirror.CONSTRUCTION
        return _rings.CONSTRUCTION if self.dim > _HARMONICS_LIMIT else _circle.CONSTRUCTION

    @property
    def _construction(self) -> str:
        return self.construction or self._default_construction

    @property
    def _hw(self) -> tuple[int, int]:
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], self.shape[1])

    @property
    def dim(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """``"Pixels(3,3)"``, with a construction other than the default as a last, quoted argument."""
        arguments = [*map(str, self.shape), *([repr(self.construction)] if self.construction else [])]
        return f"Pixels({','.join(arguments)})"

    @property
    def is_permutation(self) -> bool:
        """Whether every element permutes the pixels."""
        if isinstance(self.group, Shift):
            return True
        if self.group.is_finite and isinstance(self.group, PlanarGroup):
            found = [self.group.quarter_turns_and_mirror(s.element) for s in self.group.discrete_generators()]
            return all(turn is not None for turn in found)
        return self.dim == 1

    @cached_property
    def circle(self) -> CircleBasis:
        """The basis of the circle action (SO(2), O(2), and C(n) and D(n) beyond quarter turns)."""
        if isinstance(self.group, O2):
            return self.connected.circle
        if self._construction == _mirror.CONSTRUCTION:
            return _mirror.mirror_basis(self._hw[0])
        build = _rings.rings_basis if self._construction == _rings.CONSTRUCTION else _circle.circle_basis
        return build(*self._hw)

    @cached_property
    def connected(self) -> Pixels:
        """For O(2) the rotations in the same basis, else the representation itself."""
        if not isinstance(self.group, O2):
            return self
        return Pixels(SO2(), self.shape, None if self.dim == 1 else self._construction)

    @cached_property
    def _window(self) -> Window | None:
        """The exponentials of :class:`Translation` and :class:`Scale`."""
        if isinstance(self.group, Translation):
            return Window.translations(self.shape)
        return Window.magnification(self.shape) if isinstance(self.group, Scale) else None

    @property
    def is_orthogonal(self) -> bool:
        """Not for translations and magnification."""
        return self.dim == 1 or not isinstance(self.group, Translation | Scale)

    @property
    def growth(self) -> float:
        """0 but for translations and magnification, see :meth:`Window.growth`."""
        return 0.0 if self._window is None else self._growth

    @cached_property
    def _growth(self) -> float:
        return self._window.growth() if self._window else 0.0

    @property
    def exactness(self) -> str:
        """In words, for certificates and status rows."""
        if self.is_permutation:
            return "exact permutation of the pixels"
        if not self.is_orthogonal:
            return "band-limited approximation (exponentials of derivatives of the cosine series), not orthogonal"
        turn = "quarter turn" if self.shape[0] == self.shape[-1] else "half turn"
        text = f"orthogonal circle action{' on rings of pixels' if self._construction == _rings.CONSTRUCTION else ''}, "
        text += f"{turn} {'and mirrors ' if isinstance(self.group, O2 | D) else ''}exact"
        missed, free = len(self.circle.unpaired), self.circle.free_singles
        if missed:
            text += " but for " + ("one direction" if missed == 1 else f"{missed} directions")
        if free:
            text += f", {free} unpaired {'direction' if free == 1 else 'directions'} kept still"
        return text

    @property
    def effective_group(self) -> Group:
        """Cyclic shifts of this grid for :class:`Shift`, else the group."""
        return Shift(self.group.dims, self.shape) if isinstance(self.group, Shift) else self.group

    @cached_property
    def rounding(self) -> float:
        """``4 ||V^T V - I||_F`` and the rounding of the products that form ``rho(g)``; 0 for permutations.

        Translations and magnification: the rounding of a product; their exponentials are those of the stored matrices.
        """
        if self.is_permutation:
            return 0.0
        if not self.is_orthogonal:
            return self.dim * torch.finfo(torch.float64).eps
        largest = max(len(block) for block in self.circle.basis.blocks)
        # a product with a block of size k loses at most k u times sqrt(k); there are two of them
        return 4 * self._deviation + 2 * largest**1.5 * torch.finfo(torch.float64).eps

    @cached_property
    def _deviation(self) -> float:
        return self.circle.basis.deviation()

    @property
    def constructions(self) -> frozenset[str]:
        """That of the circle action, of the cosine series, or none for permutations."""
        if self.is_permutation:
            return frozenset()
        return frozenset({self._construction if self.is_orthogonal else _window.CONSTRUCTION})

    def generators(self) -> tuple[LinearMap, ...]:
        """``d rho(A) = V diag-blocks([[0, -m], [m, 0]]) V^T``, skew by construction."""
        if self.group.lie_dim == 0:
            return ()
        if self._window is not None:
            return self._window.generators()
        frequency = self.circle.frequency[self.circle.pairs[0]].to(torch.float64)
        return (self._planes(torch.zeros(self.dim, dtype=torch.float64), frequency),)

    def _planes(self, diagonal: torch.Tensor, turning: torch.Tensor) -> PlanesMap:
        return PlanesMap(self.circle.basis, self.circle.pairs, diagonal, turning)

    def discrete_generators(self) -> tuple[LinearMap, ...]:
        """Permutations where they exist, else the circle action at the angle of the generator."""
        return tuple(self.map_of(s.element) for s in self.group.discrete_generators())

    def residual_generators(self) -> tuple[ResidualGenerator, ...]:
        """The exact turn on the directions that the circle action misses, if there are any."""
        if self.is_permutation or not self.is_orthogonal or not self.circle.unpaired:
            return ()
        name, length = ("quarter turn", math.pi / 2) if self.shape[0] == self.shape[-1] else ("half turn", math.pi)
        turned = self._planes(self._signs, torch.zeros(self.circle.pairs.shape[1], dtype=torch.float64))
        return (ResidualGenerator(name, length, turned),)

    @property
    def _signs(self) -> torch.Tensor:
        signs = torch.ones(self.dim, dtype=torch.float64)
        signs[list(self.circle.unpaired)] = -1
        return signs

    def map_of(self, g: GroupElement) -> LinearMap:
        """A gather for a permutation of the grid; else ``V R(theta) V^T``, never formed."""
        if isinstance(g.group, Shift):
            grid = torch.arange(self.dim).reshape(self.shape)
            return PermutationMap(torch.roll(grid, g.value, tuple(range(len(self.shape)))).ravel())
        if self._window is not None:
            return self._window.element(g.value)
        assert isinstance(self.group, PlanarGroup)
        lattice = self.group.quarter_turns_and_mirror(g)
        if lattice is not None and (self.is_permutation or self._turn_is_exact(lattice[0])):
            return PermutationMap(self._lattice_index(*lattice))
        angle, reflected = self.group.angle_and_mirror(g.value)
        phase = angle * self.circle.frequency.to(torch.float64)
        diagonal, turning = torch.cos(phase), torch.sin(phase[self.circle.pairs[0]])
        if reflected:  # the mirror, which turns the second vectors over, acts first
            diagonal[self.circle.pairs[1]] *= -1
        return PlanesMap(self.circle.basis, self.circle.pairs, diagonal, turning, mirrored=reflected)

    def _turn_is_exact(self, quarters: int) -> bool:
        """Whether the circle action equals the permutation at this many quarter turns."""
        h, w = self._hw
        if quarters == 0:
            return True
        return not self.circle.unpaired and (h == w or quarters == 2)

    def _lattice_index(self, quarters: int, reflected: bool) -> torch.Tensor:
        grid = torch.arange(self.dim).reshape(self._hw)
        grid = grid.flip(1) if reflected else grid
        return torch.rot90(grid, quarters, (0, 1)).ravel()

    def eigenbasis(self) -> Eigenbasis | None:
        """Of the circle action, plane waves for shifts, or the Fourier basis of the orbits of C(n) and Flip.

        ``None`` for D(n), O(2), Translation and Scale, and for finite groups of permutations on very large grids.
        """
        return self._eigenbasis

    def eigenbasis_error(self) -> tuple[float, float]:
        """``(0, ||V^T V - I||_F)``: the action is that of the orthogonal factor of ``V``, with the same values."""
        return 0.0, 0.0 if self.is_permutation else self._deviation

    @cached_property
    def _eigenbasis(self) -> Eigenbasis | None:
        if isinstance(self.group, Shift):
            return self._shift_eigenbasis()
        if isinstance(self.group, SO2) or (isinstance(self.group, C) and not self.is_permutation):
            return self._circle_eigenbasis()
        if isinstance(self.group, C | Flip) and self.dim <= _DENSE_LIMIT:
            letters = self.group.discrete_generators()
            mapped = self.map_of(letters[0].element) if letters else identity_map(self.dim)
            assert isinstance(mapped, PermutationMap), "only permutations come here"
            return orbit_eigenbasis(mapped.index, len(letters))
        return None

    def _circle_eigenbasis(self) -> Eigenbasis:
        m = self.circle.frequency.to(torch.float64)
        if self.group.lie_dim:
            values = torch.complex(torch.zeros_like(m), m)[None]
        else:
            values = torch.exp(1j * self.group.discrete_generators()[0].length * m)[None]
        residuals = {r.name: self._signs.to(torch.complex128) for r in self.residual_generators()}
        # A (c - i s) = i m (c - i s)
        return Eigenbasis(((1, PairedUnitary(self.circle.basis, self.circle.pairs)),), values, residuals)

    def _shift_eigenbasis(self) -> Eigenbasis:
        """Plane waves ``e^(2 pi i k.p / shape)``; a step along axis ``a`` multiplies by ``e^(-2 pi i k_a / n_a)``."""
        frequencies = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) / n for n in self.shape))
        phase = -2 * math.pi * frequencies.reshape(self.dim, -1).mT
        values = torch.polar(torch.ones_like(phase), phase)
        return Eigenbasis(((1, FourierUnitary(self.shape)),), values, paired=False)
