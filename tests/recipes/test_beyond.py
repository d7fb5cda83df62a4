"""Shifts, magnification and points in space: what strict means in each, and tiny studies that run and resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import equidial as ed
from equidial.data import solids
from equidial.errors import EquidialError
from equidial.groups import Translation
from equidial.metrics import transform_images
from equidial.recipes import (
    Beyond,
    PointNetwork,
    _beyond_points,
    _pretrained,
    beyond,
    cct,
    point_vectors,
)
from equidial.recipes._cifar_networks import CifarResNet
from equidial.recipes._moves import crop_flip, flipped, shifted
from equidial.recipes._pretrained import NETWORKS
from equidial.recipes._product_network import ProductSizes
from equidial.reporting import write_study
from tests.recipes.interruption import interrupted, untimed
from tests.recipes.test_classification_studies import images

POINTS = _beyond_points.Sizes(20, 10, 40, ProductSizes(2, 3), 4, epochs=2, rate=1e-2, batch_size=10)


def rotations(count: int) -> torch.Tensor:
    return _beyond_points.haar(count, torch.Generator().manual_seed(5))


def point_network(softness: float) -> PointNetwork:
    data = solids(10, 1, points=40)
    torch.manual_seed(0)
    model = PointNetwork(point_vectors(data.x), 10, ProductSizes(3, 4), features=5).double().eval()
    return ed.soften(model, model.config(softness)) if softness < 1 else model


def test_vectors_of_points_against_a_closed_form_and_under_rotations() -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, -6]], dtype=torch.float64)
    found = point_vectors(x[None], neighbours=(1, 3))[0]
    centre = torch.tensor([0.25, 0.5, -1.5], dtype=torch.float64)
    near = torch.tensor([1, 0, 0, 0])
    assert torch.allclose(found[:, :3], x - centre)
    assert torch.allclose(found[:, 3:6], x[near] - x)
    assert torch.allclose(found[:, 6:], (4 * centre - x) / 3 - x)  # the mean of the other three
    clouds, turns = solids(3, 1, points=40).x.double(), rotations(3)
    turned = point_vectors(clouds @ turns.mT)
    assert torch.allclose(turned, _beyond_points.turned(point_vectors(clouds), turns), atol=1e-12)


def test_the_point_network_is_exactly_invariant_at_0_and_not_beyond() -> None:
    data = solids(10, 1, points=40)
    clouds, turns = data.x.double(), rotations(10)
    moves = {s: point_network(s) for s in (0.0, 0.3, 1.0)}
    error = {}
    for softness, model in moves.items():
        with torch.no_grad():
            still, moved = model(clouds), model(clouds @ turns.mT)
        differences = (still - still.mean(0)).norm()  # between clouds
        assert differences > 1e-4 * still.norm()
        error[softness] = float((moved - still).norm() / differences)
    assert error[0.0] < 1e-10
    assert 1e-2 < error[0.3] < error[1.0]


def test_an_invariant_network_cannot_tell_poses_apart() -> None:
    data = solids(200, 1, points=40)
    cones = data.x[data.y == data.classes.index("cone")].double()
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    for softness, equal in ((0.0, True), (1.0, False)):
        model = point_network(softness)
        with torch.no_grad():
            assert torch.allclose(model(cones), model(cones @ half), atol=1e-10) == equal


def test_turns_are_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    for draw, upright in ((_beyond_points.haar, False), (_beyond_points.about_z, True)):
        r = draw(200, generator)
        assert torch.allclose(r @ r.mT, torch.eye(3, dtype=torch.float64).expand_as(r), atol=1e-12)
        assert torch.allclose(torch.linalg.det(r), torch.ones(200, dtype=torch.float64))
        assert torch.equal(r[:, 2, 2], torch.ones(200, dtype=torch.float64)) == upright
        assert r[:, :2].mean(0)[:, :2].abs().max() < 0.2


def test_a_position_table_that_is_one_row_lets_shifts_by_whole_tokens_through() -> None:
    """A framed picture moved by four pixels permutes tokens, and pooling does not see their order."""
    torch.manual_seed(0)
    model = cct().eval()
    x = functional.pad(torch.randn(4, 3, 12, 12), (10, 10, 10, 10))
    error = {}
    for softness in (0.0, 1.0):
        ed.soften(model, ed.SoftEquivarianceConfig(group="T2", softness=softness))
        for step in ((4, -4), (1, 0)):
            with torch.no_grad():
                still, moved = model(x), model(transform_images(x, Translation(2).element(step)))
            error[softness, step] = float((moved - still).norm() / still.norm())
        ed.unload(model)
    assert error[0.0, (4, -4)] < 1e-5
    assert error[0.0, (1, 0)] > 1e-3
    assert error[1.0, (4, -4)] > 1e-3


def test_strict_kernels_under_magnification_are_pointwise() -> None:
    torch.manual_seed(0)
    model = CifarResNet(1)
    before = model.conv1.weight.detach().clone()
    ed.soften(model, ed.SoftEquivarianceConfig(group="Scale", softness=0.0))
    found = model.conv1.weight.detach()
    expected = torch.zeros_like(before)
    expected[..., 1, 1] = before[..., 1, 1]
    assert torch.allclose(found, expected, atol=1e-6)


def test_random_moves() -> None:
    x, generator = torch.randn(64, 2, 9, 9), torch.Generator()
    padded = functional.pad(x, (3, 3, 3, 3))
    moved = shifted(x, 3, generator.manual_seed(0))
    windows = {(i, j): padded[:, :, i : i + 9, j : j + 9] for i in range(7) for j in range(7)}
    hits = torch.stack([(moved == w).flatten(1).all(1) for w in windows.values()])
    assert hits.sum(0).tolist() == [1] * 64
    assert len(set(hits.double().argmax(0).tolist())) > 20
    mirrored = flipped(x, generator.manual_seed(0))
    rows = (mirrored == x.flip(-1)).flatten(1).all(1)
    assert 15 < int(rows.sum()) < 49
    assert torch.equal(mirrored[~rows], x[~rows])
    both = flipped(shifted(x, 1, generator.manual_seed(1)), generator)
    assert torch.equal(both, crop_flip(x, generator.manual_seed(1)))


@pytest.mark.parametrize("pixels", [1, 2, 8])
def test_images_are_judged_under_four_shifts(pixels: int) -> None:
    steps = [g.value for g in beyond.shifts_up_to(pixels)]
    assert len(set(steps)) == 4
    assert all(0 < max(abs(i), abs(j)) <= pixels and i == int(i) and j == int(j) for i, j in steps)
    assert steps == [g.value for g in beyond.shifts_up_to(pixels)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beyond:
    """A residual network of one block a stage, 20 clouds."""
    torch.manual_seed(0)
    small = replace(NETWORKS["resnet20"], build=lambda: CifarResNet(1))
    monkeypatch.setitem(NETWORKS, "resnet20", small)
    monkeypatch.setitem(beyond.SCALES, "small", replace(beyond.SCALES["small"], points=POINTS))
    for name in ("resnet20", "cct"):
        save_file(NETWORKS[name].build().state_dict(), tmp_path / NETWORKS[name].file)
    return Beyond(
        output=tmp_path / "run",
        data=str(images(tmp_path)),
        weights=tmp_path,
        seeds=(0, 1),
        shifts_softness=(0.0,),
        scaling_softness=(0.0,),
        points_softness=(0.0, 0.5),
        shifts=(4,),
        factors=(0.7, 1.25),
        epochs=2,
    )


def test_all_parts_run_and_are_told_on_one_page(tiny: Beyond) -> None:
    recipe = replace(tiny, seeds=(0,), epochs=1)
    records = beyond.run(recipe)
    cases = [(r["part"], r["method"], r["softness"]) for r in records]
    ends = [("untouched", 1.0), ("augmentation", 1.0)]
    assert cases == [
        *(("shifts", *case) for case in [("soft", 0.0), *ends]),
        *(("scaling", *case) for case in [("soft", 0.0), *ends]),
        *(("points", *case) for case in [("soft", 0.0), ("soft", 0.5), *ends]),
    ]
    for r in records:
        for found in (r, *r["moves"].values()):
            assert found["cAcc"] == pytest.approx(math.sqrt(found["Acc"] * found["aAcc"]))
            assert found["iErr"] >= 0
        assert (r["bound"] < 1e-6) == (r["softness"] == 0)
    strict, soft, free, augmented = records[-4:]
    assert strict["error"] < 1e-5 < soft["error"] < free["error"]
    assert strict["bound"] < soft["bound"] < free["bound"]
    assert free["loss"] != augmented["loss"]
    assert {r["constrained"] for r in records if r["part"] == "scaling"} == {7}
    assert [r["level"] for r in records if r["part"] == "scaling"] == [["kernel"]] * 3
    assert list(records[3]["moves"]) == ["0.7", "1.25"]
    page = write_study(recipe.output).read_text()
    assert page.index("**Softness does not help here**") < page.index("## Shifts")
    assert page.index("## Shifts") < page.index("## Magnification") < page.index("## Points in space")
    assert "| soft | 0.5 |" in page
    assert (recipe.output / "beyond.png").stat().st_size > 20_000


@pytest.mark.parametrize("part", ["shifts", "points"])
def test_an_interrupted_study_ends_as_an_uninterrupted_one(tiny: Beyond, part: Any) -> None:
    recipe = replace(tiny, parts=(part,), seeds=(3,), points_softness=(0.5,))
    whole = beyond.run(replace(recipe, output=recipe.output.with_name("whole")))
    options = ["--weights", str(recipe.weights), "--data", recipe.data, "--parts", part, "--seeds", "3"]
    options += ["--shifts-softness", "0", "--scaling-softness", "0", "--points-softness", "0.5"]
    options += ["--shifts", "4", "--factors", "0.7", "1.25", "--epochs", "2"]
    command = ["reproduce", "beyond", "--output", str(recipe.output), *options]
    trains = _beyond_points if part == "points" else _pretrained
    assert interrupted(command, recipe.output, trains) == untimed(whole)


def test_a_folder_of_meshes_takes_the_place_of_solids(tiny: Beyond, tmp_path: Path) -> None:
    text = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    for name in ("chair", "desk"):
        for split, count in (("train", 30), ("test", 1)):
            (folder := tmp_path / "meshes" / name / split).mkdir(parents=True)
            for k in range(count):
                (folder / f"{k}.off").write_text(text)
    data = _beyond_points.load(tmp_path / "meshes", POINTS, True, "cpu")
    assert data.classes == ("chair", "desk")
    assert (data.x.shape, data.x_test.shape) == ((20, 40, 9), (2, 40, 9))
    assert len(_beyond_points.load(tmp_path / "meshes", replace(POINTS, whole=True), True, "cpu").x) == 60
    recipe = replace(tiny, parts=("points",), clouds=tmp_path / "meshes", seeds=(0,), points_softness=(0.0,), epochs=1)
    assert [r["images"] for r in beyond.run(recipe)] == [20] * 3
    assert "Clouds: meshes" in write_study(recipe.output).read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": ()}, "parts"),
        ({"parts": ("time",)}, "shifts"),
        ({"seeds": ()}, "seeds"),
        ({"shifts_softness": ()}, "softness in"),
        ({"scaling_softness": (0.5, 1.0)}, "untouched"),
        ({"points_softness": (-0.1,)}, "points_softness"),
        ({"shifts": ()}, "31 pixels"),
        ({"shifts": (0,)}, "31 pixels"),
        ({"shifts": (32,)}, "31 pixels"),
        ({"factors": (1.0,)}, "other than 1"),
        ({"factors": (0.0,)}, "factors"),
        ({"factors": ()}, "factors"),
        ({"epochs": 0}, "one epoch"),
        ({"data": ""}, "--data"),
        ({"weights": None}, "--weights"),
        ({"clouds": Path("nowhere")}, "nowhere"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_wrong_options_are_refused_before_anything_is_made(tiny: Beyond, change: dict[str, Any], words: str) -> None:
    with pytest.raises(EquidialError, match=rf"(?s)expected .*{words}"):
        beyond.run(replace(tiny, **change))
    assert not tiny.output.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: point_vectors(torch.zeros(2, 40, 2)),
        lambda: point_vectors(torch.zeros(2, 32, 3)),
        lambda: point_vectors(torch.zeros(3)),
        lambda: PointNetwork(torch.zeros(1, 4, 9), 2, ProductSizes(2, 2), group=ed.groups.by_name("T2")),
    ],
)
def test_wrong_clouds_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(EquidialError, match=r"(?s)expected .*got: .*do: "):
        wrong()
