"""diagnose on networks as people have them: outputs of every kind, other groups, vectors, softened and wrong ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel, SegformerConfig, SegformerForSemanticSegmentation

import equidial as ed
from equidial.adapters.diagnosis._catalogue import CATALOGUE
from tests.adapters.diagnosis.networks import SIZE, Plain, symmetric
from tests.adapters.models import SPACES, VectorMlp, cnn, resnet, vit


def image(size: int = SIZE, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size)


def test_a_vit_as_it_comes_and_softened() -> None:
    model = vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    found = ed.diagnose(model, image(32))
    assert {c.cause for c in found} == {"kernel", "position table"}
    assert set(found.targets) == {
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection",
    }
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0, target_modules=found.targets))
    assert not ed.diagnose(model, image(32)).causes
    with ed.disabled(model):
        assert len(ed.diagnose(model, image(32))) == 2


def test_a_table_that_was_excluded_is_named_and_can_be_added() -> None:
    model = vit()
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.0, exclude_modules=["position_embeddings"])
    (cause,) = ed.diagnose(ed.soften(model, config), image(32))
    assert (cause.cause, cause.parameter) == ("position table", "vit.embeddings.position_embeddings")
    assert "it was left out" in cause.remedy


def test_flattening_is_mended_as_the_remedy_says() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 5 * 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.first(x)).flatten(1))

    model = symmetric(Flat(), "C4")
    (cause,) = ed.diagnose(model, image(5))
    spaces = {"head": ("4*Pixels(5,5)", "3*Trivial")}
    assert f"representations={spaces}" in cause.remedy
    with pytest.warns(ed.EquidialWarning, match="symmetric as found"):
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0, representations=spaces))
    assert not ed.diagnose(model, image(5), config=ed.SoftEquivarianceConfig(group="C4", softness=0.0)).causes


@dataclass
class Answer:
    """An output class that torch knows nothing of."""

    logits: torch.Tensor


class Returns(nn.Module):
    """Whatever a function makes of a feature map."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3, padding=1), make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.conv(x))


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda y: y, {"output": "grid"}),
        (lambda y: y.mean((2, 3)), {"output": "invariant"}),
        (lambda y: y.flatten(2).mT, {"output": "tokens"}),
        (lambda y: {"out": y, "pooled": y.mean((2, 3))}, {"out": "grid", "pooled": "invariant"}),
        (lambda y: (y, y.amax((2, 3))), {"0": "grid", "1": "invariant"}),
        (lambda y: y.permute(0, 2, 3, 1), {"output": "grid"}),
    ],
)
def test_outputs_are_measured_as_what_they_are(make: Any, kinds: dict[str, str]) -> None:
    found = ed.diagnose(symmetric(Returns(make)), image())
    assert {output.name: output.kind for output in found.outputs} == kinds
    assert found.error < 1e-6


def test_dense_outputs_of_a_segmentation_network() -> None:
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 16], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    found = ed.diagnose(symmetric(SegformerForSemanticSegmentation(config)), image(64))
    assert found.outputs[0].kind == "grid"
    assert {c.cause for c in found} == {"stride"}
    assert found.sizes == ()
    assert "no input size is symmetric" in found.causes[0].remedy


def test_rotary_embeddings_abstain_by_name() -> None:
    config = DINOv3ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    found = ed.diagnose(symmetric(DINOv3ViTModel(config)), image(32))
    assert {c.cause for c in found} == {"rotary position embedding"}
    assert {c.mend for c in found} == {"none"}
    assert len(found) == 2


@pytest.mark.filterwarnings("ignore:last.bias.*symmetric as found")
def test_vectors_and_their_non_linearities() -> None:
    config = ed.SoftEquivarianceConfig(
        group="O3",
        softness=0.0,
        representations={"first": ("2*Vector", "3*Vector + Trivial"), "last": ("3*Vector + Trivial", "Trivial")},
    )

    class Mlp(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(6, 10), act, nn.Linear(10, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.act(self.first(x)))

    rep = config.space("3*Vector + Trivial")
    plain = Mlp(nn.Tanh())
    assert {c.cause for c in ed.diagnose(plain, torch.randn(3, 6), "O3", config)} == {"linear map", "non-linearity"}
    soft = ed.diagnose(ed.soften(plain, config), torch.randn(3, 6), "O3")
    assert [(c.cause, c.module) for c in soft] == [("non-linearity", "act")]
    assert "NormNonlinearity" in soft.causes[0].remedy
    exact = ed.soften(Mlp(ed.nn.NormNonlinearity(rep)), config)
    found = ed.diagnose(exact, torch.randn(3, 6), "O3")
    assert not found.causes
    assert found.outputs[0].kind == "invariant"
    with pytest.raises(ed.errors.ArgumentError, match="input space"):
        ed.diagnose(exact, torch.randn(3, 7), "O3")


def test_groups_that_interpolate_are_tried_by_their_part() -> None:
    model = symmetric(Plain(nn.Conv2d(6, 6, 5, padding=2)), "C4")
    found = ed.diagnose(model, image(), "C8")
    assert found.moved_by == ("rotation by 90°",)
    assert "C8 moves images by interpolation" in found.notes[0]
    # kernels that quarter turns leave alone and eighths do not
    assert [(c.cause, c.parameter) for c in found] == [("kernel", "plant.weight")]
    exact = symmetric(Plain(nn.Identity()), "SO2")
    assert not ed.diagnose(exact, image(), "SO2", tolerance=1e-4).causes


@pytest.mark.parametrize(("group", "moved"), [("C2", 1), ("C4", 1), ("D4", 2), ("Flip", 1), ("D2", 2)])
def test_generators_are_enough(group: str, moved: int) -> None:
    found = ed.diagnose(symmetric(Plain(nn.Identity()), "D4"), image(), group)
    assert len(found.moved_by) == moved
    assert not found.causes


def test_rectangles_are_images_for_groups_without_quarter_turns() -> None:
    model = symmetric(cnn(), "D4")
    found = ed.diagnose(model, torch.randn(1, 3, 12, 20), "Flip")
    assert found.outputs[0].error < 1e-6
    with pytest.raises(ed.errors.GroupActionError, match="square"):
        ed.diagnose(model, torch.randn(1, 3, 12, 20), "C4")


def test_files_and_words() -> None:
    found = ed.diagnose(resnet(), image(64))
    again = ed.Diagnosis.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    text = str(found)
    assert "stride: " in text
    assert "or 65x65 px" in text
    assert found.plot().axes
    with pytest.raises(ed.errors.FileFormatError):
        ed.Diagnosis.from_dict({"document": "certificate"})


def test_every_cause_of_the_catalogue_is_on_the_page() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text()
    missing = [name for name in CATALOGUE if f"| {name} |" not in page]
    assert not missing


@pytest.mark.parametrize(
    ("build", "example", "options", "error", "message"),
    [
        (cnn, torch.randn(3, 8, 8), {}, ed.errors.ArgumentError, "add the axis"),
        (cnn, torch.randn(8), {}, ed.errors.ArgumentError, "add the batch axis"),
        (cnn, torch.randn(0, 3, 8, 8), {}, ed.errors.ArgumentError, "n >= 1"),
        (cnn, torch.randn(1, 4, 8, 8), {}, ed.errors.ArgumentError, "reads an input of shape"),
        (vit, torch.randn(1, 3, 40, 40), {}, ed.errors.ArgumentError, "reads an input of shape"),
        (cnn, "image.png", {}, ed.errors.ArgumentError, "batches"),
        (cnn, image(), {"group": "C3"}, ed.errors.GroupActionError, "permute pixels"),
        (cnn, image(), {"group": "T2"}, ed.errors.GroupActionError, "permute pixels"),
        (cnn, image(), {"group": "SO3"}, ed.errors.GroupActionError, "permute pixels"),
        (cnn, image(), {"group": "C5x"}, ed.errors.ArgumentError, "C5x"),
        (lambda: Returns(lambda y: Answer(y)), image(), {}, ed.errors.ArgumentError, "depend on the input"),
        (lambda: Returns(lambda y: y.argmax(1)), image(), {}, ed.errors.ArgumentError, "depend on the input"),
        (lambda: Returns(lambda y: torch.zeros(2)), image(), {}, ed.errors.ArgumentError, "depend on the input"),
        (lambda: torch.compile(cnn(), backend="eager"), image(), {}, ed.errors.StateError, "compile"),
        (lambda: nn.DataParallel(cnn()), image(), {}, ed.errors.StateError, "wrap"),
        (lambda: cnn().to("meta"), image(), {}, ed.errors.ArgumentError, "meta"),
        (lambda: "model", image(), {}, ed.errors.ArgumentError, "Module"),
        (lambda: VectorMlp(), image(), {}, ed.errors.ArgumentError, "reads an input of shape"),
    ],
)  # fmt: skip
def test_wrong_input(build: Any, example: Any, options: dict[str, Any], error: type, message: str) -> None:
    model = build()
    with pytest.raises(error, match=message):
        ed.diagnose(model, example, **options)


def test_spaces_of_the_shared_mlp() -> None:
    config = ed.SoftEquivarianceConfig(group="SO2", softness=0.0, representations=SPACES)
    found = ed.diagnose(VectorMlp(), torch.randn(1, 11), "SO2", config)
    assert {c.cause for c in found} >= {"linear map"}
