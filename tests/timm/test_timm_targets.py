"""The table of timm: every parameter of the listed networks has a row of its own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import equidial as ed
from equidial.adapters.targets import ARCHITECTURES, resolve_targets

timm = pytest.importorskip("timm")

NETWORKS = {
    "vit_tiny_patch16_224": "vit",
    "deit_tiny_patch16_224": "vit",
    "deit_tiny_distilled_patch16_224": "deit",
    "resnet18": "resnet",
    "resnet50d": "resnet",
    "seresnet50": "resnet",
    "convnext_atto": "convnext",
    "convnext_tiny": "convnext",
    "swin_tiny_patch4_window7_224": "swin",
    "mobilenetv2_100": "efficientnet",
    "mobilenetv3_small_100": "mobilenet",
    "efficientnet_b0": "efficientnet",
}


def create(name: str, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, pretrained=False, **more).eval()


def scrambled(model: Any) -> Any:
    """Random values in every parameter that is born constant."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "pos_embed" in name or "token" in name or "bias_table" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_every_row_is_tested() -> None:
    assert set(NETWORKS.values()) == {row.name for row in ARCHITECTURES if row.library == "timm"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_a_listed_architecture_has_a_row_of_its_own(name: str) -> None:
    model = create(name)
    table = ed.describe_targets(model, "C4")
    label = f"timm {NETWORKS[name]}"
    assert table.headline == f"architecture: {label}"
    assert [row.name for row in table if row.role != "abstain"] == [n for n, _ in model.named_parameters()]
    assert {row.rule for row in table} == {label}
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.5)
    assert {row.name for row in table if row.representation} == {t.name for t in resolve_targets(model, config)}
    for row in table:
        # a kernel that nothing constrains is 1x1: no window was passed over
        assert row.representation or len(row.shape) != 4 or max(row.shape[2:]) == 1


@pytest.mark.parametrize("group", ["C4", "Flip"])
@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, 64),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, 64),
        ("convnext_atto", {"depths": (1, 1, 2, 1)}, 64),
        ("resnet18", {}, 65),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (3, 6)},
            64,
        ),
    ],
)
def test_softness_0_is_exact(name: str, settings: dict, size: int, group: str) -> None:
    model = scrambled(create(name, num_classes=10, **settings)).double()
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    turned = x.flip(-1) if group == "Flip" else x.rot90(1, (-2, -1))

    def error() -> float:
        with torch.no_grad():
            y = model(x)
            return float((model(turned) - y).norm() / y.norm())

    assert error() > 1e-6
    ed.soften(model, ed.SoftEquivarianceConfig(group=group, softness=0.0, image_size=size))
    assert error() < 1e-10
