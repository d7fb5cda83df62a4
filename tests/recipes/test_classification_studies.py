"""CIFAR and MNIST under the dial: tiny studies that tune, run, resume and write their pages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import equidial as ed
from equidial.data import load_images, loader
from equidial.metrics import measured_elements, transform_images
from equidial.recipes import (
    Cifar,
    Mnist,
    _pretrained,
    cct,
    cifar,
    load_model,
    load_weights,
    mnist,
    resnet20,
    resnet56,
    study_records,
)
from equidial.recipes._moves import turned
from equidial.reporting import write_study
from tests.adapters.models import vit
from tests.recipes.interruption import interrupted, untimed


def images(folder: Path, pixels: int = 32, channels: tuple[int, ...] = (3,)) -> Path:
    """Three classes of bars at three heights, sorted by class as some files are."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 24), ("test", 18)):
        y = np.repeat(np.arange(3), count // 3)
        x = rng.integers(0, 60, (count, pixels, pixels, *channels))
        for image, label in zip(x, y, strict=True):
            image[2 + 8 * label : 8 + 8 * label] += 150
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y}
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, build in (("resnet20", resnet20), ("cct_2_3x2", cct)):
        save_file(build().state_dict(), folder / f"cifar10_{name}.safetensors")
    return folder


@pytest.fixture
def tiny(tmp_path: Path, weights: Path) -> Cifar:
    return Cifar(
        data=str(images(tmp_path)),
        output=tmp_path / "run",
        weights=weights,
        networks=("cct",),
        seeds=(0, 1),
        softness=(0.0, 0.5),
        responses=("nearest", "hard", "taper"),
        epochs=1,
    )


def test_the_networks_have_the_sizes_of_the_checkpoints() -> None:
    sizes = [sum(p.numel() for p in build().parameters()) for build in (resnet20, resnet56, cct)]
    assert sizes == [269_722, 853_018, 283_723]
    assert cct()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_pretrained_transformer_is_what_it_was(data_folder: Path) -> None:
    model = cct()
    load_weights(model, data_folder / "weights" / "cifar10_cct_2_3x2.safetensors")
    source = str(data_folder / "cifar10_lossless" / "cifar10_lossless_4k_1k.npz")
    found = load_images(source, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
    with torch.no_grad():
        hits = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in loader(found.test, 250))
    assert hits / len(found.test) == pytest.approx(0.598, abs=0.005)


def test_images_are_turned_by_every_element_alike() -> None:
    elements = measured_elements(ed.groups.by_name("C4"))
    x = torch.randn(1, 2, 4, 4).expand(400, -1, -1, -1)
    for rest, count in ((True, 4), (False, 3)):
        y = turned(x, elements, torch.Generator().manual_seed(0), rest)
        poses = [x[:1], *(transform_images(x[:1], g) for g in elements)][not rest :]
        shares = [float((y == pose).flatten(1).all(1).double().mean()) for pose in poses]
        assert sum(shares) == 1
        assert max(abs(share - 1 / count) for share in shares) < 4 * math.sqrt(0.25 / 400)


def test_validation_images_are_nobody_elses(tiny: Cifar, tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "vit")
    for name, sizes in (("cct", (24, 6, 12)), (f"hf:{tmp_path / 'vit'}", (16, 8, 18))):
        data = cifar.load(replace(tiny, networks=(name,)))
        parts = data.x, data.x_val, data.x_test
        assert tuple(map(len, parts)) == sizes
        assert len({x.numpy().tobytes() for part in parts for x in part}) == sum(sizes)
        assert set(data.y.tolist()) == {0, 1, 2}


def test_the_cifar_study_tunes_runs_and_writes_its_page(tiny: Cifar) -> None:
    with pytest.warns(ed.EquidialWarning, match="stride"):
        records = cifar.run(tiny)
    best = cifar.chosen(records, 0, "nearest")
    for method in tiny.methods:
        found = {
            r["setting"]: r["validation"]
            for r in records
            if (r["method"], r["seed"]) == (method, 0) and r["setting"] > 0 and r["response"] in (None, "nearest")
        }
        setting = best["cct", "C4", method]
        assert found[setting] == max(found.values())
        assert len(found) == len(cifar.settings_of(tiny, method))
        assert any((r["method"], r["setting"], r["seed"]) == (method, setting, 1) for r in records)
    for r in records:
        assert r["cAcc"] == pytest.approx(math.sqrt(r["Acc"] * r["aAcc"]))
        assert (r["bound"] < 1e-6) == (bool(r["response"]) and r["setting"] == 0)
    soft = {(r["response"], r["setting"]): r["bound"] for r in records if r["method"] == "both" and r["seed"] == 0}
    assert soft["nearest", 0.0] < soft["nearest", 0.5] < records[0]["bound"]
    assert len(soft) == 4  # nearest at 0 and 0.5, hard and taper at 0.5
    page = write_study(tiny.output).read_text()
    assert page.index("**Softness") < page.index("## cct, C4")
    assert "| taper | 0.5 |" in page
    assert "| hard | 0 |" in page
    assert (tiny.output / "cifar.png").stat().st_size > 10_000


def test_an_interrupted_cifar_study_ends_as_an_uninterrupted_one(tiny: Cifar) -> None:
    recipe = replace(tiny, methods=("penalty", "both"), responses=("taper",), seeds=(3,), epochs=2)
    options = ["--weights", str(recipe.weights), "--networks", "cct", "--seeds", "3", "--methods", "penalty", "both"]
    options += ["--softness", "0", "0.5", "--responses", "taper", "--epochs", "2"]
    command = ["reproduce", "cifar", "--data", recipe.data, "--output", str(recipe.output), *options]
    with pytest.warns(ed.EquidialWarning, match="stride"):
        whole = cifar.run(replace(recipe, output=recipe.output.with_name("whole")))
    assert interrupted(command, recipe.output, _pretrained) == untimed(whole)


def test_a_network_of_transformers_gets_a_head_for_the_data(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "vit")
    name = f"hf:{tmp_path / 'vit'}"
    before, after = load_model(name).state_dict(), load_model(name, classes=3).state_dict()
    assert before.keys() == after.keys()
    assert {k for k in before if before[k].shape != after[k].shape} == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("classifier"))
    assert after["classifier.weight"].shape == (3, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": None}, "--weights"),
        ({"networks": ("resnet56",)}, "cifar10_resnet56"),
        ({"networks": ("resnet1",)}, "hf:NAME"),
        ({"groups": ("C0",)}, "C0"),
        ({"methods": ("prayer",)}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"responses": ()}, "responses"),
        ({"softness": (0.0,)}, "above 0"),
        ({"softness": (0.5, 1.0)}, "below 1"),
        ({"softness": (-0.1, 0.5)}, "-0.1"),
        ({"epochs": 0}, "epoch"),
        ({"data": "nowhere.npz"}, "npz"),
    ],
)
def test_a_cifar_study_without_meaning_is_refused(change: dict[str, Any], words: str, tiny: Cifar) -> None:
    with pytest.raises(ed.EquidialError, match=words):
        cifar.run(replace(tiny, **change))
    assert not tiny.output.exists()


@pytest.fixture
def digits(tmp_path: Path) -> Mnist:
    source = str(images(tmp_path, 28, ()))
    return Mnist(source, tmp_path / "run", seeds=(0,), softness=(0.0, 0.5, 1.0), ratios=(1e-2, 1e2), epochs=1)


def test_the_mnist_study_keeps_quarter_turns_at_0_and_writes_its_page(digits: Mnist) -> None:
    records = mnist.run(replace(digits, epochs=12))
    dial = {(r["response"], r["setting"]): r for r in records if r["method"] == "dial"}
    assert list(dial) == [("nearest", 0.0), ("nearest", 0.5), ("nearest", 1.0), ("taper", 0.5)]
    strict = dial["nearest", 0.0]
    assert strict["iErr"] < 1e-10
    assert strict["Acc"] == strict["aAcc"]
    assert strict["bound"] < 1e-6 < dial["nearest", 0.5]["bound"] < dial["nearest", 1.0]["bound"]
    rpp = {r["setting"]: r for r in records if r["method"] == "rpp"}
    assert 0 < rpp[1e-2]["bound"] < rpp[1e2]["bound"]
    kernels = sum(p.numel() for p in mnist.network(mnist.SCALES["small"].widths, 1, 3).parameters() if p.ndim == 4)
    assert rpp[1e2]["parameters"] == strict["parameters"] + kernels
    page = write_study(digits.output).read_text()
    assert "**Neither is ahead.** nearest: at the iErr of RPP's settings" in page, "one seed proves nothing"
    assert page.count("| taper |") == 3
    assert "| RPP | 100 |" in page
    assert (digits.output / "mnist.png").stat().st_size > 10_000


def test_an_interrupted_mnist_study_ends_as_an_uninterrupted_one(
    digits: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(digits, softness=(0.5,), responses=("nearest",), epochs=2)
    whole = mnist.run(replace(recipe, output=recipe.output.with_name("whole")))
    fit, stopped = mnist.fit, []

    def stop(epoch: int, loss: float) -> None:
        if len(stopped) == 2:
            raise KeyboardInterrupt
        stopped.append(epoch)

    monkeypatch.setattr(mnist, "fit", lambda *arguments: fit(*arguments, on_epoch=stop))
    with pytest.raises(KeyboardInterrupt):
        mnist.run(recipe)
    monkeypatch.undo()
    assert len(study_records(recipe.output)) == 1
    assert len(list(recipe.output.glob("checkpoint-*.pt"))) == 1
    assert untimed(mnist.run(recipe)) == untimed(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "nowhere.npz"}, "npz"),
        ({"group": "C0"}, "C0"),
        ({"seeds": ()}, "seeds"),
        ({"softness": ()}, "positions"),
        ({"softness": (1.5,)}, "1.5"),
        ({"responses": ("loud",)}, "responses"),
        ({"ratios": (0.0,)}, "ratios"),
        ({"epochs": 0}, "epoch"),
    ],
)
def test_an_mnist_study_without_meaning_is_refused(change: dict[str, Any], words: str, digits: Mnist) -> None:
    with pytest.raises(ed.EquidialError, match=words):
        mnist.run(replace(digits, **change))
    assert not digits.output.exists()


def test_images_whose_side_breaks_the_symmetry_are_refused(digits: Mnist, tmp_path: Path) -> None:
    with pytest.raises(ed.EquidialError, match="multiple of 4"):
        mnist.run(replace(digits, data=str(images(tmp_path, 30, ()))))
    assert not digits.output.exists()
