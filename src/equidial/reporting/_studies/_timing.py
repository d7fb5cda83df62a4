"""The page of timing: construction against its rivals, the SVD extrapolated, networks beside the plain one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equidial.recipes.timing import MODELS, NAME, RIVALS
from equidial.reporting._studies._shared import COLOURS, Page, Records, command

_WORDS = {"ours": "ours", "schur": "Schur form", "svd": "dense SVD"}
_PAPER_SIZE, _PAPER = 14, "paper A names about 890 s for its SVD at a 14x14 input and 0.25 s for its Schur way"
_FIXED = 0.003  # seconds: what is faster is fixed costs, and no growth can be read from it


class Law(NamedTuple):
    """``seconds = scale n^exponent``, least squares of the logarithms of medians over sizes."""

    scale: float
    exponent: float
    error: float  # standard error of the exponent
    sizes: tuple[int, ...]
    deviation: float  # of the points about the line

    @classmethod
    def of(cls, medians: Mapping[int, float]) -> Law | None:
        """Of three sizes or more."""
        if len(medians) < 3:
            return None
        x, y = (np.log(np.asarray(list(values), float)) for values in (medians.keys(), medians.values()))
        spread = float((x - x.mean()) @ (x - x.mean()))
        exponent = float((x - x.mean()) @ y) / spread
        intercept = float(y.mean() - exponent * x.mean())
        rest = y - intercept - exponent * x
        deviation = math.sqrt(float(rest @ rest) / (len(x) - 2))
        return cls(math.exp(intercept), exponent, deviation / math.sqrt(spread), tuple(medians), deviation)

    def at(self, n: float) -> float:
        """Seconds on the line."""
        return self.scale * n**self.exponent

    def interval(self, n: float) -> tuple[float, float]:
        """The 95 % prediction interval of one value, provided that the law goes on."""
        x = np.log(self.sizes)
        spread = float((x - x.mean()) @ (x - x.mean()))
        width = self.deviation * math.sqrt(1 + 1 / len(x) + (math.log(n) - float(x.mean())) ** 2 / spread)
        factor = math.exp(float(scipy.stats.t.ppf(0.975, len(x) - 2)) * width)
        return self.at(n) / factor, self.at(n) * factor


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = ["# Timing: what a filter costs to build, and a softened network to train and to run", ""]
    lines += [*_verdict(records), "", command(NAME, settings), ""]
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    lines += [f"Settings: {options}.", *_surroundings(records), "", "![seconds and ratios](timing.png)", ""]
    lines += [*_HOW, ""]
    for group in _groups(records):
        lines += _construction(group, records)
    return "\n".join([*lines, *_networks(records)])


_HOW = (
    "Cells are the median over rounds with its [quartiles]. In a round every rival runs once, forwards in even rounds",
    "and backwards in odd ones; ratios are formed within a round. Nothing is kept from round to round but the imports.",
    "Construction: everything from the group to the first filtered weight, in float64, of the exact filter of maps",
    "from n x n to n x n pixels. The Schur form and the SVD get their generator for nothing; it is ours, and what it",
    "takes stands beside. Difference: the largest ||W - W_ours|| / ||W_0|| over rounds, W_0 the weight before. Memory",
    "of the SVD: its matrix, 8 n^8 bytes, and the largest rise of resident memory over rounds, which does not count",
    "what an earlier call left to be used again.",
)


def _surroundings(records: Records) -> list[str]:
    """Every machine, thread count and version that took part."""
    found = dict.fromkeys(
        (r["processors"], r["threads"], r["blas_threads"], *(f"{k} {v}" for k, v in r["versions"].items()))
        for r in records
    )
    told = [
        f"{processors} processors, {threads} torch thread{'s' if threads > 1 else ''}, OMP_NUM_THREADS {blas}, "
        + ", ".join(versions)
        for processors, threads, blas, *versions in found
    ]
    rounds = [len({r["round"] for r in own}) for own in _cases(records).values()]
    many = f"{min(rounds)} to {max(rounds)}" if min(rounds) < max(rounds) else f"{rounds[0]}"
    minutes = sum(r["seconds"] for r in records) / 60
    mixed = "" if len(told) == 1 else " Not all rounds were measured alike."
    return [f"{many} rounds of each size and network, {minutes:.0f} minutes. {'; '.join(told)}.{mixed}"]


def _cases(records: Records) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for r in records:
        cases.setdefault((r["part"], r["group"], r["size"], r["network"]), []).append(r)
    return cases


def _groups(records: Records) -> list[str]:
    return list(dict.fromkeys(r["group"] for r in records if r["part"] == "construction"))


def _built(records: Records, group: str, rival: str) -> dict[int, list[Mapping[str, Any]]]:
    """By size, ascending, the rounds in which a rival ran."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for r in sorted((r for r in records if r["part"] == "construction"), key=lambda r: r["size"]):
        if r["group"] == group and rival in r["build"]:
            found.setdefault(r["size"], []).append(r)
    return found


def _seconds(found: Records, rival: str) -> list[float]:
    return [r["build"][rival] for r in found]


def _ratios(found: Records, rival: str, generator: bool = False) -> list[float]:
    """How many times as long as ours; with the making of the generator, where asked."""
    return [(r["build"][rival] + generator * r["generator"]) / r["build"]["ours"] for r in found]


def _law(records: Records, group: str) -> Law | None:
    medians = {n: float(np.median(_seconds(found, "svd"))) for n, found in _built(records, group, "svd").items()}
    return Law.of({n: seconds for n, seconds in medians.items() if seconds >= _FIXED})


def number(value: float) -> str:
    """Three digits, without an exponent between 1e-4 and 1e6."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def between(values: Iterable[float]) -> str:
    """``"least to largest"``, or the only one."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(number(value) for value in (ordered[0], ordered[-1])))


def quartiles(values: Sequence[float]) -> str:
    """``"median [first quartile..third quartile]"``."""
    low, middle, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{number(middle)} [{number(low)}..{number(high)}]"


def _construction(group: str, records: Records) -> list[str]:
    ours, schur, svd = (_built(records, group, rival) for rival in RIVALS)
    lines = [f"## Construction, {group}", ""]
    lines += ["| n x n | unknowns | ours, s | Schur form, s | times ours | with its generator | dense SVD, s |"]
    lines[-1] += " times ours | SVD, MiB | difference |"
    lines += ["|" + "---|" * 10]
    for n, found in ours.items():
        cells = [f"{n} x {n}", f"{n**4:,}", quartiles(_seconds(found, "ours"))]
        cells += ["-"] * 3
        if n in schur:
            cells[3:] = [quartiles(_seconds(schur[n], "schur")), quartiles(_ratios(schur[n], "schur"))]
            cells += [quartiles(_ratios(schur[n], "schur", True))]
        if n in svd:
            rise = [r["mib"]["svd"] for r in svd[n] if r["mib"]["svd"] is not None]
            memory = f"{number(8 * n**8 / 2**20)}, {number(max(rise)) if rise else '-'}"
            cells += [quartiles(_seconds(svd[n], "svd")), quartiles(_ratios(svd[n], "svd")), memory]
        else:
            cells += ["-", "-", f"({number(8 * n**8 / 2**20)})"]
        cells.append(f"{max(value for r in found for value in r['difference'].values()):.1e}")
        lines.append("| " + " | ".join(cells) + " |")
    law = _law(records, group)
    if law is not None:
        lines += ["", f"The SVD grows as n^({law.exponent:.1f} ± {law.error:.1f}), fitted on a log scale to medians at"]
        lines += [f"n = {', '.join(map(str, law.sizes))}, those of {_FIXED:g} s or more; in theory n^12, and fixed"]
        lines += ["costs flatten the line, in favour of the SVD. **Extrapolated, not run** (95 % prediction interval,"]
        lines += ["if the law goes on):", ""]
        for n, found in ours.items():
            if n > max(law.sizes):
                (low, high), mine = law.interval(n), float(np.median(_seconds(found, "ours")))
                text = f"* {n} x {n}: {number(law.at(n))} s ({number(low)}..{number(high)}), {number(law.at(n) / mine)}"
                text += f" times ours ({number(low / mine)} from the lower end)"
                lines.append(f"{text}; {_PAPER}." if n == _PAPER_SIZE else f"{text}.")
    return [*lines, ""]


def _networks(records: Records) -> list[str]:
    rows = {case: found for case, found in _cases(records).items() if case[0] == "network"}
    if not rows:
        return []
    lines = ["## Networks", "", "| network | batch | plain, s | softened over plain | folded over plain | the noise |"]
    lines += ["|" + "---|" * 6]
    for (*_, name), found in rows.items():
        for part in ("step", "pass"):
            plain = quartiles([r[part]["plain"] for r in found])
            cells = [quartiles(_relative(found, part, model)) for model in MODELS[1:]]
            lines.append(f"| {name}, {_PARTS[part]} | {found[0]['batch']} | {plain} | {' | '.join(cells)} |")
    devices = ", ".join(dict.fromkeys(r["device"] for found in rows.values() for r in found))
    lines += ["", f"Device: {devices}. The noise: a second copy of the plain network over the first. Seconds are means"]
    lines += ["of three in a row. A step is forwards, backwards and SGD with momentum, in training mode; a pass is"]
    lines += ["forwards in evaluation mode, without gradients, where a softened network filters its weights anew: fold"]
    lines += ["it before it is used. Folded networks are the plain ones with other weights.", ""]
    if any(r["device"] != "cpu" for found in rows.values() for r in found):
        lines += ["| network | memory of a step, MiB: plain | softened |", "|---|---|---|"]
        for (*_, name), found in rows.items():
            cells = [number(max(r["mib"][model] for r in found)) for model in ("plain", "soft")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


_PARTS = {"step": "a training step", "pass": "a pass"}


def _relative(found: Records, part: str, model: str) -> list[float]:
    return [r[part][model] / r[part]["plain"] for r in found]


def _verdict(records: Records) -> list[str]:
    """Where ours is slower, then what softness costs a network, then where ours is faster."""
    slower, faster = [], []
    for group in _groups(records):
        for rival in RIVALS[1:]:
            behind, ahead = {}, {}
            for n, found in _built(records, group, rival).items():
                ratio = float(np.median(_ratios(found, rival)))
                (behind if ratio < 1 else ahead)[n] = ratio
            for told, sizes in ((slower, behind), (faster, ahead)):
                if sizes:
                    places = ", ".join(f"{n}x{n}" for n in sizes)
                    told.append(
                        f"{group}: the {_WORDS[rival]} takes {between(sizes.values())} times our time at {places}"
                    )
                    if rival == "schur":
                        built = _built(records, group, rival)
                        whole = [float(np.median(_ratios(built[n], rival, True))) for n in sizes]
                        told[-1] += f" ({between(whole)} with its generator)"
    lines = []
    if slower:
        lines += [f"**Ours is slower.** {'; '.join(slower)}; rivals get their generator for nothing.", ""]
    costs = []
    for (part, *_, name), found in _cases(records).items():
        if part == "network":
            step, forward = (quartiles(_relative(found, p, "soft")) for p in ("step", "pass"))
            noise = quartiles(_relative(found, "step", "plain again"))
            costs.append(f"{name}: a softened step takes {step} times the plain one (noise {noise}), a pass {forward}")
    if costs:
        lines += [f"**What softness costs.** {'; '.join(costs)}; folded networks are plain.", ""]
    if faster:
        lines += [f"**Ours is faster.** {'; '.join(faster)}.", ""]
    return lines[:-1] or ["**Under way.**"]


def _figure(records: Records) -> Figure:
    """Left: seconds against n, the SVD's law dashed where it was not run. Right: ratios to the plain network."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for style, group in zip(("-", "--"), _groups(records), strict=False):
        for colour, rival in zip(COLOURS, RIVALS, strict=False):
            built = _built(records, group, rival)
            if built:
                columns = np.array([np.quantile(_seconds(found, rival), (0.25, 0.5, 0.75)) for found in built.values()])
                sizes, label = list(built), f"{_WORDS[rival]}, {group}"
                left.plot(sizes, columns[:, 1], style, color=colour, marker="o", ms=4, label=label)
                left.fill_between(sizes, columns[:, 0], columns[:, 2], color=colour, alpha=0.2, lw=0)
        law, largest = _law(records, group), max(_built(records, group, "ours"))
        if law is not None and largest > max(law.sizes):
            far = np.linspace(max(law.sizes), largest, 20)
            words = "SVD extrapolated" if style == "-" else None
            left.plot(far, [law.at(n) for n in far], ":", color=COLOURS[2], label=words)
    left.set(xlabel="n of n x n pixels", ylabel="seconds to the first filtered weight", xscale="log", yscale="log")
    left.set_xticks(sorted({r["size"] for r in records if r["part"] == "construction"}))
    left.xaxis.set_major_formatter("{x:.0f}")
    left.minorticks_off()
    left.grid(alpha=0.25)
    if _groups(records):
        left.legend(fontsize=7)
    _draw_ratios(right, records)
    return figure


def _draw_ratios(axes: Axes, records: Records) -> None:
    rows = [
        (f"{case[-1]}\n{_PARTS[part]}", found, part)
        for case, found in _cases(records).items()
        if case[0] == "network"
        for part in ("step", "pass")
    ]
    for place, (_, found, part) in enumerate(rows):
        for shift, (colour, model) in enumerate(zip(COLOURS, MODELS[1:], strict=False)):
            low, middle, high = np.quantile(_relative(found, part, model), (0.25, 0.5, 0.75))
            words = {"plain again": "plain again: the noise", "soft": "softened"}.get(model, model)
            axes.errorbar(
                [middle],
                [place + 0.2 * (shift - 1)],
                xerr=[[middle - low], [high - middle]],
                fmt="o",
                color=colour,
                ms=4,
                capsize=3,
                label=None if place else words,
            )
    axes.axvline(1, color="#888888", lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time over that of the plain network: medians, quartiles")
    axes.grid(alpha=0.25, axis="x")
    if rows:
        axes.legend(fontsize=7)


PAGE = Page(NAME, ("part", "group", "size", "network", "round"), _text, _figure)
