"""The training-step benchmark on tiny models: every way takes a step, fold leaves the plain graph; no times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks._models import WIDTH, vision_model
from torch import nn

from benchmarks import training_step as benchmark
from equidial.errors import ArgumentError

TINY = ["--width", "tiny", "--image-size", "32", "--pairs", "1", "--warmup", "0", "--clock", "cpu"]


@pytest.mark.parametrize("name", ["resnet50-b8", "vit-b16", "dinov2-b14", "vit-b16-linear"])
def test_every_case_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main([*TINY, "--cases", name, "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    assert {"plain", "soft", "folded"} <= set(rows)
    assert rows["folded"]["facts"] == rows["plain"]["facts"]
    assert rows["soft"]["facts"]["autograd nodes"] > rows["plain"]["facts"]["autograd nodes"]
    assert rows["soft"]["facts"]["spectra"] <= rows["soft"]["facts"]["tensors"]
    kept = [finding for finding in report["findings"] if finding["text"].startswith("after fold")]
    assert [finding["met"] for finding in kept] == [True]
    assert "no --reference" in capsys.readouterr().out


def test_targets_are_for_whole_models_only(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main([*TINY, "--cases", "resnet50-b8"])
    assert "target" not in capsys.readouterr().out.split("resnet50-b8:")[1]


def test_every_linear_layer_is_constrained() -> None:
    plain, _ = vision_model("vit-b16", 32, benchmark.CLASSES, WIDTH["tiny"])
    linear = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    soft = benchmark.softened(plain, benchmark.CASES["vit-b16-linear"])
    keys = soft.state_dict()
    assert linear
    assert all(f"{name}.parametrizations.weight.original" in keys for name in linear)


def test_nodes_are_counted_once() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert benchmark.autograd_nodes((y + y).sum()) == 4  # sum, addition, product, leaf


def test_unknown_cases_and_models_are_named() -> None:
    with pytest.raises(ArgumentError, match="resnet50-b8"):
        benchmark.main([*TINY, "--cases", "resnet50-b9"])
    with pytest.raises(ArgumentError, match="images of a patch or more"):
        vision_model("vit-b16", 8, 10, {})
