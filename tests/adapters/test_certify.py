"""certify: what a row says of a layer, its norm, its level and what stands beside the bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.errors import GroupActionError
from equidial.groups import O2, SO2, C, D, Scale
from equidial.metrics import interpolation_distance
from equidial.representations import Pixels, Vector
from tests.adapters.models import vit


def convolution(padding_mode: Any = "zeros", stride: int = 1, padding: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, stride=stride, padding=padding, padding_mode=padding_mode, bias=False))


def layer_matrix(layer: nn.Module, size: int) -> torch.Tensor:
    """The matrix of the whole layer, column by column."""
    basis = torch.eye(2 * size * size, dtype=torch.float64).reshape(-1, 2, size, size)
    with torch.no_grad():
        return layer.double()(basis).flatten(1).mT


@pytest.mark.parametrize(("padding_mode", "stride", "padding", "size"), [("zeros", 1, 1, 5), ("zeros", 2, 1, 5)])
def test_the_jacobian_norm_is_that_of_the_layer(padding_mode: str, stride: int, padding: int, size: int) -> None:
    """Against the dense matrix of the layer, turned by exact permutations of pixels on both sides."""
    model = convolution(padding_mode, stride, padding)
    config = ed.SoftEquivarianceConfig("C4", softness=1.0)
    (row,) = ed.certify(model, config, norm="jacobian", image_size=size)
    (plain,) = ed.certify(model, config, image_size=size)
    assert row.level == "image"
    assert row.norm == "jacobian"
    matrix = layer_matrix(model, size)
    side = int((matrix.shape[0] // 3) ** 0.5)

    def turned(columns: torch.Tensor, channels: int, n: int, k: int) -> torch.Tensor:
        images = columns.mT.reshape(-1, channels, n, n)
        return torch.rot90(images, k, (-2, -1)).flatten(1).mT

    errors = []
    for k in (1, 2, 3):
        on_input = turned(torch.eye(matrix.shape[1], dtype=torch.float64), 2, size, k)
        errors.append(float((matrix @ on_input - turned(matrix, 3, side, k)).norm()))
    assert row.bound == pytest.approx(max(errors) / float(matrix.norm()), rel=1e-12)
    assert row.absolute == pytest.approx(max(errors), rel=1e-12)
    assert abs(row.bound - plain.bound) > 1e-3, "padding counts"


def test_the_jacobian_norm_of_circular_padding_is_the_plain_one() -> None:
    config = ed.SoftEquivarianceConfig("C4", softness=1.0)
    plain = ed.certify(convolution("circular"), config, image_size=6).bound
    assert ed.certify(convolution("circular"), config, norm="jacobian", image_size=6).bound == pytest.approx(plain)


@pytest.mark.parametrize(
    ("model", "group", "size", "words"),
    [
        (convolution(), "C4", None, "image_size="),
        (convolution("reflect"), "C4", 6, "zero padding"),
        (convolution(), "SO2", 6, "image level"),
        (vit(), "C4", 32, "a table keeps the Frobenius norm"),
    ],
)
def test_where_the_jacobian_norm_has_no_meaning_the_row_says_so(model, group: str, size, words: str) -> None:
    config = ed.SoftEquivarianceConfig(group, softness=1.0)
    certificate = ed.certify(model, config, norm="jacobian", image_size=size)
    said = [row for row in certificate if row.norm == "frobenius"]
    assert said
    assert any(words in note for row in said for note in row.notes)


def test_rows_tell_their_hypotheses_their_slack_and_their_weights() -> None:
    model = ed.soften(vit(), ed.SoftEquivarianceConfig("SO2", softness=0.3))
    for row in ed.certify(model):
        assert row.hypotheses
        assert 1.0 <= row.slack < 1.05
        assert len(row.weights) == 64
        assert row.interpolation is not None
        assert row.interpolation > 0.05
    ed.set_softness(model, 0.0)
    for row in ed.certify(model):
        assert row.bound < 1e-5
    exact = ed.certify(vit(), ed.SoftEquivarianceConfig("C4", softness=1.0))
    assert all(row.interpolation is None for row in exact), "permutations need no interpolation"
    assert all(row.slack == pytest.approx(1.0) for row in exact)


def test_exponential_has_a_bound_relative_to_the_original_weight_only() -> None:
    model = ed.soften(vit(), ed.SoftEquivarianceConfig("C4", threshold=0.5, response="exponential"))
    for row in ed.certify(model):
        assert row.a_priori is None
        assert row.a_priori_of_original == pytest.approx(min(row.radius * 0.5 / math.e, 2.0))


@pytest.mark.parametrize("n", [3, 5, 8])
def test_quarter_turns_need_no_interpolation(n: int) -> None:
    """The one group whose turned windows are exact: what is left is the spline's rounding."""
    assert interpolation_distance(Pixels(C(4), (n, n))) < 1e-6


def test_interpolation_is_measured_for_rotations_only() -> None:
    distances = [interpolation_distance(Pixels(g, (5, 5)), seed=1) for g in (C(8), D(8), SO2(), O2())]
    assert all(0.05 < d < 0.6 for d in distances)
    assert interpolation_distance(Pixels(SO2(), (5, 5)), 0.1) < interpolation_distance(Pixels(SO2(), (5, 5)))
    for rep in (Vector(SO2()), Pixels(Scale(), (5, 5))):
        with pytest.raises(GroupActionError, match=r"(?s)expected .*got: .*do: "):
            interpolation_distance(rep)
