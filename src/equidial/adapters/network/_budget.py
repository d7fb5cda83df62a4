"""set_network_error: the dial of every tensor from one budget for the whole network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from scipy.optimize import minimize
from torch import nn

from equidial.adapters._life import check_adapters, check_tensors
from equidial.adapters._parametrization import SoftParametrization, constrained, original_of
from equidial.adapters._state import require_root
from equidial.adapters.network._certify import Question, answer, ask, dtype_of, plain_copy
from equidial.adapters.network._walk import Rule
from equidial.certificates import NetworkCertificate
from equidial.errors import ArgumentError, BudgetError, StateError, TargetError, explain
from equidial.filters import Dial, Filter, Setting

_TABLE = 33  # shares at which the distance of each tensor is tabulated
_STEP = 1e-3  # of the difference quotients of the bound
_STARTS = 3


def set_network_error(
    model: nn.Module,
    max_error: float,
    *,
    inputs: torch.Tensor | None = None,
    ball: float | None = None,
    input_shape: tuple[int, ...] | None = None,
    radius: float | None = None,
    relative: bool = False,
    rules: Mapping[Any, Rule] | None = None,
    seed: int = 0,
) -> NetworkCertificate:
    """Turn the dials so that the composed bound of the network stays within ``max_error`` and weights change least.

        minimise  sum_l ||W'_l - W_l||^2 / ||W_l||^2     subject to  bound of certify_network(W') <= max_error

    over the softness ``s_l`` of every tensor (``beta_l = s_l`` times its defect for ``nearest``). The bound is the one
    of :func:`certify_network` on the weights as ``fold`` would store them, gains and sizes included, but before it is
    compared with the trivial ``2 sup ||F||``: a network can be shrunk under that without becoming symmetric. Its
    derivatives are taken tensor by tensor. Sequential quadratic programming from several starts (the even split, and
    leaning to the tensors that move the bound most); every candidate is scaled to the budget and certified, and the
    best one is taken. So the result is never worse than the even split, one softness for all; the optimum is local.

    Arguments as :func:`certify_network`; ``relative``: ``max_error`` speaks of ``bound / ||F(x)||`` (``inputs`` only).
    Tensors that are symmetric as found keep their dial. Returns the certificate of the network as it now stands.

    Raises ``BudgetError`` where even exactly symmetric weights exceed the budget, with the smallest bound;
    ``TargetError`` where the certificate abstains, naming the module; ``StateError`` for a model that is not softened
    or learns its dials; ``ArgumentError`` for wrong arguments. The model is left whole on failure. Cost: some hundred
    forward passes per tensor, and the norms of the weights that changed.
    """
    require_root(model, "set_network_error")
    check_adapters(model, "set_network_error")
    check_tensors(model, "set_network_error")
    learned = [link.name for _, _, link in constrained(model) if link.learned_softness is not None]
    if learned:
        raise StateError(
            explain(
                "fixed dials", f"learned ones: {', '.join(learned[:3])}", "call fix_dial first, to choose them here"
            )
        )
    if isinstance(max_error, bool) or not isinstance(max_error, int | float) or not 0 <= max_error < math.inf:
        raise ArgumentError(explain("a max_error >= 0", repr(max_error), "e.g. max_error=0.1"))
    if relative and ball is not None:
        raise ArgumentError(
            explain("inputs, where the budget is relative to ||F(x)||", f"ball={ball!r}", "use relative=False")
        )
    question = ask(model, None, inputs, ball, input_shape, radius, rules, seed)
    problem = _Problem(model, question, relative)
    shares = problem.solve(float(max_error))
    certificate = problem.certificate(shares, search=True)
    for (module, name, link), share in zip(problem.links, shares.tolist(), strict=True):
        dial = Dial("softness", share)
        link.turn(dial, _setting(link, share))
        link.settle(original_of(module, name))
    return certificate


def _setting(link: SoftParametrization, share: float) -> Setting:
    dial = Dial("softness", share)
    return Setting(math.inf) if dial.is_free else link.setting_for(dial, None)


class _Problem:
    """The bound and the distance as functions of the shares ``s_l``; works on a copy of the model."""

    def __init__(self, model: nn.Module, question: Question, relative: bool):
        self.question, self.relative, self.dtype = question, relative, dtype_of(model)
        self.links = [link for link in constrained(model) if float(link[2].reference) > 0]
        names = {id(module): name for name, module in model.named_modules()}
        self.copy = plain_copy(model)
        self.places = [self.copy.get_submodule(names[id(m)])._parameters[t] for m, t, _ in self.links]
        self.cache: dict[Any, Any] = {}
        self.values: dict[tuple[int, float], torch.Tensor] = {}
        self.bounds: dict[tuple[float, ...], float] = {}

    def certificate(
        self, shares: Sequence[float] | numpy.ndarray, search: bool = False, trivial: bool = True
    ) -> NetworkCertificate:
        """Of the copy with these shares; raises ``TargetError`` where it abstains."""
        for index, (place, share) in enumerate(zip(self.places, shares, strict=True)):
            assert place is not None, "soften has made a parameter of it"
            place.data.copy_(self._value(index, float(share)))
        found = answer(self.copy, self.question, self.dtype, self.cache, search, trivial)
        if found.kind == "abstained":
            raise TargetError(
                explain(
                    "a network whose error can be bounded",
                    f"one that abstains at {found.abstained_at}: {found.reason}",
                    "replace that module, pass a rule for it, or set max_error per tensor with set_dial",
                )
            )
        return found

    def bound(self, shares: numpy.ndarray) -> float:
        """Of the network with these shares."""
        key = tuple(float(s) for s in shares)
        if key not in self.bounds:
            # the composition alone: shrinking the output until 2 ||F|| fits the budget makes nothing symmetric
            found = self.certificate(key, trivial=False)
            self.bounds[key] = found.relative if self.relative else found.bound
        return self.bounds[key]

    def solve(self, budget: float) -> numpy.ndarray:
        """The shares; raises ``BudgetError``."""
        zero, one = numpy.zeros(len(self.links)), numpy.ones(len(self.links))
        smallest = self.bound(zero)
        if smallest > budget:
            raise BudgetError(
                explain(
                    f"max_error >= {smallest:.6g}, the bound of exactly symmetric weights (softness 0)",
                    f"max_error={budget:g}",
                    f"use max_error={smallest:.6g} or more, or narrow the inputs",
                ),
                smallest,
            )
        if self.bound(one) <= budget:
            return one
        distances = _Distances([self._distance_table(i) for i in range(len(self.links))])
        even = self._scaled(one, budget)
        best = even
        for start in self._starts(even, budget):
            found = self._scaled(self._improved(start, budget, distances), budget, 1e-3)
            if distances.total(found) < distances.total(best):
                best = found
        return self._scaled(best, budget)

    def _starts(self, even: numpy.ndarray, budget: float) -> list[numpy.ndarray]:
        """The even split, then each of the tensors that move the bound most left as free as the budget allows."""
        effects = []
        for i in range(len(even)):
            without = even.copy()
            without[i] = 0.0
            effects.append(self.bound(even) - self.bound(without))
        starts = [even]
        for i in numpy.argsort(effects)[::-1][:_STARTS]:
            leaning = even / 2
            leaning[i] = min(1.0, 2 * even[i] + 0.1)
            starts.append(self._scaled(leaning, budget, 0.05))
        return starts

    def _improved(self, start: numpy.ndarray, budget: float, distances: _Distances) -> numpy.ndarray:
        target = math.log(max(budget, 1e-300))

        def room(shares: numpy.ndarray) -> float:
            return target - math.log(max(self.bound(numpy.clip(shares, 0, 1)), 1e-300))

        def slope(shares: numpy.ndarray) -> numpy.ndarray:
            shares = numpy.clip(shares, 0, 1)
            out = numpy.zeros(len(shares))
            for i in range(len(shares)):
                step = _STEP if shares[i] + _STEP <= 1 else -_STEP
                moved = shares.copy()
                moved[i] += step
                out[i] = (room(moved) - room(shares)) / step
            return out

        found = minimize(
            distances.total,
            start,
            jac=distances.slope,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(start),
            constraints=[{"type": "ineq", "fun": room, "jac": slope}],
            options={"maxiter": 12, "ftol": 1e-7},
        )
        return numpy.clip(found.x, 0, 1) if numpy.all(numpy.isfinite(found.x)) else start

    def _scaled(self, shares: numpy.ndarray, budget: float, precision: float = 1e-6) -> numpy.ndarray:
        """The largest multiple (at most 1 each) whose certified bound keeps the budget."""

        def at(factor: float) -> numpy.ndarray:
            return numpy.minimum(factor * shares, 1.0)

        low, high = 0.0, 1.0
        if not numpy.any(shares > 0):
            return shares
        while self.bound(at(high)) <= budget and numpy.any(at(high)[shares > 0] < 1):
            low, high = high, 1.25 * high
        if self.bound(at(high)) <= budget:
            return at(high)
        while high - low > precision * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.bound(at(middle)) <= budget else (low, middle)
        return at(low)

    def _value(self, index: int, share: float) -> torch.Tensor:
        """The tensor that ``fold`` would store at this share, in float64."""
        if (index, share) not in self.values:
            module, name, link = self.links[index]
            original = original_of(module, name).detach().to("cpu")
            value = original
            if share < 1:
                filter_ = Filter(link.spectrum, link.response, Dial("softness", share), _setting(link, share))
                weights = filter_(link.layout.weights(original.to(torch.float64))).to(original.dtype)
                value = link.layout.tensor(filter_.snap(weights), original)
            if len(self.values) > 64:  # tensors are large; shares come back soon or never
                self.values.clear()
            self.values[index, share] = value.to(torch.float64)
        return self.values[index, share]

    def _distance_table(self, index: int) -> list[float]:
        module, name, _ = self.links[index]
        original = original_of(module, name).detach().to("cpu", torch.float64)
        square = float(original.square().sum())
        shares = [k / (_TABLE - 1) for k in range(_TABLE)]
        return [float((self._value(index, s) - original).square().sum()) / square for s in shares]


class _Distances:
    """``sum_l d_l(s_l)`` and its gradient, piecewise linear in each ``d_l``'s root: smooth enough, and cheap."""

    def __init__(self, tables: list[list[float]]):
        self.roots = numpy.sqrt(numpy.array(tables))
        self.grid = numpy.linspace(0.0, 1.0, _TABLE)

    def _each(self, shares: numpy.ndarray) -> numpy.ndarray:
        return numpy.array([numpy.interp(s, self.grid, r) for s, r in zip(shares, self.roots, strict=True)])

    def total(self, shares: numpy.ndarray) -> float:
        """The sum of squares."""
        return float((self._each(shares) ** 2).sum())

    def slope(self, shares: numpy.ndarray) -> numpy.ndarray:
        """Its gradient."""
        h = 1e-4
        up, down = numpy.clip(shares + h, 0, 1), numpy.clip(shares - h, 0, 1)
        return (self._each(up) ** 2 - self._each(down) ** 2) / (up - down)
