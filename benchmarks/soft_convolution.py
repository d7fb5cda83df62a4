"""The soft convolution against the forms that build every kernel, a plain convolution, and strict rotations.

    python -m benchmarks.soft_convolution [--json FILE]
    python -m benchmarks.soft_convolution --threads 1 --clock cpu          # on a busy machine

One step: forward and backward of the whole layer, features of the kernel included, gradients of the input and of all
parameters, float32. Beside the times: the peak memory of one step in a process of its own, the multiplications of each
method, and the rates that the machine reaches on products of these shapes. Rules: ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks._contract import (
    Finding,
    Rival,
    Timings,
    add_json_option,
    command_line,
    machine,
    measure,
    pin_threads,
    write_json,
)
from benchmarks._materialised import FORMS, Materialised
from benchmarks._memory import peak_memory
from benchmarks._statistics import Summary, number
from equidial.nn import GroupConv2d, SoftConv2d

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS, PLAIN = "contraction", "plain convolution"
QUARTER, SOFT_ROTATION = 0.25, 1.05
TINY = [1, 4, 4, 3, 8]  # what libraries load and keep at the first call, whatever the size


@dataclass(frozen=True)
class Problem:
    """Sizes of one layer and its batch."""

    batch: int
    channels: int
    features: int
    kernel: int
    image: int

    def layer(self, method: str) -> nn.Module:
        """The layer by name, with the same parameters whatever the method."""
        torch.manual_seed(0)
        c, k = self.channels, self.kernel
        if method == PLAIN:
            return nn.Conv2d(c, c, k, padding=k // 2)
        made = (SoftConv2d if method == OURS else Materialised)(
            c, c, k, padding=k // 2, omega_prime=2.0, features=self.features
        )
        if isinstance(made, Materialised):
            made.form = method
        return made

    def multiplications(self, method: str) -> float:
        """Of forward and backward, without those of the features, alike in all: 1e9."""
        b, p, c, t, m = self.batch, self.image**2, self.channels, self.kernel**2, self.features
        plain, gather, mix, build = b * p * t * c * c, b * p * t * c * m, b * p * m * c * c, p * t * m * c * c
        counts = {PLAIN: 3 * plain, OURS: 4 * gather + 3 * mix}
        return counts.get(method, 3 * plain + 3 * build) / 1e9


def step(layer: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Forward and backward on the same images each time; returns the output."""

    def run() -> torch.Tensor:
        layer.zero_grad()
        images = x.detach().requires_grad_()
        y = layer(images)
        y.backward(torch.ones_like(y))
        return y

    return run


def one_step(method: str, sizes: Sequence[int]) -> None:
    """What ``_memory`` calls."""
    problem = Problem(*sizes)
    step(problem.layer(method), torch.randn(problem.batch, problem.channels, problem.image, problem.image))()


def times(
    layers: dict[str, nn.Module], x: torch.Tensor, arguments: argparse.Namespace
) -> tuple[Timings, dict[str, float]]:
    """Times of the layers, and how far the output of each is from that of the first, relative to its largest value."""
    first, *_ = outputs = {name: step(layer, x)().detach() for name, layer in layers.items()}
    scale = float(outputs[first].abs().max())
    apart = {name: float((y - outputs[first]).abs().max()) / scale for name, y in outputs.items()}
    rivals = [Rival(name, {"step": step(layer, x)}) for name, layer in layers.items()]
    clock = CLOCKS[arguments.clock]
    return measure(rivals, arguments.rounds, arguments.warmup, arguments.budget, clock), apart


def rates(problem: Problem, rounds: int) -> dict[str, float]:
    """Best rate on products of the shapes that both methods live on, 1e9 multiplications a second."""
    p, t, m, c = 32, problem.kernel**2, problem.features, problem.channels
    bc = problem.batch * c
    window, phi = torch.randn(p, t, bc), torch.randn(p, t, m)
    places, kernels = torch.randn(p, problem.batch, t * c), torch.randn(p, t * c, c)
    square = torch.randn(1536, 1536)
    shapes: dict[str, tuple[float, Callable[[], object]]] = {
        "one product of 1536^3": (1536**3, lambda: square @ square),
        "windows with features, per place": (p * t * bc * m, lambda: torch.bmm(window.mT, phi)),
        "windows with kernels, per place": (p * t * bc * c, lambda: torch.bmm(places, kernels)),
    }
    found = {}
    for name, (count, run) in shapes.items():
        spent = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            run()
            spent.append(time.perf_counter() - began)
        found[name] = count / min(spent) / 1e9
    return found


def translations(arguments: argparse.Namespace) -> tuple[list[dict[str, object]], list[Finding]]:
    """Ours, the materialised forms, the plain convolution."""
    problem = Problem(arguments.batch, arguments.channels, arguments.features, arguments.kernel, arguments.image)
    x = torch.randn(problem.batch, problem.channels, problem.image, problem.image)
    methods = [OURS, *FORMS, PLAIN]
    timings, apart = times({name: problem.layer(name) for name in methods}, x, arguments)
    rows: list[dict[str, object]] = []
    call: dict[str, float] = {}
    above: dict[str, float] = {}
    sizes = [problem.batch, problem.channels, problem.features, problem.kernel, problem.image]
    for name in methods:
        memory = peak_memory("benchmarks.soft_convolution:one_step", [name, sizes], arguments.threads)
        call[name] = memory["peak_mib"] - memory["before_mib"]
        small = peak_memory("benchmarks.soft_convolution:one_step", [name, TINY], arguments.threads)
        above[name] = call[name] - (small["peak_mib"] - small["before_mib"])
        spent, ratio = timings.summary(name), timings.ratio(OURS, name)
        row = {"method": name, "seconds": spent.to_dict(), "ours_over_this": ratio.to_dict(), **memory}
        count = problem.multiplications(name)
        rows.append({**row, "multiplications_1e9": count, "apart": apart[name]})
        print(
            f"{name:<18} {spent!s:<40} {spent.count:>2} rounds\n{'':<18} ours takes {ratio} of it\n"
            f"{'':<18} {call[name]:.0f} MiB, {above[name]:.0f} above a tiny step, {count:.2f}e9 multiplications,"
            f" {count / spent.median:.0f}e9/s" + (f", output apart {apart[name]:.0e}" if name in FORMS else "")
        )
    for name, rate in rates(problem, arguments.rounds).items():
        print(f"rate: {name:<36} {rate:.0f}e9/s")
    fastest = min(FORMS, key=lambda name: timings.summary(name).median)
    ratio, memory_ratio = timings.ratio(OURS, fastest).median, call[OURS] / call[fastest]
    least = min(call[name] for name in FORMS)
    against_plain = timings.ratio(OURS, PLAIN).median
    flops = problem.multiplications(OURS) / problem.multiplications(PLAIN)
    share = problem.multiplications(OURS) / problem.multiplications(fastest)
    findings = [
        Finding("time", f"time against the fastest materialised form ({fastest}): {number(ratio)}, at"
                f" {number(share)} of its multiplications; target {QUARTER}", {"ratio": ratio}, ratio <= QUARTER),
        Finding("memory", f"memory against that form: {number(memory_ratio)}, above what a tiny step takes"
                f" {number(above[OURS] / above[fastest])}; target {QUARTER}", {"ratio": memory_ratio},
                call[OURS] <= QUARTER * min(least, call[fastest])),
        Finding("plain", f"time against a plain convolution: {number(against_plain)}, at {number(flops)} times its"
                " multiplications (a target of 3 holds on a GPU only)", {"ratio": against_plain}),
    ]  # fmt: skip
    return rows, findings


def rotations(arguments: argparse.Namespace) -> tuple[list[dict[str, object]], list[Finding]]:
    """A group convolution soft in rotation against the strict one."""
    c, k, size = arguments.channels, arguments.kernel, arguments.image // 2
    x = torch.randn(arguments.batch, c, 8, size, size)
    layers: dict[str, nn.Module] = {}
    for name, soft in (("soft rotation", {"rotation": 2.0}), ("strict rotation", None)):
        torch.manual_seed(0)
        layers[name] = GroupConv2d(c, c, k, padding=k // 2, group="C8", omega_prime=soft, features=arguments.features)
    timings, _ = times(layers, x, arguments)
    rows: list[dict[str, object]] = []
    for name in layers:
        spent = timings.summary(name)
        rows.append({"method": name, "seconds": spent.to_dict()})
        print(f"{name:<18} {spent!s:<40} {spent.count:>2} rounds")
    ratio: Summary = timings.ratio("soft rotation", "strict rotation")
    text = f"soft over strict rotation, C8, {size} pixels: {ratio}; target {SOFT_ROTATION}"
    return rows, [Finding("rotation", text, {"ratio": ratio.median}, ratio.median <= SOFT_ROTATION)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.soft_convolution", description=__doc__)
    for name, value in (("batch", 16), ("channels", 32), ("features", 32), ("kernel", 7), ("image", 32)):
        out.add_argument(f"--{name}", type=int, default=value, help=f"{value} unless given")
    out.add_argument("--rounds", type=int, default=9, help="counted rounds")
    out.add_argument("--warmup", type=int, default=1, help="rounds thrown away first")
    out.add_argument("--budget", type=float, default=300.0, help="seconds a case, 3 rounds in any case")
    out.add_argument("--threads", type=int, default=2, help="torch and BLAS threads")
    out.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is counted")
    out.add_argument("--seed", type=int, default=0, help="draws the images")
    add_json_option(out)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and write what was asked for."""
    arguments = parser().parse_args(argv)
    torch.manual_seed(arguments.seed)
    print(command_line("benchmarks.soft_convolution", arguments))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print("seconds and ratios: median [quartiles; range]")
    rows, findings = translations(arguments)
    more, last = rotations(arguments)
    findings += last
    print("\n".join(str(finding) for finding in findings))
    if arguments.json:
        write_json(arguments.json, "soft_convolution", arguments, rows + more, findings=[f.to_dict() for f in findings])


if __name__ == "__main__":
    pin_threads(parser().parse_args().threads)
    main()
