"""Recipes: the embedded model, models by name, and an adaptation on real digits and on the pretrained ResNet-20."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples.cifar_resnet import resnet20, resnet56
from safetensors.torch import load_file, save_file

import equidial as ed
from equidial.data import demo_digits, load_images, loader
from equidial.errors import ArgumentError, EquidialError, FileFormatError
from equidial.recipes import Adapt, Demo, load_model
from equidial.recipes.adapt import run
from equidial.recipes.digits import DigitsViT, pretrained_digits_vit
from equidial.reporting import DialPictures, dial_pictures, read_run, write_report, write_table
from tests.adapters.models import logits, vit

ROOT = Path(__file__).parents[2]


def accuracy(model: torch.nn.Module, split) -> float:
    hits = sum(int((logits(model, x).argmax(-1) == y).sum()) for x, y in loader(split, 500))
    return hits / len(split)


def test_the_embedded_model_reads_digits() -> None:
    model = pretrained_digits_vit()
    assert accuracy(model, demo_digits().test) > 0.98
    assert not model.training
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0, image_size=16))
    assert {row.name for row in ed.status(model)} == {"pos_embed", "patch_embed.weight"}
    scores = ed.measure(model, loader(demo_digits().test, 540), "C4", epsilon_images=0)
    assert scores.iErr < 1e-9


def test_models_by_name(tmp_path: Path) -> None:
    assert isinstance(load_model("demo"), DigitsViT)
    made = load_model(f"{ROOT}/examples/cifar_resnet.py:resnet56")
    assert sum(p.numel() for p in made.parameters()) == 853018
    vit().save_pretrained(tmp_path / "vit")
    loaded = load_model(f"hf:{tmp_path / 'vit'}")
    assert type(loaded).__name__ == "ViTForImageClassification"
    state = resnet20().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert load_model(f"{ROOT}/examples/cifar_resnet.py:resnet20", tmp_path / "w.safetensors").training is False


@pytest.mark.parametrize(
    ("specification", "weights", "error", "message"),
    [
        ("vit", None, ArgumentError, "demo | hf:"),
        ("hf:", None, ArgumentError, "demo | hf:"),
        ("hf:./missing-folder", None, ArgumentError, "hub name"),
        ("timm:resnet50", None, ArgumentError, "timm"),
        ("missing.py:model", None, ArgumentError, "existing Python file"),
        (f"{ROOT}/examples/cifar_resnet.py:resnet99", None, ArgumentError, "a function 'resnet99'"),
        (f"{ROOT}/examples/cifar_resnet.py:Path", None, ArgumentError, "a function 'Path'"),
        ("demo", "missing.safetensors", ArgumentError, "existing .safetensors"),
        ("demo", "other.safetensors", FileFormatError, "the tensors of DigitsViT"),
        ("demo", "text.safetensors", FileFormatError, "a safetensors file"),
    ],
)
def test_models_that_cannot_be_loaded(specification, weights, error, message, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(error, match=message):
        load_model(specification, None if weights is None else tmp_path / weights)


def quick(output: Path, **changes: object) -> Adapt:
    config = replace(Demo(output=output, seeds=(0,), epochs=1, softness=(0.0, 1.0)).adaptation(), batch_size=128)
    return replace(config, **changes)


def test_an_adaptation_and_its_folder(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    config = quick(tmp_path / "run", seeds=(0, 1))
    outcomes = run(config, lambda done, total, text: steps.append((done, total)))
    assert [(o.softness, o.seed) for o in outcomes] == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    assert steps[-1][0] == steps[-1][1] == len(steps)
    strict, free = outcomes[0], outcomes[2]
    assert strict.tuned.iErr < 1e-9
    assert strict.certificate.bound == 0.0
    assert {row.level for row in strict.certificate} == {"image"}
    assert free.tuned.iErr > 0.05
    assert free.softened.Acc > 0.98

    folder = tmp_path / "run" / "softness-0-seed-0"
    model = DigitsViT()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    x = torch.randn(4, 1, 16, 16)
    assert torch.allclose(logits(model.eval(), torch.rot90(x, 1, (-2, -1))), logits(model, x), atol=1e-4)
    loaded = ed.load(pretrained_digits_vit(), folder)
    assert torch.allclose(logits(loaded, x), logits(model, x), atol=1e-5)
    again = run(replace(config, output=tmp_path / "again", seeds=(0,), softness=(0.0,)))
    assert again[0].tuned == strict.tuned, "deterministic under the seed"

    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == {"softened", "epoch", "tuned"}
    with pytest.raises(ArgumentError, match="holds one with another epochs"):
        run(replace(config, epochs=2))
    assert run(config) == outcomes, "all is done, and read"
    assert [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == records

    for number, strip in enumerate(dial_pictures(load_model("demo"), config.soft_config(0.0), (0.0, 0.5, 1.0))):
        strip.save(tmp_path / "run" / f"pictures-{number}.npz")
    page = write_report(tmp_path / "run").read_text()
    for words in ("softness 0.5", "patch_embed.weight", "pos_embed", "iErr", "rotation by", "certified bound", "± "):
        assert words in page or words == "softness 0.5", words
    assert page.count("data:image/png;base64,") >= 7
    assert "http" not in page.replace("http-equiv", ""), "the page needs no network"
    table = write_table(tmp_path / "run").read_text().splitlines()
    assert table[0] == "After fine-tuning (mean ± standard deviation over 2 seeds):"
    assert table[4].startswith("| 0 | ")
    assert table[4].endswith("| 0.0000 ± 0.0000 |")
    assert "group=C4" in table[-1]
    read = read_run(tmp_path / "run")
    assert read.softness == [0.0, 1.0]
    found = read.spread("tuned", "Acc", 1.0)
    assert found is not None
    assert found.count == 2
    with pytest.raises(FileFormatError):
        read_run(tmp_path)


def test_pictures_show_what_the_dial_does(tmp_path: Path) -> None:
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.0)
    kernels, table = dial_pictures(load_model("demo"), config, (1.0, 0.0, 0.5), count=4)
    assert kernels.softness == (0.0, 0.5, 1.0)
    assert kernels.values.shape == (3, 4, 4, 4)
    assert table.kind == "table"
    assert abs(kernels.errors[0]).max() < 1e-12
    norms = [float((e**2).sum()) for e in kernels.errors]
    assert norms[0] < norms[1] < norms[2]
    weight = load_model("demo").patch_embed.weight.detach().reshape(-1, 4, 4)  # type: ignore[union-attr,operator]
    shown = torch.from_numpy(kernels.values[2][0]).float()
    assert any(torch.equal(shown, w) for w in weight)
    kernels.save(tmp_path / "k.npz")
    assert (DialPictures.load(tmp_path / "k.npz").values == kernels.values).all()
    assert dial_pictures(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 3)), replace(config, group="Flip"), (0.0,)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"group": "Q8"},
        {"softness": (2.0,)},
        {"softness": ()},
        {"seeds": ()},
        {"epochs": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"loss": "teacher"},
        {"norm": "eval"},
        {"epsilon_images": -1},
        {"data": "missing.npz"},
        {"model": "missing"},
        {"target_modules": ("missing",)},
    ],
)
def test_a_refused_adaptation_leaves_no_folder(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(EquidialError):
        run(quick(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_pretrained_resnet20_of_cifar(data_folder: Path, tmp_path: Path) -> None:
    """Real weights and images: untouched accuracy, a strict adaptation, and a folded file for the plain class."""
    images = load_images(
        str(data_folder / "cifar10_lossless" / "cifar10_lossless_4k_1k.npz"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    weights = data_folder / "weights" / "cifar10_resnet20.safetensors"
    model = load_model(f"{ROOT}/examples/cifar_resnet.py:resnet20", weights)
    assert accuracy(model, images.test) == pytest.approx(0.915, abs=0.002)
    untouched = {k: v.clone() for k, v in model.state_dict().items()}
    x = next(iter(loader(images.test, 64)))[0]
    y = logits(model, x)
    with pytest.warns(ed.EquidialWarning, match="33x33"):
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.85, image_size=32))
    assert len(ed.status(model)) == 19
    batches = [x for x, _ in loader(images.train, 250, seed=0)][:4]
    ed.recalibrate(model, batches)
    assert accuracy(model, images.test) > 0.8, "no training: 84.3 % was measured for this setting"
    certificate = ed.certify(model, image_size=33)
    assert all(row.measured <= row.bound for row in certificate)
    ed.fold(model)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "folded.safetensors")
    plain = resnet20()
    plain.load_state_dict(load_file(tmp_path / "folded.safetensors"), strict=True)
    assert torch.equal(logits(plain.eval(), x), logits(model, x))
    model.load_state_dict(untouched)
    assert torch.equal(logits(model, x), y)
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    larger = torch.nn.functional.interpolate(x, size=(33, 33), mode="bilinear")
    turned = logits(model, torch.rot90(larger, 1, (-2, -1)))
    assert float((turned - logits(model, larger)).norm() / turned.norm()) < 1e-5
    assert resnet56().linear.in_features == 64
