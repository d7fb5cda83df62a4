"""Figures of a run, drawn with matplotlib without a display."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equidial.reporting._pictures import DialPictures
from equidial.reporting._runs import Run, Spread

_COLOURS = {"Acc": "#4c78a8", "aAcc": "#f58518", "cAcc": "#222222", "iErr": "#b23a48", "bound": "#2a7f62"}


def trade_off(run: Run) -> Figure:
    """Accuracies, invariance error and certificate against the dial."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for score in ("Acc", "aAcc", "cAcc"):
        _line(left, run, "tuned", score, score, "-")
    left.set_ylabel("accuracy on test images")
    left.set_ylim(bottom=0)
    _line(middle, run, "tuned", "iErr", "fine-tuned", "-")
    _line(middle, run, "softened", "iErr", "dial turned, not trained", ":")
    middle.set_ylabel("invariance error iErr (nats)")
    middle.set_ylim(bottom=0)
    _line(right, run, "tuned", "bound", "largest certified bound", "-")
    right.set_ylabel("certified defect, worst tensor")
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.set_xlabel("softness: 0 exactly symmetric, 1 untouched")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def frontier(run: Run) -> Figure:
    """Combined accuracy against invariance error: up and to the left is better."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    points = [(s, run.spread("tuned", "iErr", s), run.spread("tuned", "cAcc", s)) for s in run.softness]
    known = [(s, x, y) for s, x, y in points if x is not None and y is not None]
    axes.plot([x.mean for _, x, _ in known], [y.mean for _, _, y in known], color="#bbbbbb", zorder=1)
    for s, x, y in known:
        axes.errorbar(x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, fmt="o", color="#222222", zorder=2)
        axes.annotate(f" {s:g}", (x.mean, y.mean), fontsize=9, va="bottom")
    axes.set_xlabel("invariance error iErr (nats)")
    axes.set_ylabel("combined accuracy cAcc")
    axes.grid(alpha=0.25)
    return figure


def dial_strip(pictures: DialPictures) -> Figure:
    """One row per weight; left the weight at each dial position, right its error map."""
    dials, count = pictures.values.shape[:2]
    figure = Figure(figsize=(0.95 * 2 * dials + 0.6, 0.95 * count + 0.7))
    left, right = figure.subfigures(1, 2, wspace=0.03, squeeze=False)[0]
    left.suptitle("weight", fontsize=10)
    right.suptitle("error |w − g·w|", fontsize=10)
    panels = [part.subplots(count, dials, squeeze=False) for part in (left, right)]
    for row in range(count):
        # one colour scale along a row: what the dial removes is seen, not normalised away
        scale = float(np.abs(pictures.values[:, row]).max()) or 1.0
        for column, softness in enumerate(pictures.softness):
            weight, error = panels[0][row, column], panels[1][row, column]
            weight.imshow(pictures.values[column, row], cmap="RdBu_r", vmin=-scale, vmax=scale)
            error.imshow(pictures.errors[column, row], cmap="magma", vmin=0, vmax=2 * scale)
            for axes in (weight, error):
                axes.set_xticks([])
                axes.set_yticks([])
                if row == count - 1:
                    axes.set_xlabel(f"{softness:g}", fontsize=10)
    for part in (left, right):
        part.subplots_adjust(left=0.02, right=0.98, bottom=0.07, top=0.92, wspace=0.08, hspace=0.08)
    return figure


def learning_curves(run: Run) -> Figure | None:
    """Training loss by epoch, one line per dial position; ``None`` without training."""
    if not any(run.epochs(s) for s in run.softness):
        return None
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    shades = np.linspace(0.15, 0.85, len(run.softness))
    for shade, s in zip(shades, run.softness, strict=True):
        losses = run.epochs(s)
        axes.plot(range(1, len(losses) + 1), [x.mean for x in losses], color=_viridis(shade), label=f"softness {s:g}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def as_png(figure: Figure) -> str:
    """A data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _line(axes: Axes, run: Run, stage: str, score: str, label: str, style: str) -> None:
    found = [(s, run.spread(stage, score, s)) for s in run.softness]
    known: list[tuple[float, Spread]] = [(s, x) for s, x in found if x is not None and not np.isnan(x.mean)]
    if not known:
        return
    xs = [s for s, _ in known]
    means, deviations = (np.array([getattr(x, f) for _, x in known]) for f in ("mean", "deviation"))
    colour = _COLOURS[score]
    axes.plot(xs, means, style, marker="o", markersize=4, color=colour, label=label)
    axes.fill_between(xs, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0)


def _viridis(value: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](value)
