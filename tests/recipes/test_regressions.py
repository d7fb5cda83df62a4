"""Regressions with a broken symmetry: targets, the network, the studies and their pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import equidial as ed
from equidial.cli import main
from equidial.groups import O
from equidial.recipes import STUDIES, _regressions, inertia, lorentz, o5, study_records
from equidial.recipes._product_network import ProductNetwork, ProductSizes
from equidial.recipes._regressions import Problem, Regression, equivariance_error
from equidial.recipes._study import Study
from equidial.reporting import write_study
from equidial.reporting._studies._regressions import page as regression_page
from equidial.representations import Tensor, Trivial, Vector

PROBLEMS = {"o5": o5.PROBLEM, "lorentz": lorentz.PROBLEM, "inertia": inertia.PROBLEM}
EACH = pytest.mark.parametrize("name", PROBLEMS)
TINY: dict[str, Any] = {"seeds": (0, 1), "breaking": (0.0,), "examples": (20,), "steps": 3, "softness": (0.0, 1.0)}


def network(problem: Problem) -> ProductNetwork:
    torch.manual_seed(0)
    return ProductNetwork(problem.group, problem.vectors, problem.numbers, problem.rep_out, ProductSizes(3, 4))


@EACH
def test_targets_are_symmetric_but_for_the_term(name: str) -> None:
    problem = PROBLEMS[name]
    x, y = problem.sample(200, 0.0, 0)
    for breaking, broken in ((0.0, False), (0.3, True)):
        largest = 0.0
        for g in problem.group.sample(5, torch.Generator().manual_seed(1)):
            moved = problem.rep_in.act(g, x)
            still = y + breaking * problem.term(x)
            found = problem.target(moved) + breaking * problem.term(moved)
            largest = max(largest, float((found - problem.rep_out.act(g, still)).abs().max()))
        assert largest > 0.05 if broken else largest < 1e-10
    assert torch.equal(problem.sample(200, 0.3, 0)[1], y + 0.3 * problem.term(x))


def test_the_target_of_o5_by_hand() -> None:
    x = torch.zeros(1, 10, dtype=torch.float64)
    x[0, 0], x[0, 5], x[0, 6] = 2.0, 3.0, 4.0  # |x1| = 2, |x2| = 5, <x1, x2> = 6
    assert float(o5.target(x)) == pytest.approx(float(torch.tensor(2.0).double().sin()) - 62.5 + 0.6)
    assert float(o5.term(x)) == pytest.approx(2 + 3 + 4)


def test_the_target_of_lorentz_is_the_contraction_of_the_tensors() -> None:
    x = lorentz.draw(7, torch.Generator().manual_seed(0))
    form = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64))
    for row, y in zip(x, lorentz.target(x), strict=True):
        p1, p2, p3, p4 = row.unflatten(0, (4, 4))

        def tensor(p: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.outer(p, k) + torch.outer(k, p) - form * (p @ form @ k - p @ form @ p)

        lower = form @ tensor(p2, p4) @ form
        assert float(y) == pytest.approx(4 * float((tensor(p1, p3) * lower).sum()), rel=1e-10)


def test_the_tensor_of_inertia_by_hand() -> None:
    x = torch.zeros(1, 20, dtype=torch.float64)
    x[0, 0], x[0, 15] = 3.0, 2.0  # a mass of 2 at (3, 0, 0)
    assert inertia.target(x).tolist() == [[0, 0, 0, 0, 18, 0, 0, 0, 18]]
    assert inertia.term(x).tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 18]]


@EACH
def test_the_strict_network_is_exact_and_not_constant(name: str) -> None:
    problem = PROBLEMS[name]
    x = problem.draw(50, torch.Generator().manual_seed(0))
    plain = network(problem).double()
    assert equivariance_error(plain, problem, x) > 1e-2
    strict = ed.soften(network(problem).double(), plain.config(0.0))
    assert equivariance_error(strict, problem, x) < 1e-10
    with torch.no_grad():
        assert float(strict(x).std(0).max()) > 1e-5  # linear maps alone would make it a constant
    single = ed.fold(ed.soften(network(problem), plain.config(0.0)))
    assert equivariance_error(single, problem, x.float()) < 1e-5
    torch.manual_seed(1)
    half = ed.soften(network(problem).double(), plain.config(0.5))
    assert equivariance_error(half, problem, x) > 1e-3
    untouched = ed.soften(network(problem).double(), plain.config(1.0))
    assert torch.equal(untouched(x), plain(x))


def test_the_network_holds_the_tensor_of_inertia() -> None:
    """One pair of vectors and a gate per mass: weights set by hand give the target exactly."""
    problem = inertia.PROBLEM
    model = ProductNetwork(problem.group, 5, 5, problem.rep_out, ProductSizes(5, 1, layers=1)).double()
    first, head = (layer.weight for layer in model.layers if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        first.zero_()
        head.zero_()
        first[:15, :15] = first[15:30, :15] = torch.eye(15)  # u_k = v_k = x_k
        first[30:35, 15:20] = torch.eye(5)  # gates are the masses
        unit = torch.eye(9).reshape(3, 3, 9)
        trace = torch.eye(3).reshape(9, 1) * unit.diagonal().sum(-1)
        for k in range(5):
            head[:, 9 * k : 9 * k + 9] = trace - torch.eye(9)
    x, y = problem.sample(30, 0.0, 0)
    assert torch.allclose(model(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProductNetwork(O(3), 1, 0, Vector(O(3)), ProductSizes()), "Tensor"),
        (lambda: ProductNetwork(ed.groups.by_name("T2"), 1, 0, Trivial(O(3)), ProductSizes()), "matrices"),
        (lambda: ProductNetwork(O(3), 1, 0, Tensor(O(3), 2), ProductSizes(2, 2))(torch.zeros(1, 4)), "last axis"),
    ],
    ids=["vector", "shifts", "input"],
)
def test_networks_of_another_kind_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ed.errors.ArgumentError, match=words):
        make()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies with a tiny network and few examples to judge it by."""
    sizes = replace(_regressions.SCALES["small"], network=ProductSizes(2, 3), widths=(4,), variances=(0.01, 1.0))
    monkeypatch.setitem(_regressions.SCALES, "small", sizes)
    for name in ("_VALIDATION", "_TEST", "_MOVED"):
        monkeypatch.setattr(_regressions, name, 40)


def told(records: list[dict[str, Any]]) -> list[str]:
    """All but the times, in any order."""
    return sorted(str({k: v for k, v in r.items() if "seconds" not in k}) for r in records)


@pytest.mark.usefixtures("small")
@EACH
def test_a_study_runs_and_tunes_each_method(name: str, tmp_path: Path) -> None:
    made, run = STUDIES[name]
    records = run(made(output=tmp_path / "run", **TINY))
    # 2 dials of 2 rates, 4 priors, 3 perceptrons on the first seed; the best of each on the other
    assert len(records) == 4 + 4 + 3 + 4
    for case in (("rpp", None), ("mlp", None), ("soft", 0.0), ("soft", 1.0)):
        own = [r for r in records if (r["method"], r["softness"]) == case]
        (chosen,) = [r for r in own if r["seed"] == 1]
        best = min((r for r in own if r["seed"] == 0), key=lambda r: r["validation"])
        assert [chosen[k] for k in ("variance", "width", "rate")] == [best[k] for k in ("variance", "width", "rate")]
    assert max(r["error"] for r in records if r["softness"] == 0) < 1e-5
    assert min(r["error"] for r in records if r["softness"] == 1 or r["method"] == "mlp") > 1e-3
    assert all((r["bound"] is None) == (r["softness"] != 0) for r in records)


@pytest.mark.usefixtures("small")
def test_an_interrupted_study_ends_with_the_same_numbers_and_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = o5.run(o5.O5(output=tmp_path / "whole", **TINY))

    class Stop(Exception):
        pass

    calls, save = [], torch.save

    def stop(state: Any, file: Any) -> None:
        save(state, file)
        calls.append(file)
        if len(calls) == 20:  # in the midst of a training
            raise Stop

    options = ["--seeds", "0", "1", "--breaking", "0", "--examples", "20", "--steps", "3", "--softness", "0", "1"]
    command = ["reproduce", "o5", "--output", str(tmp_path / "run"), *options]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stop)
        with pytest.raises(Stop):
            o5.run(o5.O5(output=tmp_path / "run", **TINY))
    assert 0 < len(study_records(tmp_path / "run")) < len(whole)
    assert main(command) == 0
    assert told(study_records(tmp_path / "run")) == told(whole)
    page = (tmp_path / "run" / "results.md").read_text()
    assert page in capsys.readouterr().out
    for words in ("equidial reproduce o5", "EMLP-O(5) (theirs)", "| 20 | exact | softness 0", "| 20 | MLP | width 4"):
        assert words in page
    assert (tmp_path / "run" / "o5.png").stat().st_size > 5000


def test_exact_networks_alone_are_set_beside_emlp_at_every_size(tmp_path: Path) -> None:
    study = Study(tmp_path / "run", "o5", {"scale": "small", "breaking": [0.0], "softness": [0.0], "methods": ["soft"]})
    rest = {"error": 1e-9, "bound": 0.0, "parameters": 9, "steps": 3, "seconds": 1.0, "train_seconds": 1.0}
    common = {"breaking": 0.0, "method": "soft", "softness": 0.0, "variance": None, "width": None, "rate": 0.1}
    for examples, errors in {30: (0.1, 0.2, 0.1), 1000: (0.02, 0.01, 0.02)}.items():
        for seed, error in enumerate(errors):
            key = {**common, "examples": examples, "seed": seed}
            study.finish(key, {**rest, "validation": error, "test": error, "share": error})
    page = write_study(tmp_path / "run").read_text()
    assert (
        "unbroken: 30 examples 0.1 against 0.11, at least as good; 1,000 examples 0.02 against 0.0163, worse." in page
    )
    assert "In short" not in page
    (axes,) = regression_page("o5").figure(study_records(tmp_path / "run")).axes
    ours, theirs = (np.asarray(line.get_xydata()).tolist() for line in axes.lines)
    assert ours == [[30, 0.1], [1000, 0.02]]
    assert [30000, 0.0265] in theirs


@pytest.mark.parametrize(
    ("errors", "title"),
    [
        ({0.0: 1.0, 0.5: 2.0, 1.0: 3.0, "rpp": 4.0, "mlp": 5.0}, "does not help here"),
        ({0.0: 3.0, 0.5: 2.0, 1.0: 1.0, "rpp": 4.0, "mlp": 5.0}, "does not help here"),
        ({0.0: 4.0, 0.5: 2.0, 1.0: 3.0, "rpp": 1.0, "mlp": 5.0}, "another method is better"),
        ({0.0: 4.0, 0.5: 2.0, 1.0: 3.0, "rpp": 5.0, "mlp": 1.0}, "another method is better"),
        ({0.0: 4.0, 0.5: 1.0, 1.0: 3.0, "rpp": 2.0, "mlp": 5.0}, "It is best here"),
    ],
    ids=["exact", "untouched", "prior", "perceptron", "soft"],
)
def test_the_page_says_first_where_softness_does_not_help(errors: dict[Any, float], title: str, tmp_path: Path) -> None:
    study = Study(tmp_path / "run", "o5", {"scale": "small", "breaking": [0.3], "methods": ["soft", "rpp", "mlp"]})
    common = {"breaking": 0.3, "examples": 50, "variance": 1.0, "width": 4, "rate": 0.1, "seed": 0}
    rest = {"error": 0.1, "bound": None, "parameters": 9, "steps": 3, "seconds": 1.0, "train_seconds": 1.0}
    for kind, error in errors.items():
        soft = isinstance(kind, float)
        key = {**common, "method": "soft" if soft else kind, "softness": kind if soft else None}
        study.finish(key, {**rest, "validation": error, "test": error, "share": error})
    page = write_study(tmp_path / "run").read_text()
    titles = ("does not help here", "another method is better", "It is best here")
    assert [words for words in titles if words in page] == [title]
    assert page.index(title) < page.index("equidial reproduce")
    assert "soft (0.5)" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": ()}, "seeds"),
        ({"breaking": ()}, "breaking"),
        ({"breaking": (-0.1,)}, "breaking"),
        ({"methods": ("exact",)}, "methods"),
        ({"softness": (1.5,)}, "softness"),
        ({"softness": ()}, "softness"),
        ({"examples": (1,)}, "examples"),
        ({"examples": ()}, "examples"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_has_no_meaning_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe: Regression = replace(o5.O5(output=tmp_path / "run"), **change)
    with pytest.raises(ed.errors.ArgumentError, match=words):
        STUDIES["o5"][1](recipe)
    assert not (tmp_path / "run").exists()
