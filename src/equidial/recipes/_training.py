"""What fine-tuning can do besides fitting labels: learn from the model as it came, and leave batch norm alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from equidial.data import Split, loader


class _Taught:
    """A dataset with other labels."""

    def __init__(self, dataset: Any, labels: torch.Tensor):
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        return self.dataset[index][0], self.labels[index]


def taught(teacher: nn.Module, split: Split, batch_size: int) -> Split:
    """The images of a split, each with the teacher's logits ``[classes]`` in place of its label.

    ``teacher``: in evaluation mode; it reads every image once, unmoved, and is not kept. Memory: the logits.
    """
    device = next(teacher.parameters()).device
    found = []
    with torch.no_grad():
        for x, _ in loader(split, batch_size):
            output = teacher(x.to(device))
            found.append(getattr(output, "logits", output).cpu())
    return Split(_Taught(split.dataset, torch.cat(found)))


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(teacher) || softmax(logits))`` in nats, the mean over the rows of ``[n, classes]``."""
    student, target = (functional.log_softmax(z, -1) for z in (logits, teacher))
    return functional.kl_div(student, target, reduction="batchmean", log_target=True)


def freeze_norms(model: nn.Module) -> None:
    """Put every batch normalisation in evaluation mode, until the next ``model.train()``."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
