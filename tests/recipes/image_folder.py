"""A tiny folder of images in ImageNet's layout, and a tiny network that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.adapters.models import vit

CLASSES = ("n01", "n02", "n03")


def image_folder(folder: Path, train: int = 8, test: int = 3) -> Path:
    """``train/<class>/*.png`` and ``val/<class>/*.png``, of unequal sides."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for place in range(count):
                pixels = rng.integers(0, 90, (40, 48, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{place}.png")
    return folder


def tiny_vit(folder: Path) -> str:
    """The name of a vision transformer with random weights, for images of 32 pixels."""
    vit().save_pretrained(folder)
    return f"hf:{folder}"
