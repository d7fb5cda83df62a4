"""Composed certificates of whole networks beside the worst errors that a search finds.

    python -m benchmarks.networks [--seeds 0 1 2] [--json FILE]

Two networks with random weights, softened to several degrees: a three-layer O(5) network of vectors, tensors and
scalars with norm non-linearities, and a C4 convolution network with a residual block, pooling and a linear head. For
each: the largest bound over 8 inputs and the bound for all inputs of norm at most 1, each with the largest error found
by trying elements and improving elements and inputs locally, and the slack between them. Then one budget, the
composed bound of softness 0.3 for all tensors: how far ``set_network_error`` and that softness move the weights.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import nn

import equidial as ed
from benchmarks._contract import add_json_option, command_line, machine, pin_threads, write_json
from equidial.nn import NormNonlinearity
from equidial.representations import parse

SOFTNESS = (0.0, 0.1, 0.3, 0.6, 1.0)
SPACES: tuple[str, ...] = (
    "3*Vector + Tensor(2)",
    "8*Vector + 2*Tensor(2) + 8*Trivial",
    "8*Vector + 8*Trivial",
    "4*Trivial",
)
INPUTS = 8


class Residual(nn.Module):
    """``relu(x + f(x))`` with batch norm inside."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def o5_network() -> tuple[nn.Module, dict[str, tuple[str, str]], tuple[int, ...]]:
    """Network, declared representations, shape of one input."""
    reps = [parse(text, ed.groups.O(5)) for text in SPACES]
    layers: list[nn.Module] = []
    for a, b in pairwise(reps):
        layers += [nn.Linear(a.dim, b.dim, bias=b is not reps[-1]), NormNonlinearity(b)]
    declared = {str(2 * i): (a, b) for i, (a, b) in enumerate(pairwise(SPACES))}
    return nn.Sequential(*layers[:-1]).double(), declared, (reps[0].dim,)


def c4_network() -> tuple[nn.Module, dict[str, tuple[str, str]], tuple[int, ...]]:
    """The same for images."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Residual(8), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    return net.double().eval(), {}, (1, 16, 16)


CASES: dict[str, tuple[str, Callable[[], tuple[nn.Module, dict[str, tuple[str, str]], tuple[int, ...]]]]] = {
    "O(5) vectors, tensors, scalars": ("O5", o5_network),
    "C4 convolutions": ("C4", c4_network),
}


@dataclass(frozen=True)
class Result:
    """One network at one softness; errors are absolute unless they say relative."""

    case: str
    seed: int
    softness: float
    inputs_bound: float
    inputs_composed: float
    inputs_measured: float
    ball_bound: float
    ball_composed: float
    ball_measured: float


def softened(case: str, seed: int, softness: float) -> tuple[nn.Module, tuple[int, ...]]:
    """A fresh network with this seed's weights, and the shape of its inputs."""
    group, make = CASES[case]
    torch.manual_seed(seed)
    net, declared, shape = make()
    return ed.soften(net, ed.SoftEquivarianceConfig(group=group, softness=softness, representations=declared)), shape


def compare(case: str, seed: int, softness: float) -> Result:
    """Certify one network both ways."""
    model, shape = softened(case, seed, softness)
    x = torch.randn(INPUTS, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x / x.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
    inputs = ed.certify_network(model, inputs=x)
    ball = ed.certify_network(model, ball=1.0, input_shape=shape)
    found = [(c.bound, c.composed, c.measured) for c in (inputs, ball)]
    return Result(case, seed, softness, *found[0], *found[1])


def allocate(case: str, seed: int, softness: float = 0.3) -> tuple[float, float]:
    """Sum of squared relative changes of the weights under one budget: ``set_network_error``, one softness for all."""
    model, shape = softened(case, seed, 1.0)
    untouched = copy.deepcopy(ed.unload(copy.deepcopy(model))).state_dict()
    even = copy.deepcopy(model)
    ed.set_softness(even, softness)
    budget = ed.certify_network(even, ball=1.0, input_shape=shape).composed
    ed.set_network_error(model, budget, ball=1.0, input_shape=shape)

    def change(m: nn.Module) -> float:
        folded = ed.fold(copy.deepcopy(m)).state_dict()
        return sum(
            float((folded[k] - v).square().sum() / v.square().sum().clamp_min(1e-300))
            for k, v in untouched.items()
            if v.is_floating_point()
        )

    return change(model), change(even)


def main() -> None:
    """Print the tables; write JSON where asked for."""
    arguments = parser().parse_args()
    print(command_line("benchmarks.networks", arguments))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    every: list[dict[str, object]] = []
    for case in CASES:
        print(f"\n{case}; medians over seeds, slack with its range")
        columns = f"{'composed':>9} {'bound':>9} {'found':>9}"
        print(f"softness | 8 inputs: {columns}  {'slack':<22} | ball: {columns}  slack")
        for softness in SOFTNESS:
            rows = [compare(case, seed, softness) for seed in arguments.seeds]
            every += [asdict(row) for row in rows]
            print(f"{softness:>8.1f} |           {_row(rows, 'inputs'):<53} |       {_row(rows, 'ball')}", flush=True)
    print(
        "\nthe composed bound of softness 0.3: sum of squared relative changes, "
        "set_network_error / softness 0.3 for all"
    )
    for case in CASES:
        found = [allocate(case, seed) for seed in arguments.seeds]
        print(f"{case:<32} " + ", ".join(f"{ours:.3f} / {even:.3f}" for ours, even in found), flush=True)
        every += [
            {"case": case, "seed": seed, "change": ours, "change_even": even}
            for seed, (ours, even) in zip(arguments.seeds, found, strict=True)
        ]
    if arguments.json:
        write_json(arguments.json, "networks", arguments, every)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    out.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    out.add_argument("--threads", type=int, default=1)
    add_json_option(out)
    return out


def _middle(rows: list[Result], name: str) -> float:
    return statistics.median(getattr(row, name) for row in rows)


def _row(rows: list[Result], scope: str) -> str:
    numbers = " ".join(f"{_middle(rows, f'{scope}_{name}'):>9.3g}" for name in ("composed", "bound", "measured"))
    if max(getattr(r, f"{scope}_bound") for r in rows) < 1e-9:
        return f"{numbers}  (rounding)"
    slack = [getattr(r, f"{scope}_bound") / getattr(r, f"{scope}_measured") for r in rows]
    return f"{numbers}  {statistics.median(slack):.1f} ({min(slack):.1f}..{max(slack):.1f})"


if __name__ == "__main__":
    pin_threads(parser().parse_args().threads)
    main()
