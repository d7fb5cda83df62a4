"""Responses: how much of a component with singular value ``sigma`` a subspace filter with threshold ``b`` keeps.

    hard          1 for sigma <= b, else 0
    taper         1 for sigma <= b/2, a smooth step down to exactly 0 from b on
    exponential   exp(-sigma / b)  (paper A's; no compact support, so no a priori guarantee)

``nearest`` is no multiplication by a function of sigma alone, see :mod:`equidial.filters._nearest`. At b = 0 all of
them keep sigma = 0 only; at b = inf all keep everything.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from equidial.errors import ArgumentError, explain

Response = Literal["nearest", "hard", "taper", "exponential"]
RESPONSES: tuple[str, ...] = get_args(Response)

_STEP_ORDER = 7  # continuous derivatives of the taper at both ends; 7 minimises the Chebyshev degree at 1e-6
_TIE = 1e-9  # relative; a threshold typed to fewer digits than a singular value has still keeps its cluster


def check_response(response: str) -> None:
    """Raise ``ArgumentError`` for an unknown name."""
    if response not in RESPONSES:
        raise ArgumentError(explain(f"a response out of {RESPONSES}", repr(response), "e.g. response='nearest'"))


def smooth_step(u: torch.Tensor) -> torch.Tensor:
    """The regularised incomplete beta function ``I_u(8, 8)``: 0 for u <= 0, 1 for u >= 1, seven flat derivatives.

    Summed in its Bernstein form, whose terms are all positive.
    """
    u = u.clamp(0.0, 1.0)
    degree = 2 * _STEP_ORDER + 1
    total = torch.zeros_like(u)
    for j in range(_STEP_ORDER + 1, degree + 1):
        total = total + math.comb(degree, j) * u**j * (1 - u) ** (degree - j)
    return total


def subspace_factors(response: str, sigma: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Factors ``f(sigma; b)`` in the dtype of ``sigma``; ``threshold`` is a scalar tensor."""
    b = threshold.to(sigma.device, sigma.dtype)
    kept = sigma <= b * (1 + _TIE)
    if response == "hard":
        return kept.to(sigma.dtype)
    # sigma / b is 0 at b = inf; at b = 0 the null space alone is kept, whatever the quotient says
    ratio = sigma / torch.where(b > 0, b, torch.ones_like(b))
    factors = torch.exp(-ratio) if response == "exponential" else 1 - smooth_step(2 * ratio - 1)
    return torch.where(b > 0, factors, (sigma == 0).to(sigma.dtype))
