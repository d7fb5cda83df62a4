"""Regressions with a symmetry that a dial breaks: what ``o5``, ``lorentz`` and ``inertia`` share.

One network (:class:`ProductNetwork`) from exactly equivariant (softness 0) to free (softness 1), the same network with
a residual pathway prior, and a plain multi-layer perceptron. Learning rates, variances of the residual and widths are
chosen on validation examples of the first seed. Errors are those of the last weights on test examples, in the units of
the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import equidial as ed
from equidial.baselines import fold_rpp, residual_pathway_prior, rpp_penalty
from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.recipes._product_network import ProductNetwork, ProductSizes
from equidial.recipes._study import Key, Progress, Study, Training, check_named, fit, part_of, spent
from equidial.representations import Representation, Tensor, Trivial, Vector

Method = Literal["soft", "rpp", "mlp"]
EQUIVARIANT_VARIANCE = 100.0
_VALIDATION, _TEST, _MOVED, _ELEMENTS, _BATCH = 1000, 5000, 500, 16, 500


@dataclass(frozen=True)
class _Sizes:
    network: ProductSizes
    examples: tuple[int, ...]
    steps: int
    widths: tuple[int, ...]  # of the perceptron
    rates: tuple[float, ...] = (5e-3, 2e-2)  # of the product network
    variances: tuple[float, ...] = (1e-4, 1e-2, 1.0)
    plain_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)


SCALES = {
    "small": _Sizes(ProductSizes(16, 32), (100, 1000), 600, (64, 256)),
    "paper": _Sizes(ProductSizes(32, 64), (30, 100, 300, 1000, 3000, 10000, 30000), 1800, (128, 384)),
}


@dataclass(frozen=True)
class Regression:
    """The options of a regression study."""

    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: 16 pairs of vectors, 600 steps, 100 and 1,000 examples. paper: 32 pairs, 1,800 steps, 30 .. 30,000."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training examples and weights; tuning uses the first."""
    breaking: tuple[float, ...] = (0.0, 0.3, 0.5)
    """How far the target is from symmetric, 0 exactly."""
    examples: tuple[int, ...] | None = None
    """Numbers of training examples. Default: of the scale."""
    softness: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
    """Of the soft networks: 0 exactly equivariant, 1 untouched."""
    methods: tuple[Method, ...] = get_args(Method)
    """Out of soft, rpp, mlp."""
    steps: int | None = None
    """Of Adam, in batches of at most 500. Default: of the scale."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning."""
        for name in ("seeds", "breaking"):
            check_named(name, getattr(self, name))
        check_named("methods", self.methods, get_args(Method))
        if not self.softness or not all(0 <= s <= 1 for s in self.softness):
            raise ArgumentError(explain("softness in [0, 1]", repr(self.softness), "0 exact .. 1 untouched"))
        if self.examples is not None and not (self.examples and min(self.examples) > 1):
            raise ArgumentError(explain("two training examples or more", repr(self.examples), "e.g. 100"))
        if (self.steps is not None and self.steps < 1) or min(self.breaking) < 0:
            raise ArgumentError(explain("steps >= 1, breaking >= 0", f"{self.steps}, {self.breaking}", "mend it"))


@dataclass(frozen=True)
class Problem:
    """Vectors and numbers to a number or a tensor, exactly equivariant but for a term that a dial multiplies.

    Attributes:
        group: of matrices.
        vectors, numbers: how many of each an input holds, vectors first.
        order: of the output, 0 or 2.
        draw: ``count`` inputs from a generator, ``[count, vectors * d + numbers]``.
        target: of inputs, ``[count, d ** order]``.
        term: what breaks the symmetry, in the shape of the target.
    """

    group: Group
    vectors: int
    numbers: int
    order: Literal[0, 2]
    draw: Callable[[int, torch.Generator], torch.Tensor]
    target: Callable[[torch.Tensor], torch.Tensor]
    term: Callable[[torch.Tensor], torch.Tensor]

    @cached_property
    def rep_in(self) -> Representation:
        """Of the input."""
        space = self.vectors * Vector(self.group)
        return space + self.numbers * Trivial(self.group) if self.numbers else space

    @cached_property
    def rep_out(self) -> Representation:
        """Of the output."""
        return Tensor(self.group, 2) if self.order else Trivial(self.group)

    def sample(self, count: int, breaking: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets in float64; the inputs do not depend on ``breaking``."""
        x = self.draw(count, torch.Generator().manual_seed(seed))
        return x, self.target(x) + breaking * self.term(x)


class Scaled(nn.Module):
    """A network between inputs and targets in their own units.

    Vectors are divided by one number and numbers by one, their root mean squares in training; targets have the mean and
    deviation of the training targets where they are invariant, else only their root mean square, so that an exact
    network stays exact.
    """

    scale: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, network: nn.Module, problem: Problem, x: torch.Tensor, y: torch.Tensor):
        super().__init__()
        self.network = network
        parts = x.split([problem.rep_in.dim - problem.numbers, problem.numbers], dim=-1)
        scale = torch.cat([part.square().mean().sqrt().expand(part.shape[-1]) for part in parts if part.numel()])
        mean = torch.zeros(()) if problem.order else y.mean()
        self.register_buffer("scale", scale.to(x.dtype))
        self.register_buffer("mean", mean.to(x.dtype))
        self.register_buffer("deviation", (y - mean).square().mean().sqrt().to(x.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the units of the target."""
        return self.mean + self.deviation * self.network(x / self.scale)


def perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Three hidden layers with SiLU."""
    sizes = (inputs, width, width, width)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def run(name: str, problem: Problem, recipe: Regression, progress: Progress | None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns all records. Raises as :meth:`Regression.check`."""
    recipe.check()
    settings = {k: v for k, v in asdict(recipe).items() if k != "output"}
    settings["examples"] = _examples(recipe)
    study = Study(recipe.output, name, settings)
    tuning = list(_tuning_keys(recipe))
    own = [{k: key[k] for k in ("breaking", "examples", "method", "softness")} for key in tuning]
    cases = [case for i, case in enumerate(own) if case not in own[:i]]
    total = len(tuning) + len(cases) * (len(recipe.seeds) - 1)

    def train(key: Key) -> dict[str, Any]:
        return _train(problem, recipe, study, key)

    tuned, chosen = study.collect(tuning, train, part_of(progress, 0, total)), []
    for case in cases:
        best = min((r for r in tuned if all(r[k] == v for k, v in case.items())), key=lambda r: r["validation"])
        chosen += [{k: best[k] for k in tuning[0]} | {"seed": seed} for seed in recipe.seeds[1:]]
    return tuned + study.collect(chosen, train, part_of(progress, len(tuning), total))


def _examples(recipe: Regression) -> tuple[int, ...]:
    return recipe.examples or SCALES[recipe.scale].examples


def _tuning_keys(recipe: Regression) -> Iterator[dict[str, Any]]:
    """Every setting on the first seed; the best of each method, or of each softness, goes on to the other seeds."""
    sizes, none = SCALES[recipe.scale], {"softness": None, "variance": None, "width": None}
    settings: dict[Method, list[dict[str, float]]] = {
        "soft": [{"softness": s, "rate": rate} for s in recipe.softness for rate in sizes.rates],
        "rpp": [{"variance": v, "rate": rate} for v in sizes.variances for rate in sizes.rates],
        "mlp": [{"width": w, "rate": rate} for w in sizes.widths for rate in sizes.plain_rates],
    }
    for breaking in recipe.breaking:
        for examples in _examples(recipe):
            for method in recipe.methods:
                for setting in settings[method]:
                    case = {"breaking": breaking, "examples": examples, "method": method}
                    yield {**case, **none, **setting, "seed": recipe.seeds[0]}


def _train(problem: Problem, recipe: Regression, study: Study, key: Key) -> dict[str, Any]:
    start, sizes, breaking, count = time.perf_counter(), SCALES[recipe.scale], key["breaking"], key["examples"]
    x64, y64 = problem.sample(count, breaking, 1000 + key["seed"])
    x, y = x64.float(), y64.float()
    torch.manual_seed(key["seed"])
    network = _network(problem, sizes.network, key)
    model = Scaled(network, problem, x, y)
    parameters = sum(p.numel() for p in network.parameters())
    if isinstance(network, ProductNetwork):
        if key["method"] == "rpp":
            residual_pathway_prior(network, network.config(0.0), EQUIVARIANT_VARIANCE, key["variance"])
        elif key["softness"] < 1:
            ed.soften(network, network.config(key["softness"]))
    deviation = float(model.deviation)

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        error = ((model(x[rows]) - y[rows]) / deviation).square().mean()
        return error + rpp_penalty(network) / count if key["method"] == "rpp" else error

    steps, batches = recipe.steps or sizes.steps, -(-count // _BATCH)
    epochs = max(1, round(steps / batches))
    training = Training(epochs, min(count, _BATCH), key["rate"], warmup=0.05 * epochs)
    history = fit(model, count, loss, training, key["seed"], study.checkpoint(key), every=max(1, epochs // 10))
    bound = None
    if key["method"] == "rpp":
        fold_rpp(network)
    elif key["softness"] is not None and key["softness"] < 1:
        bound = float(ed.certify(network).bound)
        ed.fold(network)
    return {
        **_scores(model, problem, breaking),
        "bound": bound,
        "parameters": parameters,
        "steps": epochs * batches,
        **spent(history, start),
    }


def _network(problem: Problem, sizes: ProductSizes, key: Key) -> nn.Module:
    if key["method"] == "mlp":
        return perceptron(problem.rep_in.dim, key["width"], problem.rep_out.dim)
    return ProductNetwork(problem.group, problem.vectors, problem.numbers, problem.rep_out, sizes)


def _scores(model: nn.Module, problem: Problem, breaking: float) -> dict[str, float]:
    """In float64: mean squared errors, that on test examples also as a share of their variance, and the error."""
    model = model.double().eval()
    with torch.no_grad():
        x, y = problem.sample(_VALIDATION, breaking, 1)
        found = {"validation": float((model(x) - y).square().mean())}
        x, y = problem.sample(_TEST, breaking, 2)
        still = model(x)
        found["test"] = float((still - y).square().mean())
        found["share"] = found["test"] / float((y - y.mean(0)).square().mean())
        return found | {"error": equivariance_error(model, problem, x[:_MOVED])}


def equivariance_error(model: nn.Module, problem: Problem, x: torch.Tensor) -> float:
    """``||f(g x) - g f(x)|| / ||f(x)||``, norms over all examples and 16 elements of the group (fixed; boosts up to 1).

    Elements act by the representations of input and output, on vectors as they lie in the last axis.
    """
    elements = problem.group.sample(_ELEMENTS, torch.Generator().manual_seed(3))
    with torch.no_grad():
        still = model(x)
        moved = [model(problem.rep_in.act(g, x)) - problem.rep_out.act(g, still) for g in elements]
        size = [problem.rep_out.act(g, still) for g in elements]
    return float(torch.stack(moved).norm() / torch.stack(size).norm())
