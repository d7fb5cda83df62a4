"""Models as timm builds them, weights drawn at random: soften, unload, fold, and the loader of the command line."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equidial as ed
from equidial.cli import main
from equidial.errors import ArgumentError, FileFormatError
from equidial.recipes import load_model

timm: Any = import_module("timm")  # a type checker takes ``import timm`` for the folder of this file

# options that make the model small, an input size whose strided windows fit quarter turns, softened tensors
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 2}, 64, 2),
    "deit_tiny_patch16_224": ({"img_size": 64, "depth": 2}, 64, 2),
    "resnet18": ({}, 65, 17),
    "convnext_atto": ({"depths": (1, 1, 2, 1)}, 64, 9),
    # one block a stage: no shifted windows; one stage: no merging of patches, which is a linear layer on four places
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "depths": (1,), "num_heads": (3,)}, 56, 2),
    "mobilenetv2_100": ({}, 65, 18),
    "mobilenetv3_small_100": ({}, 65, 12),
    "efficientnet_b0": ({}, 65, 17),
}


def build(name: str, **changes: Any) -> Any:
    """The model with ten classes, double precision, evaluation mode; no parameter zero or small as timm starts them."""
    model = timm.create_model(name, pretrained=False, num_classes=10, **{**MODELS[name][0], **changes})
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            elif "pos_embed" in key or "bias_table" in key:
                tensor.normal_()
    return model.double().eval()


def relative_error(model: nn.Module, size: int) -> float:
    """How far a quarter turn moves the logits, relative to how far they vary between two images."""
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        here, there = model(x), model(x.rot90(1, (-2, -1)))
    return float((there - here).norm() / (here - here.mean(0)).norm())


@pytest.mark.parametrize("name", MODELS)
def test_soften_unload_fold(name: str) -> None:
    """Softness 0 under C4 gives equal logits for turned images; unloading is exact; folding leaves a plain model."""
    _, size, tensors = MODELS[name]
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert relative_error(model, size) > 1e-2
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.0, image_size=size)
    ed.soften(model, config)
    assert len(ed.status(model)) == tensors
    assert max(row.defect for row in ed.status(model)) < 1e-6
    assert relative_error(model, size) < 1e-8
    ed.unload(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    parameters = dict(model.named_parameters())
    ed.soften(model, config)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        softened = model(x)
    ed.fold(model)
    assert type(model) is type(build(name))
    assert list(model.state_dict()) == list(before)
    assert all(value is parameters[key] for key, value in model.named_parameters())
    with torch.no_grad():
        assert torch.allclose(model(x), softened, rtol=1e-9, atol=1e-9)
    assert relative_error(model, size) < 1e-8


def test_shifted_windows_stay_asymmetric() -> None:
    """The second block of a stage shifts its windows one way by half their side, which no table can undo."""
    model = build("swin_tiny_patch4_window7_224", depths=(2,))
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    assert relative_error(model, 56) > 1e-3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: nn.Module = timm.create_model("resnet18", pretrained=False)
    file = tmp_path_factory.mktemp("timm") / "resnet18.safetensors"
    save_file({key: value + 0.01 for key, value in model.state_dict().items() if value.is_floating_point()}, file)
    return file


def test_the_loader_of_the_command_line(weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = load_model("timm:resnet18", weights)
    assert not model.training
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    arguments = ["certify", "--model", "timm:resnet18", "--weights", str(weights), "--group", "C4"]
    assert main([*arguments, "--output", str(tmp_path / "c.json")]) == 0
    assert "layer4.1.conv2.weight" in capsys.readouterr().out
    assert len(ed.Certificate.load(tmp_path / "c.json")) == 17


@pytest.mark.parametrize(
    ("specification", "error", "message"),
    [
        ("timm:resnet18x", ArgumentError, "a model name of timm"),
        ("timm:resnet*", ArgumentError, "a model name of timm"),
        ("timm:", ArgumentError, "demo | hf:"),
        ("timm:resnet34", FileFormatError, "the tensors of ResNet"),
    ],
)
def test_wrong_names_are_refused(specification: str, error: type[Exception], message: str, weights: Path) -> None:
    with pytest.raises(error, match=message):
        load_model(specification, weights)


def test_torchvision_is_whole_enough_in_subprocesses_too() -> None:
    """Importing works and leaves torch alone until then; compiled operators are named, not implemented."""
    probe = (
        "import sys; assert 'torch' not in sys.modules;"
        "import torchvision, torch; from torchvision.transforms.functional import resize;"
        "print(list(resize(torch.zeros(3, 8, 8), [4, 4], antialias=True).shape), hasattr(torch.ops.torchvision, 'nms'))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[3, 4, 4] True"
