"""The MobileNetV2 benchmark around its runs: the split, the log that survives interruption, the page."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from benchmarks.imagenet_mobilenet import BEGIN, END, Arm, Key, Log, best_rate, table, write_page, write_splits
from PIL import Image

from benchmarks import imagenet_mobilenet as benchmark
from equidial.errors import ArgumentError

ARM = Arm(0.5, "turn", "matched")


def record(stage: str, rate: float, seed: int = 0, c_acc: float = 0.5) -> dict:
    scores = {"Acc": c_acc, "aAcc": c_acc, "cAcc": c_acc, "iErr": 0.1}
    key = Key(**asdict(ARM), stage=stage, rate=rate, seed=seed)
    return asdict(key) | {
        "before": scores,
        "after": scores,
        "bound": 0.2,
        "residual": 1e-6,
        "losses": [1.0, 1e3 * rate],
        "seconds": 60.0,
    }


def test_the_halves_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SIZE", 7)
    monkeypatch.setattr(benchmark, "VALIDATION", 3)
    with zipfile.ZipFile(tmp_path / benchmark.SAMPLE, "w") as archive, (tmp_path / "labels.csv").open("w") as file:
        writer = csv.DictWriter(file, ("index", "wnid", "name", "file"))
        writer.writeheader()
        for i in range(20):
            buffer = io.BytesIO()
            Image.fromarray(np.full((9, 13, 3), i, np.uint8)).save(buffer, "png")
            archive.writestr(f"{i}.jpg", buffer.getvalue())
            writer.writerow({"index": i, "wnid": "n", "name": "x", "file": f"{i}.jpg"})
    with np.load(write_splits(tmp_path, tmp_path)["search"]) as search, np.load(tmp_path / "final.npz") as final:
        assert final["x_train"].shape == (10, 7, 7, 3)
        assert (final["x_test"][:, 0, 0, 0] == final["y_test"]).all()
        assert sorted([*final["y_train"], *final["y_test"]]) == list(range(20))
        assert len(search["y_test"]) == 3
        assert sorted([*search["y_train"], *search["y_test"]]) == sorted(final["y_train"])
    with pytest.raises(ArgumentError, match="one missing"):
        benchmark.locate(tmp_path, "missing.csv")


def test_a_log_survives_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add(record("search", 1e-4))
    with log.path.open("a") as file:
        file.write('{"stage": "search", "sof')
    again = Log(log.path)
    assert again.records == log.records
    again.add(record("search", 3e-4, c_acc=0.6))
    assert [json.loads(line).get("rate") for line in log.path.read_text().splitlines()] == [None, 1e-4, 3e-4]
    assert len(again.find(stage="search", **asdict(ARM))) == 2
    monkeypatch.setattr(benchmark, "EPOCHS", 99)
    with pytest.raises(ArgumentError, match="a log of these settings"):
        Log(log.path)


def test_the_rate_and_the_page(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for rate, c_acc in ((3e-4, 0.6), (1e-4, 0.6), (3e-5, 0.5)):
        log.add(record("search", rate, c_acc=c_acc))
    assert best_rate(log, ARM) == 1e-4
    log.add({"stage": "untouched", "size": 224, "images": 1000, "Acc": 0.869})
    for seed, c_acc in ((0, 0.4), (1, 0.6)):
        log.add(record("final", 1e-4, seed, c_acc))
    text = table(log, more=False)
    assert "86.9 % at 224 px" in text
    assert "| 0.5 | turned, matched | 0.0001 | 50.0 ± 14.1 |" in text
    assert "| 0.5 | turned, matched | – | 50.0, 0.10 | 60.0, 0.10 | 60.0, 0.10 |" in text
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nBefore.\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter.\n")
    write_page(page, text)
    written = page.read_text()
    assert written.startswith("# Title\n\nBefore.\n\n" + BEGIN)
    assert written.endswith(END + "\n\nAfter.\n")
    assert "old" not in written
    write_page(page, text)
    assert page.read_text() == written
