"""MNIST (paper A, figure 2): networks from scratch on upright digits, judged on turned ones: the dial against RPP.

One small network, twice made tunable between strictly invariant and free: by the dial, and by residual pathway priors
in their two-prior form, ``W = P(A) + B``, whose dial is the ratio of the prior variances of B and A. Both constrain the
same tensors, take as many optimizer steps on the same images, and share the ends: softness 0 is RPP without B, softness
1 has no prior. Nothing is chosen by looking: every setting is on the page, so no images are held out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.baselines import fold_rpp, residual_pathway_prior, rpp_penalty
from equidial.data import load_images
from equidial.errors import ArgumentError, explain
from equidial.filters import Response
from equidial.recipes._arrays import stacked
from equidial.recipes._moves import scores
from equidial.recipes._study import Key, Progress, Study, Training, check_named, fit, fit_classifier, spent

NAME = "mnist"
_MEAN, _STD = 0.1307, 0.3081  # of MNIST


@dataclass(frozen=True)
class _Sizes:
    widths: tuple[int, int, int]
    training: Training


SCALES = {
    "small": _Sizes((16, 32, 64), Training(8, 128, 4e-3, warmup=0.5)),
    "paper": _Sizes((32, 64, 128), Training(30, 128, 1e-3, warmup=1)),
}


@dataclass(frozen=True)
class Mnist:
    """MNIST from scratch: accuracy on turned digits against invariance error, for the dial and for RPP."""

    data: str
    """FILE.npz (x_train [n, 28, 28] uint8, ...) | MNIST folder of torchvision | hf:ylecun/mnist | hf:FOLDER."""
    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: 16, 32 and 64 channels, 8 epochs. paper: twice the channels, 30 epochs."""
    group: str = "C4"
    """C4, which the network keeps exactly at softness 0; C8, SO2, ..., up to interpolation."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training per seed and setting."""
    softness: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Positions of the dial; training from scratch makes much of a little freedom."""
    responses: tuple[Response, ...] = ("nearest", "taper")
    """Out of nearest, hard, taper, exponential; at 0 and 1 they are the same."""
    ratios: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-2, 1.0)
    """Prior variances of RPP's free weights; that of its equivariant ones is 1."""
    epochs: int | None = None
    """Default: of the scale."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning."""
        check_named("seeds", self.seeds)
        check_named("positions of the dial", self.softness)
        check_named("responses", self.responses, get_args(Response))
        for softness in self.softness:
            ed.SoftEquivarianceConfig(group=self.group, softness=softness)
        if not all(ratio > 0 for ratio in self.ratios) or (self.epochs is not None and self.epochs < 1):
            got = f"ratios={self.ratios}, epochs={self.epochs}"
            raise ArgumentError(explain("positive ratios of variances and at least one epoch", got, "mend it"))


def network(widths: tuple[int, int, int], channels: int, classes: int) -> nn.Sequential:
    """Three convolutions and a mean over places: its strides keep quarter turns exactly at multiples of four pixels.

    There is no normalisation: what has none of a weight's scale would make a prior on that scale void.
    """
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(channels, a, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(a, b, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, classes),
    )


@dataclass(frozen=True)
class MnistTraining:
    """One training from scratch, as the study makes many: what a sweep varies."""

    data: str
    """As of :class:`Mnist`."""
    scale: Literal["small", "paper"] = "small"
    """Of the network, and of what is not given here."""
    group: str = "C4"
    """C4, C8, SO2, ..."""
    softness: float = 0.1
    """Position of the dial."""
    response: Response = "nearest"
    """nearest, hard, taper, exponential."""
    learning_rate: float | None = None
    """At the top of its course. Default: of the scale."""
    epochs: int | None = None
    """Default: of the scale."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning."""
        ed.SoftEquivarianceConfig(group=self.group, softness=self.softness, response=self.response)
        check_named("scale", (self.scale,), tuple(SCALES))
        if (self.learning_rate is not None and not self.learning_rate > 0) or (self.epochs or 1) < 1:
            got = f"learning_rate={self.learning_rate}, epochs={self.epochs}"
            raise ArgumentError(explain("a learning rate above 0 and at least one epoch", got, "mend it"))


@dataclass(frozen=True)
class _Data:
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: int


def run(recipe: Mnist, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`Mnist.check`."""
    recipe.check()
    data = _loaded(recipe.data)
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("output", "data")}
    study = Study(recipe.output, NAME, settings)
    return study.collect(list(_keys(recipe)), lambda key: _train(recipe, study, key, data), progress)


def train_one(training: MnistTraining, seed: int, folder: Path) -> dict[str, Any]:
    """Train one network on the dial and write its folded weights and certificate into ``folder``.

    Returns scores as :func:`run` records them. Raises as :meth:`MnistTraining.check`.
    """
    training.check()
    data, sizes = _loaded(training.data), SCALES[training.scale]
    torch.manual_seed(seed)
    model = network(sizes.widths, data.x.shape[1], data.classes)
    config = ed.SoftEquivarianceConfig(group=training.group, softness=training.softness, response=training.response)
    ed.soften(model, config)
    rate, epochs = training.learning_rate or sizes.training.learning_rate, training.epochs or sizes.training.epochs
    fit_classifier(model, data.x, data.y, replace(sizes.training, learning_rate=rate, epochs=epochs), seed)
    ed.fold(model)
    certificate = ed.certify(model, config)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    certificate.save(folder / "certificate.json")
    return {**_scores(model, data, training.group), "bound": float(certificate.bound)}


def _loaded(path: str) -> _Data:
    images = load_images(path, mean=(_MEAN,), std=(_STD,))
    if images.shape[1] != images.shape[2] or images.shape[1] % 4:
        got = f"{images.shape[1]}x{images.shape[2]} pixels"
        raise ArgumentError(explain("square images whose side is a multiple of 4", got, "pass MNIST, or resize them"))
    return _Data(*stacked(images.train), *stacked(images.test), len(images.classes))


def _scores(model: nn.Module, data: _Data, group: str) -> dict[str, float]:
    return scores(model, zip(data.x_test.split(500), data.y_test.split(500), strict=True), group)


def _keys(recipe: Mnist) -> Iterator[dict[str, Any]]:
    """The ends of the dial under the first response only."""
    for seed in recipe.seeds:
        for place, response in enumerate(recipe.responses):
            for softness in recipe.softness:
                if place == 0 or 0 < softness < 1:
                    yield {"method": "dial", "response": response, "setting": softness, "seed": seed}
        for ratio in recipe.ratios:
            yield {"method": "rpp", "response": None, "setting": ratio, "seed": seed}


def _train(recipe: Mnist, study: Study, key: Key, data: _Data) -> dict[str, Any]:
    start, sizes, rpp = time.perf_counter(), SCALES[recipe.scale], key["method"] == "rpp"
    torch.manual_seed(key["seed"])
    model = network(sizes.widths, data.x.shape[1], data.classes)
    strict = ed.SoftEquivarianceConfig(group=recipe.group, softness=0.0)
    if rpp:
        residual_pathway_prior(model, strict, residual_variance=key["setting"])
    else:
        ed.soften(model, replace(strict, softness=key["setting"], response=key["response"]))
    parameters = sum(p.numel() for p in model.parameters())
    plan = replace(sizes.training, epochs=recipe.epochs or sizes.training.epochs)

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        loss = functional.cross_entropy(model(data.x[rows]), data.y[rows])
        return loss + rpp_penalty(model) / len(data.x) if rpp else loss

    history = fit(model, len(data.x), loss_of, plan, key["seed"], study.checkpoint(key))
    (fold_rpp if rpp else ed.fold)(model)
    return {
        **_scores(model, data, recipe.group),
        "bound": float(ed.certify(model, strict).bound),
        "parameters": parameters,
        "images": len(data.x),
        "test_images": len(data.x_test),
        **spent(history, start),
    }
