"""What a sweep costs besides its trials, and a hundred trials from one command.

    python -m benchmarks.sweep [--seconds 10] [--trials 5] [--before 100] [--storage URL]
    python -m benchmarks.sweep --hundred FOLDER

The first form: trials that only sleep, one seed each, on a new journal file (and on ``--storage``, e.g. an empty
database) that holds ``--before`` finished trials already, so that the sampler has something to model. Overhead: the
wall time of the worker's loop for a trial minus the sleep; beside it the processor time, which other work on the
machine does not lengthen. The second form: ``equidial sweep demo`` with a hundred trials on two workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from equidial.reporting import write_sweep
from equidial.sweeps import SWEEPS, Choice, Measured, Range, Sweep, SweepRecipe, run

TARGET = 0.02
"""Of a ten-second trial."""


@dataclass(frozen=True)
class Sleep:
    """Varied as the demo is; nothing comes of it but the objectives."""

    output: Path
    softness: float = 0.5
    response: str = "nearest"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    augment: str = "none"


def sleeping(seconds: float) -> SweepRecipe:
    """A recipe whose trial takes so many seconds and no work."""

    def train(made: Sleep, seed: int, folder: Path) -> Measured:
        time.sleep(seconds)
        return Measured(made.softness**0.5 - made.weight_decay, made.softness)

    space = {
        "softness": Range(0.0, 1.0),
        "response": Choice(("nearest", "taper")),
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "weight_decay": Range(1e-6, 1e-2, log=True),
        "augment": Choice(("none", "turn")),
    }
    return SweepRecipe("sleep", Sleep, train, space)


def overhead(storage: str, output: Path, seconds: float, trials: int, before: int) -> tuple[float, float]:
    """Seconds of (wall, processor) per trial besides its sleep."""
    sweep = Sweep("sleep", storage=storage, output=output, trials=before, seeds=(0,))
    SWEEPS["sleep"] = sleeping(0.0)
    run(sweep)
    SWEEPS["sleep"] = sleeping(seconds)
    # opening a storage and its first statements are paid once a worker, not once a trial
    moments = [(time.perf_counter(), time.process_time())]

    def moment(done: int, total: int, text: str) -> None:
        moments.append((time.perf_counter(), time.process_time()))

    run(replace(sweep, trials=before + trials), moment)
    wall, processor = (moments[-1][k] - moments[1][k] for k in (0, 1))
    return wall / trials - seconds, processor / trials


def hundred(output: Path) -> str:
    """Run the hundred trials; what they took."""
    start = time.perf_counter()
    sweep = Sweep("demo", output=output, trials=100, workers=2, seeds=(0, 1), fixed=("epochs=1",))
    found = run(sweep)
    page = write_sweep(sweep, found)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.counts.items()))
    return f"{counts} in {(time.perf_counter() - start) / 60:.1f} minutes; front of {len(found.front)}: {page}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--before", type=int, default=100)
    parser.add_argument("--storage", help="an empty database beside the journal")
    parser.add_argument("--hundred", type=Path)
    arguments = parser.parse_args()
    if arguments.hundred is not None:
        print(hundred(arguments.hundred))
        return
    with tempfile.TemporaryDirectory() as folder:
        storages = {"journal": str(Path(folder) / "journal.log")}
        if arguments.storage:
            storages["database"] = arguments.storage
        for name, storage in storages.items():
            wall, processor = overhead(
                storage, Path(folder) / name, arguments.seconds, arguments.trials, arguments.before
            )
            share = wall / arguments.seconds
            verdict = f"{share:.2%}, {'within' if share < TARGET else 'above'} {TARGET:.0%}"
            spent = f"{1000 * wall:.0f} ms a trial of {arguments.seconds:g} s after {arguments.before}"
            print(f"{name}: {spent}: {verdict}; processor {1000 * processor:.0f} ms")


if __name__ == "__main__":
    main()
