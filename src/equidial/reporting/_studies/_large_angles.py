"""The page of large angles: scores over ranges and single angles, of whole images and of discs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.large_angles import NAME, RANGES, chosen
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import COLOURS, Page, Records, header, is_above, spread

_DIAL = ("strict", "soft", "both")
_PROTOCOLS = {"whole": "whole images", "disc": "images masked by the inscribed disc"}
_WIDEST = str(RANGES[-1])


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# Large angles: a pretrained classifier and rotations through the whole circle", "", *_verdict(records)]
    lines += ["", *header(NAME, settings, records), ""]
    lines += [f"{records[0]['images']:,} training and {records[0]['test_images']:,} test images.", ""]
    lines += ["![accuracy over angle](large-angles.png)", "", *_HOW, ""]
    for group in _groups(records):
        main = _main(records, group)
        for protocol, words in _PROTOCOLS.items():
            lines += [f"## {group}, {words}", "", *_table(main, protocol), ""]
        lines += [f"## {group}, the fall from no turn to the mean over the circle, points of accuracy", ""]
        lines += ["| method | whole images | discs | whole less discs |", "|" + "---|" * 4]
        for method, found in main.items():
            falls = {protocol: [_fall(r, protocol) for r in found] for protocol in _PROTOCOLS}
            apart = [whole - disc for whole, disc in zip(*falls.values(), strict=True)]
            cells = [Spread.of(values).show(1, 100) for values in (*falls.values(), apart)]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## Tuning: mean accuracy over eight directions of whole validation images, first seed", ""]
    lines += ["| group | method | softness | learning rate | % |", "|" + "---|" * 5]
    for r in records:
        if r["seed"] == records[0]["seed"]:
            cells = (r["group"], r["method"], f"{r['softness']:g}", f"{r['learning_rate']:g}")
            lines.append(f"| {' | '.join(cells)} | {100 * r['validation']:.1f} |")
    return "\n".join([*lines, ""])


_HOW = (
    "Mean ± standard deviation over seeds, at the setting that was best on validation images: the learning rate, or",
    "the softness of soft and both, which have the first learning rate. Every method takes as many steps on the same",
    "images, mirrored and shifted; augmentation and both also turn each by a random angle of the whole circle. Acc: no",
    "turn. cAcc over a range: the geometric mean of Acc and of the accuracy over the angles 15, 30, .. degrees within",
    "it, in both directions; iErr: the mean KL divergence, in nats, between the predictions for an image and for the",
    "turned one. Whole images: zeros where a corner came from outside, nothing lost at quarter turns. Discs: zeros",
    "outside of the inscribed disc before the turn and after it, so that nothing leaves the frame: what falls there is",
    "due to the network and to interpolation. No method was trained on discs, which costs accuracy without a turn",
    "already. Bound: the largest certified defect of a tensor over the group, for its own kernel; it is no bound of",
    "iErr.",
)


def _groups(records: Records) -> list[str]:
    return list(dict.fromkeys(r["group"] for r in records))


def _main(records: Records, group: str) -> dict[str, list[Mapping[str, Any]]]:
    """By method: the records of the chosen setting."""
    found = {}
    for (of, method), key in chosen(records).items():
        if of == group:
            same = {name: value for name, value in key.items() if name != "seed"}
            found[method] = [r for r in records if all(r[name] == value for name, value in same.items())]
    return found


def _setting(record: Mapping[str, Any]) -> str:
    soft = record["method"] in ("soft", "both")
    return f"softness {record['softness']:g}" if soft else f"learning rate {record['learning_rate']:g}"


def _over(found: Records, value: Callable[[Mapping[str, Any]], float]) -> Spread:
    return Spread.of([value(r) for r in found])


def _combined(found: Records, protocol: str, reach: str) -> Spread:
    return _over(found, lambda r: r[protocol][reach]["cAcc"])


def _fall(record: Mapping[str, Any], protocol: str) -> float:
    return record[protocol]["Acc"] - record[protocol][_WIDEST]["aAcc"]


def _table(main: Mapping[str, Records], protocol: str) -> list[str]:
    heads = " | ".join(f"cAcc {reach}°" for reach in RANGES)
    lines = [f"| method | chosen setting | Acc % | {heads} | iErr 30° | iErr 180° | bound | s a training |"]
    lines.append("|" + "---|" * (7 + len(RANGES)))
    for method, found in main.items():
        cells = [_over(found, lambda r: r[protocol]["Acc"]).show(1, 100)]
        cells += [_combined(found, protocol, str(reach)).show(1, 100) for reach in RANGES]
        cells += [_over(found, lambda r, reach=reach: r[protocol][reach]["kl"]).show(2) for reach in ("30", _WIDEST)]
        cells += [spread(found, "bound", 1, 3), f"{mean(r['train_seconds'] for r in found):.0f}"]
        lines.append(f"| {method} | {_setting(found[0])} | {' | '.join(cells)} |")
    return lines


def _verdict(records: Records) -> list[str]:
    """Where the dial does not help comes first; then what falls, and how much of it corners are."""
    fails, helps, falls = [], [], []
    for group in _groups(records):
        main = _main(records, group)
        for protocol, words in _PROTOCOLS.items():
            for reach in (str(RANGES[0]), _WIDEST):
                scores = {method: _combined(found, protocol, reach) for method, found in main.items()}
                ranked = sorted(scores, key=lambda method: -scores[method].mean)
                dial, rivals = ([m for m in ranked if (m in _DIAL) == wanted] for wanted in (True, False))
                if dial and rivals:
                    best, rival = scores[dial[0]], scores[rivals[0]]
                    text = f"{group}, {words}, up to {reach}°: {dial[0]} {best.show(1, 100)} %, "
                    (helps if is_above(best, rival) else fails).append(
                        f"{text}{rivals[0]} {rival.show(1, 100)} % (cAcc)"
                    )
        if main:
            told = [
                f"{method} {' and '.join(_over(f, lambda r, p=p: _fall(r, p)).show(0, 100) for p in _PROTOCOLS)}"
                for method, f in main.items()
            ]
            falls.append(f"{group}: {', '.join(told)}")
    lines = [f"**The dial does not help.** {text}.\n" for text in fails]
    lines += [f"**The dial helps.** {text}.\n" for text in helps]
    if falls:
        text = (
            "**Performance drops at large angles.** Points of accuracy lost from no turn to the mean over the circle,"
        )
        lines.append(f"{text} whole images and discs: {'; '.join(falls)}.")
    return lines or ["**Under way.**"]


def _figure(records: Records) -> Figure:
    """Accuracy over angle, the mean of both directions; one line a method, the band from the least to the best seed."""
    groups = _groups(records)
    figure = Figure(figsize=(10.5, 3.8 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False, sharey=True)
    for row, group in zip(panels, groups, strict=True):
        for axes, (protocol, words) in zip(row, _PROTOCOLS.items(), strict=True):
            for colour, (method, found) in zip(COLOURS, _main(records, group).items(), strict=False):
                curves = [_curve(r, protocol) for r in found]
                degrees = list(curves[0])
                columns = [[100 * curve[d] for curve in curves] for d in degrees]
                low, high = [min(c) for c in columns], [max(c) for c in columns]
                axes.plot(degrees, [mean(c) for c in columns], "o-", color=colour, ms=3, lw=1.4, label=method)
                axes.fill_between(degrees, low, high, color=colour, alpha=0.18, lw=0)
            axes.set(title=f"{group}, {words}", xlabel="degrees, both directions")
            axes.set(xticks=range(0, 181, 30), ylim=(0, 100))
            axes.grid(alpha=0.25)
        row[0].set_ylabel("accuracy %")
        row[0].legend(fontsize=8)
    return figure


def _curve(record: Mapping[str, Any], protocol: str) -> dict[int, float]:
    """Accuracy by size of the angle."""
    by_size: dict[int, list[float]] = {}
    for degrees, accuracy in zip(record["angles"], record[protocol]["accuracy"], strict=True):
        by_size.setdefault(abs(degrees), []).append(accuracy)
    return {0: record[protocol]["Acc"], **{size: mean(values) for size, values in sorted(by_size.items())}}


PAGE = Page(NAME, ("group", "method", "softness", "learning_rate", "seed"), _text, _figure)
