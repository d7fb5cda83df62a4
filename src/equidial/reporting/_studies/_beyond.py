"""The page of ``beyond``: shifts and magnification of images, clouds of points under SO(3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equidial.recipes.beyond import NAME
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import COLOURS, Page, Point, Records, header, spread

Cases = dict[tuple[str, float], list[Mapping[str, Any]]]

_TITLES = {
    "shifts": "Shifts: the position table of a transformer",
    "scaling": "Magnification: the kernels of a residual network",
    "points": "Points in space under SO(3)",
}
_MOVES = {"shifts": "shifted by up to (pixels)", "scaling": "magnified by", "points": "turned"}
_HEADS = {"shifts": "up to {} px", "scaling": "x {}", "points": "{}"}
_NOTES = {
    "shifts": (
        "CCT-2/3x2, pretrained on these training images. The dial of cyclic shifts has one tensor to turn, the",
        "table of 8 x 8 positions, each four pixels wide; at 0 all positions share one row. The bound is that of",
        "the table under all cyclic shifts of its grid, relative to its own norm. It does not reach the logits: two",
        "poolings by two let shifts through only in steps of four pixels, and images lose at one border what the",
        "other fills with zeros. Training images are mirrored and not cropped, since a crop is a shift;",
        "augmentation shifts them by up to the largest step of the test. Test images: four shifts of each size, by",
        "whole pixels, drawn once.",
    ),
    "scaling": (
        "ResNet-20, pretrained on these training images. All 19 kernels of 3 x 3 carry the dial of magnification",
        "about their centre, by the exponential of a band-limited derivative on their window. Kernels that read the",
        "same of a picture magnified about any place are one number in the middle and zeros around it, so that at 0",
        "the network is pointwise but for its strides. The certificate is of kernels: how much a kernel reads",
        "differently of a window magnified by up to 1.25 about its centre, relative to its norm. It says nothing of",
        "the image or of the logits: strides, zeros at the border and the bilinear grid are outside it.",
        "Augmentation magnifies by twelve factors e^t, t equally spaced, out of the range of the test; zeros come",
        "in (the mean colour, since images are normalised first).",
    ),
    "points": (
        "A network from scratch: vectors of every point (from the centroid, and to the means of its 8 and 32",
        "nearest), linear layers that carry SO(3) with products between them, the mean over points, a linear",
        "classifier. At 0 it is exactly invariant; at 1 its weights are free. SO(3): four rotations of every cloud",
        "from the Haar measure; about z: four turns about the vertical. Error: ||f(g x) - f(x)|| / ||f(x)|| over",
        "all clouds and rotations. The bound is the largest over the linear layers, of each layer alone; it does",
        "not reach the logits.",
    ),
}


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# Shifts, magnification, points in space", "", *_verdict(records)]
    counts = sorted({r["epochs"] for r in records})
    epochs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines += [*header(NAME, settings, records, epochs), ""]
    lines += ["![accuracy under each move, over the dial, with error and bound](beyond.png)", "", *_HOW, ""]
    for part in _parts(records):
        cases = _cases(records, part)
        first = next(iter(cases.values()))[0]
        kind = "clouds" if part == "points" else "images"
        lines += [f"## {_TITLES[part]}", "", *_NOTES[part], ""]
        if part == "points":
            lines += [_data(settings), ""]
        sizes = f"{first['images']:,} training and {first['test_images']:,} test {kind}, {first['epochs']} epochs"
        lines += [f"{sizes}. aAcc under each move:", ""]
        moves = list(first["moves"])
        heads = [_HEADS[part].format(name) for name in moves]
        columns = ["method", "softness", "Acc %", *(f"{head} %" for head in heads)]
        columns += ["cAcc %", "iErr (nats)", "bound", "s a training"]
        lines += [f"| {' | '.join(columns)} |"]
        lines += ["|" + "---|" * len(columns)]
        for (method, softness), found in cases.items():
            moved = " | ".join(_moved(found, name, "aAcc").show(1, 100) for name in moves)
            seconds = Spread.of([r["train_seconds"] for r in found]).mean
            lines.append(
                f"| {method} | {softness:g} | {spread(found, 'Acc', 100, 1)} | {moved} | "
                f"{spread(found, 'cAcc', 100, 1)} | {spread(found, 'iErr', 1, 3)} | {_bound(found)} | {seconds:.0f} |"
            )
        error = "error" if part == "points" else "iErr"
        lines += ["", f"| {error} under each move | softness | {' | '.join(heads)} |"]
        lines += ["|" + "---|" * (2 + len(moves))]
        for (method, softness), found in cases.items():
            cells = " | ".join(_small(_moved(found, name, error)) for name in moves)
            lines.append(f"| {method} | {softness:g} | {cells} |")
        lines += [""]
    return "\n".join(lines)


_HOW = (
    "Mean ± standard deviation over seeds. soft: the dial below 1; untouched: the dial at 1; augmentation:",
    "untouched, on moved training examples. All of a part take as many steps with the same learning rate, tuned for",
    "none of them. Acc: accuracy on test examples as they are; aAcc: on moved ones; cAcc: the geometric mean of Acc",
    "and the mean aAcc over all moves (points: those of SO(3)); iErr: the mean KL divergence between predictions",
    "before and after, likewise. Bound: the largest certified defect of a constrained tensor; it bounds neither",
    "iErr nor the error of the network.",
)


def _data(settings: Mapping[str, Any]) -> str:
    if settings["clouds"] is not None:
        return f"Clouds: {settings['clouds']}, z up as in its files."
    if settings["breaking"]:
        return (
            "Clouds: ten kinds of solids drawn from a seed, z up and never turned; a cone upside down and a lying\n"
            "cylinder differ from the cone and the cylinder by how they stand only, so that an invariant network\n"
            "tells them apart no better than a coin: 80 % is its ceiling."
        )
    return "Clouds: ten kinds of solids drawn from a seed, z up and never turned, all told apart by their shape."


def _parts(records: Records) -> list[str]:
    return list(dict.fromkeys(r["part"] for r in records))


def _cases(records: Records, part: str) -> Cases:
    """Records by method and softness: the dial in order, then augmentation."""
    found: Cases = {}
    for r in sorted(
        (r for r in records if r["part"] == part), key=lambda r: (r["method"] == "augmentation", r["softness"])
    ):
        found.setdefault((r["method"], r["softness"]), []).append(r)
    return found


def _moved(found: Records, move: str, name: str) -> Spread:
    return Spread.of([r["moves"][move][name] for r in found])


def _bound(found: Records) -> str:
    return _small(Spread.of([r["bound"] for r in found]))


def _small(value: Spread) -> str:
    return value.show(3) if value.mean >= 0.005 or value.mean == 0 else f"{value.mean:.1e}"


def _verdict(records: Records) -> list[str]:
    """Where softness does not help comes first."""
    told: dict[str, list[str]] = {
        "**Softness does not help here**: its lead in cAcc over an end of the dial is no larger than their spread.": [],
        "**It helps here, but its lead over moved training examples is no larger than their spread.**": [],
        "**Softness is best here.**": [],
    }
    useless, beaten, best = told.values()
    for part in _parts(records):
        points = {case: Point.of(found) for case, found in _cases(records, part).items()}
        soft = {case: p for case, p in points.items() if case[0] == "soft" and case[1] > 0}
        others = {case: p for case, p in points.items() if case not in soft}
        if not soft or not others:
            continue
        chosen = max(soft, key=lambda case: soft[case].accuracy.mean)
        text = "; ".join(_summary(case, p) for case, p in [(chosen, soft[chosen]), *others.items()])
        level = {case[0] for case, p in others.items() if not _leads(soft[chosen].accuracy, p.accuracy)}
        target = useless if level - {"augmentation"} else beaten if level else best
        target.append(f"* {_TITLES[part]}. {text}.")
    lines = [
        "**In short** (cAcc, and iErr in nats; of the soft positions the one with the highest cAcc, chosen on these"
    ]
    lines += ["very test examples, which flatters it)."]
    for title, texts in told.items():
        lines += ["", title, "", *texts] if texts else []
    return [*lines, ""] if any(told.values()) else ["**Under way.**", ""]


def _leads(one: Spread, other: Spread) -> bool:
    """By more than the spread over seeds of both."""
    return one.mean - other.mean > (one.deviation**2 + other.deviation**2) ** 0.5


def _summary(case: tuple[str, float], point: Point) -> str:
    method, softness = case
    name = {"untouched": "untouched", "augmentation": "augmentation"}.get(method, f"soft {softness:g}")
    name = "strict" if (method, softness) == ("soft", 0) else name
    return f"{name} {point.accuracy.show(1, 100)} %, {_small(point.error)}"


def _figure(records: Records) -> Figure:
    """A row per part: accuracy under each move; cAcc over the dial; error and bound over the dial."""
    parts = _parts(records)
    figure = Figure(figsize=(13, 3.6 * max(len(parts), 1)), layout="constrained")
    rows = figure.subplots(max(len(parts), 1), 3, squeeze=False)
    for axes, part in zip(rows, parts, strict=True):
        cases = _cases(records, part)
        _by_move(axes[0], part, cases)
        dial = {softness: found for (method, softness), found in cases.items() if method != "augmentation"}
        rival = cases.get(("augmentation", 1.0))
        _over_dial(axes[1], dial, rival)
        _errors(axes[2], part, dial, rival)
    return figure


def _by_move(axes: Axes, part: str, cases: Cases) -> None:
    moves = list(next(iter(cases.values()))[0]["moves"])
    identity = {"shifts": "0", "scaling": "1", "points": "upright"}[part]
    ordered = sorted([*moves, identity], key=float) if part != "points" else [identity, *moves]
    places = [float(name) for name in ordered] if part == "scaling" else list(range(len(ordered)))
    for place, ((method, softness), found) in enumerate(cases.items()):
        values = [_moved(found, m, "aAcc") if m in moves else Spread.of([r["Acc"] for r in found]) for m in ordered]
        name = method if method == "augmentation" else f"softness {softness:g}"
        axes.errorbar(
            places,
            [v.mean for v in values],
            [v.deviation for v in values],
            fmt="s--" if method == "augmentation" else "o-",
            color=COLOURS[place % len(COLOURS)],
            ms=4,
            lw=1.2,
            label=name,
        )
    axes.set_xticks(places, ordered)
    axes.set(title=_TITLES[part], xlabel=_MOVES[part], ylabel="test accuracy")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _over_dial(axes: Axes, dial: dict[float, list[Mapping[str, Any]]], rival: Records | None) -> None:
    for colour, (name, words) in zip(
        COLOURS, (("Acc", "as they are"), ("aAcc", "moved"), ("cAcc", "cAcc")), strict=False
    ):
        values = [Spread.of([r[name] for r in found]) for found in dial.values()]
        axes.errorbar(
            list(dial),
            [v.mean for v in values],
            [v.deviation for v in values],
            fmt="o-",
            color=colour,
            ms=4,
            label=words,
        )
        if rival:
            axes.axhline(Spread.of([r[name] for r in rival]).mean, color=colour, ls="--", lw=1)
    axes.set(xlabel="softness (dashed: augmentation)", ylabel="test accuracy")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _errors(axes: Axes, part: str, dial: dict[float, list[Mapping[str, Any]]], rival: Records | None) -> None:
    error = "error" if part == "points" else "iErr"
    words = "relative error under SO(3)" if part == "points" else "iErr (nats)"
    for colour, name, label in zip(COLOURS, (error, "bound"), (words, "certified bound, worst tensor"), strict=False):
        values = [Spread.of([r[name] for r in found]).mean for found in dial.values()]
        axes.plot(list(dial), values, "o-", color=colour, ms=4, label=label)
    if rival:
        axes.axhline(Spread.of([r[error] for r in rival]).mean, color=COLOURS[0], ls="--", lw=1)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set(xlabel="softness (dashed: augmentation)", ylim=(0, 2 * axes.dataLim.y1))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


PAGE = Page(NAME, ("part", "method", "softness", "seed"), _text, _figure)
