"""measure: the error that a whole network makes under a group, on data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import nn

from equidial.adapters._batches import device_of, evaluation, inputs_and_labels
from equidial.adapters._geometry import acts_by_lattice, stride_message, traced_sizes
from equidial.adapters._scores import FeatureScores, Scores, SegmentationScores
from equidial.adapters._tasks import TASKS, Classification, Features, Segmentation, Task, checked_layout
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.groups import Group, GroupElement, as_group
from equidial.metrics import TokenLayout, jacobian_norm, measured_elements, soft_invariance, transform_images


@overload
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    task: Literal["classification"] = ...,
    radius: float | None = ...,
    elements: Sequence[GroupElement] | None = ...,
    seed: int = ...,
    epsilon_images: int = ...,
    probes: int = ...,
) -> Scores: ...
@overload
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    task: Literal["segmentation"],
    radius: float | None = ...,
    elements: Sequence[GroupElement] | None = ...,
    seed: int = ...,
    epsilon_images: int = ...,
    probes: int = ...,
    *,
    ignore_index: int = ...,
) -> SegmentationScores: ...
@overload
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    task: Literal["features"],
    radius: float | None = ...,
    elements: Sequence[GroupElement] | None = ...,
    *,
    tokens: tuple[int, int, int] | None = ...,
) -> FeatureScores: ...
@overload
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    task: str,
    radius: float | None = ...,
    elements: Sequence[GroupElement] | None = ...,
    seed: int = ...,
    epsilon_images: int = ...,
    probes: int = ...,
    *,
    ignore_index: int = ...,
    tokens: tuple[int, int, int] | None = ...,
) -> Scores | SegmentationScores | FeatureScores: ...
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    group: str | Group,
    task: str = "classification",
    radius: float | None = None,
    elements: Sequence[GroupElement] | None = None,
    seed: int = 0,
    epsilon_images: int = 32,
    probes: int = 16,
    *,
    ignore_index: int = 255,
    tokens: tuple[int, int, int] | None = None,
) -> Scores | SegmentationScores | FeatureScores:
    """Measure how well a network does under a group and how far it is from symmetric, on every image and element.

    Args:
        model: returns a tensor or an object with one, see ``task``.
        batches: yields ``(x, y)``, dicts (``pixel_values``, ``labels``) or tensors; read once.
        group: a name or a group.
        task: what the output is and how it should move.
            ``"classification"``: logits ``[n, classes]`` (or ``.logits``), which should stay; :class:`Scores`.
            ``"segmentation"``: logits ``[n, classes, h', w']`` (``.logits``, or ``["out"]``), which should move with
            the image, and integer masks ``[n, h, w]`` as labels; logits of another size are resized to the masks for
            mIoU and accuracy, not for eErr; :class:`SegmentationScores`.
            ``"features"``: a grid ``[n, C, h', w']`` or tokens ``[n, extra + N, D]`` (``.last_hidden_state``,
            ``.logits``, ``["out"]``), which should move with the image, no labels; :class:`FeatureScores`.
        radius: largest distance of the elements; default the whole of a finite group, 30 degrees for SO(2), a factor of
            1.25 for Scale, one pixel for shifts and translations.
        elements: the elements themselves, instead of ``radius``.
        seed: of the Hutchinson probes.
        epsilon_images: on how many images (the first ones) ``epsilon`` is measured; 0 leaves it NaN.
        probes: Hutchinson probes for the Jacobian; outputs with no more entries than this are exact.
        ignore_index: label of the pixels of masks that count for nothing.
        tokens: ``(extra, h', w')``: rows before the grid (class and register tokens) and the sides of the grid.
            Default: the only grid, square or of the image's aspect ratio, that leaves at most five rows before it.

    Quarter turns, mirrors and cyclic shifts permute pixels; other rotations are bilinear with zero fill, of masks
    nearest. What moved in from outside the frame counts for nothing in segmentation and features. Deterministic under
    the seed; the mode of every module is restored. Warns (``EquidialWarning``) where strides break a lattice symmetry
    at this input size. Raises ``ArgumentError`` for an unknown task, empty data, both ``radius`` and ``elements``,
    missing or misshapen masks, labels outside the classes, outputs of another shape and tokens of unknown layout.
    Cost: one forward pass per image and element; for epsilon ``probes`` backward passes per probed image.
    Source: paper A, Definition 1.2 and its section on metrics.
    """
    if task not in TASKS:
        raise ArgumentError(explain(f"a task out of {TASKS}", repr(task), "use task='classification'"))
    layout = checked_layout(tokens, task)
    group = as_group(group)
    if elements is not None and radius is not None:
        raise ArgumentError(explain("radius or elements", "both", "give one of them"))
    chosen = list(elements) if elements is not None else measured_elements(group, radius)
    if not chosen:
        raise ArgumentError(explain("at least one element", "none", "pass elements, or leave it out"))
    found = _task(task, len(chosen), ignore_index, layout)
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)

    with evaluation(model), torch.no_grad():
        for batch in batches:
            x, y = inputs_and_labels(batch)
            found.check(x, y)
            x = x.to(device)
            if found.images == 0:
                warn_of_strides(model, x, group)
            output = found.read(model(x), x)
            probed = max(0, min(epsilon_images - found.images, len(x))) if found.probed else 0
            jacobian = (
                jacobian_norm(lambda z: found.read(model(z), z), x[:probed], probes, generator) if probed else None
            )
            found.images += len(x)
            found.add_images(output, y)
            for index, g in enumerate(chosen):
                moved = found.read(model(transform_images(x, g)), x)
                difference = found.add_element(index, g, output, moved, x, y)
                if jacobian is not None and difference is not None:
                    found.epsilon.add(soft_invariance(difference[:probed], jacobian, x[:probed]))
    if found.images == 0:
        raise ArgumentError(explain("at least one batch", "none", "pass a data loader that yields batches"))
    return found.scores()


def warn_of_strides(model: nn.Module, x: torch.Tensor, group: Group) -> None:
    """``EquidialWarning``, at the caller of the verb, where strides break a lattice symmetry at the size of ``x``."""
    if x.ndim == 4 and acts_by_lattice(group):
        message = stride_message(model, traced_sizes(model, x[:1]), x[:1], group)
        if message:
            warnings.warn(message, EquidialWarning, stacklevel=3)


def _task(name: str, elements: int, ignore_index: int, tokens: TokenLayout | None) -> Task:
    if name == "classification":
        return Classification(elements)
    return Segmentation(elements, ignore_index) if name == "segmentation" else Features(elements, tokens)
