"""The parametrization that keeps one tensor of a model soft-equivariant, and its life on a module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters._layouts import Layout
from equidial.adapters._shards import is_sharded, through_whole
from equidial.errors import BudgetError
from equidial.filters import (
    Constraint,
    Dial,
    Filter,
    MatrixFreeSpectrum,
    Setting,
    Spectrum,
    apply_filter,
    resolve_setting,
    threshold_of_softness,
)

Decomposition = Spectrum | MatrixFreeSpectrum


class SoftParametrization(nn.Module):
    """``original -> F(original)`` for one tensor; pure, differentiable, the same for the same dial.

    The dial lives in persistent float64 buffers, so turning it recompiles nothing and a state dict carries it:
    ``threshold`` (``b`` or ``beta``; infinity: untouched), ``budget`` (absolute, in spaces without invariants),
    ``softness`` (NaN when another dial set the threshold), ``reference`` (``||L W|| / ||W||`` found by ``soften``,
    or ``||L W||`` in spaces without invariants). The bases live in the spectrum, which all tensors of one space
    share and which no ``.to(dtype)`` casts.
    """

    threshold: torch.Tensor
    budget: torch.Tensor
    softness: torch.Tensor
    reference: torch.Tensor

    def __init__(self, name: str, layout: Layout, spectrum: Decomposition, response: str, reference: float):
        super().__init__()
        self.name, self.layout, self.spectrum, self.response = name, layout, spectrum, response
        self.enabled = True
        for key, value in (
            ("threshold", math.inf),
            ("budget", 0.0),
            ("softness", math.nan),
            ("reference", reference),
        ):
            # one entry, not a scalar: dynamo reads numbers out of float64 scalars and compiles such a graph twice
            self.register_buffer(key, torch.tensor([value], dtype=torch.float64))

    @property
    def constraint(self) -> Constraint:
        """The space of the tensor's weights."""
        return self.spectrum.constraint

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The constrained tensor, in the shape and dtype of ``original``."""
        if not self.enabled:
            return original
        if not torch.compiler.is_compiling() and is_sharded(original):
            return through_whole(self.forward, original)
        weights = apply_filter(self.spectrum, self.response, self.layout.weights(original), self.threshold, self.budget)
        return self.layout.tensor(weights, original)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """The identity: assigning a tensor sets the unconstrained one."""
        return value

    @property
    def setting(self) -> Setting:
        """Where the dial stands now."""
        return Setting(float(self.threshold), float(self.budget))

    @property
    def has_invariants(self) -> bool:
        """Whether the space holds exactly symmetric weights other than 0."""
        return self.spectrum.smallest_sigma() == 0

    def setting_for(self, dial: Dial, radius: float | None) -> Setting:
        """The setting that ``dial`` means for this tensor; raises ``BudgetError`` for an impossible one."""
        try:
            found = resolve_setting(self.spectrum, self.response, dial, radius)
        except BudgetError as error:
            raise BudgetError(f"{self.name}: {error}", error.smallest) from error
        if found is not None:
            return found
        share = dial.value * float(self.reference)  # nearest at a softness below 1
        return Setting(share) if self.has_invariants else Setting(0.0, share)

    def turn(self, dial: Dial, setting: Setting) -> None:
        """Write a setting into the buffers, in place."""
        self.threshold.fill_(setting.threshold)
        self.budget.fill_(setting.budget)
        self.softness.fill_(dial.value if dial.kind == "softness" else math.nan)

    @property
    def dial(self) -> Dial:
        """The dial as the buffers tell it, also after a state dict replaced them."""
        threshold, softness = float(self.threshold), float(self.softness)
        if math.isinf(threshold):
            return Dial("softness", 1.0)
        if not math.isnan(softness) and self._agrees(softness):
            return Dial("softness", softness)
        return Dial("threshold", threshold)

    def _agrees(self, softness: float) -> bool:
        """Whether this softness stands for the threshold in the buffers (a foreign state dict may tear them apart)."""
        if self.response == "nearest":
            have = float(self.threshold) if self.has_invariants else float(self.budget)
            return math.isclose(have, softness * float(self.reference), rel_tol=1e-12)
        return math.isclose(
            float(self.threshold),
            threshold_of_softness(self.spectrum, self.response, softness),
            rel_tol=1e-12,
        )

    def prepare(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Bring the bases to a device in the precision that weights of ``dtype`` are filtered in.

        A graph compiled before that would convert them at every step, and be compiled again once they are there.
        """
        if isinstance(self.spectrum, Spectrum):
            self.spectrum.tensors(torch.empty(0, device=device, dtype=torch.promote_types(dtype, torch.float32)))

    def filter(self) -> Filter:
        """The filter as an object of its own."""
        return Filter(self.spectrum, self.response, self.dial, self.setting)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.constraint.name}, response={self.response}, {self.dial}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SoftParametrization:
        # A cast of the model moves the dial to the new device and leaves its precision alone: in bf16 a
        # threshold would change by 1e-3.
        for key, buffer in self._buffers.items():
            assert buffer is not None
            device = fn(torch.empty(0, device=buffer.device)).device
            if device != buffer.device:
                self._buffers[key] = buffer.to(device, torch.float32 if device.type == "mps" else buffer.dtype)
                self.prepare(device)
        return self


def constrained(model: nn.Module) -> Iterator[tuple[nn.Module, str, SoftParametrization]]:
    """``(owner, tensor name, parametrization)`` of every softened tensor, in module order."""
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        chains: Any = module.parametrizations
        for tensor_name, chain in chains.items():
            for link in chain:
                if isinstance(link, SoftParametrization):
                    yield module, tensor_name, link


def original_of(module: nn.Module, tensor_name: str) -> nn.Parameter:
    """The unconstrained parameter behind a softened tensor."""
    chains: Any = module.parametrizations
    return chains[tensor_name].original


def attach(module: nn.Module, tensor_name: str, parametrization: SoftParametrization) -> None:
    """Register, and make sure that deep copies of the module get a class object of their own.

    torch injects a class that copies share; removing a parametrization from a copy would then delete the
    property of the original.
    """
    parametrize.register_parametrization(module, tensor_name, parametrization, unsafe=True)
    injected: Any = type(module)
    if "__deepcopy__" in injected.__dict__:  # torch's own; a class that copies itself its own way is left to it
        injected.__deepcopy__ = _deepcopy_with_own_class


def _deepcopy_with_own_class(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    found = memo.get(id(self))
    if found is not None:
        return found
    replica = self.__new__(type(self))
    memo[id(self)] = replica
    replica.__dict__ = copy.deepcopy(self.__dict__, memo)
    give_own_class(replica)
    return replica


def give_own_class(module: nn.Module) -> None:
    """Replace the class of a parametrized module by a copy that no other module shares."""
    shared = type(module)
    metaclass: Any = type(shared)
    module.__class__ = metaclass(shared.__name__, shared.__bases__, dict(shared.__dict__))


def detach(module: nn.Module, tensor_name: str, order: list[str]) -> nn.Parameter:
    """Remove the parametrization: same class, same Parameter object, parameters in their old order."""
    give_own_class(module)
    parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
    known = module._parameters
    ordered = {key: known[key] for key in order if key in known} | dict(known)
    known.clear()
    known.update(ordered)
    parameter = known[tensor_name]
    assert parameter is not None
    return parameter
