"""save and load: exact outputs from a fresh base model, and refusal of whatever is not the same."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import equidial as ed
from equidial.adapters import _files
from equidial.errors import FileFormatError, StateError
from tests.adapters.models import SPACES, VectorMlp, build, cnn, logits, same_tensors, snapshot

CONFIG, TENSORS = "soft_equivariance_config.json", "soft_equivariance.safetensors"


def trained(model: nn.Module, x: torch.Tensor, steps: int = 2) -> nn.Module:
    """A few steps that move weights, head and batch-norm statistics."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x)
        getattr(output, "logits", output).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["vit", "resnet", "cnn"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("group", ["C4", "SO2"])
def test_a_fresh_base_reproduces_outputs_exactly(name: str, train: bool, group: str, tmp_path: Path) -> None:
    model, x = build(name)
    base = copy.deepcopy(model)
    ed.soften(model, ed.SoftEquivarianceConfig(group=group, softness=0.4))
    if train:
        trained(model, x)
    ed.set_softness(model, 0.3)
    y, rows = logits(model, x), list(ed.status(model))
    ed.save(model, tmp_path / "a" / "b")
    loaded = ed.load(copy.deepcopy(base), tmp_path / "a" / "b")
    assert torch.equal(logits(loaded, x), y)
    assert list(ed.status(loaded)) == rows
    assert same_tensors(snapshot(ed.fold(copy.deepcopy(loaded))), snapshot(ed.fold(copy.deepcopy(model))))
    ed.save(loaded, tmp_path / "again")
    for file in (CONFIG, TENSORS, "certificate.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "a" / "b" / file).read_bytes()
    stored = {k for k in load_file(tmp_path / "again" / TENSORS) if not k.startswith(("dial/", "probe/"))}
    if not train:
        assert stored == set(), "an untrained model stores nothing of the base"
    else:
        assert "head.bias" in stored or "classifier.bias" in stored or "classifier.1.bias" in stored
    ed.set_softness(loaded, 1.0)


def test_declared_representations_and_other_dials(tmp_path: Path) -> None:
    model, x = VectorMlp(), torch.randn(3, 11)
    base = copy.deepcopy(model)
    ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.5, representations=SPACES))
    ed.set_dial(model, threshold=0.4, target_modules=["inner"])
    y = model(x)
    ed.save(model, tmp_path)
    loaded = ed.load(base, tmp_path)
    assert torch.equal(loaded(x), y)
    assert [row.dial for row in ed.status(loaded)] == [row.dial for row in ed.status(model)]


def test_the_folder_is_plain_and_readable(tmp_path: Path) -> None:
    model = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="C4", softness=0.4))
    ed.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "certificate.json", TENSORS, CONFIG]
    document = json.loads((tmp_path / CONFIG).read_text())
    assert document["format_version"] == 1
    assert document["config"]["group"] == "C4"
    assert document["tensors"]["first.weight"]["input"] == "Pixels(3,3)"
    card = (tmp_path / "README.md").read_text()
    assert "softness=0.4" in card
    assert 'ed.load(base, "this-folder")' in card
    assert ed.Certificate.load(tmp_path / "certificate.json") == ed.certify(model)
    sectors = ed.soften(cnn(), ed.SoftEquivarianceConfig(group="SO2", softness=0.4))
    ed.save(sectors, tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text())
    assert document["tensors"]["first.weight"]["construction"] == ["disc-harmonics-1"]


def edit(path: Path, change) -> None:
    document = json.loads((path / CONFIG).read_text())
    change(document)
    (path / CONFIG).write_text(json.dumps(document))


def edit_tensors(path: Path, change) -> None:
    tensors = load_file(path / TENSORS)
    change(tensors)
    save_file(tensors, path / TENSORS, metadata={"format": "pt"})


DAMAGE = {
    "unknown semantic key": (lambda p: edit(p, lambda d: d.update(strictness=1)), "unknown"),
    "unknown configuration key": (lambda p: edit(p, lambda d: d["config"].update(colour=1)), "colour"),
    "missing key": (lambda p: edit(p, lambda d: d.pop("base")), "missing"),
    "other format": (lambda p: edit(p, lambda d: d.update(format_version=99)), "format version 1"),
    "other construction": (
        lambda p: edit(p, lambda d: d["tensors"]["first.weight"].update(construction=["disc-harmonics-9"])),
        "disc-harmonics-9",
    ),
    "other tensors": (lambda p: edit(p, lambda d: d["tensors"].pop("first.weight")), "constrained tensors"),
    "another filter than the probe tells": (
        lambda p: edit_tensors(p, lambda t: t.update({"probe/first.weight": t["probe/first.weight"] + 1e-6})),
        "construction changed",
    ),
    "missing dial": (lambda p: edit_tensors(p, lambda t: t.pop("dial/first.weight/threshold")), "missing"),
    "tensor of another shape": (
        lambda p: edit_tensors(p, lambda t: t.update({"head.bias": torch.zeros(5)})),
        "head.bias",
    ),
    "tensor of no module": (lambda p: edit_tensors(p, lambda t: t.update({"tail.bias": torch.zeros(5)})), "tail.bias"),
    "not JSON": (lambda p: (p / CONFIG).write_text("{"), "damaged"),
    "a list": (lambda p: (p / CONFIG).write_text("[]"), "list"),
    "truncated tensors": (lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:-9]), "damaged"),
    "no tensors": (lambda p: (p / TENSORS).unlink(), "without it"),
    "no folder": (lambda p: shutil.rmtree(p), "without it"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_foreign_folders_are_refused(damage: str, tmp_path: Path) -> None:
    model, x = build("cnn")
    base = copy.deepcopy(model)
    ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.4))
    ed.save(trained(model, x), tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    before = snapshot(base)
    with pytest.raises(FileFormatError, match=message) as caught:
        ed.load(base, tmp_path)
    assert isinstance(caught.value, ValueError)
    assert "do: " in str(caught.value)
    assert same_tensors(snapshot(base), before)
    assert len(ed.status(base)) == 0


def changed_weight(model: Any) -> Any:
    model.depthwise.weight.data[0] += 1e-7
    return model


def changed_statistics(model: Any) -> Any:
    model.norm.running_mean[0] += 1
    return model


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (changed_weight, "other contents.*depthwise.weight"),
        (changed_statistics, r"norm\.running_mean"),
        (lambda m: m.double(), "other contents"),
        (lambda m: VectorMlp(), "the base model of the folder"),
        (lambda m: ed.soften(m, ed.SoftEquivarianceConfig(group="C4", softness=0.1)), "softened already"),
    ],
)
def test_another_base_is_refused(alter, message: str, tmp_path: Path) -> None:
    model = cnn()
    base = copy.deepcopy(model)
    ed.save(ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.4)), tmp_path)
    base = alter(base)
    before = snapshot(base)
    with pytest.raises((FileFormatError, StateError), match=message):
        ed.load(base, tmp_path)
    assert same_tensors(snapshot(base), before)


def test_a_changed_construction_is_found_by_its_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The basis is built otherwise than when the folder was written: refused, not silently another model."""
    model = cnn()
    base = copy.deepcopy(model)
    ed.save(ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.4)), tmp_path)
    from equidial.representations import _circle

    monkeypatch.setattr(_circle, "_ACCEPT", 0.7)
    with pytest.raises(FileFormatError, match="construction changed"):
        ed.load(base, tmp_path)


def test_probe_images_do_not_depend_on_the_weights() -> None:
    links = []
    for _ in range(2):
        model = cnn()
        ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.4))
        links.append(model.first.parametrizations.weight[0])
    assert torch.equal(_files.probe_image(links[0]), _files.probe_image(links[1]))
