"""The training step of a softened model against the plain step, both taken in the same round.

    python -m benchmarks.training_step [--reference PATH] [--json FILE]
    python -m benchmarks.training_step --cases resnet50-b8 --image-size 64 --pairs 5      # a quick look

One step: zero the gradients, forward with the loss, backward, SGD with momentum. Random weights, C4, ``nearest``,
softness 0.5. Beside the plain model run: the softened one, the folded one, retract mode where the library has it, and
with ``--reference`` the official code's projection of each convolution kernel. Rules: ``docs/benchmarks.md``, two
threads unless told. ``--clock cpu`` counts processor seconds instead, which neighbours on a busy machine disturb less;
use it with ``--threads 1``, because waiting threads count as well.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import equidial as ed
from benchmarks._contract import (
    Finding,
    Rival,
    add_json_option,
    command_line,
    machine,
    measure,
    pin_threads,
    write_json,
)
from benchmarks._models import WIDTH, softened_tensors, vision_model
from benchmarks._official import Official
from benchmarks._statistics import Summary, number
from equidial.errors import ArgumentError, EquidialWarning, explain, nearest_names

GROUP, SOFTNESS, CLASSES, FULL_SIZE = "C4", 0.5, 1000, 224
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A model at a batch size; ``target``: the largest ratio of softened to plain that is promised."""

    title: str
    kind: str
    batch: int
    target: float | None = None
    every_linear: bool = False


CASES = {
    "resnet50-b32": Case("ResNet-50, batch 32", "resnet50", 32, 1.05),
    "resnet50-b8": Case("ResNet-50, batch 8", "resnet50", 8, 1.10),
    "resnet50-b1": Case("ResNet-50, batch 1", "resnet50", 1),
    "vit-b16": Case("ViT-B/16, batch 8", "vit-b16", 8, 1.02),
    "dinov2-b14": Case("DINOv2-B/14, batch 8", "dinov2-b14", 8),
    "vit-b16-linear": Case("ViT-B/16, batch 8, every linear layer constrained", "vit-b16", 8, every_linear=True),
}


@dataclass(frozen=True)
class Result:
    """One way of training in one case: seconds a step, the ratio to the plain step, counts."""

    case: str
    method: str
    seconds: Summary
    ratio: Summary | None
    facts: dict[str, int | float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain data for the JSON."""
        ratio = self.ratio.to_dict() if self.ratio else None
        return {
            "case": self.case,
            "method": self.method,
            "seconds": self.seconds.to_dict(),
            "ratio_to_plain": ratio,
            "facts": self.facts,
        }

    def __str__(self) -> str:
        ratio = f"{self.ratio.median:.3f} [{self.ratio.q1:.3f}..{self.ratio.q3:.3f}]" if self.ratio else "1"
        facts = ", ".join(f"{name} {number(v) if isinstance(v, float) else v}" for name, v in self.facts.items())
        return f"{self.method:<10} {ratio:<22} {self.seconds!s:<44} {self.seconds.count:>3} pairs\n           {facts}"


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> Step:
    """One whole step on the same batch each time."""

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        return optimizer.step()

    return step


def autograd_nodes(root: torch.Tensor) -> int:
    """How many nodes the graph behind ``root`` has, leaves included."""
    seen: set[Any] = set()
    waiting = [root.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def structure(model: nn.Module) -> list[tuple[object, ...]]:
    """Names and classes of the modules, then names, shapes and types of the state."""
    modules: list[tuple[object, ...]] = [(name, type(module)) for name, module in model.named_modules()]
    return modules + [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()]


def softened(model: nn.Module, case: Case) -> Any:
    """The model with its default targets constrained, and all linear layers where the case says so."""
    spaces = {}
    if case.every_linear:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                out = f"{CLASSES}*Trivial" if module.out_features == CLASSES else f"{module.out_features // 4}*Regular"
                spaces[name] = (f"{module.in_features // 4}*Regular", out)
    config = ed.SoftEquivarianceConfig(group=GROUP, softness=SOFTNESS, representations=spaces)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquidialWarning)  # strides: exactness is not the subject
        return ed.soften(model, config)


def contestants(plain: nn.Module, case: Case, reference: Path | None) -> Iterator[tuple[str, Any]]:
    """The models, copies of ``plain``; the ratio of each is taken to the first."""
    yield "plain", plain
    yield "soft", softened(copy.deepcopy(plain), case)
    yield "folded", ed.fold(softened(copy.deepcopy(plain), case))
    if hasattr(ed, "retract"):
        yield "retract", softened(copy.deepcopy(plain), case)
    if reference is not None and not case.every_linear:
        yield "official", Official(reference).with_filtered_convolutions(copy.deepcopy(plain), SOFTNESS)


def run_case(name: str, arguments: argparse.Namespace) -> Iterator[Result | Finding]:
    """Time one case."""
    case = CASES[name]
    torch.manual_seed(arguments.seed)
    plain, size = vision_model(case.kind, arguments.image_size, CLASSES, WIDTH[arguments.width])
    data = {"pixel_values": torch.randn(case.batch, 3, size, size), "labels": torch.arange(case.batch) % CLASSES}
    models = dict(contestants(plain.train(), case, arguments.reference))
    rivals, nodes = [], {}
    for method, model in models.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        if method == "retract":
            getattr(ed, method)(model, optimizer)
        nodes[method] = autograd_nodes(model(**data).loss)
        rivals.append(Rival(method, {"step": training_step(model, optimizer, data)}))
    timings = measure(rivals, arguments.pairs, arguments.warmup, arguments.budget, CLOCKS[arguments.clock])
    for method, model in models.items():
        facts: dict[str, int | float] = {"autograd nodes": nodes[method]}
        if method in ("soft", "retract"):
            facts |= softened_tensors(model)
        ratio = None if method == "plain" else timings.ratio(method, "plain")
        yield Result(name, method, timings.summary(method), ratio, facts)
    soft = timings.ratio("soft", "plain").median
    text = f"{case.title}, {size} pixels: the softened step takes {soft:.3f} times the plain one"
    if case.target is None or size != FULL_SIZE or arguments.width != "full":  # targets are for whole models
        yield Finding(name, text, {"ratio": soft})
    else:
        values: dict[str, object] = {"ratio": soft, "target": case.target}
        yield Finding(name, f"{text}, target {case.target:.2f}", values, soft <= case.target)
    same = structure(plain) == structure(models["folded"]) and nodes["folded"] == nodes["plain"]
    words = "same modules, classes, state and" if same else "another structure,"
    yield Finding(name, f"after fold: {words} {nodes['folded']} autograd nodes for {nodes['plain']}", {}, same)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    out.add_argument("--cases", nargs="+", metavar="NAME", help=f"of {', '.join(CASES)}")
    out.add_argument("--pairs", type=int, default=15, help="counted rounds, in each of which every model takes a step")
    out.add_argument("--warmup", type=int, default=1, help="rounds thrown away first")
    out.add_argument("--budget", type=float, default=900.0, help="seconds a case, 3 pairs in any case")
    out.add_argument("--threads", type=int, default=2, help="torch and BLAS threads")
    out.add_argument("--image-size", type=int, default=FULL_SIZE, help="pixels; ViTs round down to patches")
    out.add_argument("--width", choices=tuple(WIDTH), default="full", help="tiny models, to try the command")
    out.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is counted")
    out.add_argument("--seed", type=int, default=0, help="draws weights and images")
    out.add_argument("--reference", type=Path, metavar="PATH", help="a clone of the official code of paper A")
    add_json_option(out)
    return out


def run(arguments: argparse.Namespace) -> tuple[list[Result], list[Finding]]:
    """Run the cases asked for, printing as they come. Raises ``ArgumentError`` for an unknown case."""
    chosen = arguments.cases or list(CASES)
    for name in chosen:
        if name not in CASES:
            raise ArgumentError(explain("the name of a case", repr(name), f"try {nearest_names(name, CASES)}"))
    results: list[Result] = []
    findings: list[Finding] = []
    print(command_line("benchmarks.training_step", arguments))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    if arguments.reference is None:
        print("official code: skipped, no --reference")
    print("ratio to the plain step: median [quartiles]; seconds: median [quartiles; range]")
    for name in chosen:
        print(f"\n{name}: {CASES[name].title}")
        for result in run_case(name, arguments):
            print(result, flush=True)
            if isinstance(result, Result):
                results.append(result)
            else:
                findings.append(result)
    return results, findings


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and write what was asked for."""
    arguments = parser().parse_args(argv)
    results, findings = run(arguments)
    if arguments.json:
        rows = [result.to_dict() for result in results]
        write_json(arguments.json, "training_step", arguments, rows, findings=[f.to_dict() for f in findings])


if __name__ == "__main__":
    pin_threads(parser().parse_args().threads)
    main()
