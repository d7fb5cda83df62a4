"""The rule for symmetric strides against brute force, and what certificates make of it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import equidial as ed
from equidial.adapters._geometry import Window, reversed_axes
from equidial.groups import C, D, Flip
from tests.adapters.models import cnn, vit


def test_the_rule_on_every_small_window() -> None:
    """Reversing the input reverses the output of a symmetric kernel, exactly when the rule says so."""
    checked = 0
    for size, kernel, stride, before, after, dilation in itertools.product(
        range(5, 12), (1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (0, 1, 2), (1, 2)
    ):
        reach = size + before + after - dilation * (kernel - 1) - 1
        if reach < 0 or before >= size or after >= size:
            continue
        x = torch.arange(size, dtype=torch.float64).sin()[None, None]
        weight = torch.ones(1, 1, kernel, dtype=torch.float64)

        def run(x: torch.Tensor, w=weight, b=before, a=after, s=stride, d=dilation) -> torch.Tensor:
            return nn.functional.conv1d(nn.functional.pad(x, (b, a)), w, stride=s, dilation=d)

        exact = torch.allclose(run(x.flip(-1)), run(x).flip(-1), atol=1e-12)
        window = Window((kernel,), (stride,), (before,), (after,), (dilation,))
        # outputs of one entry may agree by chance of a window that covers everything either way
        said = window.is_symmetric((size,), (-1,))
        if said:
            assert exact, (size, kernel, stride, before, after, dilation)
        elif exact:
            covered = kernel == 1 and run(x).shape[-1] == 1
            whole = dilation * (kernel - 1) + 1 + (run(x).shape[-1] - 1) * stride
            assert covered or whole >= size + min(before, after) or dilation * (kernel - 1) + 1 >= size, "not by chance"
        checked += 1
    assert checked > 1000


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("module", "size", "exact"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), (8, 8), True),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), (8, 8), False),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), (9, 9), True),
        (nn.Conv2d(1, 1, 4, stride=4), (16, 16), True),
        (nn.Conv2d(1, 1, 4, stride=4), (18, 18), False),
        (nn.Conv2d(1, 1, 2, padding="same"), (8, 8), False),
        (nn.Conv2d(1, 1, 3, padding="same", dilation=2), (8, 8), True),
        (nn.Conv2d(1, 1, 3, padding="valid"), (8, 8), True),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), (9, 8), False),
        (nn.MaxPool2d(3, 2, 1), (8, 8), False),
        (nn.MaxPool2d(3, 2, 1), (9, 9), True),
        (nn.MaxPool2d(2, 2, ceil_mode=True), (9, 9), False),
        (nn.MaxPool2d(2, 2, ceil_mode=True), (8, 8), True),
        (nn.AvgPool2d(12, ceil_mode=True), (7, 7), True),
        (nn.AvgPool2d(2), (8, 8), True),
    ],
)
def test_windows_of_modules(module: nn.Module, size: tuple[int, int], exact: bool) -> None:
    window = Window.of(module)
    assert window is not None
    assert window.is_symmetric(size, (-2, -1)) == exact
    if isinstance(module, nn.Conv2d):
        with torch.no_grad():
            module.weight.fill_(0.1)
            x = torch.randn(1, 1, *size)
            turned = torch.allclose(module(x.flip((-2, -1))), module(x).flip((-2, -1)), atol=1e-6)
        assert turned == exact


def test_only_reversed_axes_count() -> None:
    window = Window.of(nn.Conv2d(1, 1, 3, stride=(2, 1), padding=1))
    assert window is not None
    assert window.is_symmetric((8, 8), reversed_axes(Flip(), 2))
    assert not window.is_symmetric((8, 8), reversed_axes(Flip("vertical"), 2))
    assert not window.is_symmetric((8, 8), reversed_axes(C(2), 2))
    assert reversed_axes(C(1), 2) == ()
    assert reversed_axes(D(1), 2) == (-1,)
    assert Window.of(nn.Linear(2, 2)) is None


def test_a_model_that_wants_other_inputs_is_judged_only_when_asked() -> None:
    """A configured image size is passed over where the model reads no single image; an explicit one is not."""

    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(image_size=8)
            self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.stem(image)

    config = ed.SoftEquivarianceConfig(group="C4", softness=0.5)
    model = ed.soften(TwoTowers(), config)
    assert [row.level for row in ed.certify(model)] == ["kernel"]
    with pytest.raises(ed.EquidialError, match=r"(?s)reads images of \(1, 3, 9, 9\).*TypeError"):
        ed.certify(model, image_size=9)
    fresh = TwoTowers()
    with pytest.raises(ed.EquidialError, match="reads images of"):
        ed.soften(fresh, ed.SoftEquivarianceConfig(group="C4", softness=0.5, image_size=9))
    assert len(ed.status(fresh)) == 0

    class OneTower(TwoTowers):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.stem(image)

    with pytest.warns(ed.EquidialWarning, match=r"at 8x8 px the stride of stem .* symmetric at 9x9"):
        ed.soften(OneTower(), config)


@pytest.mark.filterwarnings(
    "ignore:Using padding='same'"
)  # torch says it once a process, in whichever test comes first
def test_levels_of_certificate_rows() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, dilation=(1, 1), stride=(1, 2)),
    )
    config = ed.SoftEquivarianceConfig(group="C4", softness=1.0)

    def levels(**more: object) -> list[str]:
        return [row.level for row in ed.certify(model, config, **more)]  # type: ignore[arg-type]

    assert levels() == ["image", "kernel", "kernel", "kernel"]
    assert levels(image_size=9)[:2] == ["image", "image"]
    assert levels(image_size=8)[:2] == ["image", "kernel"]
    notes = [row.notes for row in ed.certify(model, config)]
    assert notes[0] == ()
    assert "image_size" in notes[1][0]
    assert "does not fit C4" in notes[2][0]
    flips = ed.SoftEquivarianceConfig(group="FlipUD", softness=1.0)
    assert [row.level for row in ed.certify(model, flips, image_size=8)][3] == "image"
    for group in ("SO2", "C8"):
        rows = ed.certify(cnn(), ed.SoftEquivarianceConfig(group=group, softness=1.0))
        assert {row.level for row in rows} == {"kernel"}
        assert all("nothing is claimed of the image" in row.notes[0] for row in rows)
    assert [row.level for row in ed.certify(vit(), config)] == ["image", "image"]
    transposed = nn.Sequential(nn.ConvTranspose2d(2, 2, 3))
    (row,) = ed.certify(transposed, config)
    assert row.level == "kernel"
    assert "ConvTranspose2d" in row.notes[0]
