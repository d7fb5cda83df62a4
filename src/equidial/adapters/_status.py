"""status: where the dial of every tensor stands, and what it does there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from equidial.adapters._life import check_tensors
from equidial.adapters._parametrization import constrained, original_of


@dataclass(frozen=True)
class TensorStatus:
    """One row of :func:`status`.

    ``defect`` is ``||L W|| / ||W||`` of the constrained tensor, ``reference`` what ``soften`` found, ``distance`` is
    ``||F(W) - W|| / ||W||``, ``nearest`` whether ``F(W)`` is the nearest weight with its bound (see the filters),
    ``learned`` whether the dial is trained, ``retracted`` whether an optimizer hook keeps the tensor in its set.
    """

    name: str
    group: str
    representation: str
    response: str
    dial: str
    threshold: float
    defect: float
    reference: float
    distance: float
    nearest: bool
    enabled: bool
    learned: bool = False
    retracted: bool = False

    @property
    def remarks(self) -> str:
        """What is special about the tensor now, in brackets; empty for a fixed dial in constrain mode."""
        told = {"disabled": not self.enabled, "learned": self.learned, "retracted": self.retracted}
        return "".join(f"  ({word})" for word, holds in told.items() if holds)


@dataclass(frozen=True)
class Status:
    """The rows of :func:`status`; prints as a table."""

    tensors: tuple[TensorStatus, ...]

    def __iter__(self) -> Iterator[TensorStatus]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __str__(self) -> str:
        if not self.tensors:
            return "no tensor is constrained"
        width = max(len(row.name) for row in self.tensors)
        space = max(len(row.representation) for row in self.tensors)
        lines = [
            f"{'tensor':<{width}}  {'group':<5} {'representation':<{max(space, 14)}}  {'response':<11} "
            f"{'dial':<16} {'defect':>9} {'found':>9} {'distance':>9}"
        ]
        lines += [
            f"{row.name:<{width}}  {row.group:<5} {row.representation:<{max(space, 14)}}  {row.response:<11} "
            f"{row.dial:<16} {row.defect:>9.3g} {row.reference:>9.3g} {row.distance:>9.3g}" + row.remarks
            for row in self.tensors
        ]
        return "\n".join(lines)


def status(model: nn.Module) -> Status:
    """Per tensor: group, representation, response, dial, defect; empty for a model that is not softened.

    Raises ``StateError`` for a sharded model.
    """
    check_tensors(model, "status")
    rows = []
    for module, tensor_name, link in constrained(model):
        original = link.layout.weights(original_of(module, tensor_name)).detach().to("cpu", torch.float64)
        filtered = link.filter()(original)
        norm = float(original.norm())
        rows.append(
            TensorStatus(
                name=link.name,
                group=link.constraint.rep_in.group.name,
                representation=(
                    link.constraint.rep_in.name
                    if link.constraint.invariant
                    else f"{link.constraint.rep_in.name} -> {link.constraint.rep_out.name}"
                ),
                response=link.response,
                dial=str(link.dial),
                threshold=link.setting.threshold,
                defect=link.filter().defect(filtered),
                reference=float(link.reference),
                distance=float((filtered - original).norm()) / norm if norm else 0.0,
                nearest=link.filter().is_nearest(original),
                enabled=link.enabled,
                learned=link.learned_softness is not None,
                retracted=link.retraction is not None,
            )
        )
    return Status(tuple(rows))
