"""ImageNet's schedule: rates by depth, averages, batches whatever the workers, and the study on tiny images."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equidial as ed
from equidial.recipes import ImageNet, Training, fit, imagenet, load_model, study_records
from equidial.recipes._images import CropFlip, ImageFiles, seeded
from equidial.recipes._schedule import average_weights, clip_gradients, depths, layered_adamw, use_averages
from equidial.reporting import write_study
from tests.recipes.image_folder import image_folder, tiny_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def tiny(folder: Path, model: str, tmp_path: Path) -> ImageNet:
    return ImageNet(
        data=str(folder),
        output=tmp_path / "run",
        model=model,
        scale="small",
        softness=(0.5,),
        seeds=(0,),
        image_size=32,
        epochs=2,
    )


def test_depths_follow_the_blocks_of_a_softened_transformer(model: str) -> None:
    network = load_model(model, classes=3)
    ed.soften(network, ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    found, top = depths(network)
    assert top == 3
    for name, depth in found.items():
        inside = [i for i in range(2) if f".layer.{i}." in name or f".layers.{i}." in name]
        assert depth == (inside[0] + 1 if inside else 0 if "embeddings" in name else 3), name
    assert depths(nn.Linear(2, 2)) == ({"weight": 0, "bias": 0}, 0)


def test_rates_fall_by_layer_and_biases_do_not_decay(model: str) -> None:
    network = load_model(model)
    optimizer = layered_adamw(network, 1e-2, 0.05, 0.5)
    depth, top = depths(network)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, p in network.named_parameters():
        assert rates[id(p)] == (pytest.approx(1e-2 * 0.5 ** (top - depth[name])), 0.05 if p.ndim > 1 else 0.0)


def test_averages_are_the_exponential_ones() -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    average_weights(optimizer, 0.2)
    average = 0.0
    for t in range(1, 6):
        p.grad = torch.tensor([1.0])
        optimizer.step()
        share = min(0.2, (1 + t) / (10 + t)) if t > 1 else 0.0
        average = share * average + (1 - share) * p.detach().item()
    last = p.detach().item()
    use_averages(optimizer)
    assert p.detach().item() == pytest.approx(average, rel=1e-6)
    assert p.detach().item() > last + 0.01


@pytest.mark.parametrize(("gradient", "step"), [(8.0, 1.0), (0.25, 0.25)])
def test_long_gradients_are_shortened(gradient: float, step: float) -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([p], lr=1.0)
    clip_gradients(optimizer, 1.0)
    p.grad = torch.tensor([gradient])
    optimizer.step()
    assert p.detach().item() == pytest.approx(3.0 - step, abs=1e-5)


def test_batches_are_the_same_with_workers_and_leave_other_draws_alone(folder: Path) -> None:
    items = [(path, 0) for path in sorted((folder / "train" / "n01").glob("*.png"))]
    rows = (torch.tensor([3, 1]), torch.tensor([0]))
    found = []
    for workers in (0, 1):
        files = ImageFiles(items, CropFlip(16, (0.5,) * 3, (0.5,) * 3), seed=5)
        torch.manual_seed(7)
        random.seed(7)
        found.append([x for epoch in (0, 1) for x, _ in files.feed(workers)(rows, epoch)])
        assert (float(torch.rand(())), random.random()) == (AFTER_7, random.Random(7).random())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][2])  # another epoch, another crop


AFTER_7 = float(torch.rand((), generator=torch.Generator().manual_seed(7)))


def test_a_crop_keeps_what_is_constant_and_mirrors_half() -> None:
    from PIL import Image

    move = CropFlip(8, (0.5,), (0.25,))
    flat = move(Image.new("RGB", (20, 12), (51, 51, 51)))
    assert torch.allclose(flat, torch.full((3, 8, 8), (0.2 - 0.5) / 0.25), atol=1e-6)
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    rising = 0
    for k in range(200):
        with seeded(k):
            x = move(ramp)
        rising += bool(x[0, 4, -1] > x[0, 4, 0])
    assert 70 < rising < 130


def test_a_step_in_parts_is_the_step_of_the_whole(tiny: ImageNet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for part in (32, 5):
        monkeypatch.setitem(imagenet.SCALES, "small", replace(imagenet.SCALES["small"], part=part))
        (record,) = imagenet.run(replace(tiny, output=tiny.output / str(part), methods=("untouched",)))
        found.append(record)
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4)
    assert found[0]["iErr"] == pytest.approx(found[1]["iErr"], rel=1e-2)


def test_the_imagenet_study_resumes_and_writes_its_page(tiny: ImageNet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imagenet.run(replace(tiny, output=tiny.output.with_name("whole")))
    assert [r["epochs"] for r in whole] == [0, 2, 2]
    released, untouched, soft = whole
    assert soft["bound"] < released["bound"]
    assert released["bound"] != untouched["bound"]
    train = imagenet.fit

    def stop(epoch: int, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet, "fit", lambda *a, **k: train(*a, **k, on_epoch=stop))
    with pytest.raises(KeyboardInterrupt):
        imagenet.run(tiny)
    monkeypatch.undo()
    assert len(list(tiny.output.glob("checkpoint-*.pt"))) == 1
    again = imagenet.run(tiny)
    assert [{k: v for k, v in r.items() if "seconds" not in k} for r in again] == [
        {k: v for k, v in r.items() if "seconds" not in k} for r in whole
    ]
    assert len(study_records(tiny.output)) == 3
    page = write_study(tiny.output).read_text()
    assert page.index("**Softness") < page.index("| released | 1 |")
    assert "| ViT | soft | 82.28" in page


def test_batch_norm_that_was_folded_in_is_restored(tiny: ImageNet, tmp_path: Path) -> None:
    file, weights = tmp_path / "small.py", tmp_path / "small.safetensors"
    file.write_text(
        "from torch import nn\n\n\ndef small():\n"
        "    convolution = nn.Conv2d(3, 6, 3, padding=1)\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU(), pool, nn.Flatten(), nn.Linear(6, 3))\n"
    )
    torch.manual_seed(0)
    network = load_model(f"{file}:small")
    save_file(
        {name: 3 * tensor if "weight" in name else tensor for name, tensor in network.state_dict().items()}, weights
    )
    still = replace(tiny, methods=("released", "untouched"), learning_rate=1e-12, epochs=1)
    study = replace(still, model=f"{file}:small", weights=weights, table_softness=None)
    for norm, kept in (("restored", True), ("as-is", False)):
        released, after = imagenet.run(replace(study, norm=norm, output=tmp_path / norm))
        assert (after["iErr"] == pytest.approx(released["iErr"], rel=1e-3)) == kept


def test_bf16_is_used_and_weights_stay_float(tiny: ImageNet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    settings = replace(imagenet.SCALES["small"], bf16=True)
    monkeypatch.setitem(imagenet.SCALES, "small", settings)
    load = imagenet.load_model

    def watched(*arguments: Any, **options: Any) -> nn.Module:
        network = load(*arguments, **options)
        network.get_submodule("classifier").register_forward_hook(
            lambda module, inputs, output: seen.append(output.dtype) if module.training else None
        )
        return network

    monkeypatch.setattr(imagenet, "load_model", watched)
    (record,) = imagenet.run(replace(tiny, methods=("soft",), epochs=1))
    assert set(seen) == {torch.bfloat16}
    assert 0 <= record["bound"] < 1.5


def test_validation_images_are_held_out(tiny: ImageNet) -> None:
    data = imagenet.load(tiny)
    files = [path for path, _ in data.images.train.dataset.items]  # pyright: ignore[reportAttributeAccessIssue]
    held = {files[i] for i in data.validation}
    assert len(held) == 4
    assert held.isdisjoint(path for path, _ in data.items)
    assert len(data.items) == 20


def test_a_loader_in_place_of_rows_gives_the_same_training() -> None:
    x, y, plan = torch.randn(10, 3), torch.randint(2, (10,)), Training(epochs=2, batch_size=4)

    def network() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    def trained(feed: Any, read: Any) -> torch.Tensor:
        model = network()
        fit(
            model,
            10,
            lambda batch, _: nn.functional.cross_entropy(model(read(batch)[0]), read(batch)[1]),
            plan,
            1,
            feed=feed,
        )
        return model.weight.detach()

    by_rows = trained(None, lambda rows: (x[rows], y[rows]))
    fed = trained(lambda batches, epoch: ((x[rows], y[rows]) for rows in batches), lambda batch: batch)
    assert torch.equal(by_rows, fed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "nowhere"}, "train/"),
        ({"model": "resnet"}, "hf:"),
        ({"group": "C0"}, "C0"),
        ({"softness": (2.0,)}, "2.0"),
        ({"norm": "folded"}, "batch norm"),
        ({"weights": Path("nowhere.safetensors")}, "nowhere"),
        ({"model": "nowhere.py:network"}, "nowhere.py"),
        ({"table_softness": -1.0}, "-1"),
        ({"methods": ("hope",)}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"epochs": 0}, "epoch"),
        ({"learning_rate": 0.0}, "rate"),
        ({"workers": -1}, "workers"),
        ({"augmentation": "blur"}, "moves"),
        ({"image_size": 48}, "48"),
    ],
)
def test_an_imagenet_study_without_meaning_is_refused(change: dict[str, Any], words: str, tiny: ImageNet) -> None:
    with pytest.raises(ed.EquidialError, match=words):
        imagenet.run(replace(tiny, **change))
    assert not tiny.output.exists()


def test_the_papers_augmentation_needs_timm(tiny: ImageNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm.data", None)
    with pytest.raises(ed.EquidialError, match="equidial\\[timm\\]"):
        imagenet.run(replace(tiny, augmentation="timm"))
    assert not tiny.output.exists()
