"""Figures of studies, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def mnist_figure(records: Records) -> Figure:
    """The size of the learned ``omega'`` of each layer by epoch, one panel per task, one line per layer and seed."""
    learned = [r for r in records if r["method"] == "learned"]
    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    tasks = list(dict.fromkeys(r["task"] for r in learned)) or ["no learned run yet"]
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for k, record in enumerate(r for r in learned if r["task"] == task):
            for layer, course in enumerate(zip(*record["course"], strict=True)):
                values = [0.0, *map(abs, course)]
                name = None if k else f"layer {layer + 1}"
                axes.plot(values, color=_COLOURS[layer % len(_COLOURS)], lw=1.3, alpha=0.85, label=name)
        axes.set(title=task, xlabel="epoch")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("size of the learned omega'")
    panels[-1].legend(fontsize=8)
    return figure


def cifar_figure(records: Records) -> Figure:
    """Accuracy, measured turn error and certified defect against the harmonic, one colour per number of samples."""
    curve = [r for r in records if r["part"] == "curve"]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    names = ("test accuracy", "turn error of the network", "largest certified defect of a layer")
    for colour, n in zip(_COLOURS, dict.fromkeys(r["rotations"] for r in curve), strict=False):
        harmonics = sorted({r["setting"] for r in curve if r["rotations"] == n})
        for axes, name in zip(panels, names, strict=True):
            columns = [[_value(r, name) for r in curve if (r["rotations"], r["setting"]) == (n, k)] for k in harmonics]
            means = [sum(c) / len(c) for c in columns]
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.plot(harmonics, means, "o-", color=colour, label=f"N = {n}")
            axes.fill_between(harmonics, low, high, color=colour, alpha=0.15, lw=0)
            axes.axvline(n / 2, color=colour, lw=0.8, ls=":")
    for axes, name in zip(panels, names, strict=True):
        axes.set(xlabel="integer harmonic omega'", ylabel=name)
        axes.grid(alpha=0.25)
        if curve:
            axes.legend(fontsize=8)
    return figure


def _value(record: Mapping[str, Any], name: str) -> float:
    if name == "test accuracy":
        return record["accuracy"]
    if name.startswith("turn"):
        return record["turn_error"]
    return max(d for d in record["defects"] if d is not None)
