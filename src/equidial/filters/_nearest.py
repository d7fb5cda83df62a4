"""The nearest certified weight: exact projection on the cone ``||L W'|| <= beta ||W'||`` (theory 4).

With ``c_k`` the components of ``W`` in the singular basis and ``a_k = sigma_k^2 - beta^2`` the projection is

    c'_k = c_k / D_k,   D_k = 1 + mu a_k,   mu >= 0 the root of   h(mu) = sum_k a_k c_k^2 / D_k^2 - A^2 = 0

(``A = 0`` for the cone). It attenuates what the group moves and amplifies what it keeps. The same root serves spaces
without invariants, where the cone is {0} below the smallest sigma: there ``beta = 0`` and the budget ``A`` on
``||L W'||`` is absolute, which is convex.

Hard case: ``W`` has (almost) no component below ``beta``, so that reaching the cone would blow noise up.
Amplification is capped at ``GAIN_CAP``, the components above ``beta`` are attenuated until the bound holds, and the
result is certified, not nearest.

The dial may be trained. Inside the active region the factors carry the gradient of ``beta`` and ``A`` by the implicit
function; where the set holds ``W`` already it is 0; at exact symmetry, ``beta = A = 0``, it is the derivative from
above, by which the dial can leave 0 again (theory 4, the derivative in the dial).
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch

from equidial.errors import StateError, explain
from equidial.filters._products import runs_on_cpu

GAIN_CAP = 1000.0
"""Largest amplification of a component below ``beta``."""

SHRINK = 1e-12
"""``beta`` is solved for ``beta (1 - SHRINK)``, so that rounding does not leave the cone (float64)."""

_NEWTON_STEPS = 32
_NO_SYMMETRIC_PART = 1e-6  # of the weight: below it the amplification of the hard case is capped at once


@torch.library.custom_op("equidial::cone_multiplier", mutates_args=())
def cone_multiplier(a: torch.Tensor, energy: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    """The root ``mu`` of ``h``, a scalar; 0 inside the set, inf where only 0 is in it. No gradient.

    An operator of its own, so that a compiled graph holds one node and not the unrolled iteration.

    ``P^(-1/2) - N^(-1/2)`` with ``P`` and ``N`` the positive and negative parts of ``h`` is nearly linear in ``mu``
    (exactly so for one cluster on each side), so Newton's method on it converges in a few steps; a shrinking
    bracket keeps it safe.
    """
    if a.device.type == "cpu" and a.dtype == torch.float64:
        # a few numbers: numpy calls cost a tenth of torch's
        with numpy.errstate(all="ignore"):  # steps that are thrown away may overflow
            root = _root(numpy, a.numpy(), energy.numpy(), budget.numpy(), True)
        return torch.tensor(float(root), dtype=a.dtype)
    return _root(torch, a, energy, budget, False)  # reading a number from an accelerator would wait for it


def _root(xp: Any, a: Any, energy: Any, budget: Any, may_stop: bool) -> Any:
    """:func:`cone_multiplier` on arrays of ``xp``, numpy or torch; ``may_stop``: as soon as it has converged."""
    zero, one = xp.zeros_like(a), xp.ones_like(a)
    positive, negative = xp.where(a > 0, a * energy, zero), xp.where(a < 0, -a * energy, zero)

    def parts(mu: Any) -> tuple[Any, Any, Any, Any]:
        raw = 1 + mu * a
        capped = raw < 1 / GAIN_CAP
        d = xp.where(capped, one / GAIN_CAP, raw)
        p = (positive / d**2).sum()
        n = (negative / d**2).sum() + budget**2
        dp = (-2 * positive * a / d**3).sum()
        dn = xp.where(capped, zero, -2 * negative * a / d**3).sum()
        return p, n, dp, dn

    least, nothing = xp.zeros_like(budget) + xp.finfo(a.dtype).tiny, xp.zeros_like(budget)
    p0, n0, _, _ = parts(nothing)
    inside = p0 <= n0
    # a / (1 + mu a)^2 <= 1 / (4 mu): P(mu) <= sum_(a>0) c^2 / (4 mu), and N(mu) >= N(0)
    low, high = nothing, xp.where(a > 0, energy, zero).sum() / (4 * xp.maximum(n0, least))
    # where the first component reaches the cap: mostly the root lies before, and there h is smooth
    steepest = xp.where(negative > 0, -a, zero).max()
    kink = (1 - 1 / GAIN_CAP) / xp.maximum(steepest, least)
    p, n, _, _ = parts(kink)
    before = (steepest > 0) & (p <= n)
    high = xp.where(before, xp.minimum(high, kink), high)
    low = xp.where((steepest > 0) & ~before, kink, low)
    mu, last = low, 2 * high
    for _ in range(_NEWTON_STEPS):
        p, n, dp, dn = parts(mu)
        below = p > n  # the root lies above mu
        low, high = xp.where(below, mu, low), xp.where(below, high, mu)
        p, n = xp.maximum(p, least), xp.maximum(n, least)
        value = 1 / xp.sqrt(p) - 1 / xp.sqrt(n)
        slope = -0.5 * dp / xp.sqrt(p) / p + 0.5 * dn / xp.sqrt(n) / n
        step = mu - value / xp.maximum(slope, least)
        # Newton while its steps at least halve or are down to rounding, else bisection on the scale of logarithms
        small = (abs(step - mu) <= last / 2) | (abs(step - mu) <= 1e-14 * mu)
        safe = xp.isfinite(step) & (step >= low) & (step <= high) & small
        middle = xp.where(low > 0, xp.sqrt(low * high), high / 16)
        following = xp.where(safe, step, middle)
        mu, last = following, abs(following - mu)
        if may_stop and bool(last <= 1e-15 * mu):
            break
    none_below = (n0 <= least) & ~inside
    mu = xp.where(none_below, nothing + math.inf, mu)
    return xp.where(inside, nothing, mu)


@cone_multiplier.register_fake
def _(a: torch.Tensor, energy: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():  # its last step would fail, with no word of what to do
        raise StateError(
            explain("a folded model for ONNX", "a softened one: ONNX has no operator for its filters", "fold it first")
        )
    return torch.empty_like(budget)


def nearest_factors(
    sigma: torch.Tensor, energy: torch.Tensor, beta: torch.Tensor, budget: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors ``1 / D_k`` of the projection, ``[K]``, and the multiplier ``mu``, a scalar.

    ``sigma``: ``[K]`` distinct singular values. ``energy``: ``[K]`` squared norms of the components, carrying the
    gradient of the weight. ``beta``, ``budget``: scalars. The gradient through ``mu`` is that of the implicit
    function, exact to first order: one Newton step from the solved root, taken with autograd.
    """
    if runs_on_cpu(energy) and not (beta.requires_grad or budget.requires_grad):
        factors, root, *_ = _Factors.apply(sigma, energy, beta, budget)
        return factors, root
    return _nearest_factors(sigma, energy, beta, budget)


def _nearest_factors(
    sigma: torch.Tensor, energy: torch.Tensor, beta: torch.Tensor, budget: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    work = torch.float64 if energy.device.type != "mps" else torch.float32
    beta, budget = beta.to(energy.device, work), budget.to(energy.device, work)
    a = sigma.to(work) ** 2 - (beta * (1 - SHRINK)) ** 2
    total = energy.detach().sum().to(work)
    scale = torch.where(total > 0, total, torch.ones_like(total))
    e = energy.to(work) / scale
    limit = budget * (1 - SHRINK) / scale.sqrt()

    root = cone_multiplier(a.detach(), e.detach(), limit.detach())
    finite = torch.isfinite(root)
    mu = torch.where(finite & (root > 0), root, torch.zeros_like(root))
    raw = 1 + mu * a
    capped = raw < 1 / GAIN_CAP
    d = torch.where(capped, torch.full_like(raw, 1 / GAIN_CAP), raw)
    h = (a * e / d**2).sum() - limit**2
    slope = torch.where(capped, torch.zeros_like(a), -2 * a**2 * e / d**3).sum()
    active = finite & (root > 0) & (slope < 0)
    step = h / torch.where(active, slope, -torch.ones_like(slope)).detach()
    mu = torch.where(active, mu.detach() - step + step.detach(), mu)
    raw = 1 + mu * a
    factors = torch.where(capped, torch.full_like(raw, GAIN_CAP), 1 / torch.where(capped, 1.0, raw))
    # only components above beta, none below: nothing but 0 is left of the weight
    factors = torch.where(finite, factors, (a < 0).to(work))
    strict = (beta == 0) & (budget == 0)
    kept = (sigma == 0).to(work)
    if beta.requires_grad or budget.requires_grad:
        kept = kept + _opened_at_zero(sigma.to(work), e.detach(), beta, budget / scale.sqrt())
    factors = torch.where(strict, kept, factors)
    return factors.to(sigma.dtype), root


class _Factors(torch.autograd.Function):
    """:func:`nearest_factors` for a dial that is not trained, with numpy: a few numbers, at a third of the time."""

    @staticmethod
    def forward(
        sigma: torch.Tensor, energy: torch.Tensor, beta: torch.Tensor, budget: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Factors, the root, and the derivatives of the factors by it, and of it by the energies."""
        s, e = sigma.double().numpy(), energy.detach().double().numpy()
        b, absolute = float(beta), float(budget)
        a = s**2 - (b * (1 - SHRINK)) ** 2
        scale = float(e.sum())
        scale = scale if scale > 0 else 1.0
        e, limit = e / scale, numpy.float64(absolute * (1 - SHRINK) / math.sqrt(scale))
        with numpy.errstate(all="ignore"):
            root = float(_root(numpy, a, e, limit, True))
        by_root = by_energy = numpy.zeros_like(a)
        if b == 0 and absolute == 0:
            factors = (s == 0).astype(a.dtype)
        elif not math.isfinite(root):
            factors = (a < 0).astype(a.dtype)
        else:
            raw = 1 + root * a
            capped = raw < 1 / GAIN_CAP
            factors = 1 / numpy.where(capped, 1 / GAIN_CAP, raw)
            slope = -2 * float((a**2 * e * factors**3)[~capped].sum())
            if root > 0 and slope < 0:
                by_root = numpy.where(capped, 0.0, -a * factors**2)
                by_energy = -a * factors**2 / (slope * scale)
        derivatives = (torch.from_numpy(x).to(energy.dtype) for x in (by_root, by_energy))
        return torch.from_numpy(factors).to(sigma.dtype), torch.tensor(root, dtype=torch.float64), *derivatives

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sigma, energy, beta, budget, by_root, by_energy = ctx.saved_tensors
        if torch.is_grad_enabled():  # the derivative is to be differentiated
            factors, _ = _nearest_factors(sigma, energy, beta, budget)
            return None, torch.autograd.grad(factors, energy, grads[0], create_graph=True)[0], None, None
        return None, torch.dot(grads[0].to(by_root.dtype), by_root) * by_energy, None, None


def _opened_at_zero(
    sigma: torch.Tensor, energy: torch.Tensor, beta: torch.Tensor, budget: torch.Tensor
) -> torch.Tensor:
    """Zeros that carry the derivatives of the factors from above at ``beta = budget = 0``.

    With ``S = sum_k c_k^2 / sigma_k^2`` over ``sigma_k > 0`` and ``m = sqrt(S) / ||c_0||``: in ``beta`` it is ``m`` on
    the null space and ``1 / (m sigma_k^2)`` elsewhere, in the budget 0 and ``1 / (sqrt(S) sigma_k^2)``. 0 where there
    is nothing to open, and in the hard case.
    """
    null = sigma == 0
    inverse = torch.where(null, torch.zeros_like(sigma), 1 / torch.where(null, torch.ones_like(sigma), sigma**2))
    reach = (energy * inverse).sum().sqrt()
    kept = torch.where(null, energy, torch.zeros_like(energy)).sum().sqrt()
    moves = reach > 0
    either = moves & (kept > _NO_SYMMETRIC_PART)
    one = torch.ones_like(reach)
    m = torch.where(either, reach, one) / torch.where(either, kept, one)
    by_beta = torch.where(either, torch.where(null, m, inverse / m), torch.zeros_like(sigma))
    by_budget = torch.where(moves, inverse / torch.where(moves, reach, one), torch.zeros_like(sigma))
    return by_beta * (beta - beta.detach()) + by_budget * (budget - budget.detach())
