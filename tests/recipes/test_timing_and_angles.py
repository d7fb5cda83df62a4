"""What filters and softened networks cost, and networks at large angles: tiny studies, their oracles, their pages."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn

import equidial as ed
from equidial.cli import main
from equidial.metrics import inscribed_disc, rotate_bilinear
from equidial.recipes import LargeAngles, Timing, _pretrained, cct, large_angles, study_records, timing
from equidial.recipes._moves import spun
from equidial.reporting import write_study
from equidial.reporting._studies._timing import Law
from equidial.representations import Pixels
from tests.recipes.interruption import interrupted, untimed


@pytest.fixture
def brief(tmp_path: Path) -> Timing:
    return Timing(tmp_path / "run", sizes=(2, 3, 4), dense_sizes=(2, 3), networks=("cct",), batch=2, rounds=2)


@pytest.mark.parametrize("group", ["SO2", "C4"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_three_ways_of_construction_are_one_projection(group: str, n: int) -> None:
    found = timing.construction(group, n, timing.RIVALS, 0)
    assert set(found["build"]) == set(timing.RIVALS)
    assert min(found["build"].values()) > 0
    assert max(found["difference"].values()) < 1e-10
    pixels = Pixels(ed.groups.by_name(group), (n, n))
    weight = torch.randn(n * n, n * n, dtype=torch.float64)
    kept = timing.project_schur(timing.letter(pixels), weight)
    assert 0.05 * float(weight.norm()) < float(kept.norm()) < 0.9 * float(weight.norm())
    for turn in (math.pi / 2, math.pi):  # elements of both groups
        matrix = pixels.matrix(pixels.group.element(turn if group == "SO2" else round(turn * 2 / math.pi)))
        assert float((kept @ matrix - matrix @ kept).norm()) < 1e-10


def test_a_plane_turned_keeps_what_commutes_with_it() -> None:
    a = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0, -0.5], [0.5, 3.0]], dtype=torch.float64)
    for project in (timing.project_svd, timing.project_schur):
        assert torch.allclose(project(a, weight), expected, atol=1e-14)


def test_the_schur_way_refuses_what_is_not_normal() -> None:
    shear = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ed.errors.ArgumentError, match="normal"):
        timing.project_schur(shear, torch.ones(2, 2, dtype=torch.float64))
    assert torch.allclose(timing.project_svd(shear, torch.eye(2, dtype=torch.float64)), torch.eye(2).double())


def test_a_group_of_several_generators_has_no_one_letter() -> None:
    with pytest.raises(ed.errors.ArgumentError, match="one generator"):
        timing.letter(Pixels(ed.groups.by_name("D4"), (3, 3)))


def test_a_power_law_is_found_again() -> None:
    law = Law.of({n: 2e-6 * n**9 for n in (3, 4, 6, 7)})
    assert law is not None
    assert law.exponent == pytest.approx(9)
    low, high = law.interval(14)
    assert low <= law.at(14) * (1 + 1e-9)
    assert law.at(14) == pytest.approx(2e-6 * 14**9)
    assert high == pytest.approx(low, rel=1e-6)
    assert Law.of({3: 1.0, 4: 2.0}) is None
    loose = Law.of({3: 1.0, 4: 3.0, 5: 4.0, 6: 9.0})
    assert loose is not None
    low, high = loose.interval(14)
    assert low < loose.at(14) / 2 < 2 * loose.at(14) < high


def test_the_timing_study_measures_once_and_writes_its_page(brief: Timing, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    options = ["--sizes", "2", "3", "4", "--dense-sizes", "2", "3", "--networks", "cct"]
    command = ["reproduce", "timing", "--output", str(brief.output), *options, "--batch", "2", "--rounds", "2"]
    assert main(command) == 0
    records = study_records(brief.output)
    assert torch.get_num_threads() == threads
    built = [r for r in records if r["part"] == "construction"]
    assert len(built) == 2 * 2 * 3
    assert all(("svd" in r["build"]) == (r["size"] < 4) for r in built)
    assert max(value for r in built for value in r["difference"].values()) < 1e-10
    networks = [r for r in records if r["part"] == "network"]
    assert len(networks) == 2
    assert all(
        set(r[part]) == set(timing.MODELS) and min(r[part].values()) > 0 for r in networks for part in ("step", "pass")
    )
    page = capsys.readouterr().out
    assert page.index("**What softness costs.**") < page.index("## Construction, SO2") < page.index("## Networks")
    assert "2 rounds of each" in page
    assert f"torch {torch.__version__}" in page
    assert "1 torch thread," in page
    assert (brief.output / "timing.png").stat().st_size > 10_000
    assert main(command) == 0  # nothing left to do
    assert study_records(brief.output) == records


def test_the_page_says_where_ours_is_slower_and_what_is_extrapolated(tmp_path: Path) -> None:
    settings = Timing(tmp_path / "run", groups=("C4",), sizes=(3, 4, 5, 14), dense_sizes=(3, 4, 5), networks=("cct",))
    study = timing.Study(settings.output, timing.NAME, {"scale": "small", "groups": ["C4"], "rounds": 1})
    for n in (3, 4, 5, 14):
        key = {"part": "construction", "group": "C4", "size": n, "network": None, "round": 0}
        build = {"ours": 1.0, "schur": 0.5 if n == 3 else 4.0} | ({"svd": 1e-7 * n**12} if n < 14 else {})
        found = {"build": build, "generator": 0.25, "difference": {"schur": 1e-15}, "mib": {"svd": None}}
        study.finish(key, {**found, **timing.surroundings(), "seconds": 1.0})
    page = write_study(settings.output).read_text()
    assert page.index("**Ours is slower.**") < page.index("**Ours is faster.**")
    assert "the Schur form takes 0.500 times our time at 3x3 (0.750 with its generator)" in page
    assert "the Schur form takes 4.00 times our time at 4x4, 5x5, 14x14 (4.25 with its generator)" in page
    assert "grows as n^(12.0 ± 0.0)" in page
    extrapolated = page[page.index("**Extrapolated, not run**") :]
    assert f"* 14 x 14: {1e-7 * 14**12:.1e} s" in extrapolated
    assert "890 s" in extrapolated


def test_one_process_measures_at_a_time(brief: Timing, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(brief, groups=("C4",), sizes=(2,), dense_sizes=(2,))
    inside, together, real = threading.Lock(), [], timing.construction

    def alone(*arguments: Any) -> dict[str, Any]:
        together.append(not inside.acquire(blocking=False))
        with pytest.raises(Timeout):
            FileLock(recipe.output / "measuring.lock").acquire(timeout=0)
        try:
            return real(*arguments)
        finally:
            inside.release()

    monkeypatch.setattr(timing, "construction", alone)
    monkeypatch.setattr(timing.Bench, "measure", lambda *_: {"step": {}, "pass": {}})
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(timing.run, [recipe, recipe])
    assert one == other
    assert len(study_records(recipe.output)) == len(one) == 4
    assert not any(together)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": ("D4",)}, "groups"),
        ({"sizes": (1, 3), "dense_sizes": (3,)}, "2 pixels"),
        ({"dense_sizes": (3, 7)}, "among them"),
        ({"sizes": (3, 14), "dense_sizes": (14,)}, "GiB"),
        ({"networks": ("resnet1",)}, "hf:NAME"),
        ({"rounds": 0}, "rounds"),
        ({"batch": 0}, "batch"),
        ({"threads": 0}, "threads"),
        ({"threads": 2, "clock": "cpu"}, "wall"),
        ({"softness": 1.0}, "below 1"),
        ({"softness": 2.0}, "2.0"),
        ({"network_group": "C0"}, "C0"),
    ],
)
def test_a_timing_without_meaning_is_refused(change: dict[str, Any], words: str, brief: Timing) -> None:
    with pytest.raises(ed.EquidialError, match=words):
        timing.run(replace(brief, **change))
    assert not brief.output.exists()


@pytest.fixture
def tiny(tmp_path: Path) -> LargeAngles:
    torch.manual_seed(0)
    save_file(cct().state_dict(), tmp_path / "cifar10_cct_2_3x2.safetensors")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 16), ("test", 9)):
        arrays |= {
            f"x_{part}": rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8),
            f"y_{part}": np.arange(count) % 3,
        }
    np.savez(tmp_path / "images.npz", **arrays)
    return LargeAngles(
        data=str(tmp_path / "images.npz"),
        output=tmp_path / "run",
        weights=tmp_path,
        network="cct",
        seeds=(0, 1),
        softness=(0.5,),
        learning_rates=(1e-3,),
        epochs=1,
    )


def test_images_are_turned_by_angles_of_the_whole_circle_each_by_its_own() -> None:
    x = torch.rand(1, 1, 9, 9).expand(300, -1, -1, -1)
    y = spun(x, torch.Generator().manual_seed(0))
    angles = (2 * torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1) * math.pi
    for place in (0, 17, 299):
        assert torch.equal(y[place], rotate_bilinear(x[place], float(angles[place])))
    quarters = torch.histc(angles, 4, -math.pi, math.pi)
    assert float(quarters.min()) > 300 / 4 - 4 * math.sqrt(300 * 3 / 16)


class Corner(nn.Module):
    """Class 1 where the top left corner is bright, else class 0; or, ``ring``, by the sum over the inscribed disc."""

    def __init__(self, ring: bool):
        super().__init__()
        self.ring = ring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x * inscribed_disc(32, 32)).sum((1, 2, 3)) if self.ring else x[:, :, :2, :2].sum((1, 2, 3))
        return torch.stack([torch.full_like(score, 0.5), score], 1)


def test_scores_tell_lost_corners_from_what_the_network_loses() -> None:
    read = _pretrained.Reader(32, (0.0,), (1.0,), "cpu")
    x, y = torch.zeros(2, 1, 32, 32), torch.tensor([0, 1])
    x[1] = 1.0
    found = {p: large_angles.over_angles(Corner(False), read, x, y, p, large_angles.ANGLES) for p in ("whole", "disc")}
    at = dict(zip(large_angles.ANGLES, found["whole"]["accuracy"], strict=True))
    assert found["whole"]["Acc"] == 1
    assert {at[d] for d in (90, -90, 180)} == {1.0}  # quarter turns lose nothing
    assert {at[d] for d in at if d % 90} == {0.5}  # the corner is gone
    assert set(found["disc"]["accuracy"]) == {found["disc"]["Acc"]} == {0.5}  # and never was in the disc
    assert found["disc"]["180"] == {"aAcc": 0.5, "cAcc": 0.5, "kl": pytest.approx(0)}
    mean = sum(found["whole"]["accuracy"]) / 23
    assert found["whole"]["180"]["aAcc"] == pytest.approx(mean)
    assert found["whole"]["180"]["cAcc"] == pytest.approx(math.sqrt(mean))
    assert found["whole"]["30"]["aAcc"] == 0.5
    whole = large_angles.over_angles(Corner(True), read, x, y, "whole", large_angles.ANGLES)
    assert whole["accuracy"] == [1.0] * 23
    assert found["whole"]["180"]["kl"] > 0.1


def test_the_study_of_large_angles_tunes_runs_and_writes_its_page(tiny: LargeAngles) -> None:
    recipe = replace(tiny, softness=(0.2, 0.9), groups=("SO2", "C8"), methods=("soft",))
    records = large_angles.run(recipe)
    assert len(records) == 2 * 2 + 2
    best = large_angles.chosen(records)
    for (group, method), key in best.items():
        own = [r for r in records if (r["group"], r["method"]) == (group, method)]
        tuned = {(r["softness"], r["learning_rate"]): r["validation"] for r in own if r["seed"] == 0}
        assert tuned[key["softness"], key["learning_rate"]] == max(tuned.values())
        (other,) = [r for r in own if r["seed"] == 1]
        assert (other["softness"], other["learning_rate"]) == (key["softness"], key["learning_rate"])
        bounds = {r["softness"]: r["bound"] for r in own}
        assert 0 < bounds[0.2] < bounds[0.9]
    page = write_study(recipe.output).read_text()
    assert page.index("**Performance drops") < page.index("## SO2, whole images") < page.index("## C8, whole images")
    assert "images masked by the inscribed disc" in page


def test_methods_differ_in_dial_and_turned_images_only(tiny: LargeAngles) -> None:
    records = large_angles.run(replace(tiny, seeds=(0,)))
    found = {r["method"]: r for r in records}
    assert {m: r["softness"] for m, r in found.items()} == {
        "untouched": 1.0,
        "augmentation": 1.0,
        "strict": 0.0,
        "soft": 0.5,
        "both": 0.5,
    }
    assert found["strict"]["bound"] < 1e-6 < found["soft"]["bound"] < found["untouched"]["bound"]
    assert len({r["loss"] for r in records}) == 5
    page = write_study(tiny.output).read_text()
    assert "dial helps.**" in page or "dial does not help.**" in page
    assert page.index("**The dial") < page.index("Settings: ")
    assert (tiny.output / "large-angles.png").stat().st_size > 10_000


def test_interrupted_large_angles_end_as_uninterrupted_ones(tiny: LargeAngles) -> None:
    recipe = replace(tiny, methods=("augmentation", "both"), seeds=(3,), epochs=2)
    options = ["--weights", str(recipe.weights), "--network", "cct", "--seeds", "3"]
    options += ["--methods", "augmentation", "both"]
    options += ["--softness", "0.5", "--learning-rates", "1e-3", "--epochs", "2"]
    command = ["reproduce", "large-angles", "--data", recipe.data, "--output", str(recipe.output), *options]
    whole = large_angles.run(replace(recipe, output=recipe.output.with_name("whole")))
    expected = json.loads(json.dumps(untimed(whole)))  # tuples become lists
    assert interrupted(command, recipe.output, _pretrained) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": None}, "--weights"),
        ({"network": "resnet20"}, "cifar10_resnet20"),
        ({"network": "resnet1"}, "hf:NAME"),
        ({"groups": ("C0",)}, "C0"),
        ({"groups": ()}, "groups"),
        ({"methods": ("prayer",)}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"response": "loud"}, "response"),
        ({"softness": ()}, "between 0 and 1"),
        ({"softness": (0.0, 0.5)}, "between 0 and 1"),
        ({"softness": (1.0,)}, "between 0 and 1"),
        ({"learning_rates": (0.0,)}, "positive"),
        ({"epochs": 0}, "epoch"),
        ({"data": "nowhere.npz"}, "npz"),
    ],
)
def test_large_angles_without_meaning_are_refused(change: dict[str, Any], words: str, tiny: LargeAngles) -> None:
    with pytest.raises(ed.EquidialError, match=words):
        large_angles.run(replace(tiny, **change))
    assert not tiny.output.exists()
