"""The parametrization that keeps one tensor of a model soft-equivariant, and its life on a module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.utils import parametrize

from equidial.adapters._layouts import Layout
from equidial.adapters._shards import is_sharded, through_whole
from equidial.errors import ArgumentError, BudgetError, explain
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

DEAD_ZONE = 0.05
"""How far a learned dial may run past 0 and 1, where it counts as 0 and 1."""

OPEN = 1 + 1e-5
"""A learned dial at 1 opens its bound by this factor, so that a tensor as found passes bit for bit."""


@torch.library.custom_op("equidial::share", mutates_args=())
def clamped_share(x: torch.Tensor) -> torch.Tensor:
    """``clamp(x, 0, 1)``; the gradient passes, but not what pushes ``x`` out of ``[-DEAD_ZONE, 1 + DEAD_ZONE]``.

    The zone is there because loss and penalty send their gradients one by one: within it they add up, so that a dial
    rests where their sum says, and not where the first of them was stopped.
    """
    return x.clamp(0.0, 1.0)


@clamped_share.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _keep_share(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _share_gradient(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    (x,) = ctx.saved_tensors
    outwards = ((x < -DEAD_ZONE) & (grad > 0)) | ((x > 1 + DEAD_ZONE) & (grad < 0))
    return torch.where(outwards, torch.zeros_like(grad), grad)


clamped_share.register_autograd(_share_gradient, setup_context=_keep_share)


class SoftParametrization(nn.Module):
    """``original -> F(original)`` for one tensor; pure, differentiable, the same for the same dial.

    The dial lives in persistent float64 buffers, so turning it recompiles nothing and a state dict carries it:
    ``threshold`` (``b`` or ``beta``; infinity: untouched), ``budget`` (absolute, in spaces without invariants),
    ``softness`` (NaN when another dial set the threshold), ``reference`` (``||L W|| / ||W||`` found by ``soften``,
    or ``||L W||`` in spaces without invariants). The bases live in the spectrum, which all tensors of one space
    share and which no ``.to(dtype)`` casts.

    A learned dial is the parameter ``learned_softness`` ``[1]``, float32 whatever the model is cast to; the buffers
    then wait. Its share ``s = clamp(learned_softness, 0, 1)`` means ``beta = s * reference``, also at 1: no more
    asymmetric than ``soften`` found the tensor (see :func:`equidial.learn_dial`). While ``retraction`` is set an
    optimizer hook keeps the tensor itself in the set, and it is read as it stands.
    """

    threshold: torch.Tensor
    budget: torch.Tensor
    softness: torch.Tensor
    reference: torch.Tensor
    learned_softness: nn.Parameter | None

    def __init__(self, name: str, layout: Layout, spectrum: Decomposition, response: str, reference: float):
        super().__init__()
        self.name, self.layout, self.spectrum, self.response = name, layout, spectrum, response
        self.enabled = True
        self.retraction: object | None = None
        self.register_parameter("learned_softness", None)
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
        if not self.enabled or self.retraction is not None:
            return original
        if not torch.compiler.is_compiling() and is_sharded(original):
            return through_whole(self.filtered, original)
        return self.filtered(original)

    def filtered(self, original: torch.Tensor) -> torch.Tensor:
        """``F(original)`` where the dial stands, whatever the mode."""
        threshold, budget = self._stand()
        weights = apply_filter(self.spectrum, self.response, self.layout.weights(original), threshold, budget)
        return self.layout.tensor(weights, original)

    def settle(self, original: torch.Tensor) -> None:
        """In retract mode, replace ``original`` by ``F(original)`` in place, unless it is that up to rounding.

        The exception makes a resumed training start from the very bits that were saved.
        """
        if self.retraction is None:
            return
        with torch.no_grad():
            found = self.filtered(original)
            work = torch.promote_types(original.dtype, torch.float32)
            rounding = 4 * torch.finfo(original.dtype).eps + 32 * torch.finfo(work).eps
            moved, size = (found.to(work) - original.to(work)).norm(), original.to(work).norm()
            if not bool(moved <= rounding * size):
                original.copy_(found)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """The identity: assigning a tensor sets the unconstrained one."""
        return value

    def share(self) -> torch.Tensor:
        """The learned softness in [0, 1], a scalar that carries its gradient; only where the dial is learned."""
        assert self.learned_softness is not None
        return clamped_share(self.learned_softness).to(self.reference.dtype).sum()

    def _stand(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Threshold and budget as scalar tensors, with the gradient of a learned dial."""
        if self.learned_softness is None:
            return self.threshold, self.budget
        share = self.share()
        share = torch.where(share >= 1, share * OPEN, share) * self.reference
        none = torch.zeros_like(self.reference)
        return (share, none) if self._relative else (none, share)

    def learn(self, value: float | None = None) -> None:
        """Make the dial a parameter, at ``value`` or the softness where it stands.

        :func:`equidial.learn_dial` checks whether it can be one.
        """
        self._relative = self.has_invariants
        share = self._share_of(self.dial, self.setting) if value is None else value
        self.learned_softness = nn.Parameter(torch.full((1,), share, dtype=torch.float32, device=self.reference.device))

    def fix(self) -> None:
        """Make a learned dial a buffer again, where it stands."""
        state = self.dial_state()
        self.learned_softness = None
        for key in ("threshold", "budget", "softness"):
            getattr(self, key).fill_(state[key])

    def dial_state(self) -> dict[str, float]:
        """The dial in numbers, as files keep it: the buffers, and where it is learned ``learned``, the raw parameter.

        A reader that knows no learned dials finds a fixed one at the same place.
        """
        setting, found = self.setting, {"reference": float(self.reference)}
        found |= {"threshold": setting.threshold, "budget": setting.budget, "softness": float(self.softness)}
        if self.learned_softness is not None:
            share = self.dial.value
            found |= {"softness": share if share < 1 else math.nan, "learned": float(self.learned_softness.detach())}
        return found

    @property
    def setting(self) -> Setting:
        """Where the dial stands now."""
        with torch.no_grad():
            threshold, budget = self._stand()
        return Setting(float(threshold), float(budget))

    @property
    def has_invariants(self) -> bool:
        """Whether the space holds exactly symmetric weights other than 0."""
        return self.spectrum.smallest_sigma() == 0

    def setting_for(self, dial: Dial, radius: float | None) -> Setting:
        """The setting that ``dial`` means for this tensor; raises ``BudgetError`` for an impossible one.

        Raises ``ArgumentError`` for a threshold that a learned dial, a share of ``reference``, does not reach.
        """
        self._check_reach(dial)
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
        if self.learned_softness is not None:
            with torch.no_grad():
                self.learned_softness.fill_(self._share_of(dial, setting))

    def _share_of(self, dial: Dial, setting: Setting) -> float:
        """The softness of a learned dial at this setting; what float32 rounds up would break a bound."""
        if dial.kind == "softness":
            return dial.value
        share = min(setting.threshold / float(self.reference), 1.0)
        found = numpy.float32(share)
        return float(found if float(found) <= share else numpy.nextafter(found, numpy.float32(0)))

    def _check_reach(self, dial: Dial) -> None:
        if self.learned_softness is None or dial.kind == "softness":
            return
        if self.has_invariants and (dial.kind == "max_error" or dial.value <= float(self.reference)):
            return
        raise ArgumentError(
            explain(
                f"a softness for the learned dial of {self.name}, or a threshold of at most "
                f"{float(self.reference) if self.has_invariants else 0.0:.4g}, the defect that soften found",
                str(dial),
                "set its softness, or call fix_dial first",
            )
        )

    @property
    def dial(self) -> Dial:
        """The dial as the buffers tell it, also after a state dict replaced them; a learned one as its parameter."""
        if self.learned_softness is not None:
            return Dial("softness", min(max(float(self.learned_softness.detach()), 0.0), 1.0))
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
        mode = " (learned)" if self.learned_softness is not None else " (retracted)" if self.retraction else ""
        return f"{self.constraint.name}, response={self.response}, {self.dial}{mode}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SoftParametrization:
        # A cast of the model moves the dial to the new device and leaves its precision alone: in bf16 a
        # threshold would change by 1e-3.
        probe = torch.empty(0, device=self.threshold.device)
        moved = fn(probe)
        device = moved.device
        for key, buffer in self._buffers.items():
            assert buffer is not None
            if device != buffer.device:
                self._buffers[key] = buffer.to(device, torch.float32 if device.type == "mps" else buffer.dtype)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            self.prepare(moved.device, moved.dtype)
        parameter = self.learned_softness
        if parameter is not None:
            with torch.no_grad():
                parameter.data = parameter.data.to(device)
                if parameter.grad is not None:
                    parameter.grad.data = parameter.grad.data.to(device)
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


def attach(module: nn.Module, tensor_name: str, parametrization: nn.Module) -> None:
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
