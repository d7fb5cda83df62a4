"""The page of pedestrian trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.trajectories import NAME
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import COLOURS, Difference, Page, Records, header, pairs, spread

Method = tuple[str, float | None]
_FREE: Method = ("untouched", None)
_STILL: Method = ("constant velocity", None)


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# Pedestrian trajectories", "", _verdict(records), "", *header(NAME, settings, records), ""]
    lines += [
        "ETH/UCY, leave one scene out: 8 steps of 0.4 s are seen, 12 predicted, errors in metres, averaged over time",
        "and pedestrians. *Turned*: the mean over seven turns by multiples of 45 degrees. *Error*: the largest mean",
        "distance between the prediction from turned tracks and the turned prediction. *Bound*: what is certified of",
        "the layers.",
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
        bound = spread(rows, "bound", 1, 3) if "bound" in rows[0] else "-"
        lines.append(f"| {_name(method)} | {' | '.join(cells)} | {bound} | {_paired(records, method)} |")
    return lines


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
    """Two p-values, of pairs with the same scene and seed."""
    found = pairs(_of(records, method), _of(records, _FREE), "scene", "seed")
    if method == _FREE or len(found) < 2:
        return "-"
    tests = [Difference.of([a[n] for a, _ in found], [b[n] for _, b in found]) for n in ("ADE", "turned ADE")]
    return ", ".join(f"{test.p:.2g}" for test in tests)


def _verdict(records: Records) -> str:
    scenes = list(dict.fromkeys(r["scene"] for r in records))
    means: dict[str, dict[Method, float]] = {"ADE": {}, "turned ADE": {}}
    for method in _methods(records):
        for name, found in means.items():
            rows = _averaged(records, method, scenes)
            if rows and (name in rows[0] or method == _STILL):
                found[method] = sum(r.get(name, r["ADE"]) for r in rows) / len(rows)  # constant velocity turns with us
    if _FREE not in means["ADE"] or _STILL not in means["ADE"]:
        return "**Under way.**"
    parts = []
    for name, words in (("ADE", "as they walked"), ("turned ADE", "turned")):
        soft = {m: v for m, v in means[name].items() if m[1] is not None}
        told = f"{words}: constant velocity {means[name][_STILL]:.3f}, untouched {means[name][_FREE]:.3f}"
        if soft:
            best = min(soft, key=lambda m: soft[m])
            word = "helps" if soft[best] < means[name][_FREE] else "does not help"
            told += f", best dial {_name(best)} {soft[best]:.3f}: softness {word}"
        parts.append(told)
    return f"**In short** (ADE in metres, mean of {len(scenes)} scenes). " + "; ".join(parts) + "."


def _figure(records: Records) -> Figure:
    """ADE, turned ADE and error of equivariance against the dial, one line per scene."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for colour, scene in zip(COLOURS, dict.fromkeys(r["scene"] for r in records), strict=False):
        here = [r for r in records if r["scene"] == scene]
        curve = [(m, 1.0 if m == _FREE else m[1]) for m in _methods(here) if m == _FREE or m[1] is not None]
        curve.sort(key=lambda pair: pair[1] or 0.0)
        for axes, name in zip(panels, ("ADE", "turned ADE", "error"), strict=True):
            found = [Spread.of([r[name] for r in _of(here, m)]) for m, _ in curve]
            at, means, spreads = [s for _, s in curve], [f.mean for f in found], [f.deviation for f in found]
            axes.errorbar(at, means, spreads, fmt="o-", color=colour, capsize=2, label=scene)
            for record in _of(here, _STILL) if name != "error" else ():
                axes.axhline(record["ADE"], color=colour, lw=0.8, ls=":")
    for axes, name in zip(panels, ("ADE", "ADE of turned tracks", "error of equivariance"), strict=True):
        axes.set(xlabel="softness (1: untouched)", ylabel=f"{name}, m")
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8, title="dotted: constant velocity", title_fontsize=7)
    return figure


PAGE = Page(NAME, ("scene", "method", "softness", "seed"), _text, _figure)
