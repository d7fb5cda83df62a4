"""Pretrained MobileNetV2 and DeepLabV3: TensorFlow's padding, strides and kernels are found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import equidial as ed
from equidial.recipes import load_model

EXAMPLES = Path(__file__).parents[3] / "examples"
STRIDED = {"features.0.0", "features.2.conv.1.0", "features.4.conv.1.0", "features.7.conv.1.0"}


def pretrained(function: str, weights: str, data_folder: Path) -> torch.nn.Module:
    return load_model(f"{EXAMPLES}/{function}", data_folder / "weights" / f"{weights}.safetensors")


def test_mobilenet_as_trained(data_folder: Path) -> None:
    model = pretrained("imagenet_mobilenet.py:mobilenet_v2", "imagenet_mobilenet_v2", data_folder)
    x = torch.randn(1, 3, 224, 224)
    found = ed.diagnose(model, x)
    assert {c.cause for c in found} == {"asymmetric padding", "kernel"}
    assert {c.module for c in found.of("asymmetric padding")} == {*STRIDED, "features.14.conv.1.0"}
    assert all("after - before = 1" in c.arithmetic for c in found.of("asymmetric padding"))
    assert len(found.of("kernel")) == sum(
        isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()
    )
    assert 223 in found.sizes
    # soften what it says, at the size it says: exact
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.0, target_modules=found.targets, image_size=223)
    ed.fold(ed.soften(model, config))
    left = ed.diagnose(model, x[..., :223, :223])
    assert not left.causes
    assert left.error < 1e-5
    with torch.no_grad():
        x = x[..., :223, :223]
        assert torch.allclose(model(x), model(x.rot90(1, (2, 3))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "causes"), [(257, {"kernel"}), (256, {"kernel", "stride"})])
def test_deeplab_and_its_dense_output(size: int, causes: set[str], data_folder: Path) -> None:
    model = pretrained("voc_deeplabv3.py:deeplabv3_mobilenet_v2", "voc_deeplabv3_mobilenet_v2", data_folder)
    found = ed.diagnose(model, torch.randn(1, 3, size, size))
    assert {c.cause for c in found} == causes
    assert {c.module for c in found.of("stride")} == (STRIDED if size == 256 else set())
    assert found.outputs[0].kind == "grid"
    assert size == 257 or 257 in found.sizes
    ed.fold(ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0)))
    left = ed.diagnose(model, torch.randn(1, 3, size, size))
    assert {c.cause for c in left} == causes - {"kernel"}
    assert (left.error < 1e-5) == (size == 257)
