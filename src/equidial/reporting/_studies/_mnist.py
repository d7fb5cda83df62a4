"""The page of MNIST: the dial against residual pathway priors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import log
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.mnist import NAME
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import (
    CHANCE,
    Difference,
    Page,
    Point,
    Records,
    header,
    spread,
    trade_off_figure,
)

_RPP = "RPP"
_SMALL = 1e-3  # nats: errors below it are alike


def _text(settings: Mapping[str, Any], records: Records) -> str:
    curves, first = _curves(records), records[0]
    lines = ["# MNIST: the dial against residual pathway priors", "", *_verdict(curves), ""]
    lines += [*header(NAME, settings, records), ""]
    lines += [f"{first['images']:,} upright training and {first['test_images']:,} test images.", ""]
    heads = "Acc % | aAcc % | cAcc % | iErr (nats) | certified bound | weights | s a training |"
    lines += [f"| method | softness or ratio | {heads}", "|" + "---|" * 9]
    for name, curve in curves.items():
        for setting, found in curve.items():
            scores = " | ".join(spread(found, score, 100, 1) for score in ("Acc", "aAcc", "cAcc"))
            seconds = Spread.of([r["train_seconds"] for r in found]).mean
            lines.append(
                f"| {name} | {setting:g} | {scores} | {spread(found, 'iErr', 1, 4)} | {spread(found, 'bound', 1, 3)} | "
                f"{found[0]['parameters']:,} | {seconds:.0f} |"
            )
    lines += [
        "",
        "Mean ± standard deviation over seeds. aAcc: accuracy over turned test images, cAcc: the geometric mean of Acc",
        "and aAcc, iErr: the mean KL divergence between the predictions for an image and for the turned one. Certified",
        "bound: the largest over the kernels, each for itself; it is no bound of iErr. The dial's was set before",
        "training (nearest, taper, hard), RPP's is what training left. The ends of the dial belong to every response.",
        "",
        "![cAcc and certified bound against iErr](mnist.png)",
        "",
        "**What differs from the paper.** Its code mixes two paths with a fixed weight and calls that RPP; here RPP is",
        "the two Gaussian priors of its authors, on the same tensors as the dial. The numbers of the figure are not",
        "known.",
        "",
    ]
    return "\n".join(lines)


def _curves(records: Records) -> dict[str, dict[float, list[Mapping[str, Any]]]]:
    """By name, setting: the records; the ends of the dial belong to every response."""
    dial = [r for r in records if r["method"] == "dial"]
    found = {}
    for name in dict.fromkeys(r["response"] for r in dial):
        own = [r for r in dial if r["response"] == name or r["setting"] in (0, 1)]
        found[name] = own
    found |= {_RPP: rpp} if (rpp := [r for r in records if r["method"] == "rpp"]) else {}
    return {
        name: {setting: [r for r in own if r["setting"] == setting] for setting in sorted({r["setting"] for r in own})}
        for name, own in found.items()
    }


def _at(curve: list[Mapping[str, Any]], error: float) -> float | None:
    """cAcc of one seed's curve at an iErr, on the line between its neighbours in ``log iErr``; ``None`` outside."""
    points = sorted((log(max(r["iErr"], _SMALL)), r["cAcc"]) for r in curve)
    x = log(max(error, _SMALL))
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return max(y0, y1) if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def _gains(curve: Mapping[float, Records], rivals: Mapping[float, Records]) -> list[list[float]]:
    """What the dial has more of cAcc at the iErr of each setting of RPP, seed by seed."""
    mine, others = ([r for found in settings.values() for r in found] for settings in (curve, rivals))
    found = []
    for seed in dict.fromkeys(r["seed"] for r in others):
        own = [r for r in mine if r["seed"] == seed]
        gains = [y - r["cAcc"] for r in others if r["seed"] == seed and (y := _at(own, r["iErr"])) is not None]
        found += [gains] if gains else []
    return found


def _verdict(curves: Mapping[str, Mapping[float, Records]]) -> list[str]:
    """At the iErr of each setting of RPP, which is more accurate; where the dial loses comes first."""
    points = {name: [Point.of(found) for found in curve.values()] for name, curve in curves.items()}
    rivals = points.pop(_RPP, [])
    rows = []
    for name, curve in points.items():
        gains = _gains(curves[name], curves.get(_RPP, {}))
        if not gains:
            continue
        difference = Difference.of([mean(own) for own in gains], [0.0] * len(gains))
        known = difference.p < CHANCE
        head = "Neither is ahead" if not known else f"{'The dial' if difference.mean > 0 else 'RPP'} is ahead"
        pairs = [gain for own in gains for gain in own]
        best, rival = (max(ps, key=lambda p: p.accuracy.mean) for ps in (curve, rivals))
        text = (
            f"{name}: at the iErr of RPP's settings the dial has the higher cAcc in {sum(g > 0 for g in pairs)} of "
            f"{len(pairs)} pairs, by {100 * difference.mean:+.1f} ± {100 * difference.deviation:.1f} points "
            f"(p = {difference.p:.2g} over {len(gains)} seeds). Highest cAcc: {best.accuracy.show(1, 100)} % "
            f"(iErr {best.error.show(3)}) against {rival.accuracy.show(1, 100)} % (iErr {rival.error.show(3)})."
        )
        rows.append((difference.mean, f"**{head}.** {text}\n"))
    return [text for _, text in sorted(rows)] or ["**Under way.**"]


def _figure(records: Records) -> Figure:
    curves = {name: [Point.of(r) for r in curve.values()] for name, curve in _curves(records).items()}
    return trade_off_figure({"MNIST, upright digits in training": (curves, {})}, linear_below=_SMALL)


PAGE = Page(NAME, ("method", "response", "setting", "seed"), _text, _figure)
