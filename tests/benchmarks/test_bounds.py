"""The comparison of bounds: closed forms, the arithmetic of a row, wrong arguments."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from benchmarks._taylor import taylor_residual, words, worst_residual
from benchmarks.bounds import Row, Space, main, row_of, search
from safetensors.torch import save_file

from equidial.errors import ArgumentError
from equidial.filters import Constraint
from equidial.groups import SO, SO2, C, D, Exp, Lorentz
from equidial.representations import Pixels, Vector

ROW = Row("space", "hard", 0.3, 0.5, 2.0, 3, 4, 1.0, 0.9, 0.4, 0.45, 0.25, 3.0)


def test_the_taylor_residual_of_a_half_turn() -> None:
    """Frequency 1 at the angle pi: ``|-1 - 1 - i pi|``, and it grows with the angle."""
    plane = Vector(SO2())
    norms = [float(torch.linalg.matrix_norm(taylor_residual(plane, word), ord=2)) for word in words(SO2())]
    assert norms == sorted(norms)
    assert norms[-1] == pytest.approx(math.hypot(2, math.pi), abs=1e-12)
    assert worst_residual(Constraint.invariants(plane)) == pytest.approx(math.sqrt(4 + math.pi**2), abs=1e-12)


def test_the_worst_residual_of_a_window_is_that_of_its_highest_frequency() -> None:
    window = Pixels(SO2(), (3, 3))
    top = int(window.circle.frequency.max())
    angle = top * math.pi
    expected = math.hypot(math.cos(angle) - 1, math.sin(angle) - angle)
    assert worst_residual(Constraint.invariants(window)) == pytest.approx(expected, rel=1e-9)


def test_quarter_turns_have_a_residual_of_four() -> None:
    """The eigenvalue -1 of the turn: ``(-1)^2 - 1 - 2 (-1 - 1) = 4``. Mirrors are letters, without any."""
    for group in (C(4), D(4)):
        assert worst_residual(Constraint.invariants(Pixels(group, (3, 3)))) == pytest.approx(4.0, abs=1e-9)


def test_the_worst_residual_of_a_map_is_the_norm_of_its_kronecker_matrix() -> None:
    constraint = Constraint.equivariants(Vector(SO(3)), Vector(SO(3)))
    t = (0.4, -1.1, 0.7)
    residual = taylor_residual(Vector(SO(3)), (Exp(t),))
    eye = torch.eye(3, dtype=torch.float64)
    dense = torch.linalg.matrix_norm(torch.kron(eye, residual.mT.contiguous()) - torch.kron(residual, eye), ord=2)
    assert float(dense) <= worst_residual(constraint)
    # rotations about axes of one angle are conjugate: frequencies 1 and -1 at pi differ by 2 pi i
    assert worst_residual(constraint) == pytest.approx(2 * math.pi, rel=1e-9)


def test_the_search_finds_the_half_turn() -> None:
    """``w = e_x`` under SO(2): the error is ``2 sin(t / 2)``, largest at pi."""
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert search(Constraint.invariants(Vector(SO2())), weight, math.pi) == pytest.approx(2.0, abs=1e-12)
    assert search(Constraint.invariants(Vector(SO2())), weight, 1.0) == pytest.approx(2 * math.sin(0.5), abs=1e-12)
    assert search(Constraint.invariants(Vector(SO2())), 0 * weight, 1.0) == 0


def test_the_arithmetic_of_a_row() -> None:
    assert ROW.paper == pytest.approx(2.0 * 0.5 * math.sqrt(12))
    assert ROW.paper_own == pytest.approx(math.sqrt(12) + 0.25)
    assert ROW.paper_worst == pytest.approx(math.sqrt(12) + 3)
    assert ROW.faults() == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"a_priori": 4.0}, "a priori bound exceeds paper A"),
        ({"a_priori": 4.0, "a_posteriori": 3.9}, "a posteriori bound exceeds paper A"),
        ({"searched": 0.91}, "an element exceeds"),
        ({"a_posteriori": 1.1}, "exceeds the a priori one"),
    ],
)
def test_a_row_that_contradicts_the_claim_says_so(change: dict[str, float], text: str) -> None:
    assert any(text in fault for fault in dataclasses.replace(ROW, **change).faults())


def test_paper_a_says_nothing_of_boosts() -> None:
    group = Lorentz(proper=True)
    space = Space(Vector(group), Vector(group))
    row = row_of(space, space.draw(0), "nearest", 0.3)
    assert (row.paper, row.paper_own, row.paper_worst) == (None, None, None)
    assert row.faults() == []


def test_it_runs_on_drawn_windows_and_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"conv.weight": torch.randn(4, 2, 3, 3), "fc.weight": torch.randn(4, 8)}, tmp_path / "w.safetensors")
    common = ["--softness", "0", "0.3", "--responses", "nearest"]
    assert main([*common, "--weights", str(tmp_path / "w.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Pixels(3,3) of C4") == 2
    assert "8 weights, 8 of them" in printed
    assert printed.rstrip().endswith("holds")
    assert main([*common, "--weights", str(tmp_path / "w.safetensors"), "--summary"]) == 0


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    space = Space(Pixels(C(4), (3, 3)))
    with pytest.raises(ArgumentError, match="softness in"):
        row_of(space, space.draw(0), "nearest", 1.0)
    save_file({"fc.weight": torch.randn(4, 8)}, tmp_path / "w.safetensors")
    with pytest.raises(ArgumentError, match="convolution kernels"):
        main(["--weights", str(tmp_path / "w.safetensors")])
    with pytest.raises(SystemExit):
        main(["--responses", "exponential"])
