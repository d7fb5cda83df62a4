"""Studies from scratch: the network of paper B, folders that resume, pages from what is in them."""

from __future__ import annotations

import json
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from filelock import FileLock
from torch import nn

import equidial as ed
from equidial.cli import main
from equidial.recipes import (
    STUDIES,
    GroupResNet,
    GroupResNetConfig,
    Mnist6180,
    NonstationaryCifar,
    Study,
    Training,
    fit,
    fit_classifier,
    mnist6_180,
    nonstationary_cifar,
    study_records,
)
from equidial.recipes._study import turn_error
from equidial.reporting import write_study
from equidial.reporting._studies._shared import command

SOFT = {"method": "soft", "omega_prime": {"rotation": 1.0}}
SMALL = {"in_channels": 1, "classes": 2, "rotations": 4, "widths": (2, 3), "kernel_size": 3, "features": 6}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 451_898),
        ({"classes": 100}, 457_748),
        ({**SOFT, "shortcut": "always"}, 469_802),
        ({**SOFT, "shortcut": "always", "classes": 100}, 475_652),
        ({"method": "soft", "omega_prime": {"translation": 1.0}}, 452_282),
        ({"shortcut": "always"}, 469_610),  # strict, but with the shortcuts of the soft network: like for like
    ],
)
def test_parameters_are_as_many_as_in_the_paper(settings: dict[str, Any], count: int) -> None:
    model = GroupResNet(GroupResNetConfig(**settings))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_strict_network_is_invariant_and_the_soft_one_at_0_is_strict() -> None:
    torch.manual_seed(0)
    strict = GroupResNet(GroupResNetConfig(**SMALL)).eval()
    soft = GroupResNet(GroupResNetConfig(**SMALL, method="soft", omega_prime={"rotation": 0.0})).eval()
    missing = soft.load_state_dict(strict.state_dict(), strict=False)
    assert all(key.endswith("features.absolute.weight") for key in missing.missing_keys)
    assert not missing.unexpected_keys
    x = torch.randn(4, 1, 12, 12)
    assert turn_error(strict, x) < 1e-5
    assert torch.equal(strict(x), soft(x))
    relaxed = GroupResNet(GroupResNetConfig(**SMALL, **SOFT)).eval()
    assert turn_error(relaxed, x) > 1e-2


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    x, y = torch.randn(24, 1, 12, 12), torch.randint(2, (24,))
    plan = Training(epochs=3, batch_size=8, learning_rate=1e-2, symmetry_rate=1e-2, penalty=0.1, warmup=1)

    def network() -> GroupResNet:
        torch.manual_seed(0)
        return GroupResNet(GroupResNetConfig(**SMALL, method="soft", omega_prime={"rotation": 0.1}, learned=True))

    def loss_of(model: GroupResNet) -> Any:
        return lambda rows, generator: torch.nn.functional.cross_entropy(model(x[rows]), y[rows])

    whole = network()
    history = fit_classifier(whole, x, y, plan, seed=1)

    class Stop(Exception):
        pass

    def stop(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise Stop

    file, interrupted = tmp_path / "state.pt", network()
    with pytest.raises(Stop):
        fit(interrupted, len(x), loss_of(interrupted), plan, seed=1, checkpoint=file, on_epoch=stop)
    resumed = network()
    torch.randn(5)  # another state of the global generator
    found = fit_classifier(resumed, x, y, plan, seed=1, checkpoint=file)
    assert [e["loss"] for e in found] == [e["loss"] for e in history]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("before", [False, True])
def test_numbers_that_cpus_are_slow_on_are_0_in_training(before: bool) -> None:
    """Afterwards the thread computes as it did."""
    weight, found = nn.Parameter(torch.ones(1)), []

    def is_flushed() -> bool:
        return torch.tensor(1e-38).div(10).item() == 0

    def loss(rows: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        found.append(is_flushed())
        return weight.sum()

    model = nn.ParameterList([weight])
    try:
        assert torch.set_flush_denormal(before)
        fit(model, 2, loss, Training(1, 1), seed=0)
        assert found == [True, True]
        assert is_flushed() == before
    finally:
        torch.set_flush_denormal(False)


def test_a_study_keeps_what_is_finished(tmp_path: Path) -> None:
    study, key = Study(tmp_path / "run", "name", {"a": 1}), {"seed": 0}
    study.checkpoint(key).write_text("state")
    study.finish(key, {"accuracy": 0.5})
    assert not study.checkpoint(key).exists()
    with study.log.open("a") as file:
        file.write('{"seed": 1, "accu')  # the machine went away
    again = Study(tmp_path / "run", "name", {"a": 1})
    assert again.finished(key) == {"seed": 0, "accuracy": 0.5}
    assert again.finished({"seed": 1}) is None
    again.finish({"seed": 1}, {"accuracy": 0.75})
    assert [r["seed"] for r in study_records(tmp_path / "run")] == [0, 1]


def test_processes_share_the_trainings_of_a_study(tmp_path: Path) -> None:
    keys = [{"seed": seed} for seed in range(6)]
    done: list[tuple[str, int]] = []

    def work(name: str) -> list[dict[str, Any]]:
        def train(key: Any) -> dict[str, Any]:
            both.wait(60)  # each has one before either goes on
            done.append((name, key["seed"]))
            return {"accuracy": key["seed"] / 10}

        return Study(tmp_path / "run", "name", {}).collect(keys, train)

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, "ab")
    assert one == other == [{"seed": k, "accuracy": k / 10} for k in range(6)]
    assert sorted(seed for _, seed in done) == list(range(6))
    assert [name for name, _ in done].count("a") == 3


def test_a_folder_that_several_processes_make_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def make(place: int) -> dict[str, Any]:
        start.wait()
        return json.loads((Study(tmp_path / f"run{place // 8}", "name", {"a": 1}).folder / "config.json").read_text())

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make, range(80)))
    assert {(config["recipe"], config["settings"]["a"]) for config in found} == {("name", 1)}


def test_what_a_dead_process_had_taken_is_done_by_another(tmp_path: Path) -> None:
    study, keys = Study(tmp_path / "run", "name", {}), [{"seed": 0}, {"seed": 1}]
    theirs = FileLock(study.checkpoint(keys[0]).with_suffix(".lock"))
    theirs.acquire()
    order: list[int] = []

    def train(key: Any) -> dict[str, Any]:
        order.append(key["seed"])
        theirs.release()  # as the system does for a process that ends
        return {"accuracy": 1.0}

    study.collect(keys, train)
    assert order == [1, 0]


def mnist(folder: Path) -> Path:
    """Strokes for sixes, blots for eights."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 24), ("test", 12)):
        digits = np.tile([6, 8], count // 2)
        x = rng.integers(0, 60, (count, 28, 28))
        x[digits == 6, 4:10, 4:24] += 180
        x[digits == 8, 10:18, 10:18] += 180
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": digits}
    np.savez(folder / "mnist.npz", **arrays)
    return folder / "mnist.npz"


def cifar(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    parts = {"train": 20, "test": 8}
    arrays: dict[str, Any] = {f"x_{p}": rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8) for p, n in parts.items()}
    arrays |= {f"y_{p}": np.arange(n) % 3 for p, n in parts.items()}
    np.savez(folder / "cifar.npz", **arrays)
    return folder / "cifar.npz"


def test_mnist6_180_runs_resumes_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Mnist6180(
        data=mnist(tmp_path), output=tmp_path / "run", seeds=(0,), rotations=4, epochs=1, methods=("strict", "learned")
    )
    first = mnist6_180.run(replace(recipe, output=tmp_path / "other"))
    options = ["--seeds", "0", "--rotations", "4", "--epochs", "1", "--methods", "strict", "learned"]
    command = ["reproduce", "mnist6-180", "--data", str(recipe.data), "--output", str(recipe.output), *options]
    assert main(command) == 0
    assert "half turn" in (recipe.output / "config.json").read_text() + capsys.readouterr().out
    records = study_records(recipe.output)
    untimed = [{k: v for k, v in r.items() if "seconds" not in k} for r in records]
    assert untimed == [{k: v for k, v in r.items() if "seconds" not in k} for r in first]
    half = next(r for r in records if (r["task"], r["method"]) == ("half turn", "strict"))
    assert half["accuracy"] == 0.5  # as many right as wrong: a network that cannot tell
    assert main(command) == 0  # nothing left to do
    assert len(study_records(recipe.output)) == len(records)
    page = (recipe.output / "results.md").read_text()
    assert "| strict | 50.0 | 50.0 |" in page
    assert (recipe.output / "mnist6-180.png").stat().st_size > 5000


def test_the_cifar_study_tunes_then_runs_and_writes_its_page(tmp_path: Path) -> None:
    recipe = NonstationaryCifar(
        data=str(cifar(tmp_path)),
        output=tmp_path / "run",
        seeds=(0,),
        rotations=(4,),
        methods=("strict", "strict, all shortcuts", "soft", "learned", "partial"),
        augmentations=("crop-flip",),
        curve=(2,),
        epochs=1,
    )
    records = nonstationary_cifar.run(recipe)
    assert [r["part"] for r in records].count("main") == 5
    for method in recipe.methods:
        tuned = {r["setting"]: r["validation"] for r in records if (r["part"], r["method"]) == ("tune", method)}
        (chosen,) = [r["setting"] for r in records if (r["part"], r["method"]) == ("main", method)]
        assert tuned[chosen] == max(tuned.values())
        same = [r for r in records if (r["method"], r["setting"]) == (method, chosen) and r["part"] in ("tune", "main")]
        assert same[0]["loss"] == same[1]["loss"]
        assert same[1]["seconds"] == 0  # not trained again
    curve = {r["setting"]: max(r["defects"]) for r in records if r["part"] == "curve"}
    assert curve[0.0] == curve[2.0] == 0 < curve[1.0]
    assert curve[3.0] > 0
    page = write_study(recipe.output).read_text()
    assert "paper B" in page
    soft, strict = (
        next(r["accuracy"] for r in records if (r["part"], r["method"]) == ("main", m))
        for m in ("soft", "strict, all shortcuts")
    )
    assert f"N = 4, crop-flip: {100 * (soft - strict):.1f}, the paper's +1.3" in page
    assert "| 2 | 1 |" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": Path("nowhere.npz")}, "mnist.npz"),
        ({"methods": ("exact",)}, "methods"),
        ({"tasks": ()}, "tasks"),
        ({"seeds": ()}, "seeds"),
        ({"rotations": 3}, "even"),
        ({"penalty": -1.0}, "penalty"),
    ],
)
def test_what_has_no_meaning_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = replace(Mnist6180(data=mnist(tmp_path), output=tmp_path / "run"), **change)
    with pytest.raises(ed.errors.ArgumentError, match=words):
        mnist6_180.run(recipe)
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_kind_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    files = {"text.npz": b"no archive", "empty.npz": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name in (*files, "other.npz"):
        with pytest.raises(ed.errors.FileFormatError, match="x_train"):
            mnist6_180.run(Mnist6180(data=tmp_path / name, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_study_or_other_files_are_not_overwritten(tmp_path: Path) -> None:
    Study(tmp_path / "run", "name", {"a": 1})
    with pytest.raises(ed.errors.ArgumentError, match="other settings"):
        Study(tmp_path / "run", "name", {"a": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ed.errors.ArgumentError, match="holds files"):
        Study(tmp_path / "mine", "name", {"a": 1})
    for folder in (tmp_path / "mine", tmp_path / "run"):
        with pytest.raises(ed.errors.FileFormatError, match="study"):
            write_study(folder)


def test_settings_are_written_beside_the_numbers(tmp_path: Path) -> None:
    study = Study(tmp_path / "run", "mnist6-180", {"scale": "small"})
    found = json.loads((study.folder / "config.json").read_text())
    assert found["made_with"]["equidial"] == ed.__version__
    with pytest.raises(ed.errors.FileFormatError, match="finished training"):
        write_study(study.folder)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("trajectories", {}, []),
        ("trajectories", {"seeds": (3, 4), "softness": (), "epochs": 2}, ["--seeds 3 4", "--epochs 2"]),
        ("segmentation", {"turned_dial": True, "responses": ("hard",)}, ["--turned-dial", "--weights WEIGHTS"]),
        ("segmentation", {"model": "hf:a b"}, ["--model 'hf:a b'"]),
        ("imagenet", {"model": "n.py:f", "table_softness": None}, ["--table-softness None", "--weights WEIGHTS"]),
        ("o5", {"breaking": (0.3,)}, ["--breaking 0.3"]),
    ],
)
def test_a_page_tells_the_command_that_gives_the_settings(name: str, changes: dict[str, Any], told: list[str]) -> None:
    recipe = STUDIES[name][0]
    needed = {field.name: Path("DATA") for field in fields(recipe) if field.name == "data"}
    made = recipe(output=Path("FOLDER"), scale="small", **needed, **changes)
    settings = {k: v for k, v in asdict(made).items() if k not in ("data", "output", "weights")}
    words = shlex.split(command(name, json.loads(json.dumps(settings))))
    assert words[:3] == ["equidial", "reproduce", name]
    found = replace(tyro.cli(recipe, args=words[3:]), **({"weights": None} if "--weights" in words else {}))
    assert {k: str(v) for k, v in asdict(found).items()} == {k: str(v) for k, v in asdict(made).items()}
    for words in told:
        assert words in command(name, settings)
