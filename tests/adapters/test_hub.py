"""push and load by the hub's client over HTTP, its cache layout, and model cards as the hub reads them."""

from __future__ import annotations

import copy
import json
import math
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import equidial as ed
from equidial.errors import ArgumentError, FileFormatError, HubError, StateError
from tests.adapters.models import cnn, same_tensors, snapshot, vit
from tests.hub import TOKEN, Hub, running

FOUR = {"README.md", "certificate.json", "soft_equivariance.safetensors", "soft_equivariance_config.json"}
NAME = "someone/soft-net"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(tmp_path / "cache", monkeypatch) as found:
        yield found


def softened(softness: float = 0.4) -> tuple[Any, Any]:
    """A base model and its softened copy with another head."""
    base = cnn()
    model = ed.soften(copy.deepcopy(base), ed.SoftEquivarianceConfig(group="C4", softness=softness))
    with torch.no_grad():
        model.head.bias += 1
    return base, model


def test_a_folder_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    base, model = softened()
    ed.save(model, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"the folded weights stay here")
    (tmp_path / "run" / "notes.pkl").write_bytes(b"and so does whatever else there is")
    address = ed.push(tmp_path / "run", NAME, token=TOKEN)
    assert address.startswith(f"{hub.address}/{NAME}/commit/")
    files = hub.repositories[NAME]["main"]
    assert set(files) == FOUR
    assert all(content == (tmp_path / "run" / file).read_bytes() for file, content in files.items())
    hub.repositories[NAME]["main"]["pytorch_model.bin"] = b"a pickle that somebody added"
    hub.requests.clear()
    loaded = ed.load(copy.deepcopy(base), NAME)
    assert same_tensors(snapshot(loaded), snapshot(model))
    assert any("resolve" in request for request in hub.requests)
    assert not any("pytorch_model" in request for request in hub.requests), "nothing but the four files is fetched"


def test_a_model_goes_there_with_its_card(hub: Hub) -> None:
    base, model = softened()
    scores = ed.measure(model, [(torch.randn(3, 3, 9, 9), torch.arange(3))], "C4", epsilon_images=0)
    ed.push(model, NAME, token=TOKEN, scores={"noise": scores}, base_model="someone/net", license="mit", private=True)
    assert hub.private == {NAME}
    assert len(ed.status(model)) == 2, "the model is as it was"
    text = hub.repositories[NAME]["main"]["README.md"].decode()
    card: Any = ModelCard(text)
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("someone/net", "mit", "equidial")
    assert f'ed.load(base, "{NAME}")' in text
    with pytest.raises(HubError, match="pass token="):
        ed.load(copy.deepcopy(base), NAME)
    loaded = ed.load(copy.deepcopy(base), NAME, token=TOKEN)
    assert same_tensors(snapshot(loaded), snapshot(model))


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    base, model = softened(0.4)
    ed.push(model, NAME, token=TOKEN)
    ed.set_softness(model, 0.1)
    ed.push(model, NAME, token=TOKEN, revision="strict")
    found = {
        revision: ed.status(ed.load(copy.deepcopy(base), NAME, revision=revision)).tensors[0].dial
        for revision in (None, "main", "strict")
    }
    assert found == {None: "softness=0.4", "main": "softness=0.4", "strict": "softness=0.1"}
    with pytest.raises(HubError, match="a branch, a tag or a commit"):
        ed.load(copy.deepcopy(base), NAME, revision="absent")
    # what the client left on disk is the hub's cache layout: it loads as a folder, without the hub
    cached = tmp_path / "cache" / "models--someone--soft-net"
    hub.requests.clear()
    for revision, dial in (("strict", "softness=0.1"), (None, "softness=0.4")):
        loaded = ed.load(copy.deepcopy(base), cached, revision=revision)
        assert ed.status(loaded).tensors[0].dial == dial
    commit = (cached / "refs" / "strict").read_text()
    assert ed.status(ed.load(copy.deepcopy(base), cached, revision=commit)).tensors[0].dial == "softness=0.1"
    assert ed.status(ed.load(copy.deepcopy(base), cached / "snapshots" / commit)).tensors[0].dial == "softness=0.1"
    with pytest.raises(FileFormatError, match="pass one of them as revision"):
        ed.load(copy.deepcopy(base), cached, revision="absent")
    assert hub.requests == []


def test_a_cache_written_by_hand(tmp_path: Path) -> None:
    base, model = softened()
    cached = tmp_path / "models--someone--soft-net"
    ed.save(model, cached / "snapshots" / "c0ffee")
    loaded = ed.load(copy.deepcopy(base), cached)
    assert same_tensors(snapshot(loaded), snapshot(model)), "one snapshot and no reference: that one"
    shutil.copytree(cached / "snapshots" / "c0ffee", cached / "snapshots" / "decaf")
    with pytest.raises(FileFormatError, match="c0ffee, decaf"):
        ed.load(copy.deepcopy(base), cached)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("decaf\n")
    assert same_tensors(snapshot(ed.load(copy.deepcopy(base), str(cached))), snapshot(model))


def test_a_folder_here_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = softened()
    monkeypatch.chdir(tmp_path)
    ed.save(model, NAME)
    loaded = ed.load(copy.deepcopy(base), NAME)
    assert same_tensors(snapshot(loaded), snapshot(model))
    assert hub.requests == []
    with pytest.raises(ArgumentError, match="no revision for a plain folder"):
        ed.load(copy.deepcopy(base), NAME, revision="main")


def test_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache still loads; what is not says so."""
    base, model = softened()
    ed.push(model, NAME, token=TOKEN)
    ed.load(copy.deepcopy(base), NAME)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    before = snapshot(base)
    assert same_tensors(snapshot(ed.load(copy.deepcopy(base), NAME)), snapshot(model))
    with pytest.raises(HubError, match="check the network") as caught:
        ed.load(base, "someone/other-net")
    assert isinstance(caught.value, ed.EquidialError)
    assert isinstance(caught.value, OSError)
    with pytest.raises(HubError, match="check the network"):
        ed.push(model, NAME, token=TOKEN)
    assert same_tensors(snapshot(base), before)


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)


def edited(folder: Path) -> None:
    path = folder / "soft_equivariance_config.json"
    path.write_text(path.read_text().replace('"softness": 0.4', '"softness": 0.5'))


@pytest.mark.parametrize(
    ("spoil", "arguments", "error", "message"),
    [
        (None, {"repo_id": "someone"}, ArgumentError, "'user/name'"),
        (None, {"repo_id": "some one/net"}, ArgumentError, "'user/name'"),
        (None, {"repo_id": "a/b/c"}, ArgumentError, "'user/name'"),
        (None, {"scores": {}}, ArgumentError, "give them to save"),
        (None, {"base_model": "a/b"}, ArgumentError, "give them to save"),
        (None, {"license": "Apache License"}, ArgumentError, "identifier"),
        (None, {"token": "hf_wrong"}, HubError, "pass token="),
        (edited, {}, FileFormatError, "edited after saving"),
        (lambda f: (f / "certificate.json").unlink(), {}, FileFormatError, "certificate.json"),
        (lambda f: (f / "certificate.json").write_text("{"), {}, FileFormatError, "JSON"),
        (lambda f: (f / "README.md").unlink(), {}, FileFormatError, "README.md"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), {}, HubError, "metadata"),
        (shutil.rmtree, {}, FileFormatError, "without it"),
    ],
)
def test_what_is_not_pushed(
    spoil: Any, arguments: dict[str, Any], error: type[Exception], message: str, hub: Hub, tmp_path: Path
) -> None:
    ed.save(softened()[1], tmp_path / "run")
    if spoil is not None:
        spoil(tmp_path / "run")
    with pytest.raises(error, match=message) as caught:
        ed.push(tmp_path / "run", **{"repo_id": NAME, "token": TOKEN, **arguments})
    assert "do: " in str(caught.value)
    assert not any(hub.repositories.get(NAME, {}).values()), "no file arrived"


def test_a_plain_model_and_a_run_are_not_pushed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="a softened model"):
        ed.push(cnn(), NAME, token=TOKEN)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileFormatError, match="one dial position of this run"):
        ed.push(tmp_path, NAME, token=TOKEN)
    assert hub.requests == []


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = softened()
    ed.save(model, tmp_path)
    without("huggingface_hub", monkeypatch)
    assert same_tensors(snapshot(ed.load(copy.deepcopy(base), tmp_path)), snapshot(model))
    with pytest.raises(ArgumentError, match=r"equidial\[hf\]"):
        ed.load(base, NAME)
    with pytest.raises(ArgumentError, match=r"equidial\[hf\]"):
        ed.push(tmp_path, NAME)


@pytest.mark.parametrize("source", ["nothing", "./nothing", "a/b/c", "bad name/x", Path("someone/net")])
def test_what_can_be_no_repository_is_a_missing_folder(source: Any, hub: Hub) -> None:
    with pytest.raises(FileFormatError, match="without it"):
        ed.load(cnn(), source)
    assert hub.requests == []


# ---- model cards


def card_of(tmp_path: Path, **arguments: Any) -> tuple[Any, str]:
    ed.save(softened()[1], tmp_path, **arguments)
    return ModelCard.load(tmp_path / "README.md"), (tmp_path / "README.md").read_text()


def test_the_card_states_what_is_known_and_no_more(tmp_path: Path) -> None:
    card, text = card_of(tmp_path)
    assert card.data.to_dict() == {
        "library_name": "equidial",
        "tags": ["equivariance", "soft-equivariance", "group-C4"],
    }
    certificate = ed.Certificate.load(tmp_path / "certificate.json")
    assert f"constrained tensor: {certificate.bound:.4g}" in text
    for row in certificate:
        assert (
            f"| `{row.name}` | {row.representation} | {row.elements} | {row.bound:.4g} | exact | {row.level} |" in text
        )
    assert "| softness=0.4 | nearest | 2 | `first.weight`, `depthwise.weight` |" in text
    assert "## Measured" not in text
    assert str(tmp_path) not in text


CLASSIFIED = ed.Scores(0.9, 0.8, math.sqrt(0.72), 1.25e-5, math.nan, math.nan, 100, 3)
SEGMENTED = ed.SegmentationScores(0.5, 0.4, 0.447, 0.9, 0.8, 0.85, 0.01, 0.1, 0.05, 10, 3)
FEATURES = ed.FeatureScores(0.1, 0.2, math.nan, math.nan, 10, 3)


@pytest.mark.parametrize(
    ("scores", "task", "values", "absent"),
    [
        (CLASSIFIED, "image-classification", {"accuracy": 0.9, "aAcc": 0.8, "iErr": 1.25e-5}, "epsilon"),
        (SEGMENTED, "image-segmentation", {"mean_iou": 0.5, "accuracy": 0.9, "aIoU": 0.4}, "images"),
        (FEATURES, "image-feature-extraction", {"eErr_rel": 0.1}, "iErr_rel"),
    ],
)
def test_scores_become_a_model_index(
    scores: Any, task: str, values: dict[str, float], absent: str, tmp_path: Path
) -> None:
    card, text = card_of(tmp_path, scores={"CIFAR-10: test, \u201cclean\u201d \U0001f4f7": scores}, base_model="gpt2")
    results = card.data.eval_results
    found = {result.metric_type: result.metric_value for result in results}
    assert {key: found[key] for key in values} == values, "numbers, not texts, small ones included"
    assert all(isinstance(value, float) for value in found.values())
    assert absent not in {result.metric_name for result in results}
    assert {(r.task_type, r.dataset_name) for r in results} == {(task, "CIFAR-10: test, \u201cclean\u201d \U0001f4f7")}
    assert card.data.base_model == "gpt2"
    first = next(iter(scores))
    assert f"| {first} | {scores[first]:.4g} |" in text
    unnamed, _ = card_of(tmp_path, scores=scores)
    assert {r.dataset_name for r in unnamed.data.eval_results} == {"data without a name"}


def test_the_card_of_a_transformers_model_tells_how_to_build_it(tmp_path: Path) -> None:
    model = ed.soften(vit(), ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    ed.save(model, tmp_path, base_model="google/vit-base-patch16-224")
    text = (tmp_path / "README.md").read_text()
    assert 'ViTForImageClassification.from_pretrained("google/vit-base-patch16-224")' in text
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 6
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": 0.9}, "equidial.measure"),
        ({"scores": {"Acc": 0.9}}, "equidial.measure"),
        ({"scores": {"a\nb": CLASSIFIED}}, "equidial.measure"),
        ({"scores": {"a|b": CLASSIFIED}}, "equidial.measure"),
        ({"base_model": "/home/me/checkpoint"}, "base_model"),
        ({"base_model": "a/b\n---"}, "base_model"),
        ({"base_model": 3}, "base_model"),
        ({"license": ""}, "license"),
        ({"license": "MIT\nx"}, "license"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_what_a_card_cannot_say_is_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ed.save(softened()[1], tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_the_image_size_raises_the_level_of_the_certificate(tmp_path: Path) -> None:
    base = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2))
    model = ed.soften(base, ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    levels = []
    for size in (None, 9, 10):
        ed.save(model, tmp_path, image_size=size)
        document = json.loads((tmp_path / "certificate.json").read_text())
        levels.append(document["layers"][0]["level"])
        assert f"| {levels[-1]} | 1 |" in (tmp_path / "README.md").read_text()
    assert levels == ["kernel", "image", "kernel"]
