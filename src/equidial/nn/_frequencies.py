"""Frequencies of a continuous kernel: one scale per axis of the group, fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from equidial.errors import ArgumentError, explain, nearest_names

AXES = ("x", "y", "rotation", "flip")
"""The axes of E(2) along which a kernel may vary; ``"translation"`` stands for ``x`` and ``y`` together."""


class Frequencies(nn.Module):
    """Scales ``omega`` of coordinates, one per axis, each a parameter (learned) or a number (fixed).

    Args:
        values: the scale of each axis out of :data:`AXES`; ``"translation"`` sets ``x`` and ``y``.
        learned: ``True``, or the axes whose scale is a parameter.

    The phase of a feature is ``omega * w . coordinate`` with coordinates of order 1 (angles in radians), so that
    ``omega`` for a rotation counts harmonics. Give the same object to several layers to share it; what a
    layer is given as a number or a mapping is its own. The sign has no meaning.

    Raises ``ArgumentError`` for an unknown axis or a value that is not finite. Source: paper B, Eq. 7.
    """

    def __init__(self, values: Mapping[str, float], learned: bool | Collection[str] = False):
        super().__init__()
        spelled = spell_axes(values)
        trained = set(spelled) if learned is True else set(spell_axes(dict.fromkeys(learned or (), 0.0)))
        if missing := trained - set(spelled):
            raise ArgumentError(
                explain(
                    f"learned axes out of {', '.join(spelled) or 'none'}",
                    ", ".join(sorted(missing)),
                    "give these axes a starting value as well",
                )
            )
        self.axes = tuple(axis for axis in AXES if axis in spelled)
        self.learned = tuple(axis for axis in self.axes if axis in trained)
        self._fixed = {axis: spelled[axis] for axis in self.axes if axis not in trained}
        for axis in self.learned:
            self.register_parameter(axis, nn.Parameter(torch.tensor(spelled[axis])))

    def forward(self, axes: Sequence[str], like: torch.Tensor) -> torch.Tensor:
        """The scales of these axes, ``[len(axes)]``, in the dtype and on the device of ``like``."""
        scales = [getattr(self, axis) if axis in self.learned else self._fixed[axis] for axis in axes]
        if not any(axis in self.learned for axis in axes):
            return like.new_tensor(scales)
        return torch.stack([torch.as_tensor(s, dtype=like.dtype, device=like.device) for s in scales])

    def set(self, axis: str, value: float) -> None:
        """Turn one scale. Raises ``ArgumentError`` for an axis that is not there or a value that is not finite."""
        (value,) = set(spell_axes({axis: value}).values())
        for name in spell_axes({axis: value}):
            if name not in self.axes:
                raise ArgumentError(explain(f"an axis out of {', '.join(self.axes)}", repr(name), "name one of these"))
            if name in self.learned:
                with torch.no_grad():
                    getattr(self, name).fill_(value)
            else:
                self._fixed[name] = value

    def value(self, axis: str) -> float:
        """One scale as a number; 0 for an axis that is not there."""
        if axis in self.learned:
            return float(getattr(self, axis).detach())
        return self._fixed.get(axis, 0.0)

    def fixed_at_zero(self, axes: Sequence[str]) -> bool:
        """Whether none of these axes plays a part, nor ever will: no tensor is read to find out."""
        return all(axis not in self.learned and self._fixed.get(axis, 0.0) == 0 for axis in axes)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        marks = [f"{axis}={self.value(axis):g}{' (learned)' if axis in self.learned else ''}" for axis in self.axes]
        return ", ".join(marks)


def spell_axes(values: Mapping[str, float]) -> dict[str, float]:
    """``"translation"`` written out, checked. Raises ``ArgumentError``."""
    out: dict[str, float] = {}
    known = (*AXES, "translation")
    for name, value in values.items():
        if name not in known:
            raise ArgumentError(
                explain(f"axes out of {', '.join(known)}", repr(name), f"try {nearest_names(str(name), known)}")
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ArgumentError(explain(f"a finite frequency for {name!r}", repr(value), "e.g. 1.0; 0 is strict"))
        out |= dict.fromkeys(("x", "y") if name == "translation" else (name,), float(value))
    return out
