"""error_curve: the error of a whole network against the angle that its images are turned by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from equidial.adapters._batches import device_of, evaluation, inputs_and_labels, logits_of
from equidial.adapters._measure import warn_of_strides
from equidial.adapters._tasks import TASKS, checked_layout, dense_features, moved_grid, segmentation_logits, some_place
from equidial.errors import ArgumentError, GroupActionError, explain
from equidial.groups import O2, SO2, C, D, Group, GroupElement, as_group
from equidial.metrics import (
    TokenLayout,
    in_frame,
    inscribed_disc,
    invariance_kl,
    masked_relative_error,
    pixel_kl,
    relative_error,
    total_variation,
    transform_images,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEP = 5  # degrees between the angles measured by default
_SAME_ANGLE = 1e-9  # radians

Compare = Callable[..., torch.Tensor]
_ERRORS: dict[tuple[str, str], tuple[str, Compare]] = {
    ("classification", "kl"): ("KL(softmax f(x) || softmax f(gx)) in nats", invariance_kl),
    ("classification", "total_variation"): ("1/2 sum |softmax f(x) - softmax f(gx)|", total_variation),
    ("classification", "relative"): ("||f(gx) - f(x)|| / ||f(x)||", relative_error),
    ("segmentation", "kl"): ("KL(softmax g f(x) || softmax f(gx)) in nats, mean over pixels in the frame", pixel_kl),
    ("features", "relative"): ("||f(gx) - g f(x)|| / ||g f(x)|| over places in the frame", masked_relative_error),
}


@dataclass(frozen=True)
class ErrorCurve:
    """Error of a network against angle, with the error that resampling makes by itself.

    Attributes:
        angles: in radians, counterclockwise, ascending in [0, pi].
        error: mean over images of the error between ``f(gx)`` and what it should be, one per angle.
        deviation: its standard deviation over images (divisor: their number).
        floor: mean error between ``f(x)`` and ``f(g^-1 g x)``: the image turned and turned back, which asks nothing of
            symmetry and only shows how the network answers to resampling, done twice. 0 at quarter turns.
        elements: the angles in (0, pi] of the rotations of a finite group; none for SO(2) and O(2), which hold all.
        law: the error in words.
        task, group: as asked for.
        disc: whether the images were cut to the inscribed disc first.
        images: how many images were read.
    """

    angles: tuple[float, ...]
    error: tuple[float, ...]
    deviation: tuple[float, ...]
    floor: tuple[float, ...]
    elements: tuple[float, ...]
    law: str
    task: str
    group: str
    disc: bool
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; angles in radians."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def save(self, path: str | Path) -> None:
        """Write the curve as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def plot(self) -> Figure:
        """Error with its deviation, and floor, against degrees; needs matplotlib. Returns the figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        degrees = [math.degrees(angle) for angle in self.angles]
        low = [max(e - d, 0.0) for e, d in zip(self.error, self.deviation, strict=True)]
        high = [e + d for e, d in zip(self.error, self.deviation, strict=True)]
        for element in self.elements:
            axes.axvline(math.degrees(element), color="#bbbbbb", linewidth=0.8)
        axes.fill_between(degrees, low, high, color="#9ecae1", alpha=0.5, linewidth=0, label="± one deviation")
        axes.plot(degrees, self.error, color="#08519c", marker=".", label=f"error, {self.images} images")
        axes.plot(degrees, self.floor, color="#d95f0e", linestyle="--", label="interpolation: turned and back")
        axes.set_xlim(0, 180)
        axes.set_xticks(range(0, 181, 30))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("angle in degrees" + (f", elements of {self.group} marked" if self.elements else ""))
        axes.set_ylabel(self.law, fontsize=8)
        axes.legend(fontsize=8, frameon=False)
        return figure

    def __str__(self) -> str:
        lines = [f"{'degrees':>7} {'error':>10} {'deviation':>10} {'floor':>10}"]
        for angle, *numbers in zip(self.angles, self.error, self.deviation, self.floor, strict=True):
            lines.append(f"{math.degrees(angle):>7.4g} " + " ".join(f"{number:>10.4g}" for number in numbers))
        return "\n".join([*lines, f"{self.law}; {self.images} images"])


def error_curve(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group = "SO2",
    angles: Sequence[float] | None = None,
    task: str = "classification",
    *,
    error: str | None = None,
    disc: bool = False,
    tokens: tuple[int, int, int] | None = None,
) -> ErrorCurve:
    """Error of a network against the angle of a rotation, beside what interpolation does to it by itself.

    Args:
        model: as for :func:`measure` of this task.
        batches: as for :func:`measure`; labels are not looked at; read once.
        group: SO2, O2, C(n) or D(n), ``n > 1``. Every angle is measured for each of them; the rotations of a finite
            group are marked, and are among the default angles.
        angles: radians in [0, pi], measured in ascending order; default every 5 degrees.
        task: ``"classification"``, ``"segmentation"`` or ``"features"`` (of which the grid alone).
        error: ``"kl"``, ``"total_variation"`` or ``"relative"`` for classification, ``"kl"`` for segmentation,
            ``"relative"`` for features; default the first of them.
        disc: multiply the images by their inscribed disc first, so that no corner leaves the frame. Without it images
            are turned as :func:`measure` turns them, zero outside, and lost corners are part of the error.
        tokens: as for :func:`measure`.

    Quarter turns permute pixels, and the floor there is 0; other rotations are bilinear (``align_corners=False``). The
    floor resamples twice where the error resamples once: an error of its size says nothing about symmetry.

    Raises ``GroupActionError`` for groups without such rotations and for quarter turns of rectangular images,
    ``ArgumentError`` for the rest, as :func:`measure` does. The mode of every module is restored. Cost: two forward
    passes per image and angle.
    """
    if task not in TASKS:
        raise ArgumentError(explain(f"a task out of {TASKS}", repr(task), "use task='classification'"))
    kinds = [kind for of, kind in _ERRORS if of == task]
    kind = kinds[0] if error is None else error
    if kind not in kinds:
        raise ArgumentError(explain(f"an error out of {kinds} for {task}", repr(error), f"use error={kinds[0]!r}"))
    law, compare = _ERRORS[task, kind]
    reading = _Reading(task, compare, checked_layout(tokens, task))
    group = as_group(group)
    marked = _rotations(group)
    chosen = _angles(angles, marked)
    turns = [SO2().element(angle) for angle in chosen]
    errors: list[list[torch.Tensor]] = [[] for _ in turns]
    floors: list[list[torch.Tensor]] = [[] for _ in turns]
    images, device = 0, device_of(model)
    with evaluation(model), torch.no_grad():
        for batch in batches:
            x = inputs_and_labels(batch)[0].to(device)
            for g in turns:
                in_frame(x.shape[-2:], g)  # refuses quarter turns of rectangles before the model reads anything
            if images == 0:
                warn_of_strides(model, x, group)
            if disc:
                x = x * inscribed_disc(*x.shape[-2:]).to(x.device)
            output = reading.output(model(x), x)
            for g, error_here, floor_here in zip(turns, errors, floors, strict=True):
                turned = transform_images(x, g)
                back = transform_images(turned, g.inverse())
                error_here.append(reading.error(output, reading.output(model(turned), x), g, x).cpu())
                floor_here.append(reading.floor(output, reading.output(model(back), x), g).cpu())
            images += len(x)
    if images == 0:
        raise ArgumentError(explain("at least one batch", "none", "pass a data loader that yields batches"))
    values, floor = (torch.stack([torch.cat(row) for row in rows]) for rows in (errors, floors))
    return ErrorCurve(
        angles=chosen,
        error=tuple(values.mean(1).tolist()),
        deviation=tuple(values.std(1, correction=0).tolist()),
        floor=tuple(floor.mean(1).tolist()),
        elements=marked,
        law=law,
        task=task,
        group=group.name,
        disc=disc,
        images=images,
    )


class _Reading(NamedTuple):
    """How outputs of a task are read and compared."""

    task: str
    compare: Compare
    tokens: TokenLayout | None

    def output(self, output: Any, x: torch.Tensor) -> torch.Tensor:
        """Logits, or the grid that moves with the image."""
        if self.task == "segmentation":
            return segmentation_logits(output, x)
        return logits_of(output) if self.task == "classification" else dense_features(output, x, self.tokens).grid

    def error(self, output: torch.Tensor, found: torch.Tensor, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """Between ``f(gx)`` and what it should be, per image."""
        if self.task == "classification":
            return self.compare(output, found)
        expected, inside = moved_grid(output, g, x.shape[-2:])
        return self.compare(expected, found, inside)

    def floor(self, output: torch.Tensor, found: torch.Tensor, g: GroupElement) -> torch.Tensor:
        """Between ``f(g^-1 g x)`` and ``f(x)``, per image, over the places that were in the frame both times."""
        if self.task == "classification":
            return self.compare(output, found)
        once = in_frame(output.shape[-2:], g).double()
        inside = some_place(transform_images(once, g.inverse()) > 1 - 1e-4)
        return self.compare(output, found, inside.to(output.device))


def _rotations(group: Group) -> tuple[float, ...]:
    """Angles in (0, pi] of the rotations of a finite group; ``GroupActionError`` for groups without rotations."""
    if isinstance(group, SO2 | O2):
        return ()
    if not isinstance(group, C | D) or group.n == 1:
        raise GroupActionError(explain("a group with rotations of the plane", group.name, "use SO2, O2, C(n) or D(n)"))
    return tuple(2 * math.pi * k / group.n for k in range(1, group.n // 2 + 1))


def _angles(angles: Sequence[float] | None, marked: Sequence[float]) -> tuple[float, ...]:
    """The angles to measure, ascending, none twice."""
    if angles is None:
        wanted = [*marked, *(math.radians(d) for d in range(0, 181, _STEP))]
    else:
        wanted = [float(angle) for angle in angles]
    if not wanted or not all(0 <= angle <= math.pi * (1 + 1e-12) for angle in wanted):
        raise ArgumentError(explain("angles in [0, pi] radians", repr(angles), "e.g. [0.0, math.pi / 4]"))
    chosen: list[float] = []
    for angle in sorted(wanted):
        if not chosen or angle - chosen[-1] > _SAME_ANGLE:
            chosen.append(angle)
    return tuple(chosen)
