"""The certificate of a whole network: a bound of its equivariance error, where it comes from, or why not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from equidial.certificates._document import Document
from equidial.errors import ArgumentError, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NetworkStep:
    """What one module adds to the bound, at the input and element where the bound is largest.

    ``gain``: its Lipschitz constant. ``defect``: by how much its own map fails to commute, an operator norm (for an
    added constant, a norm). ``contribution``: its share of the bound, ``defect * size * later gains``.
    """

    module: str
    rule: str
    gain: float
    defect: float
    contribution: float


@dataclass(frozen=True)
class NetworkCertificate(Document):
    """``||F(rho(g) x) - rho(g) F(x)||`` of a whole network, bounded over group elements and over inputs.

    Attributes:
        kind: ``"upper"``, or ``"abstained"`` where some module has no rule; then there is no number.
        scope: ``"inputs"``: each given input; ``"ball"``: every input with ``||x|| <= ball``.
        bounds: absolute bounds, one per input, or one for the ball; empty when abstained.
        composed_each: the same from the composition alone; ``bounds`` is less where the trivial bound
            ``||F(rho(g) x)|| + ||F(x)||``, or for inputs the ball around 0, says more.
        relatives: ``bound / ||F(x)||`` per input (infinite for ``F(x) = 0``); empty for a ball.
        measured_each: the largest errors found by applying elements, one per input or one for the ball.
        allowance: what float64 arithmetic may add to a measured error: ``measured <= bound + allowance``.
        ball: radius of the ball, else ``None``.
        radius, elements, group: the set of group elements.
        dtype: how the weights are stored; the bound speaks of exact arithmetic on them.
        steps: what each module with parameters or a defect adds, in the order in which they act.
        abstained_at, reason: the module without a rule, and why.
        hypotheses: what is assumed, in words.
    """

    KIND: ClassVar[str] = "network certificate"

    kind: str
    scope: str
    bounds: tuple[float, ...]
    composed_each: tuple[float, ...]
    relatives: tuple[float, ...]
    measured_each: tuple[float, ...]
    allowance: float
    ball: float | None
    radius: float
    elements: str
    group: str
    dtype: str
    steps: tuple[NetworkStep, ...] = ()
    abstained_at: str = ""
    reason: str = ""
    hypotheses: tuple[str, ...] = ()
    library: str = ""

    @property
    def level(self) -> str:
        """``"network"``: what the bound speaks of."""
        return "network"

    @property
    def bound(self) -> float:
        """The largest absolute bound; NaN when abstained."""
        return max(self.bounds, default=math.nan)

    @property
    def composed(self) -> float:
        """The largest bound of the composition alone, before the trivial one; NaN when abstained."""
        return max(self.composed_each, default=math.nan)

    @property
    def relative(self) -> float:
        """The largest bound relative to ``||F(x)||``; NaN when abstained and for a ball, where ``F`` may vanish."""
        return max(self.relatives, default=math.nan)

    @property
    def measured(self) -> float:
        """The largest error found; NaN when abstained."""
        return max(self.measured_each, default=math.nan)

    @property
    def slack(self) -> float:
        """``bound / measured``, how far the bound may be from tight; infinite where no error was found."""
        if math.isnan(self.bound):
            return math.nan
        return self.bound / self.measured if self.measured > 0 else math.inf

    def _fields(self) -> dict[str, Any]:
        data = asdict(self)
        data["relatives"] = [None if math.isinf(r) else r for r in self.relatives]  # JSON knows no infinity
        return data

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> NetworkCertificate:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        fields = {k: v for k, v in fields.items() if k not in ("document", "format_version")}
        fields["relatives"] = tuple(math.inf if r is None else r for r in data["relatives"])
        fields["steps"] = tuple(NetworkStep(**step) for step in data["steps"])
        return cls(**fields)

    def plot(self, max_rows: int = 40) -> Figure:
        """Bars of what each module adds to the bound, largest first; needs matplotlib. Returns the figure.

        Raises ``ArgumentError`` for ``max_rows < 1`` and for a certificate that abstained.
        """
        from matplotlib.figure import Figure

        if max_rows < 1:
            raise ArgumentError(explain("max_rows >= 1", repr(max_rows), "e.g. max_rows=40"))
        if self.kind == "abstained":
            raise ArgumentError(
                explain("a certificate with a bound", f"one that abstained at {self.abstained_at}", "print it instead")
            )
        rows = sorted(self.steps, key=lambda step: -step.contribution)[:max_rows]
        figure = Figure(figsize=(8, 1.4 + 0.28 * max(len(rows), 1)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(rows)), [row.contribution for row in rows], color="#9ecae1", label="share of the bound")
        axes.axvline(self.measured, color="#08519c", label=f"largest error found, {self.measured:.3g}")
        axes.set_yticks(range(len(rows)), [f"{row.module}  [{row.rule}]" for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(f"contribution to the certified bound {self.bound:.4g} of ‖F(ρ(g)x) − ρ(g)F(x)‖")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
        return figure

    def __str__(self) -> str:
        where = "given inputs" if self.ball is None else f"inputs with ||x|| <= {self.ball:g}"
        lines = [f"whole network, {self.elements}, {where}, {self.dtype} weights"]
        if self.kind == "abstained":
            return "\n".join([*lines, f"abstained at {self.abstained_at}: {self.reason}"])
        relative = "" if math.isnan(self.relative) else f", relative to ||F(x)|| {self.relative:.4g}"
        relative += f" (composition alone {self.composed:.4g})" if self.bound < self.composed else ""
        lines.append(
            f"bound {self.bound:.4g}{relative}; largest error found {self.measured:.4g}, slack {self.slack:.3g}"
        )
        width = max([len(step.module) for step in self.steps] + [6])
        lines.append(f"{'module':<{width}}  {'rule':<16} {'gain':>9} {'defect':>9} {'contribution':>12}")
        lines += [
            f"{step.module:<{width}}  {step.rule:<16} {step.gain:>9.4g} {step.defect:>9.4g} {step.contribution:>12.4g}"
            for step in self.steps
        ]
        return "\n".join([*lines, *(f"assumes: {text}" for text in self.hypotheses)])
