"""Pictures of weights while the dial turns: kernels and tables, and where they are not symmetric."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from equidial.adapters import (
    SoftEquivarianceConfig,
    SoftParametrization,
    Target,
    build_parametrizations,
    resolve_targets,
)
from equidial.filters import Dial
from equidial.groups import GroupElement
from equidial.metrics import element_name
from equidial.representations import Pixels


@dataclass(frozen=True)
class DialPictures:
    """A few weights of one tensor at several dial positions, and their error maps.

    ``values``, ``errors``: ``[dials, count, h, w]``; an error map is ``|w - g.w|`` for the element ``g`` that moves
    the untouched weights most, in the same units as the values.
    """

    tensor: str
    kind: str
    element: str
    softness: tuple[float, ...]
    values: np.ndarray
    errors: np.ndarray

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file."""
        np.savez_compressed(
            path,
            tensor=self.tensor,
            kind=self.kind,
            element=self.element,
            softness=np.array(self.softness),
            values=self.values,
            errors=self.errors,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DialPictures:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(
                str(data["tensor"]),
                str(data["kind"]),
                str(data["element"]),
                tuple(float(s) for s in data["softness"]),
                data["values"],
                data["errors"],
            )


def dial_pictures(
    model: nn.Module, config: SoftEquivarianceConfig, softness: Sequence[float], count: int = 6
) -> list[DialPictures]:
    """Pictures of the first convolution and the first position table with two axes; the model is only read.

    The weights shown are those that the group moves most. Empty where the configuration names no such tensor.
    """
    targets = resolve_targets(model, config)
    out = []
    for kind in ("convolution", "table"):
        chosen = next((t for t in targets if t.layout.kind == kind and _is_picture(t)), None)
        if chosen is not None:
            (link,) = build_parametrizations(model, [chosen], config)
            out.append(_pictures(model, chosen, link, sorted(softness), count))
    return out


def _is_picture(target: Target) -> bool:
    rep = target.constraint.rep_in
    return isinstance(rep, Pixels) and len(rep.shape) == 2 and rep.dim > 1


def _pictures(
    model: nn.Module, target: Target, link: SoftParametrization, softness: Sequence[float], count: int
) -> DialPictures:
    tensor = model.get_submodule(target.module_name)._parameters[target.tensor_name]
    assert tensor is not None
    weights = target.layout.weights(tensor.detach().to("cpu", torch.float64)).reshape(-1, target.constraint.rep_in.dim)
    element = _most_moving(target, weights)

    def error(w: torch.Tensor) -> torch.Tensor:
        return (target.constraint.transform(element, w[:, None])[:, 0] - w).abs()

    picks = torch.sort(error(weights).norm(dim=1), descending=True, stable=True).indices[:count]
    rep = target.constraint.rep_in
    assert isinstance(rep, Pixels), "only pictures come here"
    values, errors = [], []
    for s in softness:
        dial = Dial.of(softness=s)
        filter_ = replace(link.filter(), dial=dial, setting=link.setting_for(dial, None))
        filtered = filter_(weights)[picks]
        values.append(filtered.reshape(-1, *rep.shape).numpy())
        errors.append(error(filtered).reshape(-1, *rep.shape).numpy())
    return DialPictures(
        target.name, target.layout.kind, element_name(element), tuple(softness), np.stack(values), np.stack(errors)
    )


def _most_moving(target: Target, weights: torch.Tensor) -> GroupElement:
    group = target.constraint.group
    if group.is_finite:
        candidates = [g for g in group.elements() if not g.is_identity]
    else:
        candidates = [group.exp(group.radius * k / 12) for k in range(1, 13)]
    matrices = weights[:, None]
    return max(candidates, key=lambda g: float((target.constraint.transform(g, matrices) - matrices).norm()))
