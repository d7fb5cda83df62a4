"""The page of pedestrian trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.trajectories import NAME
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import CHANCE, COLOURS, Difference, Page, Records, header, pairs, spread

Method = tuple[str, float | None]
_FREE: Method = ("untouched", None)
_TURNED: Method = ("untouched, turned", None)
_STILL: Method = ("constant velocity", None)


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# Pedestrian trajectories", "", _verdict(records), "", *header(NAME, settings, records), ""]
    lines += [
        "ETH/UCY, leave one scene out: 8 steps of 0.4 s are seen, 12 predicted, errors in metres, averaged over time",
        "and pedestrians. *Turned*: the mean over seven turns by multiples of 45 degrees. *Error*: the largest mean",
        "distance between the prediction from turned tracks and the turned prediction. *Bound*: what is certified of",
        f"the layers. Every second training window of each network has noise of up to {settings['jitter']:g} m.",
        f"{_counts(records, 'windows')} training windows, {_counts(records, 'test_windows')} test windows a scene.",
        "",
        "## All scenes",
        "",
    ]
    scenes = list(dict.fromkeys(r["scene"] for r in records))
    lines += _table(records, scenes)
    lines += [
        "",
        "*p*: paired t-test against the untouched network over scenes and seeds, ADE and turned ADE.",
        "",
        "![errors from strict to free](trajectories.png)",
        "",
    ]
    for scene in scenes:
        lines += [f"## {scene}", "", *_table([r for r in records if r["scene"] == scene], [scene]), ""]
    lines += [
        "**What differs from the paper.** All networks here have the same size, data, steps and angles; targets are",
        "shifted by one, tracks are relative, pedestrians see one another, and time is kept at softness 0. The paper's",
        "own numbers (ETH: cADE 4.73 untouched, 5.40 strict, 4.58 soft) are sums over 10 or 12 steps of absolute",
        "coordinates, with an untouched network of another size: no comparison with these is meant.",
        "",
    ]
    return "\n".join(lines)


def _table(records: Records, scenes: list[str]) -> list[str]:
    """One row per method, averaged over these scenes seed by seed."""
    names = ("ADE", "FDE", "turned ADE", "turned FDE", "best-of-20 ADE", "best-of-20 FDE", "error")
    lines = [f"| method | {' | '.join(names)} | bound | p |", "|" + "---|" * (len(names) + 3)]
    for method in _methods(records):
        rows = _averaged(records, method, scenes)
        if not rows:
            continue
        cells = [spread(rows, name, 1, 3) if name in rows[0] else "-" for name in names]
        if method[1] == 0:  # what is left of it is rounding
            cells[-1] = f"{max(r['error'] for r in _of(records, method)):.1e} at most"
        bound = spread(rows, "bound", 1, 3) if "bound" in rows[0] else "-"
        lines.append(f"| {_name(method)} | {' | '.join(cells)} | {bound} | {_paired(records, method)} |")
    return lines


def _counts(records: Records, name: str) -> str:
    """Least and most over scenes."""
    found = sorted({r[name] for r in records if name in r})
    return "no" if not found else f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _name(method: Method) -> str:
    name, softness = method
    return name if softness is None else "strict" if softness == 0 else f"softness {softness:g}"


def _methods(records: Records) -> list[Method]:
    return list(dict.fromkeys((r["method"], r["softness"]) for r in records))


def _of(records: Records, method: Method) -> list[Mapping[str, Any]]:
    return [r for r in records if (r["method"], r["softness"]) == method]


def _averaged(records: Records, method: Method, scenes: list[str]) -> list[dict[str, float]]:
    """Per seed the mean over scenes, for seeds that have them all."""
    found = _of(records, method)
    rows = []
    for seed in dict.fromkeys(r["seed"] for r in found):
        here = [r for r in found if r["seed"] == seed]
        if {r["scene"] for r in here} == set(scenes):
            numbers = [k for k, v in here[0].items() if isinstance(v, float) and k != "softness"]
            rows.append({k: sum(r[k] for r in here) / len(here) for k in numbers})
    return rows


def _paired(records: Records, method: Method) -> str:
    """Two p-values against the untouched network."""
    if method == _FREE or not pairs(_of(records, method), _of(records, _FREE), "scene", "seed"):
        return "-"
    return ", ".join(f"{_difference(records, method, _FREE, name).p:.2g}" for name in ("ADE", "turned ADE"))


def _difference(records: Records, method: Method, rival: Method, name: str) -> Difference:
    """Of two methods, in pairs with the same scene and seed."""
    found = pairs(_of(records, method), _of(records, rival), "scene", "seed")
    return Difference.of([a[name] for a, _ in found], [b[name] for _, b in found])


def _verdict(records: Records) -> str:
    """The dial's best position against the untouched network, with and without turned training tracks."""
    scenes = list(dict.fromkeys(r["scene"] for r in records))
    still = {r["scene"]: r["ADE"] for r in _of(records, _STILL)}
    soft = [m for m in _methods(records) if m[1] is not None]
    rivals = (_FREE, _TURNED)
    whole = all(_averaged(records, m, scenes) for m in (_STILL, *rivals, *soft))
    if not (
        soft and whole and all(pairs(_of(records, m), _of(records, r), "scene", "seed") for m in soft for r in rivals)
    ):
        return "**Under way.**"
    heads, lines = [], []
    for name, words in (("ADE", "As they walked"), ("turned ADE", "Turned")):
        means = {m: mean(r[name] for r in _averaged(records, m, scenes)) for m in (_FREE, _TURNED, *soft)}
        best = min(soft, key=lambda m: means[m])
        told = [f"constant velocity {mean(still.values()):.3f}"]  # which turns with the tracks
        helps = []
        for rival, rival_words in ((_FREE, "untouched"), (_TURNED, "turned training tracks")):
            p = _difference(records, best, rival, name).p
            told.append(f"{rival_words} {means[rival]:.3f} (p = {p:.2g})")
            if means[best] < means[rival] and p < CHANCE:
                helps.append(rival_words)
        heads.append(f"{words}, softness {'helps against ' + ' and '.join(helps) if helps else 'does not help'}.")
        lines.append(f"{words}: {_name(best)} {means[best]:.3f}, {', '.join(told)}.")
    beaten = [s for s in scenes if mean(r["ADE"] for r in _of(records, _FREE) if r["scene"] == s) < still[s]]
    text = [
        f"**{' '.join(heads)}** ADE in metres, mean of {len(scenes)} scenes, at the dial's best position, which is",
        "picked by these numbers; p against it, paired over scenes and seeds.",
        *lines,
        f"The untouched network is better than constant velocity in {len(beaten)} of {len(scenes)} scenes.",
    ]
    return "\n".join(text)


def _figure(records: Records) -> Figure:
    """ADE and turned ADE against constant velocity's, and error of equivariance, over the dial, one line per scene."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for colour, scene in zip(COLOURS, dict.fromkeys(r["scene"] for r in records), strict=False):
        here = [r for r in records if r["scene"] == scene]
        curve = [(m, 1.0 if m == _FREE else m[1]) for m in _methods(here) if m == _FREE or m[1] is not None]
        curve.sort(key=lambda pair: pair[1] or 0.0)
        for axes, name in zip(panels, ("ADE", "turned ADE", "error"), strict=True):
            unit = 1.0 if name == "error" else next((r["ADE"] for r in _of(here, _STILL)), math.nan) / 100
            found = [Spread.of([r[name] / unit for r in _of(here, m)]) for m, _ in curve]
            at, means, spreads = [s for _, s in curve], [f.mean for f in found], [f.deviation for f in found]
            axes.errorbar(at, means, spreads, fmt="o-", color=colour, capsize=2, label=scene)
    titles = ("ADE, % of constant velocity's", "ADE of turned tracks, % of it", "error of equivariance, m")
    for axes, name in zip(panels, titles, strict=True):
        axes.set(xlabel="softness (1: untouched)", ylabel=name)
        axes.grid(alpha=0.25)
    for axes in panels[:2]:
        axes.axhline(100, color="0.4", lw=0.8, ls=":")
    panels[2].legend(fontsize=8)
    return figure


PAGE = Page(NAME, ("scene", "method", "softness", "seed"), _text, _figure)
