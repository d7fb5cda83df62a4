"""Scores of a classifier under a group: pure functions of logits and labels.

Acc   top-1 accuracy on the images as they are
aAcc  top-1 accuracy on transformed images, the mean over elements
cAcc  sqrt(Acc aAcc), the geometric mean
iErr  KL( softmax f(x) || softmax f(g x) ) in nats, the mean over images and elements
epsilon  ||f(g x) - f(x)|| / (||J_f(x)||_F ||x||), paper A's Definition of soft invariance

total variation  1/2 sum |softmax f(x) - softmax f(g x)|, in [0, 1]
relative error   ||f(g x) - f(x)|| / ||f(x)||
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional


def correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether the largest logit ``[n, classes]`` is the label ``[n]``, one boolean each."""
    return logits.argmax(-1) == labels.to(logits.device)


def combined_accuracy(acc: float, a_acc: float) -> float:
    """``cAcc = sqrt(Acc aAcc)``."""
    return (acc * a_acc) ** 0.5


def invariance_kl(logits: torch.Tensor, transformed: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(logits) || softmax(transformed))`` in nats, one number per row of ``[n, classes]``."""
    log_p = functional.log_softmax(logits.double(), -1)
    log_q = functional.log_softmax(transformed.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


def total_variation(logits: torch.Tensor, transformed: torch.Tensor) -> torch.Tensor:
    """``1/2 sum |softmax(logits) - softmax(transformed)|`` in [0, 1], one number per row of ``[.., classes]``.

    The largest difference of the probabilities that the two predictions give to any set of classes.
    """
    p, q = (torch.softmax(z.double(), -1) for z in (logits, transformed))
    return ((p - q).abs().sum(-1) / 2).clamp_max(1.0)


def relative_error(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``||other - reference|| / ||reference||`` per sample of ``[n, ..]``; 0 where they are equal, infinite at 0."""
    reference, other = reference.double().flatten(1), other.double().flatten(1)
    moved = (other - reference).norm(dim=1)
    return torch.where(moved == 0, torch.zeros_like(moved), moved / reference.norm(dim=1))


def jacobian_norm(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """``||J_f(x_i)||_F`` of each sample ``x_i`` of a batch, by Hutchinson probes: ``E ||J^T v||^2`` with signs ``v``.

    Exact, whatever ``probes``, when the output has no more entries than probes: then every unit vector is a probe.
    ``function`` must treat the samples of a batch apart (evaluation mode). Cost: one backward pass a probe.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        output = function(x).flatten(1)
        outputs = output.shape[1]
        exact = outputs <= probes
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(outputs if exact else probes):
            if exact:
                v = torch.zeros_like(output)
                v[:, i] = 1
            else:
                signs = torch.randint(0, 2, output.shape, generator=generator).to(output.device, output.dtype)
                v = 2 * signs - 1
            (gradient,) = torch.autograd.grad(output, x, v, retain_graph=True)
            total += gradient.flatten(1).double().square().sum(1)
    return (total / (1 if exact else probes)).sqrt()


def soft_invariance(difference: torch.Tensor, jacobian: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``||f(g x) - f(x)|| / (||J|| ||x||)`` per sample (paper A, Definition 1.2); 0 where nothing differs."""
    scale = jacobian.to(torch.float64) * x.flatten(1).double().norm(dim=1)
    moved = difference.flatten(1).double().norm(dim=1)
    return torch.where(moved == 0, torch.zeros_like(moved), moved / scale)
