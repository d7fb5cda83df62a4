"""Tiny segmentation data as their authors pack them, a network to start from, records without their times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from equidial.recipes import DeepLabV3

FEW = pytest.mark.filterwarnings("ignore:(?s)expected .* images of:equidial.EquidialWarning")
SIZE = 33


def weights(folder: Path) -> Path:
    """A lively network for 21 classes."""
    torch.manual_seed(0)
    model = DeepLabV3()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
    state = {k: v.half() for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file(state, folder / "voc.safetensors")
    return folder / "voc.safetensors"


def scene(folder: Path, masks: Path, name: str, seed: int, ending: str) -> None:
    """Two classes that differ in brightness, and a row of no class."""
    labels = np.random.default_rng(seed).integers(0, 2, (2, 3)).repeat(12, 0).repeat(10, 1)
    pixels = (60 + 130 * labels[..., None] + np.zeros(3)).astype(np.uint8)
    labels[0] = 11 if ending == "png" else 255
    for path, values in ((folder / f"{name}.{ending}", pixels), (masks / f"{name}.png", labels.astype(np.uint8))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)


def camvid(root: Path) -> Path:
    for part, count in (("train", 4), ("val", 1), ("test", 2)):
        for i in range(count):
            scene(root / part, root / f"{part}annot", f"{part}_{i}", i, "png")
    return root


def voc(root: Path) -> Path:
    top = root / "VOC2012"
    (top / "ImageSets/Segmentation").mkdir(parents=True)
    for part, count in (("train", 3), ("val", 1)):
        names = [f"2007_{part}_{i}" for i in range(count)]
        (top / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            scene(top / "JPEGImages", top / "SegmentationClass", name, i, "jpg")
    return root
