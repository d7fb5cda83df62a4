"""The growth plot: seconds to build and apply against the number of pixels, both on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._contract import TOTAL, Finding, Row

_STYLE = {
    "ours": ("ours (closed form)", "#0072b2", "o"),
    "dense SVD": ("dense SVD", "#d55e00", "s"),
    "official": ("official code (Schur)", "#009e73", "^"),
}


def growth_plot(rows: Sequence[Row], findings: Sequence[Finding], file: Path) -> None:
    """Draw the rotation cases: medians with their range as bars, the fitted law of the SVD dashed where not run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    drawn = [row for row in rows if row.case in ("rotation-dense", "rotation-reference") and row.method in _STYLE]
    for method, (label, colour, marker) in _STYLE.items():
        # a size that two cases measured is drawn once, from the first of them
        points = {row.d: row for row in reversed(drawn) if row.method == method}
        chosen = [points[d].times[TOTAL] for d in sorted(points)]
        if not chosen:
            continue
        median = [t.median for t in chosen]
        bars = [[t.median - t.low for t in chosen], [t.high - t.median for t in chosen]]
        axes.errorbar(sorted(points), median, bars, label=label, color=colour, marker=marker, capsize=3, lw=1.5, ms=5)
    _extrapolation(axes, findings, max((row.d for row in drawn), default=0))
    axes.set(xscale="log", yscale="log", xlabel="pixels d = n² (grid n × n)", ylabel="seconds, build + apply once")
    sizes = sorted({(row.d, row.size) for row in drawn})
    axes.xaxis.set_major_locator(FixedLocator([d for d, _ in sizes]))
    axes.set_xticklabels([f"{d}\n{size.split('x')[0]}²" for d, size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", alpha=0.3)
    axes.set_title("SO(2) filter of n × n → n × n pixel weights: median, bars show the range")
    # measured curves first, what was not run below them
    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: "not run" in entry[1])
    axes.legend(*zip(*entries, strict=True), loc="upper left", frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _extrapolation(axes: Any, findings: Sequence[Finding], largest: int) -> None:
    for finding in findings:
        law = finding.values.get("law")
        if not isinstance(law, dict) or largest <= max(law["sizes"]):
            continue
        # the whole line, so that one sees how well it fits where there are points
        ends = [min(law["sizes"]), largest]
        label = f"dense SVD fitted as d^{law['exponent']:.2f},\nextrapolated (not run)"
        line = [law["scale"] * d ** law["exponent"] for d in ends]
        axes.plot(ends, line, color=_STYLE["dense SVD"][1], ls="--", lw=1.2, label=label)
