"""The page of a sweep: ``results.md`` and ``pareto.png``."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from equidial.errors import ArgumentError, explain
from equidial.sweeps import Sweep

if TYPE_CHECKING:
    from equidial.sweeps._status import Status, TrialRow


def write_sweep(sweep: Sweep, status: Status) -> Path:
    """Write both files into the sweep's folder; returns the path of ``results.md``.

    Raises ``ArgumentError`` for a sweep without a finished trial.
    """
    if not status.front:
        raise ArgumentError(explain("a finished trial", "none", "see the messages of --status, and let it go on"))
    sweep.folder.mkdir(parents=True, exist_ok=True)
    pareto(status).savefig(sweep.folder / "pareto.png", dpi=150)
    path = sweep.folder / "results.md"
    path.write_text(_page(sweep, status), encoding="utf-8")
    return path


def pareto(status: Status) -> Figure:
    """Accuracy against error of every trial: the front with the spread over seeds, its best point, what was stopped.

    The colour is the first number that was varied.
    """
    accuracy, error = status.objectives
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    done = [row for row in status.trials if row.state == "finished"]
    early = [row for row in status.trials if row.state == "stopped early"]
    name = _coloured(status)
    axes.scatter([r.error for r in early], [r.accuracy for r in early], marker="x", s=18, c="#999999", lw=0.9)
    tint: dict[str, Any] = {"c": "#4c78a8"} if name is None else {"c": [r.values[name] for r in done]}
    dots = axes.scatter([r.error for r in done], [r.accuracy for r in done], s=24, cmap="viridis", zorder=3, **tint)
    if name is not None:
        figure.colorbar(dots, ax=axes, label=name)
    x, y = [r.error for r in status.front], [r.accuracy for r in status.front]
    axes.step(x, y, where="post", color="#222222", lw=1, zorder=2, label="Pareto front, deviation over seeds")
    for row in status.front:
        if row.deviations is not None:
            axes.errorbar([row.error], [row.accuracy], [row.deviations[0]], [row.deviations[1]], color="#bbbbbb", lw=1)
    if early:
        axes.scatter([], [], marker="x", s=18, c="#999999", lw=0.9, label="stopped early, after the seeds it had")
    if status.best is not None:
        place = ([status.best.error], [status.best.accuracy])
        axes.scatter(*place, s=170, facecolors="none", edgecolors="#b23a48", lw=1.6, zorder=4, label="best")
    axes.set(xlabel=f"{error}: smaller is better", ylabel=f"{accuracy}: larger is better")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def _coloured(status: Status) -> str | None:
    """The first thing varied that is a number in every finished trial."""
    done = [row for row in status.trials if row.state == "finished"]
    for name in status.settings["space"]:
        if all(isinstance(row.values.get(name), int | float) for row in done):
            return str(name)
    return None


def _page(sweep: Sweep, status: Status) -> str:
    accuracy, error = status.objectives
    settings, counts = status.settings, status.counts
    space = ", ".join(f"`{name}={part}`" for name, part in settings["space"].items())
    constant = ", ".join(f"{name}={value}" for name, value in settings["fixed"].items()) or "nothing"
    spread = "mean ± standard deviation over the seeds" if len(settings["seeds"]) > 1 else "one seed"
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    names = list(settings["space"])
    more = sorted({key for row in status.front for key in (row.more or {})})
    lines = [
        f"| trial | {accuracy} | {error} | " + " | ".join([*names, *more, "seconds"]) + " |",
        "|" + "---|" * (4 + len(names) + len(more)),
    ]
    for row in status.front:
        mark = " (best)" if status.best is not None and row.number == status.best.number else ""
        cells = [f"{row.number}{mark}", _spread(row, 0), _spread(row, 1)]
        cells += [_cell(row.values.get(name)) for name in names] + [_cell((row.more or {}).get(key)) for key in more]
        lines.append("| " + " | ".join([*cells, _cell(row.seconds)]) + " |")
    rule = _RULES[sweep.select].format(accuracy)
    if sweep.max_error is not None:
        rule = f"the highest {accuracy} with {error} up to {sweep.max_error:g}"
    rate = "" if status.per_hour is None else f", {status.per_hour:,.0f} trials an hour"
    return (
        f"# Sweep {status.name}\n\n    {command_of(sweep)}\n\n"
        f"{settings['recipe']}, {told}{rate}. {accuracy} is to be large, {error} small.\n\n"
        f"Varied: {space}. Fixed: {constant}. Seeds {settings['seeds']}; equidial {settings['equidial']}.\n\n"
        f"![{accuracy} against {error}](pareto.png)\n\n"
        f"The Pareto front ({spread}); best: {rule}.\n\n" + "\n".join(lines) + "\n\n"
        "The numbers are those that the trials were chosen by; judge the chosen one on data that no trial saw.\n"
    )


_RULES = {"knee": "the knee of the front", "accuracy": "the highest {}"}


def command_of(sweep: Sweep) -> str:
    """The command line that makes this sweep, without the password of its storage."""
    from equidial.sweeps._storage import shown

    words = ["equidial", "sweep", sweep.recipe]
    for f in fields(Sweep):
        value = getattr(sweep, f.name)
        if f.name == "recipe" or (f.default is not MISSING and value == f.default):
            continue
        value = shown(value) if f.name == "storage" else value
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{f.name.replace('_', '-')}", *(str(v) for v in values)]
    return shlex.join(words)


def _spread(row: TrialRow, place: int) -> str:
    value = (row.accuracy, row.error)[place]
    return f"{value:.4f}" if row.deviations is None else f"{value:.4f} ± {row.deviations[place]:.4f}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
