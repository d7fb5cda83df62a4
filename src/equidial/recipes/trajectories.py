"""ETH/UCY, leave one scene out (paper A, table 5): constant velocity, and one transformer at every softness.

All networks have the same size, data, steps and optimizer: untouched, untouched with training tracks turned by random
angles, exactly equivariant (softness 0, the EqAuto of paper A), and soft. Because the recordings are smoothed unlike,
all train with the same noise of position. Errors are in metres, averaged over time; observed 8 steps of 0.4 s,
predicted 12.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import equidial as ed
from equidial.data import SCENES, Trajectories, load_trajectories
from equidial.data._trajectories import OBSERVED, PREDICTED
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.metrics import constant_velocity, displacement_errors
from equidial.recipes._study import Key, Progress, Study, Training, fit, spent
from equidial.recipes._trajectory_transformer import TrajectorySizes, TrajectoryTransformer, step_loss

NAME = "trajectories"
SAMPLES = 20
ANGLES = tuple(2 * math.pi * k / 8 for k in range(1, 8))
"""Turns under which predictions are compared."""


@dataclass(frozen=True)
class _Sizes:
    network: TrajectorySizes
    training: Training
    windows: int | None  # training windows, evenly spread
    test_windows: int | None


SCALES = {
    "small": _Sizes(TrajectorySizes(), Training(12, 32, 2e-3, warmup=1), 1200, 200),
    "paper": _Sizes(
        TrajectorySizes(layers=4, heads=4, vectors=12, scalars=8), Training(100, 32, 5e-4, warmup=2), None, None
    ),
}


@dataclass(frozen=True)
class TrajectoriesStudy:
    """Pedestrians of ETH/UCY, leave one scene out: the same transformer from strict to free."""

    data: Path
    """Folder with splits.json, or <scene>/<train|val|test>/*.txt of lines "frame pedestrian x y"."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: width 64, 2 layers, 1,200 windows, 12 epochs. paper: width 128, 4 layers, all windows, 100 epochs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per seed, scene and method."""
    scenes: tuple[str, ...] = SCENES
    """Out of eth, hotel, univ, zara1, zara2."""
    softness: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Of the soft networks; 0 is exactly equivariant. The untouched network is always there, plain and turned."""
    epochs: int | None = None
    """Default: of the scale."""
    jitter: float = 0.05
    """Metres: every second training window gets independent normal noise on its positions, of a standard deviation
    between 0 and this. Recordings differ in it: those of BIWI are not smoothed, the others are splines."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning."""
        if not 0 <= self.jitter < math.inf:
            raise ArgumentError(explain("a jitter of 0 metres or more", repr(self.jitter), "mend --jitter"))
        if not self.seeds or not self.scenes:
            raise ArgumentError(explain("a seed and a scene or more", f"{self.seeds}, {self.scenes}", "name some"))
        if not all(0 <= s < 1 for s in self.softness):
            raise ArgumentError(explain("softness in [0, 1)", repr(self.softness), "1 is the untouched network"))


@dataclass(frozen=True)
class Walks:
    """Windows one after the other: tracks ``[n, T, 2]`` float32 in metres, how many of them each window has ``[W]``."""

    tracks: torch.Tensor
    count: torch.Tensor

    def __len__(self) -> int:
        return len(self.count)

    @classmethod
    def of(cls, found: Trajectories, most: int | None) -> Walks:
        """At most ``most`` windows, evenly spread over all."""
        _, count = found.window.unique_consecutive(return_counts=True)
        walks = cls(found.tracks.float(), count)
        if most is None or len(walks) <= most:
            return walks
        rows = torch.linspace(0, len(walks) - 1, most).round().long()
        tracks, window = walks.at(rows)
        return cls(tracks, window.bincount(minlength=most))

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tracks of these windows, and for each track the place of its window in ``rows``."""
        first, count = (self.count.cumsum(0) - self.count)[rows], self.count[rows]
        window = torch.arange(len(rows)).repeat_interleave(count)
        within = torch.arange(len(window)) - (count.cumsum(0) - count)[window]
        return self.tracks[first[window] + within], window


def turned(positions: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Tracks ``[..., n, T, 2]`` turned about the origin by the angles ``[n]``, counterclockwise."""
    c, s = torch.cos(angles), torch.sin(angles)
    matrices = torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)
    return torch.einsum("nij,...ntj->...nti", matrices.to(positions), positions)


def run(recipe: TrajectoriesStudy, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`TrajectoriesStudy.check`."""
    recipe.check()
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data")}
    sizes = SCALES[recipe.scale]
    loaded: dict[str, tuple[Walks, Walks]] = {}
    for scene in recipe.scenes:
        train, test = (load_trajectories(recipe.data, scene, part) for part in ("train", "test"))
        loaded[scene] = Walks.of(train, sizes.windows), Walks.of(test, sizes.test_windows)
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe)), lambda key: _result(recipe, study, key, *loaded[key["scene"]]), progress)


def _keys(recipe: TrajectoriesStudy) -> Iterator[dict[str, Any]]:
    for scene in recipe.scenes:
        yield {"scene": scene, "method": "constant velocity", "softness": None, "seed": None}
        for seed in recipe.seeds:
            for method in ("untouched", "untouched, turned"):
                yield {"scene": scene, "method": method, "softness": None, "seed": seed}
            for softness in recipe.softness:
                yield {"scene": scene, "method": "soft", "softness": softness, "seed": seed}


def _result(recipe: TrajectoriesStudy, study: Study, key: Key, train: Walks, test: Walks) -> dict[str, Any]:
    start, sizes = time.perf_counter(), SCALES[recipe.scale]
    if key["method"] == "constant velocity":
        tracks = test.tracks
        ade, fde = displacement_errors(constant_velocity(tracks[:, :OBSERVED], PREDICTED), tracks[:, OBSERVED:])
        return {"ADE": float(ade.mean()), "FDE": float(fde.mean()), "seconds": time.perf_counter() - start}
    torch.manual_seed(key["seed"])
    model = TrajectoryTransformer(sizes.network)
    parameters = sum(p.numel() for p in model.parameters())
    if key["softness"] is not None:
        model = ed.soften(model, model.config(key["softness"]))
    turns = key["method"].endswith("turned")

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        tracks, window = train.at(rows)
        size = recipe.jitter * (2 * torch.rand(len(rows), generator=generator) - 1).clamp_min(0)
        tracks = tracks + size[window][:, None, None] * torch.randn(tracks.shape, generator=generator)
        if turns:
            tracks = turned(tracks, 2 * math.pi * torch.rand(len(rows), generator=generator)[window])
        return step_loss(model, tracks, window, OBSERVED)

    training = replace(sizes.training, epochs=recipe.epochs or sizes.training.epochs)
    history = fit(model, len(train), loss, training, key["seed"], study.checkpoint(key))
    found: dict[str, Any] = {"parameters": parameters}
    if key["softness"] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquidialWarning)
            found["bound"] = float(ed.certify(model).bound)
        model = ed.fold(model)
    found |= _scores(model.eval(), test)
    return found | {"windows": len(train), "test_windows": len(test), **spent(history, start)}


def _scores(model: TrajectoryTransformer, test: Walks) -> dict[str, float]:
    """ADE and FDE as they walked and turned, of the best of 20 samples, and the error of equivariance in metres."""
    order = test.count.argsort(stable=True)  # windows of like size together
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = [_distances(model, *test.at(rows), generator) for rows in order.split(25)]
    # the mean over pedestrians; of the turns the mean error, but the largest break of equivariance
    found = {name: torch.cat([part[name] for part in parts], dim=-1).mean(-1) for name in parts[0]}
    scores = {name: float(values.mean()) for name, values in found.items() if name != "error"}
    return scores | {"error": float(found["error"].max())}


def _distances(
    model: TrajectoryTransformer, tracks: torch.Tensor, window: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Metres by pedestrian ``[n]``, or by turn and pedestrian ``[turns, n]``."""
    past, future = tracks[:, :OBSERVED], tracks[:, OBSERVED:]
    windows = int(window[-1]) + 1

    def rollout(pasts: torch.Tensor, draw: torch.Generator | None = None) -> torch.Tensor:
        """All of ``[k, n, observed, 2]`` at once, each a world of its own."""
        worlds = (window + windows * torch.arange(len(pasts))[:, None]).flatten()
        return model.rollout(pasts.flatten(0, 1), worlds, PREDICTED, draw).unflatten(0, (len(pasts), -1))

    (still,) = rollout(past[None])
    ade, fde = displacement_errors(still, future)
    angles = torch.tensor(ANGLES)[:, None].expand(-1, len(past))
    moved = rollout(torch.stack([turned(past, a) for a in angles]))
    error = torch.stack([(m - turned(still, a)).norm(dim=-1).mean(-1) for m, a in zip(moved, angles, strict=True)])
    turns = [displacement_errors(m, turned(future, a)) for m, a in zip(moved, angles, strict=True)]
    best_ade, best_fde = displacement_errors(rollout(past.expand(SAMPLES, -1, -1, -1), generator), future)
    return {
        "ADE": ade,
        "FDE": fde,
        "best-of-20 ADE": best_ade,
        "best-of-20 FDE": best_fde,
        "turned ADE": torch.stack([one for one, _ in turns]),
        "turned FDE": torch.stack([other for _, other in turns]),
        "error": error,
    }
