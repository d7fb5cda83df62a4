"""Filters: maps of weights to soft-equivariant weights, and what is guaranteed of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from equidial.errors import ArgumentError, BudgetError, EquidialError, explain
from equidial.filters._constraint import Constraint
from equidial.filters._dial import Dial, threshold_of_budget, threshold_of_softness
from equidial.filters._nearest import GAIN_CAP, nearest_factors
from equidial.filters._responses import check_response, subspace_factors
from equidial.filters._spectrum import Method, Spectrum, build_spectrum
from equidial.representations import Representation

TRIVIAL_BOUND = 2.0
"""No orthogonal representation has a larger relative error."""


@dataclass(frozen=True)
class Setting:
    """Where a filter stands: the threshold ``b`` (or ``beta``), and for ``nearest`` the absolute budget.

    ``threshold = inf`` leaves the weight untouched. ``budget`` (on ``||L W'||_F``) is 0 except in spaces without
    invariants, where it takes the place of ``beta``.
    """

    threshold: float
    budget: float = 0.0


@dataclass(frozen=True, eq=False)
class Filter:
    """A map ``W -> F(W)`` on weights of one constraint space; see :func:`invariant_filter` for the arguments.

    Linear and self-adjoint for the subspace responses, the nearest-point projection for ``nearest``. Pure: the
    same weight gives the same result, and differentiable in the weight.
    """

    decomposition: Spectrum
    response: str
    dial: Dial
    setting: Setting | None

    @property
    def constraint(self) -> Constraint:
        """The space and its constraint map."""
        return self.decomposition.constraint

    @property
    def method(self) -> Method:
        """How components are computed: ``closed_form``, ``dense`` or ``isotypic``."""
        return self.decomposition.method

    @property
    def spectrum(self) -> torch.Tensor:
        """All singular values of the constraint with multiplicity, ascending, float64."""
        return self.decomposition.values()

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
        kept = self.decomposition.sigma[self._support()]
        return float(kept.max()) if len(kept) else 0.0

    @property
    def rank(self) -> int:
        """Number of directions (of one weight) with a non-zero response."""
        return sum(m for m, kept in zip(self.decomposition.multiplicity, self._support().tolist(), strict=True) if kept)

    @property
    def is_strict(self) -> bool:
        """Whether only exactly symmetric weights pass."""
        setting = self._fixed("support")
        if math.isinf(setting.threshold) or setting.budget > 0:
            return False
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
        energy = self._energies(weight)
        beta = torch.tensor(found.threshold, dtype=torch.float64)
        budget = torch.tensor(found.budget, dtype=torch.float64)
        factors, multiplier = nearest_factors(self.decomposition.sigma, energy, beta, budget)
        if found.threshold == 0:
            return True
        span = found.threshold**2 - float(self.decomposition.sigma[0]) ** 2
        # the root must lie before the pole of the smallest sigma of the whole space
        reaches = float(multiplier) * span < 1
        return bool(reaches and float(factors.max()) < GAIN_CAP)

    def defect(self, weight: torch.Tensor) -> float:
        """``||L W||_F / ||W||_F`` of ``weight`` as it stands, float64."""
        return self.constraint.defect(weight)

    def bound(self, radius: float | None = None, weight: torch.Tensor | None = None) -> float:
        """An upper bound of ``sup_g ||W rho_X(g) - rho_Y(g) W||_F / ||W||_F`` over elements within ``radius``.

        Without ``weight``: a priori, for every result ``W = F(V)`` of this filter, ``radius * b_eff`` (theory 4).
        With ``weight``: for that weight as it stands, ``radius * ||L W|| / ||W||``. Never more than 2. ``radius``
        defaults to the group's. Raises ``EquidialError`` where no bound exists without a weight.
        """
        radius = self._radius(radius)
        if weight is not None:
            return min(radius * self.constraint.defect(weight), TRIVIAL_BOUND)
        self._require_a_priori()
        threshold = self._fixed("bound").threshold
        if math.isinf(threshold):
            return TRIVIAL_BOUND
        if self.response != "nearest":
            threshold = self.effective_threshold
        return min(radius * threshold, TRIVIAL_BOUND)

    def _radius(self, radius: float | None) -> float:
        return resolve_radius(self.constraint, radius)

    def _require_a_priori(self) -> None:
        reason = None
        if self.response == "exponential" and not math.isinf(self._fixed("bound").threshold):
            reason = "response='exponential' has no bound relative to its result"
        elif self.response == "nearest" and self._fixed("bound").budget > 0:
            reason = "the space holds no invariants, so the dial bounds the absolute error"
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
        sigma = self.decomposition.sigma
        if math.isinf(threshold) or (self.response == "nearest" and threshold > 0):
            return torch.ones(len(sigma), dtype=torch.bool)
        response = "hard" if self.response == "nearest" else self.response
        return subspace_factors(response, sigma, torch.tensor(threshold, dtype=torch.float64)) > 0

    def _energies(self, weight: torch.Tensor) -> torch.Tensor:
        work = weight.detach().to("cpu", torch.float64)
        return self.decomposition.energies(self.decomposition.analyse(work))


def apply_filter(
    spectrum: Spectrum, response: str, weight: torch.Tensor, threshold: torch.Tensor, budget: torch.Tensor
) -> torch.Tensor:
    """``F(weight)`` with the dial as scalar tensors, so that turning it changes no code path.

    A threshold of infinity returns ``weight`` bit for bit.
    """
    work_dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        work = weight.to(work_dtype)
        coefficients = spectrum.analyse(work)
        sigma = spectrum.tensors(work)[0]
        free = torch.isinf(threshold)
        if response == "nearest":
            # beta must stay finite in the branch that torch.where throws away, or its gradient is NaN
            beta = torch.where(free, torch.ones_like(threshold), threshold)
            factors, root = nearest_factors(sigma, spectrum.energies(coefficients), beta, budget)
            free = free | (root == 0)
        else:
            factors = subspace_factors(response, sigma, threshold)
        filtered = spectrum.synthesise(coefficients, factors).to(weight.dtype)
        return torch.where(free, weight, filtered)


def resolve_radius(constraint: Constraint, radius: float | None) -> float:
    """The radius asked for, at most the group's own, which is the default. Raises where neither is finite."""
    own = constraint.group.radius
    if radius is None:
        radius = own
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not radius >= 0:
        raise ArgumentError(explain("a radius >= 0", repr(radius), "e.g. radius=math.pi / 6"))
    if math.isinf(min(radius, own)):
        raise ArgumentError(
            explain(f"a finite radius for {constraint.group.name}, which is not compact", "none", "pass radius=")
        )
    return float(min(radius, own))


def nearest_setting(spectrum: Spectrum, dial: Dial, weight: torch.Tensor) -> Setting:
    """The setting of ``nearest`` at a softness ``s``, measured on ``weight``: ``beta = s ||L W|| / ||W||``.

    In a space without invariants the relative cone is {0} below the smallest singular value; there the budget
    ``s ||L W||`` is absolute, so that the dial still runs from 0 to the untouched weight without a jump.
    """
    if dial.is_free:
        return Setting(math.inf)
    if float(spectrum.sigma[0]) > 0:
        return Setting(0.0, dial.value * spectrum.constraint.defect_norm(weight))
    return Setting(dial.value * spectrum.constraint.defect(weight))


def resolve_setting(spectrum: Spectrum, response: str, dial: Dial, radius: float | None = None) -> Setting | None:
    """The setting that a dial means for every weight, or ``None`` where it depends on the weight.

    Raises ``BudgetError`` for a threshold or an error that no non-zero weight of the space reaches.
    """
    if dial.is_free:
        return Setting(math.inf)
    if dial.kind == "softness":
        if response == "nearest":
            return None
        return Setting(threshold_of_softness(spectrum, response, dial.value))
    if dial.kind == "max_error":
        bound_radius = resolve_radius(spectrum.constraint, radius)
        return Setting(threshold_of_budget(spectrum, response, dial.value, bound_radius))
    smallest = float(spectrum.sigma[0])
    if response == "nearest" and dial.value < smallest:
        raise BudgetError(
            explain(
                f"threshold >= {smallest:.6g}, the smallest singular value of {spectrum.constraint.name}",
                f"threshold={dial.value:g}, below which only the zero weight lies",
                f"use threshold={smallest:.6g} or more, or softness, whose budget is absolute here",
            ),
            smallest,
        )
    return Setting(dial.value)


def _build(
    constraint: Constraint,
    response: str,
    dial: Dial,
    method: Method | None,
) -> Filter:
    check_response(response)
    spectrum = build_spectrum(constraint, method)
    return Filter(spectrum, response, dial, resolve_setting(spectrum, response, dial))


def invariant_filter(
    rep: Representation,
    *,
    softness: float | None = None,
    threshold: float | None = None,
    max_error: float | None = None,
    response: str = "nearest",
    method: Method | None = None,
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
        method: ``closed_form``, ``dense``, ``isotypic``, or ``None`` for the cheapest exact one.

    Raises:
        ArgumentError: not exactly one dial, a value out of range, an unknown response or method.
        BudgetError: a threshold or error that only the zero weight reaches; it names the smallest possible one.

    Cost: O(d^3) once, O(d^2) per weight and call; O(d) per group element for ``isotypic``, O(d log d) for shifts of
    pixels, O(d^2) once and O(d^1.5) per weight for rotations of more than 6400 pixels.
    Source: paper A, Claim 1 and section 3; theory 2 and 4.
    """
    return _build(Constraint.invariants(rep), response, Dial.of(softness, threshold, max_error), method)


def equivariant_filter(
    rep_in: Representation,
    rep_out: Representation,
    *,
    softness: float | None = None,
    threshold: float | None = None,
    max_error: float | None = None,
    response: str = "nearest",
    method: Method | None = None,
) -> Filter:
    """The filter of equivariant weights ``W`` (``W rho_in(g) = rho_out(g) W``); acts on the last axes (out, in).

    Arguments, errors and sources as :func:`invariant_filter` (paper A, Claims 2 and 3). Cost: O(d^3 + d'^3)
    once, O(d d' (d + d')) per weight and call.
    """
    constraint = Constraint.equivariants(rep_in, rep_out)
    return _build(constraint, response, Dial.of(softness, threshold, max_error), method)
