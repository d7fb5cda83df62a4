"""The benchmark of the soft convolution: rivals that compute the same, its arithmetic, a run end to end. No times."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks._materialised import FORMS
from benchmarks.soft_convolution import OURS, PLAIN, TINY, Problem, main, one_step

from benchmarks import soft_convolution


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_layer_and_has_its_gradients(form: str) -> None:
    problem = Problem(batch=3, channels=4, features=5, kernel=3, image=6)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    found = []
    for method in (OURS, form):
        layer = problem.layer(method).double()
        images = x.clone().requires_grad_()
        y = layer(images)
        tensors = [images, *layer.parameters()]
        found.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-11 * float(a.detach().abs().max() + 1))


def test_multiplications_of_the_target() -> None:
    problem = Problem(batch=16, channels=32, features=32, kernel=7, image=32)
    plain = 16 * 32**2 * 49 * 32 * 32
    assert problem.multiplications(PLAIN) == pytest.approx(3 * plain / 1e9)
    assert problem.multiplications(OURS) == pytest.approx((4 * plain + 3 * 16 * 32**5) / 1e9)
    assert problem.multiplications("taps_first") == pytest.approx((3 * plain + 3 * 32**2 * 49 * 32**3) / 1e9)


def test_it_runs_and_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(target: str, arguments: list[Any], threads: int) -> dict[str, float]:
        one_step(*arguments)  # in this process; what a process of its own is for has its test in test_contract.py
        peak = (300.0 if arguments[0] == OURS else 900.0) if arguments[1] != TINY else 110.0
        return {"before_mib": 100.0, "peak_mib": peak}

    monkeypatch.setattr(soft_convolution, "peak_memory", fake)
    sizes = {"batch": 2, "channels": 4, "features": 4, "kernel": 3, "image": 8, "rounds": 1, "warmup": 0, "threads": 1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    main([*options, "--json", str(tmp_path / "r.json")])
    report = json.loads((tmp_path / "r.json").read_text())
    assert {row["method"] for row in report["rows"]} >= {OURS, PLAIN, *FORMS}
    met = {finding["case"]: finding["met"] for finding in report["findings"]}
    assert list(met) == ["time", "memory", "plain", "rotation"]
    assert met["memory"] is True  # 200 of 800
    printed = capsys.readouterr().out
    assert "200 MiB, 190 above a tiny step" in printed
    assert "soft over strict rotation" in printed
