"""Electron-muon scattering (EMLP's ParticleInteraction, paper A): four four-momenta to the squared matrix element.

The tree level of ``e(p1) mu(p2) -> e(p3) mu(p4)``, spins summed, one photon exchanged; textbook traces give

    |M|^2 (q^2)^2 / e^4 = 4 L_e^mn L_mu,mn,
    L_e^mn = p1^m p3^n + p1^n p3^m - g^mn (p1.p3 - m_e^2),    L_mu alike with p2, p4 and m_mu,

times constants of averaging, left out with the propagator. With ``a = p1.p3 - m_e^2`` and ``b = p2.p4 - m_mu^2``
contraction leaves

    y = 8 (p1.p2)(p3.p4) + 8 (p1.p4)(p2.p3) - 8 (p1.p3) b - 8 (p2.p4) a + 16 a b.

As in EMLP the momenta are no physical ones: entries are N(0, 1/16), off shell and not conserved, in units in which
nothing else has a scale, and the masses are those of the incoming momenta, ``m_e^2 = p1.p1``, ``m_mu^2 = p2.p2``.
EMLP's code leaves ``p1^n p3^m`` and its like out of both tensors; the variance of its target is 0.75, of this one 0.64.
The breaking term (paper A's code) singles out the axis x: the sum over momenta of ``x^2 / (y^2 + z^2 + 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from equidial.groups import Lorentz
from equidial.recipes import _regressions
from equidial.recipes._regressions import Problem, Regression
from equidial.recipes._study import Progress

NAME = "lorentz"


@dataclass(frozen=True)
class LorentzScattering(Regression):
    """A Lorentz-invariant regression, broken by a dial: soft, exact and free networks, residual pathway priors."""


def draw(count: int, generator: torch.Generator) -> torch.Tensor:
    """``[count, 16]``: ``(t, x, y, z)`` of four momenta, normal with deviation 1/4."""
    return torch.randn(count, 16, generator=generator, dtype=torch.float64) / 4


def target(x: torch.Tensor) -> torch.Tensor:
    """``[count, 1]``."""
    p = x.unflatten(-1, (4, 4))
    form = x.new_tensor([1.0, -1.0, -1.0, -1.0])
    products = torch.einsum("nid,d,njd->ijn", p, form, p)
    p11, p12, p13, p14 = products[0]
    p22, p23, p24 = products[1, 1:]
    a, b = p13 - p11, p24 - p22
    return (8 * (p12 * products[2, 3] + p14 * p23 - p13 * b - p24 * a) + 16 * a * b)[:, None]


def term(x: torch.Tensor) -> torch.Tensor:
    """``[count, 1]``."""
    _, across, y, z = x.unflatten(-1, (4, 4)).unbind(-1)
    return (across.square() / (y.square() + z.square() + 1)).sum(-1, keepdim=True)


PROBLEM = Problem(Lorentz(), vectors=4, numbers=0, order=0, draw=draw, target=target, term=term)


def run(recipe: LorentzScattering, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train what is not yet trained; returns one record per training. Raises as :meth:`Regression.check`."""
    return _regressions.run(NAME, PROBLEM, recipe, progress)
