"""The page of hard against smooth thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from equidial.recipes.thresholds import NAME
from equidial.reporting._studies._shared import CHANCE, COLOURS, Difference, Page, Records, header, pairs, spread

_PAPER = {"hard": ("73.92", "71.78", "11.74"), "smooth": ("74.78", "73.18", "11.12")}
_STAGES = {"projected": "projection alone", "fine-tuned": "after fine-tuning"}
_DIGITS = {"mIoU": 1, "aIoU": 1, "cIoU": 1, "eErr": 2}


@dataclass(frozen=True)
class _Comparison:
    """One section of the page: what is equal, and the records of each response."""

    kind: str
    at: float
    rows: Mapping[str, Records]

    @property
    def words(self) -> str:
        """What is equal, in words."""
        if self.kind == "max_error":
            return f"certified bound up to {self.at:g}"
        return f"softness {self.at:.3g}" if self.kind == "softness" else f"bound of hard at {self.at:.3g}"

    @property
    def title(self) -> str:
        """As a heading."""
        if self.kind == "max_error":
            return f"## A certified bound of at most {self.at:g} for every tensor"
        same = "softness" if self.kind == "softness" else "certified bound"
        return f"## The same {same} as `hard` at {self.at:.3g}, tensor by tensor"

    def smooth(self) -> list[str]:
        """The responses that are compared with ``hard``."""
        return [response for response in self.rows if response != "hard"]

    def difference(self, response: str, name: str, stage: str) -> Difference | None:
        """To ``hard``, in pairs of one seed; ``None`` without a pair."""
        values = self.values(response, name, stage)
        return Difference.of([a for a, _ in values], [b for _, b in values]) if values else None

    def values(self, response: str, name: str, stage: str) -> list[tuple[float, float]]:
        """What the response and ``hard`` reach, seed by seed, in hundredths."""
        found = pairs(self.rows[response], self.rows["hard"], "seed")
        return [(100 * _at(stage, a)[name], 100 * _at(stage, b)[name]) for a, b in found]


def _at(stage: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["before"] if stage == "projected" else record


def _comparisons(records: Records) -> Iterator[_Comparison]:
    """In the order: softness, bound, budgets. ``hard`` at a softness also belongs to its bound."""
    for kind in ("softness", "bound", "max_error"):
        for at in dict.fromkeys(r["at"] for r in records if r["comparison"] == kind):
            source = "softness" if kind == "bound" else kind
            rows = {"hard": [r for r in records if (r["comparison"], r["at"], r["response"]) == (source, at, "hard")]}
            here = [r for r in records if (r["comparison"], r["at"]) == (kind, at) and r["response"] != "hard"]
            rows |= {name: [r for r in here if r["response"] == name] for name in dict.fromkeys(_responses(here))}
            if rows["hard"] and len(rows) > 1:
                yield _Comparison(kind, at, rows)


def _responses(records: Records) -> list[str]:
    return [r["response"] for r in records]


def _text(settings: Mapping[str, Any], records: Records) -> str:
    comparisons = list(_comparisons(records))
    untouched = [r for r in records if r["comparison"] == "untouched"]
    first = records[0]
    lines = [f"# Hard against smooth thresholds: segmentation of {settings['dataset']}", "", _verdict(comparisons), ""]
    told = {key: value for key, value in settings.items() if key != "test_masks"}
    lines += [*header(NAME, told, records), ""]
    if not all(r["complete"] for r in records):
        lines += ["**Not the whole data set**: some parts have fewer images than they have in full.", ""]
    lines += [
        f"{first['images']} training and {first['test_images']} test images of {settings['image_size']} pixels; group "
        f"{settings['group']} within 30 degrees, {first['angles']} angles. SHA-256 of the test masks: "
        f"{settings['test_masks'][:16]}.",
        "",
        "A seed is one network, fine-tuned untouched; its rows start from there. *Projection alone*: its weights are",
        "filtered and batch norm is estimated again. *After fine-tuning*: then trained as long again, the dial on.",
        "",
        "![differences to hard](thresholds.png)",
        "",
    ]
    for comparison in comparisons:
        lines += [comparison.title, "", *_table(comparison, untouched), *_differences(comparison), ""]
    lines += [
        "Softness: of a response that is a function of the singular values, the mean response over the directions that",
        "are not symmetric; of `nearest`, the share of the defect that it keeps. Mean over tensors. Removed: mean over",
        "tensors of `||F(W) - W|| / ||W||` before fine-tuning. Bound: certified relative defect of the weights as they",
        "stand, within 30 degrees, mean over tensors and largest; its level is the "
        f"{' and the '.join(first['levels'])}. Defect found: the largest value of the same quantity",
        "over sampled elements. mIoU: of upright test images. aIoU: of turned images against turned masks. cIoU: their",
        "geometric mean. eErr: KL divergence between the turned prediction and the prediction of the turned image.",
        "± is the standard deviation over seeds.",
        "",
        "At the same certified bound the dial of every tensor was turned, by halving, as far as its certificate before",
        "fine-tuning stays within the bound of `hard`; `exponential` has no a priori bound, and those of `hard` and",
        "`taper` are far above what their weights do. Filters stay where they are while weights train, so that bounds",
        "may part again.",
        "",
        "Paper A, table 7 (ViT on PASCAL VOC 2012, the same threshold, one network each, no bound, no spread given):",
        "",
        "| threshold | mIoU % | cIoU % | eErr (1e-2 nats) |",
        "|---|---|---|---|",
        *(f"| {name} | " + " | ".join(values) + " |" for name, values in _PAPER.items()),
        "",
    ]
    return "\n".join(lines)


def _table(comparison: _Comparison, untouched: Records) -> list[str]:
    columns = "softness | removed % | mean bound | largest | defect found | mIoU % | aIoU % | cIoU % | eErr 1e-2 nats"
    lines = [f"| response | stage | {columns} |", "|" + "---|" * 11]
    rows = {"untouched": untouched} if untouched else {}
    rows |= {f"`{name}`": found for name, found in comparison.rows.items()}
    for stage, words in _STAGES.items():
        for name, found in rows.items():
            there = [_at(stage, r) for r in found]
            cells = ["1", "0"]
            if name != "untouched":
                cells = [spread(found, "softness", 1, 2), spread(found, "removed", 100, 1)]
            cells += [spread(there, key, 1, 3) for key in ("mean_bound", "bound", "measured_defect")]
            cells += [spread(there, key, 100, digits) for key, digits in _DIGITS.items()]
            lines.append(f"| {name} | {words} | {' | '.join(cells)} |")
    return [*lines, ""]


def _differences(comparison: _Comparison) -> list[str]:
    """Paired differences to ``hard`` with their interval."""
    names = ("mIoU", "cIoU", "eErr")
    lines = ["Differences to `hard` seed by seed: mean ± standard deviation [95 % interval], p of the paired t-test."]
    lines += ["", "| response | stage | mIoU, points | cIoU, points | eErr, 1e-2 nats |", "|---|---|---|---|---|"]
    for stage, words in _STAGES.items():
        for response in comparison.smooth():
            cells = [_shown(comparison.difference(response, name, stage), _DIGITS[name] + 1) for name in names]
            lines.append(f"| `{response}` | {words} | {' | '.join(cells)} |")
    return lines


def _shown(found: Difference | None, digits: int) -> str:
    if found is None:
        return "-"
    centre = f"{found.mean:+.{digits}f}"
    if math.isnan(found.low):
        return f"{centre} (one seed)"
    test = "" if math.isnan(found.p) else f", p {found.p:.2g}"
    return f"{centre} ± {found.deviation:.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]{test}"


def _verdict(comparisons: list[_Comparison]) -> str:
    """By cIoU after fine-tuning; p-values of all pairs corrected together (Holm)."""
    found = [(c, r, c.difference(r, "cIoU", "fine-tuned")) for c in comparisons for r in c.smooth()]
    tested = [(c, r, d) for c, r, d in found if d is not None and not math.isnan(d.low)]
    if not tested:
        return "**Under way.**"
    certain = _holm([d.p for _, _, d in tested])
    better, worse = (
        [f"`{r}` ({c.words})" for (c, r, d), sure in zip(tested, certain, strict=True) if sure and sign * d.mean > 0]
        for sign in (1, -1)
    )
    if better:
        first = f"**Smooth beats hard here** (cIoU): {', '.join(better)}."
        first += f" Hard beats {', '.join(worse)}." if worse else ""
    elif worse:
        first = f"**Smooth does not beat hard here, hard beats smooth** (cIoU): {', '.join(worse)}."
    else:
        first = "**Smooth does not beat hard here**: no difference in cIoU is beyond chance."
    parts = []
    for c in comparisons:
        told = [f"`{r}` {_brief(d)}" for other, r, d in tested if other is c]
        parts += [f"{c.words}: {', '.join(told)}"] if told else []
    count = len(tested)
    return (
        f"{first} Points of cIoU against `hard` after fine-tuning [95 % interval of each pair by itself]: "
        f"{'; '.join(parts)}. Significance at {CHANCE:g} with the {count} p-values corrected together (Holm)."
    )


def _brief(found: Difference) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _holm(values: list[float]) -> list[bool]:
    """Which hypotheses are rejected at the level of the whole family; one that is not defined (NaN) never is."""
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
    rejected = [False] * len(values)
    for place, i in enumerate(order):
        if not values[i] <= CHANCE / (len(values) - place):
            break
        rejected[i] = True
    return rejected


def _figure(records: Records) -> Figure:
    """Differences of cIoU and eErr to ``hard``: a row per response and comparison, a dot a seed, 95 % intervals."""
    comparisons = list(_comparisons(records))
    rows = [(c, r) for c in comparisons for r in c.smooth()]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, words in zip(panels, ("cIoU", "eErr"), ("cIoU, points", "eErr, 1e-2 nats"), strict=True):
        for place, (comparison, response) in enumerate(rows):
            for shift, colour, stage in zip((-0.15, 0.15), COLOURS, _STAGES, strict=False):
                gaps = [a - b for a, b in comparison.values(response, name, stage)]
                axes.plot(gaps, [place + shift] * len(gaps), ".", color=colour, alpha=0.5)
                found = comparison.difference(response, name, stage)
                if found is not None and not math.isnan(found.low):
                    label = _STAGES[stage] if place == 0 else None
                    reach = found.high - found.mean
                    axes.errorbar(found.mean, place + shift, xerr=reach, fmt="s", color=colour, capsize=3, label=label)
        axes.axvline(0, color="#222222", lw=0.8)
        axes.set_xlabel(f"difference to hard: {words}")
        axes.grid(alpha=0.25)
    panels[0].set_yticks(range(len(rows)), [f"{r}\n{c.words}" for c, r in rows], fontsize=8)
    panels[0].invert_yaxis()
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize=8)
    return figure


PAGE = Page(NAME, ("comparison", "at", "response", "seed"), _text, _figure)
