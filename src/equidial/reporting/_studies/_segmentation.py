"""The page of segmentation at every softness."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equidial.recipes.segmentation import NAME
from equidial.reporting._runs import Spread
from equidial.reporting._studies._shared import CHANCE, COLOURS, Difference, Page, Records, header, pairs, spread

_PAPER = {  # paper A, PASCAL VOC 2012: mIoU, aIoU, cIoU in %, eErr in hundredths of a nat
    "ViT, base": ("73.40", "70.09", "71.73", "12.31"),
    "ViT, canonicalized": ("65.36", "61.93", "63.62", "20.39"),
    "ViT, soft": ("74.78", "71.61", "73.18", "11.12"),
    "SegFormer, soft": ("66.34", "62.52", "64.40", "10.64"),
}
_BASELINES = ("untouched", "untouched, turned")
_ADDED = ("strict, turned", "soft, turned")
_DIALLED = ("strict", "soft", *_ADDED)
_MARKERS = {"untouched": "s", "untouched, turned": "D", "strict": "*", "strict, turned": "P", "soft, turned": "X"}
_NO_CLASS = 255
_TRUTH = "truth"


def _text(settings: Mapping[str, Any], records: Records) -> str:
    lines = [f"# Segmentation of {settings['dataset']} at every softness", "", _verdict(records), ""]
    told = {key: value for key, value in settings.items() if key != "test_masks"}
    told["turned_dial"] = any(r["method"] in _ADDED for r in records) or None  # no setting: more rows in one folder
    lines += [*header(NAME, told, records), ""]
    if not all(r["complete"] for r in records):
        lines += ["**Not the whole data set**: some parts have fewer images than they have in full.", ""]
    lines += [
        f"{records[0]['images']} training and {records[0]['test_images']} test images of {settings['image_size']} "
        f"pixels; group {settings['group']}. SHA-256 of the test masks: {settings['test_masks'][:16]}.",
        "",
        "![cIoU, certified bound and predictions](segmentation.png)",
        "",
        "| network | softness | mIoU % | aIoU % | cIoU % | eErr (1e-2 nats) | certified bound | defect found | "
        "validation mIoU % | s a training |",
        "|" + "---|" * 10,
    ]
    for method, response, softness in _cases(records):
        found = _of(records, method, response, softness)
        cells = [spread(found, name, 100, 1) for name in ("mIoU", "aIoU", "cIoU")]
        cells += [spread(found, "eErr", 100, 2), spread(found, "bound", 1, 3), spread(found, "measured_defect", 1, 3)]
        seconds = Spread.of([r["train_seconds"] for r in found]).mean
        cells += [spread(found, "validation", 100, 1), f"{seconds:.0f}"]
        lines.append(f"| {_name(method, response)} | {softness:g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "mIoU: of upright test images. aIoU: of moved images against moved masks, the mean over elements. cIoU: their",
        "geometric mean. eErr: KL divergence between the moved prediction and the prediction of the moved image, over",
        "the pixels in the frame. Certified bound: the largest relative defect of a kernel or table under the group;",
        f"its level is the {' and the '.join(records[0]['levels'])}, and it is no bound of the whole network, unless",
        "it is 0 everywhere. Defect found: the largest value of the same quantity over sampled elements. ± is the",
        "standard deviation over seeds. Turned: trained on images turned by random elements.",
        "",
        "`hard` moves in stairs: of positions that give the same network one is trained, and none that removes",
        "nothing. Softness 0 is the same network for every response. Batch norm learns its statistics with the",
        "weights, in every row, and they are estimated again at the end.",
        "",
    ]
    if settings["dataset"] == "voc":
        lines += ["Paper A, at its own scale (no bound is computed there):", ""]
        lines += ["| network | mIoU % | aIoU % | cIoU % | eErr (1e-2 nats) |", "|" + "---|" * 5]
        lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in _PAPER.items()]
        lines += [""]
    return "\n".join(lines)


def _cases(records: Records) -> list[tuple[str, str | None, float]]:
    found = dict.fromkeys((r["method"], r["response"], r["softness"]) for r in records)
    order = (*_BASELINES, *_DIALLED)
    return sorted(found, key=lambda case: order.index(case[0]))


def _of(records: Records, method: str, response: str | None, softness: float) -> Records:
    return [r for r in records if (r["method"], r["response"], r["softness"]) == (method, response, softness)]


def _name(method: str, response: str | None) -> str:
    turned = ", turned" if method.endswith("turned") else ""
    return f"`{response}`{turned}" if response else method


def _verdict(records: Records) -> str:
    """Which is best by cIoU, and what it costs upright; where softness does not help, that first."""
    cases = _cases(records)
    scores = {case: Spread.of([r["cIoU"] for r in _of(records, *case)]) for case in cases}
    upright = {case: Spread.of([r["mIoU"] for r in _of(records, *case)]) for case in cases}
    plain, constrained = ([c for c in cases if (c[0] in _BASELINES) is inside] for inside in (True, False))
    if len(plain) < len(_BASELINES) or not constrained:
        return "**Under way.**"

    def told(case: tuple[str, str | None, float]) -> str:
        name = _name(case[0], case[1]) + ("" if case[1] is None else f" at {case[2]:g}")
        return f"{name}: cIoU {scores[case].show(1, 100)} %, mIoU {upright[case].show(1, 100)} %"

    free, soft = (max(some, key=lambda case: scores[case].mean) for some in (plain, constrained))
    gap = scores[soft].mean - scores[free].mean
    between = [case for case in constrained if case[1] is not None]
    margin = scores[soft].deviation + scores[free].deviation
    both = pairs(_of(records, *soft), _of(records, *free), "seed")
    p = Difference.of([a["cIoU"] for a, _ in both], [b["cIoU"] for _, b in both]).p if both else math.nan
    if gap <= margin:
        first = "**Softness does not help here**" if gap <= 0 else "**Softness helps by less than the spread**"
    elif not p < CHANCE:
        first = "**Softness may help here**"
    elif between and soft[1] is None:
        first = "**Positions between do not help here: exact symmetry is best**"
    else:
        first = "**Softness helps here**"
    best = max(cases, key=lambda case: upright[case].mean)
    return (
        f"{first} (cIoU). Best constrained, {told(soft)}. Best free, {told(free)}. Both are picked by these numbers; "
        f"p = {p:.2g} for their difference, paired by seed. Upright alone, best {told(best)}."
    )


def _figure(records: Records) -> Figure:
    """cIoU and certified bound against eErr, a line a response from strict to untouched; predictions below."""
    pictures = [r for r in records if "picture" in r]
    image = next((r["picture"] for r in pictures if "image" in r["picture"]), None)
    figure = Figure(figsize=(11, 4.0 + 2.4 * len(pictures) * (image is not None)), layout="constrained")
    top: Any = figure
    if image is not None:
        parts: Any = figure.subfigures(2, 1, height_ratios=(4.0, 2.4 * len(pictures)))
        top = parts[0]
        _draw_pictures(parts[1], pictures, image)
    left, right = top.subplots(1, 2)
    cases = _cases(records)
    ends = [case for case in cases if case[0] in ("strict", "untouched")]
    responses = dict.fromkeys(response for _, response, _ in cases if response is not None)
    for axes, score, scale in ((left, "cIoU", 100), (right, "bound", 1)):
        for colour, response in zip(COLOURS, responses, strict=False):
            line = sorted((c for c in cases if (c[0] == "soft" and c[1] == response) or c in ends), key=lambda c: c[2])
            _line(axes, records, line, score, scale, colour, f"{response}")
        for case, marker in _MARKERS.items():
            _line(axes, records, [c for c in cases if c[0] == case], score, scale, "#222222", case, marker)
        axes.set_xlabel("error of equivariance eErr (nats)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    left.set_ylabel("cIoU on test images, %")
    right.set_ylabel("largest certified defect of a kernel or table")
    return figure


def _line(
    axes: Axes,
    records: Records,
    cases: Sequence[tuple[str, str | None, float]],
    score: str,
    scale: float,
    colour: str,
    label: str,
    marker: str = "o",
) -> None:
    x, y = ([Spread.of([r[name] for r in _of(records, *case)]) for case in cases] for name in ("eErr", score))
    if not cases:
        return
    axes.errorbar(
        [v.mean for v in x],
        [v.mean * scale for v in y],
        xerr=[v.deviation for v in x],
        yerr=[v.deviation * scale for v in y],
        fmt="-" + marker,
        color=colour,
        label=label,
        markersize=4 if len(cases) > 1 else 7,
        linewidth=1,
    )
    for case, across, up in zip(cases, x, y, strict=True):
        if case[1] is not None:
            axes.annotate(f" {case[2]:g}", (across.mean, up.mean * scale), fontsize=7, color=colour)


def _draw_pictures(part: Any, pictures: Records, first: Mapping[str, Any]) -> None:
    """A row per network: truth or image, prediction, prediction of the moved image moved back, where they differ."""
    with io.BytesIO(base64.b64decode(first["image"])) as file:
        from PIL import Image

        image = np.asarray(Image.open(file))
    truth = _unpacked(first[_TRUTH], first["truth_size"])
    rows = sorted(pictures, key=lambda r: r["softness"])
    panels = part.subplots(len(rows), 4, squeeze=False)
    for row, record in enumerate(rows):
        still, back = _unpacked(record["picture"]["classes"], [2, *record["picture"]["size"]])
        shown = [image if row == 0 else _coloured(truth), _coloured(still), _coloured(back)]
        shown.append(np.where((still != back)[..., None], (178, 58, 72), (235, 235, 235)).astype(np.uint8))
        name = _name(record["method"], record["response"]).strip("`")
        titles = ["image" if row == 0 else "truth", f"{name}, softness {record['softness']:g}"]
        titles += ["of the moved image, moved back", f"differ: {100 * float((still != back).mean()):.0f} % of pixels"]
        for axes, pixels, title in zip(panels[row], shown, titles, strict=True):
            axes.imshow(pixels)
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()


def _unpacked(text: str, shape: Sequence[int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(tuple(shape))


def _coloured(classes: np.ndarray) -> np.ndarray:
    """One colour per class, white for none."""
    table = (np.array(colormaps["tab20"].colors) * 255).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return np.where((classes == _NO_CLASS)[..., None], np.uint8(255), table[classes % len(table)])


PAGE = Page(NAME, ("method", "response", "softness", "seed"), _text, _figure)
