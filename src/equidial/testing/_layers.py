"""The contract of a layer with a continuous kernel and a group axis, as tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from equidial.groups import GroupElement
from equidial.nn import ContinuousConv, GroupSamples, group_defect
from equidial.testing._suite import Conformance, refuses


class LayerConformance(Conformance):
    """What every :class:`equidial.nn.ContinuousConv` with a group axis keeps: strict at 0, and a defect that is known.

    ``groups``: the samples that are tried. ``relaxed``: the ``omega'`` of relaxed layers; axes that a group lacks are
    left out. ``size``: side of the images. Use it for kernels (``kernel=YourFeatures``) and layers of your own.
    """

    groups: Sequence[str] = ("C4", "C8", "D4")
    relaxed: Mapping[str, float] = {"rotation": 0.7, "flip": 0.4}
    size: int = 5

    def make(self, group: str, omega_prime: Mapping[str, float]) -> ContinuousConv:
        """The layer under test: stride 1, ``padding_mode="circular"``, as many places as pixels."""
        raise NotImplementedError("a subclass gives the layer")

    def layer(self, group: str, relaxed: bool) -> ContinuousConv:
        """In float64 and evaluation, its weights drawn under the seed."""
        amounts = {axis: v for axis, v in self.relaxed.items() if axis != "flip" or group.startswith("D")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make(group, amounts if relaxed else {}).double().eval()

    def input(self, layer: ContinuousConv, offset: int = 0) -> torch.Tensor:
        """Random images, or features with a group axis where the layer reads them."""
        samples = () if layer.coordinates.lifts else (layer.coordinates.inputs,)
        return self.normal(2, layer.in_channels, *samples, self.size, self.size, offset=offset)

    def moved(self, layer: ContinuousConv, g: GroupElement, x: torch.Tensor) -> torch.Tensor:
        """``(g f)[.., u, p] = f[.., g^-1 u, g^-1 p]``; images have no ``u``."""
        if x.ndim == 5:
            x = x.index_select(2, _samples(layer).permutation(g))
        found = _samples(layer).group.quarter_turns_and_mirror(g)
        assert found is not None, f"{g} permutes no pixels"
        quarters, mirrored = found
        return torch.rot90(x.flip(-1) if mirrored else x, quarters, (-2, -1))

    def elements(self, layer: ContinuousConv) -> list[GroupElement]:
        """The sampled quarter turns and mirrors, which permute pixels, without the identity."""
        group = _samples(layer).group
        return [g for g in group.elements() if not g.is_identity and group.quarter_turns_and_mirror(g) is not None]

    def test_strict_layers_commute(self) -> None:
        """``f(g x) = g f(x)`` for every sampled element that permutes pixels, with and without axes at 0."""
        for group in self.groups:
            for relaxed in (False, True):
                layer = self.layer(group, relaxed)
                for axis in layer.omega_prime.axes:
                    layer.omega_prime.set(axis, 0.0)
                x = self.input(layer)
                with torch.no_grad():
                    y = layer(x)
                    for g in self.elements(layer):
                        self.assert_close(layer(self.moved(layer, g, x)), self.moved(layer, g, y), f"{group}: {g}")

    def test_zero_is_strict(self) -> None:
        """With ``omega' = 0`` the kernel is that without absolute coordinates, bit for bit, and the defect is 0."""
        for group in self.groups:
            layer = self.layer(group, True)
            for axis in layer.omega_prime.axes:
                layer.omega_prime.set(axis, 0.0)
            with torch.no_grad():
                soft, taps = layer.sampled_features()
                strict = layer.features(layer.coordinates.relative(taps, layer.weight)).expand_as(soft)
            off = float((soft - strict).abs().max())
            assert torch.equal(soft, strict), f"{group}: omega' = 0 differs from the strict kernel by {off:.3e}"
            found = group_defect(layer)
            assert found.bound == 0, f"{group}: omega' = 0 has a defect of {found.bound:.3e}"

    def test_the_defect_is_that_of_the_matrix(self) -> None:
        """``||K rho(g) - rho(g) K||_F / ||K||_F`` of the dense matrix, for relaxed and strict layers."""
        for group in self.groups:
            for relaxed in (False, True):
                layer = self.layer(group, relaxed)
                found = group_defect(layer, (self.size, self.size))
                values = dict(zip(found.elements, found.values, strict=True))
                units, norm = self._units(layer), float(self._linear(layer, self._units(layer)).norm())
                for g in self.elements(layer):
                    through = self._linear(layer, self.moved(layer, g, units))
                    behind = self.moved(layer, g, self._linear(layer, units))
                    dense = float((through - behind).norm()) / norm
                    error = abs(values[str(g)] - dense)
                    assert error <= 1e-9, f"{group}: defect under {g} is {dense}, the formula says {values[str(g)]}"

    def test_deterministic(self) -> None:
        """Evaluation gives the same bits every time, after training and after a copy of its state."""
        for group in self.groups:
            layer = self.layer(group, True)
            x = self.input(layer)
            with torch.no_grad():
                first = layer(x)
                layer.train()
                layer(x)
                layer.eval()
                again, other = layer(x), self.layer(group, True)
                other.load_state_dict(layer.state_dict())
                assert torch.equal(first, again), f"{group}: two evaluations differ"
                assert torch.equal(first, other(x)), f"{group}: a layer with the same state differs"

    def test_gradients_are_finite(self) -> None:
        """Of the input and of every parameter; some of them are not 0."""
        for group in self.groups:
            for relaxed in (False, True):
                layer = self.layer(group, relaxed)
                x = self.input(layer).requires_grad_()
                layer(x).square().sum().backward()
                given = [("the input", x), *layer.named_parameters()]
                for name, tensor in given:
                    fine = tensor.grad is None or bool(torch.isfinite(tensor.grad).all())
                    assert fine, f"{group}: the gradient of {name} is not finite"
                moved = [name for name, t in given if t.grad is not None and bool((t.grad != 0).any())]
                assert {"the input", "weight"} <= set(moved), f"{group}: only {moved} have a gradient"

    def test_linear(self) -> None:
        """``f(a x + y) - f(0) = a (f(x) - f(0)) + f(y) - f(0)``: what certificates rest on."""
        for group in self.groups:
            layer = self.layer(group, True)
            x, y = self.input(layer), self.input(layer, 1)
            expected = 2.5 * self._linear(layer, x) + self._linear(layer, y)
            self.assert_close(self._linear(layer, 2.5 * x + y), expected, f"{group}: linear")

    def test_wrong_inputs_are_refused(self) -> None:
        """Other channels, and another number of samples or none."""
        for group in self.groups:
            layer = self.layer(group, False)
            x = self.input(layer)
            refuses(lambda layer=layer, x=x: layer(torch.cat((x, x), 1)), f"{group}: twice the channels")
            wrong = x[:, :, None] if x.ndim == 4 else x[:, :, :-1]
            refuses(lambda layer=layer, wrong=wrong: layer(wrong), f"{group}: another group axis")

    def _units(self, layer: ContinuousConv) -> torch.Tensor:
        shape = self.input(layer).shape[1:]
        return torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)

    def _linear(self, layer: ContinuousConv, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return layer(x) - layer(torch.zeros_like(x[:1]))


def _samples(layer: ContinuousConv) -> GroupSamples:
    assert layer.samples is not None, f"a layer with a group axis, got {type(layer).__name__} without samples"
    return layer.samples
