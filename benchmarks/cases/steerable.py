"""Steerable k x k kernels from scalar to scalar and vector fields: construction against escnn.

What is alike: the task (the SO(2)-equivariant kernels on a k x k window between the same fields, and one kernel from
random numbers), and both sides start from nothing.
What is not: escnn samples rings of Gaussian radial profile times circular harmonics up to a band limit, which is
equivariant between pixels in the limit and gives a smaller space to train in; ours is the space of all kernels that
commute with a real action on the grid, and projects a kernel that is given. escnn keeps group and irrep objects
between calls (warm-up pays for them) and computes in float32.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._contract import Finding, Rival, Row
from benchmarks.cases import Settings, case
from equidial import Filter, equivariant_filter
from equidial.groups import SO2
from equidial.representations import Pixels, Trivial, Vector

INPUTS, VECTORS, SCALARS = 8, 8, 8
WINDOWS = (3, 5, 7, 9)


def build_ours(k: int) -> Filter:
    """The filter of maps from a ``k x k`` window to ``VECTORS`` vectors and ``SCALARS`` scalars, from nothing."""
    group = SO2()
    fields = VECTORS * Vector(group) + SCALARS * Trivial(group)
    return equivariant_filter(Pixels(group, (k, k)), fields, softness=0.0, response="hard")


def turn_defect(kernel: torch.Tensor) -> float:
    """``||rho_out(90 degrees) K(rotated window) - K|| / ||K||`` of ``[inputs, outputs, k, k]``, exact on the grid."""
    turned = torch.rot90(kernel.to(torch.float64), 1, (-2, -1))
    pairs = turned[:, : 2 * VECTORS].unflatten(1, (VECTORS, 2))
    moved = torch.stack([-pairs[:, :, 1], pairs[:, :, 0]], dim=2).flatten(1, 2)
    return float((torch.cat([moved, turned[:, 2 * VECTORS :]], dim=1) - kernel).norm() / kernel.norm())


def _escnn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("escnn")
        importlib.import_module("escnn.nn")
        importlib.import_module("escnn.gspaces")
    return module


def build_escnn(escnn: Any, k: int) -> Any:
    """An ``R2Conv`` between the same fields, its basis built anew and left without an initialisation."""
    space = escnn.gspaces.rot2dOnR2(N=-1, maximum_frequency=8)
    fields_in = escnn.nn.FieldType(space, [space.trivial_repr] * INPUTS)
    fields_out = escnn.nn.FieldType(space, [space.irrep(1)] * VECTORS + [space.trivial_repr] * SCALARS)
    return escnn.nn.R2Conv(fields_in, fields_out, k, bias=False, recompute=True, initialize=False)


def apply_escnn(layer: Any) -> torch.Tensor:
    """One kernel ``[outputs, inputs, k, k]`` from standard normal coefficients."""
    with torch.no_grad():
        layer.weights.normal_()
        return layer.expand_parameters()[0]


@case("steerable-kernels", "SO(2)-steerable k x k kernels, 8 scalars -> 8 vectors + 8 scalars: ours against escnn")
def steerable_kernels(settings: Settings) -> Iterator[Row | Finding]:
    """Paired; facts: dimension of the space per input channel, and the exact quarter turn of one kernel."""
    name = "steerable-kernels"
    try:
        escnn = _escnn()
    except Exception as error:  # a package built for another numpy fails in many ways
        yield Finding(name, f"skipped: escnn cannot be imported here ({type(error).__name__})")
        return
    yield Finding(
        name,
        f"escnn {escnn.__version__}: alike are the task and the start from nothing; not alike are the spaces (rings "
        "with a band limit there, all kernels of a grid action here) and float32 there",
    )
    for k in WINDOWS:
        weight = settings.weight(INPUTS, 2 * VECTORS + SCALARS, k * k)
        mine = Rival("ours", {"build": lambda k=k: build_ours(k), "apply": lambda f, w=weight: f(w)})
        theirs = Rival("escnn", {"build": lambda k=k: build_escnn(escnn, k), "apply": apply_escnn})
        timings = settings.measure([mine, theirs])
        filter_, layer = build_ours(k), build_escnn(escnn, k)
        kernel = filter_(weight).unflatten(-1, (k, k))
        other = apply_escnn(layer).transpose(0, 1)
        facts = {"dimension per input": filter_.rank, "defect, exact quarter turn": turn_defect(kernel)}
        yield Row(name, "ours", f"{k}x{k}", k * k, "float64", timings.summaries("ours"), None, facts)
        facts = {
            "dimension per input": layer.basisexpansion.dimension() // INPUTS,
            "defect, exact quarter turn": turn_defect(other),
        }
        ratio = timings.ratio("escnn", "ours")
        yield Row(name, "escnn", f"{k}x{k}", k * k, "float32", timings.summaries("escnn"), ratio, facts)
