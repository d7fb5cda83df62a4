"""The page of MNIST6-180."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.mnist6_180 import NAME
from equidial.reporting._studies._shared import COLOURS, Page, Records, header, sizes, spread

_PAPER = {"strict": "50.0", "partial": "100.0", "soft": "100.0", "learned": "-"}


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# MNIST6-180", "", _verdict(records), "", *header(NAME, settings, records), ""]
    titles = {
        "half turn": "Which way up: a six or its half turn",
        "invariant": "Which digit: six or eight, either way up",
    }
    for task, title in titles.items():
        rows = [r for r in records if r["task"] == task]
        if not rows:
            continue
        lines += [f"## {title}", "", f"{rows[0]['images']:,} training and {rows[0]['test_images']:,} test images.", ""]
        paper = " paper B % |" if task == "half turn" else ""
        lines += [f"| method | accuracy % |{paper} turn error | omega' of the layers | support |"]
        lines += ["|" + "---|" * (5 + bool(paper))]
        for method in dict.fromkeys(r["method"] for r in rows):
            found = [r for r in rows if r["method"] == method]
            told = f" {_PAPER[method]} |" if paper else ""
            lines.append(
                f"| {method} | {spread(found, 'accuracy', 100, 1)} |{told} {spread(found, 'turn_error', 1, 3)} | "
                f"{sizes(found, 'omega_prime')} | {sizes(found, 'support')} |"
            )
        lines.append("")
    lines += [
        "Accuracy and turn error: mean ± standard deviation over seeds. Turn error: the mean over test images of the",
        "relative change of the logits, the largest of the three quarter turns. omega' and support: the mean size over",
        "layers, then least to largest over layers and seeds.",
        "",
        "![omega' of each layer while training, by task](mnist6-180.png)",
        "",
        "**What differs from the paper.** Angles enter as principal logarithm, cut at pi; strict and partial networks",
        "have their whole lifting kernel; evaluation is deterministic; sums over samples have Haar weights; the last",
        "weights are tested. At small scale the network, the images and the training set are smaller.",
        "",
    ]
    return "\n".join(lines)


def _verdict(records: Records) -> str:
    def of(task: str, method: str, name: str) -> list[Any]:
        return [r[name] for r in records if (r["task"], r["method"]) == (task, method)]

    def size(task: str) -> float:
        values = [abs(v) for one in of(task, "learned", "omega_prime") for v in one]
        return sum(values) / len(values) if values else float("nan")

    parts = []
    if (strict := of("half turn", "strict", "accuracy")) and (learned := of("half turn", "learned", "accuracy")):
        parts.append(
            f"A strict network is right {100 * sum(strict) / len(strict):.1f} % of the time, one that learns its "
            f"symmetry {100 * sum(learned) / len(learned):.1f} %."
        )
    if of("half turn", "learned", "accuracy") and of("invariant", "learned", "accuracy"):
        parts.append(
            f"The learned omega' ends at {size('half turn'):.3f} where the labels need the angle and at "
            f"{size('invariant'):.3f} where they are invariant (mean size over layers and seeds, one lambda for both)."
        )
    return "**In short.** " + " ".join(parts) if parts else "**Under way.**"


def _figure(records: Records) -> Figure:
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
                axes.plot(values, color=COLOURS[layer % len(COLOURS)], lw=1.3, alpha=0.85, label=name)
        axes.set(title=task, xlabel="epoch")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("size of the learned omega'")
    panels[-1].legend(fontsize=8)
    return figure


PAGE = Page(NAME, ("task", "method", "seed"), _text, _figure)
