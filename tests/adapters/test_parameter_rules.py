"""Rules of the user's own: what they mean, what they refuse, and their life with the model."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.adapters._layouts import Layout
from equidial.adapters._verify import verify
from equidial.adapters.targets import resolve_targets
from equidial.errors import (
    ArgumentError,
    CertificateError,
    EquidialError,
    FileFormatError,
    NoMatchingTargetError,
    TargetError,
)
from tests.adapters.models import SPACES, VectorMlp, cnn, relative, same_tensors, snapshot, vit

Rule = ed.ParameterRule
PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def config(*rules: Rule, group: str = "C4", softness: float = 0.0, **more: Any) -> ed.SoftEquivarianceConfig:
    return ed.SoftEquivarianceConfig(group=group, softness=softness, targets=rules, **more)


class Holder(nn.Module):
    """One parameter of any shape, named ``mine``, and nothing else."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.mine = nn.Parameter(torch.randn(shape))


# -- The rule itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "leave"), "a pattern"),
        ((3, "leave"), "a pattern"),
        (("patch(", "kernel"), "a regular expression"),
        (("patch", "filter"), "a role out of"),
        (("patch", "kernel", {"grid": 8}), "whole numbers for grid"),
        (("patch", "kernel", {"grid": (8, 8.0)}), "whole numbers for grid"),
        (("patch", "kernel", {"grid": (True, 8)}), "whole numbers for grid"),
        (("patch", "kernel", {"grid": "88"}), "whole numbers for grid"),
        (("patch", "kernel", {"grid": (8, 0)}), "one to three sizes"),
        (("patch", "kernel", {"grid": ()}), "one to three sizes"),
        (("patch", "kernel", {"view": ()}), "a view of sizes"),
        (("patch", "kernel", {"view": (-1, -1, 8, 8)}), "at most one -1"),
        (("patch", "kernel", {"view": (-2, 8, 8)}), "a view of sizes"),
        (("patch", "kernel", {"view": (-1, 8, 8), "axes": (2, 3)}), "different axes"),
        (("patch", "kernel", {"view": (-1, 8, 8), "axes": (2, 2)}), "different axes"),
        (("patch", "kernel", {"axes": (-1, -2)}), "different axes"),
        (("patch", "kernel", {"grid": (8, 8), "axes": (1, 2, 3)}), "one axis per size"),
        (("bias", "offsets", {"grid": (7, 8)}), "an odd grid"),
        (("patch", "leave", {"grid": (8, 8)}), "no grid, view or axes"),
        (("patch", "leave", {"reason": None}), "a reason in words"),
    ],
)
def test_a_rule_checks_itself(arguments: tuple, message: str) -> None:
    pattern, role, *more = arguments
    with pytest.raises(ArgumentError, match=message) as caught:
        Rule(pattern, role, **(more[0] if more else {}))
    assert isinstance(caught.value, ValueError)
    assert "do: " in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"pos", "pos", True),
        (r"pos", "vit.pos", True),
        (r"pos", "vit.xpos", False),
        (r"pos", "pos.weight", False),
        (r"embeddings\.pos", "vit.embeddings.pos", True),
        (r"a|b", "x.b", True),
        (r"(stem\.)?conv\.weight", "net.stem.conv.weight", True),
    ],
)
def test_patterns_are_ends_of_full_names(pattern: str, name: str, expected: bool) -> None:
    assert Rule(pattern, "leave").matches(name) is expected


def test_rules_and_configurations_round_trip() -> None:
    rules = [
        Rule("patch", "kernel", view=[-1, 3, 8, 8], axes=(2, 3), reason="why"),
        Rule("pos", "table", grid=(4, 6)),
        Rule("rest", "leave"),
    ]
    for rule in rules:
        assert Rule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert rules[0].view == (-1, 3, 8, 8)
    assert hash(rules[0]) != hash(rules[1])
    settled = config(*rules)
    assert ed.SoftEquivarianceConfig.from_dict(json.loads(json.dumps(settled.to_dict()))) == settled
    assert "targets" not in config().to_dict(), "a file without rules is what it was before there were any"
    assert ed.SoftEquivarianceConfig.from_dict(config().to_dict()) == config()
    with pytest.raises(FileFormatError, match="colour"):
        Rule.from_dict(rules[0].to_dict() | {"colour": 1})
    with pytest.raises(FileFormatError, match="pattern and role"):
        Rule.from_dict({"pattern": "a"})
    for wrong in (rules[0], [rules[0].to_dict()], "patch"):
        with pytest.raises(ArgumentError, match="a list of ParameterRule"):
            ed.SoftEquivarianceConfig(group="C4", softness=0.0, targets=wrong)  # pyright: ignore[reportArgumentType]


# -- Where the grid lies: the tensor is symmetric on exactly the axes that the rule names


@pytest.mark.parametrize(
    ("shape", "rule", "view", "axes"),
    [
        ((6, 2, 5, 5), Rule("mine", "kernel"), (6, 2, 5, 5), (2, 3)),
        ((6, 50), Rule("mine", "kernel", view=(-1, 2, 5, 5)), (6, 2, 5, 5), (2, 3)),
        ((6, 50), Rule("mine", "kernel", view=(0, 5, 5, -1), axes=(1, 2)), (6, 5, 5, 2), (1, 2)),
        ((6, 50), Rule("mine", "kernel", view=(0, 5, 5, 2), axes=(2, 1)), (6, 5, 5, 2), (2, 1)),
        ((25,), Rule("mine", "kernel", view=(5, 5)), (5, 5), (0, 1)),
        ((6, 25), Rule("mine", "kernel", axes=(1,), grid=(5, 5)), (6, 5, 5), (1, 2)),
        ((1, 16, 6), Rule("mine", "table"), (1, 4, 4, 6), (1, 2)),
        ((16, 6), Rule("mine", "table"), (4, 4, 6), (0, 1)),
        ((6, 16), Rule("mine", "table", axes=(1,)), (6, 4, 4), (1, 2)),
        ((1, 4, 4, 6), Rule("mine", "table", view=(1, 4, 4, 6)), (1, 4, 4, 6), (1, 2)),
        ((1, 6, 4, 4), Rule("mine", "table", axes=(2, 3)), (1, 6, 4, 4), (2, 3)),
        ((24,), Rule("mine", "table", view=(2, 2, -1), axes=(1, 0)), (2, 2, 6), (1, 0)),
        ((49, 3), Rule("mine", "offsets"), (7, 7, 3), (0, 1)),
        ((49, 3), Rule("mine", "offsets", grid=(7, 7)), (7, 7, 3), (0, 1)),
    ],
)
def test_the_grid_lies_where_the_rule_says(shape: tuple, rule: Rule, view: tuple, axes: tuple) -> None:
    """Oracle: at softness 0 of C4 the nearest tensor is the mean of the four turned ones, on the named axes."""
    model = Holder(*shape)
    before = model.mine.detach().double().reshape(view)
    mean = torch.stack([torch.rot90(before, k, axes) for k in range(4)]).mean(0)
    ed.soften(model, config(rule))
    assert model.mine.shape == shape
    assert torch.allclose(model.mine.double().reshape(view), mean, atol=1e-6)
    certificate = ed.certify(model)
    assert float(certificate.bound) < 1e-5
    folded = ed.fold(model)
    assert torch.allclose(folded.mine.double().reshape(view), mean, atol=1e-6)


def test_rows_without_place_come_first_and_stay() -> None:
    for rows, grid in ((18, (4, 4)), (13, (4, 3)), (30, (4, 4))):
        model = Holder(1, rows, 3)
        extra = rows - math.prod(grid)
        before = model.mine.detach().clone()
        ed.soften(model, config(Rule("mine", "table", grid=grid), group="C2"))
        assert torch.equal(model.mine[:, :extra], before[:, :extra])
        turned = (before[:, extra:] + before[:, extra:].flip(1)) / 2  # a half turn reverses the rows
        assert torch.allclose(model.mine[:, extra:], turned, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "rule", "message"),
    [
        ((6, 50), Rule("mine", "kernel"), "without a window"),
        ((6, 2, 5, 5), Rule("mine", "kernel", grid=(3, 3)), r"a window \(5, 5\), not \(3, 3\)"),
        ((6, 50), Rule("mine", "kernel", view=(-1, 7, 5, 5)), "has no view"),
        ((6, 50), Rule("mine", "kernel", view=(6, 1, 5, 5)), "has no view"),
        ((50,), Rule("mine", "kernel", view=(-1, 0, 5, 5)), "has no view"),
        ((6, 50), Rule("mine", "kernel", view=(-1, 2, 5, 5), grid=(5, 2)), "not the grid"),
        ((6, 50), Rule("mine", "kernel", axes=(1, 2)), "without the axes"),
        ((6, 50), Rule("mine", "kernel", view=(-1,)), "without the axes"),
        ((1, 17, 6), Rule("mine", "table", grid=(5, 5)), "17 rows, fewer than the places"),
        ((3, 6), Rule("mine", "table"), "3 rows, which are no square"),
        ((2, 16, 6), Rule("mine", "table"), "whose rows are not told"),
        ((16, 6), Rule("mine", "table", axes=(2,)), "without axis 2"),
        ((48, 3), Rule("mine", "offsets"), "48 rows, which are no odd square"),
        ((49, 3), Rule("mine", "offsets", axes=(2,)), "without axis 2"),
        ((4, 4, 3), Rule("mine", "offsets", view=(4, 4, 3)), "an even grid"),
        ((6, 2, 3, 5), Rule("mine", "kernel"), "square grid"),
        ((24, 6), Rule("mine", "table", grid=(4, 6)), "square grid"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_with_the_reason(shape: tuple, rule: Rule, message: str) -> None:
    model = Holder(*shape)
    before = snapshot(model)
    with pytest.raises(TargetError, match=rf"(?s)mine.*{message}") as caught:
        ed.soften(model, config(rule))
    assert "do: " in str(caught.value)
    assert same_tensors(snapshot(model), before)
    (row,) = ed.describe_targets(model, config(rule))
    assert (row.representation, row.role, row.rule) == (None, rule.role, "user")
    assert re.search(message, row.reason)


# -- Order and choice


def test_the_first_rule_wins_before_the_row_and_the_generic_rule() -> None:
    model = vit()
    left = Rule("position_embeddings", "leave", reason="kept")
    table = ed.describe_targets(model, config(left, Rule(r".*", "leave", reason="all the rest")))
    assert table["vit.embeddings.position_embeddings"].reason == "kept"
    assert {row.reason for row in table} == {"kept", "all the rest"}
    assert {row.rule for row in table} == {"user"}
    ed.soften(model, config(left))
    assert [t.name for t in ed.status(model)] == ["vit.embeddings.patch_embeddings.projection.weight"]
    plain = ed.describe_targets(cnn(), config(Rule(r"depthwise\.weight", "leave")))
    assert [row.name for row in plain if row.representation] == ["first.weight"]
    assert plain["depthwise.weight"].reason == "left alone, as the configuration says"


def test_patterns_of_modules_choose_among_rules_too() -> None:
    rules = (Rule(r"head\.weight", "kernel", view=(-1, 3, 2, 2)), Rule(r"mix\.weight", "kernel"))
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"first.weight", "depthwise.weight", "head.weight"}),
        ({"target_modules": ["head"]}, {"head.weight"}),
        ({"exclude_modules": ["head", "first"]}, {"depthwise.weight"}),
    ]
    for more, names in cases:
        chosen = config(*rules, **more)
        assert {t.name for t in resolve_targets(cnn(), chosen)} == names
        table = ed.describe_targets(cnn(), chosen)
        assert {row.name for row in table if row.representation} == names
        assert table["mix.weight"].reason.startswith("mixes channels")  # a 1x1 window
    assert table["head.weight"].reason == "in exclude_modules"


def test_declared_linear_layers_stand_in_the_table() -> None:
    model = VectorMlp()
    table = ed.describe_targets(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.5, representations=SPACES))
    row = table["inner.weight"]
    assert (row.representation, row.role) == ("4*Vector + 3*Trivial -> 8*Vector + 5*Trivial", "linear")
    assert table["inner.bias"].role == "bias"
    assert {row.rule for row in table} == {"declared representation"}
    bare = ed.describe_targets(model, ed.groups.SO(2))
    assert bare["inner.weight"].representation is None
    assert bare["inner.weight"].reason.startswith("mixes channels")


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (cnn, {"targets": [Rule(r"frist\.weight", "kernel")]}, NoMatchingTargetError, r"'first\.weight'"),
        (cnn, {"targets": [Rule("first", "kernel")]}, NoMatchingTargetError, "matches the rule 'first'"),
        (
            VectorMlp,
            {"group": "SO2", "representations": SPACES, "targets": [Rule(r"inner\.weight", "leave")]},
            TargetError,
            "one statement",
        ),
    ],
)
def test_rules_that_name_nothing_or_contradict(make, settings: dict, error: type[EquidialError], message: str) -> None:
    model = make()
    before = snapshot(model)
    settled = ed.SoftEquivarianceConfig(**({"group": "C4", "softness": 0.5} | settings))
    for verb in (ed.soften, ed.describe_targets):
        with pytest.raises(error, match=rf"(?s){message}.*do: "):
            verb(model, settled)
    assert same_tensors(snapshot(model), before)


@pytest.mark.parametrize("wrong", [("model", "C4"), (cnn(), "Q8"), (cnn(), 4)])
def test_describe_refuses_what_is_no_model_or_group(wrong: tuple) -> None:
    with pytest.raises(EquidialError, match="do: "):
        ed.describe_targets(*wrong)


# -- The page, and the life of a model with a linear patch embedding


def page_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def mosaic() -> tuple[Any, ed.SoftEquivarianceConfig]:
    """The network and the configuration of the page, built by the page's own code."""
    found: dict[str, Any] = {}
    exec("\n".join(page_blocks()), found)
    return found["Mosaic"]().eval(), found["config"]


def test_the_code_of_the_page_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    blocks = page_blocks()
    exec("\n".join(blocks), found)
    printed = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert printed is not None
    assert capsys.readouterr().out == printed.group(1)
    rules = blocks[-1].split("x = torch")[0].strip().splitlines()
    assert len(rules) <= 10
    model, untouched, x = found["model"], found["Mosaic"]().eval(), torch.randn(4, 3, 32, 32)
    for k in (1, 2, 3):
        turned = x.rot90(k, (-2, -1))
        assert relative(model(turned), model(x)) < 1e-5
        assert relative(untouched(turned), untouched(x)) > 1e-2


@pytest.mark.parametrize("group", ["C4", "Flip", "SO2"])
def test_a_linear_patch_embedding_lives_like_any_target(group: str, tmp_path: Path) -> None:
    model, settled = mosaic()
    settled = ed.SoftEquivarianceConfig(group=group, softness=0.3, targets=settled.targets)
    base, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    ed.soften(model, settled)
    assert [row.name for row in ed.status(model)] == ["whereabouts", "patch.weight"]
    y = model(x)
    certificate = ed.certify(model)
    row = certificate["patch.weight"]
    assert row.layout == ("convolution", 0, 0, 0, 4, 32, 3, 8, 8, 2, 3)
    assert row.level == "kernel"
    assert "no window rule for Linear" in " ".join(row.notes) or group == "SO2"
    assert row.measured <= row.bound
    spectral = ed.certify(model, norm="spectral")["patch.weight"]
    assert (spectral.norm, spectral.measured <= spectral.bound) == ("spectral", True)
    verify(certificate, model)

    ed.save(model, tmp_path)
    assert ed.Certificate.load(tmp_path / "certificate.json") == certificate
    document = json.loads((tmp_path / "soft_equivariance_config.json").read_text())
    assert document["tensors"]["patch.weight"]["view"] == [32, 3, 8, 8]
    assert "view" not in document["tensors"]["whereabouts"]
    again = ed.load(copy.deepcopy(base), tmp_path)
    assert torch.equal(again(x), y)
    assert list(ed.status(again)) == list(ed.status(model))

    folded = ed.fold(model)
    tensors = {name: value.detach() for name, value in folded.state_dict().items()}
    verify(ed.certify(folded, settled), tensors)
    verify(ed.certify(folded, settled), folded, settled)
    spoilt = tensors | {"patch.weight": base.state_dict()["patch.weight"]}
    with pytest.raises(CertificateError, match=r"patch\.weight: bound is"):
        verify(ed.certify(folded, settled), spoilt)
    assert torch.equal(ed.unload(ed.soften(copy.deepcopy(base), settled)).patch.weight, base.patch.weight)


def test_the_defect_of_a_view_is_that_of_the_convolution_it_stands_for() -> None:
    """Closed form: a linear embedding of patches is the convolution with the same numbers."""
    convolution = nn.Conv2d(3, 5, 4, stride=4)
    layer = nn.Linear(48, 5)
    with torch.no_grad():
        layer.weight.copy_(convolution.weight.flatten(1))
    settled = config(Rule("weight", "kernel", view=(0, 3, 4, 4)), softness=0.4)
    for norm in ("frobenius", "spectral"):
        one = ed.certify(nn.Sequential(layer), settled, norm=norm)["0.weight"]
        other = ed.certify(nn.Sequential(convolution), config(softness=0.4), norm=norm)["0.weight"]
        assert (one.bound, one.absolute) == pytest.approx((other.bound, other.absolute), rel=1e-12)


@pytest.mark.parametrize(
    "layout",
    [
        Layout("convolution"),
        Layout("table", 1, 1, 16),
        Layout("convolution", view=(4, 3, 8, 8), axes=(2, 3)),
        Layout("table", view=(2, 2, 6), axes=(1, 0)),
    ],
)
def test_layouts_are_written_as_plain_numbers(layout: Layout) -> None:
    data = json.loads(json.dumps(layout.to_tuple()))
    assert Layout.from_tuple(data) == layout
    assert (len(data) == 4) is (not layout.view), "rows without a view are what they were"


@pytest.mark.parametrize(
    "data",
    [
        (),
        ("table", 0, 0),
        ("shape", 0, 0, 0),
        ("table", 0, 0, "4"),
        ("table", 0, 0, 0, 2, 3),
        ("table", 0, 0, 0, 2, 3, 4),
        ("table", 0, 0, 0, 2, 3, 4, 2),
        ("table", 0, 0, 0, 2, 3, -4, 1),
        ("table", 0, 0, 0, 0, 1),
        ("table", 0, 0, 0, 2, 3, 4, 1, 1),
    ],
)
def test_other_layouts_are_refused(data: tuple) -> None:
    with pytest.raises(FileFormatError, match="a layout"):
        Layout.from_tuple(data)
