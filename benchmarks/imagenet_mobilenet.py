"""MobileNetV2 on a sample of ImageNet, adapted to quarter turns by self-distillation, at several dial positions.

    python -m benchmarks.imagenet_mobilenet --data FOLDER --output runs/imagenet-mobilenet [--resume]

FOLDER holds ``imagenet_sample_1k_256.zip``, ``labels.csv`` and ``imagenet_mobilenet_v2.safetensors``, at any depth. One
half of the sample adapts, the other tests; learning rates are chosen on a part of the first half. Every finished run
adds a line to ``log.jsonl``; ``--resume`` skips what is logged. The table of the results page is written from the log.

With glibc, ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=268435456`` in the environment makes
it faster.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import equidial as ed
from equidial.data import Augmentation, Images, load_images, loader
from equidial.errors import ArgumentError, explain
from equidial.groups import by_name
from equidial.metrics import correct, measured_elements, relative_error, transform_images
from equidial.recipes import Adapt, load_model
from equidial.recipes.adapt import Norm, run

MODEL = "examples/imagenet_mobilenet.py:mobilenet_v2"
SAMPLE, LABELS, WEIGHTS = "imagenet_sample_1k_256.zip", "labels.csv", "imagenet_mobilenet_v2.safetensors"
PAGE = Path("docs/results/imagenet_mobilenet_v2_c4.md")
BEGIN, END = "<!-- table: written by benchmarks.imagenet_mobilenet -->", "<!-- table: end -->"

GROUP = "C4"
SIZE = 223  # 32 k - 1: every stride fits quarter turns
SIZES = (224, 223)  # at which the network is looked at as it came
SPLIT_SEED = 0
VALIDATION = 100  # images of the adaptation half, for the choice of learning rates
SOFTNESS = (0.0, 0.5, 0.8, 1.0)
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SEEDS = (0, 1, 2)
EPOCHS = 5
BATCH = 20
RECALIBRATION = 25  # batches
RESIDUAL_IMAGES = 100
SCORES = (("Acc", 100, 1), ("aAcc", 100, 1), ("cAcc", 100, 1), ("iErr", 1, 3))


@dataclass(frozen=True)
class Arm:
    """What is compared: a dial position, how images are moved, what becomes of batch norm."""

    softness: float
    augment: Augmentation
    norm: Norm

    @property
    def words(self) -> str:
        """Augmentation and norm as the tables say them."""
        return f"{'turned' if self.augment == 'turn' else 'upright'}, {self.norm}"


@dataclass(frozen=True)
class Key(Arm):
    """One run: ``stage`` search (validation images, one seed) or final (test half)."""

    stage: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join(str(value) for value in asdict(self).values())


class Log:
    """The finished runs, one JSON object a line; the first line holds the settings."""

    def __init__(self, path: Path):
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path.exists():
            # a line that an interruption cut short is no finished run
            complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            path.write_text("".join(complete))
            self.records = [json.loads(line) for line in complete]
        if not self.records:
            self.add({"settings": settings()})
        elif self.records[0].get("settings") != settings():
            raise ArgumentError(explain("a log of these settings", f"others in {path}", "choose another --output"))

    def add(self, record: dict[str, Any]) -> None:
        """Append and write at once."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """Records with these values."""
        return [r for r in self.records if all(r.get(k) == v for k, v in wanted.items())]


def settings() -> dict[str, Any]:
    """What a log must have been made with to be continued."""
    return {
        "group": GROUP, "size": SIZE, "split_seed": SPLIT_SEED, "validation": VALIDATION, "epochs": EPOCHS,
        "batch": BATCH,
    }  # fmt: skip


def locate(folder: Path, name: str) -> Path:
    """The one file of this name below a folder."""
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise ArgumentError(explain(f"one {name} below {folder}", f"{len(found)}", "see the head of this file"))
    return found[0]


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The middle ``size x size`` pixels of ``[h, w, 3]``."""
    top, left = ((n - size) // 2 for n in image.shape[:2])
    return image[top : top + size, left : left + size]


def read_sample(data: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images ``[n, size, size, 3]`` uint8 and their classes, in the order of the labels' file."""
    with locate(data, LABELS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = []
    with zipfile.ZipFile(locate(data, SAMPLE)) as archive:
        for row in rows:
            with Image.open(io.BytesIO(archive.read(row["file"]))) as image:
                pixels.append(centre_crop(np.asarray(image.convert("RGB")), size))
    return np.stack(pixels), np.array([int(row["index"]) for row in rows])


def write_splits(data: Path, output: Path) -> dict[str, Path]:
    """``search.npz`` (adaptation half without and with the validation images) and ``final.npz`` (both halves)."""
    paths = {stage: output / f"{stage}.npz" for stage in ("search", "final")}
    if all(path.exists() for path in paths.values()):
        return paths
    x, y = read_sample(data, SIZE)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    adaptation, test = order[: len(y) // 2], order[len(y) // 2 :]
    parts = {"search": (adaptation[VALIDATION:], adaptation[:VALIDATION]), "final": (adaptation, test)}
    for stage, (train, held) in parts.items():
        partial = output / f"{stage}.partial.npz"
        np.savez(partial, allow_pickle=False, x_train=x[train], y_train=y[train], x_test=x[held], y_test=y[held])
        partial.rename(paths[stage])
    return paths


def untouched(data: Path, weights: Path, size: int) -> dict[str, Any]:
    """Accuracy of the network as it came on the whole sample."""
    x, y = read_sample(data, size)
    model = load_model(MODEL, weights)
    hits = 0
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(y)), len(y) // BATCH):
            images = torch.from_numpy(x[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
            hits += int(correct(model(images), torch.from_numpy(y[rows])).sum())
    return {"stage": "untouched", "size": size, "images": len(y), "Acc": hits / len(y)}


def residual(model: nn.Module, images: Images) -> float:
    """Largest ``||f(gx) - f(x)|| / ||f(x)||`` over the first test images and all elements."""
    worst = 0.0
    with torch.no_grad():
        for count, (x, _) in enumerate(loader(images.test, BATCH)):
            if count * BATCH >= RESIDUAL_IMAGES:
                break
            logits = model(x)
            for g in measured_elements(by_name(GROUP)):
                worst = max(worst, float(relative_error(logits, model(transform_images(x, g))).max()))
    return worst


def adapt(key: Key, data: Path, weights: Path, output: Path) -> dict[str, Any]:
    """One run of the recipe; its folder stays for final runs."""
    folder = output / key.name
    shutil.rmtree(folder, ignore_errors=True)  # what an interruption left
    start = time.perf_counter()
    config = Adapt(
        model=MODEL, data=str(data), output=folder, weights=weights, group=GROUP, softness=(key.softness,),
        seeds=(key.seed,), epochs=EPOCHS, batch_size=BATCH, learning_rate=key.rate, loss="distillation", norm=key.norm,
        augment=key.augment, recalibrate_batches=RECALIBRATION, epsilon_images=0,
    )  # fmt: skip
    (outcome,) = run(config)
    found: dict[str, Any] = asdict(key) | {"bound": outcome.certificate.bound}
    for stage, scores in (("before", outcome.softened), ("after", outcome.tuned)):
        found[stage] = {name: scores[name] for name, _, _ in SCORES}
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["losses"] = [loss for loss in losses if loss is not None]
    if key.stage == "final":
        model = load_model(MODEL, folder / f"softness-{key.softness:g}-seed-{key.seed}" / "model.safetensors")
        found["residual"] = residual(model, load_images(str(data)))
    else:
        shutil.rmtree(folder)
    return found | {"seconds": time.perf_counter() - start}


def dial_only(softness: float, data: Path, weights: Path) -> dict[str, Any]:
    """Scores on the test half where the dial is turned and nothing else is done."""
    model = load_model(MODEL, weights)
    ed.soften(model, ed.SoftEquivarianceConfig(group=GROUP, softness=softness))
    scores = ed.measure(model, loader(load_images(str(data)).test, BATCH), GROUP, epsilon_images=0)
    return {"stage": "dial", "softness": softness, "before": {name: scores[name] for name, _, _ in SCORES}}


def best_rate(log: Log, arm: Arm) -> float:
    """The learning rate with the largest cAcc on the validation images; of equals that of the smaller last loss."""
    found = log.find(stage="search", **asdict(arm))
    return min(found, key=lambda r: (-r["after"]["cAcc"], r["losses"][-1]))["rate"]


def arms(more: bool) -> list[Arm]:
    """The dial positions, and the baseline: the network as it came, batch norm included.

    ``more``: the baseline with matched norms, and adaptation without turns. Of the latter an exactly symmetric network
    learns what it learns with turns, and an untouched one nothing: these two are left out.
    """
    found = [Arm(softness, "turn", "matched") for softness in SOFTNESS if softness < 1] + [Arm(1.0, "turn", "frozen")]
    if more:
        found += [Arm(1.0, "turn", "matched")]
        found += [Arm(softness, "none", "matched") for softness in SOFTNESS if 0 < softness < 1]
    return found


def carry_out(data: Path, output: Path, seeds: Sequence[int], more: bool) -> Log:
    """Every run that the log lacks."""
    output.mkdir(parents=True, exist_ok=True)
    log = Log(output / "log.jsonl")
    weights, splits = locate(data, WEIGHTS), write_splits(data, output)
    for size in SIZES:
        if not log.find(stage="untouched", size=size):
            log.add(untouched(data, weights, size))
    for softness in SOFTNESS:
        if not log.find(stage="dial", softness=softness):
            log.add(dial_only(softness, splits["final"], weights))
    for arm in arms(more):
        for rate in RATES:
            _once(log, Key(**asdict(arm), stage="search", rate=rate, seed=0), splits, weights, output)
    for seed in seeds:
        for arm in arms(more):
            key = Key(**asdict(arm), stage="final", rate=best_rate(log, arm), seed=seed)
            _once(log, key, splits, weights, output)
    return log


def _once(log: Log, key: Key, splits: dict[str, Path], weights: Path, output: Path) -> None:
    if log.find(**asdict(key)):
        return
    record = adapt(key, splits[key.stage], weights, output)
    log.add(record)
    scores = "  ".join(f"{name} {record['after'][name] * scale:.{digits}f}" for name, scale, digits in SCORES)
    print(f"{key.name}: {scores}  {record['seconds']:.0f} s", flush=True)


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Mean and standard deviation."""
    text = f"{mean(values) * scale:.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values) * scale:.{digits}f}"


def table(log: Log, more: bool) -> str:
    """The log as Markdown."""
    seeds = sorted({r["seed"] for r in log.find(stage="final")})
    untouched = [f"{100 * r['Acc']:.1f} % at {r['size']} px" for r in log.find(stage="untouched")]
    heads = "Acc % | aAcc % | cAcc % | iErr (nats) |"
    first, last, search = [], [], []
    for softness in SOFTNESS:
        rows = {"frozen": log.find(stage="dial", softness=softness)}
        rows["matched"] = log.find(stage="final", softness=softness, norm="matched")
        for norm, found in rows.items():
            if found:
                cells = [f"{found[0]['before'][name] * scale:.{digits}f}" for name, scale, digits in SCORES]
                first.append(f"| {softness:g} | {norm} | " + " | ".join(cells) + " |")
    for arm in arms(more):
        tried = {r["rate"]: r["after"] for r in log.find(stage="search", **asdict(arm))}
        cells = [f"{100 * tried[r]['cAcc']:.1f}, {tried[r]['iErr']:.2f}" if r in tried else "–" for r in RATES]
        search.append(f"| {arm.softness:g} | {arm.words} | " + " | ".join(cells) + " |")
        found = log.find(stage="final", **asdict(arm))
        if found:
            cells = [spread([r["after"][name] for r in found], scale, digits) for name, scale, digits in SCORES]
            cells += [f"{max(r['residual'] for r in found):.1e}", f"{max(r['bound'] for r in found):.3f}"]
            last.append(f"| {arm.softness:g} | {arm.words} | {found[0]['rate']:g} | " + " | ".join(cells) + " |")
    runs = [r for r in log.records if "seconds" in r]
    minutes = sum(r["seconds"] for r in runs) / 60
    return "\n".join(
        [
            f"As it came, on the whole sample, upright: {', '.join(untouched)}.",
            "",
            f"After adapting, test half, mean ± standard deviation over seeds {', '.join(map(str, seeds))}:",
            "",
            f"| softness | images, batch norm | learning rate | {heads} largest relative error | certified bound |",
            "|" + "---|" * 9,
            *last,
            "",
            "Before adapting, test half:",
            "",
            f"| softness | batch norm | {heads}",
            "|" + "---|" * 6,
            *first,
            "",
            f"Learning rates: cAcc %, iErr on {VALIDATION} images of the adaptation half, after adapting on the rest:",
            "",
            f"| softness | images, batch norm | {' | '.join(f'{rate:g}' for rate in RATES)} |",
            "|" + "---|" * (2 + len(RATES)),
            *search,
            "",
            f"{len(runs)} runs of {EPOCHS} epochs in batches of {BATCH}, {minutes:.0f} minutes in all.",
        ]
    )


def write_page(page: Path, text: str) -> None:
    """Put the table between its markers; what else is on the page stays."""
    before, after = "# MobileNetV2 on a sample of ImageNet\n\n", "\n"
    if page.exists():
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--more", action="store_true", help="also the baseline with matched norms, and adapting without turns"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--resume", action="store_true", help="continue a log that is there")
    arguments = parser.parse_args()
    log = arguments.output / "log.jsonl"
    if log.exists() and not arguments.resume:
        raise ArgumentError(explain("an --output without a log", str(log), "choose another, or say --resume"))
    text = table(carry_out(arguments.data, arguments.output, arguments.seeds, arguments.more), arguments.more)
    write_page(arguments.page, text)
    print(text)


if __name__ == "__main__":
    main()
