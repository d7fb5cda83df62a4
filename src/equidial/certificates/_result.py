"""Certificates: what is guaranteed, of which object, over which elements, and how far it was seen to be tight."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equidial.errors import ArgumentError, FileFormatError, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerCertificate:
    """One row: the certified defect of one stored tensor.

    Attributes:
        name: full name of the tensor.
        bound: upper bound of ``sup_g ||W rho_X(g) - rho_Y(g) W|| / ||W||`` over the elements, rounding included.
        kind: ``"exact"`` (every element was tried) or ``"upper"``.
        level: what the bound speaks of. ``"kernel"``: the tensor on its own window; ``"layer"``: the linear map;
            ``"image"``: the map of images or tokens as well, because the group permutes the grid.
        norm: the norm of the quotient, ``"frobenius"``.
        radius: largest distance of the elements from the identity.
        measured: the largest value of the same quantity found by applying elements; at most ``bound``.
        absolute: bound of ``||W rho_X(g) - rho_Y(g) W||`` itself.
        a_priori: ``radius * b`` where the response guarantees it for any weight, through training; else ``None``.
        allowance: what the layer's own arithmetic may add to a measured error, ``2 gamma_d`` in its dtype.
        group, representation, response, dial, dtype, elements: the setting, in words.
        notes: what a reader must know, e.g. why the level is not higher.
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


@dataclass(frozen=True)
class Certificate:
    """The rows of all certified tensors; ``float(certificate.bound)`` is the largest of them.

    The bounds are per tensor. The error of the whole network is what :func:`equidial.measure` measures.
    """

    layers: tuple[LayerCertificate, ...]
    library: str = field(default="")

    @property
    def bound(self) -> float:
        """The largest bound of any row; 0 without rows."""
        return max((row.bound for row in self.layers), default=0.0)

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

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "library": self.library,
            "bound": self.bound,
            "layers": [asdict(row) | {"notes": list(row.notes)} for row in self.layers],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """The inverse of :meth:`to_dict`; raises ``FileFormatError`` for another format."""
        if data.get("format_version") != FORMAT_VERSION:
            raise FileFormatError(
                explain(
                    f"a certificate of format {FORMAT_VERSION}",
                    f"format {data.get('format_version')!r}",
                    "use the version of equidial that wrote it",
                )
            )
        try:
            rows = tuple(LayerCertificate(**{**row, "notes": tuple(row["notes"])}) for row in data["layers"])
        except (KeyError, TypeError) as error:
            raise FileFormatError(
                explain("the rows of a certificate", f"{error}", "make the certificate again")
            ) from error
        return cls(rows, data.get("library", ""))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read what :meth:`save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))

    def plot(self, max_rows: int = 40) -> Figure:
        """Bars of bound and measured value per tensor, worst first; needs matplotlib. Returns the figure."""
        from matplotlib.figure import Figure

        if max_rows < 1:
            raise ArgumentError(explain("max_rows >= 1", repr(max_rows), "e.g. max_rows=40"))
        rows = sorted(self.layers, key=lambda row: -row.bound)[:max_rows]
        figure = Figure(figsize=(8, 1.2 + 0.28 * max(len(rows), 1)), layout="constrained")
        axes = figure.subplots()
        y = range(len(rows))
        axes.barh(y, [row.bound for row in rows], color="#9ecae1", label="certified bound")
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
        return "\n".join([*lines, *(f"note: {note}" for note in notes)])
