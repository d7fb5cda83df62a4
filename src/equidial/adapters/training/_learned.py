"""Dials that are trained: the softness of ``nearest`` as a parameter of each tensor."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from equidial.adapters._life import PARALLEL
from equidial.adapters._parametrization import SoftParametrization, constrained
from equidial.adapters._shards import is_sharded
from equidial.adapters._soften import matching_links
from equidial.adapters._state import require_root
from equidial.errors import ArgumentError, EquidialWarning, StateError, explain
from equidial.filters import MatrixFreeSpectrum
from equidial.nn import learned_frequencies

logger = logging.getLogger("equidial")
Model = TypeVar("Model", bound=nn.Module)
Measure = Literal["softness", "beta"]


def learn_dial(model: Model, target_modules: str | Sequence[str] | None = None) -> Model:
    """Make the dial of every softened tensor, or of those that match, a trainable parameter; returns the model.

    Each tensor gets ``learned_softness`` ``[1]``, float32, at ``<module>.parametrizations.<tensor>.0`` of
    ``model.parameters()`` and of the state dict; it starts where the dial stands. With ``s = clamp(learned_softness,
    0, 1)`` and ``delta`` the defect that ``soften`` found, the tensor is

        F_beta(W),   beta = s * delta       (without invariants: the absolute budget s * ||L W||)

    0 is exactly symmetric, as always, and is reached: the clamp holds it. At 1 the tensor is no more asymmetric than
    ``soften`` found it; one that was not trained is returned bit for bit. The gradient is that of the nearest weight:
    0 where the bound is not felt, at 0 the derivative from above, so that a dial at rest there can leave, in the
    direction of the asymmetric part of the tensor, which stands still meanwhile. It passes the clamp, but not where
    it would drive the parameter further than 0.05 past an end: there is no long way back.

    A learned dial is a dial: ``set_dial``, ``certify``, ``status``, ``save``, ``load``, ``fold`` and copies know it;
    :func:`fix_dial` ends the learning, ``fold`` and ``unload`` take the parameters away. Dials that are learned
    already stay as they are. Create the optimizer afterwards, best with a parameter group of their own.

    Raises:
        StateError: a model that is not softened, retracted (the gradient passes no filter), wrapped or sharded.
        NoMatchingTargetError: ``target_modules`` that match nothing.
        ArgumentError: a response other than ``nearest``, a space without a known spectrum, a threshold in a space
            without invariants.

    Warns (``EquidialWarning``) of tensors that were symmetric when softened: a share of nothing cannot be learned, and
    their dial stays fixed. Cost: one small derivative per tensor and step. Source: theory 4, the derivative in the
    dial.
    """
    require_root(model, "learn_dial")
    links = [link for _, _, link in matching_links(model, target_modules)]
    for module in model.modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        if names & {*PARALLEL, "FSDPModule"}:
            raise StateError(
                explain(
                    "a model before it is wrapped or sharded",
                    f"a {type(module).__name__}, which would not know the new parameters",
                    "call learn_dial on the model inside first, then wrap it, then create the optimizer",
                )
            )
    for link in links:
        _check(link)
    dead = [link for link in links if float(link.reference) == 0]
    for link in links:
        if link.learned_softness is None and link not in dead:
            link.learn()
    names = [link.name for link in dead if link.constraint.scale > 0]
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        message = f"{shown}: exactly symmetric as found, so there is no share to learn; the dial stays fixed"
        warnings.warn(message, EquidialWarning, stacklevel=2)
    logger.debug("learning the dials of %d tensors", len(links) - len(dead))
    return model


def fix_dial(model: Model, target_modules: str | Sequence[str] | None = None) -> Model:
    """End the learning of every dial, or of those that match, where it stands; returns the model.

    The parameters go, the function of the model stays. A dial that stood at 1 becomes a threshold, the defect that
    ``soften`` found. Raises ``StateError`` for a model that is not softened, ``NoMatchingTargetError`` as
    :func:`learn_dial`.
    """
    require_root(model, "fix_dial")
    for _, _, link in matching_links(model, target_modules):
        if link.learned_softness is not None:
            link.fix()
    return model


def relaxation_penalty(model: nn.Module, power: float = 1, of: Measure = "softness") -> torch.Tensor:
    """``sum_l s_l ** power`` over all that is learned, a float64 scalar with gradient: it pulls towards exact symmetry.

    Summed are the learned dials of softened tensors and ``|omega'|`` of every learned frequency of layers of
    :mod:`equidial.nn`, each once where it is shared. ``power=2`` on the latter is paper B's ``||omega'||^2``, the
    log-density of a normal prior.

    ``of="beta"``: ``sum_l beta_l ** power``, so that tensors whose defect was large pay more; for spaces without
    invariants ``beta_l`` is the absolute budget. Every tensor counts alike, whatever its size, and the sum grows with
    their number. Power 1 reaches 0: its pull is the same everywhere, and a dial whose loss gains less than that per
    unit of softness goes to 0 and stays. Power 2 with ``of="beta"`` is the log-density of a normal prior on ``beta``
    (theory 10); its pull fades at 0, which it does not reach.

    Raises ``StateError`` where no dial is learned or its parameter is sharded, ``ArgumentError`` for a power below 1
    or another ``of``.
    """
    if isinstance(power, bool) or not isinstance(power, int | float) or not 1 <= power < float("inf"):
        raise ArgumentError(explain("a power >= 1", repr(power), "power=1 reaches 0, power=2 does not"))
    if of not in get_args(Measure):
        raise ArgumentError(explain(f"of out of {get_args(Measure)}", repr(of), "use of='softness'"))
    links, frequencies = learned_links(model), learned_frequencies(model)
    if not links and not frequencies:
        raise StateError(
            explain(
                "a model that learns its dials or frequencies",
                "none that does",
                "call learn_dial, or make layers with learn_omega_prime=True",
            )
        )
    for link in links:
        if link.learned_softness is not None and is_sharded(link.learned_softness):
            raise StateError(
                explain(
                    f"a whole parameter of the learned dial of {link.name}",
                    "a DTensor, of which each process holds a shard",
                    "train learned dials with DistributedDataParallel, or fix_dial before fully_shard",
                )
            )
    device = links[0].reference.device if links else frequencies[0].device
    values = [link.share() * (1.0 if of == "softness" else link.reference) for link in links]
    values += [frequency.double().abs() for frequency in frequencies]
    return torch.stack([value.to(device) for value in values]).pow(power).sum()


def learned_links(model: nn.Module) -> list[SoftParametrization]:
    """The parametrizations whose dial is learned, in module order."""
    return [link for _, _, link in constrained(model) if link.learned_softness is not None]


def _check(link: SoftParametrization) -> None:
    if link.retraction is not None:
        raise StateError(
            explain(
                f"constrain mode for {link.name}",
                "retract mode, in which no gradient passes the filter",
                "call remove() on what retract returned, then learn_dial",
            )
        )
    if link.response != "nearest":
        raise ArgumentError(
            explain(
                f"response='nearest' for a learned dial of {link.name}",
                f"response={link.response!r}, whose threshold mostly has no gradient",
                "soften with response='nearest', or use a DialSchedule",
            )
        )
    if isinstance(link.spectrum, MatrixFreeSpectrum):
        raise ArgumentError(
            explain(
                f"a known spectrum for a learned dial of {link.name}",
                f"{link.constraint.name}, treated without one",
                "leave it out with target_modules, or use a DialSchedule",
            )
        )
    if not link.has_invariants and link.dial.kind != "softness":
        raise ArgumentError(
            explain(
                f"a softness for {link.name}: its space holds no invariants, so the dial is an absolute budget",
                str(link.dial),
                "call set_softness first",
            )
        )
