"""report.html: one self-contained page that shows what the dial did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from equidial._version import __version__
from equidial.adapters import Diagnosis, ErrorCurve
from equidial.certificates import Certificate
from equidial.reporting._figures import as_png, dial_strip, frontier, learning_curves, trade_off
from equidial.reporting._runs import SCORES, Run, read_run


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` from what a run folder holds; returns its path.

    Everything on the page, pictures included, is drawn from the files of the folder and embedded. Needs matplotlib
    and jinja2. Raises ``FileFormatError`` for a folder without a finished run.
    """
    run = read_run(folder)
    return _write(run.folder, "report.html", _content(run))


def write_diagnosis(folder: str | Path, name: str, diagnosis: Diagnosis, curve: ErrorCurve | None = None) -> Path:
    """Write ``diagnosis.html`` into a folder: the error along the network, the causes, the error against angle.

    ``name``: of the model, for the title. Returns the path. Needs matplotlib and jinja2.
    """
    content = {"version": __version__, "name": name, **_diagnosed(diagnosis)}
    content["curve_picture"] = None if curve is None else as_png(curve.plot())
    return _write(Path(folder), "diagnosis.html", content)


def _write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    loader = PackageLoader("equidial.reporting", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = folder / name
    path.write_text(environment.get_template(f"{name}.jinja").render(**content), encoding="utf-8")
    return path


def _diagnosed(diagnosis: Diagnosis | None) -> dict[str, Any]:
    if diagnosis is None:
        return {"diagnosis": None}
    causes = [
        {
            "name": same.cause,
            "where": f"{same.places} ({same.count} place{'s' if same.count > 1 else ''})",
            "error": "–" if math.isnan(same.error) else f"{same.error:.3g}",
            "why": same.arithmetic,
            "remedy": same.remedy,
        }
        for same in diagnosis.summary()
    ]
    return {"diagnosis": diagnosis, "diagnosis_picture": as_png(diagnosis.plot()), "causes": causes}


def _content(run: Run) -> dict[str, Any]:
    curves = learning_curves(run)
    return {
        "version": __version__,
        "config": run.config,
        "group": run.config["group"],
        "seeds": len(run.config["seeds"]),
        "rows": _rows(run),
        "before": _rows(run, "softened"),
        "norm": run.norm_statistics,
        "trade_off": as_png(trade_off(run)),
        "frontier": as_png(frontier(run)),
        "curves": as_png(curves) if curves is not None else None,
        "strips": [
            {"tensor": p.tensor, "kind": p.kind, "element": p.element, "image": as_png(dial_strip(p))}
            for p in run.pictures
        ],
        "certificates": [_certificate(softness, run) for softness in run.softness],
        "notes": sorted({note for c in run.certificates.values() for row in c for note in row.notes}),
        "verdict": _verdict(run),
        "warnings": run.config.get("warnings", []),
        **_diagnosed(run.diagnosis),
    }


def _rows(run: Run, stage: str = "tuned") -> list[dict[str, str]]:
    rows = []
    for softness in run.softness:
        cells = {"softness": f"{softness:g}"}
        for score in SCORES:
            found = run.spread(stage, score, softness)
            cells[score] = "–" if found is None else found.show(4 if score in ("iErr", "epsilon", "bound") else 3)
        rows.append(cells)
    return rows


def _certificate(softness: float, run: Run) -> dict[str, Any]:
    seed = min(seed for s, seed in run.certificates if s == softness)
    certificate: Certificate = run.certificates[softness, seed]
    worst = max(run.certificates[s, k].bound for s, k in run.certificates if s == softness)
    return {
        "softness": f"{softness:g}",
        "seed": seed,
        "bound": f"{worst:.4g}",
        "image": as_png(certificate.plot()),
        "rows": certificate.layers,
    }


def _verdict(run: Run) -> list[str]:
    """The main findings in sentences, from the numbers of the run."""
    out = []
    strict, free = run.softness[0], run.softness[-1]

    def value(score: str, softness: float) -> float:
        found = run.spread("tuned", score, softness)
        return float("nan") if found is None else found.mean

    out.append(
        f"From softness {free:g} to {strict:g} the invariance error goes from {value('iErr', free):.4f} to "
        f"{value('iErr', strict):.4f} nats, the accuracy on upright images from {value('Acc', free):.3f} to "
        f"{value('Acc', strict):.3f}, on transformed images from {value('aAcc', free):.3f} to "
        f"{value('aAcc', strict):.3f}."
    )
    best = max(run.softness, key=lambda s: value("cAcc", s))
    found, untouched = run.spread("tuned", "cAcc", best), run.spread("tuned", "cAcc", free)
    if found is not None and untouched is not None:
        out.append(
            f"The combined accuracy cAcc is highest at softness {best:g}: {found.show()}"
            + (f", against {untouched.show()} at softness {free:g}." if best != free else ".")
        )
    if len(run.config["seeds"]) > 1:
        out.append(f"All numbers are means over {len(run.config['seeds'])} seeds, with standard deviations.")
    return out
