"""Folders of the first format, kept for ever: what they say, what they give, and what is written now."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import equidial as ed
from tests.adapters.models import same_tensors, snapshot
from tests.golden import reader
from tests.golden.cases import CASES, Cnn, fill
from tests.golden.make import EXPECTED, make

ROOT = Path(__file__).parent / "format-1"
CONFIG, TENSORS = "soft_equivariance_config.json", "soft_equivariance.safetensors"

# Not bit for bit: sums run in another order on other processors and in other versions of torch. float64 holds the
# basis to 1e-9 (the tolerance of a probe), float32 has 6e-8 a sum; a wrong dial or another basis moves more than 1e-3.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and float((a - b).norm()) <= TOLERANCE[a.dtype] * float(b.norm())


def shape_of(value: Any) -> Any:
    """The keys of a document, all the way down, and the kind of each value."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return [shape_of(item) for item in value] if isinstance(value, list) else type(value).__name__


def test_every_folder_is_loaded() -> None:
    assert sorted(path.name for path in ROOT.iterdir()) == sorted(CASES)
    documents = [json.loads((ROOT / name / CONFIG).read_text()) for name in CASES]
    rows = [row for document in documents for row in document["tensors"].values()]
    assert {row["response"] for row in rows} == {"nearest", "hard", "taper", "exponential"}
    kinds = {(row["layout"], "view" in row) for row in rows}
    assert kinds == {("convolution", False), ("convolution", True), ("table", False), ("table", True)} | {
        ("linear", False), ("bias", False),
    }  # fmt: skip
    known = {"disc-harmonics-1", "disc-harmonics-mirror-1", "rings-1", "cosine-window-1"}
    assert {name for row in rows for name in row["construction"]} == known


def test_the_specification_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    words = set(re.findall(r"`([a-z_.]+)`", page))
    for name in CASES:
        document = json.loads((ROOT / name / CONFIG).read_text())
        rows, rules = list(document["tensors"].values()), document["config"].get("targets", [])
        assert {*document} - {"base", "stored"} <= words
        assert {f"{part}.{key}" for part in ("base", "stored") for key in document[part]} <= words
        assert {key for part in (document["config"], *rows, *rules) for key in part} <= words


@pytest.mark.parametrize("name", CASES)
def test_a_golden_folder_gives_the_model_it_held(name: str) -> None:
    case, folder = CASES[name], ROOT / name
    expected = load_file(folder / EXPECTED)
    model = ed.load(case.base(), folder)
    assert torch.equal(case.input(), expected["input"])
    with torch.no_grad():
        assert close(model(case.input()), expected["output"])
        assert not close(case.base()(case.input()), expected["output"]), "the untouched base is another model"
    rows = {row.name: row for row in ed.status(model)}
    plain = ed.fold(copy.deepcopy(model))
    state = plain.state_dict()
    softened = {key.removeprefix("softened/"): t for key, t in expected.items() if key.startswith("softened/")}
    assert softened
    for key, tensor in softened.items():
        assert close(state[key], tensor), key
    certificate = ed.Certificate.load(folder / "certificate.json")
    assert {row.name for row in certificate} == set(rows)
    for row in certificate:
        assert row.dial == rows[row.name].dial
    anew = ed.certify(model)
    for row in certificate:
        found = anew[row.name]
        assert found.bound == pytest.approx(row.bound, rel=1e-6, abs=1e-12)
        assert (found.level, found.kind, found.elements) == (row.level, row.kind, row.elements)


@pytest.mark.parametrize("name", [name for name in CASES if name != "cnn-nearest-so2-large"])
def test_the_certificate_stands_for_the_folded_model(name: str) -> None:
    """By hash of the weights where they come out bit for bit the same, as they do where the folder was made."""
    case, folder = CASES[name], ROOT / name
    model = ed.fold(ed.load(case.base(), folder))
    certificate = ed.Certificate.load(folder / "certificate.json")
    expected, state = load_file(folder / EXPECTED), model.state_dict()
    for row in certificate:
        stored = expected.get(f"softened/{row.name}")
        if stored is not None:
            state[row.name] = stored
    model.load_state_dict(state)
    document = json.loads((folder / CONFIG).read_text())
    ed.verify(certificate, model, ed.SoftEquivarianceConfig.from_dict(document["config"]))
    model.load_state_dict({key: value + (value.is_floating_point() and 1e-3) for key, value in state.items()})
    with pytest.raises(ed.errors.CertificateError):
        ed.verify(certificate, model, ed.SoftEquivarianceConfig.from_dict(document["config"]))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_written_now_has_the_same_form(name: str, tmp_path: Path) -> None:
    case, folder = CASES[name], ROOT / name
    make(case, tmp_path / "now")
    ed.save(ed.load(case.base(), folder), tmp_path / "again")
    golden = json.loads((folder / CONFIG).read_text())
    for written in (tmp_path / "now", tmp_path / "again"):
        document = json.loads((written / CONFIG).read_text())
        assert shape_of(document) == shape_of(golden)
        for key in ("format_version", "config", "tensors", "base"):
            assert document[key] == golden[key]
        old, new = load_file(folder / TENSORS), load_file(written / TENSORS)
        assert {k: (t.shape, t.dtype) for k, t in new.items()} == {k: (t.shape, t.dtype) for k, t in old.items()}
        for key, tensor in new.items():
            assert torch.allclose(tensor, old[key], rtol=1e-9, atol=1e-9, equal_nan=True), key
        certificates = [json.loads((path / "certificate.json").read_text()) for path in (written, folder)]
        assert shape_of(certificates[0]) == shape_of(certificates[1])
    with pytest.raises(FileExistsError, match="golden"):
        make(case, tmp_path / "now")


@pytest.mark.parametrize("name", ["cnn-nearest-c4", "vit-taper-o2"])
def test_golden_folders_without_the_latest_keys_are_read(name: str, tmp_path: Path) -> None:
    """As they were written before there were hashes of the contents, and places of the rows of a table."""
    case = CASES[name]
    shutil.copytree(ROOT / name, tmp_path / "old")
    document = json.loads((tmp_path / "old" / CONFIG).read_text())
    del document["stored"]
    for row in document["tensors"].values():
        row.pop("axis", None)
        row.pop("start", None)
    (tmp_path / "old" / CONFIG).write_text(json.dumps(document))
    old, new = ed.load(case.base(), tmp_path / "old"), ed.load(case.base(), ROOT / name)
    assert same_tensors(snapshot(old), snapshot(new))


def base_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """The small network in float64 under C4, with a head and a constrained weight that moved."""
    model: Any = Cnn().double().eval()
    fill(model)
    base = base_arrays(model)
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.4))
    ed.set_dial(model, threshold=0.3, target_modules=["depthwise"])
    with torch.no_grad():
        model.head.bias += 0.25
        model.get_parameter("first.parametrizations.weight.original")[0] *= 1.5
    folder = tmp_path_factory.mktemp("double")
    ed.save(model, folder)
    return folder, base, dict(ed.fold(model).state_dict())


def test_the_specification_is_enough_for_a_reader(double: tuple[Path, Any, dict[str, torch.Tensor]]) -> None:
    """tests/golden/reader.py knows docs/files.md and nothing of equidial: the same tensors to 1e-12."""
    folder, base, folded = double
    assert not {"equidial", "torch"} & {
        part.split(".")[0]
        for node in ast.walk(ast.parse(Path(reader.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for part in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    tensors = reader.read(folder, base)
    assert sorted(tensors) == sorted(folded)
    for name, tensor in folded.items():
        assert tensors[name].shape == tuple(tensor.shape)
        assert float(np.abs(tensors[name] - tensor.numpy()).max()) <= 1e-12, name
    for name in ("first.weight", "depthwise.weight"):
        assert float(np.abs(tensors[name] - base[name]).max()) > 1e-2, "the filter did something"
    assert np.array_equal(tensors["head.bias"], base["head.bias"] + 0.25)


@pytest.mark.parametrize("name", ["cnn-nearest-c4", "stack-learned-c4"])
def test_the_reader_reads_golden_folders_too(name: str) -> None:
    expected = load_file(ROOT / name / EXPECTED)
    tensors = reader.read(ROOT / name, base_arrays(CASES[name].base()))
    softened = [key.removeprefix("softened/") for key in expected if key.startswith("softened/")]
    assert len(softened) == {"cnn-nearest-c4": 2, "stack-learned-c4": 3}[name]
    for key in softened:
        assert np.abs(tensors[key] - expected[f"softened/{key}"].numpy()).max() <= 1e-6


def test_learned_dials_go_on_learning_from_where_they_stood() -> None:
    """The three dials of the golden folder are inside, below 0 and above 1."""
    name = "stack-learned-c4"
    case, stored = CASES[name], load_file(ROOT / name / TENSORS)
    model = ed.load(case.base(), ROOT / name)
    assert [row.learned for row in ed.status(model)] == [True] * 3
    numbers = {key: p.item() for key, p in model.named_parameters() if key.endswith("learned_softness")}
    assert numbers == {f"{layer}.parametrizations.weight.0.learned_softness": x for layer, x in case.learned}
    for layer, x in case.learned:
        dial = {key: float(stored[f"dial/{layer}.weight/{key}"]) for key in ("threshold", "softness", "reference")}
        share = min(max(x, 0.0), 1.0)
        assert dial["threshold"] == pytest.approx(share * dial["reference"] * (1 + 1e-5 * (share == 1)), rel=1e-12)
        assert dial["softness"] == pytest.approx(share if share < 1 else np.nan, nan_ok=True)
    assert ed.relaxation_penalty(model).item() == 0.28125 + 0 + 1
    model(case.input()).square().sum().backward()
    gradients = [link.grad for key, link in model.named_parameters() if key in numbers]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert gradients[0].abs() > 0


def test_the_reader_refuses_what_it_must(double: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, base, _ = double
    with pytest.raises(reader.Refused, match="other weights"):
        reader.read(folder, base | {"first.bias": base["first.bias"] + 1})
    with pytest.raises(reader.Refused, match="another model"):
        reader.read(folder, base | {"more": base["first.bias"]})
    shutil.copytree(folder, tmp_path / "edited")
    text = (tmp_path / "edited" / CONFIG).read_text()
    (tmp_path / "edited" / CONFIG).write_text(text.replace('"softness": 0.4', '"softness": 0.5'))
    with pytest.raises(reader.Refused, match="edited document"):
        reader.read(tmp_path / "edited", base)


@pytest.mark.parametrize("grid", [(3, 3), (5, 5), (12, 12), (13, 13), (37, 37)])
def test_the_reader_and_the_library_agree_on_probes(grid: tuple[int, int]) -> None:
    """Up to 256 entries all of them, beyond that the same ones: 310 is a count at which rounding decides."""
    rep = ed.representations.Pixels(ed.groups.C(4), grid)
    kernel: Any = torch.nn.Conv2d(1, 1, grid[0])
    ed.soften(kernel, ed.SoftEquivarianceConfig(group="C4", softness=0.5))
    from equidial.adapters._files import probe_image

    link = kernel.parametrizations["weight"][0]
    assert link.constraint.rep_in == rep
    assert np.allclose(reader.probe_image(grid), probe_image(link).numpy(), rtol=1e-11, atol=1e-11)
    for count in (310, 358, 526, 2 * grid[0] * grid[1]):
        wanted = torch.linspace(0, count - 1, min(count, 256), dtype=torch.float64).long().numpy()
        assert np.array_equal(reader.picks(count), wanted)


def test_make_leaves_what_is_there() -> None:
    command, root = [sys.executable, "-m", "tests.golden.make"], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
