"""Invariance error of the circle action against the bilinear forward difference, on a photograph.

    python -m benchmarks.circle_action [--json FILE]

Protocol: the grey ``china.jpg`` of scikit-learn, Gaussian sigma 1; patches at random centres, resampled (cubic, from
the full image) about their centre at 36 angles in steps of 10 degrees, patch mean removed. For a k-dimensional space U
of invariants: mean over patches and angles of ||U^T x_t - U^T x_0|| / (||x_t|| sqrt k). The rival, at the same k: the
right singular vectors with the smallest singular values of (R(2 degrees) - I) / t, R the bilinear rotation with zero
fill.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks._contract import add_json_option, write_json
from equidial.groups import SO2
from equidial.metrics import resampled_windows
from equidial.representations import CircleBasis, Pixels, pixel_coordinates

ANGLES = 36
STEP = np.deg2rad(2.0)


@dataclass(frozen=True)
class Row:
    """One size and seed: dimension of the spaces, both errors, and how many times ours is smaller."""

    n: int
    dimension: int
    ours: float
    bilinear: float

    @property
    def ratio(self) -> float:
        """The rival's error over ours."""
        return self.bilinear / self.ours


def compare(n: int, seed: int, centres: int = 300) -> Row:
    """Both errors on ``n x n`` patches around centres drawn with ``seed``."""
    patches = rotated_patches(n, seed, centres)
    ours = still_space(Pixels(SO2(), (n, n)).circle)
    k = ours.shape[1]
    _, _, vt = np.linalg.svd((bilinear_rotation(n, STEP) - np.eye(n * n)) / STEP)
    return Row(n, k, invariance_error(ours, patches), invariance_error(vt[-k:].T, patches))


def still_space(basis: CircleBasis) -> np.ndarray:
    """Orthonormal columns ``[pixels, k]``: what stays still under the circle action and under the exact turn."""
    still = basis.frequency == 0
    still[list(basis.unpaired)] = False
    columns = torch.nonzero(still).ravel()
    rows = torch.zeros(len(columns), basis.basis.dim, dtype=torch.float64)
    rows[torch.arange(len(columns)), columns] = 1
    return basis.basis.combine(rows).numpy().T


def invariance_error(space: np.ndarray, patches: np.ndarray) -> float:
    """Mean of ``||U^T x_t - U^T x_0|| / (||x_t|| sqrt k)`` over patches ``[angles, centres, pixels]`` and angles."""
    seen = patches @ space
    errors = np.linalg.norm(seen - seen[:1], axis=-1) / (np.linalg.norm(patches, axis=-1) * np.sqrt(space.shape[1]))
    return float(errors[1:].mean())


def rotated_patches(n: int, seed: int, centres: int) -> np.ndarray:
    """``[angles, centres, n * n]``: patches turned counterclockwise about their centres, mean removed."""
    image = _photograph()
    rng = np.random.default_rng(seed)
    # far enough from the border: a whole side, or half a diagonal and the cubic stencil where the image is too small
    margin = n if 2 * n < min(image.shape) else math.ceil(n / math.sqrt(2)) + 2
    rows = rng.uniform(margin, image.shape[0] - 1 - margin, centres)
    columns = rng.uniform(margin, image.shape[1] - 1 - margin, centres)
    angles = 2 * np.pi * np.arange(ANGLES) / ANGLES
    out = [resampled_windows(image, rows, columns, (n, n), float(t)) for t in angles]
    patches = np.stack(out)
    return patches - patches.mean(-1, keepdims=True)


def bilinear_rotation(n: int, angle: float) -> np.ndarray:
    """The ``n^2 x n^2`` matrix of bilinear resampling with zero fill."""
    x, y = pixel_coordinates(n, n)
    columns = np.cos(angle) * x + np.sin(angle) * y + (n - 1) / 2
    rows = (n - 1) / 2 - (-np.sin(angle) * x + np.cos(angle) * y)
    matrix = np.zeros((n * n, n * n))
    for down in (0, 1):
        for right in (0, 1):
            i, j = np.floor(rows).astype(int) + down, np.floor(columns).astype(int) + right
            weight = (1 - np.abs(rows - i)) * (1 - np.abs(columns - j))
            inside = (i >= 0) & (i < n) & (j >= 0) & (j < n)
            np.add.at(matrix, (np.arange(n * n)[inside], i[inside] * n + j[inside]), weight[inside])
    return matrix


@lru_cache(maxsize=1)
def _photograph() -> np.ndarray:
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").astype(float) @ np.array([0.299, 0.587, 0.114])
    return gaussian_filter(grey, 1.0)


def main() -> None:
    """Print one row per size: medians and range over seeds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 4, 5, 6, 7, 8, 10, 12, 14, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add_json_option(parser)
    arguments = parser.parse_args()
    seeds = len(arguments.seeds)
    print(f"{'size':>5} {'dim':>4} {'circle':>9} {'bilinear':>9} {'ratio':>7}  (range over {seeds} seeds)")
    every: list[dict[str, object]] = []
    for n in arguments.sizes:
        rows = [compare(n, seed) for seed in arguments.seeds]
        ratios = [row.ratio for row in rows]
        ours, rival = (statistics.median(getattr(row, name) for row in rows) for name in ("ours", "bilinear"))
        print(
            f"{n:>5} {rows[0].dimension:>4} {ours:>9.4f} {rival:>9.4f} {statistics.median(ratios):>7.1f}"
            f"  ({min(ratios):.1f}..{max(ratios):.1f})"
        )
        seeded = zip(arguments.seeds, rows, strict=True)
        every += [{"seed": seed, **asdict(row), "ratio": row.ratio} for seed, row in seeded]
    if arguments.json:
        write_json(arguments.json, "circle_action", arguments, every)


if __name__ == "__main__":
    main()
