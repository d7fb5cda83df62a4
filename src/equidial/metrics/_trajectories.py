"""Displacement errors of predicted trajectories, in the unit of the positions."""

from __future__ import annotations

import torch

from equidial.errors import ArgumentError, explain


def displacement_errors(predicted: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ADE and FDE of every track, ``[n]`` each: the mean distance over time and the distance at the end.

    ``predicted``: ``[n, time, 2]``, or ``[samples, n, time, 2]``, of which the best sample of each track counts, for
    ADE and FDE apart (best of ``samples``, as Social-GAN counts). ``truth``: ``[n, time, 2]``. Any number of
    coordinates. Raises ``ArgumentError`` for shapes that do not fit.
    """
    if truth.ndim != 3 or predicted.shape[-3:] != truth.shape or predicted.ndim not in (3, 4) or not truth.shape[1]:
        raise ArgumentError(
            explain(
                "predicted [n, time, 2] or [samples, n, time, 2] for truth [n, time, 2]",
                f"{tuple(predicted.shape)} and {tuple(truth.shape)}",
                "align the tracks",
            )
        )
    distance = (predicted - truth).norm(dim=-1)
    average, final = distance.mean(-1), distance[..., -1]
    return (average, final) if predicted.ndim == 3 else (average.amin(0), final.amin(0))


def constant_velocity(past: torch.Tensor, steps: int) -> torch.Tensor:
    """``[n, steps, 2]``: every track goes on with its last step; the baseline that any model must beat.

    ``past``: ``[n, time, 2]``, two steps or more. Raises ``ArgumentError`` for fewer.
    """
    if past.ndim != 3 or past.shape[1] < 2:
        raise ArgumentError(explain("past [n, time >= 2, 2]", f"{tuple(past.shape)}", "observe two steps or more"))
    velocity = past[:, -1:] - past[:, -2:-1]
    return past[:, -1:] + velocity * torch.arange(1, steps + 1, dtype=past.dtype, device=past.device)[:, None]
