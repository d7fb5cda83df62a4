"""Timing (paper A, table 6): what a filter costs to build, and what a softened network costs to train and to run.

``construction``: from the group to the first filtered weight, maps from n x n to n x n pixels that commute with all
rotations, exactly. ``ours``: group, action, filter, weight. ``svd``: a dense singular value decomposition of the
constraint matrix, n^4 x n^4. ``schur``: a real Schur form of the generator, and the projection in its basis. The
rivals get their generator for nothing, and what it takes stands beside; all three compute the same projection, and
records tell how far they differ.

``network``: a training step and an inference pass of a softened and of a folded network, beside the plain one, and
beside the plain one once more, which shows the noise.

A record is one round, in which all rivals run, forwards in even rounds and backwards in odd ones, so that a drift of
the machine falls on all alike and ratios are formed within a round. Only one process measures at a time: a second one
on the same folder waits, and takes over where the first has died. Times are what they are: the same command on the
same folder repeats no finished round, another folder gives other numbers.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import scipy
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.recipes._models import load_model
from equidial.recipes._pretrained import NETWORKS, Reader, check_names, logits_of
from equidial.recipes._ranks import held
from equidial.recipes._study import Key, Progress, Study, check_named
from equidial.representations import Pixels, Representation

NAME = "timing"
RIVALS = ("ours", "schur", "svd")
MODELS = ("plain", "soft", "folded", "plain again")
_ZERO = 1e-9  # of the largest value: below it a singular value, or the difference of two eigenvalues, is 0
_NORMAL = 1e-10  # ||A A^T - A^T A|| / ||A||^2 of a matrix that counts as normal
_REPEATS = 3  # steps and passes in a row
_GIB = 2**30


@dataclass(frozen=True)
class _Sizes:
    sizes: tuple[int, ...]
    dense_sizes: tuple[int, ...]
    networks: tuple[str, ...]
    batch: int
    rounds: int


SCALES = {
    "small": _Sizes((3, 4, 5, 6, 7, 10, 14), (3, 4, 5, 6, 7), ("resnet20", "cct"), 32, 7),
    "paper": _Sizes(
        (3, 4, 5, 6, 7, 8, 10, 14, 16),
        (3, 4, 5, 6, 7, 8),
        ("hf:facebook/deit-small-patch16-224", "hf:facebook/dinov2-base", "hf:microsoft/resnet-50"),
        32,
        9,
    ),
}


@dataclass(frozen=True)
class Timing:
    """Time of construction against a dense SVD and a Schur form; cost of a softened training step and pass."""

    output: Path
    """Folder of the study; the same command on it goes on where it was interrupted."""
    scale: Literal["small", "paper"] = "small"
    """small: SVD up to 7x7, ResNet-20 and CCT. paper: SVD up to 8x8 (half a gigabyte), DeiT, DINOv2, ResNet-50."""
    groups: tuple[Literal["SO2", "C4"], ...] = ("SO2", "C4")
    """Of the construction."""
    sizes: tuple[int, ...] = ()
    """n of the n x n pixels for ours and the Schur form. Default: of the scale."""
    dense_sizes: tuple[int, ...] = ()
    """n at which the SVD is run, among them. Default: of the scale."""
    networks: tuple[str, ...] = ()
    """Out of resnet20, resnet56, cct (random weights), hf:NAME_OR_FOLDER, timm:NAME; default: of the scale."""
    network_group: str = "C4"
    """Under which networks are softened."""
    softness: float = 0.5
    """Of the softened networks."""
    batch: int | None = None
    """Images a training step and a pass. Default: of the scale."""
    rounds: int | None = None
    """Of each size and network. Default: of the scale."""
    threads: int = 1
    """Of torch; those of scipy's Schur form are set by OMP_NUM_THREADS before the command."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: processor seconds, which neighbours on a busy machine disturb less; for one thread."""
    device: str = "cpu"
    """Where networks are timed, e.g. cuda; filters are built on the CPU."""

    def check(self) -> None:
        """Raises ``ArgumentError`` for values without a meaning, and for an SVD that takes more than 8 GiB."""
        check_named("groups", self.groups, ("SO2", "C4"))
        for name in ("batch", "rounds", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ArgumentError(explain(f"{name} of at least 1", repr(value), "choose a larger one"))
        sizes, dense = self.used("sizes"), self.used("dense_sizes")
        if min(sizes) < 2 or not set(dense) <= set(sizes):
            wanted = "sizes of 2 pixels or more, with all dense_sizes among them"
            raise ArgumentError(explain(wanted, f"{sizes} and {dense}", "add them, or leave some out"))
        need = 4 * 8 * max(dense) ** 8 / _GIB  # the matrix, both sets of singular vectors, workspace
        if need > 8:
            got = f"about {need:.0f} GiB at {max(dense)}x{max(dense)}"
            raise ArgumentError(explain("an SVD of at most 8 GiB", got, "leave large dense_sizes out"))
        if self.clock == "cpu" and (self.threads > 1 or self.device != "cpu"):
            got = f"threads={self.threads}, device={self.device!r}"
            raise ArgumentError(explain("one thread on the CPU for clock='cpu'", got, "use clock='wall'"))
        check_names(self.used("networks"))
        config = ed.SoftEquivarianceConfig(group=self.network_group, softness=self.softness)
        if config.softness == 1:
            raise ArgumentError(explain("softness below 1, which is the plain network", "1", "e.g. 0.5"))

    def used(self, name: Literal["sizes", "dense_sizes", "networks", "batch", "rounds"]) -> Any:
        """What is set, or that of the scale."""
        return getattr(self, name) or getattr(SCALES[self.scale], name)


def run(recipe: Timing, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Measure what is not yet measured; returns all records. Raises as :meth:`Timing.check`."""
    recipe.check()
    settings = {k: v for k, v in asdict(recipe).items() if k != "output"}
    settings |= {k: recipe.used(k) for k in ("sizes", "dense_sizes", "networks", "batch", "rounds")}
    study, threads = Study(recipe.output, NAME, settings), torch.get_num_threads()

    @cache
    def warm(group: str) -> None:
        construction(group, 3, RIVALS, 0, recipe.clock)

    @cache
    def bench(name: str) -> Bench:
        return Bench(recipe, name)

    def measure(key: Key) -> dict[str, Any]:
        start = time.perf_counter()
        gc.collect()  # what earlier rounds left
        if key["part"] == "construction":
            warm(key["group"])
            rivals = [r for r in RIVALS if r != "svd" or key["size"] in recipe.used("dense_sizes")]
            found = construction(key["group"], key["size"], rivals, key["round"], recipe.clock)
        else:
            found = bench(key["network"]).measure(key["round"])
        return {**found, **surroundings(), "seconds": time.perf_counter() - start}

    try:
        torch.set_num_threads(recipe.threads)
        with held(study.folder / "measuring.lock"):
            return study.collect(list(_keys(recipe)), measure, progress)
    finally:
        torch.set_num_threads(threads)


def _keys(recipe: Timing) -> Iterator[dict[str, Any]]:
    for number in range(recipe.used("rounds")):
        for group in recipe.groups:
            for size in recipe.used("sizes"):
                yield {"part": "construction", "group": group, "size": size, "network": None, "round": number}
        for name in recipe.used("networks"):
            yield {"part": "network", "group": recipe.network_group, "size": None, "network": name, "round": number}


def surroundings() -> dict[str, Any]:
    """Processors, threads and versions; no name of a machine."""
    return {
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__},
    }


def letter(rep: Representation) -> torch.Tensor:
    """One dense normal matrix ``N`` with ``W N = N W`` exactly where ``W`` commutes with every rotation.

    The generator of SO(2), or ``(rho(s) - 1) / |s|`` of C(n); where a grid has directions that the circle action
    misses, their exact turn is added (symmetric, it commutes with the skew generator, and its eigenvalues are real).
    """
    eye = torch.eye(rep.dim, dtype=torch.float64)
    lengths = [s.length for s in rep.group.discrete_generators()]
    found = [a.to_dense() for a in rep.generators()]
    found += [(s.to_dense() - eye) / length for s, length in zip(rep.discrete_generators(), lengths, strict=True)]
    if len(found) != 1:
        raise ArgumentError(explain("a group with one generator", f"{len(found)} of {rep.group.name}", "use SO2 or C4"))
    return found[0] + sum((r.map.to_dense() / r.length for r in rep.residual_generators()), torch.zeros_like(eye))


def project_ours(group: str, n: int, weight: torch.Tensor) -> torch.Tensor:
    """The nearest weight that commutes, by this package, everything made from nothing."""
    pixels = Pixels(ed.groups.by_name(group), (n, n))
    return ed.equivariant_filter(pixels, pixels, softness=0.0, response="hard")(weight)


def project_svd(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same from the null space of ``vec W -> vec(W A - A W)``, ``d^2 x d^2``: O(d^6) time, O(d^4) memory."""
    eye = torch.eye(len(a), dtype=a.dtype)
    constraint = torch.kron(eye, a.mT.contiguous()) - torch.kron(a, eye)  # on W flattened row by row
    _, sigma, vh = torch.linalg.svd(constraint)
    kept = vh[sigma <= _ZERO * sigma[0]]
    return ((kept @ weight.flatten()) @ kept).reshape(weight.shape)


def project_schur(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in the basis of a real Schur form ``A = Q T Q^T`` of a normal ``A``; O(d^3).

    Then ``T`` is block-diagonal with 1x1 blocks and 2x2 blocks ``[[a, b], [-b, a]]`` on columns ``q, p``, and
    ``(q + i p) / sqrt 2`` is an eigenvector to ``a + i b``, its conjugate one to ``a - i b``. In that unitary basis
    ``W`` commutes with ``A`` where its entries between different eigenvalues are 0. Raises ``ArgumentError`` for a
    matrix that is not normal, whose Schur form has entries beside the blocks.
    """
    size = float(a.norm()) ** 2
    off = float((a @ a.mT - a.mT @ a).norm())
    if off > _NORMAL * size:
        got = f"||A A^T - A^T A|| = {off / size:.1e} ||A||^2"
        raise ArgumentError(explain("a normal generator", got, "use the SVD, which needs no such thing"))
    form, basis = (torch.from_numpy(m) for m in scipy.linalg.schur(a.numpy(), output="real"))
    first = (form.diagonal(-1).abs() > _ZERO * form.abs().max()).nonzero()[:, 0]
    values = form.diagonal().to(torch.complex128).clone()
    unitary = basis.to(torch.complex128).clone()
    q, p = basis[:, first], basis[:, first + 1]
    unitary[:, first], unitary[:, first + 1] = torch.complex(q, p) / 2**0.5, torch.complex(q, -p) / 2**0.5
    values[first] += 1j * form[first, first + 1]
    values[first + 1] -= 1j * form[first, first + 1]
    same = (values[:, None] - values[None]).abs() <= _ZERO * values.abs().max()
    inside = unitary.mH @ weight.to(torch.complex128) @ unitary
    return (unitary @ (inside * same) @ unitary.mH).real


def construction(group: str, n: int, rivals: Sequence[str], number: int, clock: str = "wall") -> dict[str, Any]:
    """Seconds and memory of each rival in one round, and ``||W - W_ours|| / ||W_0||`` of their results."""
    generator, a = _timed(lambda: letter(Pixels(ed.groups.by_name(group), (n, n))), clock)
    weight = torch.randn(n * n, n * n, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    ways = {
        "ours": lambda: project_ours(group, n, weight),
        "schur": lambda: project_schur(a, weight),
        "svd": lambda: project_svd(a, weight),
    }
    results, spent, memory = {}, {}, {}
    for name in _order(rivals, number):
        with _peak() as peak:
            spent[name], results[name] = _timed(ways[name], clock)
        memory[name] = peak.get("mib")
    size = float(weight.norm())
    apart = {name: float((r - results["ours"]).norm()) / size for name, r in results.items() if name != "ours"}
    return {"build": spent, "generator": generator, "mib": memory, "difference": apart, "unknowns": n**4}


class Bench:
    """Copies of one network: plain, softened, softened and folded, and plain once more; each has taken one step.

    Attributes:
        models: by name, see ``MODELS``.
        x, y: one batch of noise, and labels.
    """

    def __init__(self, recipe: Timing, name: str):
        torch.manual_seed(0)
        plain = NETWORKS[name].build() if name in NETWORKS else load_model(name)
        self.recipe = recipe
        self.models: dict[str, nn.Module] = {other: copy.deepcopy(plain) for other in MODELS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquidialWarning)  # of strides: exactness is not the subject
            for other in ("soft", "folded"):
                config = ed.SoftEquivarianceConfig(group=recipe.network_group, softness=recipe.softness)
                ed.soften(self.models[other], config)
            ed.fold(self.models["folded"])
        pixels, batch = Reader.of(name, recipe.device).pixels, recipe.used("batch")
        self.x = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)).to(recipe.device)
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        for other, model in self.models.items():
            model.to(recipe.device)
            # at a rate of 0 every round starts from the same weights
            self._optimizers[other] = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        classes = logits_of(self.models["plain"], self.x[:2]).shape[-1]
        self.y = (torch.arange(batch) % classes).to(recipe.device)
        for other in self.models:
            self.step(other)

    def step(self, name: str) -> None:
        """Gradients to zero, forwards, backwards, one step of SGD with momentum."""
        self._optimizers[name].zero_grad()
        functional.cross_entropy(logits_of(self.models[name], self.x), self.y).backward()
        self._optimizers[name].step()

    def forward(self, name: str) -> None:
        """Forwards, without gradients."""
        with torch.no_grad():
            logits_of(self.models[name], self.x)

    def measure(self, number: int) -> dict[str, Any]:
        """Seconds a training step, seconds an inference pass, and the rise of memory in a step, by model."""
        found: dict[str, dict[str, Any]] = {"step": {}, "pass": {}, "mib": {}}
        device, clock = self.recipe.device, self.recipe.clock
        for name in _order(MODELS, number):
            self.models[name].train()
            with _peak(device) as peak:
                found["step"][name] = _repeated(lambda name=name: self.step(name), clock, device)
            found["mib"][name] = peak.get("mib")
            self.models[name].eval()
            found["pass"][name] = _repeated(lambda name=name: self.forward(name), clock, device)
        return {**found, "batch": len(self.x), "device": device}


def _repeated(call: Callable[[], Any], clock: str, device: str) -> float:
    """Seconds a call, the mean of a few in a row."""
    return _timed(lambda: [call() for _ in range(_REPEATS)], clock, device)[0] / _REPEATS


def _order(names: Sequence[str], number: int) -> list[str]:
    return list(names) if number % 2 == 0 else list(reversed(names))


def _timed(call: Callable[[], Any], clock: str, device: str = "cpu") -> tuple[float, Any]:
    """Seconds and result of a call, during which no garbage is collected."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    now = time.perf_counter if clock == "wall" else time.process_time
    gc.disable()
    try:
        wait()
        start = now()
        result = call()
        wait()
        return now() - start, result
    finally:
        gc.enable()


@contextlib.contextmanager
def _peak(device: str = "cpu") -> Iterator[dict[str, float]]:
    """``{"mib": ..}`` after the block: how far memory rose above where it stood. Linux and CUDA; elsewhere nothing.

    On the CPU it is the process's resident memory: what earlier calls left behind and this one uses again is not
    counted.
    """
    found: dict[str, float] = {}
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found["mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found["mib"] = max(_resident("VmHWM") - before, 0.0)


def _resident(field: str) -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) / 1024
