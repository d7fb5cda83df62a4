"""The example networks: names of their tensors, symmetry at the sizes they tell, pretrained weights."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.imagenet_mobilenet import EndPaddedConv2d, mobilenet_v2, mobilenet_v2_symmetric
from examples.imagenet_sample import unpack
from examples.voc_deeplabv3 import deeplabv3_mobilenet_v2
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.recipes import load_model

ROOT = Path(__file__).parents[2]
MOBILENET = f"{ROOT}/examples/imagenet_mobilenet.py:mobilenet_v2"
DEEPLAB = f"{ROOT}/examples/voc_deeplabv3.py:deeplabv3_mobilenet_v2"


def lively(model: nn.Module) -> nn.Module:
    """Random weights that leave outputs of some size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
    return model.eval()


def test_names_and_sizes() -> None:
    model = mobilenet_v2()
    assert sum(p.numel() for p in model.parameters()) == 3504872
    names = set(model.state_dict())
    assert {
        "features.0.0.weight",
        "features.1.conv.1.weight",
        "features.2.conv.1.0.weight",
        "classifier.1.bias",
    } <= names
    assert set(mobilenet_v2_symmetric().state_dict()) == names
    segmenter = deeplabv3_mobilenet_v2()
    assert {n for n in names if n.startswith("features.") and not n.startswith("features.18")} <= set(
        segmenter.state_dict()
    )
    assert segmenter.features(torch.zeros(1, 3, 65, 65)).shape == (1, 320, 5, 5)


@pytest.mark.parametrize("size", [8, 9])
def test_the_end_is_padded_where_it_is_read(size: int) -> None:
    conv, x = EndPaddedConv2d(2, 3, 3, stride=2), torch.randn(1, 2, size, size)
    expected = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    assert torch.allclose(conv(x), expected, atol=1e-6)
    assert conv(x).shape[-1] == size // 2


@pytest.mark.parametrize(("build", "size"), [(mobilenet_v2, 63), (mobilenet_v2_symmetric, 65)])
def test_exact_invariance_at_the_sizes_that_fit(build, size: int) -> None:
    model = lively(build())
    with pytest.warns(ed.EquidialWarning, match=f"symmetric at {size}x{size}"):
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0, image_size=64))
    assert len(ed.status(model)) == 18
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        y = model(x)
        assert float((model(x.rot90(1, (-2, -1))) - y).norm() / y.norm()) < 1e-4
    certificate = ed.certify(model, image_size=size)
    assert {row.level for row in certificate} == {"image"}


def test_exact_equivariance_of_the_segmenter() -> None:
    model = lively(deeplabv3_mobilenet_v2())
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0, image_size=65))
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        y = model(x)
        assert float((model(x.rot90(1, (-2, -1))) - y.rot90(1, (-2, -1))).norm() / y.norm()) < 1e-4


def test_half_precision_files_load_into_float_models(tmp_path: Path) -> None:
    state = lively(deeplabv3_mobilenet_v2()).state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file({k: v for k, v in half.items() if "num_batches" not in k}, tmp_path / "half.safetensors")
    model = load_model(DEEPLAB, tmp_path / "half.safetensors")
    found = model.state_dict()
    assert {v.dtype for v in found.values() if v.is_floating_point()} == {torch.float32}
    assert all(torch.equal(found[k], v.to(found[k].dtype)) for k, v in half.items())


def sample(data_folder: Path, indices: range | tuple[int, ...], size: int) -> torch.Tensor:
    """Centre crops of the ImageNet sample."""
    folder = data_folder / "imagenet_sample_1k"
    with (folder / "labels.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    out = []
    with zipfile.ZipFile(folder / "imagenet_sample_1k_256.zip") as archive:
        for index in indices:
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(names[index]))).convert("RGB"))
            top, left = ((n - size) // 2 for n in pixels.shape[:2])
            out.append(torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1))
    return torch.stack(out).float() / 127.5 - 1


def test_pretrained_weights(data_folder: Path) -> None:
    weights = data_folder / "weights"
    model = load_model(MOBILENET, weights / "imagenet_mobilenet_v2.safetensors")
    with torch.no_grad():
        hits = (model(sample(data_folder, range(0, 1000, 25), 224)).argmax(1) == torch.arange(0, 1000, 25)).sum()
        assert int(hits) >= 32, "86.9 % of the whole sample"
        segmenter = load_model(DEEPLAB, weights / "voc_deeplabv3_mobilenet_v2.safetensors")
        for index, kind in ((817, 7), (281, 8), (779, 6)):  # sports car, tabby, school bus
            crop = functional.interpolate(sample(data_folder, (index,), 256), size=(513, 513), mode="bilinear")
            found = segmenter(crop).argmax(1)
            assert int(found[found > 0].mode().values) == kind


def test_a_sample_becomes_class_folders(tmp_path: Path) -> None:
    archive = tmp_path / "sample.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for i in range(6):
            packed.writestr(f"{i:04d}_n{i}.jpg", bytes([i]))
        packed.writestr("labels.csv", "no image")
    assert unpack(archive, tmp_path / "folder") == {"train": 3, "val": 3}
    found = sorted((tmp_path / "folder").glob("*/*/*"))
    assert sorted(file.read_bytes()[0] for file in found) == list(range(6))
    assert all(file.parent.name == f"n{file.read_bytes()[0]}" for file in found)
    for part in ("train", "val"):
        assert sorted(p.name for p in (tmp_path / "folder" / part).iterdir()) == [f"n{i}" for i in range(6)]
    with pytest.raises(FileExistsError):
        unpack(archive, tmp_path / "folder")
