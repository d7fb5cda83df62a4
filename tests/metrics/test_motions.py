"""Images under magnification and translations with a border, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import EquidialError
from equidial.groups import GroupElement, Scale, Translation
from equidial.metrics import element_name, in_frame, measured_elements, transform_images, transform_labels
from equidial.representations import Pixels


def blob(shape: Sequence[int], centre: Sequence[float], sigma: float) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 - c for n, c in zip(shape, centre, strict=True)]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.exp(-(x.square() + y.square()) / (2 * sigma**2))


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 9)], ids=str)
@pytest.mark.parametrize("factor", [0.5, 0.7, 1.3, 2.0])
def test_a_ramp_is_magnified_about_the_centre(shape: tuple[int, int], factor: float) -> None:
    """Bilinear interpolation has no error on planes: ``f(x) = a x + b y + c`` becomes ``f(x / factor)``."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    y, x = torch.meshgrid(*axes, indexing="ij")
    g = Scale().exp(math.log(factor))
    moved = transform_images((2 * x - 3 * y + 5).expand(2, 3, *shape), g)
    seen = (x.abs() / factor <= (shape[1] - 1) / 2 + 1e-9) & (y.abs() / factor <= (shape[0] - 1) / 2 + 1e-9)
    expected = (2 * x - 3 * y) / factor + 5
    assert seen.sum() >= 4
    assert torch.allclose(moved[..., seen], expected[seen].expand(2, 3, -1), atol=1e-6)
    outside = (x.abs() / factor > (shape[1] + 1) / 2 + 1e-9) | (y.abs() / factor > (shape[0] + 1) / 2 + 1e-9)
    assert not moved[..., outside].any()
    assert (in_frame(shape, g) == seen).all()


@pytest.mark.parametrize("t", [-0.3, -0.1, 0.1, 0.3])
def test_images_are_magnified_as_the_representation_says(t: float) -> None:
    """A smooth blob, off the centre: the same motion up to the error of interpolation."""
    shape = (24, 24)
    x, g = blob(shape, (2.0, -3.0), 4.0), Scale().exp(t)
    exact = blob(shape, (2 * math.exp(t), -3 * math.exp(t)), 4 * math.exp(t))
    ours, theirs = transform_images(x, g), Pixels(Scale(), shape).act(g, x.flatten()).unflatten(0, shape)
    inside = (slice(6, -6), slice(6, -6))
    assert (ours - exact)[inside].abs().max() < 0.02
    assert (theirs - exact)[inside].abs().max() < 0.02
    assert (x - exact)[inside].abs().max() > 0.05  # the other direction is further off


@pytest.mark.parametrize("step", [(1, 0), (0, -2), (3, 2), (-5, 5), (6, 0), (-9, 1)], ids=str)
def test_translations_by_whole_pixels_fill_with_zeros(step: tuple[int, int]) -> None:
    x = torch.randn(2, 6, 6)
    i, j = step
    padded = functional.pad(x, (9, 9, 9, 9))
    moved = transform_images(x, Translation(2).element(step))
    assert torch.equal(moved, padded[:, 9 - i : 15 - i, 9 - j : 15 - j])


def test_parts_of_a_pixel_are_linear() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    moved = transform_images(x, Translation(2).element((0.25, 0.0)))
    assert torch.allclose(moved, 0.75 * x + 0.25 * functional.pad(x, (0, 0, 1, 0))[:-1])
    along = transform_images(x, Translation(1).element(-0.5))
    assert torch.allclose(along, (x + functional.pad(x, (0, 1))[:, 1:]) / 2)


def test_masks_take_the_nearest_label() -> None:
    labels = torch.arange(12).reshape(3, 4)
    moved = transform_labels(labels, Translation(2).element((1.4, 0.0)), 99)
    assert moved.tolist() == [[99] * 4, *labels[:2].tolist()]
    zoomed = transform_labels(labels, Scale().exp(-math.log(4.0)), 99)
    assert (zoomed == 99).sum() > 6


def test_the_elements_that_are_measured() -> None:
    factors = [g.value[0] for g in measured_elements(Scale())]
    assert len(factors) == 12
    assert max(factors) == -min(factors) == pytest.approx(math.log(1.25))
    assert max(g.value[0] for g in measured_elements(Scale(), 0.3)) == pytest.approx(0.3)
    assert sorted(g.value for g in measured_elements(Translation(2))) == [(-1, 0), (0, -1), (0, 1), (1, 0)]
    assert len(measured_elements(Translation(2), radius=2)) == 12


def test_a_pointwise_network_with_a_mean_does_not_see_translations_of_a_framed_picture() -> None:
    x = functional.pad(torch.rand(3, 2, 4, 4), (2, 2, 2, 2))
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert ed.measure(model, [(x, torch.zeros(3, dtype=torch.long))], "R2", radius=2).iErr < 1e-12
    assert ed.measure(model, [(x, torch.zeros(3, dtype=torch.long))], "Scale").iErr > 1e-9


@pytest.mark.parametrize(
    ("g", "name"),
    [
        (Scale().exp(math.log(1.4)), "magnification by 1.4"),
        (Translation(2).element((3, -1.5)), "translation by (3, -1.5)"),
    ],
    ids=str,
)
def test_elements_have_names(g: GroupElement, name: str) -> None:
    assert element_name(g) == name


def test_a_translation_needs_its_axes() -> None:
    with pytest.raises(EquidialError, match="3 axes"):
        transform_images(torch.zeros(4, 4), Translation(3).element((0, 0, 1)))
