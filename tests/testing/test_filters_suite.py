"""The filter and spectrum suites catch broken filters and spectra."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from equidial import invariant_filter
from equidial.filters import Constraint, Filter, Spectrum, build_spectrum
from equidial.groups import C, D, Group, Permutation
from equidial.representations import Pixels, Regular, Representation, Tensor
from equidial.testing import FilterConformance, SpectrumConformance, failures

GRID = Pixels(C(4), (3, 3))


def broken_by(change, response: str = "hard", rep: Representation = GRID) -> set[str]:
    """What the suite finds of the filter class that ``change`` makes."""

    class Suite(FilterConformance):
        def make(self, **dial: Any) -> Filter:
            found = invariant_filter(rep, response=response, **dial)
            return change(found.decomposition, found.response, found.dial, found.setting)

    return set(failures(Suite))


class Quadratic(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight) * (1 + weight.square().sum() * 1e-6)


class Oblique(Filter):
    """A projection on the same space along another one: idempotent, not self-adjoint."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        if self.dial.is_free or self.threshold > 0:
            return super().__call__(weight)
        middle = weight.new_zeros(weight.shape[-1])
        middle[4] = 1.0
        return super().__call__(weight + middle * weight[..., :1])


class Halved(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight) / 2


class Leaks(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight) + 1e-7 * weight


class Rounds(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight * 3) / 3


class Backwards(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        if 0 < self.dial.value < 1:
            return replace(self, setting=replace(self._fixed("b"), threshold=1 / (self.dial.value + 0.1)))._plain(
                weight
            )
        return super().__call__(weight)

    def _plain(self, weight: torch.Tensor) -> torch.Tensor:
        return Filter.__call__(self, weight)


class Noisy(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight + 1e-14 * torch.rand_like(weight))


class InPlace(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        found = super().__call__(weight)
        with torch.no_grad():
            weight.copy_(found)
        return found


class Parting(Filter):
    """Keeps one more direction of an eigenspace that it drops: pixel 0 is no union of irreducible spaces."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(weight.shape[-1], dtype=weight.dtype)
        kept[0] = 1.0
        found = super().__call__(weight)
        return found + 0.1 * (weight - found) * kept


class Promises(Filter):
    def bound(self, radius: float | None = None, weight: torch.Tensor | None = None) -> float:
        return super().bound(radius, weight) / 10


class Detached(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight) + 0.1 * (weight.detach() - weight)


class Doubles(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight.double())


class AnySize(Filter):
    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return super().__call__(weight) if weight.shape[-1] == self.constraint.dim else weight


BROKEN = [
    (Quadratic, "test_linear_and_self_adjoint"),
    (Oblique, "test_linear_and_self_adjoint"),
    (Halved, "test_projection"),
    (Leaks, "test_ends_of_the_dial"),
    (Rounds, "test_ends_of_the_dial"),
    (Backwards, "test_the_dial_is_monotone"),
    (Noisy, "test_deterministic"),
    (InPlace, "test_deterministic"),
    (Parting, "test_stable_under_the_group"),
    (Promises, "test_bounds_hold"),
    (Detached, "test_gradients"),
    (Doubles, "test_dtype_and_shape"),
    (AnySize, "test_dtype_and_shape"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN, ids=[f"{b.__name__}-{t}" for b, t in BROKEN])
def test_a_broken_filter_is_caught(broken: type[Filter], test: str) -> None:
    assert test in broken_by(broken)


@pytest.mark.parametrize("response", ["hard", "taper", "exponential", "nearest"])
def test_the_filters_of_the_library_pass(response: str) -> None:
    assert broken_by(Filter, response) == set()
    assert broken_by(Filter, response, Pixels(D(4), (3, 3)) if response == "hard" else Tensor(C(5), 2)) == set()


@dataclass(frozen=True, repr=False)
class OneMirror(D):
    """Claims to be stable with a set of letters that conjugation leaves: eigenspaces are parted."""

    def discrete_generators(self):
        return super().discrete_generators()[:2]


def test_a_constraint_that_parts_irreducible_spaces_is_caught() -> None:
    assert "test_stable_under_the_group" in broken_by(Filter, "hard", Regular(OneMirror(4)))


class Changed(Spectrum):
    """Delegates to ``inner``; each broken class changes one answer."""

    def __init__(self, inner: Spectrum, sigma: torch.Tensor | None = None, multiplicity: list[int] | None = None):
        super().__init__(inner.constraint, inner.sigma if sigma is None else sigma, multiplicity or inner.multiplicity)
        self.inner, self.method = inner, inner.method

    def analyse(self, weight):
        return self.inner.analyse(weight)

    def energies(self, coefficients):
        return self.inner.energies(coefficients)

    def synthesise(self, coefficients, factors):
        return self.inner.synthesise(coefficients, factors)

    def _build_tensors(self, device, dtype):
        return ()


class WrongEnergies(Changed):
    def energies(self, coefficients):
        return super().energies(coefficients).sqrt()


class Mixing(Changed):
    def synthesise(self, coefficients, factors):
        return self.inner.synthesise(coefficients, (factors + factors.roll(1)) / 2)


class Bent(Changed):
    def synthesise(self, coefficients, factors):
        found = self.inner.synthesise(coefficients, factors)
        return found + 1e-6 * found.abs()


def spectrum_of(rep: Representation) -> Spectrum:
    found = build_spectrum(Constraint.invariants(rep))
    assert isinstance(found, Spectrum)
    return found


def parted(group: Group) -> Spectrum:
    return spectrum_of(Regular(group))


INNER = spectrum_of(GRID)
BROKEN_SPECTRA = [
    (Changed(INNER, INNER.sigma.flip(0)), "test_values_are_whole"),
    (Changed(INNER, None, [1] * len(INNER.sigma)), "test_values_are_whole"),
    (Mixing(INNER), "test_components_are_projections"),
    (Bent(INNER), "test_components_are_linear"),
    (WrongEnergies(INNER), "test_energies"),
    (Changed(INNER, 1.01 * INNER.sigma), "test_singular_values"),
    (parted(OneMirror(4)), "test_components_are_stable"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN_SPECTRA, ids=[t for _, t in BROKEN_SPECTRA])
def test_a_broken_spectrum_is_caught(broken: Spectrum, test: str) -> None:
    class Suite(SpectrumConformance):
        def make(self) -> Spectrum:
            return broken

    assert test in failures(Suite)


@pytest.mark.parametrize("rep", [GRID, Regular(D(4)), Tensor(Permutation(3), 2)], ids=repr)
def test_the_spectra_of_the_library_pass(rep: Representation) -> None:
    class Suite(SpectrumConformance):
        def make(self) -> Spectrum:
            return Changed(spectrum_of(rep))

    assert failures(Suite) == {}


def test_every_check_has_failed_once() -> None:
    for suite, broken in ((FilterConformance, BROKEN), (SpectrumConformance, BROKEN_SPECTRA)):
        assert {t for _, t in broken} == {name for name in dir(suite) if name.startswith("test_")}
