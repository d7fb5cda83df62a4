"""measure: the error that a whole network makes under a group, on data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from equidial.adapters._batches import device_of, evaluation, inputs_and_labels, logits_of
from equidial.adapters._geometry import acts_by_lattice, stride_message, traced_sizes
from equidial.errors import ArgumentError, EquidialWarning, explain
from equidial.groups import Group, GroupElement, as_group
from equidial.metrics import (
    combined_accuracy,
    correct,
    invariance_kl,
    jacobian_norm,
    measured_elements,
    soft_invariance,
    transform_images,
)

TASKS = ("classification",)


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """What :func:`measure` found; also a mapping, ``scores["aAcc"]``.

    Attributes:
        Acc: top-1 accuracy, in [0, 1]; NaN without labels, as are aAcc and cAcc.
        aAcc: top-1 accuracy on transformed images, the mean over elements.
        cAcc: ``sqrt(Acc aAcc)``.
        iErr: mean KL divergence in nats between the predictions for ``x`` and ``g x``.
        epsilon: largest ``||f(gx) - f(x)|| / (||J_f(x)|| ||x||)`` over the probed images and all elements.
        epsilon_mean: its mean.
        images, elements: how many images were read and how many group elements were tried on each.
    """

    Acc: float
    aAcc: float
    cAcc: float
    iErr: float
    epsilon: float
    epsilon_mean: float
    images: int
    elements: int

    def __getitem__(self, key: str) -> float:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))

    def to_dict(self) -> dict[str, float]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"Acc {self.Acc:.4f}  aAcc {self.aAcc:.4f}  cAcc {self.cAcc:.4f}  iErr {self.iErr:.5f}  "
            f"epsilon {self.epsilon:.4g} (mean {self.epsilon_mean:.3g})  "
            f"[{self.images} images, {self.elements} elements]"
        )


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
) -> Scores:
    """Measure accuracy and invariance error of a classifier under a group, on every image and every element.

    Args:
        model: returns logits ``[n, classes]``, or an object with ``.logits``.
        batches: yields ``(x, y)`` or dicts (``pixel_values``, ``labels``); read once.
        group: a name or a group.
        task: ``"classification"``.
        radius: largest distance of the elements; default the whole of a finite group, 30 degrees for SO(2).
        elements: the elements themselves, instead of ``radius``.
        seed: of the Hutchinson probes.
        epsilon_images: on how many images (the first ones) ``epsilon`` is measured; 0 leaves it NaN.
        probes: Hutchinson probes for the Jacobian; outputs with no more classes than this are exact.

    Quarter turns, mirrors and cyclic shifts permute pixels; other rotations are bilinear with zero fill. Deterministic
    under the seed; the mode of every module is restored. Warns (``EquidialWarning``) where strides break a lattice
    symmetry at this input size. Raises ``ArgumentError`` for an unknown task, empty data or both ``radius`` and
    ``elements``. Cost: one forward pass per image and element. Source: paper A, Definition 1.2; facts of section 2.
    """
    if task not in TASKS:
        raise ArgumentError(explain(f"a task out of {TASKS}", repr(task), "use task='classification'"))
    group = as_group(group)
    if elements is not None and radius is not None:
        raise ArgumentError(explain("radius or elements", "both", "give one of them"))
    chosen = list(elements) if elements is not None else measured_elements(group, radius)
    if not chosen:
        raise ArgumentError(explain("at least one element", "none", "pass elements, or leave it out"))
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    totals = _Totals()

    def run(x: torch.Tensor) -> torch.Tensor:
        return logits_of(model(x))

    with evaluation(model), torch.no_grad():
        for batch in batches:
            x, y = inputs_and_labels(batch)
            x = x.to(device)
            if totals.images == 0 and x.ndim == 4 and acts_by_lattice(group):
                message = stride_message(model, traced_sizes(model, x[:1]), x[:1], group)
                if message:
                    warnings.warn(message, EquidialWarning, stacklevel=2)
            logits = run(x)
            probed = max(0, min(epsilon_images - totals.images, len(x)))
            jacobian = jacobian_norm(run, x[:probed], probes, generator) if probed else None
            totals.add_images(len(x), logits, y)
            for g in chosen:
                moved = run(transform_images(x, g))
                totals.add_element(logits, moved, y)
                if jacobian is not None:
                    totals.add_epsilon(soft_invariance(moved[:probed] - logits[:probed], jacobian, x[:probed]))
    if totals.images == 0:
        raise ArgumentError(explain("at least one batch", "none", "pass a data loader that yields batches"))
    return totals.scores(len(chosen))


@dataclass
class _Totals:
    images: int = 0
    labelled: int = 0
    hits: int = 0
    moved_hits: int = 0
    divergence: float = 0.0
    comparisons: int = 0
    epsilon_max: float = 0.0
    epsilon_sum: float = 0.0
    epsilon_count: int = 0

    def add_images(self, count: int, logits: torch.Tensor, labels: torch.Tensor | None) -> None:
        self.images += count
        if labels is not None:
            self.labelled += count
            self.hits += int(correct(logits, labels).sum())

    def add_element(self, logits: torch.Tensor, moved: torch.Tensor, labels: torch.Tensor | None) -> None:
        self.comparisons += len(logits)
        self.divergence += float(invariance_kl(logits, moved).sum())
        if labels is not None:
            self.moved_hits += int(correct(moved, labels).sum())

    def add_epsilon(self, values: torch.Tensor) -> None:
        self.epsilon_max = max(self.epsilon_max, float(values.max()))
        self.epsilon_sum += float(values.sum())
        self.epsilon_count += len(values)

    def scores(self, elements: int) -> Scores:
        nan = float("nan")
        acc = self.hits / self.labelled if self.labelled else nan
        a_acc = self.moved_hits / (self.labelled * elements) if self.labelled else nan
        return Scores(
            Acc=acc,
            aAcc=a_acc,
            cAcc=combined_accuracy(acc, a_acc),
            iErr=self.divergence / self.comparisons,
            epsilon=self.epsilon_max if self.epsilon_count else nan,
            epsilon_mean=self.epsilon_sum / self.epsilon_count if self.epsilon_count else nan,
            images=self.images,
            elements=elements,
        )
