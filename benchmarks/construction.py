"""Time to build a filter from nothing and to apply it once, against the ways in which others do it.

    python -m benchmarks.construction [--reference PATH] [--json FILE] [--plot FILE.png]

``PATH`` is a clone of the official code of paper A; without it its cases are skipped, and so is escnn where it is not
installed. Rules: ``docs/benchmarks.md``. Cases: ``benchmarks/cases``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks._contract import Finding, Row, add_options, command_line, machine, pin_threads, write_json
from benchmarks.cases import Settings, load_cases
from equidial.errors import ArgumentError, explain, nearest_names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.construction", description=__doc__)
    add_options(out)
    out.add_argument("--cases", nargs="+", metavar="NAME", help="these cases only")
    out.add_argument("--sizes", type=int, nargs="+", default=[7, 10, 14, 16], help="n of the n x n grids")
    out.add_argument("--dense-sizes", type=int, nargs="+", default=[3, 4, 5, 6, 7], help="n at which the SVD is run")
    out.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    out.add_argument("--reference", type=Path, metavar="PATH", help="a clone of the official code of paper A")
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="draw time against size")
    return out


def run(arguments: argparse.Namespace) -> tuple[list[Row], list[Finding]]:
    """Run the cases asked for, printing each result as it comes. Raises ``ArgumentError`` for an unknown case."""
    cases = load_cases()
    chosen = arguments.cases or list(cases)
    for name in chosen:
        if name not in cases:
            raise ArgumentError(explain("the name of a case", repr(name), f"try {nearest_names(name, cases)}"))
    settings = Settings(
        arguments.rounds,
        arguments.warmup,
        arguments.budget,
        arguments.threads,
        arguments.seed,
        tuple(arguments.sizes),
        tuple(arguments.dense_sizes),
        arguments.reference,
        not arguments.no_memory,
    )
    rows: list[Row] = []
    findings: list[Finding] = []
    print(command_line("benchmarks.construction", arguments))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print("seconds, build and first application together: median [quartiles; range]")
    for name in chosen:
        print(f"\n{name}: {cases[name].title}\n{'size':>7} {'d':>5}  {'method':<24} {'dtype':<8} total")
        for result in cases[name].run(settings):
            print(result, flush=True)
            if isinstance(result, Row):
                rows.append(result)
            else:
                findings.append(result)
    return rows, findings


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and write what was asked for."""
    arguments = parser().parse_args(argv)
    rows, findings = run(arguments)
    if arguments.json:
        write_json(
            arguments.json,
            "construction",
            arguments,
            [row.to_dict() for row in rows],
            findings=[finding.to_dict() for finding in findings],
        )
    if arguments.plot:
        from benchmarks._plot import growth_plot

        growth_plot(rows, findings, arguments.plot)


if __name__ == "__main__":
    pin_threads(parser().parse_args().threads)
    main()
