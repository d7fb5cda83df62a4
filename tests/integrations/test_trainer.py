"""The Trainer of transformers: schedules, learned dials, retract mode, logs and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import equidial as ed
from equidial.adapters._parametrization import constrained
from equidial.errors import ArgumentError, EquidialError, FileFormatError, StateError
from equidial.integrations import DialCallback
from tests.adapters.models import resnet, same_tensors, snapshot


class Squares(torch.utils.data.Dataset):
    """Random images with labels, the same every time."""

    def __init__(self, count: int = 32):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 3, 32, 32, generator=generator)
        self.y = torch.randint(10, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def plain() -> Any:
    """A model of transformers; the Trainer saves it with ``save_pretrained``."""
    torch.manual_seed(2)
    return resnet()


def soft_model(learned: bool = False, softness: float = 0.8) -> Any:
    model = ed.soften(plain(), ed.SoftEquivarianceConfig(group="C4", softness=softness))
    return ed.learn_dial(model) if learned else model


def trainer(model: Any, callback: Any, folder: Path, **more: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"max_steps": 6, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "seed": 3} | more,
    )
    return Trainer(model=model, args=arguments, train_dataset=Squares(), callbacks=[callback])


MODES = ["scheduled", "learned", "retracted"]


def build(mode: str) -> tuple[Any, Any]:
    model = soft_model(learned=mode == "learned")
    if mode == "learned":
        return model, DialCallback(penalty=0.05)
    return model, DialCallback(ed.DialSchedule(model, "linear", 0.8, 0.2, 4), retract=mode == "retracted")


@pytest.mark.parametrize("mode", MODES)
def test_it_trains_logs_and_resumes_bit_for_bit(mode: str, tmp_path: Path) -> None:
    model, callback = build(mode)
    run = trainer(model, callback, tmp_path / "whole")
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    names = [f"dial/{link.name}" for _, _, link in constrained(model)]
    assert len(logs) == 6
    for t, log in enumerate(logs, start=1):
        if mode == "learned":
            assert log["relaxation_penalty"] == pytest.approx(sum(log[name] for name in names))
        else:
            assert [log[name] for name in names] == pytest.approx([0.8 - 0.15 * min(t, 4)] * len(names))
    if mode == "learned":
        assert logs[-1]["relaxation_penalty"] < logs[0]["relaxation_penalty"]
    assert not any(row.retracted for row in ed.status(model)), "constrain mode again"

    again, callback = build(mode)
    resumed = trainer(again, callback, tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same_tensors(snapshot(again), snapshot(model))
    assert resumed.state.global_step == 6


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_penalty_adds_its_gradient_once_per_step(accumulation: int, tmp_path: Path) -> None:
    """Plain SGD: with and without penalty a dial differs by learning rate times weight, in its first step."""
    found = []
    for penalty in (0.0, 0.5):
        model = soft_model(learned=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run = trainer(
            model,
            DialCallback(penalty=penalty),
            tmp_path / str(penalty),
            max_steps=1,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=1e-3,
        )
        run.optimizer = optimizer
        run.train()
        found.append([float(link.share().detach()) for _, _, link in constrained(model)])
    for without, with_penalty in zip(*found, strict=True):
        assert without - with_penalty == pytest.approx(0.01 * 0.5, rel=1e-4)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for penalty in (-1.0, float("nan"), True, "0.1"):
        with pytest.raises(ArgumentError, match="penalty >= 0"):
            DialCallback(penalty=penalty)  # type: ignore[arg-type]
    model = soft_model()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    ed.learn_dial(model)
    restoring = DialCallback()
    restoring.restored = [{}]
    cases: list[tuple[Any, Any, dict[str, Any], type[EquidialError], str]] = [
        (model, DialCallback(penalty=0.1), {"optimizer": early}, StateError, "holds the learned dials"),
        (soft_model(), DialCallback(penalty=0.1), {}, StateError, "call learn_dial before training"),
        (plain(), DialCallback(retract=True), {}, StateError, "softened model for retract"),
        (soft_model(), restoring, {}, StateError, "restore_callback_states_from_checkpoint"),
    ]
    for model, callback, more, error, message in cases:
        run = trainer(model, callback, tmp_path, max_steps=1)
        run.optimizer = more.get("optimizer")
        before = snapshot(model)
        with pytest.raises(error, match=message):
            run.train()
        assert same_tensors(snapshot(model), before)


def test_checkpoints_of_other_schedules_are_refused(tmp_path: Path) -> None:
    model, callback = build("scheduled")
    trainer(model, callback, tmp_path, max_steps=3).train()
    for schedules, message in (
        (lambda m: [ed.DialSchedule(m, "linear", 0.8, 0.1, 4)], "of another schedule"),
        (lambda m: [], "0 schedules"),
    ):
        other = soft_model()
        run = trainer(other, DialCallback(schedules(other)), tmp_path)
        with pytest.raises(FileFormatError, match=message):
            run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_package_loads_transformers_only_when_asked() -> None:
    import subprocess
    import sys

    probe = (
        "import sys, equidial, equidial.integrations as i; assert 'transformers' not in sys.modules;"
        "assert 'DialCallback' in dir(i); i.DialCallback; assert 'transformers' in sys.modules\n"
        "try:\n    i.Nothing\nexcept AttributeError as e:\n    print(e)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "no attribute 'Nothing'" in done.stdout
