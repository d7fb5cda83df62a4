"""The contract of a filter, as tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from equidial.errors import EquidialError
from equidial.filters import Filter
from equidial.testing._suite import Conformance, refuses


class FilterConformance(Conformance):
    """What every :class:`equidial.filters.Filter` keeps, along its dial.

    ``dials``: settings from the exactly symmetric end to the untouched one, in this order; ``make`` receives each as
    keywords. ``exact``: tolerance of the symmetric end and of group stability (raise it for iterative methods alone).
    """

    dials: Sequence[Mapping[str, float]] = (
        *({"softness": 0.0}, {"softness": 0.2}, {"softness": 0.45}),
        *({"softness": 0.7}, {"softness": 0.95}, {"softness": 1.0}),
    )
    exact: float = 1e-10

    def make(self, **dial: Any) -> Filter:
        """The filter under test at this dial, e.g. ``invariant_filter(rep, response="hard", **dial)``."""
        raise NotImplementedError("a subclass gives the filter")

    def weight(self, copies: tuple[int, ...] = (2,), offset: int = 0) -> torch.Tensor:
        """A random weight of the space, float64."""
        return self.normal(*copies, *self.make(**self.dials[0]).constraint.shape, offset=offset)

    def path(self, weight: torch.Tensor) -> list[Filter]:
        """The filters along the dial, their settings fixed to what they mean for ``weight``."""
        return [self.make(**dial).at(weight) for dial in self.dials]

    def test_linear_and_self_adjoint(self) -> None:
        """Subspace responses: ``F(a V + W) = a F(V) + F(W)`` and ``<F(V), W> = <V, F(W)>``."""
        v, w = self.weight(), self.weight(offset=1)
        for f in self.path(v):
            if f.response == "nearest":
                continue
            self.assert_close(f(2.5 * v + w), 2.5 * f(v) + f(w), f"{f.dial}: linear", self.exact)
            left, right = float((f(v) * w).sum()), float((v * f(w)).sum())
            assert abs(left - right) <= self.exact * v.numel(), f"{f.dial}: <F V, W> = {left}, <V, F W> = {right}"

    def test_projection(self) -> None:
        """``hard`` and ``nearest``: filtering twice changes nothing more."""
        weight = self.weight()
        for f in self.path(weight):
            if f.response in ("hard", "nearest"):
                once = f(weight)
                self.assert_close(f(once), once, f"{f.dial}: F(F(W)) = F(W)", 10 * self.exact)

    def test_ends_of_the_dial(self) -> None:
        """First dial: no defect but rounding. Last: the weight bit for bit, in every dtype."""
        weight = self.weight()
        first, last = self.make(**self.dials[0]), self.make(**self.dials[-1])
        symmetric = first(weight)
        left = first.constraint.defect_norm(symmetric) / float(weight.norm())
        assert left <= self.exact * max(1.0, first.constraint.scale), f"{first.dial}: a defect of {left:.3e} is left"
        matrices = first.constraint.as_matrices(symmetric)
        for g in first.constraint.group.sample(self.samples, self.generator()):
            moved = first.constraint.difference(g, matrices)
            self.assert_close(moved, torch.zeros_like(moved), f"{first.dial}: {g} moves the result", 100 * self.exact)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            given = weight.to(dtype)
            assert torch.equal(last(given), given), f"{last.dial}: a {dtype} weight is not returned bit for bit"

    def test_the_dial_is_monotone(self) -> None:
        """Defect ``||L F(W)||`` rises and distance ``||F(W) - W||`` falls; something moves unless all is symmetric."""
        weight = self.weight()
        path = self.path(weight)
        results = [f(weight) for f in path]
        defects = [f.defect(w) * float(w.norm()) for f, w in zip(path, results, strict=True)]
        distances = [float((w - weight).norm()) for w in results]
        slack = 10 * self.exact * float(weight.norm()) * max(1.0, path[0].constraint.scale)
        assert all(b >= a - slack for a, b in pairwise(defects)), f"the defect falls along the dial: {defects}"
        assert all(b <= a + slack for a, b in pairwise(distances)), f"the distance rises along the dial: {distances}"
        if defects[-1] > slack:
            assert distances[0] > 0, "the symmetric end leaves a weight with a defect as it is"

    def test_deterministic(self) -> None:
        """The same weight, the same result, bit for bit; the weight itself is left alone."""
        weight = self.weight()
        before = weight.clone()
        for dial in self.dials:
            first, again = self.make(**dial)(weight), self.make(**dial)(weight)
            assert torch.equal(first, again), f"{dial}: two calls differ by {float((first - again).abs().max()):.2e}"
            assert torch.equal(weight, before), f"{dial}: the filter writes to its argument"

    def test_stable_under_the_group(self) -> None:
        """``F(g . W) = g . F(W)`` for stable groups that act orthogonally (theory 1)."""
        weight = self.weight()
        constraint = self.make(**self.dials[0]).constraint
        if not constraint.group.is_stable or not constraint.is_orthogonal:
            return
        for f in self.path(weight):
            result = f(weight)
            for g in constraint.group.sample(3, self.generator()):
                moved = constraint.from_matrices(constraint.transform(g, constraint.as_matrices(weight)))
                expected = constraint.from_matrices(constraint.transform(g, constraint.as_matrices(result)))
                self.assert_close(f(moved), expected, f"{f.dial}: F(g W) = g F(W) for {g}", self.exact)

    def test_bounds_hold(self) -> None:
        """``bound(|g|)``, a priori and of the result, is at least the error measured at ``g``."""
        weight = self.weight()
        for f in self.path(weight):
            result = f(weight)
            norm = float(result.norm())
            if norm <= 1e-9 * float(weight.norm()):
                continue
            for g in f.constraint.group.sample(self.samples, self.generator()):
                measured = float(f.constraint.difference(g, f.constraint.as_matrices(result)).norm()) / norm
                for name, told in (("a priori", None), ("of the result", result)):
                    try:
                        bound = f.bound(g.distance(), told)
                    except EquidialError:
                        continue  # no bound without a weight, or none for this group: said, not wrong
                    slack = 10 * self.exact * max(1.0, bound)
                    assert measured <= bound + slack, f"{f.dial}: {g} moves by {measured}, bound {name} {bound}"

    def test_gradients(self) -> None:
        """Derivatives in the weight agree with finite differences (float64, ``torch.autograd.gradcheck``)."""
        shape = self.make(**self.dials[0]).constraint.shape
        weight = self.weight((2,) if 2 * math.prod(shape) <= 40 else ()).requires_grad_()
        if weight.numel() > 128:
            return
        for f in (self.path(weight)[i] for i in (0, len(self.dials) // 2, -1)):
            if f.response == "nearest" and not f.is_nearest(weight):
                continue  # at the cap of the amplification there is no derivative
            assert torch.autograd.gradcheck(f, (weight,), atol=1e-6, rtol=1e-4), f"{f.dial}: a wrong gradient"

    def test_dtype_and_shape(self) -> None:
        """Kept, and close to the float64 result; leading axes are copies; wrong shapes and integers are refused."""
        weight = self.weight((2, 3))
        f = self.path(weight)[len(self.dials) // 2]
        exact = f(weight)
        for dtype, units in ((torch.float64, 64), (torch.float32, 64), (torch.bfloat16, 8)):
            found = f(weight.to(dtype))
            assert found.dtype == dtype, f"{dtype} became {found.dtype}"
            assert found.shape == weight.shape, f"shape {tuple(found.shape)}, expected {tuple(weight.shape)}"
            limit = units * torch.finfo(dtype).eps * max(1.0, f.constraint.scale) + self.exact
            error = float((found.double() - exact).norm() / weight.norm())
            assert error <= limit, f"{dtype}: off by {error:.2e}, expected {limit:.1e}"
        refuses(lambda: f(torch.zeros(*weight.shape[:-1], weight.shape[-1] + 1)), "a weight of another size")
        refuses(lambda: f(torch.zeros(weight.shape, dtype=torch.int64)), "a weight of integers")
