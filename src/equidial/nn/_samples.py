"""The sampled rotations and mirrors of the plane on which features with a group axis live."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from equidial.errors import ArgumentError, explain
from equidial.groups import C, D, Group, GroupElement, by_name


@dataclass(frozen=True)
class SampleTable:
    """Coordinates of the samples ``u`` (``U`` of them) and of their pairs, float64 on the CPU.

    Attributes:
        angle: ``[U]``, principal angles in ``(-pi, pi]``.
        mirrored: ``[U]``, 0 or 1.
        steps: ``[U]``, int64, the angle in steps of ``2 pi / N``.
        relative_angle, relative_mirror: ``[U, U]``, the same of ``u^-1 v``.
        inverse: ``[U, 2, 2]``, the matrices of ``u^-1`` without the random offset; quarter turns are exact.
    """

    angle: torch.Tensor
    mirrored: torch.Tensor
    steps: torch.Tensor
    relative_angle: torch.Tensor
    relative_mirror: torch.Tensor
    inverse: torch.Tensor


class GroupSamples(nn.Module):
    """A uniform grid of ``N`` rotations, with or without their mirror images: the group axis of a feature.

    Args:
        group: ``C(n)`` or ``D(n)``, or its name: ``n`` samples of the rotations, ``D`` with mirrors. The order along
            the axis is that of ``group.elements()``: rotations first, then mirrored ones. Every sample has the Haar
            weight ``1 / size``.
        random_offset: in training, :meth:`draw` turns the whole grid by an angle uniform in ``[0, 2 pi / N)``; in
            evaluation it never does. Share one object between the layers of a network: the lifting layer draws, the
            others follow.

    :meth:`resize` changes the number of samples, after training too. Raises ``ArgumentError`` for another group.
    """

    def __init__(self, group: str | Group = "C8", random_offset: bool = False):
        super().__init__()
        found = by_name(group) if isinstance(group, str) else group
        if not isinstance(found, C | D):
            raise ArgumentError(
                explain(
                    "a cyclic or dihedral group, the number of rotations that are sampled",
                    str(getattr(found, "name", found)),
                    'e.g. "C8" for eight rotations, "D8" with their mirrors',
                )
            )
        self.group: C | D = found
        self.random_offset = random_offset
        self.offset = 0.0
        self._tables: dict[C | D, SampleTable] = {}

    @property
    def rotations(self) -> int:
        """``N``."""
        return self.group.n

    @property
    def has_mirrors(self) -> bool:
        """Whether mirror images are sampled."""
        return isinstance(self.group, D)

    @property
    def size(self) -> int:
        """Length of the group axis."""
        return self.group.order

    def resize(self, rotations: int) -> None:
        """Sample ``rotations`` rotations from now on. Raises ``ArgumentError`` below 1."""
        self.group = type(self.group)(rotations)

    def draw(self) -> None:
        """A new random offset in training where asked for, else none."""
        if self.random_offset and self.training:
            self.offset = float(torch.rand(())) * 2 * math.pi / self.rotations
        else:
            self.offset = 0.0

    @property
    def table(self) -> SampleTable:
        """The coordinates of the present samples."""
        if self.group not in self._tables:
            self._tables = {self.group: _table(self.group)}
        return self._tables[self.group]

    def permutation(self, g: GroupElement) -> torch.Tensor:
        """``[U]``: moving a feature by ``g`` reads sample ``g^-1 u`` for ``u``: ``(g f)[u] = f[g^-1 u]``."""
        inverse, places = g.inverse(), _places(self.group)
        return torch.tensor([places[(inverse @ u).value] for u in self.group.elements()])

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.group.name}{', random_offset=True' if self.random_offset else ''}"


def _places(group: C | D) -> dict[object, int]:
    return {u.value: i for i, u in enumerate(group.elements())}


def _table(group: C | D) -> SampleTable:
    elements, n = group.elements(), group.n

    def coordinates(g: GroupElement) -> tuple[float, float, int]:
        k, mirrored = g.value if isinstance(group, D) else (g.value, 0)
        principal = k if 2 * k <= n else k - n  # in (-n/2, n/2]: the cut lies at pi
        return 2 * math.pi * principal / n, float(mirrored), k

    single = torch.tensor([coordinates(u) for u in elements], dtype=torch.float64)
    pairs = torch.tensor([[coordinates(u.inverse() @ v) for v in elements] for u in elements], dtype=torch.float64)
    matrices = torch.stack([_exact(group.planar_matrix(u.inverse())) for u in elements])
    return SampleTable(single[:, 0], single[:, 1], single[:, 2].long(), pairs[..., 0], pairs[..., 1], matrices)


def _exact(matrix: torch.Tensor) -> torch.Tensor:
    """Entries that are 0 or +-1 but for rounding, made so: quarter turns then permute a grid exactly."""
    near = matrix.round()
    return torch.where((matrix - near).abs() < 1e-12, near, matrix)
