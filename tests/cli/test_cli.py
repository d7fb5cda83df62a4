"""The command line as a person uses it: results, exit codes, messages for what is typed wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import equidial as ed
from equidial.cli import main
from equidial.recipes import load_model
from tests.hub import TOKEN, running


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def small_npz(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{part}": rng.integers(0, 256, (n, 9, 9, 3), dtype=np.uint8) for part, n in (("train", 16), ("test", 8))
    }
    labels = {f"y_{part}": rng.integers(0, 4, n) for part, n in (("train", 16), ("test", 8))}
    np.savez(tmp_path / "small.npz", allow_pickle=False, **arrays, **labels)
    return str(tmp_path / "small.npz")


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text("from tests.adapters.models import cnn\n\n\ndef build():\n    return cnn()\n")
    return f"{tmp_path / 'net.py'}:build"


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    arguments = ("demo", "--output", str(folder), "--epochs", "1", "--seeds", "0", "--softness", "0", "0.5", "1")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert f"report: {folder / 'report.html'}" in out
    rows = [line.split() for line in out.splitlines() if line.strip() and line.split()[0] in ("0", "0.5", "1")]
    assert [float(row[0]) for row in rows] == [0.0, 0.5, 1.0]
    assert float(rows[0][5]) == 0.0, "iErr at softness 0"
    assert (folder / "report.html").stat().st_size > 50_000
    assert {p.name for p in folder.iterdir()} >= {"config.json", "metrics.jsonl", "report.html", "pictures-0.npz"}
    saved = folder / "softness-0.5-seed-0"
    assert {p.name for p in saved.iterdir()} >= {"model.safetensors", "certificate.json", "README.md"}

    code, out, _ = run(
        capsys, "certify", "--model", "demo", "--weights", str(saved / "model.safetensors"),
        "--config", str(saved / "soft_equivariance_config.json"), "--output", str(tmp_path / "c.json"),
        "--image-size", "16",
    )  # fmt: skip
    assert code == 0
    assert "patch_embed.weight" in out
    certified = ed.Certificate.load(tmp_path / "c.json")
    stored = ed.Certificate.load(saved / "certificate.json")
    assert [row.bound for row in certified] == [row.bound for row in stored], "recomputed from the folded weights alone"

    code, out, _ = run(
        capsys, "measure", "--model", "demo", "--data", "demo", "--weights", str(saved / "model.safetensors"), "--json"
    )
    assert code == 0
    scores = json.loads(out)
    tuned = next(
        r
        for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if r["stage"] == "tuned" and r["softness"] == 0.5
    )
    assert scores["aAcc"] == tuned["aAcc"]

    assert run(capsys, "demo", "--output", str(folder), "--group", "Q4")[0] == 2
    assert (folder / "report.html").exists(), "a refused demo deletes nothing"
    assert run(capsys, *arguments)[0] == 0, "a demo replaces an earlier one"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    code, _, err = run(capsys, "demo", "--output", str(tmp_path / "mine"))
    assert code == 2
    assert "holds other files" in err
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_adapt_a_model_from_a_file(
    tmp_path: Path, small_npz: str, model_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--softness 0 1 --epochs 1 --batch-size 8 --augment crop-flip --optimizer sgd --mean .4 .5 .6 --std .2 .2 .3 "
        "--exclude-modules depthwise --group D4"
    )
    where = ("--model", model_file, "--data", small_npz, "--output", str(tmp_path / "run"))
    code, out, _ = run(capsys, "adapt", *where, *options.split())
    assert code == 0
    assert "report:" in out
    certificate = ed.Certificate.load(tmp_path / "run" / "softness-0-seed-0" / "certificate.json")
    assert [row.name for row in certificate] == ["first.weight"]
    assert certificate.bound == 0.0


def test_measure_and_certify_plain_models(model_file: str, small_npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "measure", "--model", model_file, "--data", small_npz, "--group", "SO2", "--radius", "0.3"
    )
    assert code == 0
    assert "12 elements" in out
    code, out, _ = run(capsys, "certify", "--model", model_file, "--group", "SO2", "--radius", "0.3")
    assert code == 0
    assert "SO2 within 0.3 rad" in out
    assert "nothing is claimed of the image" in out


@pytest.fixture
def dense_file(tmp_path: Path) -> str:
    body = "from torch import nn\n\n\ndef build():\n    return nn.Conv2d(3, 4, 3, padding=1)\n"
    (tmp_path / "dense.py").write_text(body)
    return f"{tmp_path / 'dense.py'}:build"


@pytest.fixture
def masks_npz(tmp_path: Path, small_npz: str) -> str:
    rng = np.random.default_rng(1)
    with np.load(small_npz) as arrays:
        images = {key: arrays[key] for key in ("x_train", "x_test")}
    masks = {f"y_{part}": rng.integers(0, 4, (n, 9, 9)) for part, n in (("train", 16), ("test", 8))}
    np.savez(tmp_path / "masks.npz", allow_pickle=False, **images, **masks)
    return str(tmp_path / "masks.npz")


def test_measure_dense_outputs_and_a_curve(
    dense_file: str, masks_npz: str, small_npz: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("measure", "--model", dense_file, "--json", "--group", "C4")
    code, out, _ = run(capsys, *where, "--data", masks_npz, "--task", "segmentation")
    assert code == 0
    scores = json.loads(out)
    assert 0 < scores["aIoU"] < 0.5
    assert (scores["images"], scores["elements"]) == (8, 3)

    file = tmp_path / "curve.json"
    curve = ("--curve", str(file), "--disc")
    code, out, _ = run(capsys, *where, "--data", small_npz, "--task", "features", *curve)
    assert code == 0
    assert json.loads(out)["eErr_rel"] > 0
    document = json.loads(file.read_text())
    assert (document["task"], document["disc"], len(document["angles"])) == ("features", True, 37)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    file.unlink()
    assert run(capsys, *where, "--data", small_npz, "--task", "features", "--group", "Flip", *curve)[0] == 2
    assert not file.exists()


def test_certify_from_a_sample(
    model_file: str, small_npz: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "certify-sampled", "--model", model_file, "--data", small_npz, "--group", "SO2", "--tau", "0.1", "0.5",
        "--alpha", "0.05", "--samples", "8", "--batch-size", "3", "--output", str(tmp_path / "c.json"),
    )  # fmt: skip
    assert code == 0
    assert "confidence 0.95" in out
    stored = ed.StatisticalCertificate.load(tmp_path / "c.json")
    assert (stored.n, stored.thresholds, stored.group) == (8, (0.1, 0.5), "SO2")


def test_diagnose_prints_and_draws(tmp_path: Path, model_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "diagnosis"
    code, out, _ = run(capsys, "diagnose", "--model", "demo", "--angles", "--output", str(folder))
    assert code == 0
    assert "position table: 1 place" in out
    assert "degrees" in out
    page = (folder / "diagnosis.html").read_text()
    assert page.count("data:image/png") == 2
    assert "pos_embed" in page
    stored = ed.Diagnosis.load(folder / "diagnosis.json")
    assert {c.parameter for c in stored} == {"patch_embed.weight", "pos_embed"}
    code, out, _ = run(capsys, "diagnose", "--model", model_file, "--image-size", "12", "--json")
    assert code == 0
    assert ed.Diagnosis.from_dict(json.loads(out)).shape == (1, 3, 12, 12)


SAMPLED = ("certify-sampled", "--model", "demo", "--data", "demo", "--tau")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SAMPLED, "0.1", "--samples", "541"), "only 540"),
        ((*SAMPLED, "-0.1", "--samples", "10"), "distinct finite numbers >= 0"),
        ((*SAMPLED, "0.1", "--samples", "10", "--alpha", "1"), "alpha in (0, 1)"),
        (("measure", "--model", "demo", "--data", "demo", "--group", "C4x"), "C<n> and D<n>"),
        (("measure", "--model", "nothing", "--data", "demo"), "demo | hf:"),
        (("measure", "--model", "demo", "--data", "nothing"), "existing FILE.npz"),
        (("measure", "--model", "demo", "--data", "demo", "--task", "segmentation"), "existing FILE.npz for masks"),
        (("measure", "--model", "demo", "--data", "demo", "--task", "features"), "features as tokens"),
        (("measure", "--model", "demo", "--data", "demo", "--curve", "curve.png"), "a .json file for --curve"),
        (("push", "--folder", "nothing", "--repo", "me/net"), "written by equidial.save"),
        (("push", "--folder", "nothing", "--repo", "net"), "'user/name'"),
        (("certify", "--model", "demo"), "--group or --config"),
        (("measure", "--model", "demo", "--data", "SMALL"), "a model that reads images of (3, 9, 9)"),
        (("adapt", "--model", "NET", "--data", "MANY", "--output", "out"), "an output for each of the 5 classes"),
        (("certify", "--model", "demo", "--group", "C4", "--config", "x.json"), "--group or --config"),
        (("diagnose", "--model", "NET"), "--data or --image-size"),
        (("diagnose", "--model", "demo", "--group", "C3"), "permute pixels"),
        (("diagnose", "--model", "demo", "--data", "nothing"), "existing FILE.npz"),
        (("diagnose", "--model", "NET", "--data", "demo"), "reads an input of shape (1, 1, 16, 16)"),
        (("certify", "--model", "demo", "--config", "x.json"), "existing configuration file"),
        (("adapt", "--model", "demo", "--data", "demo", "--output", "out", "--softness", "1.5"), "softness in"),
        (
            ("adapt", "--model", "demo", "--data", "demo", "--output", "out", "--target-modules", "patch_embd"),
            "patch_embed",
        ),
    ],
)
def test_what_is_typed_wrong_gets_a_message_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_npz: str,
    model_file: str,
) -> None:
    with np.load(small_npz) as arrays:
        many = {**arrays, "y_test": np.full(8, 4)}
    np.savez(tmp_path / "many.npz", allow_pickle=False, **many)
    files = {"SMALL": small_npz, "NET": model_file, "MANY": str(tmp_path / "many.npz")}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = run(capsys, *(files.get(a, a) for a in arguments))
    assert code == 2
    assert err.startswith("error: expected")
    assert message in err
    assert "Traceback" not in err
    assert list((tmp_path / "here").iterdir()) == []


def test_push_a_dial_position_of_a_run(
    tmp_path: Path,
    small_npz: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run folder holds all that is needed: its card has the scores, its certificate the image's level."""
    file = tmp_path / "seeded.py"
    body = "def build():\n    torch.manual_seed(1)\n    return cnn()\n"
    file.write_text(f"import torch\nfrom tests.adapters.models import cnn\n\n\n{body}")
    where = ("--model", f"{file}:build", "--data", small_npz, "--output", str(tmp_path / "run"))
    # matched statistics change the model before it is softened, and nothing is trained: the base must still be told
    options = ("--softness", "0.5", "--epochs", "0", "--norm", "matched")
    assert run(capsys, "adapt", *where, *options)[0] == 0
    position = tmp_path / "run" / "softness-0.5-seed-0"
    with running(tmp_path / "cache", monkeypatch) as hub:
        code, _, err = run(capsys, "push", "--folder", str(position), "--repo", "me/net")
        assert code == 2
        assert "log in" in err
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        code, out, _ = run(capsys, "push", "--folder", str(position), "--repo", "me/net", "--private")
        assert code == 0
        assert out.startswith(f"pushed: {hub.address}/me/net/commit/")
        assert hub.private == {"me/net"}
        card: Any = ModelCard(hub.repositories["me/net"]["main"]["README.md"].decode())
        records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        tuned = next(record for record in records if record["stage"] == "tuned")
        found = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert found == {key: tuned[key] for key in found}
        assert "aAcc" in found
        assert {result.dataset_name for result in card.data.eval_results} == {"small"}
        assert str(tmp_path) not in card.content
        base = load_model(f"{file}:build")
        loaded = ed.fold(ed.load(base, "me/net"))
        folded = load_file(position / "model.safetensors")
        assert all(torch.equal(tensor, folded[name]) for name, tensor in loaded.state_dict().items())
        code, _, err = run(capsys, "push", "--folder", str(tmp_path / "run"), "--repo", "me/net")
        assert code == 2
        assert "one dial position" in err


def test_usage_errors_and_help_of_the_real_program() -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "equidial.cli", *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    shown = call("--help")
    assert shown.returncode == 0
    for word in ("demo", "adapt", "measure", "certify", "certify-sampled", "push"):
        assert word in shown.stdout
    details = call("adapt", "--help")
    assert "runs the code of that file" in " ".join(details.stdout.replace("│", " ").split())
    assert call("--version").stdout.strip() == f"equidial {ed.__version__}"
    wrong = call("adpat")
    assert wrong.returncode == 2
    assert "adapt" in wrong.stdout + wrong.stderr
