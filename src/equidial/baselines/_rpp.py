"""Residual pathway priors (Finzi, Benton and Wilson, NeurIPS 2021): an equivariant weight plus an unlikely free one.

Written from the mathematics. Each constrained tensor is ``W = P(A) + B``, with ``P`` the orthogonal projection on the
exactly symmetric tensors and Gaussian priors ``A ~ N(0, sigma_a^2)``, ``B ~ N(0, sigma_b^2)``, ``sigma_b`` the smaller
one. The maximum a posteriori of ``n`` examples minimises

    mean loss + (1 / n) sum over tensors of ||A||^2 / (2 sigma_a^2) + ||B||^2 / (2 sigma_b^2),

two weight decays. ``B = 0`` is exactly equivariant; nothing bounds how far training takes it from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters import SoftEquivarianceConfig, resolve_targets
from equidial.adapters._layouts import Layout
from equidial.adapters._life import check_life, check_unwrapped
from equidial.adapters._parametrization import attach, detach
from equidial.errors import ArgumentError, StateError, explain
from equidial.filters import Dial, MatrixFreeSpectrum, Spectrum, apply_filter, build_spectrum

Model = TypeVar("Model", bound=nn.Module)


class ResidualPathway(nn.Module):
    """``A -> P(A) + B`` for one tensor: ``A`` is the tensor's own parameter, ``B`` the parameter :attr:`residual`.

    Args:
        name: full name of the tensor.
        layout: where its weights lie.
        spectrum: of their space; shared by all tensors of one space.
        residual: ``B`` at the start, in the shape of the tensor.
        variances: ``(sigma_a^2, sigma_b^2)``.
        order: names of the parameters of the module that owns the tensor, as they stood before.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        spectrum: Spectrum | MatrixFreeSpectrum,
        residual: torch.Tensor,
        variances: tuple[float, float],
        order: list[str],
    ):
        super().__init__()
        self.name, self.layout, self.spectrum = name, layout, spectrum
        self.residual = nn.Parameter(residual)
        self.variances, self.order = variances, order

    def projected(self, original: torch.Tensor) -> torch.Tensor:
        """``P(A)``, in the shape and dtype of ``A``; cost of one filter."""
        zero = torch.zeros((), device=original.device)
        weights = apply_filter(self.spectrum, "hard", self.layout.weights(original), zero, zero)
        return self.layout.tensor(weights, original)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """``P(A) + B``."""
        return self.projected(original) + self.residual

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """The identity: assigning a tensor sets ``A``."""
        return value

    def penalty(self, original: torch.Tensor) -> torch.Tensor:
        """``||A||^2 / (2 sigma_a^2) + ||B||^2 / (2 sigma_b^2)``, a scalar."""
        on_a, on_b = self.variances
        return original.square().sum() / (2 * on_a) + self.residual.square().sum() / (2 * on_b)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.name}, variances={self.variances}"


def residual_pathway_prior(
    model: Model,
    config: SoftEquivarianceConfig,
    equivariant_variance: float = 1.0,
    residual_variance: float = 1e-2,
) -> Model:
    """Read every tensor that ``soften`` would constrain as ``P(A) + B``, in place, and return the same object.

    ``A`` starts as the tensor found and stays the same Parameter object, ``B`` starts at 0: the model is exactly
    symmetric at first, as at softness 0. Make optimizers afterwards; add :func:`rpp_penalty` over the number of
    examples to the mean loss; :func:`fold_rpp` makes plain weights of it.

    Args:
        model: plain, as for ``soften``.
        config: which tensors, under which group and representations; its softness must be 0.
        equivariant_variance: ``sigma_a^2 > 0``; infinity: no decay.
        residual_variance: ``sigma_b^2 > 0``; infinity: no decay.

    Raises:
        ArgumentError: another dial than softness 0, a variance that is not positive.
        others: as ``soften``; the model is then as it was.

    Cost: one filter per tensor and forward pass, twice the parameters. Source: section 4 of the paper.
    """
    if config.dial != Dial.of(softness=0.0) or config.softness_pattern:
        raise ArgumentError(
            explain(
                "a configuration with softness=0 and no softness_pattern: P is the exact projection",
                f"{config.dial}{' and a softness_pattern' if config.softness_pattern else ''}",
                "set softness=0; what softness is to a soft model, residual_variance is here",
            )
        )
    for name, value in (("equivariant_variance", equivariant_variance), ("residual_variance", residual_variance)):
        if not isinstance(value, int | float) or math.isnan(value) or value <= 0:
            raise ArgumentError(explain(f"{name} > 0", repr(value), "infinity stands for no decay"))
    check_life(model)
    targets = resolve_targets(model, config)
    spectra = {target.constraint: build_spectrum(target.constraint) for target in targets}
    orders = {target.module_name: list(model.get_submodule(target.module_name)._parameters) for target in targets}
    variances = float(equivariant_variance), float(residual_variance)
    done: list[tuple[nn.Module, str, list[str]]] = []
    try:
        for target in targets:
            module, order = model.get_submodule(target.module_name), orders[target.module_name]
            residual = torch.zeros_like(getattr(module, target.tensor_name).detach())
            spectrum = spectra[target.constraint]
            attach(
                module,
                target.tensor_name,
                ResidualPathway(target.name, target.layout, spectrum, residual, variances, order),
            )
            done.append((module, target.tensor_name, order))
    except Exception:
        for module, name, order in reversed(done):
            detach(module, name, order)
        raise
    return model


def rpp_penalty(model: nn.Module) -> torch.Tensor:
    """Minus the logarithm of both priors, up to a constant: a scalar.

    The sum over tensors of ``||A||^2 / (2 sigma_a^2) + ||B||^2 / (2 sigma_b^2)``. Divide it by the number of training
    examples before adding it to a mean loss. Its gradient is that of two weight decays, ``A / sigma_a^2`` and
    ``B / sigma_b^2``. Raises ``StateError`` for a model without such tensors.
    """
    found = [pathway.penalty(original) for _, _, pathway, original in _pathways(model, "rpp_penalty")]
    return torch.stack(found).sum()


def fold_rpp(model: Model) -> Model:
    """Make plain weights ``P(A) + B``, in place: same class, same keys in the same order, same Parameter objects.

    Computed in float64, then rounded to each tensor's own dtype. Raises ``StateError`` for a model without such
    tensors, and for one wrapped for parallel training.
    """
    check_unwrapped(model, "fold_rpp")
    with torch.no_grad():
        for module, name, pathway, original in list(_pathways(model, "fold_rpp")):
            value = pathway.projected(original.double()) + pathway.residual.double()
            detach(module, name, pathway.order).copy_(value)
    return model


def _pathways(model: nn.Module, verb: str) -> Iterator[tuple[nn.Module, str, ResidualPathway, nn.Parameter]]:
    none = True
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        chains: Any = module.parametrizations
        for name, chain in chains.items():
            for link in chain:
                if isinstance(link, ResidualPathway):
                    none = False
                    yield module, name, link, chain.original
    if none:
        raise StateError(
            explain(f"a model of residual_pathway_prior for {verb}", type(model).__name__, "pass what it returned")
        )
