"""Certificates: what is guaranteed, of which object, over which elements, and how far it was seen to be tight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from equidial.certificates._document import Document
from equidial.errors import ArgumentError, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = Literal["kernel", "layer", "image"]
"""What a bound speaks of, each level including the ones before it."""


@dataclass(frozen=True)
class LayerCertificate:
    """One row: the certified defect of one stored tensor.

    Attributes:
        name: full name of the tensor.
        bound: upper bound of ``sup_g ||W rho_X(g) - rho_Y(g) W|| / ||W||`` over the elements, rounding included; NaN
            where the row abstains.
        kind: ``"exact"`` (every element was tried), ``"upper"``, or ``"abstained"``.
        level: what the bound speaks of. ``"kernel"``: the tensor on its own window; ``"layer"``: the linear map;
            ``"image"``: the map of images or tokens as well, because the group permutes the grid.
        norm: of numerator and denominator. ``"frobenius"``: of the tensor; ``"spectral"``: of the matrix
            ``[out, rest]``; ``"jacobian"``: Frobenius, of the matrix of the whole layer at this image size (paper A's
            ``||J||_F``).
        radius: largest distance of the elements from the identity.
        measured: the largest value of the same quantity found by applying elements; at most ``bound``.
        absolute: bound of ``||W rho_X(g) - rho_Y(g) W||`` itself.
        a_priori: ``radius * b`` where the response guarantees it for any weight, through training; else ``None``.
        a_priori_of_original: the same relative to the norm of the unconstrained weight (``radius * b / e`` for
            ``exponential``, which has no other).
        allowance: what the layer's own arithmetic may add to a measured error, ``2 gamma_d`` in its dtype.
        group, representation, response, dial, dtype, elements: the setting, in words.
        notes: what a reader must know, e.g. why the level is not higher.
        hypotheses: what the bound rests on; each was checked when it was made.
        weights: SHA-256 of the certified tensor; another tensor has no certificate.
        layout: where in the tensor the weights lie, ``(kind, axis, start, size)``; where it is seen in another shape,
            the number of axes, their sizes and the axes of the grid after them.
        interpolation: where pixels are rotated: the mean relative distance between the action and resampled images
            (:func:`equidial.metrics.interpolation_distance`). It is no part of the bound. ``None``: not applicable.
    """

    name: str
    bound: float
    kind: str
    level: str
    norm: str
    radius: float
    measured: float
    absolute: float
    a_priori: float | None
    allowance: float
    group: str
    representation: str
    response: str
    dial: str
    dtype: str
    elements: str
    notes: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = ()
    weights: str = ""
    layout: tuple[str | int, ...] = ("linear", 0, 0, 0)
    interpolation: float | None = None
    a_priori_of_original: float | None = None

    @property
    def slack(self) -> float:
        """``bound / measured``: how far the bound may be from tight; 1 where both are 0, NaN where the row abstains."""
        if self.measured > 0 or math.isnan(self.bound):
            return self.bound / self.measured if self.measured > 0 else math.nan
        return 1.0 if self.bound == 0 else math.inf


@dataclass(frozen=True)
class Certificate(Document):
    """The rows of all certified tensors; ``float(certificate.bound)`` is the largest of them.

    The bounds are per tensor. The error of the whole network is what :func:`equidial.certify_network` bounds where it
    composes and :func:`equidial.measure` measures.
    """

    KIND: ClassVar[str] = "certificate"
    FORMAT_VERSION: ClassVar[int] = 2

    layers: tuple[LayerCertificate, ...]
    library: str = ""
    image_size: tuple[int, ...] | None = None

    @property
    def bound(self) -> float:
        """The largest bound of any row; 0 without rows, NaN where a row abstains."""
        bounds = [row.bound for row in self.layers]
        return math.nan if any(math.isnan(b) for b in bounds) else max(bounds, default=0.0)

    def __iter__(self) -> Iterator[LayerCertificate]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerCertificate:
        """The row of the tensor with this full name; raises ``KeyError``."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(name)

    def at(self, level: Level) -> Certificate:
        """The same certificate read as one of ``level``: rows that speak of less abstain, with the reason.

        A bound of a kernel is none of the layer or the image. Raises ``ArgumentError`` for another level.
        """
        levels = get_args(Level)
        if level not in levels:
            raise ArgumentError(explain(f"a level out of {levels}", repr(level), "e.g. certificate.at('image')"))
        wanted = levels.index(level)
        return replace(self, layers=tuple(_at(row, level, levels.index(row.level) < wanted) for row in self.layers))

    def _fields(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.layers]
        return {"library": self.library, "image_size": self.image_size, "bound": self.bound, "layers": rows}

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> Certificate:
        rows: list[dict[str, Any]] = []
        for row in data["layers"]:
            missing = {key: math.nan for key in ("bound", "absolute") if row[key] is None}
            rows.append({key: tuple(v) if isinstance(v, list) else v for key, v in row.items()} | missing)
        size = None if data["image_size"] is None else tuple(data["image_size"])
        return cls(tuple(LayerCertificate(**row) for row in rows), data["library"], size)

    def plot(self, max_rows: int = 40) -> Figure:
        """Bars of bound and measured value per tensor, worst first; needs matplotlib. Returns the figure."""
        from matplotlib.figure import Figure

        if max_rows < 1:
            raise ArgumentError(explain("max_rows >= 1", repr(max_rows), "e.g. max_rows=40"))
        rows = sorted(self.layers, key=lambda row: -math.inf if math.isnan(row.bound) else -row.bound)[:max_rows]
        figure = Figure(figsize=(8, 1.2 + 0.28 * max(len(rows), 1)), layout="constrained")
        axes = figure.subplots()
        y = range(len(rows))
        axes.barh(y, [row.bound for row in rows], color="#9ecae1", label="certified bound")
        for i, row in enumerate(rows):
            if math.isnan(row.bound):
                axes.text(0, i, " abstained", va="center", fontsize=7, color="#555555")
        axes.barh(y, [row.measured for row in rows], color="#08519c", height=0.35, label="measured")
        axes.set_yticks(y, [f"{row.name}  [{row.level}]" for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("relative defect  ‖W ρ(g) − ρ(g) W‖ / ‖W‖, worst element")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
        return figure

    def __str__(self) -> str:
        header = f"{'tensor':<52} {'bound':>10} {'measured':>10} {'a priori':>9}  {'kind':<6} {'level':<7} elements"
        lines = [header]
        for row in self.layers:
            prior = "-" if row.a_priori is None else f"{row.a_priori:.4g}"
            lines.append(
                f"{row.name:<52} {row.bound:>10.4g} {row.measured:>10.4g} {prior:>9}  "
                f"{row.kind:<6} {row.level:<7} {row.elements}"
            )
        notes = dict.fromkeys(note for row in self.layers for note in row.notes)
        for row in self.layers:
            if row.interpolation is not None:
                text = f"{row.representation} under {row.group}: turned images differ from the action by"
                notes[f"{text} {row.interpolation:.2g} of their norm (interpolation, no part of any bound)"] = None
        return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _at(row: LayerCertificate, level: str, abstains: bool) -> LayerCertificate:
    if not abstains:
        return row
    reason = f"abstained: the bound speaks of the {row.level}, not of the {level}"
    return replace(
        row,
        bound=math.nan,
        absolute=math.nan,
        a_priori=None,
        a_priori_of_original=None,
        kind="abstained",
        notes=(reason, *row.notes),
    )
