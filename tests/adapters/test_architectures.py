"""The tables of architectures: every parameter has its row and reason; softness 0 is exact where the page says so."""

from __future__ import annotations

import copy
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import equidial as ed
from equidial.adapters.targets import ARCHITECTURES, resolve_targets
from equidial.adapters.targets import _reasons as reasons
from tests.adapters.architectures import SMALL, build, output, scramble, swin
from tests.adapters.models import cnn

Turn = Callable[[torch.Tensor], torch.Tensor]
TURNS: dict[str, tuple[Turn, ...]] = {
    "C4": tuple(lambda x, k=k: torch.rot90(x, k, (-2, -1)) for k in (1, 2, 3)),
    "Flip": (lambda x: x.flip(-1),),
}
WORDS = {value for name, value in vars(reasons).items() if name.isupper()} - {reasons.UNKNOWN}


def exactly(group: str, **more: Any) -> ed.SoftEquivarianceConfig:
    return ed.SoftEquivarianceConfig(group=group, softness=0.0, **more)


def error(model: torch.nn.Module, x: torch.Tensor, group: str) -> float:
    """The largest relative change of the output of any image over the turns of a group."""
    y = output(model, x)
    return max(float(((output(model, turn(x)) - y).norm(dim=1) / y.norm(dim=1)).max()) for turn in TURNS[group])


# -- Every parameter of every row


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_of_a_listed_architecture_has_a_row_of_its_own(name: str, draws: int) -> None:
    for seed in range(2 * draws):
        model = SMALL[name](random.Random(seed))
        table = ed.describe_targets(model, "C4")
        kind = model.config.model_type
        assert [row.name for row in table if row.role != "abstain"] == [n for n, _ in model.named_parameters()]
        assert {row.rule.split()[0] for row in table} == {"transformers"}
        assert all(row.rule.startswith(f"transformers {kind}") for row in table)
        assert {row.reason for row in table} <= WORDS
        targets = resolve_targets(model, exactly("C4"))
        assert {row.name for row in table if row.representation} == {t.name for t in targets}
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        for row in table:
            # a kernel that nothing constrains is 1x1: no window was passed over
            assert row.shape == shapes.get(row.name, ())
            assert row.representation or len(row.shape) != 4 or max(row.shape[2:]) == 1


def test_the_page_lists_every_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()
    rows = re.findall(r"^\| (transformers|timm) (\S+) \| `(\w+)` \|", page, re.MULTILINE)
    assert rows == [(a.library, a.name, a.match[0]) for a in ARCHITECTURES]
    assert all(len(a.match) == 1 for a in ARCHITECTURES)


# -- What the rows say


def test_the_parts_of_a_composed_model_have_rows_of_their_own() -> None:
    model = build("clip")
    table = ed.describe_targets(model, "C4")
    assert table.architecture == "transformers clip, transformers clip_text_model, transformers clip_vision_model"
    assert {row.name for row in table if row.representation} == {
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    }
    words = table["text_model.embeddings.position_embedding.weight"]
    assert (words.shape, words.reason) == ((25, 32), reasons.TEXT)  # a square number of rows, and no grid

    class Own(hf.ViTForImageClassification):
        """A class of the user's, derived from one of the library."""

    own = Own(hf.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8))
    own.adapter = torch.nn.Linear(32, 32)
    mixed = ed.describe_targets(own, "C4")
    assert mixed["adapter.weight"].rule == "generic"
    told = "architecture: transformers vit; the GENERIC rule for 2 parameters of none, e.g. adapter.weight"
    assert mixed.headline == told


def test_rotary_positions_abstain_by_name() -> None:
    model = build("dinov3_vit")
    row = ed.describe_targets(model, "C4")["rope_embeddings"]
    assert (row.shape, row.representation, row.role, row.rule) == ((), None, "abstain", "transformers dinov3_vit")
    assert row.reason.startswith("rotary position embedding: its coordinates are vectors, not scalars")
    assert row.reason.endswith("abstain")
    ed.soften(model, exactly("C4"))
    assert [t.name for t in ed.status(model)] == ["embeddings.patch_embeddings.weight"]
    size = model.config.image_size
    assert error(model, torch.randn(2, 3, size, size), "C4") > 1e-2  # and the network stays asymmetric, as it says

    class TinyRotary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.freqs = torch.nn.Parameter(torch.ones(4))

    assert ed.describe_targets(torch.nn.Sequential(TinyRotary()), "C4")["0.freqs"].reason == reasons.ROPE
    other = type("PropertyHead", (TinyRotary,), {})()
    assert ed.describe_targets(torch.nn.Sequential(other), "C4")["0.freqs"].reason == reasons.UNKNOWN


def test_the_generic_rule_says_that_it_was_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="equidial"):
        ed.soften(build("vit"), exactly("C4"))
        assert caplog.text == ""
        ed.soften(cnn(), exactly("C4"))
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "TinyCnn: no row of the tables knows 9 parameters, e.g. first.weight; the generic rule" in record.message
    table = ed.describe_targets(cnn(), "C4")
    assert table.architecture == "generic"
    assert str(table).startswith("architecture: no row of the tables knows TinyCnn, so the GENERIC rule was used")


def test_a_table_of_offsets_with_rows_of_no_offset() -> None:
    """BEiT, which no row knows: its class token has three rows after the offsets, which stay."""
    config = hf.BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        use_relative_position_bias=True,
    )
    model = scramble(hf.BeitForImageClassification(config))
    rows = [row for row in ed.describe_targets(model, "C4") if row.role == "offsets"]
    assert [(row.shape, row.representation, row.rule) for row in rows] == 2 * [((52, 4), "Pixels(7,7)", "generic")]
    before = {row.name: model.get_parameter(row.name).detach().clone() for row in rows}
    ed.soften(model, exactly("C4"))
    assert error(model, torch.randn(2, 3, 32, 32), "C4") < 1e-5
    ed.fold(model)
    for name, table in before.items():
        assert torch.equal(model.get_parameter(name)[49:], table[49:])
        assert not torch.equal(model.get_parameter(name)[:49], table[:49])


# -- How it prints


def test_a_table_prints_repeated_blocks_once() -> None:
    model = build("dinov2")
    model.dinov2.encoder.layer = torch.nn.ModuleList(copy.deepcopy(model.dinov2.encoder.layer[0]) for _ in range(12))
    table = ed.describe_targets(model, "C4")
    text = str(table)
    assert text.startswith("architecture: transformers dinov2\n")
    assert len(re.findall(r"^dinov2\.encoder\.layer\.\{0\.\.11\}\.norm1\.weight ", text, re.MULTILINE)) == 1
    assert "layer.3." not in text
    assert f"2 of {len(table)} parameters are constrained" in text
    columns = {line.index("leave") for line in text.splitlines() if " leave " in line}
    assert len(columns) == 1, "columns are aligned"
    document = table.to_dict()
    assert document["architecture"] == "transformers dinov2"
    assert document["rows"][0]["shape"] == [1, 1, 32]
    assert len(document["rows"]) == len(table)
    with pytest.raises(KeyError):
        table["dinov2.encoder"]


def test_softened_and_plain_models_have_one_table() -> None:
    for name in ("vit", "swin", "resnet"):
        model = build(name)
        before = ed.describe_targets(model, "C4")
        ed.soften(model, exactly("C4"))
        assert ed.describe_targets(model, "C4") == before


# -- Exactness: the turned image gives the same output


@pytest.mark.parametrize(
    ("name", "sizes", "dtype"),
    [
        ("vit", None, torch.float32),
        ("vit with pooler", None, torch.float32),
        ("deit", None, torch.float32),
        ("dinov2", None, torch.float32),
        ("dinov2_with_registers", None, torch.float32),
        ("clip_vision_model", None, torch.float32),
        ("clip classifier", None, torch.float32),
        ("siglip_vision_model", None, torch.float32),
        ("siglip classifier", None, torch.float32),
        ("convnext", (32, 64), torch.float32),
        ("dinov3_convnext", (32, 64), torch.float32),
        ("resnet", (33, 65), torch.float32),
        # 52 batch norms with random statistics magnify rounding: 1e-4 in float32, 1e-12 in float64
        ("mobilenet_v2", (33, 65), torch.float64),
    ],
)
@pytest.mark.parametrize("group", ["C4", "Flip"])
def test_softness_0_is_exact(name: str, sizes: tuple[int, ...] | None, dtype: torch.dtype, group: str) -> None:
    for seed in range(2):
        config = build(name, seed).config
        for size in sizes or (getattr(config, "vision_config", config).image_size,):
            model, x = build(name, seed).to(dtype), torch.randn(2, 3, size, size, dtype=dtype)
            assert error(model, x, group) > 1e-3
            ed.soften(model, exactly(group, image_size=size if sizes else None))
            assert error(model, x, group) < 1e-5
            ed.fold(model)
            assert error(model, x, group) < 1e-5


@pytest.mark.parametrize(("window", "image"), [(4, 32), (8, 32), (2, 16), (4, 64)])
@pytest.mark.parametrize("group", ["C4", "Flip", "D4"])
def test_swin_with_an_even_window_that_divides_the_grids_is_exact(window: int, image: int, group: str) -> None:
    for seed in range(2):
        model = scramble(swin(random.Random(seed), window, image))
        x = torch.randn(2, 3, image, image)
        turns = ("C4", "Flip") if group == "D4" else (group,)
        assert all(error(model, x, turn) > 1e-3 for turn in turns)
        ed.soften(model, exactly(group))
        assert all(error(model, x, turn) < 1e-5 for turn in turns)


@pytest.mark.parametrize(
    ("window", "image", "why"),
    [(3, 24, "twice the shift is no multiple of the window"), (4, 40, "the second grid is padded at two sides only")],
)
def test_swin_of_other_windows_is_not_exact(window: int, image: int, why: str) -> None:
    model = scramble(swin(random.Random(0), window, image))
    x = torch.randn(2, 3, image, image)
    ed.soften(model, exactly("C4"))
    assert error(model, x, "C4") > 1e-3, why


@pytest.mark.parametrize("part", ["reduction", "norm"])
def test_the_order_of_merged_neighbours_matters(part: str) -> None:
    """Planted fault: rows and columns of the merged patches exchanged; a mirror tells them apart."""
    role, view, axes = ("kernel", (0, 2, 2, -1), (1, 2)) if part == "reduction" else ("table", (2, 2, -1), (0, 1))
    rule = ed.ParameterRule(rf"downsample\.{part}\.\w+", role, view=view, axes=axes)
    model = scramble(swin(random.Random(0)))
    x = torch.randn(2, 3, 32, 32)
    right = copy.deepcopy(model)
    ed.soften(right, exactly("Flip"))
    ed.soften(model, exactly("Flip", targets=[rule]))
    assert error(right, x, "Flip") < 1e-5
    assert error(model, x, "Flip") > 1e-4


def test_segformer_turns_its_maps_where_every_stride_fits() -> None:
    """Without sequence reduction 65 px suit every overlapping embedding: the map of classes turns with the image."""
    config = hf.SegformerConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16, sr_ratios=[1, 1, 1, 1]
    )
    model = scramble(hf.SegformerForSemanticSegmentation(config))
    x = torch.randn(1, 3, 65, 65)

    def worst(turns: tuple[Turn, ...]) -> float:
        y = output(model, x)
        return max(float((output(model, turn(x)) - turn(y)).norm() / y.norm()) for turn in turns)

    assert worst(TURNS["C4"]) > 1e-2
    ed.soften(model, exactly("C4", image_size=65))
    assert worst(TURNS["C4"]) < 1e-5


def test_swin_is_certified_saved_and_folded_like_any_model(tmp_path: Path) -> None:
    model = build("swin")
    base, x = copy.deepcopy(model), torch.randn(1, 3, 32, 32)
    config = ed.SoftEquivarianceConfig(group="C4", softness=0.3)
    ed.soften(model, config)
    certificate = ed.certify(model)
    merging = [row for row in certificate if "downsample" in row.name]
    assert {(row.name.rpartition("downsample.")[2], row.level) for row in merging} == {
        ("reduction.weight", "kernel"),
        ("norm.weight", "kernel"),
        ("norm.bias", "kernel"),
    }
    assert all("no window rule for" in row.notes[0] for row in merging)
    assert {row.level for row in certificate if row.name.endswith("bias_table")} == {"image"}
    assert all(row.measured <= row.bound for row in certificate)
    ed.save(model, tmp_path)
    assert torch.equal(output(ed.load(base, tmp_path), x), output(model, x))
    folded = ed.fold(model)
    ed.verify(ed.certify(folded, config), {name: value.detach() for name, value in folded.state_dict().items()})
