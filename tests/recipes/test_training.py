"""Fine-tuning by distillation and with batch norm held: closed forms, and whole adaptations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import equidial as ed
from equidial.data import Split, load_images, loader
from equidial.errors import ArgumentError
from equidial.metrics import invariance_kl
from equidial.recipes import Adapt, load_model
from equidial.recipes._training import divergence, freeze_norms, restore_statistics, taught
from equidial.recipes.adapt import run
from equidial.reporting import write_table
from tests.adapters.models import cnn

BUFFERS = ("norm.running_mean", "norm.running_var")


@pytest.fixture
def adaptation(tmp_path: Path) -> Adapt:
    """The tiny network on noise: quick, and with a batch norm."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"x_{part}": rng.integers(0, 256, (24, 9, 9, 3), dtype=np.uint8) for part in ("train", "test")
    }
    np.savez(tmp_path / "noise.npz", **arrays, y_train=np.arange(24) % 4, y_test=np.arange(24) % 4)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.adapters.models import cnn\n\n\n"
        "def build():\n    torch.manual_seed(1)\n    return cnn()\n"
    )
    return Adapt(
        model=f"{tmp_path / 'net.py'}:build", data=str(tmp_path / "noise.npz"), output=tmp_path / "run",
        softness=(0.0,), epochs=2, batch_size=8, learning_rate=1e-2, loss="distillation", norm="frozen",
        augment="turn", epsilon_images=0,
    )  # fmt: skip


def folded(config: Adapt, softness: float = 0.0) -> dict[str, torch.Tensor]:
    return load_file(config.output / f"softness-{softness:g}-seed-0" / "model.safetensors")


def losses(config: Adapt) -> list[float]:
    records = map(json.loads, (config.output / "metrics.jsonl").read_text().splitlines())
    return [r["loss"] for r in records if r["stage"] == "epoch"]


def test_what_the_teacher_says() -> None:
    model, x = cnn(), torch.randn(7, 3, 9, 9)
    split = taught(model, Split(TensorDataset(x, torch.zeros(7))), 3)
    said = torch.stack([split.dataset[i][1] for i in range(len(split))])
    with torch.no_grad():
        assert torch.allclose(said, model(x), atol=1e-6)
    assert torch.equal(split.dataset[4][0], x[4])
    assert next(iter(loader(split, 5)))[1].shape == (5, 4)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(x))

    again = taught(Wrapped(), Split(TensorDataset(x, torch.zeros(7))), 3)
    assert torch.equal(again.dataset[6][1], said[6])


def test_the_divergence_is_the_teachers_from_the_students() -> None:
    teacher, student = torch.randn(2, 5, 4)
    assert float(divergence(student, teacher)) == pytest.approx(float(invariance_kl(teacher, student).mean()), rel=1e-5)
    assert float(divergence(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)
    assert float(divergence(torch.zeros(1, 2), torch.tensor([[0.0, 200.0]]))) == pytest.approx(np.log(2))


def fold_norm(model: Any) -> None:
    """Put batch norm into the convolution before it, as exported checkpoints have it."""
    norm, conv = model.norm, model.first
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.sub_(scale * (norm.running_mean - conv.bias))
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias.zero_()
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def test_statistics_are_restored_and_the_function_stays() -> None:
    model, x = cnn(), torch.randn(40, 3, 9, 9)
    with torch.no_grad():
        before, features = model(x), model.norm(model.first(x))
        fold_norm(model)
        assert torch.allclose(model(x), before, atol=1e-5)
        restore_statistics(model, [(x[:20], None), (x[20:], None)])
        assert torch.allclose(model(x), before, atol=1e-5)
        inside = model.first(x).transpose(0, 1).flatten(1)
        assert torch.allclose(model.norm.running_mean, inside.mean(1), atol=1e-5)
        assert torch.allclose(model.norm.running_var, inside.var(1), rtol=0.05)
    assert not model.norm._forward_pre_hooks
    ed.soften(model, ed.SoftEquivarianceConfig(group="C4", softness=0.0))
    ed.recalibrate(model, [(x, None)])
    with torch.no_grad():
        soft = model.norm(model.first(x))
    for moment in (torch.mean, torch.std):
        assert torch.allclose(moment(soft, (0, 2, 3)), moment(features, (0, 2, 3)), atol=0.02)
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False)).eval()
    restore_statistics(plain, [(x, None)])
    assert float(plain[1].running_mean.abs().max()) == 0, "left alone without weights"  # type: ignore[union-attr]


def test_freezing_is_undone_by_train() -> None:
    model = cnn().train()
    freeze_norms(model)
    assert not model.norm.training
    assert model.first.training
    assert model.train().norm.training


def test_distillation_reads_no_labels_and_repeats(adaptation: Adapt, tmp_path: Path) -> None:
    first = run(adaptation)[0]
    assert first.tuned.iErr < 1e-9
    assert losses(adaptation)[-1] < losses(adaptation)[0]
    with np.load(adaptation.data) as arrays:
        np.savez(tmp_path / "other.npz", allow_pickle=False, **{**arrays, "y_train": (arrays["y_train"] + 1) % 4})
    again = run(replace(adaptation, data=str(tmp_path / "other.npz"), output=tmp_path / "again"))[0]
    assert again.tuned.to_dict().items() >= {k: v for k, v in first.tuned.to_dict().items() if v == v}.items()
    other = replace(adaptation, loss="labels", output=tmp_path / "labels")
    assert run(other)[0].tuned.iErr != again.tuned.iErr or losses(other) != losses(adaptation)


def test_the_teacher_is_the_model_as_it_came(adaptation: Adapt, tmp_path: Path) -> None:
    """An untouched student has nothing to learn from upright images, whatever was adapted before it."""
    config = replace(adaptation, softness=(0.0, 1.0), augment="none", optimizer="sgd")
    run(config)
    strict, free = losses(config)[:2], losses(config)[2:]
    assert strict[0] > 1e-6
    assert max(free) < 1e-7  # rounding of log-probabilities in float32
    x = load_images(config.data).test.dataset[0][0][None]
    model = load_model(config.model)
    with torch.no_grad():
        before = model(x)
        model.load_state_dict(folded(config, 1.0))
        assert torch.allclose(model(x), before, atol=1e-5)


def test_what_becomes_of_batch_norm(adaptation: Adapt, tmp_path: Path) -> None:
    came = load_model(adaptation.model).state_dict()
    found = {}
    for norm in ("frozen", "matched", "train"):
        config = replace(adaptation, norm=norm, output=tmp_path / norm)
        run(config)
        found[norm] = folded(config)
        words = "as they came" if norm == "frozen" else "re-estimated"
        assert f"batch-norm statistics {words}" in write_table(config.output).read_text()
    for name in BUFFERS:
        assert torch.equal(found["frozen"][name], came[name])
        assert not torch.allclose(found["matched"][name], came[name], rtol=1e-3)
        assert not torch.allclose(found["train"][name], found["matched"][name], rtol=1e-3)
    assert not torch.equal(found["frozen"]["norm.weight"], came["norm.weight"]), "the weights are trained all the same"
    still = run(replace(adaptation, norm="matched", epochs=0, softness=(1.0,), output=tmp_path / "still"))[0]
    frozen = run(replace(adaptation, epochs=0, softness=(1.0,), output=tmp_path / "frozen-still"))[0]
    assert still.tuned.iErr == pytest.approx(frozen.tuned.iErr, rel=0.05), "matched changes no untouched network"


def test_epsilon_can_be_left_out(adaptation: Adapt, tmp_path: Path) -> None:
    outcome = run(replace(adaptation, epochs=0))[0]
    assert np.isnan(outcome.tuned.epsilon)
    text = (adaptation.output / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert '"epsilon"' not in text
    assert "| – |" in write_table(adaptation.output).read_text()
    some = run(replace(adaptation, epochs=0, epsilon_images=2, output=tmp_path / "some"))[0]
    assert some.tuned.epsilon > 0


@pytest.mark.parametrize("stop", [2, 4, 6], ids=["before an epoch ended", "within", "after the last step"])
def test_an_interrupted_adaptation_ends_as_an_uninterrupted_one(adaptation: Adapt, tmp_path: Path, stop: int) -> None:
    """The second of two positions is cut off; the first is read, the second goes on from its last epoch."""
    config = replace(adaptation, softness=(0.5, 0.0), norm="train", augment="group")
    whole = run(replace(config, output=tmp_path / "whole"))

    class Stop(Exception):
        pass

    def progress(done: int, total: int, text: str) -> None:
        if done == 7 + stop:  # three batches, two epochs, one line at the end
            raise Stop

    with pytest.raises(Stop):
        run(config, progress)
    log = config.output / "metrics.jsonl"
    log.write_text(log.read_text() + '{"stage": "epo')  # the machine went away
    steps: list[tuple[int, int, str]] = []
    found = run(config, lambda *step: steps.append(step))
    said = [text for _, _, text in steps]
    assert said[0] == "softness 0.5 seed 0 is done"
    assert ("softness 0 seed 0 goes on" in said) == (stop > 3)
    assert len([text for text in said if "loss" in text]) == (6 if stop <= 3 else 3)
    assert steps[-1][:2] == (14, 14)
    for one, other in zip(found, whole, strict=True):
        assert (one.softened, one.tuned) == (other.softened, other.tuned) or one.tuned.epsilon != one.tuned.epsilon
        assert one.tuned.iErr == other.tuned.iErr
    for file in (tmp_path / "whole").rglob("model.safetensors"):
        one, other = load_file(file), load_file(config.output / file.relative_to(tmp_path / "whole"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    stages = [json.loads(line)["stage"] for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["softened", "epoch", "epoch", "tuned"] * 2
    assert not list(config.output.glob("checkpoint*"))


def test_a_folder_is_one_process_s(adaptation: Adapt) -> None:
    """Another process in it, or another adaptation, is refused and told."""
    adaptation.output.mkdir()
    with (
        FileLock(adaptation.output / "run.lock"),
        pytest.raises(ArgumentError, match="no other process works in"),
    ):
        run(adaptation)
    assert not (adaptation.output / "metrics.jsonl").exists()
    (adaptation.output / "config.json").write_text('{"recipe": "mnist"}')
    with pytest.raises(ArgumentError, match="another model"):
        run(adaptation)
