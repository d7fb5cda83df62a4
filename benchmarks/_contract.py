"""How this project times things: the harness that every benchmark shares.

In words: ``docs/benchmarks.md``. In short: warm-up rounds are thrown away; in each round every rival runs once, in
an order that turns round from one round to the next; ratios are formed inside a round and reported with their
spread; threads and dtype are set and stated; the JSON names the machine's hardware and versions, never whose it is.
"""

from __future__ import annotations

import argparse
import gc
import getpass
import importlib.metadata
import json
import os
import platform
import re
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks._statistics import Summary, number
from equidial.errors import ArgumentError, StateError, explain

CONTRACT = 1
"""Version of the rules in ``docs/benchmarks.md``; numbers of two versions are not compared."""

TOTAL = "total"
"""The name of the sum of all stages of a rival."""

MIN_ROUNDS = 3
"""Rounds that are run even when the time budget is spent."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Rival:
    """One way of doing the job: stages in order, the first from nothing, each next from the result before it."""

    name: str
    stages: Mapping[str, Callable[..., object]]


@dataclass(frozen=True)
class Timings:
    """Seconds by rival and stage, one entry per counted round, and the order in which each round ran."""

    seconds: dict[str, dict[str, list[float]]]
    orders: list[tuple[str, ...]]

    def summary(self, rival: str, stage: str = TOTAL) -> Summary:
        """Median and spread of one stage."""
        return Summary.of(self.seconds[rival][stage])

    def summaries(self, rival: str) -> dict[str, Summary]:
        """Every stage of one rival."""
        return {stage: self.summary(rival, stage) for stage in self.seconds[rival]}

    def ratio(self, rival: str, against: str, stage: str = TOTAL) -> Summary:
        """How many times longer ``rival`` took than ``against``: quotients within a round, then their spread."""
        pairs = zip(self.seconds[rival][stage], self.seconds[against][stage], strict=True)
        return Summary.of([mine / other for mine, other in pairs])


def measure(
    rivals: Sequence[Rival],
    rounds: int,
    warmup: int = 1,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time the rivals against one another.

    Every round runs each rival once, forwards in even rounds and backwards in odd ones, so that drift of the machine
    falls on all alike. The garbage collector runs before a rival and rests during it. No round begins once
    ``budget_s`` is spent, but ``MIN_ROUNDS`` (or ``rounds``, if fewer) are always counted.
    """
    names = [rival.name for rival in rivals]
    if not rivals or len(set(names)) != len(names) or any(TOTAL in rival.stages for rival in rivals):
        raise ArgumentError(explain(f"rivals of different names, no stage called {TOTAL!r}", names, "rename them"))
    if rounds < 1 or warmup < 0:
        raise ArgumentError(explain("rounds >= 1 and warmup >= 0", f"{rounds} and {warmup}", "choose larger ones"))
    seconds: dict[str, dict[str, list[float]]] = {r.name: {s: [] for s in (*r.stages, TOTAL)} for r in rivals}
    orders: list[tuple[str, ...]] = []
    for _ in range(warmup):
        for rival in rivals:
            _run(rival, clock)
    began = clock()
    for index in range(rounds):
        if index >= MIN_ROUNDS and clock() - began > budget_s:
            break
        order = list(rivals) if index % 2 == 0 else list(reversed(rivals))
        orders.append(tuple(rival.name for rival in order))
        for rival in order:
            for stage, spent in _run(rival, clock).items():
                seconds[rival.name][stage].append(spent)
    return Timings(seconds, orders)


def _run(rival: Rival, clock: Callable[[], float]) -> dict[str, float]:
    spent: dict[str, float] = {}
    state: object = None
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for position, (stage, function) in enumerate(rival.stages.items()):
            start = clock()
            state = function() if position == 0 else function(state)
            spent[stage] = clock() - start
    finally:
        if was_enabled:
            gc.enable()
    return {**spent, TOTAL: sum(spent.values())}


@dataclass(frozen=True)
class Row:
    """One rival at one size: times by stage, the ratio of totals to ours, and facts that are no times."""

    case: str
    method: str
    size: str
    d: int
    dtype: str
    times: dict[str, Summary]
    ratio: Summary | None = None
    facts: dict[str, float | int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain data for the JSON."""
        return {
            "case": self.case,
            "method": self.method,
            "size": self.size,
            "d": self.d,
            "dtype": self.dtype,
            "seconds": {stage: summary.to_dict() for stage, summary in self.times.items()},
            "ratio_to_ours": self.ratio.to_dict() if self.ratio else None,
            "facts": self.facts,
        }

    def __str__(self) -> str:
        total = self.times[TOTAL]
        text = f"{self.size:>7} {self.d:>5}  {self.method:<24} {self.dtype:<8} {total!s:<46} {total.count:>2} rounds"
        if len(self.times) > 2:
            text += _indented(f"{stage} {summary}" for stage, summary in self.times.items() if stage != TOTAL)
        if self.ratio:
            text += _indented(
                [f"takes {self.ratio} times ours" + (" (ours is slower)" if self.ratio.median < 1 else "")]
            )
        if self.facts:
            text += _indented(f"{k} {number(v) if isinstance(v, float) else v}" for k, v in self.facts.items())
        return text


def _indented(parts: Iterable[str], indent: int = 15) -> str:
    return "\n" + textwrap.fill(", ".join(parts), 118, initial_indent=" " * indent, subsequent_indent=" " * indent)


@dataclass(frozen=True)
class Finding:
    """A conclusion drawn from rows: one printed line, the numbers behind it, and whether a target was met."""

    case: str
    text: str
    values: dict[str, object] = field(default_factory=dict)
    met: bool | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data for the JSON."""
        return {"case": self.case, "text": self.text, "values": self.values, "met": self.met}

    def __str__(self) -> str:
        return _indented([self.text + {None: "", True: ": MET", False: ": NOT MET"}[self.met]], 9).lstrip("\n")


def machine() -> dict[str, object]:
    """Hardware, system and versions; no host, no user, no path."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": release.get("PRETTY_NAME", platform.system()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
        "torch_threads": torch.get_num_threads(),
        "blas_threads": {name: os.environ.get(name, "unset") for name in _THREAD_VARIABLES},
    }


def _cpu_name() -> str:
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of this process with the thread count of every BLAS set."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def pin_threads(threads: int) -> None:
    """Set torch's threads, and those of numpy's and scipy's BLAS, which read the environment only at their start.

    Where the environment says otherwise the process therefore starts itself again, once, with the right one.
    """
    if any(os.environ.get(name) != str(threads) for name in _THREAD_VARIABLES):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], thread_environment(threads))
    torch.set_num_threads(threads)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every timing benchmark has."""
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds thrown away first")
    parser.add_argument("--budget", type=float, default=60.0, help=f"seconds a case, {MIN_ROUNDS} rounds in any case")
    # one: on a shared machine two threads that wait for each other measure the neighbours
    parser.add_argument("--threads", type=int, default=1, help="torch and BLAS threads")
    parser.add_argument("--seed", type=int, default=0, help="draws the weights")
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")


def command_line(module: str, arguments: argparse.Namespace) -> str:
    """The command that was run, with the names of files and folders left out."""
    parts = [f"python -m {module}"]
    for name, value in vars(arguments).items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        shown = ("PATH" if isinstance(v, Path) else str(v) for v in values)
        option = "--" + name.replace("_", "-")
        parts.append(option if value is True else f"{option} {' '.join(shown)}")
    return " ".join(parts)


def write_json(
    file: Path, benchmark: str, arguments: argparse.Namespace, rows: Sequence[dict[str, object]], **more: object
) -> None:
    """Write the report of one run; refuses text that names the machine or a place on it."""
    report = {
        "contract": CONTRACT,
        "benchmark": benchmark,
        "command": command_line(f"benchmarks.{benchmark}", arguments),
        "machine": machine(),
        **more,
        "rows": list(rows),
    }
    text = json.dumps(report, indent=1, allow_nan=False)
    check_anonymous(text)
    file.write_text(text + "\n")


def check_anonymous(text: str) -> None:
    """Raise ``StateError`` where ``text`` holds a path, or the name of this host or user as a word."""
    # absolute paths, also of one component when they open a string, and Windows drives as JSON escapes them
    leak = re.search(r'(?<![\w.:/])/\w[\w.-]*/\w|"/\w|\b[A-Za-z]:\\\\', text)
    found = [leak.group()] if leak else []
    for name in (socket.gethostname(), _user()):
        # names such as "root" or "user" are words of the language, too
        if len(name) > 4 and re.search(rf"\b{re.escape(name)}\b", text):
            found.append(name)
    if found:
        raise StateError(explain("a report without paths, host or user names", repr(found[0]), "leave it out"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return ""
