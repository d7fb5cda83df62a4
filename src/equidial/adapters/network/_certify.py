"""certify_network: a bound of the equivariance error of a whole network, composed from its modules."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from equidial._version import __version__
from equidial.adapters._batches import logits_of
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._fold import fold_tensors
from equidial.adapters._matching import pattern_for
from equidial.adapters._state import find_root
from equidial.adapters.network._actions import Action, TrivialAction, VectorAction, grid_action, vector_action
from equidial.adapters.network._function_rules import FUNCTION_RULES
from equidial.adapters.network._group_rules import GROUP_RULES
from equidial.adapters.network._module_rules import MODULE_RULES
from equidial.adapters.network._search import ErrorSearch
from equidial.adapters.network._trace import trace
from equidial.adapters.network._walk import Abstention, Network, Rule, Step, Value, Walk, norms_of
from equidial.certificates import Bounds, NetworkCertificate, NetworkStep, certified_elements, gamma
from equidial.errors import ArgumentError, explain
from equidial.filters import Constraint, resolve_radius
from equidial.groups import Group, GroupElement
from equidial.nn import has_continuous_layers
from equidial.representations import Trivial

HYPOTHESES = (
    "evaluation mode, weights as stored, exact arithmetic",
    "LAPACK's eigenvalues of symmetric matrices within 16 k u of their norm",
)

CONTINUOUS = "continuous kernels evaluated in float64 to 1e-13 of their features, or 1e-14 per unit of coordinates"
"""A hypothesis more, for layers of :mod:`equidial.nn` with a continuous kernel."""


@dataclass(frozen=True)
class Question:
    """What is asked of a network: which inputs, which elements. Checked when it is made."""

    group: Group
    radius: float
    elements: tuple[GroupElement, ...] | None
    config: SoftEquivarianceConfig
    x: torch.Tensor
    ball: float | None
    rules: Mapping[Any, Rule]
    seed: int

    @property
    def described(self) -> str:
        """The elements, in words."""
        whole = self.radius >= self.group.radius
        return f"all of {self.group.name}" if whole else f"{self.group.name} within {self.radius:.6g}"


def certify_network(
    model: nn.Module,
    config: SoftEquivarianceConfig | None = None,
    *,
    inputs: torch.Tensor | None = None,
    ball: float | None = None,
    input_shape: tuple[int, ...] | None = None,
    radius: float | None = None,
    rules: Mapping[Any, Rule] | None = None,
    seed: int = 0,
) -> NetworkCertificate:
    """Bound ``||F(rho(g) x) - rho(g) F(x)||`` for all elements within ``radius``, by composition (theory 4).

        error <= sum_l (prod_{k>l} K_k) (e_l ||h_{l-1}|| + ||c_l - rho_l(g) c_l||)

    with ``e_l = ||W_l rho - rho W_l||_2`` of each linear map, per group element where the group is finite, ``K_l``
    Lipschitz constants, and ``||h_{l-1}||`` from a forward pass (``inputs``) or from ``K`` and the radius of the ball.

    Args:
        model: a softened model (what ``fold`` would store is certified), or a plain one with its ``config``.
        config: the group, and the representations of linear layers; for plain models only.
        inputs: a batch ``[B, ...]``: one bound per input, absolute and relative to ``||F(x)||``.
        ball: instead of ``inputs``, one bound for all ``||x|| <= ball`` of shape ``input_shape`` (without batch axis).
        radius: largest distance of the elements; default: the configured one, else the whole group.
        rules: rules of your own, ``{module type, function or method name: rule}``. A rule gets a ``Call`` and returns
            ``call.pointwise(constant)``, ``call.lipschitz(constant)`` or ``call.abstain(reason)``.
        seed: of the search for the largest error, reported beside the bound as ``measured``.

    Images ``[B, C, h, w]`` and signals ``[B, C, n]`` are moved by C2, C4, D1, D2, D4 and flips as permutations of their
    grid, features of :mod:`equidial.nn` with a group axis as permutations of samples and grid; other inputs carry the
    declared input of the first declared linear layer. Intermediate actions follow from there. Where a module has no
    Lipschitz constant (softmax attention) or does not commute with the action, the certificate abstains: kind
    ``"abstained"``, with the module and the reason, and no number.

    The model is copied and left as it is. Raises ``ArgumentError`` for wrong or conflicting arguments and for inputs
    that the model refuses; ``GroupActionError`` for images on which the group cannot act. Cost: one forward pass in
    float64, spectral norms of all weights and of their moved differences, about 200 forward passes for ``measured``.
    """
    question = ask(model, config, inputs, ball, input_shape, radius, rules, seed)
    return answer(plain_copy(model), question, dtype_of(model), {})


def ask(
    model: nn.Module,
    config: SoftEquivarianceConfig | None,
    inputs: torch.Tensor | None,
    ball: float | None,
    input_shape: tuple[int, ...] | None,
    radius: float | None,
    rules: Mapping[Any, Rule] | None,
    seed: int,
) -> Question:
    """Check every argument; the model is only read."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(explain("a torch.nn.Module", type(model).__name__, "pass the model itself"))
    found = find_root(model)
    config = config or (found[1].config if found else None)
    if config is None:
        raise ArgumentError(
            explain(
                "a softened model, or a plain one with its configuration",
                f"a plain {type(model).__name__} without config",
                "pass config=SoftEquivarianceConfig(...)",
            )
        )
    x = _examples(inputs, ball, input_shape)
    group = config.group_object
    trivial = Constraint.invariants(Trivial(group))
    reach = resolve_radius(trivial, config.radius if radius is None else radius)
    elements = certified_elements(group, reach)
    if elements is not None and not elements:
        raise ArgumentError(
            explain(f"an element of {group.name} other than the identity within the radius", f"{reach:g}", "enlarge it")
        )
    merged = {**MODULE_RULES, **GROUP_RULES, **FUNCTION_RULES, **(rules or {})}
    return Question(group, reach, elements, config, x, None if ball is None else float(ball), merged, seed)


def _examples(inputs: torch.Tensor | None, ball: float | None, input_shape: tuple[int, ...] | None) -> torch.Tensor:
    if (inputs is None) == (ball is None):
        raise ArgumentError(
            explain(
                "either inputs=batch or ball=radius",
                "both" if ball is not None else "neither",
                "give one of them",
            )
        )
    if inputs is not None:
        if input_shape is not None:
            raise ArgumentError(explain("input_shape with ball only", "inputs and input_shape", "leave it out"))
        if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point() or inputs.ndim < 2 or not len(inputs):
            got = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else repr(inputs)
            raise ArgumentError(
                explain("a batch of real inputs [B, ...]", got, "pass a tensor with the batch axis first")
            )
        if not bool(torch.isfinite(inputs).all()):
            raise ArgumentError(explain("finite inputs", "NaN or infinite entries", "clean the batch"))
        return inputs.detach().to("cpu", torch.float64)
    if isinstance(ball, bool) or not isinstance(ball, int | float) or not 0 < ball < math.inf:
        raise ArgumentError(explain("a radius ball > 0", repr(ball), "e.g. ball=1.0"))
    shape = tuple(input_shape) if isinstance(input_shape, tuple | list) else ()
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise ArgumentError(
            explain(
                "input_shape of one input, without the batch axis", repr(input_shape), "e.g. input_shape=(3, 32, 32)"
            )
        )
    return torch.zeros(1, *shape, dtype=torch.float64)


def plain_copy(model: nn.Module) -> nn.Module:
    """A folded copy in float64 on the CPU, in evaluation mode; stored weights are copied without rounding."""
    copied = copy.deepcopy(model)
    if find_root(copied) is not None:
        fold_tensors(copied)
    return copied.to("cpu", torch.float64).eval().requires_grad_(False)


def dtype_of(model: nn.Module) -> str:
    """How the weights are stored."""
    names = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    return ", ".join(sorted(names)) or "no"


def answer(
    model: nn.Module, question: Question, dtype: str, cache: dict[Any, Any], search: bool = True, trivial: bool = True
) -> NetworkCertificate:
    """The certificate of a plain float64 model; ``cache`` keeps its graph and norms of weights between calls.

    ``search``: also look for the largest error. ``trivial``: take the trivial bound where it is less.
    """
    x = question.x
    try:
        with torch.no_grad():
            expected = model(x)
    except Exception as error:
        raise ArgumentError(
            explain(
                f"a model that reads inputs of shape {tuple(x.shape)}",
                f"{type(error).__name__}: {error}",
                "pass inputs, or input_shape, of the size that the model reads",
            )
        ) from error
    shared = {
        "scope": "inputs" if question.ball is None else "ball",
        "ball": question.ball,
        "radius": question.radius,
        "elements": question.described,
        "group": question.group.name,
        "dtype": dtype,
        "hypotheses": (*HYPOTHESES, *((CONTINUOUS,) if has_continuous_layers(model) else ())),
        "library": __version__,
    }
    try:
        network = cache.get("network")
        if network is None:
            known = [k for k in question.rules if isinstance(k, type)]
            network = Network(*trace(model, known, x), question.rules)
            _check_elsewhere(model, network, question, cache)
            cache["network"] = network
        on_input = _input_action(network, question)
        walk, output = compose(network, question, on_input, x, question.ball or 0.0, cache)
        _check_same(output, expected)
    except Abstention as found:
        return NetworkCertificate(
            kind="abstained",
            bounds=(),
            composed_each=(),
            relatives=(),
            measured_each=(),
            allowance=0.0,
            abstained_at=found.where,
            reason=found.reason,
            **shared,
        )
    bounds = output.bounds.defect.amax(1)
    if trivial:
        bounds = _trivial_too(network, question, on_input, output, cache)
    least = (output.bounds.center * (1 - 3 * gamma(output.tensor.numel() + 4)) - output.bounds.rounding).clamp_min(0)
    relatives = (bounds / least * (1 + 1e-15)).nan_to_num(math.inf) if question.ball is None else torch.zeros(0)
    measured, allowance = torch.zeros(0), 0.0
    if search:
        measured, allowance = _measure(model, network, question, on_input, output, cache)
    return NetworkCertificate(
        kind="upper",
        bounds=tuple(bounds.tolist()),
        composed_each=tuple(output.bounds.defect.amax(1).tolist()),
        relatives=tuple(relatives.tolist()),
        measured_each=tuple(measured.tolist()),
        allowance=allowance,
        steps=_rows(walk.steps, output.bounds, float(bounds.max())),
        **shared,
    )


def _trivial_too(
    network: Network, question: Question, on_input: Action, output: Value, cache: dict[Any, Any]
) -> torch.Tensor:
    """The composed bounds, ``[B]``, but never more than ``||F(rho(g) x)|| + ||F(x)||``, nor than that of a ball."""
    bounds = output.bounds.defect.amax(1)
    if not (on_input.keeps_norms and output.action.keeps_norms):
        return bounds
    if question.ball is not None:
        return torch.minimum(bounds, 2 * output.bounds.size)  # rho(g) x lies in the ball, too
    # each input lies in the ball of its own norm, and so does every rho(g) x
    radii = norms_of(question.x) * (1 + gamma(question.x[0].numel() + 4))
    _, around = compose(network, question, on_input, torch.zeros_like(question.x), radii, cache)
    bounds = torch.minimum(bounds, around.bounds.defect.amax(1))
    return torch.minimum(bounds, (around.bounds.size + output.bounds.size) * (1 + 1e-15))


def compose(
    network: Network,
    question: Question,
    on_input: Action,
    x: torch.Tensor,
    reach: float | torch.Tensor,
    cache: dict[Any, Any],
) -> tuple[Walk, Value]:
    """Walk through the network; raises :class:`Abstention`."""
    walk = Walk(question.group, question.radius, question.elements, question.config, len(x), cache)
    source = Bounds.source(norms_of(x), reach, walk.width, _loss(on_input))
    output = network.run(walk, Value(x, on_input, source))
    if not isinstance(output, Value):
        output = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(output, Value):
        raise Abstention("the model itself", "its output is no tensor, and has no logits that depend on the input")
    return walk, output


def _loss(action: Action) -> float:
    """What applying an element to a vector loses in float64, relative to its norm."""
    if not isinstance(action, VectorAction) or action.permutes:
        return 0.0
    return gamma(action.rep.dim + 2) * math.sqrt(action.rep.dim) + 2 * action.rep.rounding


def _input_action(network: Network, question: Question) -> Action:
    shape, config = tuple(question.x.shape), question.config
    for name, module in network.called_modules():
        pattern = pattern_for(config.representations, name) if isinstance(module, nn.Linear) else None
        if pattern is not None:
            rep = config.space(config.representations[pattern][0])
            if rep.dim != shape[-1]:
                raise Abstention(
                    name, f"the first declared linear layer reads {rep.name}, and inputs have {shape[-1]} entries"
                )
            return vector_action(rep)
    if len(shape) not in (3, 4):
        raise Abstention(
            "the model itself",
            f"no representation is declared for inputs of shape {shape[1:]}; declare the first linear layer",
        )
    action = grid_action(question.group, shape[2:], 2)
    if not isinstance(action, TrivialAction) and action.permutes:
        action.move(question.group.identity(), question.x)  # raises where the group cannot act on this grid
    return action


def _check_same(output: Value, expected: Any) -> None:
    """The walk must have computed what the model computes."""
    try:
        there = logits_of(expected)
    except ArgumentError:
        there = None
    if there is None or there.shape != output.tensor.shape:
        raise Abstention("the model itself", "the traced graph returns something else than the model")
    gap, size = float((there - output.tensor).norm()), float(there.norm())
    if not gap <= 1e-9 * size + 2 * float(output.bounds.rounding.sum()):
        raise Abstention("the model itself", "the traced graph computes something else than the model")


def _check_elsewhere(model: nn.Module, network: Network, question: Question, cache: dict[Any, Any]) -> None:
    """The same at random inputs: at 0, the centre of a ball, many functions agree."""
    generator = torch.Generator().manual_seed(question.seed)
    x = torch.randn(question.x.shape, generator=generator, dtype=torch.float64)
    _, output = compose(network, question, _input_action(network, question), x, 0.0, cache)
    with torch.no_grad():
        _check_same(output, model(x))


def _measure(
    model: nn.Module, network: Network, question: Question, on_input: Action, output: Value, cache: dict[Any, Any]
) -> tuple[torch.Tensor, float]:
    search = ErrorSearch(
        lambda x: logits_of(model(x)),
        on_input,
        output.action,
        question.group,
        question.radius,
        question.elements,
        question.seed,
    )
    if question.ball is None:
        found = search.of_inputs(question.x)
    else:
        value, at = search.in_ball(question.x.shape[1:], question.ball)
        found = torch.tensor([value], dtype=torch.float64)
        output = compose(network, question, on_input, at.detach(), 0.0, cache)[1]
    bounds = output.bounds
    # both forward passes round, and so does the element that moves the output
    lost = 3 * bounds.rounding + (2 * _loss(output.action) + gamma(output.tensor[0].numel() + 4)) * bounds.size
    return found, float(lost.max())


def _rows(steps: list[Step], bounds: Bounds, bound: float) -> tuple[NetworkStep, ...]:
    whole = float(bounds.defect.max())
    share = bound / whole if whole > 0 else 1.0  # below 1 where the trivial bound is less than the sum
    width = bounds.defect.shape[1]
    row, column = divmod(int(bounds.defect.argmax()), width)
    return tuple(
        NetworkStep(
            step.module,
            step.rule,
            step.gain,
            float(step.defect[column]),
            share * float(bounds.parts[i][row, column]) if i in bounds.parts else 0.0,
        )
        for i, step in enumerate(steps)
    )
