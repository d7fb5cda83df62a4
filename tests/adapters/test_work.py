"""How much work a softened model does: spectra shared, one filter per tensor and forward, nothing built again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import equidial as ed
from equidial.adapters import _parametrization
from equidial.adapters._parametrization import constrained, original_of
from equidial.filters import Spectrum
from tests.adapters.models import build, logits, relative


def softened(name: str, softness: float = 0.5) -> tuple[Any, torch.Tensor]:
    model, x = build(name)
    return ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=softness)), x


@pytest.fixture
def filtered(monkeypatch: pytest.MonkeyPatch) -> list[Spectrum]:
    """Which spectra were applied, in order."""
    calls: list[Spectrum] = []
    apply = _parametrization.apply_filter

    def counted(spectrum: Any, *rest: Any) -> torch.Tensor:
        calls.append(spectrum)
        return apply(spectrum, *rest)

    monkeypatch.setattr(_parametrization, "apply_filter", counted)
    return calls


@pytest.mark.parametrize("name", ["vit", "cnn", "resnet"])
def test_one_spectrum_for_each_space(name: str) -> None:
    links = [link for _, _, link in constrained(softened(name)[0])]
    assert len({id(link.spectrum) for link in links}) == len({link.constraint for link in links})


@pytest.mark.parametrize("name", ["cnn", "resnet"])  # transformers' ViT reads its position table twice
def test_one_filter_per_tensor_and_forward(name: str, filtered: list[Spectrum]) -> None:
    model, x = softened(name)
    count = sum(1 for _ in constrained(model))
    filtered.clear()
    for _ in range(2):
        logits(model, x)
    assert len(filtered) == 2 * count
    ed.fold(model)
    filtered.clear()
    logits(model, x)
    assert not filtered


def test_bases_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = softened("resnet")
    logits(model, x)
    monkeypatch.setattr(Spectrum, "_build_tensors", None)
    for spectrum in {type(link.spectrum) for _, _, link in constrained(model)}:
        monkeypatch.setattr(spectrum, "_build_tensors", None)
    logits(model, x)


@pytest.mark.parametrize("change", ["data", "in place", "replaced"])
def test_eval_hears_every_change_of_a_weight(change: str) -> None:
    # why nothing is kept from one forward to the next: a change through .data leaves no trace
    model, x = softened("cnn")
    before = logits(model, x)
    module, name, _ = next(iter(constrained(model)))
    original = original_of(module, name)
    with torch.no_grad():
        if change == "data":
            version = original._version
            original.data.mul_(2.0)
            assert original._version == version
        elif change == "in place":
            original.mul_(2.0)
        else:
            setattr(module, name, original * 2.0)
    assert relative(logits(model, x), before) > 1e-3


def test_the_untouched_weight_is_handed_on() -> None:
    module, name, link = next(iter(constrained(softened("cnn", 1.0)[0])))
    original = original_of(module, name)
    assert torch.equal(link(original), original)
    (gradient,) = torch.autograd.grad(link(original).sum(), original)
    assert torch.equal(gradient, torch.ones_like(original))
