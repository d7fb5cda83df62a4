"""What a diagnosis says: the error of every output, what every module adds, the causes and their remedies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from equidial.certificates import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mend = Literal["weights", "size", "padding", "code", "none"]


@dataclass(frozen=True)
class Cause:
    """One thing that breaks the symmetry.

    Attributes:
        cause: its name: ``kernel``, ``position table``, ``stride``, ``asymmetric padding``, ..
        module: where it acts.
        error: the largest ``||f(rho(g) h) - rho'(g) f(h)|| / ||f(h)||`` that it adds, over the elements tried.
        arithmetic: why, in numbers.
        remedy: what to do.
        mend: what has to change: ``weights`` (soften them), ``size`` of the input, ``padding``, ``code``, ``none``.
        parameter: the tensor to soften, where one is to blame.
    """

    cause: str
    module: str
    error: float
    arithmetic: str
    remedy: str
    mend: Mend
    parameter: str | None = None


@dataclass(frozen=True)
class CauseSummary:
    """All causes of one name: how many, where, the largest error, and the arithmetic and remedy of the worst."""

    cause: str
    count: int
    places: str
    error: float
    arithmetic: str
    remedy: str


@dataclass(frozen=True)
class LayerError:
    """What one module adds to the error, and the error that has arrived behind it, relative."""

    module: str
    operation: str
    added: float
    arrived: float


@dataclass(frozen=True)
class OutputError:
    """The error of one output; ``kind``: ``invariant``, ``grid``, ``samples``, ``tokens`` or ``unknown`` (then NaN)."""

    name: str
    kind: str
    error: float


@dataclass(frozen=True)
class Diagnosis(Document):
    """The result of :func:`equidial.diagnose`; prints as a report.

    Attributes:
        group: the group asked for; ``moved_by``: the elements that were tried, all of which permute pixels.
        shape: of the example.
        outputs, layers, causes: see there; causes in the order in which they act.
        sizes: input sizes near that of the example at which no window, padding or slice breaks the group.
        tolerance: relative error above which an operation is at fault.
        notes: what the reader must know besides.
    """

    KIND: ClassVar[str] = "diagnosis"

    group: str
    moved_by: tuple[str, ...]
    shape: tuple[int, ...]
    outputs: tuple[OutputError, ...]
    layers: tuple[LayerError, ...]
    causes: tuple[Cause, ...]
    sizes: tuple[int, ...]
    tolerance: float
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Cause]:
        return iter(self.causes)

    def __len__(self) -> int:
        return len(self.causes)

    @property
    def error(self) -> float:
        """The largest error of an output, relative; NaN where none could be compared."""
        known = [output.error for output in self.outputs if output.error == output.error]
        return max(known, default=float("nan"))

    @property
    def targets(self) -> tuple[str, ...]:
        """What to soften, as ``target_modules`` takes it: layers by their name, bare parameters by their own."""
        names = [c.parameter for c in self.causes if c.mend == "weights" and c.parameter]
        return tuple(dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names))

    def of(self, cause: str) -> tuple[Cause, ...]:
        """The causes of this name."""
        return tuple(c for c in self.causes if c.cause == cause)

    def summary(self) -> tuple[CauseSummary, ...]:
        """Causes of one name together, in the order of their first appearance, with the words of the worst."""
        groups: dict[tuple[str, str], list[Cause]] = {}
        for cause in self.causes:
            groups.setdefault((cause.cause, cause.mend), []).append(cause)
        rows = []
        for same in groups.values():
            worst = max(same, key=lambda c: -1.0 if math.isnan(c.error) else c.error)
            places = _shown([c.module for c in same])
            remedy = worst.remedy
            if worst.mend == "weights" and worst.parameter and len(same) > 1:
                remedy += f" (and the {len(same) - 1} other tensors of this kind)"
            rows.append(CauseSummary(worst.cause, len(same), places, worst.error, worst.arithmetic, remedy))
        return tuple(rows)

    def _fields(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> Diagnosis:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        fields = {k: v for k, v in fields.items() if k not in ("document", "format_version")}
        rows = {"outputs": OutputError, "layers": LayerError, "causes": Cause}
        for name, kind in rows.items():
            found = ({k: math.nan if v is None and k == "error" else v for k, v in row.items()} for row in data[name])
            fields[name] = tuple(kind(**row) for row in found)
        return cls(**fields)

    def __str__(self) -> str:
        lines = [f"{self.group} on inputs of {'x'.join(map(str, self.shape))}, moved by {', '.join(self.moved_by)}"]
        for output in self.outputs:
            lines.append(f"  output {output.name}: {output.kind}, error {output.error:.3g}")
        if not self.causes:
            lines.append(f"  every operation commutes with the group to {self.tolerance:.0e}")
        for same in self.summary():
            error = "not comparable" if math.isnan(same.error) else f"up to {same.error:.3g}"
            lines.append(f"{same.cause}: {same.count} place{'s' if same.count > 1 else ''}, {error}")
            lines.append(f"    where: {same.places}")
            lines.append(f"    why:   {same.arithmetic}")
            lines.append(f"    do:    {same.remedy}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Error added and error arrived along the network, on a logarithmic axis, causes marked."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axes = figure.subplots()
        floor = self.tolerance * 1e-3
        steps = range(len(self.layers))
        axes.plot(steps, [max(row.arrived, floor) for row in self.layers], color="#222222", lw=1.4, label="arrived")
        added = [max(row.added, floor) for row in self.layers]
        colours = ["#b23a48" if row.added > self.tolerance else "#b8c4d6" for row in self.layers]
        axes.vlines(list(steps), floor, added, colors=colours, lw=2)
        axes.scatter(list(steps), added, c=colours, s=10, label="added", zorder=3)
        axes.axhline(self.tolerance, color="#888888", lw=0.8, ls="--")
        named: dict[str, int] = {}
        for number, row in enumerate(self.layers):
            found = next((c for c in self.causes if c.module == row.module and row.added > self.tolerance), None)
            if found is not None and found.cause not in named:
                named[found.cause] = number
                # one line of text for each name, so that neighbours can be told apart
                place = (4, -10 - 11 * (len(named) - 1))
                axes.annotate(
                    found.cause, (number, added[number]), xytext=place, textcoords="offset points", fontsize=8
                )
        axes.set_yscale("log")
        axes.set_xlabel("operation, in the order in which they act")
        axes.set_ylabel("relative error")
        axes.set_title(f"{self.group} at {'x'.join(map(str, self.shape[-2:]))}: error at the output {self.error:.3g}")
        axes.legend(loc="center right", fontsize=8)
        return figure


def _shown(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(name or "the model itself" for name in names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
