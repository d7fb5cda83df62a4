"""When a trial is stopped early: beaten in both objectives by more than chance between seeds explains.

Optuna's pruners refuse studies with two objectives, and there is no order of a plane that they could use. The rule here
asks for dominance with a margin. After ``k`` seeds, let ``(a, e)`` be the trial's means of accuracy and error, and
``(a_f, e_f)`` those of a finished trial over its first ``k`` seeds. The trial is stopped if for some finished trial

    a_f - a > margin * s_a * sqrt(2 / k)   and   e - e_f > margin * s_e * sqrt(2 / k)

with ``s_a`` and ``s_e`` the standard deviations between seeds of one trial, pooled over the finished trials: the
difference of two means of ``k`` seeds has standard deviation ``s * sqrt(2 / k)``. A trial that is best so far in either
objective is never stopped, nor is any before enough trials have finished to know the spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Seeds = Sequence[Sequence[float]]
"""(accuracy, error) of each seed of a trial, in the order in which they were run."""


def dominated_by_margin(seeds: Seeds, finished: Sequence[Seeds], margin: float, startup: int) -> bool:
    """Whether the rule above stops a trial with these seeds. ``startup``: how many trials must have finished.

    Finished trials have all their seeds, at least two; with one seed there is nothing to stop early.
    """
    if len(finished) < max(startup, 1) or not len(seeds) or math.isinf(margin):
        return False
    k = len(seeds)
    others = np.array([np.array(f, dtype=float) for f in finished if len(f) >= max(k, 2)])
    if len(others) < max(startup, 1):
        return False
    spread = np.sqrt(others.var(axis=1, ddof=1).mean(axis=0))
    gap = others[:, :k].mean(axis=1) - np.asarray(seeds, dtype=float).mean(axis=0)
    need = margin * spread * math.sqrt(2 / k)
    return bool(((gap[:, 0] > need[0]) & (-gap[:, 1] > need[1])).any())
