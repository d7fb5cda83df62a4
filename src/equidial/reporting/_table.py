"""results.md: the numbers of a run as a table to quote, with the settings that made them."""

from __future__ import annotations

from pathlib import Path

from equidial._version import __version__
from equidial.reporting._runs import Run, read_run

_COLUMNS = (("Acc", 100, 1), ("aAcc", 100, 1), ("cAcc", 100, 1), ("iErr", 1, 4), ("epsilon", 1, 4), ("bound", 1, 4))
_HEADS = "| softness | Acc % | aAcc % | cAcc % | iErr (nats) | ε (largest) | certified bound |"


def write_table(folder: str | Path) -> Path:
    """Write ``results.md`` from a run folder: mean and standard deviation over seeds; returns its path.

    Raises ``FileFormatError`` for a folder without a finished run.
    """
    run = read_run(folder)
    seeds = len(run.config["seeds"])
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    before = f"Before fine-tuning (dial turned, batch-norm statistics {run.norm_statistics})"
    settings = ", ".join(f"{k}={v}" for k, v in run.config.items() if v is not None and k not in ("output", "warnings"))
    text = (
        f"After fine-tuning ({spread}):\n\n{_rows(run, 'tuned')}\n\n"
        f"{before}:\n\n{_rows(run, 'softened')}\n\n"
        f"equidial {__version__}: {settings}\n"
    )
    path = run.folder / "results.md"
    path.write_text(text, encoding="utf-8")
    return path


def _rows(run: Run, stage: str) -> str:
    lines = [_HEADS, "|" + "---|" * (len(_COLUMNS) + 1)]
    for softness in run.softness:
        cells = [f"{softness:g}"]
        for score, scale, digits in _COLUMNS:
            found = run.spread(stage, score, softness)
            cells.append("–" if found is None else found.show(digits, scale))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
