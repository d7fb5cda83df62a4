"""save and load: exact outputs from a fresh base model, and refusal of whatever is not the same."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

import equidial as ed
from equidial.adapters import _files
from equidial.adapters._state import tensor_hash
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


def reseal(path: Path) -> None:
    """Compute the hashes anew, as one would who edits on purpose: what is then still refused, other checks find."""
    document = json.loads((path / CONFIG).read_text())
    tensors = load_file(path / TENSORS)
    document["stored"]["tensors"] = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
    document["stored"]["document"] = "0" * 64
    text = json.dumps(document)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (path / CONFIG).write_text(text.replace("0" * 64, digest))


def sealed(change):
    """The change, with hashes that fit."""
    return lambda path: (change(path), reseal(path))


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(bytes(content))


def flip_in(name: str):
    """One bit of one tensor's contents flipped in the file."""

    def change(path: Path) -> None:
        tensor = load_file(path / TENSORS)[name]
        content = (path / TENSORS).read_bytes()
        data = tensor.numpy().tobytes()
        assert content.count(data) == 1
        flip(path / TENSORS, content.index(data))

    return change


def of_another_save(path: Path) -> None:
    """The tensor file of another save of the same network."""
    model = cnn()
    ed.save(ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.4)), path / "other")
    other = load_file(path / "other" / TENSORS)
    mine = load_file(path / TENSORS)
    save_file({**mine, **{k: t for k, t in other.items() if k.startswith("dial/")}}, path / TENSORS)


DAMAGE = {
    "unknown semantic key": (lambda p: edit(p, lambda d: d.update(strictness=1)), "unknown"),
    "unknown configuration key": (lambda p: edit(p, lambda d: d["config"].update(colour=1)), "colour"),
    "missing key": (lambda p: edit(p, lambda d: d.pop("base")), "missing"),
    "other format": (lambda p: edit(p, lambda d: d.update(format_version=99)), "format version 1"),
    "other construction": (
        lambda p: edit(p, lambda d: d["tensors"]["first.weight"].update(construction=["disc-harmonics-9"])),
        "disc-harmonics-9",
    ),
    "an axis for a kernel": (
        lambda p: edit(p, lambda d: d["tensors"]["first.weight"].update(axis=1)),
        "first.weight as .*'axis': 1",
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
    "JSON cut short": (
        lambda p: (p / CONFIG).write_bytes((p / CONFIG).read_bytes()[:300]),
        "readable soft_equivariance_config",
    ),
    "JSON in another encoding": (lambda p: (p / CONFIG).write_bytes(b"\xff\xfe{}"), "damaged"),
    "an endless nest": (lambda p: (p / CONFIG).write_text("[" * 200_000), "damaged"),
    "empty tensors": (lambda p: (p / TENSORS).write_bytes(b""), "readable soft_equivariance.safetensors"),
    "header cut short": (lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:40]), "damaged"),
    "header with a flipped bit": (lambda p: flip(p / TENSORS, 0), "damaged"),
    "no version": (lambda p: edit(p, lambda d: d.pop("format_version")), "format version 1"),
    "a version that is no number": (lambda p: edit(p, lambda d: d.update(format_version=True)), "True"),
    "a later format": (
        lambda p: edit(p, lambda d: d.update(format_version=2, library_version="9.9")),
        "9.9.*\n.*upgrade",
    ),
    "an earlier format": (lambda p: edit(p, lambda d: d.update(format_version=0)), "that equidial.save wrote"),
    "unknown key of the base": (lambda p: edit(p, lambda d: d["base"].update(shards=2)), r"base\.shards"),
    "missing key of the base": (lambda p: edit(p, lambda d: d["base"].pop("keys")), r"missing \['base.keys'\]"),
    "missing hashes": (lambda p: edit(p, lambda d: d["stored"].pop("tensors")), r"stored\.tensors"),
    "values of another kind": (
        lambda p: edit(p, lambda d: d.update(tensors=[1])),
        r"another kind of value at \['tensors'\]",
    ),
    "a base that is a text": (lambda p: edit(p, lambda d: d.update(base="cnn")), "another kind"),
    "hashes of another form": (lambda p: edit(p, lambda d: d["base"]["unchanged"].update(x="12")), "another kind"),
    "another group": (lambda p: edit(p, lambda d: d["config"].update(group="C5")), "group or dial were edited"),
    "an unknown group": (lambda p: edit(p, lambda d: d["config"].update(group="Q8")), "can build[\\s\\S]*'Q8'"),
    "two dials": (lambda p: edit(p, lambda d: d["config"].update(threshold=1.0)), "can build.*\n.*exactly one dial"),
    "a group that is a number": (lambda p: edit(p, lambda d: d["config"].update(group=4)), "can build"),
    "another softness": (
        lambda p: edit(p, lambda d: d["config"].update(softness=0.9)),
        r"edited after saving \(softness 0.9, the dials stand at 0.4\)",
    ),
    "another radius": (lambda p: edit(p, lambda d: d["config"].update(radius=0.1)), "edited after saving"),
    "another response": (lambda p: edit(p, lambda d: d["config"].update(response="hard")), "'response': 'nearest'"),
    "a flipped bit of a weight": (flip_in("head.bias"), "1 with other contents, e.g. head.bias"),
    "a flipped bit of a probe": (flip_in("probe/first.weight"), "construction changed|other contents"),
    "a flipped bit of a dial": (flip_in("dial/first.weight/threshold"), "other contents.*dial/first.weight/threshold"),
    "a dial below 0": (
        lambda p: edit_tensors(p, lambda t: t["dial/first.weight/threshold"].fill_(-1)),
        "one float64 number >= 0 for dial/first.weight/threshold",
    ),
    "a dial of another type": (
        lambda p: edit_tensors(p, lambda t: t.update({"dial/first.weight/budget": torch.zeros(2)})),
        "one float64 number",
    ),
    "an infinite reference": (
        lambda p: edit_tensors(p, lambda t: t["dial/first.weight/reference"].fill_(torch.inf)),
        "dial/first.weight/reference",
    ),
    "missing probe": (lambda p: edit_tensors(p, lambda t: t.pop("probe/first.weight")), "missing.*probe/first.weight"),
    "missing weight": (lambda p: edit_tensors(p, lambda t: t.pop("head.bias")), "missing.*head.bias"),
    "a dial too many": (
        lambda p: edit_tensors(p, lambda t: t.update({"dial/mix.weight/softness": torch.zeros(1)})),
        "besides.*dial/mix.weight/softness",
    ),
    "tensors of another save": (of_another_save, "other contents"),
    # with hashes that fit
    "sealed: another group": (
        sealed(lambda p: edit(p, lambda d: d["config"].update(group="C5"))),
        "group or dial were edited",
    ),
    "sealed: another construction": (
        sealed(lambda p: edit(p, lambda d: d["tensors"]["first.weight"].update(construction=[]))),
        "'construction': \\[\\]",
    ),
    "sealed: other tensors": (
        sealed(lambda p: edit(p, lambda d: d["config"].update(target_modules=["first"]))),
        "constrained tensors",
    ),
    "sealed: a weight of the base": (
        sealed(lambda p: edit(p, lambda d: d["base"]["unchanged"].update({"norm.eps": "0" * 64}))),
        "base weights that the folder relies on",
    ),
    "sealed: another response": (
        sealed(lambda p: edit(p, lambda d: d["config"].update(response="hard"))),
        "'response': 'nearest'",
    ),
    "a checkpoint": (
        lambda p: ((p / CONFIG).unlink(), (p / "model.safetensors").write_bytes((p / TENSORS).read_bytes())),
        "with model.safetensors\n.*that is a checkpoint",
    ),
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
    assert not any(parametrize.is_parametrized(module) for module in base.modules())
    assert ed.soften(base, ed.SoftEquivarianceConfig(group="C4", softness=0.4)) is base, "as good as new"


def test_what_an_edit_can_do_undetected(tmp_path: Path) -> None:
    """Hashes are no signature: whoever computes them anew may change a weight or turn a dial. docs/files.md says so."""
    model, x = build("cnn")
    base = copy.deepcopy(model)
    ed.soften(model, ed.SoftEquivarianceConfig(group="SO2", softness=0.4))
    ed.save(trained(model, x), tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["head.bias"] += 1
        tensors["dial/first.weight/threshold"].fill_(torch.inf)

    edit_tensors(tmp_path, change)
    with pytest.raises(FileFormatError, match="2 with other contents"):
        ed.load(copy.deepcopy(base), tmp_path)
    reseal(tmp_path)
    loaded = ed.load(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded.head.bias, model.head.bias + 1)
    assert torch.equal(loaded.first.weight, loaded.first.parametrizations.weight.original)
    with pytest.raises(ed.errors.CertificateError):
        ed.verify(ed.Certificate.load(tmp_path / "certificate.json"), loaded)


def test_line_ends_may_change(tmp_path: Path) -> None:
    """git writes them its own way on some systems."""
    model = cnn()
    base = copy.deepcopy(model)
    ed.save(ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.4)), tmp_path)
    content = (tmp_path / CONFIG).read_bytes()
    assert b"\r" not in content
    (tmp_path / CONFIG).write_bytes(content.replace(b"\n", b"\r\n"))
    assert same_tensors(snapshot(ed.load(base, tmp_path)), snapshot(model))


def changed_weight(model: Any) -> Any:
    model.depthwise.weight.data[0] += 1e-7
    return model


def randomised(model: Any) -> Any:
    """The same network from another checkpoint."""
    for tensor in model.parameters():
        tensor.data += torch.randn_like(tensor)
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
        (lambda m: build("vit")[0], "the base model of the folder.*\n.*ViTForImageClassification"),
        (lambda m: randomised(m), r"\d+ tensors with other contents"),
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
    assert sum(parametrize.is_parametrized(module) for module in base.modules()) in (0, 2 * ("softened" in message))


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
