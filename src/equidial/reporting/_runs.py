"""Reading a run folder back: records, scores with their spread over seeds, certificates, pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from equidial.adapters import Diagnosis
from equidial.certificates import Certificate
from equidial.errors import FileFormatError, explain
from equidial.reporting._pictures import DialPictures

DIAGNOSIS_FILE = "diagnosis.json"
SCORES = ("Acc", "aAcc", "cAcc", "iErr", "epsilon", "bound")


@dataclass(frozen=True)
class Spread:
    """A number over seeds: mean and standard deviation (0 for one seed)."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of a non-empty list."""
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    def show(self, digits: int = 3, scale: float = 1.0) -> str:
        """``"0.912 ± 0.004"``."""
        text = f"{self.mean * scale:.{digits}f}"
        return text if self.count == 1 else f"{text} ± {self.deviation * scale:.{digits}f}"


@dataclass(frozen=True)
class Run:
    """What an ``adapt`` run left: its configuration, records, certificates, pictures and the diagnosis at its start."""

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    certificates: dict[tuple[float, int], Certificate]
    pictures: list[DialPictures]
    diagnosis: Diagnosis | None = None

    @property
    def softness(self) -> list[float]:
        """Dial positions with results, ascending."""
        return sorted({r["softness"] for r in self.records if r["stage"] == "tuned"})

    @property
    def norm_statistics(self) -> str:
        """What was done to batch-norm statistics when the dial was turned, in words."""
        return "as they came" if self.config.get("norm") == "frozen" else "re-estimated"

    def spread(self, stage: str, score: str, softness: float) -> Spread | None:
        """A score over seeds at one stage (``softened`` or ``tuned``) and dial position."""
        found = [r[score] for r in self.records if r["stage"] == stage and r["softness"] == softness and score in r]
        return Spread.of(found) if found else None

    def epochs(self, softness: float) -> list[Spread]:
        """Training loss per epoch over seeds."""
        rows = [r for r in self.records if r["stage"] == "epoch" and r["softness"] == softness]
        last = max((r["epoch"] for r in rows), default=0)
        return [Spread.of([r["loss"] for r in rows if r["epoch"] == e]) for e in range(1, last + 1)]


def read_run(folder: str | Path) -> Run:
    """Read a run folder; raises ``FileFormatError`` where it holds no finished dial position."""
    folder = Path(folder)
    config, log = folder / "config.json", folder / "metrics.jsonl"
    if not config.is_file() or not log.is_file():
        raise FileFormatError(
            explain("the folder of an adapt run, with config.json and metrics.jsonl", str(folder), "check the path")
        )
    records = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    finished = sorted({(r["softness"], r["seed"]) for r in records if r["stage"] == "tuned"})
    if not finished:
        raise FileFormatError(explain("a finished dial position", f"none in {folder}", "let the run end"))
    certificates = {
        (s, seed): Certificate.load(folder / f"softness-{s:g}-seed-{seed}" / "certificate.json") for s, seed in finished
    }
    pictures = [DialPictures.load(path) for path in sorted(folder.glob("pictures-*.npz"))]
    found = folder / DIAGNOSIS_FILE
    diagnosis = Diagnosis.load(found) if found.is_file() else None
    return Run(folder, json.loads(config.read_text()), records, certificates, pictures, diagnosis)
