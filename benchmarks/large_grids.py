"""Large pixel grids: time and memory of the circle filter, and how still its invariants stand on a photograph.

    python -m benchmarks.large_grids

First table: each size in a process of its own. ``build``: ``invariant_filter(Pixels(SO2(), (n, n)), ...)`` with each
response; ``apply``: all of them on a weight of 8 copies; ``certify``: the defect and the certificate of a result;
``peak``: the largest resident memory, interpreter and libraries included. Second table: the protocol of
``benchmarks.circle_action`` for both constructions, whatever the size at which the library would choose them. At the
dimension k of the disc harmonics' invariants: ``nearest k``, the projection of those invariants on the rings';
``inner k``, the k innermost rings; and ``all`` rings, corners included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.circle_action import invariance_error, rotated_patches, still_space
from equidial import invariant_filter
from equidial.certificates import certify_weight
from equidial.filters import Constraint
from equidial.groups import SO2
from equidial.representations import Pixels
from equidial.representations._circle import circle_basis
from equidial.representations._rings import rings_basis

RESPONSES = ("nearest", "hard", "taper", "exponential")
COPIES = 8


def costs(n: int) -> dict[str, float | int | str]:
    """Seconds of building, applying and certifying at one size, and the peak memory of this process in GB."""
    weight = torch.randn(COPIES, n * n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    rep = Pixels(SO2(), (n, n))
    filters = [invariant_filter(rep, softness=0.3, response=response) for response in RESPONSES]
    built = time.perf_counter()
    soft = [f(weight) for f in filters]
    applied = time.perf_counter()
    filters[0].defect(soft[0])
    certify_weight(Constraint.invariants(rep), soft[0])
    certified = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "construction": next(iter(rep.constructions)),
        "build": built - start,
        "apply": applied - built,
        "certify": certified - applied,
        "peak": peak / 2**20,
        "missed": len(rep.circle.unpaired),
    }


def errors(n: int, seed: int, centres: int, harmonics: bool) -> dict[str, float]:
    """Invariance errors at one size and seed; without ``harmonics`` only those of the rings, at ``k = n // 2``."""
    patches = rotated_patches(n, seed, centres)
    rings = still_space(rings_basis(n, n))
    out = {"all": invariance_error(rings, patches), "dim all": rings.shape[1]}
    k = n // 2
    if harmonics:
        theirs = still_space(circle_basis(n, n))
        k = theirs.shape[1]
        near, _ = np.linalg.qr(rings @ (rings.T @ theirs))
        out |= {"harmonics": invariance_error(theirs, patches), "nearest": invariance_error(near, patches)}
    return out | {"inner": invariance_error(rings[:, :k], patches), "k": k}


def main() -> None:
    """Print both tables: medians, and ranges over seeds in brackets."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[14, 28, 37, 56, 73, 80, 84, 112, 160, 224])
    parser.add_argument("--quality-sizes", type=int, nargs="+", default=[14, 28, 37, 224])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--one", type=int, help="measure the costs of one size in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(costs(arguments.one)))
        return
    heads = ("construction", 17), ("build s", 8), ("apply s", 8), ("certify s", 10), ("peak GB", 8), ("missed", 7)
    print(f"{'size':>5} {'pixels':>7}" + "".join(f" {title:>{width}}" for title, width in heads))
    for n in arguments.sizes:
        command = [sys.executable, "-m", "benchmarks.large_grids", "--one", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        print(
            f"{n:>5} {n * n:>7} {row['construction']:>17} {row['build']:>8.2f} {row['apply']:>8.2f} "
            f"{row['certify']:>10.2f} {row['peak']:>8.2f} {row['missed']:>7}",
            flush=True,
        )
    names = ("harmonics", "nearest", "inner", "all")
    print(
        "\n size patches    k  "
        + "".join(f"{title:>27}" for title in ("disc harmonics", "rings, nearest k", "rings, inner k", "rings, all"))
    )
    for n in arguments.quality_sizes:
        small = n <= 80
        centres = 300 if n <= 40 else 20
        rows = [errors(n, seed, centres, small) for seed in arguments.seeds]
        cells = []
        for name in names:
            found = [row[name] for row in rows if name in row]
            cells.append(f"{statistics.median(found):.4f} ({min(found):.4f}..{max(found):.4f})" if found else "-")
        print(
            f"{n:>5} {centres:>7} {rows[0]['k']:>4}  "
            + "".join(f"{cell:>27}" for cell in cells)
            + f"  of {rows[0]['dim all']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
