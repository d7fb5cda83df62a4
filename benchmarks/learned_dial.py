"""A dial that is learned: to exact symmetry where the labels allow it, and not where they need the asymmetry.

    python -m benchmarks.learned_dial --data FOLDER [--seeds 0 1 2] [--json FILE] [--plot FILE.png]

FOLDER holds mnist.npz (x_train, y_train, x_test, y_test). Two tasks on MNIST, the same network, optimizer and penalty:

* ``6 or 9``: which of the two digits; a half turn makes one of the other, so that an invariant network cannot tell them
  apart but by handwriting;
* ``8 or not``: 8 against 6 and 9, every image turned by a random element of the group: the labels and the images
  are exactly symmetric.

Each convolution of a small network learns its softness from 1 (as initialised) on, under ``penalty * sum of
softness``. Adam; the learning rate of the weights falls to 0 along a cosine, that of the dials stays. Beside it, for
comparison: softness 0 throughout, and the untouched network.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from benchmarks._contract import add_json_option, pin_threads, write_json
from equidial.adapters._parametrization import constrained

TASKS = {"6 or 9": ((6, 9), (9,), False), "8 or not": ((6, 8, 9), (8,), True)}
"""Digits, those of class 1, whether images are turned at random."""

MODES = ("learned", "softness 0", "untouched")
BATCH = 128
RATE, DIAL_RATE = 2e-3, 1e-2


@dataclass(frozen=True)
class Task:
    """Images ``[n, 1, 28, 28]`` and labels 0 or 1."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    turned: bool


@dataclass(frozen=True)
class Result:
    """One training. ``dials``: per epoch, from before the first one on, the softness of each convolution."""

    task: str
    mode: str
    seed: int
    accuracy: float
    invariance: float
    certified: float
    dials: list[list[float]]


def load_task(folder: Path, name: str, count: int) -> Task:
    """The first ``count`` training images of each digit, and all test images."""
    digits, ones, turned = TASKS[name]
    with np.load(folder / "mnist.npz") as data:
        found = []
        for part, most in (("train", count), ("test", None)):
            labels = data[f"y_{part}"]
            rows = np.sort(np.concatenate([np.flatnonzero(labels == d)[:most] for d in digits]))
            x = torch.from_numpy(data[f"x_{part}"][rows]).float()[:, None] / 255
            found += [(x - 0.1307) / 0.3081, torch.from_numpy(np.isin(labels[rows], ones)).long()]
    return Task(*found, turned=turned)


def network() -> nn.Module:
    """Three 3x3 convolutions with batch norm, two poolings, an average over the image and a linear head."""
    layers: list[nn.Module] = []
    for into, out, pool in ((1, 16, True), (16, 32, True), (32, 32, False)):
        layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


def randomly_turned(x: torch.Tensor, group: ed.groups.Group, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by a random element."""
    elements = list(group.elements())
    picks = torch.randint(len(elements), (len(x),), generator=generator)
    moved = torch.empty_like(x)
    for i, g in enumerate(elements):
        moved[picks == i] = ed.metrics.transform_images(x[picks == i], g)
    return moved


def softness(model: nn.Module) -> list[float]:
    """Of each convolution, in order."""
    return [link.dial.value for _, _, link in constrained(model)]


def run(task: Task, name: str, mode: str, seed: int, group: str, epochs: int, penalty: float) -> Result:
    """Train one network and look at it."""
    torch.manual_seed(seed)
    model = network()
    start = 0.0 if mode == "softness 0" else 1.0
    ed.soften(model, ed.SoftEquivarianceConfig(group=group, softness=start))
    if mode == "learned":
        ed.learn_dial(model)
    dials = [p for n, p in model.named_parameters() if n.endswith("learned_softness")]
    weights = [p for n, p in model.named_parameters() if not n.endswith("learned_softness")]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": RATE}]
    optimizer = torch.optim.Adam([*groups, {"params": dials, "lr": DIAL_RATE}] if dials else groups)
    steps = epochs * -(-len(task.x) // BATCH)
    cosine = [lambda t: (1 + math.cos(math.pi * t / steps)) / 2, lambda t: 1.0]
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine[: len(optimizer.param_groups)])
    generator, acting = torch.Generator().manual_seed(seed), ed.groups.by_name(group)
    curve = [softness(model)]
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(task.x), generator=generator).split(BATCH):
            x = randomly_turned(task.x[rows], acting, generator) if task.turned else task.x[rows]
            loss = functional.cross_entropy(model(x), task.y[rows])
            if dials:
                loss = loss + penalty * ed.relaxation_penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        curve.append(softness(model))
    x = randomly_turned(task.x, acting, generator) if task.turned else task.x
    ed.recalibrate(model, x.split(BATCH))
    bound = ed.certify(model).bound
    ed.fold(model).eval()
    x = randomly_turned(task.x_test, acting, generator) if task.turned else task.x_test
    with torch.no_grad():
        scores = model(x)
        turned = model(torch.rot90(x, 2, (-2, -1)))
    accuracy = float((scores.argmax(1) == task.y_test).float().mean())
    change = float(((turned - scores).norm(dim=1) / scores.norm(dim=1)).mean())
    return Result(name, mode, seed, accuracy, change, bound, curve)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``median (least..largest)``."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def report(results: Sequence[Result]) -> str:
    """The table of the results page."""
    heads = f"{'accuracy':<22} {'change by a half turn':<24} {'certified bound':<22} dials at the end"
    lines = [f"{'task':<9} {'mode':<11} {heads}"]
    for name in TASKS:
        for mode in MODES:
            found = [r for r in results if (r.task, r.mode) == (name, mode)]
            if not found:
                continue
            last = [r.dials[-1] for r in found]
            shown = "  ".join(spread(column, 2) for column in zip(*last, strict=True)) if mode == "learned" else "-"
            lines.append(
                f"{name:<9} {mode:<11} {spread([r.accuracy for r in found], 4):<22} "
                f"{spread([r.invariance for r in found], 4):<24} {spread([r.certified for r in found]):<22} {shown}"
            )
    return "\n".join(lines)


def plot(results: Sequence[Result], file: Path) -> None:
    """Softness of each convolution by epoch, one panel per task, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = ("#0072b2", "#d55e00", "#009e73")
    figure, panels = plt.subplots(1, len(TASKS), figsize=(7.2, 3.2), sharey=True, layout="constrained")
    for axes, name in zip(panels, TASKS, strict=True):
        learned = [r for r in results if (r.task, r.mode) == (name, "learned")]
        for k, result in enumerate(learned):
            for layer, (curve, colour) in enumerate(
                zip(zip(*result.dials, strict=True), colours, strict=True), start=1
            ):
                axes.plot(curve, color=colour, lw=1.3, alpha=0.85, label=None if k else f"convolution {layer}")
        axes.set(title=name, xlabel="epoch", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("learned softness")
    panels[-1].legend(frameon=False)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.learned_dial", description=__doc__)
    out.add_argument("--data", type=Path, required=True, help="a folder with mnist.npz")
    out.add_argument("--group", default="C2", choices=["C2", "C4"])
    out.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    out.add_argument("--epochs", type=int, default=15)
    out.add_argument("--count", type=int, default=1500, help="training images of each digit (1500)")
    out.add_argument("--penalty", type=float, default=0.05, help="weight of the sum of softness (0.05)")
    out.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    out.add_argument("--plot", type=Path, help="write the curves to this PNG")
    out.add_argument("--threads", type=int, default=1)
    add_json_option(out)
    return out


def main() -> None:
    """Run every task, mode and seed and print the table."""
    options = parser().parse_args()
    results = []
    for name in TASKS:
        task = load_task(options.data, name, options.count)
        for seed in options.seeds:
            for mode in options.modes:
                found = run(task, name, mode, seed, options.group, options.epochs, options.penalty)
                results.append(found)
                ends = " ".join(f"{value:.3f}" for value in found.dials[-1])
                print(f"{name}, seed {seed}, {mode}: accuracy {found.accuracy:.4f}, dials {ends}", flush=True)
    print()
    print(report(results))
    if options.plot is not None:
        plot(results, options.plot)
    if options.json is not None:
        write_json(options.json, "learned_dial", options, [asdict(result) for result in results])


if __name__ == "__main__":
    pin_threads(parser().parse_args().threads)
    main()
