"""Filters: maps of weights to soft-equivariant weights, and what is guaranteed of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from equidial.errors import ArgumentError, EquidialError, explain
from equidial.filters._choice import build_spectrum
from equidial.filters._constraint import Constraint
from equidial.filters._dial import Dial
from equidial.filters._growth import growth_factor, trivial_bound
from equidial.filters._matrix_free import TOLERANCE, MatrixFreeSpectrum
from equidial.filters._nearest import GAIN_CAP, nearest_factors
from equidial.filters._products import runs_on_cpu
from equidial.filters._responses import check_response, subspace_factors
from equidial.filters._setting import Setting, nearest_setting, relative_defect, resolve_radius, resolve_setting
from equidial.filters._spectrum import Spectrum
from equidial.representations import Representation


@dataclass(frozen=True, eq=False)
class Filter:
    """A map ``W -> F(W)`` on weights of one constraint space; see :func:`invariant_filter` for the arguments.

    Linear and self-adjoint for the subspace responses, the nearest-point projection for ``nearest``. Pure: the
    same weight gives the same result, and differentiable in the weight.
    """

    decomposition: Spectrum | MatrixFreeSpectrum
    response: str
    dial: Dial
    setting: Setting | None

    @property
    def constraint(self) -> Constraint:
        """The space and its constraint map."""
        return self.decomposition.constraint

    @property
    def method(self) -> str:
        """How it is computed: ``closed_form``, ``dense``, ``isotypic``, ``blocks``, ``casimir``, or matrix-free."""
        if isinstance(self.decomposition, MatrixFreeSpectrum):
            threshold = self.setting.threshold if self.setting is not None else math.inf
            return self.decomposition.method_for(self.response, threshold)
        return self.decomposition.method

    @property
    def spectrum(self) -> torch.Tensor:
        """All singular values of the constraint with multiplicity, ascending, float64; raises where unknown."""
        return self._full("the spectrum").values()

    @property
    def threshold(self) -> float:
        """``b`` of a subspace response, ``beta`` of ``nearest``.

        Raises ``EquidialError`` for ``nearest`` at a softness, where ``beta`` is a share of each weight's defect:
        ask ``f.at(weight).threshold``.
        """
        return self._fixed("threshold").threshold

    @property
    def effective_threshold(self) -> float:
        """The largest singular value with a non-zero response: ``b_eff <= b`` for ``hard``."""
        if isinstance(self.decomposition, MatrixFreeSpectrum):
            threshold = self._fixed("threshold").threshold
            if self.method != "subspace":
                return threshold
            kept = self.decomposition.basis(threshold)[1]
            return float(kept.max()) if len(kept) else 0.0
        kept = self.decomposition.sigma[self._support()]
        return float(kept.max()) if len(kept) else 0.0

    @property
    def rank(self) -> int:
        """Number of directions (of one weight) with a non-zero response; raises where multiplicities are unknown."""
        if isinstance(self.decomposition, MatrixFreeSpectrum) and self.method == "subspace":
            return self.decomposition.basis(self._fixed("rank").threshold)[0].shape[1]
        spectrum = self._full("the rank")
        return sum(m for m, kept in zip(spectrum.multiplicity, self._support().tolist(), strict=True) if kept)

    @property
    def is_strict(self) -> bool:
        """Whether only exactly symmetric weights pass."""
        setting = self._fixed("support")
        if math.isinf(setting.threshold) or setting.budget > 0:
            return False
        if isinstance(self.decomposition, MatrixFreeSpectrum):
            return setting.threshold == 0
        return bool((self.decomposition.sigma[self._support()] == 0).all())

    def snap(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` with one value on each orbit, bit for bit, where the filter is strict and elements permute.

        Rounding to a storage type moves a weight off the symmetric set; gathering one representative of each orbit
        brings it back exactly, in any dtype. Any other filter returns ``weight`` itself.
        """
        reps = (self.constraint.rep_in, self.constraint.rep_out)
        if not self.is_strict or not all(rep.is_permutation for rep in reps) or not self.constraint.group.is_finite:
            return weight
        first = torch.arange(self.constraint.dim, dtype=torch.float64).reshape(1, reps[1].dim, reps[0].dim)
        settled = False
        while not settled:  # the smallest index of an orbit spreads along the generators; a cycle brings it round
            before = first
            for s in self.constraint.group.discrete_generators():
                first = torch.minimum(first, self.constraint.transform(s.element, first))
            settled = torch.equal(first, before)
        gather = first.flatten().long().to(weight.device)
        trailing = weight.ndim - len(self.constraint.shape)
        return weight.flatten(trailing)[..., gather].reshape(weight.shape)

    def at(self, weight: torch.Tensor) -> Filter:
        """This filter with the setting that its dial means for ``weight``, fixed from now on."""
        if self.setting is not None:
            return self
        return replace(self, setting=nearest_setting(self.decomposition, self.dial, weight))

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """``F(weight)`` in the shape and dtype of ``weight``; computed in float32 at least, autocast off.

        Raises ``ArgumentError`` for a weight of another space.
        """
        self.constraint.check(weight)
        setting = self.at(weight).setting
        assert setting is not None
        device = weight.device
        return apply_filter(
            self.decomposition,
            self.response,
            weight,
            torch.tensor(setting.threshold, dtype=torch.float64, device=device),
            torch.tensor(setting.budget, dtype=torch.float64, device=device),
        )

    def is_nearest(self, weight: torch.Tensor) -> bool:
        """Whether ``F(weight)`` is the nearest weight with its bound (``nearest`` outside its hard case)."""
        if self.response != "nearest":
            return False
        self.constraint.check(weight)
        found = self.at(weight).setting
        assert found is not None
        if math.isinf(found.threshold):
            return True
        if found.threshold == 0:
            return True
        work = weight.detach().to("cpu", torch.float64)
        if isinstance(self.decomposition, MatrixFreeSpectrum):
            multiplier, gain = self.decomposition.multiplier(work, found.threshold, found.budget)
        else:
            energy = self.decomposition.energies(self.decomposition.analyse(work))
            beta = torch.tensor(found.threshold, dtype=torch.float64)
            budget = torch.tensor(found.budget, dtype=torch.float64)
            factors, root = nearest_factors(self.decomposition.sigma, energy, beta, budget)
            multiplier, gain = float(root), float(factors.max())
        # the root must lie before the pole of the smallest sigma of the whole space, asked for only where it matters
        before = multiplier * found.threshold**2 < 1
        before = before or multiplier * (found.threshold**2 - self.decomposition.smallest_sigma() ** 2) < 1
        return bool(before and gain < GAIN_CAP)

    def defect(self, weight: torch.Tensor) -> float:
        """``||L W||_F / ||W||_F`` of ``weight`` as it stands, float64; 0 for the zero weight."""
        return relative_defect(self.decomposition, weight)

    def bound(
        self,
        radius: float | None = None,
        weight: torch.Tensor | None = None,
        relative_to: Literal["result", "original"] = "result",
    ) -> float:
        """An upper bound of ``sup_g ||W rho_X(g) - rho_Y(g) W||_F / ||W||_F`` over elements within ``radius``.

        Without ``weight``: a priori, for every result ``W = F(V)`` of this filter, ``radius * b_eff`` (theory 4).
        With ``weight``: for that weight as it stands, ``radius * ||L W|| / ||W||``. Never more than 2. Actions that are
        not orthogonal: ``phi(radius)`` in place of ``radius``, and the trivial bound that goes with it. ``radius``
        defaults to the group's, or to that of its declared set if it is unbounded.

        ``relative_to="original"``: a priori as well, divided by ``||V||`` in place of ``||F(V)||``:
        ``radius * max_sigma sigma f(sigma)``, for ``exponential`` ``radius * b / e``, which has no bound relative to
        its result. In exact arithmetic; :func:`equidial.certify` adds rounding. Raises ``EquidialError`` where no bound
        exists without a weight, ``ArgumentError`` for another ``relative_to``.
        """
        if relative_to not in ("result", "original"):
            raise ArgumentError(explain("relative_to='result' or 'original'", repr(relative_to), "use one of them"))
        radius = self._radius(radius)
        factor, trivial = growth_factor(self.constraint, radius), trivial_bound(self.constraint, radius)
        if weight is not None:
            return min(factor * self.defect(weight), trivial)
        if relative_to == "original":
            return min(factor * self._largest_slope(), trivial)
        self._require_a_priori()
        threshold = self._fixed("bound").threshold
        if math.isinf(threshold):
            return trivial
        if self.response != "nearest":
            threshold = self.effective_threshold
        return min(factor * threshold, trivial)

    def _largest_slope(self) -> float:
        """``sup ||L F(V)|| / ||V||``: the largest ``sigma f(sigma)``, or ``beta`` for ``nearest``."""
        setting = self._fixed("bound")
        if math.isinf(setting.threshold):
            return math.inf
        if self.response == "exponential":
            return setting.threshold / math.e
        if self.response == "nearest" and setting.budget > 0:
            raise EquidialError(
                explain(
                    "a weight, because the space holds no invariants and the dial bounds the absolute error",
                    "no weight",
                    "pass weight=F(W)",
                )
            )
        if self.method == "chebyshev":
            # the series errs by its tolerance, at most, wherever sigma lies
            return setting.threshold + self.decomposition.constraint.scale * self._tolerance
        return setting.threshold if self.response == "nearest" else self.effective_threshold

    @property
    def _tolerance(self) -> float:
        return self.decomposition.tolerance if isinstance(self.decomposition, MatrixFreeSpectrum) else 0.0

    def _radius(self, radius: float | None) -> float:
        return resolve_radius(self.constraint, radius)

    def _require_a_priori(self) -> None:
        reason = None
        if self.response == "exponential" and not math.isinf(self._fixed("bound").threshold):
            reason = "response='exponential' has no bound relative to its result"
        elif self.response == "nearest" and self._fixed("bound").budget > 0:
            reason = "the space holds no invariants, so the dial bounds the absolute error"
        elif isinstance(self.decomposition, MatrixFreeSpectrum) and self.method == "chebyshev":
            reason = "a Chebyshev series is never exactly 0 beyond the threshold"
        if reason:
            raise EquidialError(explain("a weight, because " + reason, "no weight", "pass weight=F(W)"))

    def _fixed(self, what: str) -> Setting:
        if self.setting is None:
            raise EquidialError(
                explain(
                    f"a weight for the {what} of response='nearest' at {self.dial}, which is a share of its defect",
                    "no weight",
                    "use f.at(weight), or set threshold= instead of softness=",
                )
            )
        return self.setting

    def _support(self) -> torch.Tensor:
        threshold = self._fixed("support").threshold
        sigma = self._full("the support").sigma
        if math.isinf(threshold) or (self.response == "nearest" and threshold > 0):
            return torch.ones(len(sigma), dtype=torch.bool)
        response = "hard" if self.response == "nearest" else self.response
        return subspace_factors(response, sigma, torch.tensor(threshold, dtype=torch.float64)) > 0

    def _full(self, what: str) -> Spectrum:
        if isinstance(self.decomposition, MatrixFreeSpectrum):
            raise EquidialError(
                explain(
                    f"a filter that knows its multiplicities, for {what}",
                    f"method={self.method!r} on {self.constraint.name}",
                    "use response='hard' with a small threshold, or a space that a full method can treat",
                )
            )
        return self.decomposition


def apply_filter(
    spectrum: Spectrum | MatrixFreeSpectrum,
    response: str,
    weight: torch.Tensor,
    threshold: torch.Tensor,
    budget: torch.Tensor,
) -> torch.Tensor:
    """``F(weight)`` with the dial as tensors of one entry, so that turning it changes no code path.

    A threshold of infinity returns ``weight`` bit for bit.
    """
    work_dtype = torch.promote_types(weight.dtype, torch.float32)
    threshold, budget = threshold.reshape(()), budget.reshape(())
    with torch.autocast(weight.device.type, enabled=False):
        work = weight.to(work_dtype)
        if isinstance(spectrum, MatrixFreeSpectrum):
            if math.isinf(float(threshold)):
                return weight
            return spectrum.filtered(work, response, float(threshold), float(budget)).to(weight.dtype)
        energies, recombine = spectrum.split(work)
        sigma = spectrum.tensors(work)[0]
        free = torch.isinf(threshold)
        if response == "nearest":
            # beta must stay finite in the branch that torch.where throws away, or its gradient is NaN
            beta = torch.where(free, torch.ones_like(threshold), threshold)
            factors, root = nearest_factors(sigma, energies(), beta, budget)
            free = free | (root == 0)
            # the selection below costs as much as the products around it, also backwards; a trained dial needs it
            if runs_on_cpu(free) and not (threshold.requires_grad or budget.requires_grad):
                return weight if bool(free) else recombine(factors).to(weight.dtype)
        else:
            factors = subspace_factors(response, sigma, threshold)
        filtered = recombine(factors).to(weight.dtype)
        return torch.where(free, weight, filtered)


def _build(
    constraint: Constraint,
    response: str,
    dial: Dial,
    method: str | None,
    tolerance: float,
) -> Filter:
    check_response(response)
    spectrum = build_spectrum(constraint, method, tolerance)
    found = Filter(spectrum, response, dial, resolve_setting(spectrum, response, dial))
    _ = found.method  # raises where the method asked for does not go with the response
    return found


def invariant_filter(
    rep: Representation,
    *,
    softness: float | None = None,
    threshold: float | None = None,
    max_error: float | None = None,
    response: str = "nearest",
    method: str | None = None,
    tolerance: float = TOLERANCE,
) -> Filter:
    """The filter of invariant weights ``w`` (``y = w^T x``) on ``rep``; acts on the last axis, the rest are copies.

    Args:
        rep: the representation on the last axis, of size ``rep.dim``.
        softness: 0 exactly symmetric, 1 untouched. ``nearest``: ``beta`` is this share of the weight's own
            defect, measured at each call (``f.at(weight)`` fixes it). Subspace responses: the smallest ``b`` whose
            mean response over directions with ``sigma > 0`` is at least this.
        threshold: ``b`` of paper A on singular values of ``L``, or ``beta`` of ``nearest``, in units of 1 / length.
        max_error: the largest setting whose a priori bound over the whole group stays below this.
        response: ``nearest``, ``hard``, ``taper`` or ``exponential``.
        method: ``closed_form``, ``dense``, ``isotypic``, ``blocks``, ``casimir``; matrix-free ``chebyshev`` (taper),
            ``lanczos`` (exponential), ``subspace`` (hard), ``cg`` (nearest); or ``None`` for the cheapest exact one,
            matrix-free last.
        tolerance: of the matrix-free methods, relative to the weight.

    Raises:
        ArgumentError: not exactly one dial, a value out of range, an unknown response or method.
        BudgetError: a threshold or error that only the zero weight reaches; it names the smallest possible one.
        ToleranceError: a matrix-free method did not reach its tolerance.

    Cost: O(d^3) once, O(d^2) per weight and call; O(d) per group element for ``isotypic``, O(d log d) for shifts of
    pixels, O(d^2) once and O(d^1.5) per weight for rotations of more than 6400 pixels.
    Source: paper A, Claim 1 and section 3; theory 2 and 4.
    """
    return _build(Constraint.invariants(rep), response, Dial.of(softness, threshold, max_error), method, tolerance)


def equivariant_filter(
    rep_in: Representation,
    rep_out: Representation,
    *,
    softness: float | None = None,
    threshold: float | None = None,
    max_error: float | None = None,
    response: str = "nearest",
    method: str | None = None,
    tolerance: float = TOLERANCE,
) -> Filter:
    """The filter of equivariant weights ``W`` (``W rho_in(g) = rho_out(g) W``); acts on the last axes (out, in).

    Arguments, errors and sources as :func:`invariant_filter` (paper A, Claims 2 and 3). Cost: O(d^3 + d'^3)
    once, O(d d' (d + d')) per weight and call.
    """
    constraint = Constraint.equivariants(rep_in, rep_out)
    return _build(constraint, response, Dial.of(softness, threshold, max_error), method, tolerance)
