"""``equidial sweep`` as a person uses it, and the recipes of the library at their smallest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import equidial as ed
from equidial.cli import main
from equidial.data import load_images, loader
from equidial.errors import ArgumentError, StorageError
from equidial.recipes import load_model
from equidial.reporting import write_sweep
from equidial.sweeps import Sweep, run, status
from tests.sweeps import toy as toys

TOY = f"{toys.__file__}:TOY"


def test_a_sweep_and_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, storage = tmp_path / "out", str(tmp_path / "shared" / "log")
    options = ("--trials", "6", "--seeds", "0", "1", "--space", "x=0.1:0.9", "--fixed", "kind=odd", "--startup", "3")
    assert main(("sweep", TOY, "--storage", storage, "--output", str(folder), *options)) == 0
    out = capsys.readouterr().out
    assert f"results: {folder / 'results.md'}" in out
    best = status(storage).best
    assert best is not None
    page = (folder / "results.md").read_text()
    command = next(line.strip() for line in page.splitlines() if line.startswith("    equidial sweep"))
    assert command.split()[:3] == ["equidial", "sweep", TOY]
    assert all(word in command.split() for word in (*options, storage))
    (row,) = [line for line in page.splitlines() if "(best)" in line]
    assert f"| {best.accuracy:.4f} ± 0.0007 | {best.error:.4f} ± 0.0014 |" in row
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert main(("sweep", "--status", "--storage", storage)) == 0
    told = capsys.readouterr().out
    assert "trials: 6 finished" in told or re.search(r"trials: \d finished, \d stopped early", told)
    assert f"* {best.number:>5} " in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a recipe to sweep"),
        (("--status",), "a recipe to sweep"),
        (("demo", "--space", "softnes=0:1"), "closest: 'softness'"),
        (("demo", "--storage", "mysql://me:secret@nowhere/db"), "a database with its driver"),
        (("demo", "--status", "--output", "absent"), "which is not there"),
    ],
)
def test_what_is_typed_wrong(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(("sweep", *arguments)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


def test_no_error_is_small_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("sweep", TOY, "--output", str(tmp_path), "--trials", "2", "--max-error", "-1")) == 0
    assert "note: no trial has an error up to -1" in capsys.readouterr().out
    assert not (tmp_path / "best").exists()


def test_a_page_needs_a_finished_trial(tmp_path: Path) -> None:
    sweep = Sweep(TOY, output=tmp_path, trials=1)
    run(sweep)
    empty = status(sweep.where)
    with pytest.raises(ArgumentError, match="a finished trial"):
        write_sweep(sweep, type(empty)(**(vars(empty) | {"front": (), "best": None})))


def test_one_of_two_processes_is_killed(tmp_path: Path) -> None:
    """The whole program: two workers of one command, one killed in the midst of a trial."""
    storage = str(tmp_path / "log")
    words = [sys.executable, "-m", "equidial.cli", "sweep", TOY, "--workers", "2", "--trials", "6", "--seeds", "0"]
    words += ["--storage", storage, "--output", str(tmp_path / "out"), "--fixed", "seconds=0.3"]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, victim = time.monotonic() + 300, None
    while victim is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        try:
            now = status(storage)
        except StorageError:
            continue
        running = [row for row in now.trials if row.state == "running" and len(row.values) == 3 and row.worker]
        if now.counts.get("finished", 0) >= 1 and running:
            victim = running[0]
    os.kill(int(str(victim.worker).rpartition(":")[2]), signal.SIGKILL)
    out, _ = command.communicate(timeout=300)
    assert command.returncode == 0, out
    after = status(storage)
    finished = {row.number: row for row in after.trials if row.state == "finished"}
    for row in now.trials:
        if row.state == "finished":
            assert finished[row.number] == row
    # it may have ended between the look at it and the signal
    assert len(finished) == 6
    if victim.number not in finished:
        (again,) = [row for row in after.trials if row.retry_of == victim.number]
        assert again.values == victim.values
    assert (tmp_path / "out" / "best" / "trial.json").is_file()


def test_the_demo_leaves_a_folded_model(tmp_path: Path) -> None:
    sweep = Sweep("demo", output=tmp_path, trials=2, seeds=(0,), fixed=("epochs=0", "softness=0.5"))
    found = run(sweep)
    best, folder = found.best, tmp_path / "best"
    assert best is not None
    ed.verify(ed.Certificate.load(folder / "certificate.json"), load_file(folder / "model.safetensors"))
    assert json.loads((folder / "trial.json").read_text())["values"] == best.values
    model = load_model("demo", folder / "model.safetensors")
    scores = ed.measure(model, loader(load_images("demo").test, 128), "C4", epsilon_images=0)
    assert (scores.cAcc, scores.iErr) == pytest.approx((best.accuracy, best.error), abs=1e-6)


def test_the_small_study_leaves_a_folded_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = {"train": 40, "test": 12}
    arrays = {f"x_{part}": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in parts.items()}
    labels = {f"y_{part}": rng.permutation(np.arange(n) % 4) for part, n in parts.items()}
    np.savez(tmp_path / "mnist.npz", allow_pickle=False, **arrays, **labels)
    fixed = (f"data={tmp_path / 'mnist.npz'}", "epochs=1", "softness=0")
    found = run(Sweep("mnist", output=tmp_path / "out", trials=1, seeds=(0, 1), fixed=fixed))
    assert found.best is not None
    assert found.best.error < 1e-5, "exactly invariant"
    folder = tmp_path / "out" / "best"
    ed.verify(ed.Certificate.load(folder / "certificate.json"), load_file(folder / "model.safetensors"))
