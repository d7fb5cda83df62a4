"""What fine-tuning can do besides fitting labels: learn from the model as it came, and treat batch norm with care."""

from __future__ import annotations

from collections.abc import Iterable
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


def restore_statistics(model: nn.Module, batches: Iterable[Any]) -> None:
    """Give every batch normalisation the statistics of its own inputs, and change its weight and bias to match.

    In evaluation the model stays the function that it was, up to rounding. Checkpoints with batch norm folded in
    (mean 0, variance 1) need it before a dial is turned: only then does ``recalibrate`` bring the outputs of every
    layer back to the mean and the variance that they had. Mean and variance are averages over batches of ``(x, y)``.
    Layers without running statistics or without weights are left alone. Cost: one forward pass a batch.
    """
    moments: dict[_BatchNorm, torch.Tensor] = {}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.affine]

    def collect(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        x = inputs[0].transpose(0, 1).flatten(1).double()
        found = torch.stack([x.mean(1), x.var(1), torch.ones_like(x[:, 0])])
        moments[norm] = moments[norm] + found if norm in moments else found

    handles = [norm.register_forward_pre_hook(collect) for norm in norms]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for x, _ in batches:
                model(x.to(device))
            for norm, (means, variances, count) in moments.items():
                mean, variance = means / count, variances / count
                before = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
                weight, bias, old_mean, old_variance = (t.double() for t in before if t is not None)
                slope = weight / (old_variance + norm.eps).sqrt()
                after = (slope * (variance + norm.eps).sqrt(), bias + slope * (mean - old_mean), mean, variance)
                for tensor, value in zip(before, after, strict=True):
                    assert tensor is not None
                    tensor.copy_(value)
    finally:
        for handle in handles:
            handle.remove()
