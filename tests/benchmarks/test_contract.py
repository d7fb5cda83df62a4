"""The harness of the benchmarks: statistics, pairing, growth, JSON, and the construction benchmark end to end.

No test asserts a time.
"""

from __future__ import annotations

import argparse
import gc
import getpass
import json
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks._contract import (
    MIN_ROUNDS,
    TOTAL,
    Finding,
    Rival,
    Row,
    check_anonymous,
    command_line,
    machine,
    measure,
    write_json,
)
from benchmarks._official import Official
from benchmarks._statistics import PowerLaw, Summary, number
from benchmarks.cases import Settings, load_cases
from benchmarks.cases.dense import apply_dense, build_dense, build_ours, generator
from benchmarks.cases.steerable import turn_defect

from benchmarks import construction
from equidial.errors import ArgumentError, StateError


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before every rival takes longer than all that is tested here."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def clock_of(steps: list[float]) -> Callable[[], float]:
    """A clock for one-stage rivals: first the reading that begins the budget, then start and stop by turns."""
    readings = [0.0, *(time for step in steps for time in (0.0, step))]
    return lambda: readings.pop(0)


def rivals(log: list[str]) -> list[Rival]:
    def build(name: str):
        return lambda: log.append(name) or name

    return [Rival(name, {"build": build(name), "apply": lambda built: built.upper()}) for name in "ab"]


def test_summary_of_known_samples() -> None:
    found = Summary.of([4.0, 1.0, 3.0, 2.0, 10.0])
    assert (found.median, found.q1, found.q3, found.low, found.high, found.count) == (3.0, 2.0, 4.0, 1.0, 10.0, 5)
    assert str(found) == "3.00 [2.00..4.00; 1.00..10.0]"
    even = Summary.of([1.0, 2.0])
    assert (even.median, even.q1, even.q3) == (1.5, 1.25, 1.75)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_summary_refuses(samples: list[float]) -> None:
    with pytest.raises(ArgumentError, match="at least one sample"):
        Summary.of(samples)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234.5, "1,234"), (0.0123456, "0.0123"), (1e-9, "1.00e-09"), (2e7, "2.00e+07")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_power_law_recovers_a_known_exponent() -> None:
    sizes = [9, 16, 25, 36, 49]
    exact = PowerLaw.fit(sizes, [2e-7 * d**5.5 for d in sizes])
    assert exact.exponent == pytest.approx(5.5, abs=1e-12)
    assert exact.exponent_error == pytest.approx(0.0, abs=1e-12)
    assert exact.at(196) == pytest.approx(2e-7 * 196**5.5)
    noise = [1.1, 0.9, 1.05, 0.95, 1.02]
    fitted = PowerLaw.fit(sizes, [e * d**3 for e, d in zip(noise, sizes, strict=True)])
    assert abs(fitted.exponent - 3) < 3 * fitted.exponent_error
    low, high = fitted.interval(196)
    assert low < 196**3 < high
    assert low * high == pytest.approx(fitted.at(196) ** 2)


def test_power_law_error_is_the_textbook_one() -> None:
    """Slope 1, residuals (1, -2, 1) / 6 at x = 0, 1, 2: s^2 = 1 / 6, standard error s / sqrt 2."""
    law = PowerLaw.fit([1.0, math.e, math.e**2], [math.exp(0 + 1 / 6), math.exp(1 - 2 / 6), math.exp(2 + 1 / 6)])
    assert law.exponent == pytest.approx(1.0)
    assert law.exponent_error == pytest.approx(math.sqrt(1 / 6) / math.sqrt(2))


@pytest.mark.parametrize(("sizes", "values"), [([1, 2], [1, 2]), ([1, 2, 2], [1, 2, 3]), ([1, 2, 3], [1, 0, 2])])
def test_power_law_refuses(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(ArgumentError, match="at least three"):
        PowerLaw.fit(sizes, values)


def test_pairing_alternates_and_warm_up_is_thrown_away() -> None:
    log: list[str] = []
    timings = measure(rivals(log), rounds=4, warmup=2)
    assert "".join(log) == "ab" * 2 + "ab" + "ba" + "ab" + "ba"
    assert timings.orders == [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")]
    assert {stage: len(s) for stage, s in timings.seconds["a"].items()} == {"build": 4, "apply": 4, TOTAL: 4}


def test_ratios_are_formed_inside_a_round() -> None:
    one = [Rival(name, {"run": lambda: None}) for name in "ab"]
    # a, b | b, a | a, b: the machine slows down tenfold, the ratio stays 3
    timings = measure(one, rounds=3, warmup=0, clock=clock_of([1.0, 3.0, 30.0, 10.0, 100.0, 300.0]))
    assert timings.seconds["a"]["run"] == [1.0, 10.0, 100.0]
    ratio = timings.ratio("b", "a")
    assert (ratio.low, ratio.median, ratio.high) == (3.0, 3.0, 3.0)
    assert timings.summary("a").median == 10.0


def test_the_budget_ends_a_case_after_the_fewest_rounds() -> None:
    ticks = iter(range(10**6))
    timings = measure(rivals([]), rounds=50, warmup=0, budget_s=1.0, clock=lambda: float(next(ticks)))
    assert timings.summary("a").count == MIN_ROUNDS


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: measure([], 3),
        lambda: measure([Rival("a", {}), Rival("a", {})], 3),
        lambda: measure([Rival("a", {TOTAL: lambda: 0})], 3),
        lambda: measure(rivals([]), 0),
    ],
)
def test_measure_refuses(wrong) -> None:
    with pytest.raises(ArgumentError):
        wrong()


def test_a_defeat_is_printed() -> None:
    times = {"run": Summary.of([1.0]), TOTAL: Summary.of([1.0])}
    row = Row("case", "rival", "3x3", 9, "float64", times, Summary.of([0.5]), {"kept": 0.25})
    assert "takes 0.500" in str(row)
    assert "(ours is slower)" in str(row)
    assert "kept 0.250" in str(row)
    assert str(Finding("case", "slow", met=False)).endswith("NOT MET")


def test_machine_has_the_promised_keys() -> None:
    keys = {"cpu", "cores", "memory_gib", "os", "python", "torch", "numpy", "scipy", "torch_threads", "blas_threads"}
    assert set(machine()) == keys


@pytest.mark.parametrize("leak", ["/home/someone/x.json", "see /tmp/a", "C:\\Users\\x", socket.gethostname() + "-long"])
def test_a_report_that_names_a_place_is_refused(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: leak if "-long" in leak else "somehost")
    with pytest.raises(StateError, match="without paths"):
        write_json(tmp_path / "x.json", "x", argparse.Namespace(), [{"note": leak}])
    assert not (tmp_path / "x.json").exists()


def test_ordinary_text_is_no_path() -> None:
    check_anonymous(json.dumps({"a": "n/a and 3/4 of d^2/s", "b": "x:\nnext", "url": "https://example.org/a/b"}))


def test_the_command_leaves_files_out() -> None:
    arguments = argparse.Namespace(json=Path("/tmp/x/y.json"), dense_sizes=[2, 3], no_memory=True, plot=None)
    assert command_line("benchmarks.x", arguments) == "python -m benchmarks.x --json PATH --dense-sizes 2 3 --no-memory"


def test_construction_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    options = ["--sizes", "4", "--dense-sizes", "1", "2", "3", "--rounds", "2", "--no-memory"]
    names = ["rotation-dense", "rotation-reference", "c4-reference"]
    construction.main([*options, "--cases", *names, "--json", str(file)])
    printed, text = capsys.readouterr().out, file.read_text()
    assert "EXTRAPOLATED, not run" in printed
    assert printed.count("skipped: --reference") == 2
    report = json.loads(text)
    assert set(report) == {"contract", "benchmark", "command", "machine", "findings", "rows"}
    assert {(row["method"], row["size"]) for row in report["rows"]} >= {("ours", "4x4"), ("dense SVD", "3x3")}
    for row in report["rows"]:
        assert set(row) == {"case", "method", "size", "d", "dtype", "seconds", "ratio_to_ours", "facts"}
        assert set(row["seconds"]) == {"build", "apply", TOTAL}
        assert set(row["seconds"][TOTAL]) == {"median", "q1", "q3", "low", "high", "count"}
        assert (row["ratio_to_ours"] is None) == (row["method"] == "ours")
    for place in (str(tmp_path), str(Path.cwd()), sys.prefix, f'"{getpass.getuser()}"', socket.gethostname()):
        assert place not in text


def test_every_case_says_why_it_is_skipped() -> None:
    """Without a reference; escnn either runs or is skipped, which the benchmark decides by importing it."""
    cases = load_cases()
    assert {"rotation-dense", "rotation-reference", "c4-reference", "steerable-kernels"} <= set(cases)
    (finding,) = cases["c4-reference"].run(Settings(rounds=1, memory=False))
    assert isinstance(finding, Finding)
    assert "skipped" in finding.text


def test_unknown_cases_and_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="rotation-dense"):
        construction.main(["--cases", "rotation-dens"])
    with pytest.raises(ArgumentError, match="softeq"):
        Official(tmp_path)


@pytest.mark.parametrize("n", [3, 4])
def test_the_dense_rival_computes_what_ours_computes(n: int) -> None:
    weight = torch.randn(n * n, n * n, dtype=torch.float64)
    theirs = apply_dense(build_dense(generator(n)), weight)
    assert float((build_ours(n)(weight) - theirs).norm() / weight.norm()) < 1e-12


def test_the_turn_defect_of_steerable_kernels() -> None:
    """A scalar kernel that is constant, and a vector kernel that points away from the centre."""
    y, x = torch.meshgrid(1.0 - torch.arange(3), torch.arange(3) - 1.0, indexing="ij")
    vectors = torch.stack([x, y]).repeat(8, 1, 1)
    kernel = torch.cat([vectors, torch.ones(8, 3, 3)]).to(torch.float64)[None]
    assert turn_defect(kernel) < 1e-15
    assert turn_defect(torch.randn_like(kernel)) > 0.5
