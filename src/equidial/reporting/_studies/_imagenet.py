"""The page of ImageNet: as released, fine-tuned, and fine-tuned under the dial, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.imagenet import NAME
from equidial.reporting._studies._shared import Page, Point, Records, header, is_above, spread, trade_off_figure

_PAPER = {  # paper A: backbone, rows of Base (as released) and Ours (fine-tuned): Acc, aAcc, cAcc in %, iErr in 1e-2
    "ViT": (("released", "81.67 | 77.29 | 79.40 | 0.36"), ("soft", "82.28 | 80.56 | 81.40 | 0.15")),
    "DINOv2": (("released", "84.27 | 82.82 | 83.52 | 0.13"), ("soft", "85.31 | 84.44 | 84.87 | 0.05")),
    "ResNet-50": (("released", "77.91 | 75.12 | 76.48 | 0.24"), ("soft", "77.96 | 75.52 | 76.72 | 0.11")),
}


def _text(settings: Mapping[str, Any], records: Records) -> str:
    rows = _rows(records)
    last = max(records, key=lambda r: r["epochs"])
    lines = [f"# ImageNet: {settings['model']}, {settings['group']}", "", _verdict(rows), ""]
    lines += [*header(NAME, settings, [last, *(r for r in records if r is not last)]), ""]
    lines += [f"{last['images']:,} training and {last['test_images']:,} test images.", ""]
    heads = "Acc % | aAcc % | cAcc % | iErr (nats) | certified bound | validation cAcc % |"
    lines += [f"| method | softness | {heads}", "|" + "---|" * 8]
    for (method, softness), found in rows.items():
        told = " | ".join(spread(found, score, 100, 1) for score in ("Acc", "aAcc", "cAcc"))
        bound, held = spread(found, "bound", 1, 3), spread(found, "validation", 100, 1)
        lines.append(f"| {method} | {softness:g} | {told} | {spread(found, 'iErr', 1, 4)} | {bound} | {held} |")
    lines += [
        "",
        "Mean ± standard deviation over seeds. `released` is evaluated only; `untouched` takes the steps, images",
    ]
    lines += ["and averages of `soft`. Certified bound: the largest over the constrained tensors.", ""]
    lines += ["![cAcc and certified bound against iErr](imagenet.png)", "", "## What the paper says", ""]
    lines += ["| backbone | method | Acc % | aAcc % | cAcc % | iErr (1e-2) |", "|" + "---|" * 6]
    lines += [f"| {net} | {method} | {told} |" for net, both in _PAPER.items() for method, told in both]
    lines += [
        "",
        "Its baselines are as released and its own networks fine-tuned, so that both effects are mixed there; it",
    ]
    lines += ["turns each image by one random angle of at most 30 degrees, here every element is tried.", ""]
    return "\n".join(lines)


def _rows(records: Records) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for r in records:
        found.setdefault((r["method"], r["softness"]), []).append(r)
    return found


def _verdict(rows: Mapping[tuple[str, float], Records]) -> str:
    """The position with the best validation against the network that was fine-tuned as long."""
    soft = {s: found for (method, s), found in rows.items() if method == "soft"}
    if not soft or ("untouched", 1.0) not in rows:
        return "**Under way.**"
    chosen = max(soft, key=lambda s: sum(r["validation"] for r in soft[s]) / len(soft[s]))
    ours, base = Point.of(soft[chosen]), Point.of(rows["untouched", 1.0])
    head = "Softness raises cAcc." if is_above(ours.accuracy, base.accuracy) else "Softness does not raise cAcc."
    text = (
        f"**{head}** Softness {chosen:g}: cAcc {ours.accuracy.show(1, 100)} % at iErr {ours.error.show(4)}; untouched, "
        f"fine-tuned as long: {base.accuracy.show(1, 100)} % at {base.error.show(4)}"
    )
    if ("released", 1.0) in rows:
        released = Point.of(rows["released", 1.0])
        text += f"; as released: {released.accuracy.show(1, 100)} % at {released.error.show(4)}"
    return f"{text}."


def _figure(records: Records) -> Figure:
    points = {key: Point.of(found) for key, found in _rows(records).items()}
    curve = {"soft": [point for (method, _), point in points.items() if method == "soft"]}
    singles = {method: point for (method, _), point in points.items() if method != "soft"}
    return trade_off_figure({"ImageNet": (curve if curve["soft"] else {}, singles)})


PAGE = Page(NAME, ("method", "softness", "seed"), _text, _figure)
