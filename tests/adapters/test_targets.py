"""Which tensors the rules find, on which grids, and how patterns choose among them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.adapters._matching import matches, pattern_for, unmatched
from equidial.adapters.targets import resolve_targets
from tests.adapters.models import SPACES, VectorMlp, cnn, resnet, vit


def found(model: nn.Module, group: str = "C4", **more: object) -> dict[str, str]:
    config = ed.SoftEquivarianceConfig(group=group, softness=0.5, **more)  # type: ignore[arg-type]
    return {t.name: t.constraint.rep_in.name for t in resolve_targets(model, config)}


class Tables(nn.Module):
    """Position tables in the forms that vision models have them, and one of a text tower."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 8))
        self.vision = nn.Module()
        self.vision.position_embedding = nn.Embedding(26, 8)
        self.attention = nn.Module()
        self.attention.relative_position_bias_table = nn.Parameter(torch.randn(49, 2))
        self.text = nn.Module()
        self.text.position_embedding = nn.Embedding(77, 8)
        self.other = nn.Parameter(torch.randn(1, 16, 8))


def test_default_rules() -> None:
    assert found(cnn()) == {"first.weight": "Pixels(3,3)", "depthwise.weight": "Pixels(5,5)"}
    assert found(vit(image=32, patch=8)) == {
        "vit.embeddings.position_embeddings": "Pixels(4,4)",
        "vit.embeddings.patch_embeddings.projection.weight": "Pixels(8,8)",
    }
    names = found(resnet())
    assert names["resnet.embedder.embedder.convolution.weight"] == "Pixels(7,7)"
    assert sum(space == "Pixels(3,3)" for space in names.values()) == 5
    assert found(Tables()) == {
        "stem.weight": "Pixels(4,4)",
        "pos_embed": "Pixels(4,4)",
        "vision.position_embedding.weight": "Pixels(5,5)",
        "attention.relative_position_bias_table": "Pixels(7,7)",
    }
    assert found(nn.Sequential(nn.Conv1d(2, 2, 5), nn.Conv1d(2, 2, 1)), "Flip") == {"0.weight": "Pixels(5)"}
    assert found(nn.Sequential(nn.ConvTranspose2d(2, 2, 3)))["0.weight"] == "Pixels(3,3)"
    assert found(nn.Sequential(nn.Conv2d(1, 1, (3, 5))), "Flip") == {"0.weight": "Pixels(3,5)"}


def test_rectangular_grids_come_from_the_configuration() -> None:
    model = vit(image=(32, 48), patch=8)
    assert found(model, "C2")["vit.embeddings.position_embeddings"] == "Pixels(4,6)"
    assert "vit.embeddings.position_embeddings" not in found(model, exclude_modules=["position_embeddings"])


def test_a_configured_grid_needs_no_convolution() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(image_size=(8, 12), patch_size=2)
            self.embed = nn.Linear(12, 8)
            self.pos_embed = nn.Parameter(torch.randn(1, 25, 8))

    assert found(Patches(), "C2") == {"pos_embed": "Pixels(4,6)"}


def test_a_text_model_has_no_grid() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position_embeddings = nn.Embedding(64, 8)
            self.mix = nn.Linear(8, 8)

    with pytest.raises(ed.errors.NoMatchingTargetError):
        found(Words())


def test_a_module_in_two_places_is_one_target() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(found(model)) == ["0.weight"]
    x, before = torch.randn(1, 3, 8, 8), list(model.state_dict())
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    turned = torch.rot90(x, 1, (-2, -1))
    assert torch.allclose(model(turned), torch.rot90(model(x), 1, (-2, -1)), atol=1e-5)
    ed.fold(model)
    assert list(model.state_dict()) == before
    assert model[0] is model[2]


def test_patterns_choose() -> None:
    assert set(found(cnn(), target_modules=["depthwise"])) == {"depthwise.weight"}
    assert set(found(cnn(), target_modules=r"f.*|depth.*")) == {"first.weight", "depthwise.weight"}
    assert set(found(cnn(), exclude_modules=["first"])) == {"depthwise.weight"}
    model = vit()
    assert set(found(model, target_modules=["position_embeddings"])) == {"vit.embeddings.position_embeddings"}
    assert set(found(model, target_modules=["projection"])) == {"vit.embeddings.patch_embeddings.projection.weight"}
    both = found(VectorMlp(), "SO2", representations=SPACES)
    assert both == {
        "inner.weight": "4*Vector + 3*Trivial",
        "inner.bias": "8*Vector + 5*Trivial",
        "outer.weight": "8*Vector + 5*Trivial",
        "outer.bias": "3*Vector",
    }


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (["conv1"], "conv1", True),
        (["conv1"], "layer.conv1", True),
        (["conv1"], "layer.xconv1", False),
        (["layer.conv1"], "block.layer.conv1", True),
        ("conv1", "layer.conv1", False),
        (r".*conv\d", "layer.conv1", True),
        ([], "x", False),
    ],
)
def test_matching_follows_peft(patterns, name: str, expected: bool) -> None:
    assert matches(patterns, name) == expected


def test_patterns_of_name_ends() -> None:
    assert pattern_for({"conv1": 1, "conv.*": 2}, "layer.conv2") == "conv.*"
    assert pattern_for({"conv1": 1}, "layer.xconv1") is None
    assert unmatched(["a", "b"], ["x.a"]) == ["b"]
    assert unmatched("a.*", ["b"]) == ["a.*"]


def test_tables_with_rows_after_and_the_grid_axis_first() -> None:
    """An Embedding [extra + h*w, D]: the grid axis is the first, extra rows stay."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 4, 2, stride=2)
            self.position_embedding = nn.Embedding(10, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.patch(x).flatten(2).mT + self.position_embedding(torch.arange(1, 10))

    model = Tower()
    before = model.position_embedding.weight.detach().clone()
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    after = model.position_embedding.weight
    assert torch.equal(after[0], before[0])
    grid = after[1:].reshape(3, 3, 4)
    assert torch.allclose(grid.rot90(1, (0, 1)), grid, atol=1e-6)
    x = torch.randn(1, 1, 6, 6)
    tokens = model(x).reshape(1, 3, 3, 4)
    turned = model(torch.rot90(x, 1, (-2, -1))).reshape(1, 3, 3, 4)
    assert torch.allclose(turned, torch.rot90(tokens, 1, (1, 2)), atol=1e-6)
