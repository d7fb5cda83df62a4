"""The page of CIFAR: the methods at their chosen settings, and the curve of the dial under each response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.cifar import NAME, chosen
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import Page, Point, Records, header, is_above, spread, trade_off_figure

_SETTINGS = {"penalty": "lambda {:g}", "soft": "softness {:g}", "both": "softness {:g}"}
_RIVALS = ("untouched", "augmentation", "penalty")
_HEADS = "Acc % | aAcc % | cAcc % | iErr (nats) | certified bound |"


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# CIFAR: the dial on pretrained classifiers", "", *_verdict(records), ""]
    lines += [*header(NAME, settings, records), ""]
    lines += [f"{records[0]['images']:,} training and {records[0]['test_images']:,} test images.", ""]
    for network, group in _cases(records):
        lines += [f"## {network}, {group}", "", f"| method | chosen setting | {_HEADS} s a training |"]
        lines += ["|" + "---|" * 8]
        for method, (setting, found) in _main(records, network, group).items():
            told = _SETTINGS.get(method, "learning rate {:g}").format(setting)
            seconds = Spread.of([r["train_seconds"] for r in found]).mean
            lines.append(f"| {method} | {told} | {_cells(found)} {seconds:.0f} |")
        for method, curves in _curves(records, network, group).items():
            lines += ["", f"The dial, {_WORDS[method]}:", "", f"| response | softness | {_HEADS}", "|" + "---|" * 7]
            for response, positions in curves.items():
                lines += [f"| {response} | {s:g} | {_cells(found)}" for s, found in positions.items()]
        lines += [""]
    lines += ["![cAcc and certified bound against iErr](cifar.png)", "", *_HOW, ""]
    lines += ["## Tuning: cAcc on validation images, first seed", ""]
    lines += ["| network | group | method | setting | validation cAcc % |", "|" + "---|" * 5]
    for r in _tuning(records):
        setting = _SETTINGS.get(r["method"], "learning rate {:g}").format(r["setting"])
        lines.append(f"| {r['network']} | {r['group']} | {r['method']} | {setting} | {100 * r['validation']:.1f} |")
    return "\n".join([*lines, ""])


_WORDS = {"soft": "trained on images that are not turned", "both": "trained on turned images"}
_HOW = (
    "Mean ± standard deviation over seeds. aAcc: accuracy over turned test images, cAcc: the geometric mean of Acc and",
    "aAcc, iErr: the mean KL divergence between the predictions for an image and for the turned one. Certified bound:",
    "the largest over the constrained tensors, each for its own kernel or table; it is no bound of iErr. Softness 1 is",
    "the untouched network with the learning rate of the soft ones. A position at which no weight differs from those",
    "of another one is left out (hard moves in few stairs), and at 0 all responses are the same. Every training takes",
    "as many optimizer steps on the same images, mirrored and shifted at random, with batch norm re-estimated first",
    "and then in training mode; the penalty reads each image twice. Untouched and augmented networks had learning",
    "rates to choose from, the penalty lambdas, the dial positions. Small networks have seen the training images of",
    "CIFAR-10: their validation images are part of the test file and not of the test.",
)


def _cases(records: Records) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["network"], r["group"]) for r in records))


def _first(records: Records) -> tuple[int, str]:
    """The seed and the response of the tuning; records are in the order of the settings."""
    return records[0]["seed"], next((r["response"] for r in records if r["response"]), "")


def _tuning(records: Records) -> list[Mapping[str, Any]]:
    seed, response = _first(records)
    return [r for r in records if r["seed"] == seed and r["setting"] > 0 and r["response"] in (None, response)]


def _main(records: Records, network: str, group: str) -> dict[str, tuple[float, list[Mapping[str, Any]]]]:
    """By method: the chosen setting and its records."""
    seed, response = _first(records)
    found = {}
    for case, setting in chosen(records, seed, response).items():
        if case[:2] == (network, group):
            rows = [r for r in records if (r["network"], r["group"], r["method"]) == case and r["setting"] == setting]
            found[case[2]] = setting, [r for r in rows if r["response"] in (None, response)]
    return found


def _curves(records: Records, network: str, group: str) -> dict[str, dict[str, dict[float, list[Mapping[str, Any]]]]]:
    """By method, response and position, what was trained; each curve from exact symmetry to the untouched network."""
    here = [r for r in records if (r["network"], r["group"]) == (network, group)]
    found: dict[str, dict[str, dict[float, list[Mapping[str, Any]]]]] = {}
    for method, end in (("soft", "untouched"), ("both", "augmentation")):
        rows = [r for r in here if r["method"] == method]
        rates = {r["learning_rate"] for r in rows}
        ends = [r for r in here if r["method"] == end and r["setting"] in rates]
        strict = [r for r in rows if r["setting"] == 0]
        for response in dict.fromkeys(r["response"] for r in rows):
            own = [*strict, *(r for r in rows if r["response"] == response and r["setting"] > 0)]
            curve = {s: [r for r in own if r["setting"] == s] for s in sorted({r["setting"] for r in own})}
            found.setdefault(method, {})[response] = curve | ({1.0: ends} if ends else {})
    return found


def _cells(found: Records) -> str:
    scores = " | ".join(spread(found, name, 100, 1) for name in ("Acc", "aAcc", "cAcc"))
    return f"{scores} | {spread(found, 'iErr', 1, 3)} | {spread(found, 'bound', 1, 3)} |"


def _verdict(records: Records) -> list[str]:
    """Where softness does not help comes first."""
    helps, fails = [], []
    for network, group in _cases(records):
        points = {method: Point.of(found) for method, (_, found) in _main(records, network, group).items()}
        rivals = sorted((m for m in points if m in _RIVALS), key=lambda m: -points[m].accuracy.mean)
        soft = sorted((m for m in points if m not in _RIVALS), key=lambda m: -points[m].accuracy.mean)
        if not rivals or not soft:
            continue
        best, rival = points[soft[0]], points[rivals[0]]
        curve = [
            Point.of(rows)
            for responses in _curves(records, network, group).values()
            for positions in responses.values()
            for softness, rows in positions.items()
            if softness < 1
        ]
        beaten = [m for m in rivals if any(p.beats(points[m]) for p in curve)]
        free = sum(not any(points[m].beats(p) for m in rivals) for p in curve)
        text = (
            f"{network}, {group}: the dial at its best ({soft[0]}) has cAcc {best.accuracy.show(1, 100)} % at iErr "
            f"{best.error.show(3)}, {rivals[0]} {rival.accuracy.show(1, 100)} % at {rival.error.show(3)}; "
            f"some position of the dial beats {', '.join(beaten) or 'no rival'} in cAcc and iErr at once, and of "
            f"{len(curve)} positions {free} are not beaten so by a rival."
        )
        (helps if is_above(best.accuracy, rival.accuracy) else fails).append(text)
    lines = [f"**Softness does not raise cAcc.** {text}\n" for text in fails]
    lines += [f"**Softness raises cAcc.** {text}\n" for text in helps]
    return lines or ["**Under way.**"]


def _figure(records: Records) -> Figure:
    """A row per network and group: one line per response, the rivals at their chosen settings."""
    panels = {}
    for network, group in _cases(records):
        curves = _curves(records, network, group)
        wide = max(curves, key=lambda method: len(curves[method]), default=None)
        lines = {name: [Point.of(r) for r in found.values()] for name, found in curves[wide].items()} if wide else {}
        main = _main(records, network, group)
        singles = {m: Point.of(found) for m, (_, found) in main.items() if m in _RIVALS}
        panels[f"{network}, {group}"] = lines, singles
    return trade_off_figure(panels)


PAGE = Page(NAME, ("network", "group", "method", "response", "setting", "seed"), _text, _figure)
