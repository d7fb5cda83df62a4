"""summary: what the layers of a network have learned, and how far each is from its symmetry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from equidial.nn._continuous import ContinuousConv
from equidial.nn._coordinates import SPACE
from equidial.nn._defects import group_defect, translation_defect


@dataclass(frozen=True)
class LayerSummary:
    """One row of :func:`summary`.

    Attributes:
        name: of the layer in the model.
        kind: its class.
        omega_prime: the frequency on each relaxed axis, learned or fixed.
        learned: the axes that are learned.
        group_defect: the largest relative defect over all sampled rotations and mirrors; ``None`` without samples.
        translation_defect: the same for a shift by one place; ``None`` where translations are strict.
        subgroup: the largest group of rotations under which the layer is exact by construction.
        remark: aliases, where there are any.
    """

    name: str
    kind: str
    omega_prime: dict[str, float]
    learned: tuple[str, ...]
    group_defect: float | None
    translation_defect: float | None
    subgroup: str
    remark: str


@dataclass(frozen=True)
class Summary:
    """The rows of :func:`summary`; prints as a table."""

    layers: tuple[LayerSummary, ...]

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        if not self.layers:
            return "no layer with a continuous kernel"
        amounts = [
            ", ".join(
                f"{axis} {value:.3g}{'*' if axis in row.learned else ''}" for axis, value in row.omega_prime.items()
            )
            or "strict"
            for row in self.layers
        ]
        width = max(5, *(len(row.name) for row in self.layers))
        kind = max(len(row.kind) for row in self.layers)
        wide = max(8, *map(len, amounts))
        lines = [f"{'layer':<{width}}  {'class':<{kind}}  {'omega_prime':<{wide}}  {'group':>8} {'shift':>8}  exact"]
        for row, amount in zip(self.layers, amounts, strict=True):
            defects = " ".join(f"{_number(d):>8}" for d in (row.group_defect, row.translation_defect))
            tail = f"  {row.subgroup}{'  ' + row.remark if row.remark else ''}".rstrip()
            lines.append(f"{row.name:<{width}}  {row.kind:<{kind}}  {amount:<{wide}}  {defects}{tail}")
        return "\n".join([*lines, "* learned"])


def summary(model: nn.Module, image_size: int | tuple[int, int] = 16) -> Summary:
    """Learned amounts and measured defects of every layer with a continuous kernel.

    ``image_size``: output places at which kernels that vary in space are compared. The defect, not ``omega'``, says
    how far a layer is from its symmetry: frequencies fold back, and what the weights make of them differs. Cost: a
    few kernels per layer.
    """
    rows = []
    for name, layer in model.named_modules():
        if isinstance(layer, ContinuousConv):
            rows.append(_row(name, layer, image_size))
    return Summary(tuple(rows))


def _row(name: str, layer: ContinuousConv, image_size: int | tuple[int, int]) -> LayerSummary:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    size = size[-len(layer.windows.kernel) :]
    amounts = {axis: layer.omega_prime.value(axis) for axis in layer.omega_prime.axes}
    turns = None if layer.samples is None else group_defect(layer, size).supremum
    shifts = translation_defect(layer, size, 1).supremum if layer.varies_in_space else None
    kept = layer.coordinates.kept_subgroup()
    moves = any(amounts.get(axis) for axis in SPACE)
    exact = "-" if layer.samples is None or moves else f"C{kept}"
    if layer.samples is not None and layer.samples.has_mirrors and not moves and not amounts.get("flip"):
        exact = f"D{kept}" if not amounts.get("rotation") else exact
    return LayerSummary(
        name or "(the model)",
        type(layer).__name__,
        amounts,
        layer.omega_prime.learned,
        turns,
        shifts,
        exact,
        layer.coordinates.alias() or "",
    )


def _amounts(row: LayerSummary) -> str:
    marked = (f"{axis} {v:.3g}{'*' if axis in row.learned else ''}" for axis, v in row.omega_prime.items())
    return ", ".join(marked) or "strict"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
