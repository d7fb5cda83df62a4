"""The paper's augmentation, by timm: soft labels, and the study with it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from equidial.recipes import ImageNet, imagenet
from equidial.recipes._images import seeded, timm_moves
from tests.recipes.image_folder import image_folder, tiny_vit


def test_batches_are_mixed_with_their_labels() -> None:
    transform, finish = timm_moves(16, (0.5,) * 3, (0.5,) * 3, classes=3, smoothing=0.1)
    assert transform(Image.new("RGB", (20, 12))).shape == (3, 16, 16)
    for count in (4, 5):
        with seeded(count):
            x, y = finish(torch.randn(count, 3, 16, 16), torch.arange(count) % 3)
        assert x.shape == (count, 3, 16, 16)
        assert torch.allclose(y.sum(1), torch.ones(count))
        assert float(y.min()) >= 0.1 / 3 - 1e-6


def test_the_study_runs_by_the_papers_augmentation_and_repeats(tmp_path: Path) -> None:
    recipe = ImageNet(
        data=str(image_folder(tmp_path / "images")),
        output=tmp_path / "run",
        model=tiny_vit(tmp_path / "vit"),
        scale="small",
        augmentation="timm",
        methods=("soft",),
        softness=(0.5,),
        seeds=(0,),
        image_size=32,
        epochs=1,
    )
    (one,) = imagenet.run(recipe)
    (other,) = imagenet.run(ImageNet(**{**vars(recipe), "output": tmp_path / "again"}))
    assert one["loss"] == other["loss"]
    assert one["iErr"] == other["iErr"]
