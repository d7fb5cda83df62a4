"""The trajectory transformer: causal, masked, free of the origin, and exactly equivariant at softness 0."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import equidial as ed
from equidial.cli import main
from equidial.data import load_trajectories
from equidial.metrics import constant_velocity
from equidial.recipes import TrajectorySizes, TrajectoryTransformer, trajectories
from equidial.recipes._trajectory_transformer import _laplace, step_loss
from equidial.reporting import write_study

SIZES = TrajectorySizes(steps=10, layers=2, heads=2, vectors=3, scalars=2)
WINDOW = torch.tensor([0, 0, 0, 1, 1, 2])
"""Three walk together, then two, then one alone."""
OBSERVED = 4


def network(softness: float | None = None) -> TrajectoryTransformer:
    torch.manual_seed(0)
    model = TrajectoryTransformer(SIZES).double().eval()
    torch.nn.init.normal_(model.head.weight, std=0.2)  # which starts small
    return model if softness is None else ed.soften(model, model.config(softness))


def walks() -> torch.Tensor:
    return torch.randn(6, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cumsum(1)


def turned(x: torch.Tensor, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return x @ torch.tensor([[c, s], [-s, c]], dtype=x.dtype)


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, 2.0])
def test_at_softness_0_prediction_turns_with_the_past(angle: float) -> None:
    model, past = network(0.0), walks()[:, :OBSERVED]
    with torch.no_grad():
        one = turned(model.rollout(past, WINDOW, 6), angle)
        other = model.rollout(turned(past, angle) + 7.0, WINDOW, 6) - 7.0
        free = network()
        broken = free.rollout(turned(past, angle), WINDOW, 6) - turned(free.rollout(past, WINDOW, 6), angle)
    assert (one - other).norm() < 1e-6 * one.norm()
    assert broken.norm() > 1e-2 * one.norm()
    assert float(ed.certify(model).bound) < 1e-10
    assert model.time.weight.norm() > 0.1  # time is kept: it enters through numbers


def test_the_dial_turns_every_linear_layer() -> None:
    model = network(0.5)
    linear = [name for name, m in TrajectoryTransformer(SIZES).named_modules() if isinstance(m, torch.nn.Linear)]
    rows = {row.name.rpartition(".")[0] for row in ed.status(model)}
    assert rows == set(linear)
    untouched, free = network(1.0), network()
    x = walks()
    assert torch.equal(untouched(x, WINDOW, OBSERVED)[0], free(x, WINDOW, OBSERVED)[0])


def test_without_a_head_it_walks_on_at_constant_velocity() -> None:
    past, model = walks()[:, :OBSERVED], network()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        assert torch.allclose(model.rollout(past, WINDOW, 6), constant_velocity(past, 6), atol=1e-12)


def test_no_output_sees_what_comes_later() -> None:
    model, x = network(), walks()
    later = x.clone()
    later[:, 6:] += torch.randn(6, 4, 2, dtype=x.dtype)
    with torch.no_grad():
        one, other = (model(z, WINDOW, OBSERVED) for z in (x, later))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[:, :6], b[:, :6])
        assert not torch.allclose(a[:, 6:], b[:, 6:])


def test_those_who_walk_together_see_one_another_and_nobody_else() -> None:
    model, x = network(), walks()
    moved = x.clone()
    moved[2] += 3.0
    with torch.no_grad():
        one, other = (model.rollout(z[:, :OBSERVED], WINDOW, 6) for z in (x, moved))
        alone = torch.cat([model.rollout(x[w == WINDOW, :OBSERVED], WINDOW[w == WINDOW], 6) for w in range(3)])
    assert torch.allclose(one, alone, atol=1e-12)  # neither other windows nor empty places count
    assert torch.allclose(one[3:], other[3:], atol=1e-12)
    assert (one[0] - other[0]).norm() > 1e-4


def test_crowds_of_any_size_walk_as_they_walk_alone() -> None:
    model, sizes = network(), [5, 1, 3, 9, 2, 4, 1]
    window = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x = torch.randn(sum(sizes), 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).cumsum(1)
    with torch.no_grad():
        together, _ = model(x, window, OBSERVED)
        alone = [model(part, torch.zeros(len(part), dtype=torch.long), OBSERVED)[0] for part in x.split(sizes)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)


def test_a_rollout_is_the_network_called_again_and_again() -> None:
    model, x = network(), walks()[:, :OBSERVED]
    with torch.no_grad():
        found, walked = model.rollout(x, WINDOW, 6), x
        for _ in range(6):
            centre, _ = model(walked, WINDOW, OBSERVED)
            walked = torch.cat((walked, (walked[:, -1] + centre[:, -1])[:, None]), dim=1)
    assert torch.allclose(found, walked[:, OBSERVED:], atol=1e-12)


def test_the_loss_is_the_likelihood_of_steps_to_come() -> None:
    model, x = network(), walks()
    centre, log_scale = model(x[:, :-1], WINDOW, OBSERVED)
    distance = (x[:, 1:] - x[:, :-1] - centre).norm(dim=-1)
    # the distance of a plane Laplace draw is a Gamma variable, its direction uniform on a circle of that radius
    radial = torch.distributions.Gamma(2.0, torch.exp(-log_scale)).log_prob(distance)
    nats = (torch.log(2 * math.pi * distance) - radial)[:, OBSERVED - 1 :]
    assert float(step_loss(model, x, WINDOW, OBSERVED).detach()) == pytest.approx(
        float(nats.mean().detach()), rel=1e-12
    )


def test_draws_have_the_moments_of_the_distribution() -> None:
    drawn = _laplace(torch.zeros(200_000, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    distance = drawn.norm(dim=1)
    assert float(distance.mean()) == pytest.approx(2, rel=0.01)
    assert float(distance.square().mean()) == pytest.approx(6, rel=0.02)
    assert drawn.mean(0).norm() < 0.02
    assert torch.allclose(drawn.mT @ drawn / len(drawn), 3 * torch.eye(2, dtype=torch.float64), atol=0.06)


def test_samples_are_drawn_from_the_generator() -> None:
    model, past = network(), walks()[:, :OBSERVED]
    with torch.no_grad():
        one, two, three = (model.rollout(past, WINDOW, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)


@pytest.mark.parametrize(
    ("shape", "observed", "window"),
    [
        ((2, 11, 2), 4, [0, 0]),
        ((2, 5, 3), 4, [0, 0]),
        ((2, 3, 2), 4, [0, 0]),
        ((2, 5), 4, [0, 0]),
        ((2, 5, 2), 4, [0, 0, 0]),
        ((2, 5, 2), 4, [1, 0]),
    ],
)
def test_tracks_that_do_not_fit_are_refused(shape: tuple[int, ...], observed: int, window: list[int]) -> None:
    with pytest.raises(ed.errors.ArgumentError, match="positions"):
        network()(torch.zeros(shape, dtype=torch.float64), torch.tensor(window), observed)


def scene(folder: Path) -> Path:
    """Three who walk side by side, one on a circle."""
    for part, frames in (("train", 26), ("test", 22)):
        rows = [(10 * t, p, 0.4 * t, p + 0.02 * t * t) for t in range(frames) for p in range(3)]
        rows += [(10 * t, 9, 3 * math.cos(0.2 * t), 3 * math.sin(0.2 * t)) for t in range(frames)]
        (folder / "eth" / part).mkdir(parents=True)
        lines = "".join(f"{t}\t{p}\t{x}\t{y}\n" for t, p, x, y in sorted(rows))
        (folder / "eth" / part / "walk.txt").write_text(lines)
    return folder


def test_the_study_compares_the_same_network_from_strict_to_free(tmp_path: Path) -> None:
    recipe = trajectories.TrajectoriesStudy(
        data=scene(tmp_path), output=tmp_path / "run", scenes=("eth",), seeds=(0,), softness=(0.0, 0.5), epochs=1
    )
    records = trajectories.run(recipe)
    by_name = {(r["method"], r["softness"]): r for r in records}
    assert set(by_name) == {
        ("constant velocity", None),
        ("untouched", None),
        ("untouched, turned", None),
        ("soft", 0.0),
        ("soft", 0.5),
    }
    assert len({r["parameters"] for r in records if "parameters" in r}) == 1
    strict, free = by_name["soft", 0.0], by_name["untouched", None]
    assert strict["error"] < 1e-5 * 10 < free["error"]
    assert strict["turned ADE"] == pytest.approx(strict["ADE"], rel=1e-4)
    assert strict["bound"] < 1e-5
    assert free["best-of-20 ADE"] <= free["ADE"] * 1.5
    options = ["--scenes", "eth", "--seeds", "0", "--softness", "0", "0.5", "--epochs", "1"]
    assert main(["reproduce", "trajectories", "--data", str(tmp_path), "--output", str(recipe.output), *options]) == 0
    assert trajectories.run(recipe) == records  # nothing was left to do
    page = (recipe.output / "results.md").read_text()
    assert page.index("As they walked, softness") < page.index("## All scenes") < page.index("## eth")
    assert "| strict |" in page
    config, log = recipe.output / "config.json", recipe.output / "metrics.jsonl"
    under_way = tmp_path / "under way"
    under_way.mkdir()
    (under_way / config.name).write_text(config.read_text())
    lines = log.read_text().splitlines(keepends=True)
    for left in range(3):  # of the others, in whatever order processes finish them
        (under_way / log.name).write_text("".join(lines[:left] + lines[left + 1 :]))
        assert "**Under way.**" in write_study(under_way).read_text()
    (under_way / log.name).write_text(lines[-1])
    assert "**Under way.**" in write_study(under_way).read_text()
    assert (recipe.output / "trajectories.png").stat().st_size > 5000


def test_windows_are_thinned_and_picked(tmp_path: Path) -> None:
    found = load_trajectories(scene(tmp_path), "eth", "train")
    walks = trajectories.Walks.of(found, 3)
    assert walks.count.tolist() == [4, 4, 4]
    assert torch.equal(walks.tracks[:4], found.tracks[:4].float())
    assert torch.equal(walks.tracks[8:], found.tracks[-4:].float())
    mixed = trajectories.Walks(walks.tracks, torch.tensor([3, 1, 8]))
    tracks, window = mixed.at(torch.tensor([1, 0]))
    assert window.tolist() == [0, 1, 1, 1]
    assert torch.equal(tracks, walks.tracks[[3, 0, 1, 2]])
    angles = torch.tensor([0.0, math.pi / 2, math.pi])
    quarter = trajectories.turned(walks.tracks[:3], angles)[1]
    assert torch.allclose(quarter, torch.stack((-walks.tracks[1, :, 1], walks.tracks[1, :, 0]), -1), atol=1e-5)


def test_training_tracks_get_noise_of_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    of = trajectories.step_loss
    monkeypatch.setattr(
        trajectories, "step_loss", lambda m, tracks, *rest: (seen.append(tracks), of(m, tracks, *rest))[1]
    )
    plain = trajectories.TrajectoriesStudy(
        data=scene(tmp_path), output=tmp_path / "0", scenes=("eth",), seeds=(0,), softness=(), epochs=1, jitter=0.0
    )
    trajectories.run(plain)
    still = seen[0]
    seen.clear()
    trajectories.run(replace(plain, output=tmp_path / "1", jitter=0.1))
    noise = (seen[0] - still).unflatten(0, (-1, 4)).flatten(1)  # of each window
    size = noise.std(1)
    assert 0.2 < (size == 0).float().mean() < 0.8
    assert 0.02 < size.max() < 0.11
    assert noise[size > 0].mean(1).abs().max() < 0.03


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": math.inf}, "jitter"),
        ({"softness": (1.0,)}, "softness"),
        ({"seeds": ()}, "seed"),
        ({"scenes": ()}, "scene"),
        ({"scenes": ("moon",)}, "moon"),
    ],
)
def test_a_study_without_meaning_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = trajectories.TrajectoriesStudy(data=scene(tmp_path), output=tmp_path / "run", scenes=("eth",), epochs=1)
    with pytest.raises(ed.EquidialError, match=words):
        trajectories.run(replace(recipe, **change))
    assert not recipe.output.exists()
