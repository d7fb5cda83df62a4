"""Statistical certificates of a pretrained network: untouched, recalibrated and softened, under three groups.

    python -m benchmarks.statistical --weights cifar10_resnet20.safetensors --data cifar10_lossless_4k_1k.npz

The thresholds, the level and the number of images are constants of this file, set before the first run. The test images
take part in nothing else: batch norm is recalibrated on training images. A seed draws the random elements and the
training images of the recalibration; the test images are the same for every seed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

import equidial as ed
from equidial.certificates import clopper_pearson_upper
from equidial.data import Images, load_images, loader
from equidial.metrics import correct
from equidial.recipes import load_model

TAUS = (0.1, 0.5, 1.0)
ALPHA = 0.01
IMAGES = 1000
SOFTNESS = 0.75
CALIBRATION = 8  # batches of 128 training images
GROUPS = (("C4", None), ("Flip", None), ("SO2", math.pi / 6))
NETWORKS = ("untouched", "recalibrated", "softened")


def network(kind: str, group: str, weights: str, images: Images, seed: int) -> nn.Module:
    """The pretrained ResNet-20 as it came, with new batch-norm statistics, or softened and with new ones."""
    model = load_model("examples/cifar_resnet.py:resnet20", weights)
    if kind == "softened":
        ed.soften(model, ed.SoftEquivarianceConfig(group=group, softness=SOFTNESS))
    if kind != "untouched":
        ed.recalibrate(model, loader(images.train, 128, seed=seed), CALIBRATION)
    return ed.fold(model) if kind == "softened" else model


def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 accuracy on the test images."""
    with torch.no_grad():
        return sum(int(correct(model(x), y).sum()) for x, y in loader(images.test, 250)) / len(images.test)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The least and the largest over the seeds."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}..{high}"


def ceiling(value: float) -> float:
    """Three decimals, rounded up: a bound is not printed below itself."""
    return math.ceil(value * 1000) / 1000


def main() -> None:
    """Print one table per group: over the seeds, the least and the largest of each number."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    start = time.perf_counter()
    images = load_images(arguments.data, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    print(
        f"n = {IMAGES}, alpha = {ALPHA:g} for the five numbers of a certificate, softness {SOFTNESS:g}, seeds "
        f"{arguments.seeds}; sampled | certified at most"
    )
    least = clopper_pearson_upper(0, IMAGES, ALPHA / (len(TAUS) + 2))
    print(f"a probability whose event never happened in the sample would be certified at most {ceiling(least):.3f}")
    for group, radius in GROUPS:
        found: dict[str, list[ed.StatisticalCertificate]] = {kind: [] for kind in NETWORKS}
        scores: dict[str, list[float]] = {kind: [] for kind in NETWORKS}
        for kind in NETWORKS:
            for seed in arguments.seeds:
                model = network(kind, group, arguments.weights, images, seed)
                batches = loader(images.test, 250)
                found[kind].append(
                    ed.certify_statistically(
                        model, batches, group, tau=TAUS, alpha=ALPHA, n=IMAGES, radius=radius, seed=seed
                    )
                )
                scores[kind].append(accuracy(model, images))
        print(f"\n{group}: {found['untouched'][0].elements}")
        print(f"{'quantity':<26}" + "".join(f" {kind:>29}" for kind in NETWORKS))
        for row, _ in enumerate(found["untouched"][0]):
            cells = []
            for kind in NETWORKS:
                rows = [certificate.rows[row] for certificate in found[kind]]
                bounds = spread([ceiling(r.bound) for r in rows])
                cells.append(f" {spread([r.sampled for r in rows]) + ' | ' + bounds:>29}")
            print(f"{found['untouched'][0].rows[row].quantity:<26}" + "".join(cells))
        worst = "".join(f" {spread([c.worst for c in found[kind]]) + ' | -':>29}" for kind in NETWORKS)
        print(f"{'largest relative error':<26}{worst}")
        print(f"{'accuracy':<26}" + "".join(f" {spread(scores[kind]) + ' | -':>29}" for kind in NETWORKS), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
