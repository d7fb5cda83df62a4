"""The contract of a spectrum, as tests."""

from __future__ import annotations

import math

import torch

from equidial.filters import Spectrum
from equidial.testing._suite import Conformance


class SpectrumConformance(Conformance):
    """What every :class:`equidial.filters.Spectrum` keeps: whole clusters, and the components of a weight."""

    def make(self) -> Spectrum:
        """The spectrum under test."""
        raise NotImplementedError("a subclass gives the spectrum")

    def weight(self, copies: tuple[int, ...] = (2,), offset: int = 0) -> torch.Tensor:
        """A random weight of the space, float64."""
        return self.normal(*copies, *self.make().constraint.shape, offset=offset)

    def component(self, spectrum: Spectrum, weight: torch.Tensor, k: int) -> torch.Tensor:
        """``P_k W``."""
        chosen = torch.zeros(len(spectrum.sigma), dtype=torch.float64)
        chosen[k] = 1.0
        return spectrum.synthesise(spectrum.analyse(weight), chosen)

    def test_values_are_whole(self) -> None:
        """Distinct singular values, ascending, not negative, with multiplicities that fill the space."""
        spectrum = self.make()
        sigma = spectrum.sigma
        assert bool((sigma >= 0).all()), f"negative singular values {sigma.tolist()}"
        assert bool((sigma.diff() > 0).all()), f"singular values not ascending: {sigma.tolist()}"
        assert len(spectrum.multiplicity) == len(sigma), "one multiplicity per singular value"
        assert min(spectrum.multiplicity) > 0, f"multiplicities {spectrum.multiplicity}, expected positive ones"
        total = sum(spectrum.multiplicity)
        assert total == spectrum.constraint.dim, f"multiplicities sum to {total}, not {spectrum.constraint.dim}"
        assert spectrum.values().shape == (total,), f"{len(spectrum.values())} values with multiplicity"
        assert spectrum.smallest_sigma() == float(sigma[0]), "the smallest singular value"

    def test_components_are_projections(self) -> None:
        """They sum to the weight, are orthogonal to one another, and lie in their own cluster."""
        spectrum = self.make()
        weight = self.weight()
        everything = spectrum.synthesise(spectrum.analyse(weight), torch.ones(len(spectrum.sigma), dtype=torch.float64))
        self.assert_close(everything, weight, "the components sum to the weight")
        parts = [self.component(spectrum, weight, k) for k in range(len(spectrum.sigma))]
        size = float(weight.square().sum())
        for k, part in enumerate(parts):
            self.assert_close(self.component(spectrum, part, k), part, f"P_{k} twice")
            for other in parts[:k]:
                inner = abs(float((part * other).sum()))
                assert inner <= self.tolerance * size, f"components are not orthogonal: {inner:.3e}"

    def test_components_are_linear(self) -> None:
        """``P_k (a V + W) = a P_k V + P_k W``."""
        spectrum = self.make()
        v, w = self.weight(), self.weight(offset=1)
        for k in range(len(spectrum.sigma)):
            expected = 3 * self.component(spectrum, v, k) + self.component(spectrum, w, k)
            self.assert_close(self.component(spectrum, 3 * v + w, k), expected, f"P_{k} is linear")

    def test_energies(self) -> None:
        """``||P_k W||^2`` of each component."""
        spectrum = self.make()
        weight = self.weight()
        energies = spectrum.energies(spectrum.analyse(weight))
        parts = [self.component(spectrum, weight, k).square().sum() for k in range(len(spectrum.sigma))]
        self.assert_close(energies, torch.stack(parts), "energies", self.tolerance * float(weight.square().sum()))

    def test_singular_values(self) -> None:
        """``||L P_k W|| = sigma_k ||P_k W||``, and for the whole weight the root of the sum of squares."""
        spectrum = self.make()
        weight = self.weight()
        scale = spectrum.constraint.scale * float(weight.norm())
        total = 0.0
        for k, sigma in enumerate(spectrum.sigma.tolist()):
            part = self.component(spectrum, weight, k)
            expected = sigma * float(part.norm())
            got = spectrum.defect_norm(part)
            error = abs(got - expected)
            assert error <= 1e-9 * max(scale, 1.0), f"||L P_{k} W|| = {got}, expected {expected} (sigma = {sigma})"
            total += expected**2
        whole = spectrum.defect_norm(weight)
        assert math.isclose(whole, math.sqrt(total), rel_tol=1e-9, abs_tol=1e-9), f"||L W|| = {whole}, not {total**0.5}"

    def test_components_are_stable(self) -> None:
        """``P_k (g . W) = g . P_k W`` for stable groups (theory 1)."""
        spectrum = self.make()
        constraint = spectrum.constraint
        if not constraint.group.is_stable or not constraint.is_orthogonal:
            return
        weight = self.weight()
        for g in constraint.group.sample(3, self.generator()):
            moved = constraint.from_matrices(constraint.transform(g, constraint.as_matrices(weight)))
            for k in range(len(spectrum.sigma)):
                part = constraint.as_matrices(self.component(spectrum, weight, k))
                expected = constraint.from_matrices(constraint.transform(g, part))
                self.assert_close(self.component(spectrum, moved, k), expected, f"{g} parts the cluster {k}")
